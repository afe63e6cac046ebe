"""Reproduce an image from its recipe: with exactly the weights it was generated with, or report what is missing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from ..concepts.concept import Concept
from ..concepts.library import Entry, Library
from ..errors import UserError
from ..image_metadata import Recipe, RecipeConcept
from ..prompts import Token, printable

_ANYWAY_HINT = "Or draw with what is here, which gives another picture: --anyway"


@dataclasses.dataclass(frozen=True)
class Mismatch:
    """A reason why the same image cannot be generated. fatal: nor can a similar one."""

    message: str
    hint: str
    is_fatal: bool = False


class PinnedConcepts:
    """The concepts of a recipe, found by their hashes, under whatever token the library has them.

    A `<me/duck>` stays what it was even if the library has a newer version, and keeps its name, so that the new image's
    recipe equals the old one. Raises UserError if a concept is missing, or if the library has other bytes in its
    place, unless `anyway`.
    """

    def __init__(self, recipe: Recipe, library: Library, allow_mismatch: bool = False):
        self._library = library
        self._tokens: dict[
            Token, tuple[Token, bool]
        ] = {}  # the recipe's token -> the library's, and whether the bytes match
        mismatches = []
        for concept in recipe.concepts:
            entry = _find_entry(library, concept)
            if entry is None:
                mismatches.append(_missing_concept(concept))
                continue
            same = entry.identity == concept.sha256
            self._tokens[Token.parse(concept.token)] = entry.token, same
            if not same:
                mismatches.append(_different_version(concept, entry))
        raise_mismatches(mismatches, allow_mismatch)

    def get(self, token: Token) -> Concept:
        """Return the concept that the recipe means by `token`. Raises UserError."""
        matches = [candidate for candidate in self._tokens if token.matches(candidate)]
        if not matches:
            raise UserError(f"The recipe does not say which concept its {token} was.")
        newest = max(matches, key=lambda candidate: candidate.version or 0)
        place, same = self._tokens[newest]
        concept = self._library.get(place)
        return dataclasses.replace(concept, token=newest) if same else concept


def base_mismatches(recipe: Recipe, name: str, sha256: str) -> list[Mismatch]:
    """Compare the recipe with the loaded model. name, sha256: of that model."""
    if sha256 == recipe.base.sha256:
        return []
    drew, loaded = (
        f"{_base_label(recipe)} ({_short_digest(recipe.base.sha256)})",
        f"{printable(name)} ({_short_digest(sha256)})",
    )
    return [Mismatch(f"It was drawn with the base {drew}; {loaded} is loaded.", "Give that base with --base.")]


def image_mismatches(recipe: Recipe, start: str | None, mask: str | None) -> list[Mismatch]:
    """Compare the recipe with the given images. start, mask: hashes of their pixels, None for none."""
    mismatches = (
        _compare_image("start", "start picture", recipe.start, start),
        _compare_image("mask", "mask", recipe.mask, mask),
    )
    return [mismatch for mismatch in mismatches if mismatch]


def base_to_load(recipe: Recipe, known: Iterable[str]) -> str:
    """Return the default model to load: one of our `known` names. A recipe's text is never used as a path or address.

    Raises UserError.
    """
    if recipe.base.name in known:
        return recipe.base.name
    problem = (
        f"It was drawn with the base {_base_label(recipe)} ({recipe.base.kind}, {_short_digest(recipe.base.sha256)})."
    )
    raise UserError(problem, "Give its folder, file or Hub id with --base.")


def raise_mismatches(troubles: list[Mismatch], allow_mismatch: bool = False) -> None:
    """Raise all mismatches in one UserError; with `anyway`, only the fatal ones."""
    troubles = [item for item in troubles if item.is_fatal or not allow_mismatch]
    if troubles:
        fixes = [item.hint for item in troubles] + ([] if any(item.is_fatal for item in troubles) else [_ANYWAY_HINT])
        raise UserError("\n".join(item.message for item in troubles), "\n".join(dict.fromkeys(fixes)))


def _find_entry(library: Library, wanted: RecipeConcept) -> Entry | None:
    """Find the same bytes under its own or any token; else its version or the newest of that name, with other bytes."""
    token = Token.parse(wanted.token)
    name = token.unversioned()
    candidates = [entry for entry in library.history(name) if not entry.damaged] if library.versions(name) else []
    candidates.sort(key=lambda entry: (entry.token != token, -entry.token.version))
    for entry in candidates:
        if entry.identity == wanted.sha256:
            return entry
    renamed = (entry for entry in library.entries() if entry.identity == wanted.sha256 and not entry.damaged)
    return next(renamed, candidates[0] if candidates else None)


def _missing_concept(wanted: RecipeConcept) -> Mismatch:
    source = printable(wanted.hub) if wanted.hub else "OWNER/NAME"
    advice = "Get it: " if wanted.hub else "Ask whoever drew it, or look on the Hub: "
    problem = f"Its concept {wanted.token} ({_short_digest(wanted.sha256)}) is not in the library."
    return Mismatch(problem, f"{advice}sdpersonal concepts pull {source}", is_fatal=True)


def _different_version(wanted: RecipeConcept, entry: Entry) -> Mismatch:
    source = wanted.hub or str(entry.card.recipe.get("hub") or "")
    return Mismatch(
        f"Its concept {wanted.token} was {_short_digest(wanted.sha256)}; {entry.token} here is "
        f"{_short_digest(entry.identity or '')}.",
        f"Get it: sdpersonal concepts pull {printable(source)}" if source else "Ask whoever drew it for that version.",
    )


def _compare_image(flag: str, called: str, wanted: str, given: str | None) -> Mismatch | None:
    if not wanted:
        return Mismatch(f"It was drawn without a {called}.", f"Leave --{flag} away.", is_fatal=True) if given else None
    if given is None:
        return Mismatch(
            f"It was drawn from a {called} (pixels {_short_digest(wanted)}).", f"Give it: --{flag} FILE", is_fatal=True
        )
    if given != wanted:
        problem = (
            f"Its {called} had other pixels ({_short_digest(wanted)}) than the one you give ({_short_digest(given)})."
        )
        return Mismatch(problem, f"Give the right one: --{flag} FILE")
    return None


def _base_label(recipe: Recipe) -> str:
    return printable(recipe.base.name)


def _short_digest(digest: str) -> str:
    return digest[:8]
