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

    def loras_at(self, progress: float) -> tuple[LoraWeight, ...]:
        # A LoRA acts on both halves of the guidance, so one that is only in the negative prompt must not be loaded.
        mix = self.prompt.loras_at(progress)
        return (*mix, self.fast) if self.fast else mix

    def loras_by_step(self, steps: int) -> tuple[tuple[LoraWeight, ...], ...]:
        """Return the active LoRAs of every step."""
        return tuple(self.loras_at(sampling_progress(i, steps)) for i in range(steps))


class PromptEmbedsCache:
    """LRU cache of prompt embeddings, keyed by prompt and active LoRAs. Not thread-safe: hold the model lock."""

    def __init__(self, base: StableDiffusion):
        self._base = base
        self._cache: OrderedDict[tuple[StepSegments, tuple[LoraWeight, ...], int, int], Conditioning] = OrderedDict()

    def encode(
        self,
        resolver: PromptResolver,
        segments: StepSegments,
        loras: tuple[LoraWeight, ...],
        chunks: int,
        clip_skip: int,
    ) -> Conditioning:
        """Encode one prompt, `chunks` contexts long. The LoRA adapters must hold the mix."""
        key = segments, loras, chunks, clip_skip
        if key not in self._cache:
            self._cache[key] = self._base.encode_prompt(
                resolver.segments(segments), min_chunks=chunks, clip_skip=clip_skip
            )
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
        resolver: PromptResolver,
        conditions: PromptEmbedsCache,
        pairs: Sequence[PromptPair],
        framing: SizeConditioning,
        clip_skip: int = 1,
    ):
        self._clip_skip = clip_skip
        self._base, self._reader, self._embeds_cache, self._prompts = base, resolver, conditions, pairs
        self._framings = [framing] * (2 * len(pairs))
        self._chunks = num_chunks(base, resolver, pairs[0])
        self._key: tuple | None = None
        self._mix: tuple[LoraWeight, ...] | None = None
        self._now: Conditioning | None = None

    def __call__(self, progress: float) -> Conditioning:
        mix = self._prompts[0].loras_at(progress)
        negatives = tuple(pair.negative.at(progress) for pair in self._prompts)
        prompts = tuple(pair.prompt.at(progress) for pair in self._prompts)
        if (mix, negatives, prompts) != self._key:
            if mix != self._mix:
                self._base.adapters.set(self._reader.loras(mix))
            conditionings = [
                self._embeds_cache.encode(self._reader, script, mix, self._chunks, self._clip_skip)
                for script in negatives + prompts
            ]
            self._now = self._base.with_size_conditioning(Conditioning.cat(conditionings), self._framings)
            self._key, self._mix = (mix, negatives, prompts), mix
        return self._now


def num_chunks(base: StableDiffusion, resolver: PromptResolver, prompts: PromptPair) -> int:
    """Return how many contexts an image's prompts take: the shorter prompt is padded to the longer."""
    return max(base.num_chunks(resolver.segments(prompt.at(0.0))) for prompt in (prompts.prompt, prompts.negative))
