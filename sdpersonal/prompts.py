"""The prompt language: English with concept tokens in it.

    a photo of <karpathy/cool-object-v7> in the style of <coolperson/trippystyle:0.8>

A token is `<owner/name-vN>`: lower-case ASCII letters, digits and hyphens. `-vN` is the version; without it the newest
is meant. `<name>` alone works while only one owner has such a concept. `:0.8` sets the strength, 0 to 2. A `<` that
opens no word ("a < b") is text. Tokens never reach a tokenizer: `parse` cuts the prompt into text and mentions, and
whoever draws puts each concept's vectors in the mention's place.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from .errors import PersonalError

MAX_PROMPT = 2000  # characters; 77 tokens of English are about 350
MAX_STRENGTH = 2.0

_WORD = r"[a-z0-9]+(?:-[a-z0-9]+)*"
_TOKEN = re.compile(rf"(?:(?P<owner>{_WORD})/)?(?P<name>{_WORD}?)(?:-v(?P<version>[1-9][0-9]{{0,5}}))?")
_MAX_WORD = 64
# Device names that Windows reserves in any folder: a concept called so could not be shared with a Windows user.
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}
_HABIT = "a-z, 0-9 and -"


@dataclass(frozen=True, order=True)
class Token:
    """A concept's word: `<owner/name-vN>`. owner None: whoever has that name; version None: the newest."""

    owner: str | None
    name: str
    version: int | None = None

    @classmethod
    def parse(cls, text: str) -> Token:
        """`<me/duck-v2>`, or the same without brackets. Raises PersonalError, proposing a spelling that works."""
        inner = text.strip()
        if inner.startswith("<") and inner.endswith(">"):
            inner = inner[1:-1]
        found = _TOKEN.fullmatch(inner)
        if not found or max(len(found["owner"] or ""), len(found["name"])) > _MAX_WORD:
            raise PersonalError(f"{show(text)} is not a concept's token.", _suggestion(inner))
        if _RESERVED & {found["owner"], found["name"]}:
            raise PersonalError(f"{show(text)} holds a name that Windows keeps for devices.", "Choose another name.")
        return cls(found["owner"], found["name"], int(found["version"]) if found["version"] else None)

    @property
    def slug(self) -> str:
        """`owner-name`: what other programs, which allow no slash or dot, call the concept."""
        return f"{self.owner}-{self.name}" if self.owner else self.name

    def matches(self, other: Token) -> bool:
        """Whether this way of writing means `other`, which has owner and version."""
        return self.name == other.name and self.owner in (None, other.owner) and self.version in (None, other.version)

    def unversioned(self) -> Token:
        return Token(self.owner, self.name)

    def __str__(self) -> str:
        owner = f"{self.owner}/" if self.owner else ""
        version = f"-v{self.version}" if self.version else ""
        return f"<{owner}{self.name}{version}>"


@dataclass(frozen=True)
class Mention:
    """One concept in one prompt."""

    token: Token
    strength: float = 1.0


@dataclass(frozen=True)
class Prompt:
    """A prompt as read: text as typed, and its pieces in order."""

    text: str
    pieces: tuple[str | Mention, ...]

    @property
    def mentions(self) -> tuple[Mention, ...]:
        return tuple(piece for piece in self.pieces if isinstance(piece, Mention))


def parse(text: str) -> Prompt:
    """Read a prompt. Raises PersonalError where something in angle brackets cannot be a token."""
    if len(text) > MAX_PROMPT:
        raise PersonalError(f"The prompt has {len(text):,} characters; I read up to {MAX_PROMPT:,}.", "Shorten it.")
    pieces: list[str | Mention] = []
    position = 0
    for bracket in re.finditer(r"<(?=\S)([^<>]*)>", text):
        pieces.append(text[position : bracket.start()])
        pieces.append(_mention(bracket[1]))
        position = bracket.end()
    pieces.append(text[position:])
    return Prompt(text, tuple(piece for piece in pieces if piece != ""))


def _mention(inner: str) -> Mention:
    word, colon, strength = inner.partition(":")
    # Capitals are folded here, where people write quickly; only names given to new concepts must be lower case.
    token = Token.parse(word.lower())
    return Mention(token, _strength(inner, strength) if colon else 1.0)


def _strength(inner: str, text: str) -> float:
    if re.fullmatch(r"[0-9]*\.?[0-9]+|[0-9]+\.", text.strip()):
        value = float(text)
        if value <= MAX_STRENGTH:
            return value
    raise PersonalError(
        f"The strength in <{show(inner)}> must be a number from 0 to {MAX_STRENGTH:g}.", "For example <me/duck:0.8>."
    )


def _suggestion(inner: str) -> str:
    plain = unicodedata.normalize("NFKC", inner.partition(":")[0]).lower()
    if alike := next((c for c in plain if c.isalnum() and not c.isascii()), None):
        # A look-alike is not seen by reading the word again, so it is named.
        return f"Its {show(alike)!r} is {unicodedata.name(alike, 'no letter')}; I use {_HABIT}."
    words = [re.sub(r"[^a-z0-9]+", "-", part).strip("-")[:_MAX_WORD].strip("-") for part in plain.split("/")[:2]]
    words = [word for word in words if word]
    if not words:
        return f"Write it like <me/my-cat>; I use {_HABIT}."
    owner, name = words if len(words) == 2 else ("me", words[0])
    return f"Call it <{owner}/{name}>; I use {_HABIT}."


def show(text: str, limit: int = 80) -> str:
    """Text from outside, safe to print: control, bidirectional and undecodable characters escaped, length bounded.

    >>> show("a\\x1b[31mb")
    'a\\\\x1b[31mb'
    """
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in cut)
