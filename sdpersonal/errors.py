"""Define the only exceptions that a user sees, a message and a hint, and `printable` for what they quote.

`str(error)` is one or two lines, ready to print. Exit codes are those of the command line:
2 the user's mistake, 3 disk full, 4 training diverged, 130 interrupted.
"""


class UserError(Exception):
    """An error that the user can correct.

    message: what is wrong, and where; hint: the next thing to do (may be empty).
    """

    exit_code = 2

    def __init__(self, message: str, hint: str = ""):
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class FieldError(UserError):
    """One value of a settings class is unusable. `field` is its name in Python; a command line and a page have other
    names for it, which they set with `called`."""

    def __init__(self, field: str, message: str, hint: str = ""):
        super().__init__(message, hint)
        self.args = (field, message, hint)
        self.field = field

    def called(self, name: str) -> "FieldError":
        """Return the error with another name for the field, which the message then always contains."""
        if self.message.startswith(f"{self.field} "):
            return FieldError(name, name + self.message.removeprefix(self.field), self.hint)
        return FieldError(name, f"{name}: {self.message}", self.hint)


class UnknownConcept(UserError, KeyError):
    """A library has no concept of that token."""


class DiskFull(UserError):
    """The disk is full; existing files are unharmed."""

    exit_code = 3


class OutOfMemory(UserError):
    """The GPU, or the machine, has too little memory for the request; the memory it took is free again."""


class Diverged(UserError):
    """Training produced a non-finite number; the last good checkpoint is kept."""

    exit_code = 4


class Interrupted(UserError):
    """The user stopped the work; finished results are saved."""

    exit_code = 130


def printable(text: str, limit: int = 80) -> str:
    """Make text from outside safe to print: escape control, bidirectional and undecodable characters, limit the length.

    >>> printable("a\\x1b[31mb")
    'a\\\\x1b[31mb'
    """
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in cut)
