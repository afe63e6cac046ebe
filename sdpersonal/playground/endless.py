"""Pictures without end from one template, none of them twice.

The p-th picture is a function of p alone. A template has C combinations of its alternatives. In round r = p // C every
combination comes once, in an order of that round's own: a keyed permutation of 0 .. C-1, so nothing of what was drawn
need be remembered. The seed goes up by one with each picture, so no (prompt, seed) comes twice even where two
combinations read alike; after 2**32 pictures, when all noise has been drawn (see `generation.noise`), it is over.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from .. import storage
from ..config import SEEDS, GenerateRequest
from ..errors import Interrupted, UserError
from ..image_metadata import Recipe, png_with_recipe
from ..outputs import Outputs
from ..prompts import Wildcards, count_prompts, nth_prompt, printable

if TYPE_CHECKING:
    from ..generation import GeneratedImage, Generator

PICTURES = 2**32  # of one series
_FEISTEL_ROUNDS = (
    4  # of a Feistel network, which with a random round function nobody tells from chance (Luby and Rackoff 1988)
)
_MAX_STATE_BYTES = 20_000  # bytes of a state
_LATER = ("scheduler", "clip_skip")  # fields that a request has had only since series are kept


def permute_index(i: int, count: int, key: bytes) -> int:
    """Where i of 0 .. count-1 goes under a permutation of them that the key decides.

    A Feistel network over the next power of four, walked until the number is one of them (Black and Rogaway 2002,
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
    """size: bits, at least."""
    digest = hashlib.shake_256(key + b"%d:%d" % (number, value)).digest(size // 8 + 1)
    return int.from_bytes(digest, "big")


class EndlessSeries:
    """The pictures of a template, in the order in which they are drawn.

    request: its prompt is the template, its seed the first picture's; what it says of n and every does not count.
    Raises UserError for a template that cannot be read.
    """

    def __init__(self, request: GenerateRequest, wildcards: Path | None = None):
        self.request = request
        self._wildcards = Wildcards(wildcards)
        self.combinations = count_prompts(request.prompt, self._wildcards)

    def at(self, position: int) -> GenerateRequest:
        """What draws the picture at a position, counted from 0. Raises UserError behind the last."""
        if position >= PICTURES:
            raise UserError("All seeds have been drawn.", "Take another template.")
        number, i = divmod(position, self.combinations)
        key = hashlib.sha256(f"{self.request.seed}:{number}:{self.request.prompt}".encode("utf-8", "replace")).digest()
        prompt = nth_prompt(self.request.prompt, permute_index(i, self.combinations, key), self._wildcards)
        field = "seed" if self.request.near is None else "near_seed"
        seed = (getattr(self.request, field) + position) % SEEDS
        return self.request.model_copy(update={"prompt": prompt, field: seed, "n": 1, "every": False})

    def recipe(self, picture: GeneratedImage) -> Recipe:
        """With the template, which the picture's own request does not know."""
        template = self.request.prompt if self.request.prompt != picture.recipe.prompt else ""
        return picture.recipe.model_copy(update={"template": template})


class EndlessProgress:
    """How far a series has come, in a folder of its own in the outputs, which is held against other processes.

        outputs/endless-abcdef12/state.json    {"template": ..., "seed": ..., "base": ..., "position": 57}

    abcdef12: the first digits of the sha256 of the request and the base, so that the same command goes on where it was.
    """

    def __init__(self, outputs: Path, request: GenerateRequest, base: str):
        facts = request.model_dump(mode="json", exclude={"n", "every"}) | {"base": base}
        for name in _LATER:  # a series that began before there were such fields goes on where it was
            if facts[name] == GenerateRequest.model_fields[name].default:
                del facts[name]
        self._facts = {"template": request.prompt, "seed": request.seed, "base": base}
        mark = storage.sha256(json.dumps(facts, sort_keys=True).encode())[:8]
        self.folder = outputs / f"endless-{mark}"
        self._path = self.folder / "state.json"

    def read(self) -> int:
        """The position of the next picture; 0 for a new series. Raises UserError for what is no such file."""
        if not self._path.exists():
            return 0
        with suppress(UserError, ValueError, TypeError, KeyError, RecursionError):
            state = json.loads(storage.read_bytes(self._path, _MAX_STATE_BYTES))
            position = state.pop("position")
            if state == self._facts and type(position) is int and 0 <= position <= PICTURES:
                return position
        raise UserError(f"{printable(str(self._path), 200)} is damaged.", "Remove it to begin with the first picture.")

    def write(self, position: int) -> None:
        storage.write_json(self._path, self._facts | {"position": position})


def generate_endless(
    series: EndlessSeries,
    generator: Generator,
    outputs: Outputs,
    limit: int | None = None,
    private: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[Path, bool]]:
    """Draw on from where the series was, up to `limit` pictures now; yields each one's file once it is kept, and
    whether the base's checker flagged it.

    stopped() is asked between pictures, and ends it with Interrupted. A process killed at any moment, and started
    anew, leaves the files that one never stopped leaves. progress(done, total) counts a picture's steps. Raises as
    `Generator.draw`, and where another process draws this series.
    """
    state = EndlessProgress(outputs.folder, series.request, generator.base.version)
    with storage.lock(state.folder, "This series"):
        first = position = state.read()
        while limit is None or position - first < limit:
            if stopped():
                raise Interrupted(f"Stopped after picture {position}. The same command goes on from there.")
            (picture,) = generator.draw(series.at(position), progress)
            data = png_with_recipe(picture.image, None if private else series.recipe(picture))
            # A kill between picture and state makes it be drawn once more; only the first can have been kept already.
            path = (_find_saved(outputs, data) if position == first else None) or outputs.save(data)
            position += 1
            state.write(position)
            yield path, picture.hidden


def _find_saved(outputs: Outputs, data: bytes) -> Path | None:
    """Where these very bytes are already."""
    ending = f"-{storage.sha256(data)[:8]}.png"
    for day in outputs.days():
        for name in outputs.pictures(day):
            path = outputs.folder / day / name
            if name.endswith(ending) and storage.read_bytes(path, len(data) + 1) == data:
                return path
    return None
