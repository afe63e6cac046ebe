"""Encode prompts for each step and load the LoRA adapters; embeddings are cached for the next images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from ..models import Conditioning, SizeConditioning, StableDiffusion, sampling_progress
from .prompt_resolution import LoraWeight, ResolvedPrompt

_CACHE_SIZE = 64  # prompts; with SDXL a prompt takes about 1 MB


@dataclass(frozen=True)
class PromptPair:
    """An image's prompt and negative prompt; fast: a LoRA that is active in all steps, whatever the prompts contain."""

    prompt: ResolvedPrompt
    negative: ResolvedPrompt
    fast: LoraWeight | None = None

    def loras_at(self, progress: float) -> tuple[LoraWeight, ...]:
        # A LoRA acts on both halves of the guidance, so one that is only in the negative prompt must not be loaded.
        loras = self.prompt.loras_at(progress)
        return (*loras, self.fast) if self.fast else loras

    def loras_by_step(self, steps: int) -> tuple[tuple[LoraWeight, ...], ...]:
        """Return the active LoRAs of every step."""
        return tuple(self.loras_at(sampling_progress(i, steps)) for i in range(steps))


class PromptEmbedsCache:
    """LRU cache of prompt embeddings, keyed by prompt and active LoRAs. Not thread-safe: hold the model lock."""

    def __init__(self, base: StableDiffusion):
        self._base = base
        self._cache: OrderedDict[Hashable, Conditioning] = OrderedDict()

    def encode(
        self,
        prompt: ResolvedPrompt,
        progress: float,
        loras: tuple[LoraWeight, ...],
        min_chunks: int,
        clip_skip: int,
    ) -> Conditioning:
        """Encode a prompt as it is at a step, with these LoRAs, which the adapters must hold already."""
        key = prompt.cache_key, prompt.active_at(progress), loras, min_chunks, clip_skip
        if key not in self._cache:
            segments = prompt.segments_at(self._base, progress)
            self._cache[key] = self._base.encode_prompt(segments, min_chunks=min_chunks, clip_skip=clip_skip)
            while len(self._cache) > _CACHE_SIZE:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        return self._cache[key]


class StepConditioner:
    """The conditioning of a batch at each step. A call also reloads the LoRA adapters when the active LoRAs change.

    pairs: one per image, with equal LoRAs at every step and equal lengths. Prompts are encoded one by one, so that no
    image depends on another.
    """

    def __init__(
        self,
        base: StableDiffusion,
        embeds_cache: PromptEmbedsCache,
        pairs: Sequence[PromptPair],
        size: SizeConditioning,
        clip_skip: int = 1,
    ):
        self._base, self._embeds_cache, self._clip_skip = base, embeds_cache, clip_skip
        self._pair = pairs[0]
        self._prompts = [*(pair.negative for pair in pairs), *(pair.prompt for pair in pairs)]
        self._sizes = [size] * len(self._prompts)
        self._min_chunks = num_chunks(base, pairs[0])
        self._active: list[tuple[float, ...]] | None = None
        self._loras: tuple[LoraWeight, ...] | None = None
        self._conditioning: Conditioning | None = None

    def __call__(self, progress: float) -> Conditioning:
        """Return the 2B prompts' conditioning, the negative ones' first, for a progress of 0 (noise) to 1 (image)."""
        active = [prompt.active_at(progress) for prompt in self._prompts]
        if self._conditioning is None or active != self._active:
            loras = self._pair.loras_at(progress)
            if loras != self._loras:
                self._base.adapters.set((weight.lora, weight.strength) for weight in loras)
            embeds = [
                self._embeds_cache.encode(prompt, progress, loras, self._min_chunks, self._clip_skip)
                for prompt in self._prompts
            ]
            self._conditioning = self._base.with_size_conditioning(Conditioning.cat(embeds), self._sizes)
            self._active, self._loras = active, loras
        return self._conditioning


def num_chunks(base: StableDiffusion, pair: PromptPair) -> int:
    """Return how many contexts an image's prompts take: the shorter prompt is padded to the longer."""
    return max(base.num_chunks(prompt.segments_at(base, 0.0)) for prompt in (pair.prompt, pair.negative))
