"""Variations of a favourite: what its recipe drew, with one thing changed. `near`, `strengths`, `words` and `redrawn`
give requests for `Generator.draw`; `draw_variations` keeps their pictures, and a sheet with the favourite first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from .. import storage
from ..concepts.concept import Concept
from ..concepts.library import Library
from ..config import SEEDS, Request
from ..errors import PersonalError
from ..image_grid import differing, laid_out, png
from ..image_metadata import Foreign, Recipe
from ..outputs import Outputs
from ..prompts import Token, show
from .reproduce import Pinned
from .xyz_grid import Axis, in_turn

if TYPE_CHECKING:
    from ..generation import Generator

NEAR = 0.15  # another picture, and clearly that one's sister
CHANGE = 0.5  # of the picture itself: what is where stays


@dataclass(frozen=True)
class Kept:
    """sheet: a PNG; pictures: each one's file; hidden: whether the base's checker flagged it."""

    sheet: Path
    pictures: tuple[Path, ...]
    hidden: tuple[bool, ...]


def near(favourite: Request, share: float = NEAR, n: int = 8, seed: int = 1) -> list[Request]:
    """The same prompt from noise near its noise: `share` of the way to that of n other seeds, from `seed` on.

    Raises PersonalError for a favourite that is such a variation itself: a request has two seeds, not three.
    """
    if favourite.near is not None:
        raise PersonalError(
            f"This picture is itself near another one, of seed {favourite.seed}.",
            "Vary that one, or begin from this one with --start.",
        )
    return [_changed(favourite, near=share, near_seed=seed, n=n)]


def strengths(favourite: Request, token: str, values: str) -> list[Request]:
    """One of its concepts at other strengths: "0.6, 0.8, 1". Raises PersonalError where the prompt has no such one."""
    return _along(favourite, Axis.of("strength", token, values))


def words(favourite: Request, word: str, values: str) -> list[Request]:
    """Other words in place of one: "snow|space". Raises PersonalError where its prompt has no such one."""
    return _along(favourite, Axis.of("words", word, values))


def redrawn(favourite: Request, picture: Path, change: float = CHANGE, n: int = 4) -> list[Request]:
    """The same prompt from other noise, beginning from the picture itself (image-to-image)."""
    seed = (favourite.seed + 1) % SEEDS  # its own noise would bring back what is to change
    return [_changed(favourite, start=picture, mask=None, near=None, enlarge=1.0, change=change, seed=seed, n=n)]


def variations(
    favourite: Request,
    picture: Path,
    *,
    near_by: float | None = None,
    n: int | None = None,
    seed: int = 1,
    strength: Sequence[str] = (),
    word: Sequence[str] = (),
    start: bool = False,
    change: float = CHANGE,
) -> list[Request]:
    """All that is asked for, in this order; pictures near by where nothing is.

    strength, word: each "TARGET=VALUES", for example "<me/duck>=0.6,0.8" and "beach=snow|space"; n: how many near by
    (default 8) and redrawn from the picture (default 4).
    """
    found: list[Request] = []
    if near_by is not None or not (strength or word or start):
        found += near(favourite, near_by or NEAR, n or 8, seed)
    for text in strength:
        found += strengths(favourite, *_cut(text, "<me/duck>=0.6,0.8,1"))
    for text in word:
        found += words(favourite, *_cut(text, "beach=snow|space"))
    if start:
        found += redrawn(favourite, picture, change, n or 4)
    return found


def request_of(found: Recipe | Foreign, from_itself: bool = False) -> Request:
    """What drew the favourite. from_itself: it is only to be begun from.

    Raises PersonalError where it began from another picture, of which a recipe knows only the sum.
    """
    if isinstance(found, Recipe) and found.start and not from_itself:
        raise PersonalError("It began from another picture, which is not in it.", "Vary it with --start alone.")
    return found.request()


class RecipeFirst:
    """Where the tokens of a favourite and its variations lead: to the bytes that its recipe names; what a variation
    adds, to the library's newest. Raises PersonalError as `Pinned` does."""

    def __init__(self, recipe: Recipe, library: Library, anyway: bool = False):
        self._pinned, self._library = Pinned(recipe, library, anyway), library
        self._named = [Token.parse(each.token) for each in recipe.concepts]

    def get(self, token: Token) -> Concept:
        named = any(token.matches(each) for each in self._named)
        return self._pinned.get(token) if named else self._library.get(token)


def draw_variations(
    favourite: tuple[Request, Image.Image],
    asked: Sequence[Request],
    generator: Generator,
    outputs: Outputs,
    private: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Kept:
    """Draw and keep them, and a sheet of them beside the first: 00012-variations.png.

    private: no recipe in any. Raises as `Generator.draw`; what was drawn until then is kept, and on the sheet.
    """
    saved: dict[Path, bool] = {}
    shown = [(favourite[1], "the favourite")]
    try:
        for i, picture in in_turn(generator, asked, progress, cancelled):
            saved[outputs.save(picture.png(private))] = picture.hidden
            shown.append((picture.image, caption(favourite[0], asked[i], picture.recipe)))
    except PersonalError:
        if saved:
            with suppress(PersonalError):  # a full disk was told already
                _keep_sheet(saved, shown)
        raise
    return _keep_sheet(saved, shown)


def caption(favourite: Request, asked: Request, recipe: Recipe) -> str:
    """What is different in a variation, in a few words."""
    if asked.start:
        return f"from it, seed {recipe.seed}"
    if asked.near is not None:
        return f"near {asked.near:g}, seed {recipe.near_seed}"
    return show(differing([favourite.prompt, asked.prompt])[1], 200) or "the same words"


def _keep_sheet(saved: Mapping[Path, bool], shown: Sequence[tuple[Image.Image, str]]) -> Kept:
    first = next(iter(saved))
    page = first.with_name(f"{first.name.partition('-')[0]}-variations.png")
    storage.write_bytes(page, png(laid_out(shown)))
    return Kept(page, tuple(saved), tuple(saved.values()))


def _along(favourite: Request, axis: Axis) -> list[Request]:
    fields = {name: getattr(favourite, name) for name in Request.model_fields} | {"n": 1}
    if not axis.applies_to(fields):
        raise PersonalError(
            f"There is no {show(axis.target)} in the prompt of this picture.", f"It is {show(favourite.prompt, 300)}."
        )
    return [Request(**axis.applied(fields, value)) for value in axis.values]


def _changed(favourite: Request, **fields: object) -> Request:
    return Request(**({name: getattr(favourite, name) for name in Request.model_fields} | fields))


def _cut(text: str, example: str) -> tuple[str, str]:
    target, mark, values = text.partition("=")
    if not (mark and target.strip()):
        raise PersonalError(f"{show(text)} does not say what to change.", f"For example '{example}'.")
    return target.strip(), values.strip()
