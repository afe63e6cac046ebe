"""Generate images from Python: a loaded model with a library of concepts."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from PIL import Image

from .. import storage
from ..concepts.library import Library
from ..config import DEFAULT_IMG2IMG_STRENGTH, GenerateRequest, VariationSettings
from ..config.scheduler_table import difference
from ..display.image_grid import encode_png
from ..display.progress import OnProgress, ProgressBar, ignore_missing_widgets
from ..errors import UserError
from ..image_metadata import MAX_IMAGE_BYTES, Foreign, Recipe, describe_hidden, read_recipe
from ..prompts import Token, Wildcards
from .options import GenerateOptions, Photo, RequestOptions, StrPath, documented, in_keywords, to_fields

_IMAGE_FIELDS = ("init_image", "mask")

if TYPE_CHECKING:
    import torch

    from ..generation import ConceptSource, GeneratedImage, GeneratedImages, Generator
    from ..models import StableDiffusion
    from ..playground.endless_series import EndlessSeries
    from .xyz_grid import XyzGrid


def load(
    base: StrPath | None = None,
    library: StrPath | Library = "concepts",
    *,
    device: str | torch.device | None = None,
    revision: str | None = None,
    vae: StrPath | None = None,
    wildcards: StrPath = "wildcards",
    safety_checker: bool = True,
) -> Pipeline:
    """Load a model, to generate images with the concepts of a library.

    Args:
        base: "tiny" (built in), "sd15", "sd21", "sdxl", a Hub id, a folder in diffusers layout, or a .safetensors
            checkpoint. Default: sd15 if there is a CUDA card and the model is on this machine, else tiny.
        library: folder of your concepts, which need not exist yet.
        device: "cpu", "cuda", "cuda:1", ... Default: cuda if there is a card.
        revision: branch, tag or commit of a model from the Hub.
        vae: folder or file of a VAE, or its Hub id, to use instead of the model's own.
        wildcards: folder of lists for `__name__` in prompts.
        safety_checker: whether images that the model's safety checker flags are hidden, if it has one.

    Raises:
        UserError: if there is no such model or device.
    """
    with ignore_missing_widgets():
        from ..models import load_base

    name = None if base is None else os.fspath(base)
    vae = None if vae is None else os.fspath(vae)
    model = load_base(name, device, revision=revision, vae=vae, safety=safety_checker)
    return Pipeline(model, library if isinstance(library, Library) else Library(library), Path(wildcards))


class Pipeline:
    """A loaded model with a library of concepts. `sdpersonal.load` makes one.

    The library is read at each call: a concept that was trained meanwhile is there. Calls are independent of each
    other: equal ones give equal images.
    """

    def __init__(self, base: StableDiffusion, library: Library, wildcards: Path | None = None):
        from ..generation import Generator

        self.base, self.library, self.wildcards = base, library, wildcards
        self.generator: Generator = Generator(base, library, wildcards)

    def __repr__(self) -> str:
        return f"<Pipeline {self.base.name!r} on {self.base.device}, {self.library!r}>"

    @documented(GenerateRequest, GenerateOptions)
    def generate(
        self,
        prompt: str,
        *,
        on_progress: OnProgress | None = None,
        quiet: bool = False,
        **settings: Unpack[GenerateOptions],
    ) -> GeneratedImages:
        """Generate images from a prompt with concepts: `sd.generate("a photo of <me/duck>", num_images=2, seed=7)`.

        With `init_image` it starts from an image (img2img), and with `mask` it changes only a part of it (inpainting).

        Args:
            prompt: text with tokens of concepts.
            on_progress: called with a `Progress` after each denoising step; an exception that it raises ends the work.
            quiet: show no bar.

        Returns:
            A list of images. Each is a Pillow image with a `recipe`; `save()` writes them to a folder.

        Raises:
            UserError: for unusable settings or an unknown concept, before anything is computed.
            OutOfMemory: the memory is free again.
        """
        with _request(GenerateRequest, GenerateOptions, settings, prompt=prompt) as request:
            return self._generate([request], on_progress, quiet)

    def generate_many(
        self, requests: Sequence[GenerateRequest], *, on_progress: OnProgress | None = None, quiet: bool = False
    ) -> list[GeneratedImages]:
        """Generate the images of several requests, those that fit together in one batch.

        An image has the LoRAs and embeddings of its own prompt, whoever else's are in the batch, and is the same as if
        its request was generated alone, but for rounding. It takes less time than one request after the other where
        each has few images.

        Args:
            requests: `sp.GenerateRequest(prompt="<me/duck>", num_images=1, seed=7)`, ...
            on_progress: called with a `Progress` after each prediction; an exception that it raises ends the work.
            quiet: show no bar.

        Returns:
            The images of each request.

        Raises:
            UserError: for an unusable request, which it names, before anything is computed.
            OutOfMemory: the memory is free again.
        """
        from ..generation import GeneratedImages
        from ..generation.request_checks import check_requests, naming_request

        for index, request in enumerate(requests):
            with naming_request(index, len(requests)), in_keywords(GenerateRequest):
                _warn(difference(request.scheduler))
                _warn(check_requests([request], self.library, self.wildcards, self.base.kind))
        images = [GeneratedImages() for _ in requests]
        with ProgressBar("generating", on_progress, quiet) as bar, in_keywords(GenerateRequest):
            for index, image in self.generator.generate_many(requests, bar.advance):
                images[index].append(image)
        _warn(describe_hidden([image.hidden for of_request in images for image in of_request]))
        return images

    @documented(GenerateRequest, RequestOptions)
    def endless(
        self,
        prompt: str,
        *,
        first: int = 0,
        limit: int | None = None,
        **settings: Unpack[RequestOptions],
    ) -> Iterator[GeneratedImage]:
        """Generate from a prompt with alternatives, one image after the other, none twice.

        In each round every combination of the alternatives comes once. The same call gives the same images.

        Args:
            prompt: text with alternatives: "a {photo|painting} of <me/duck>".
            first: position to begin at, to continue an earlier call.
            limit: number of images. Default: no end; `break` ends it.

        Yields:
            Each image when it is ready.
        """
        from ..generation.request_checks import check_template
        from ..playground.endless_series import EndlessSeries

        with ExitStack() as stack:
            request = stack.enter_context(_request(GenerateRequest, RequestOptions, settings, prompt=prompt))
            series = EndlessSeries(request, self.wildcards)
            _warn(check_template(request, self.library, self.wildcards, self.base.kind))
            positions = count(first) if limit is None else range(first, first + limit)
            return self._series(series, positions, stack.pop_all())

    @documented(GenerateRequest, RequestOptions)
    def xyz_grid(
        self,
        prompt: str,
        x: str,
        y: str | None = None,
        z: str | None = None,
        *,
        on_progress: OnProgress | None = None,
        quiet: bool = False,
        **settings: Unpack[RequestOptions],
    ) -> XyzGrid:
        """Generate an X/Y/Z grid: one prompt, with one thing changed along each axis.

        Args:
            prompt: text with tokens, and {} where an axis puts words: "a photo of <me/duck> {}".
            x: the columns: "seed: 1..4", "words: on the beach|in the snow", "strength <me/duck>: 0..1 by 0.25".
            y: the rows: "guidance: 1, 3, ..., 9", "window <me/ink>: 0-1, 0.4-1".
            z: one grid for each value: "checkpoint: runs/me-duck-dreambooth-lora".
            on_progress: called with a `Progress` after each denoising step.
            quiet: show no bar.

        Returns:
            The images by their cells, and the labelled grids. A notebook shows the first one.
        """
        from ..generation.request_checks import check_requests
        from ..playground.xyz_grid import CheckpointConcepts, XyzGridRequest, generate_cells
        from .xyz_grid import XyzGrid

        sides = {side: axis for side, axis in (("x", x), ("y", y), ("z", z)) if axis is not None}
        with _request(XyzGridRequest, RequestOptions, settings, prompt=prompt, **sides) as request:
            concepts: ConceptSource = self.library
            trained = [run.token_at(step) for run in request.runs for step in run.steps]
            requests = list({cell.request: None for cell in request.cells})
            _warn(check_requests(requests, concepts, self.wildcards, self.base.kind, trained))
            for run in request.runs:
                concepts = CheckpointConcepts(concepts, run, self.base)
            with ProgressBar("generating", on_progress, quiet) as bar:
                advance = _in_steps(bar, requests, self.wildcards)
                cells = {
                    (cell.x, cell.y, cell.z): image
                    for shown, image in generate_cells(self.generator.with_concepts(concepts), request.cells, advance)
                    for cell in shown
                }
            _warn(describe_hidden([image.hidden for image in cells.values()]))
            return XyzGrid(request, cells)

    def vary(
        self,
        image: GeneratedImage | StrPath,
        *,
        variation_strength: float | None = None,
        num_images: int | None = None,
        variation_seed: int = 1,
        concept_strengths: Mapping[str, Sequence[float]] | None = None,
        words: Mapping[str, Sequence[str]] | None = None,
        from_image: bool = False,
        strength: float = DEFAULT_IMG2IMG_STRENGTH,
        anyway: bool = False,
        on_progress: OnProgress | None = None,
        quiet: bool = False,
    ) -> GeneratedImages:
        """Generate variations of an image: its recipe with one thing changed.

        Args:
            image: a generated image, or the file of one; other programs' files are read too.
            variation_strength: how far from its noise: 0.1 is close, 1 another image. Default: 0.15 if no other
                variation is asked for.
            num_images: number of variations of the noise (default 8), and of those from the image (default 4).
            variation_seed: seed of the first variation of the noise.
            concept_strengths: other strengths of concepts: {"<me/duck>": [0.6, 0.8]}.
            words: other words in place of some: {"beach": ["snow", "space"]}.
            from_image: the same prompt, starting from the image itself (img2img).
            strength: denoising strength of `from_image`.
            anyway: accept another model or other versions of the concepts than the recipe names.
            on_progress: called with a `Progress` after each denoising step.
            quiet: show no bar.

        Raises:
            UserError: if there is no recipe in it, or the recipe's model or concepts are others than those here.
        """
        from ..playground.reproduce import base_mismatches, raise_mismatches
        from ..playground.variations import RecipeThenLibrary, favourite_request, variation_requests

        recipe = _read_recipe(image)
        strengths = [f"{token}={','.join(map(str, values))}" for token, values in (concept_strengths or {}).items()]
        texts = [f"{word}={'|'.join(values)}" for word, values in (words or {}).items()]
        with in_keywords(GenerateRequest), ExitStack() as stack:
            settings = VariationSettings(
                variation_strength=variation_strength,
                concept_strength=tuple(strengths),
                words=tuple(texts),
                img2img=from_image,
                strength=strength,
                num_images=num_images,
                variation_seed=variation_seed,
            )
            concepts: ConceptSource = self.library
            if isinstance(recipe, Recipe):
                raise_mismatches(base_mismatches(recipe, self.base.name, self.base.version), anyway)
                concepts = RecipeThenLibrary(recipe, self.library, anyway)
            favourite = favourite_request(recipe, settings)
            requests = variation_requests(favourite, _as_file(image, stack), settings)
            return self._generate(requests, on_progress, quiet, concepts)

    def redo(
        self,
        image: GeneratedImage | StrPath,
        *,
        init_image: Photo | None = None,
        mask: Photo | None = None,
        anyway: bool = False,
        on_progress: OnProgress | None = None,
        quiet: bool = False,
    ) -> GeneratedImage:
        """Generate an image again from its recipe: the same pixels on the same device.

        Args:
            image: a generated image, or its PNG.
            init_image, mask: those that it was generated with, if any: a recipe holds only their hashes.
            anyway: accept another model, other versions of concepts or another init image.
            on_progress: called with a `Progress` after each denoising step.
            quiet: show no bar.

        Raises:
            UserError: if something that the recipe names is missing or different.
        """
        from ..playground.reproduce import (
            PinnedConcepts,
            base_mismatches,
            image_mismatches,
            raise_mismatches,
            reproduced_image,
        )

        recipe = _read_recipe(image)
        if not isinstance(recipe, Recipe):
            raise UserError("The image is of another program, so the same cannot be generated.", "Use vary().")
        with in_keywords(GenerateRequest), ExitStack() as stack:
            start, mask_file = (None if photo is None else _as_file(photo, stack) for photo in (init_image, mask))
            mismatches = image_mismatches(recipe, start, mask_file)
            mismatches += base_mismatches(recipe, self.base.name, self.base.version)
            raise_mismatches(mismatches, anyway)
            concepts = PinnedConcepts(recipe, self.library, anyway)
            request = recipe.batch_request(start, mask_file)
            return reproduced_image(recipe, self._generate([request], on_progress, quiet, concepts))

    def likeness_by_region(
        self, image: GeneratedImage | StrPath, *, anyway: bool = False
    ) -> dict[str, dict[str, float]]:
        """Compare where each concept is in an image with the thumbnails of all its concepts.

        A subject that is itself is more like its own thumbnail than like the others'; one that blended is not.

        Args:
            image: a generated image of two to six concepts, or its PNG.
            anyway: accept other versions of concepts than the recipe names.

        Returns:
            The cosines of CLIP's or DINO's features, by the token of the place, then by that of the thumbnail.

        Raises:
            UserError: if it is not known where concepts are, a concept is missing, or there is no CLIP to compare with.
        """
        from ..evaluation import likeness_by_region, scorer_for_base
        from ..evaluation.scorers import FETCH_COMMAND
        from ..generation.img2img import open_image
        from ..playground.reproduce import PinnedConcepts

        recipe = _read_recipe(image)
        placed = [concept for concept in recipe.concepts if concept.presence] if isinstance(recipe, Recipe) else []
        if not isinstance(recipe, Recipe) or not placed:
            raise UserError(
                "Where the concepts are in this image is not known.",
                "It is measured for prompts with two to six concepts.",
            )
        references = _thumbnails(PinnedConcepts(recipe, self.library, anyway), [concept.token for concept in placed])
        scorer = scorer_for_base(self.base.kind)
        if scorer is None:
            raise UserError("There is no CLIP model to compare with.", f"To get one: {FETCH_COMMAND}")
        pixels = image if isinstance(image, Image.Image) else open_image(Path(image))
        boxes = {concept.token: concept.presence.box for concept in placed if concept.presence}
        return likeness_by_region(scorer, pixels, boxes, references)

    def _series(self, series: EndlessSeries, positions: Iterable[int], stack: ExitStack) -> Iterator[GeneratedImage]:
        """Yield the images at these positions. stack: is closed at the end."""
        from ..generation import GeneratedImage

        with stack:
            for position in positions:
                (image,) = self.generator.generate(series.request_at(position))
                yield GeneratedImage(image.image, series.recipe(image))

    def _generate(
        self,
        requests: Sequence[GenerateRequest],
        on_progress: OnProgress | None,
        quiet: bool,
        concepts: ConceptSource | None = None,
    ) -> GeneratedImages:
        from ..generation import GeneratedImages
        from ..generation.request_checks import check_requests
        from ..playground.xyz_grid import generate_all

        concepts = concepts or self.library
        for note in dict.fromkeys(difference(request.scheduler) for request in requests):
            _warn(note)
        _warn(check_requests(requests, concepts, self.wildcards, self.base.kind))
        with ProgressBar("generating", on_progress, quiet) as bar:
            advance, generator = _in_steps(bar, requests, self.wildcards), self.generator.with_concepts(concepts)
            images = GeneratedImages(image for _, image in generate_all(generator, requests, advance))
        _warn(describe_hidden([image.hidden for image in images]))
        return images


RequestT = TypeVar("RequestT", bound=GenerateRequest)


@contextmanager
def _request(settings: type[RequestT], options: type, keywords: Any, **explicit: str) -> Iterator[RequestT]:
    """Build the request of keyword arguments; the files of its Pillow images exist until the end of the context."""
    with in_keywords(settings), ExitStack() as stack:
        fields = explicit | to_fields(GenerateRequest, options, keywords)
        for name in _IMAGE_FIELDS:
            if fields.get(name) is not None:
                fields[name] = _as_file(fields[name], stack)
        yield settings(**fields)


def _as_file(image: Photo, stack: ExitStack) -> Path:
    """Return an image's file: of a Pillow image a temporary one, without its metadata, until the stack is closed."""
    if not isinstance(image, Image.Image):
        return Path(image)
    path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sdpersonal-"))) / "image.png"
    storage.write_bytes(path, _pixels_as_png(image))
    return path


def _pixels_as_png(image: Image.Image) -> bytes:
    mode = "RGBA" if image.has_transparency_data else "RGB"
    pixels = image.convert(mode)
    return encode_png(Image.frombytes(mode, pixels.size, pixels.tobytes()))


def _read_recipe(image: GeneratedImage | StrPath) -> Recipe | Foreign:
    recipe = getattr(image, "recipe", None)
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(image, Image.Image):
        raise UserError("This Pillow image has no recipe.", "Give a generated image, or the file of one.")
    path = Path(image)
    return read_recipe(storage.read_bytes(path, MAX_IMAGE_BYTES), path.name)


def _thumbnails(concepts: ConceptSource, tokens: Sequence[str]) -> dict[str, Image.Image]:
    """Decode the thumbnails of those concepts that have one. Raises UserError if none has."""
    from ..concepts.thumbnail import decode_thumbnail

    thumbnails = {token: concepts.get(Token.parse(token)).thumbnail for token in tokens}
    if not any(thumbnails.values()):
        raise UserError(f"None of {', '.join(tokens)} has a thumbnail to compare with.")
    return {token: decode_thumbnail(data) for token, data in thumbnails.items() if data}


def _in_steps(
    bar: ProgressBar, requests: Sequence[GenerateRequest], wildcards: Path | None
) -> Callable[[int, int], None]:
    """Return a callback for the generator that shows the progress in denoising steps of all images."""
    from ..generation.request_checks import prompts_of

    images = [sum(1 for _ in prompts_of(request, Wildcards(wildcards))) for request in requests]
    steps = sum(number * request.denoising_steps for number, request in zip(images, requests, strict=True))
    return lambda done, total: bar.advance(round(done / total * steps), steps)


def _warn(note: str) -> None:
    if note:
        warnings.warn(note, stacklevel=4)  # the caller of the method that called this
