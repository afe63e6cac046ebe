"""What the UNet reads at each moment, and what the slots hold: encoded once, kept for the next picture."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from ..models import Conditioning, Framing, StableDiffusion
from .denoise import moment_of
from .prompt_resolution import Reader, Reading, Script, Share

_KEPT = 64  # prompts; of SDXL each takes about a MB


@dataclass(frozen=True)
class Pair:
    """A picture's prompt and negative prompt; fast: a LoRA that acts throughout, whatever they say."""

    prompt: Reading
    negative: Reading
    fast: Share | None = None

    def mix(self, moment: float) -> tuple[Share, ...]:
        # A LoRA changes both halves of the guidance, so one that is only to be avoided must not be loaded.
        mix = self.prompt.mix(moment)
        return (*mix, self.fast) if self.fast else mix

    def timetable(self, steps: int) -> tuple[tuple[Share, ...], ...]:
        """The mix at every step."""
        return tuple(self.mix(moment_of(i, steps)) for i in range(steps))


class Conditions:
    """Prompts as encoded with a mix in the slots, the newest of them kept. Use it with the device to oneself."""

    def __init__(self, base: StableDiffusion):
        self._base = base
        self._kept: OrderedDict[tuple[Script, tuple[Share, ...], int, int], Conditioning] = OrderedDict()

    def read(self, reader: Reader, script: Script, mix: tuple[Share, ...], chunks: int, clip_skip: int) -> Conditioning:
        """One row, `chunks` contexts long. The slots must hold the mix."""
        key = script, mix, chunks, clip_skip
        if key not in self._kept:
            self._kept[key] = self._base.read(reader.spoken(script), chunks=chunks, clip_skip=clip_skip)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]


class Course:
    """The conditioning of a batch through the sampling. Calling it for a moment fills the slots where they change.

    pairs: one a picture, of equal mixes and lengths. Each is encoded by itself, so that no picture depends on another.
    """

    def __init__(
        self,
        base: StableDiffusion,
        reader: Reader,
        conditions: Conditions,
        pairs: Sequence[Pair],
        framing: Framing,
        clip_skip: int = 1,
    ):
        self._clip_skip = clip_skip
        self._base, self._reader, self._conditions, self._pairs = base, reader, conditions, pairs
        self._framings = [framing] * (2 * len(pairs))
        self._chunks = length(base, reader, pairs[0])
        self._key: tuple | None = None
        self._mix: tuple[Share, ...] | None = None
        self._now: Conditioning | None = None

    def __call__(self, moment: float) -> Conditioning:
        mix = self._pairs[0].mix(moment)
        negatives = tuple(pair.negative.script(moment) for pair in self._pairs)
        prompts = tuple(pair.prompt.script(moment) for pair in self._pairs)
        if (mix, negatives, prompts) != self._key:
            if mix != self._mix:
                self._base.slots.fill(self._reader.loras(mix))
            rows = [
                self._conditions.read(self._reader, script, mix, self._chunks, self._clip_skip)
                for script in negatives + prompts
            ]
            self._now = self._base.framed(Conditioning.cat(rows), self._framings)
            self._key, self._mix = (mix, negatives, prompts), mix
        return self._now


def length(base: StableDiffusion, reader: Reader, pair: Pair) -> int:
    """Contexts that both prompts of a picture take: the shorter is filled up."""
    return max(base.chunks(reader.spoken(one.script(0.0))) for one in (pair.prompt, pair.negative))
