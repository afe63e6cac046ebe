"""Generate endlessly from one template, without repeating an image.

The p-th image depends on p alone. A template has C combinations of its alternatives. In round r = p // C every
combination comes once, in that round's own order: a keyed permutation of 0 .. C-1, so no history of what was generated
is needed. The seed increases by one with each image, so no (prompt, seed) comes twice even if two combinations read
alike; after 2**32 images, when all noise is used up (see `generation.denoise`), the series ends.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from .. import storage
from ..config import FORMER_FIELDS, SEEDS, GenerateRequest
from ..errors import Interrupted, UserError, printable
from ..image_metadata import Recipe, png_with_recipe
from ..outputs import Outputs
from ..outputs.folder import content_mark
from ..prompts import Wildcards, count_prompts, nth_prompt

if TYPE_CHECKING:
    from ..generation import GeneratedImage, ImageGenerator

PICTURES = 2**32  # of one series
_FEISTEL_ROUNDS = 4  # with random rounds, four are indistinguishable from random (Luby and Rackoff 1988)
_MAX_STATE_BYTES = 20_000  # bytes of a state file
_FORMER_NAMES = {present: former for former, present in FORMER_FIELDS.items()}
_LATER = ("scheduler", "clip_skip", "compose")  # fields that were added to requests after the first series were saved


def permute_index(i: int, count: int, key: bytes) -> int:
    """Return the image of i under a permutation of 0 .. count-1 that the key determines.

    A Feistel network over the next power of four is iterated until the number is below count (Black and Rogaway 2002,
    "Ciphers with Arbitrary Finite Domains"): each step is a bijection, and fewer than four are needed on average.
    """
    half = max(1, ((count - 1).bit_length() + 1) // 2)  # bits
    mask = (1 << half) - 1
    while True:
        left, right = i >> half, i & mask
        for number in range(_FEISTEL_ROUNDS):
            left, right = right, left ^ (_round_function(key, number, right, half) & mask)
        i = left << half | right
        if i < count:
            return i


def _round_function(key: bytes, number: int, value: int, size: int) -> int:
    """Compute the Feistel round function. size: minimum number of bits."""
    digest = hashlib.shake_256(key + b"%d:%d" % (number, value)).digest(size // 8 + 1)
    return int.from_bytes(digest, "big")


class EndlessSeries:
    """The images of a template, in the order in which they are generated.

    request: its prompt is the template, its seed the first image's; its num_images and all_combinations are ignored.
    Raises UserError for a template that cannot be parsed.
    """

    def __init__(self, request: GenerateRequest, wildcards: Path | None = None):
        self.request = request
        self._wildcards = Wildcards(wildcards)
        self.combinations = count_prompts(request.prompt, self._wildcards)

    def request_at(self, position: int) -> GenerateRequest:
        """Return the request for the image at a position, counted from 0. Raises UserError after the last."""
        if position >= PICTURES:
            raise UserError("All seeds have been used.", "Use another --prompt.")
        number, i = divmod(position, self.combinations)
        key = hashlib.sha256(f"{self.request.seed}:{number}:{self.request.prompt}".encode("utf-8", "replace")).digest()
        prompt = nth_prompt(self.request.prompt, permute_index(i, self.combinations, key), self._wildcards)
        field = self.request.seed_field
        seed = (getattr(self.request, field) + position) % SEEDS
        return self.request.model_copy(
            update={"prompt": prompt, field: seed, "num_images": 1, "all_combinations": False}
        )

    def recipe(self, image: GeneratedImage) -> Recipe:
        """Return the image's recipe with the template, which the image's own request lacks."""
        template = self.request.prompt if self.request.prompt != image.recipe.prompt else ""
        return image.recipe.model_copy(update={"template": template})


class EndlessProgress:
    """The position of a series, saved in its own folder in the outputs, which is locked against other processes.

        outputs/endless-abcdef12/state.json    {"template": ..., "seed": ..., "base": ..., "position": 57}

    abcdef12: the first digits of the sha256 of the request and the model, so that the same command resumes its series.
    """

    def __init__(self, outputs: Path, request: GenerateRequest, base: str):
        fields = request.model_dump(mode="json", exclude={"num_images", "all_combinations"})
        # Under the names that these fields had when the first series were saved, so that those resume.
        facts = {_FORMER_NAMES.get(name, name): value for name, value in fields.items()} | {"base": base}
        for name in _LATER:  # a series that began before these fields existed can still resume
            if facts[name] == GenerateRequest.model_fields[name].default:
                del facts[name]
        self._facts = {"template": request.prompt, "seed": request.seed, "base": base}
        mark = storage.sha256(json.dumps(facts, sort_keys=True).encode())[:8]
        self.folder = outputs / f"endless-{mark}"
        self._path = self.folder / "state.json"

    def load(self) -> int:
        """Return the position of the next image; 0 for a new series. Raises UserError for an invalid file."""
        if not self._path.exists():
            return 0
        with suppress(UserError, ValueError, TypeError, KeyError, RecursionError):
            state = json.loads(storage.read_bytes(self._path, _MAX_STATE_BYTES))
            position = state.pop("position") if isinstance(state, dict) else None
            if state == self._facts and type(position) is int and 0 <= position <= PICTURES:
                return position
        raise UserError(f"{printable(str(self._path), 200)} is damaged.", "Remove it to begin with the first image.")

    def save(self, position: int) -> None:
        storage.write_json(self._path, self._facts | {"position": position})


def generate_endless(
    series: EndlessSeries,
    generator: ImageGenerator,
    outputs: Outputs,
    limit: int | None = None,
    private: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Generator[tuple[Path, bool], None, None]:
    """Continue the series, for up to `limit` images; yields each image's file once it is saved, and whether the
    safety checker flagged it.

    cancelled() is polled between images, and ends the series with Interrupted. A process that is killed at any moment
    and restarted leaves the same files as one that was never stopped. progress(done, total) counts an image's steps.
    Raises as `Generator.generate`, and if another process generates this series.
    """
    state = EndlessProgress(outputs.folder, series.request, generator.base.version)
    with storage.lock(state.folder, "This series"):
        first = position = state.load()
        while limit is None or position - first < limit:
            if cancelled():
                raise Interrupted(f"Stopped after image {position}. The same command continues from there.")
            (image,) = generator.generate(series.request_at(position), progress)
            data = png_with_recipe(image.image, None if private else series.recipe(image))
            # A kill between image and state makes the image be generated again; only the first can be saved already.
            path = (_find_saved(outputs, data) if position == first else None) or outputs.save(data)
            position += 1
            state.save(position)
            yield path, image.hidden


def _find_saved(outputs: Outputs, data: bytes) -> Path | None:
    """Return the path of a saved image with exactly these bytes."""
    paths = outputs.marked(content_mark(data))
    return next((path for path in paths if storage.read_bytes(path, len(data) + 1) == data), None)
