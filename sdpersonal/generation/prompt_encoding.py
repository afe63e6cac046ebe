"""What the UNet reads at each moment, and what the slots hold: encoded once, kept for the next picture."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from ..models import Conditioning, SizeConditioning, StableDiffusion
from .denoise import sampling_progress
from .prompt_resolution import LoraWeight, PromptResolver, ResolvedPrompt, StepSegments

_CACHE_SIZE = 64  # prompts; of SDXL each takes about a MB


@dataclass(frozen=True)
class PromptPair:
    """A picture's prompt and negative prompt; fast: a LoRA that acts throughout, whatever they say."""

    prompt: ResolvedPrompt
    negative: ResolvedPrompt
    fast: LoraWeight | None = None

    def mix(self, moment: float) -> tuple[LoraWeight, ...]:
        # A LoRA changes both halves of the guidance, so one that is only to be avoided must not be loaded.
        mix = self.prompt.mix(moment)
        return (*mix, self.fast) if self.fast else mix

    def loras_by_step(self, steps: int) -> tuple[tuple[LoraWeight, ...], ...]:
        """The mix at every step."""
        return tuple(self.mix(sampling_progress(i, steps)) for i in range(steps))


class PromptEmbedsCache:
    """Prompts as encoded with a mix in the slots, the newest of them kept. Use it with the device to oneself."""

    def __init__(self, base: StableDiffusion):
        self._base = base
        self._cache: OrderedDict[tuple[StepSegments, tuple[LoraWeight, ...], int, int], Conditioning] = OrderedDict()

    def read(
        self, reader: PromptResolver, script: StepSegments, mix: tuple[LoraWeight, ...], chunks: int, clip_skip: int
    ) -> Conditioning:
        """One row, `chunks` contexts long. The slots must hold the mix."""
        key = script, mix, chunks, clip_skip
        if key not in self._cache:
            self._cache[key] = self._base.read(reader.segments(script), chunks=chunks, clip_skip=clip_skip)
            while len(self._cache) > _CACHE_SIZE:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        return self._cache[key]


class StepConditioner:
    """The conditioning of a batch through the sampling. Calling it for a moment fills the slots where they change.

    pairs: one a picture, of equal mixes and lengths. Each is encoded by itself, so that no picture depends on another.
    """

    def __init__(
        self,
        base: StableDiffusion,
        reader: PromptResolver,
        conditions: PromptEmbedsCache,
        pairs: Sequence[PromptPair],
        framing: SizeConditioning,
        clip_skip: int = 1,
    ):
        self._clip_skip = clip_skip
        self._base, self._reader, self._embeds_cache, self._prompts = base, reader, conditions, pairs
        self._framings = [framing] * (2 * len(pairs))
        self._chunks = num_chunks(base, reader, pairs[0])
        self._key: tuple | None = None
        self._mix: tuple[LoraWeight, ...] | None = None
        self._now: Conditioning | None = None

    def __call__(self, moment: float) -> Conditioning:
        mix = self._prompts[0].mix(moment)
        negatives = tuple(pair.negative.script(moment) for pair in self._prompts)
        prompts = tuple(pair.prompt.script(moment) for pair in self._prompts)
        if (mix, negatives, prompts) != self._key:
            if mix != self._mix:
                self._base.adapters.fill(self._reader.loras(mix))
            rows = [
                self._embeds_cache.read(self._reader, script, mix, self._chunks, self._clip_skip)
                for script in negatives + prompts
            ]
            self._now = self._base.with_size_conditioning(Conditioning.cat(rows), self._framings)
            self._key, self._mix = (mix, negatives, prompts), mix
        return self._now


def num_chunks(base: StableDiffusion, reader: PromptResolver, pair: PromptPair) -> int:
    """Contexts that both prompts of a picture take: the shorter is filled up."""
    return max(base.chunks(reader.segments(one.script(0.0))) for one in (pair.prompt, pair.negative))
