"""Encode prompts for each step and load the LoRA adapters; embeddings are cached for the next images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from ..models import Conditioning, SizeConditioning, StableDiffusion
from .denoise import sampling_progress
from .prompt_resolution import LoraWeight, PromptResolver, ResolvedPrompt, StepSegments

_CACHE_SIZE = 64  # prompts; with SDXL a prompt takes about 1 MB


@dataclass(frozen=True)
class PromptPair:
    """An image's prompt and negative prompt; fast: a LoRA that is active in all steps, whatever the prompts contain."""

    prompt: ResolvedPrompt
    negative: ResolvedPrompt
    fast: LoraWeight | None = None

    def mix(self, moment: float) -> tuple[LoraWeight, ...]:
        # A LoRA acts on both halves of the guidance, so one that is only in the negative prompt must not be loaded.
        mix = self.prompt.mix(moment)
        return (*mix, self.fast) if self.fast else mix

    def loras_by_step(self, steps: int) -> tuple[tuple[LoraWeight, ...], ...]:
        """Return the active LoRAs of every step."""
        return tuple(self.mix(sampling_progress(i, steps)) for i in range(steps))


class PromptEmbedsCache:
    """LRU cache of prompt embeddings, keyed by prompt and active LoRAs. Not thread-safe: hold the model lock."""

    def __init__(self, base: StableDiffusion):
        self._base = base
        self._cache: OrderedDict[tuple[StepSegments, tuple[LoraWeight, ...], int, int], Conditioning] = OrderedDict()

    def read(
        self, reader: PromptResolver, script: StepSegments, mix: tuple[LoraWeight, ...], chunks: int, clip_skip: int
    ) -> Conditioning:
        """Encode one prompt, `chunks` contexts long. The LoRA adapters must hold the mix."""
        key = script, mix, chunks, clip_skip
        if key not in self._cache:
            self._cache[key] = self._base.read(reader.segments(script), chunks=chunks, clip_skip=clip_skip)
            while len(self._cache) > _CACHE_SIZE:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        return self._cache[key]


class StepConditioner:
    """The conditioning of a batch at each step. A call also reloads the LoRA adapters when the active LoRAs change.

    pairs: one per image, with equal mixes and lengths. Prompts are encoded one by one, so that no image depends on
    another.
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
            conditionings = [
                self._embeds_cache.read(self._reader, script, mix, self._chunks, self._clip_skip)
                for script in negatives + prompts
            ]
            self._now = self._base.with_size_conditioning(Conditioning.cat(conditionings), self._framings)
            self._key, self._mix = (mix, negatives, prompts), mix
        return self._now


def num_chunks(base: StableDiffusion, reader: PromptResolver, pair: PromptPair) -> int:
    """Return how many contexts an image's prompts take: the shorter prompt is padded to the longer."""
    return max(base.chunks(reader.segments(prompt.script(0.0))) for prompt in (pair.prompt, pair.negative))
