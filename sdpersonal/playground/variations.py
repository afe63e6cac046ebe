"""Generate variations of a favourite: its recipe with one thing changed. `vary_seed`, `vary_strength`, `vary_words` and
`vary_from_image` return requests; `generate_variations` saves their images, and a grid with the favourite first."""

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
from ..config import DEFAULT_IMG2IMG_STRENGTH, SEEDS, GenerateRequest, VariationSettings
from ..display.image_grid import captioned_grid, differing_words, encode_png
from ..errors import UserError, printable
from ..image_metadata import Foreign, Recipe
from ..outputs import Outputs
from ..prompts import Token
from .reproduce import PinnedConcepts
from .xyz_grid import Axis, generate_all

if TYPE_CHECKING:
    from ..generation import ImageGenerator

DEFAULT_VARIATION_STRENGTH = 0.15  # another image, but clearly similar


@dataclass(frozen=True)
class SavedVariations:
    """Saved files. grid: a PNG; images: each image's file; hidden: whether the safety checker flagged it."""

    grid: Path
    images: tuple[Path, ...]
    hidden: tuple[bool, ...]


def vary_seed(
    favourite: GenerateRequest,
    variation_strength: float = DEFAULT_VARIATION_STRENGTH,
    num_images: int = 8,
    seed: int = 1,
) -> list[GenerateRequest]:
    """Vary the noise: interpolate from the favourite's noise to that of n other seeds, from `seed` on.

    Raises UserError if the favourite is such a variation itself: a request has two seeds, not three.
    """
    if favourite.variation_strength is not None:
        raise UserError(
            f"This image is itself a variation of another one, of seed {favourite.seed}.",
            "Vary that one, or use this one as the init image with --img2img.",
        )
    return [_with_changes(favourite, variation_strength=variation_strength, variation_seed=seed, num_images=num_images)]


def vary_strength(favourite: GenerateRequest, token: str, values: str) -> list[GenerateRequest]:
    """Vary the strength of one concept: "0.6, 0.8, 1". Raises UserError if the prompt does not have it."""
    return _requests_along(favourite, Axis.from_parts("strength", token, values))


def vary_words(favourite: GenerateRequest, word: str, values: str) -> list[GenerateRequest]:
    """Replace a word by others: "snow|space". Raises UserError if the prompt does not have it."""
    return _requests_along(favourite, Axis.from_parts("words", word, values))


def vary_from_image(
    favourite: GenerateRequest, path: Path, strength: float = DEFAULT_IMG2IMG_STRENGTH, num_images: int = 4
) -> list[GenerateRequest]:
    """Use the same prompt and other noise, with the image itself as the start image (img2img)."""
    seed = (favourite.seed + 1) % SEEDS  # its own noise would restore what is to change
    return [
        _with_changes(
            favourite,
            init_image=path,
            mask=None,
            variation_strength=None,
            hires_scale=1.0,
            strength=strength,
            seed=seed,
            num_images=num_images,
        )
    ]


def variation_requests(favourite: GenerateRequest, path: Path, settings: VariationSettings) -> list[GenerateRequest]:
    """Return all requested variations, in this order; seed variations if nothing is requested. path: the image's."""
    requests: list[GenerateRequest] = []
    if settings.variation_strength is not None or not (settings.has_noise_or_prompt or settings.img2img):
        strength = settings.variation_strength or DEFAULT_VARIATION_STRENGTH
        requests += vary_seed(favourite, strength, settings.num_images or 8, settings.variation_seed)
    for text in settings.concept_strength:
        requests += vary_strength(favourite, *_split_assignment(text, "<me/duck>=0.6,0.8,1"))
    for text in settings.words:
        requests += vary_words(favourite, *_split_assignment(text, "beach=snow|space"))
    if settings.img2img:
        requests += vary_from_image(favourite, path, settings.strength, settings.num_images or 4)
    return requests


def favourite_request(metadata: Recipe | Foreign, settings: VariationSettings) -> GenerateRequest:
    """Return the request of the favourite.

    Raises UserError if it has a start image itself, of which the recipe knows only the hash, unless the only variations
    are those that start from the favourite.
    """
    is_only_start = settings.img2img and not settings.has_noise_or_prompt
    if isinstance(metadata, Recipe) and metadata.init_image and not is_only_start:
        raise UserError(
            "The image was made from an init image, which its recipe does not contain.",
            "Vary it with --img2img alone.",
        )
    return metadata.request()


class RecipeThenLibrary:
    """The concepts of a favourite and its variations: the bytes that its recipe names, and for tokens that a variation
    adds, the library's newest. Raises UserError as `PinnedConcepts` does."""

    def __init__(self, recipe: Recipe, library: Library, allow_mismatch: bool = False):
        self._pinned, self._library = PinnedConcepts(recipe, library, allow_mismatch), library
        self._named = [Token.parse(concept.token) for concept in recipe.concepts]

    def get(self, token: Token) -> Concept:
        named = any(token.matches(recipe_token) for recipe_token in self._named)
        return self._pinned.get(token) if named else self._library.get(token)


def generate_variations(
    favourite: tuple[GenerateRequest, Image.Image],
    requests: Sequence[GenerateRequest],
    generator: ImageGenerator,
    outputs: Outputs,
    private: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> SavedVariations:
    """Generate and save the variations, and a grid of them beside the first: 00012-variations.png.

    private: save no recipes. Raises as `Generator.generate`; images generated until then are saved, and on the grid.
    """
    saved: dict[Path, bool] = {}
    captioned = [(favourite[1], "the original")]
    try:
        for i, generated in generate_all(generator, requests, progress, cancelled):
            saved[outputs.save(generated.to_png(private))] = generated.hidden
            captioned.append((generated.image, caption(favourite[0], requests[i], generated.recipe)))
    except UserError:
        if saved:
            with suppress(UserError):  # a full disk was reported already
                _save_grid(saved, captioned)
        raise
    return _save_grid(saved, captioned)


def caption(favourite: GenerateRequest, request: GenerateRequest, recipe: Recipe) -> str:
    """Describe what is different in a variation, in a few words."""
    if request.init_image:
        return f"img2img, seed {recipe.seed}"
    if request.variation_strength is not None:
        return f"variation {request.variation_strength:g}, seed {recipe.variation_seed}"
    return printable(differing_words([favourite.prompt, request.prompt])[1], 200) or "the same words"


def _save_grid(saved: Mapping[Path, bool], captioned: Sequence[tuple[Image.Image, str]]) -> SavedVariations:
    first = next(iter(saved))
    page = first.with_name(f"{first.name.partition('-')[0]}-variations.png")
    storage.write_bytes(page, encode_png(captioned_grid(captioned)))
    return SavedVariations(page, tuple(saved), tuple(saved.values()))


def _requests_along(favourite: GenerateRequest, axis: Axis) -> list[GenerateRequest]:
    fields = {name: getattr(favourite, name) for name in GenerateRequest.model_fields} | {"num_images": 1}
    if not axis.applies_to(fields):
        raise UserError(
            f"There is no {printable(axis.target)} in the prompt of this image.",
            f"It is {printable(favourite.prompt, 300)}.",
        )
    return [GenerateRequest(**axis.apply(fields, value)) for value in axis.values]


def _with_changes(favourite: GenerateRequest, **fields: object) -> GenerateRequest:
    return GenerateRequest(**({name: getattr(favourite, name) for name in GenerateRequest.model_fields} | fields))


def _split_assignment(text: str, example: str) -> tuple[str, str]:
    target, mark, values = text.partition("=")
    if not (mark and target.strip()):
        raise UserError(f"{printable(text)} does not say what to change.", f"For example '{example}'.")
    return target.strip(), values.strip()
