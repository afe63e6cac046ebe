"""DreamBooth prompts as people write them, "a photo of sks dog", read for what they are about.

diffusers ties one prompt to all photos. Here the subject has a token of its own, and sentences around it of many kinds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import PersonalError
from ..prompts import Token, show

_ARTICLE = r"(?:(?:an?|the|my|one)\s+)?"
_MEDIA = (
    "photo|photograph|photography|picture|pic|image|portrait|painting|drawing|illustration|render|rendering|sketch|"
    "snapshot|shot|headshot|close-?up|selfie|icon|artwork|art|poster|cartoon|logo"
)
_STYLE = re.compile(rf"{_ARTICLE}(?P<medium>\S+(?:\s+\S+){{0,3}}?)?\s*\bin\s+(?:the\s+)?style\s+of\s+{_ARTICLE}", re.I)
_OPENING = re.compile(rf"{_ARTICLE}(?:\S+\s+){{0,3}}?(?:{_MEDIA})\s+of\s+{_ARTICLE}", re.I)
# Where a subject ends and its surroundings begin.
_AROUND = re.compile(
    r"\s*[,;:.!]\s*|\s+(?=(?:in|on|at|with|under|near|by|beside|behind|against|from|and|over|inside|outside|next|wearing|"
    r"holding|sitting|standing|lying|looking|walking|running|riding|that|which|who)\s)",
    re.I,
)
_PEOPLE = re.compile(r"(person|people|human|(wo)?man|boy|girl|guy|lady|(fe)?male|face|baby|child|kid)", re.I)


@dataclass(frozen=True)
class Subject:
    """What a prompt is about: its words in it ("sks dog"), the class noun ("dog"), the kind, and what else it says."""

    phrase: str
    noun: str
    kind: str
    around: str = ""

    @property
    def token(self) -> str:
        """`<me/sks-dog>`; raises PersonalError where the words leave no name."""
        return token_for(self.phrase.replace("/", " "), "--instance_prompt")


def read_subject(instance_prompt: str, class_prompt: str | None = None, noun: str | None = None) -> Subject:
    """What the photos of a DreamBooth command show. noun: the class noun, where it is known already.

    Raises PersonalError where the prompt does not tell.
    """
    style = _STYLE.match(_plain(instance_prompt))
    phrase, around = _phrase(instance_prompt)
    words = phrase.split()
    if noun is None and class_prompt is not None:
        noun, _ = _phrase(class_prompt)
    if noun is None and style and style["medium"]:
        noun = style["medium"]
    if noun is None and not style and len(words) > 1:
        noun = " ".join(words[1:])  # the first is what DreamBooth calls the identifier
    if not words or not noun:
        raise PersonalError(
            f"--instance_prompt {show(instance_prompt, 60)!r} does not say what kind of thing it is.",
            "Write it like 'a photo of sks dog', or add --token '<me/my-dog>' --class dog.",
        )
    person = _PEOPLE.fullmatch(noun.split()[-1])
    return Subject(phrase, noun, "style" if style else "person" if person else "object", around)


def token_for(words: str, flag: str) -> str:
    """`<me/sks-dog>` for "sks dog", `<me/cat-toy>` for "<cat-toy>"; a token with an owner stays.

    Raises PersonalError where no letters or digits are left to make a name of.
    """
    inner = words.strip().strip("<>[]")
    if re.fullmatch(r"[a-z0-9-]+/[a-z0-9-]+", inner):
        return str(Token.parse(inner))
    name = re.sub(r"[^a-z0-9]+", "-", inner.lower()).strip("-")
    if not name or not inner.isascii() or not inner.isprintable():
        raise PersonalError(
            f"{flag} {show(words, 60)!r} makes no token.", "Add --token '<me/my-cat>' (a-z, 0-9 and -)."
        )
    return str(Token.parse(f"<me/{name}>"))


def _phrase(prompt: str) -> tuple[str, str]:
    """("sks dog", "in a bucket") of "a photo of a sks dog in a bucket"."""
    text = _plain(prompt)
    opening = _STYLE.match(text) or _OPENING.match(text) or re.match(_ARTICLE, text, re.I)
    rest = text[opening.end() :]
    cut = _AROUND.search(rest)
    phrase = rest[: cut.start()] if cut else rest
    return phrase.strip(" .,;:\"'"), rest[cut.end() :].strip(" .,") if cut else ""


def _plain(prompt: str) -> str:
    return " ".join(prompt.split()) + " "  # so that an opening ends in a space even where nothing follows
