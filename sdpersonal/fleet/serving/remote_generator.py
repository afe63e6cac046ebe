"""Generate images on a fleet, with what the app has in place of a generator with a model."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import closing
from copy import copy
from pathlib import Path
from typing import Any

from PIL import Image

from ... import storage
from ...concepts.concept import Concept
from ...concepts.concept_file import concept_to_bytes
from ...config import GenerateRequest
from ...errors import Interrupted, UserError, printable
from ...generation import GeneratedImage
from ...generation.prompt_resolution import ConceptSource, check_kind, check_makes_few_steps_enough
from ...image_metadata import Recipe, read_recipe
from ...models.model_info import ModelInfo
from ...prompts import Token, Wildcards
from ..image_task import INPUTS, MAX_INPUT_BYTES, PinnedConcept, split_request
from .client import FleetClient

_MAX_SIDE = 2048 * 4  # pixels, of the second pass too
_SESSION = "0" * 16  # the server puts its own into the place


class RemoteGenerator:
    """As `Generator`. base: facts of the fleet's model; wildcards: folder of lists for `__name__` in prompts."""

    def __init__(self, client: FleetClient, base: ModelInfo, concepts: ConceptSource, wildcards: Path | None = None):
        self.base, self._client, self._concepts = base, client, concepts
        self._wildcards = Wildcards(wildcards)

    def with_concepts(self, concepts: ConceptSource) -> RemoteGenerator:
        """Return the same generator with other concepts."""
        other = copy(self)
        other._concepts = concepts
        return other

    def generate(
        self,
        request: GenerateRequest,
        progress: Callable[[int, int], None] = lambda done, total: None,
        cancelled: Callable[[], bool] = lambda: False,
        preview: Callable[[list[Image.Image]], None] | None = None,
    ) -> Iterator[GeneratedImage]:
        """Generate the images of a request, as `Generator.generate` does; yield them in order.

        Raises UserError also if the fleet does not answer, or refuses.
        """
        form = _TaskForm(request, self._concepts, self._wildcards, self.base.kind)
        ready: dict[int, GeneratedImage] = {}
        pictures: dict[int, Image.Image] = {}
        number = 0
        with closing(self._client.generate(form.tasks, form.files, form.concept_file, cancelled)) as events:
            for event in events:
                index = event.get("index")
                if event["event"] == "progress":
                    progress(int(event["done"]), int(event["total"]))
                elif event["event"] == "preview" and preview is not None and index is not None:
                    pictures[index] = _open(event["jpeg"], "JPEG")
                    preview([pictures[i] for i in sorted(pictures)])
                elif event["event"] == "image" and index is not None:
                    ready[index] = _read_image(event["png"])
                    pictures.pop(index, None)
                elif event["event"] == "error":
                    raise UserError(printable(str(event["message"]), 500), printable(str(event.get("hint", "")), 300))
                while number in ready:
                    yield ready.pop(number)
                    number += 1
        if cancelled():
            raise Interrupted("Stopped.")
        if number < len(form.tasks):
            raise UserError(f"The fleet made {number} of {len(form.tasks)} images.", "Try again.")


class _TaskForm:
    """The tasks of a request, and what the fleet may need for them. Raises UserError, as `Generator.generate` does."""

    def __init__(self, request: GenerateRequest, concepts: ConceptSource, wildcards: Wildcards, kind: str):
        self.files: dict[str, bytes] = {}
        self._source, self._kind = concepts, kind
        self._concepts: dict[str, Concept] = {}  # by name on the fleet
        self.tasks = split_request(request, wildcards, self._pin, self._put_file)

    def concept_file(self, name: str) -> bytes:
        """Return the file of one of the concepts."""
        if name not in self._concepts:
            raise UserError(f"The fleet misses {printable(name, 100)}, which was not asked for.")
        return concept_to_bytes(self._concepts[name])

    def _pin(self, token: Token, is_fast: bool) -> PinnedConcept:
        concept = self._source.get(token)
        check_kind(concept, self._kind)
        if is_fast:
            check_makes_few_steps_enough(concept)
        pinned = PinnedConcept.of(concept)
        self._concepts[str(pinned)] = concept
        return pinned

    def _put_file(self, path: Path) -> Path:
        data = storage.read_bytes(path, MAX_INPUT_BYTES)
        sha256 = storage.sha256(data)
        self.files[sha256] = data
        return Path(f"{INPUTS}/{_SESSION}/{sha256}")


def _read_image(png: Any) -> GeneratedImage:
    image, recipe = _open(png, "PNG"), read_recipe(png, "The fleet's image")
    if not isinstance(recipe, Recipe):
        raise UserError("The fleet sent an image without a recipe.", "Give it the version of this program.")
    return GeneratedImage(image, recipe)


def _open(data: Any, format: str) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=[format])
        if max(image.size) > _MAX_SIDE:
            raise ValueError("it is too large")
        image.load()
    except Exception as error:  # Pillow raises many kinds
        raise UserError(f"The fleet sent an image that cannot be read: {printable(str(error), 100)}.") from None
    return image
