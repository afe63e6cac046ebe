"""Make a concept's token of what somebody types: "Rex the Dog" becomes <me/rex-the-dog>."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from ....concepts.library import Library
from ....errors import FieldError, UserError
from ....prompts import Token
from ....prompts.tokens import MAX_NAME_LENGTH, RESERVED_NAMES, to_token_word

DEFAULT_OWNER = "me"
_VERSION = re.compile(r"v[0-9]+")  # of a name, after its last hyphen
_LATIN = str.maketrans(
    {"ß": "ss", "æ": "ae", "œ": "oe", "ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "ı": "i", "'": "", "’": ""}
)
_SOUNDS = (  # of Cyrillic and Greek letters; "-": none
    ("абвгдежзийклмноп", "a b v g d e zh z i y k l m n o p"),
    ("рстуфхцчшщъыьэюя", "r s t u f kh ts ch sh shch - y - e yu ya"),
    ("іїєґёў", "i yi ye g yo u"),
    ("αβγδεζηθικλμνξοπρστυφχψως", "a v g d e z i th i k l m n x o p r s t y f ch ps o s"),
)
_LETTERS = str.maketrans(
    {
        letter: sound.replace("-", "")
        for letters, sounds in _SOUNDS
        for letter, sound in zip(letters, sounds.split(), strict=True)
    }
)
# Scripts whose letters are syllables, named by their sound: "KATAKANA LETTER RA", "HANGUL SYLLABLE GA".
_SYLLABLES = re.compile(r"(?:(?:HIRAGANA|KATAKANA) LETTER (?:SMALL )?|HANGUL SYLLABLE )([A-Z]+)")


@dataclass(frozen=True)
class ConceptName:
    """What a typed name becomes. token: None if nothing of it is left; note: a sentence on it; problem: what is
    missing, "" if nothing is; field: of the form, that has the problem."""

    token: Token | None
    note: str = ""
    problem: str = ""
    field: str = "name"


def make_name(owner: str, name: str, library: Library, default_owner: str = DEFAULT_OWNER) -> ConceptName:
    """Make the token of a typed owner and name; the owner may be empty."""
    try:
        token = make_token(owner, name, default_owner)
    except FieldError as error:
        if not name.strip() and error.field == "name":
            return ConceptName(None, "Its token is what you write in prompts.", "The concept name is empty.")
        return ConceptName(None, "", error.message, error.field)
    versions = library.versions(token)
    if not versions:
        return ConceptName(token, f"Write {token} in prompts.")
    number = next_version(versions)
    return ConceptName(token, f"{token} is in the library already: this will be version {number}; the older ones stay.")


def make_token(owner: str, name: str, default_owner: str = DEFAULT_OWNER) -> Token:
    """Return the token of a typed owner and name. Raises FieldError if no letter or digit is left of one of them."""
    owner_word = make_word(owner) if owner.strip() else default_owner
    if not owner_word:
        raise FieldError("owner", "Type an owner with letters or digits.")
    name_word = make_word(name)
    if not name_word:
        raise FieldError("name", "Type a name with letters or digits.")
    try:
        return Token.parse(f"<{owner_word}/{name_word}>")
    except UserError as error:
        raise FieldError("name", error.message, error.hint) from None


def make_word(text: str) -> str:
    """Return the text as a word of a token, of a-z, 0-9 and hyphens; "" if nothing of it is left.

    Letters of other scripts are written as they sound, accents and emoji are dropped. A version at the end is dropped
    too, since the library counts versions itself.
    """
    composed = unicodedata.normalize("NFKC", text[:1000]).lower()
    latin = "".join(map(_to_latin, composed)).translate(_LATIN)
    word = to_token_word(latin, max_length=None)
    word = _without_version(_without_version(word)[:MAX_NAME_LENGTH].strip("-"))
    return f"{word}-1" if word in RESERVED_NAMES else word


def _without_version(word: str) -> str:
    start, hyphen, end = word.rpartition("-")
    while hyphen and _VERSION.fullmatch(end):
        word = start
        start, hyphen, end = word.rpartition("-")
    return word


def _to_latin(character: str) -> str:
    if character.isascii():
        return character
    if (digit := unicodedata.digit(character, None)) is not None:
        return str(digit)
    if match := _SYLLABLES.match(unicodedata.name(character, "")):
        return match[1].lower()
    sound = character.translate(_LETTERS)
    if sound != character:
        return sound
    parts = unicodedata.normalize("NFKD", character)
    return "".join(part.translate(_LETTERS) for part in parts if not unicodedata.combining(part))


def next_version(versions: Sequence[Token]) -> int:
    """Return the version that a concept gets; versions: those in the library, oldest first."""
    return (versions[-1].version or 0) + 1 if versions else 1
