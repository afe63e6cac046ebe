"""A picture drawn again from its recipe: with the very weights that drew it, or with words on what is missing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from ..concepts.concept import Concept
from ..concepts.library import Entry, Library
from ..errors import PersonalError
from ..image_metadata import Ingredient, Recipe
from ..prompts import Token, show

_ANYWAY = "Or draw with what is here, which gives another picture: --anyway"


@dataclasses.dataclass(frozen=True)
class Trouble:
    """Why the same picture cannot be drawn. fatal: nor can one like it."""

    problem: str
    fix: str
    fatal: bool = False


class Pinned:
    """Where a recipe's tokens lead: to the bytes it names, under whatever token the library has them.

    A `<me/duck>` stays what it was though the library has a newer version, and keeps the name it had, so that the new
    picture's recipe is the old one's. Raises PersonalError where a concept is missing, and where the library has other
    bytes in its place, unless `anyway`.
    """

    def __init__(self, recipe: Recipe, library: Library, anyway: bool = False):
        self._library = library
        self._places: dict[Token, tuple[Token, bool]] = {}  # the recipe's token -> the library's, and whether it is it
        troubles = []
        for wanted in recipe.concepts:
            here = _found(library, wanted)
            if here is None:
                troubles.append(_missing(wanted))
                continue
            same = here.identity == wanted.sha256
            self._places[Token.parse(wanted.token)] = here.token, same
            if not same:
                troubles.append(_other_bytes(wanted, here))
        raise_any(troubles, anyway)

    def get(self, token: Token) -> Concept:
        """The concept that the recipe means by `token`. Raises PersonalError."""
        meant = [each for each in self._places if token.matches(each)]
        if not meant:
            raise PersonalError(f"The recipe does not say which concept its {token} was.")
        newest = max(meant, key=lambda each: each.version or 0)
        place, same = self._places[newest]
        concept = self._library.get(place)
        return dataclasses.replace(concept, token=newest) if same else concept


def base_troubles(recipe: Recipe, name: str, sha256: str) -> list[Trouble]:
    """name, sha256: of the base that is loaded."""
    if sha256 == recipe.base.sha256:
        return []
    drew, loaded = f"{_name(recipe)} ({_short(recipe.base.sha256)})", f"{show(name)} ({_short(sha256)})"
    return [Trouble(f"It was drawn with the base {drew}; {loaded} is loaded.", "Give that base with --base.")]


def picture_troubles(recipe: Recipe, start: str | None, mask: str | None) -> list[Trouble]:
    """start, mask: `pixels_sum` of the pictures that are given, None for none."""
    found = (_picture("start", "start picture", recipe.start, start), _picture("mask", "mask", recipe.mask, mask))
    return [each for each in found if each]


def base_name(recipe: Recipe, known: Iterable[str]) -> str:
    """What to load where nobody says: one of our `known` names. A picture's word is never taken for a path or address.

    Raises PersonalError.
    """
    if recipe.base.name in known:
        return recipe.base.name
    problem = f"It was drawn with the base {_name(recipe)} ({recipe.base.kind}, {_short(recipe.base.sha256)})."
    raise PersonalError(problem, "Give its folder, file or Hub id with --base.")


def raise_any(troubles: list[Trouble], anyway: bool = False) -> None:
    """All in one PersonalError; where `anyway`, only those that are fatal."""
    troubles = [each for each in troubles if each.fatal or not anyway]
    if troubles:
        fixes = [each.fix for each in troubles] + ([] if any(each.fatal for each in troubles) else [_ANYWAY])
        raise PersonalError("\n".join(each.problem for each in troubles), "\n".join(dict.fromkeys(fixes)))


def _found(library: Library, wanted: Ingredient) -> Entry | None:
    """Its bytes, under its own token or any; else its version or the newest of that name, with other bytes."""
    token = Token.parse(wanted.token)
    name = token.unversioned()
    alike = [each for each in library.history(name) if not each.damaged] if library.versions(name) else []
    alike.sort(key=lambda each: (each.token != token, -each.token.version))
    for each in alike:
        if each.identity == wanted.sha256:
            return each
    renamed = (each for each in library.list() if each.identity == wanted.sha256 and not each.damaged)
    return next(renamed, alike[0] if alike else None)


def _missing(wanted: Ingredient) -> Trouble:
    source = show(wanted.hub) if wanted.hub else "OWNER/NAME"
    asked = "Get it: " if wanted.hub else "Ask whoever drew it, or look on the Hub: "
    problem = f"Its concept {wanted.token} ({_short(wanted.sha256)}) is not in the library."
    return Trouble(problem, f"{asked}sdpersonal concepts pull {source}", fatal=True)


def _other_bytes(wanted: Ingredient, here: Entry) -> Trouble:
    source = wanted.hub or str(here.card.recipe.get("hub") or "")
    return Trouble(
        f"Its concept {wanted.token} was {_short(wanted.sha256)}; {here.token} here is {_short(here.identity or '')}.",
        f"Get it: sdpersonal concepts pull {show(source)}" if source else "Ask whoever drew it for that version.",
    )


def _picture(flag: str, called: str, wanted: str, given: str | None) -> Trouble | None:
    if not wanted:
        return Trouble(f"It was drawn without a {called}.", f"Leave --{flag} away.", fatal=True) if given else None
    if given is None:
        return Trouble(
            f"It was drawn from a {called} (pixels {_short(wanted)}).", f"Give it: --{flag} FILE", fatal=True
        )
    if given != wanted:
        problem = f"Its {called} had other pixels ({_short(wanted)}) than the one you give ({_short(given)})."
        return Trouble(problem, f"Give the right one: --{flag} FILE")
    return None


def _name(recipe: Recipe) -> str:
    return show(recipe.base.name)


def _short(digest: str) -> str:
    return digest[:8]
