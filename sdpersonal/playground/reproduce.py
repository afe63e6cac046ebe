"""Reproduce an image from its recipe: with exactly the weights it was generated with, or report what is missing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..concepts.concept import Concept
from ..concepts.library import Entry, Library
from ..errors import UserError, printable
from ..image_metadata import Recipe, RecipeConcept, pixels_sha256
from ..prompts import Token

if TYPE_CHECKING:
    from ..generation import GeneratedImage

_ANYWAY_HINT = "Or generate with what is here, which gives another image: --anyway"


@dataclasses.dataclass(frozen=True)
class Mismatch:
    """A reason why the same image cannot be generated. is_fatal: nor can a similar one."""

    message: str
    hint: str
    is_fatal: bool = False


class PinnedConcepts:
    """The concepts of a recipe, found by their hashes, under whatever token the library has them.

    A `<me/duck>` stays what it was even if the library has a newer version, and keeps its name, so that the new image's
    recipe equals the old one. Raises UserError if a concept is missing, or if the library has other bytes in its
    place, unless `allow_mismatch`.
    """

    def __init__(self, recipe: Recipe, library: Library, allow_mismatch: bool = False):
        self._library = library
        # The recipe's token -> the library's, and whether the bytes match.
        self._tokens: dict[Token, tuple[Token, bool]] = {}
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
            raise UserError(f"The recipe does not contain the concept {token}.")
        newest = max(matches, key=lambda candidate: candidate.version or 0)
        library_token, same = self._tokens[newest]
        concept = self._library.get(library_token)
        return dataclasses.replace(concept, token=newest) if same else concept


def base_mismatches(recipe: Recipe, name: str, sha256: str) -> list[Mismatch]:
    """Compare the recipe with the loaded model. name, sha256: of that model."""
    if sha256 == recipe.base.sha256:
        return []
    expected = f"{_base_label(recipe)} ({_short_digest(recipe.base.sha256)})"
    message = (
        f"The image was generated with the base {expected}; {printable(name)} ({_short_digest(sha256)}) is loaded."
    )
    return [Mismatch(message, "Give that base with --base.")]


def image_mismatches(recipe: Recipe, init_image: Path | None, mask: Path | None) -> list[Mismatch]:
    """Compare the recipe with the given files by their pixels, decoded as generation does. Raises UserError."""
    init_hash = mask_hash = None
    if init_image or mask:
        from ..generation.img2img import open_image, open_mask  # loads torch

        init_hash = pixels_sha256(open_image(init_image)) if init_image else None
        mask_hash = pixels_sha256(open_mask(mask)) if mask else None
    mismatches = (
        _compare_image("init-image", "an init image", recipe.init_image, init_hash),
        _compare_image("mask", "a mask", recipe.mask, mask_hash),
    )
    return [mismatch for mismatch in mismatches if mismatch]


def reproduced_image(recipe: Recipe, batch: Sequence[GeneratedImage]) -> GeneratedImage:
    """Return the recipe's image out of the batch of `recipe.batch_request()`, with the recipe's own template."""
    image = batch[recipe.place]
    image.recipe = image.recipe.model_copy(update={"template": recipe.template})
    return image


def base_to_load(recipe: Recipe) -> str:
    """Return the default model to load: tiny or one with a short name. A recipe's text is never used as a path or
    address.

    Raises UserError.
    """
    from ..models.loading import BUILT_IN, SHORT_NAMES  # loads torch

    if recipe.base.name in {BUILT_IN, *SHORT_NAMES}:
        return recipe.base.name
    digest = _short_digest(recipe.base.sha256)
    raise UserError(
        f"The image was generated with --base {_base_label(recipe)} ({recipe.base.kind}, {digest}).",
        "Give --base its folder, file or Hub id.",
    )


def raise_mismatches(mismatches: list[Mismatch], allow_mismatch: bool = False) -> None:
    """Raise all mismatches in one UserError; with `allow_mismatch`, only the fatal ones."""
    mismatches = [mismatch for mismatch in mismatches if mismatch.is_fatal or not allow_mismatch]
    if mismatches:
        hints = [mismatch.hint for mismatch in mismatches]
        if not any(mismatch.is_fatal for mismatch in mismatches):
            hints.append(_ANYWAY_HINT)
        raise UserError("\n".join(mismatch.message for mismatch in mismatches), "\n".join(dict.fromkeys(hints)))


def _find_entry(library: Library, concept: RecipeConcept) -> Entry | None:
    """Find the same bytes under its own or any token; else its version or the newest of that name, with other bytes."""
    token = Token.parse(concept.token)
    name = token.unversioned()
    candidates = [entry for entry in library.history(name) if not entry.damaged] if library.versions(name) else []
    candidates.sort(key=lambda entry: (entry.token != token, -(entry.token.version or 0)))
    for entry in candidates:
        if entry.identity == concept.sha256:
            return entry
    renamed = (entry for entry in library.entries() if entry.identity == concept.sha256 and not entry.damaged)
    return next(renamed, candidates[0] if candidates else None)


def _missing_concept(concept: RecipeConcept) -> Mismatch:
    source = printable(concept.hub) if concept.hub else "OWNER/NAME"
    advice = "Get it: " if concept.hub else "Ask its author, or look on the Hub: "
    problem = f"Its concept {concept.token} ({_short_digest(concept.sha256)}) is not in the library."
    return Mismatch(problem, f"{advice}sdpersonal hub pull {source}", is_fatal=True)


def _different_version(concept: RecipeConcept, entry: Entry) -> Mismatch:
    source = concept.hub or str(entry.card.recipe.get("hub") or "") if entry.card else ""
    return Mismatch(
        f"Its concept {concept.token} was {_short_digest(concept.sha256)}; {entry.token} here is "
        f"{_short_digest(entry.identity or '')}.",
        f"Get it: sdpersonal hub pull {printable(source)}" if source else "Ask its author for that version.",
    )


def _compare_image(flag: str, label: str, expected: str, actual: str | None) -> Mismatch | None:
    if not expected:
        return (
            Mismatch(f"The image was generated without {label}.", f"Leave out --{flag}.", is_fatal=True)
            if actual
            else None
        )
    if actual is None:
        return Mismatch(
            f"The image was generated from {label} (pixels {_short_digest(expected)}).",
            f"Give --{flag} FILE.",
            is_fatal=True,
        )
    if actual != expected:
        digests = _short_digest(actual), _short_digest(expected)
        message = f"--{flag} has other pixels ({digests[0]}) than the image was generated from ({digests[1]})."
        return Mismatch(message, f"Give --{flag} the file that it was generated from.")
    return None


def _base_label(recipe: Recipe) -> str:
    return printable(recipe.base.name)


def _short_digest(digest: str) -> str:
    return digest[:8]
