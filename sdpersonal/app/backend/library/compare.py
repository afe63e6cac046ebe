"""Concepts beside each other for a page: how two differ, and whether several can be in one prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ....concepts.compare import ALIKE, PARALLEL, Likeness, compare, conflicts
from ....concepts.library import Entry, Library
from ....errors import PersonalError
from .concept_details import facts, token_of
from .tiles import data_url

MOST = 4  # concepts in one check


@dataclass(frozen=True)
class Beside:
    """tokens, pictures (data URLs or ""): of both; rows: (fact, the first's, the other's); said: what their numbers
    have in common, sentences."""

    tokens: tuple[str, str]
    pictures: tuple[str, str]
    rows: tuple[tuple[str, str, str], ...]
    said: tuple[str, ...]


def beside(library: Library, first: object, second: object) -> Beside:
    """Two concepts, or two versions of one. Raises PersonalError."""
    a, b = (_whole(library, word) for word in (first, second))
    if a.token == b.token:
        raise PersonalError("That is the same one twice.", "Choose two.")
    ones, others = dict(facts(a)), dict(facts(b))
    rows = tuple((name, ones[name], others[name]) for name in ones if ones[name] or others[name])
    return Beside((str(a.token), str(b.token)), (data_url(a, 256), data_url(b, 256)), rows, _alike(library, a, b))


def check(library: Library, words: object) -> str:
    """What speaks against these concepts in one prompt, and the strengths to try. Raises PersonalError."""
    if not isinstance(words, list | tuple) or not 2 <= len(words) <= MOST:
        raise PersonalError(f"Choose 2 to {MOST} concepts.")
    # By their headers first: what no base can draw together is told before anything large is read.
    entries = [_whole(library, word) for word in words]
    found = conflicts([library.get(entry.token) for entry in entries])
    if not found:
        return "Nothing speaks against them in one prompt."
    return "\n".join(_told(conflict.concepts, conflict.problem, conflict.strengths) for conflict in found)


def _told(concepts: Sequence[str], problem: str, strengths: Sequence[float] | None) -> str:
    said = f"{concepts[0]} and {concepts[1]}: {problem}"
    if strengths:
        words = " ".join(f"{name[:-1]}:{at:g}>" for name, at in zip(concepts, strengths, strict=True))
        said += f" Try {words}"
    return said


def _whole(library: Library, word: object) -> Entry:
    entry = library.find(token_of(word))
    if entry.card is None:
        raise PersonalError(f"{entry.token} is damaged: {entry.damaged}")
    return entry


def _alike(library: Library, a: Entry, b: Entry) -> tuple[str, ...]:
    if a.card.base != b.card.base:
        return ("They are made for different bases, so their numbers cannot be compared.",)
    if a.identity == b.identity:
        return ("Their vectors and weights are the very same.",)
    return tuple(_likeness(compare(library.get(a.token), library.get(b.token))))


def _likeness(alike: Likeness) -> list[str]:
    said = []
    if alike.vectors is not None:
        how = "much alike" if alike.vectors > PARALLEL else "not alike"
        said.append(f"Their words are {how}: cosine {alike.vectors:.2f} (1 the same, 0 nothing in common).")
    if alike.lora is not None:
        how = "do in part the same" if alike.lora > ALIKE else "do different things"
        said.append(f"Their LoRAs {how}: cosine {alike.lora:.2f}, {alike.overlap:.0%} of their directions shared.")
    return said or ["One has only vectors, the other only a LoRA: there is nothing to compare."]
