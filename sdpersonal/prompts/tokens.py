"""Parse tokens of concepts: what is valid in angle brackets, and the spelling suggested for anything else."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from ..errors import UserError, printable

_NAME_PATTERN = r"[a-z0-9]+(?:-[a-z0-9]+)*"
_TOKEN = re.compile(rf"(?:(?P<owner>{_NAME_PATTERN})/)?(?P<name>{_NAME_PATTERN}?)(?:-v(?P<version>[1-9][0-9]{{0,5}}))?")
MAX_NAME_LENGTH = 64
# Device names that Windows reserves in any folder: a concept of that name could not be shared with a Windows user.
RESERVED_NAMES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}
_ALLOWED_CHARACTERS = "a-z, 0-9 and -"


@dataclass(frozen=True, order=True)
class Token:
    """The token of a concept: `<owner/name-vN>`. owner None: any owner; version None: the newest."""

    owner: str | None
    name: str
    version: int | None = None

    @classmethod
    def parse(cls, text: str) -> Token:
        """Parse `<me/duck-v2>`, or the same without brackets. Raises UserError, suggesting a valid spelling."""
        inner = text.strip()
        if inner.startswith("<") and inner.endswith(">"):
            inner = inner[1:-1]
        match = _TOKEN.fullmatch(inner)
        if not match or max(len(match["owner"] or ""), len(match["name"])) > MAX_NAME_LENGTH:
            raise UserError(f"{printable(text) or '<>'} is not a concept's token.", _suggest_spelling(inner))
        if RESERVED_NAMES & {match["owner"], match["name"]}:
            raise UserError(f"{printable(text)} holds a name that Windows keeps for devices.", "Choose another name.")
        return cls(match["owner"], match["name"], int(match["version"]) if match["version"] else None)

    @classmethod
    def of(cls, value: str | Token) -> Token:
        """Return the token itself, or parse its text. Raises UserError."""
        if isinstance(value, Token):
            return value
        if isinstance(value, str):
            return cls.parse(value)
        raise UserError(f"A token must be text like <me/my-cat>, got {printable(repr(value), 60)}.")

    @property
    def slug(self) -> str:
        """Return `owner-name`, the name for other programs, which allow no slash or dot."""
        return f"{self.owner}-{self.name}" if self.owner else self.name

    def matches(self, other: Token) -> bool:
        """Return whether this token refers to `other`, which has owner and version."""
        return self.name == other.name and self.owner in (None, other.owner) and self.version in (None, other.version)

    def unversioned(self) -> Token:
        return Token(self.owner, self.name)

    def __str__(self) -> str:
        owner = f"{self.owner}/" if self.owner else ""
        version = f"-v{self.version}" if self.version else ""
        return f"<{owner}{self.name}{version}>"


def to_token_word(text: str, max_length: int | None = MAX_NAME_LENGTH) -> str:
    """Write a text in a token's characters, with hyphens for all others; "" if none of its characters is left."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:max_length].strip("-")


def _suggest_spelling(inner: str) -> str:
    plain = unicodedata.normalize("NFKC", inner.partition(":")[0]).lower()
    if alike := next((c for c in plain if c.isalnum() and not c.isascii()), None):
        # A look-alike character cannot be seen by reading the word again, so the message names it.
        return f"Its {printable(alike)!r} is {unicodedata.name(alike, 'no letter')}; tokens use {_ALLOWED_CHARACTERS}."
    words = [word for part in plain.split("/")[:2] if (word := to_token_word(part))]
    if not words:
        return f"Write it like <me/my-cat>; tokens use {_ALLOWED_CHARACTERS}."
    owner, name = words if len(words) == 2 else ("me", words[0])
    return f"Call it <{owner}/{name}>; tokens use {_ALLOWED_CHARACTERS}."
