"""The only exceptions a user sees: a problem, and the next thing to do; and `show`, for what they quote.

`str(error)` is one or two lines, ready to print. Exit codes are those of the command line:
2 the user's mistake, 3 no room on disk, 4 training diverged, 130 interrupted.
"""


class PersonalError(Exception):
    """Something the user can put right.

    problem: what is wrong, and where; fix: the next thing to do (may be empty).
    """

    exit_code = 2

    def __init__(self, problem: str, fix: str = ""):
        super().__init__(problem, fix)
        self.problem = problem
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.problem}\n{self.fix}" if self.fix else self.problem


class FieldError(PersonalError):
    """One value of a settings class is unusable. `field` is the parameter's name in Python; a command line and a page
    call it otherwise, and put their own name in with `called`."""

    def __init__(self, field: str, problem: str, fix: str = ""):
        super().__init__(problem, fix)
        self.args = (field, problem, fix)
        self.field = field

    def called(self, name: str) -> "FieldError":
        """The same with another name for the field, which then always stands in the sentence."""
        if self.problem.startswith(f"{self.field} "):
            return FieldError(name, name + self.problem.removeprefix(self.field), self.fix)
        return FieldError(name, f"{name}: {self.problem}", self.fix)


class NoRoom(PersonalError):
    """The disk is full; what was there before is unharmed."""

    exit_code = 3


class NoMemory(PersonalError):
    """The card, or the machine, has too little memory for what was asked; what it took is free again."""


class Diverged(PersonalError):
    """Training produced a number that is not finite; the last good checkpoint is kept."""

    exit_code = 4


class Interrupted(PersonalError):
    """The user stopped the work; what was finished is saved."""

    exit_code = 130


def show(text: str, limit: int = 80) -> str:
    """Text from outside, safe to print: control, bidirectional and undecodable characters escaped, length bounded.

    >>> show("a\\x1b[31mb")
    'a\\\\x1b[31mb'
    """
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in cut)
