"""Encode prompts for each step and load the LoRA adapters; embeddings are cached for the next images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import cast

from ..concepts.concept import Lora
from ..models import Conditioning, SizeConditioning, StableDiffusion, sampling_progress
from .denoise import StepConditioning
from .prompt_resolution import LoraWeight, ResolvedPrompt
from .style_guidance import StylePrompt, split_styles

_CACHE_SIZE = 64  # prompts; with SDXL a prompt takes about 1 MB


@dataclass(frozen=True)
class ImagePrompts:
    """What an image is predicted from.

    Attributes:
        prompt: as given.
        negative: the negative prompt.
        fast: a LoRA that is active in all steps, whatever the prompts contain.
        base: the prompt without the styles that have guidance of their own.
        styles: the same with one of these styles each.
    """

    prompt: ResolvedPrompt
    negative: ResolvedPrompt
    base: ResolvedPrompt
    styles: tuple[StylePrompt, ...] = ()
    fast: LoraWeight | None = None

    @classmethod
    def of(cls, prompt: ResolvedPrompt, negative: ResolvedPrompt, fast: LoraWeight | None = None) -> ImagePrompts:
        base, styles = split_styles(prompt)
        return cls(prompt, negative, base, styles, fast)

    def active_styles(self, progress: float) -> tuple[StylePrompt, ...]:
        return tuple(style for style in self.styles if style.scale_at(progress))

    def mixes_at(self, progress: float) -> tuple[tuple[LoraWeight, ...], ...]:
        """Return the active LoRAs of the prompt without its styles, and of each active style's prompt."""
        # A LoRA acts on both halves of the guidance, so one that is only in the negative prompt must not be loaded.
        prompts = (self.base, *(style.prompt for style in self.active_styles(progress)))
        fast = (self.fast,) if self.fast else ()
        return tuple((*prompt.loras_at(progress), *fast) for prompt in prompts)

    def mixes_by_step(self, steps: int) -> tuple[tuple[tuple[LoraWeight, ...], ...], ...]:
        """Return the active LoRAs of every step."""
        return tuple(self.mixes_at(sampling_progress(i, steps)) for i in range(steps))


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

    Prompts are encoded one by one, so that no image depends on another.

    Args:
        prompts: one per image, with equal LoRAs at every step and equal lengths.
        has_negative: whether the negative prompts are predicted: not if the guidance scale is 1.
    """

    def __init__(
        self,
        base: StableDiffusion,
        embeds_cache: PromptEmbedsCache,
        prompts: Sequence[ImagePrompts],
        size: SizeConditioning,
        clip_skip: int = 1,
        has_negative: bool = True,
    ):
        self._base, self._embeds_cache, self._clip_skip = base, embeds_cache, clip_skip
        self._prompts, self._size, self._has_negative = prompts, size, has_negative
        self._min_chunks = num_chunks(base, prompts[0])
        self._active: Hashable = None
        self._mixes: tuple[tuple[LoraWeight, ...], ...] | None = None
        self._rows: Conditioning | None = None

    def __call__(self, progress: float) -> StepConditioning:
        """Return the conditioning for a progress of 0 (noise) to 1 (image)."""
        first = self._prompts[0]
        groups = self._groups(progress)
        active = tuple(prompt.active_at(progress) for group in groups for prompt in group)
        if self._rows is None or active != self._active:
            base_mix, *styled = first.mixes_at(progress)
            mixes = (*([base_mix] if self._has_negative else []), base_mix, *styled)
            self._encode(groups, mixes, progress)
            self._active = active
        scales = tuple(style.scale_at(progress) for style in first.active_styles(progress))
        return StepConditioning(cast(Conditioning, self._rows), scales)

    def _groups(self, progress: float) -> list[list[ResolvedPrompt]]:
        """Return the prompts of the batch's rows: B in each group."""
        negatives = [[prompts.negative for prompts in self._prompts]] if self._has_negative else []
        bases = [prompts.base for prompts in self._prompts]
        styles = zip(*(prompts.active_styles(progress) for prompts in self._prompts), strict=True)
        return [*negatives, bases, *([style.prompt for style in group] for group in styles)]

    def _encode(
        self, groups: list[list[ResolvedPrompt]], mixes: tuple[tuple[LoraWeight, ...], ...], progress: float
    ) -> None:
        """Encode the prompts of all rows, each group with its LoRAs, and load these LoRAs for the UNet."""
        embeds: list[Conditioning] = []
        loaded: tuple[LoraWeight, ...] | None = None if self._mixes is None else self._mixes[0]
        is_uniform = self._mixes is None or len(set(self._mixes)) == 1
        for group, mix in zip(groups, mixes, strict=True):
            if mix != loaded or not is_uniform:
                self._base.adapters.set(_loras([mix])[0])
                loaded, is_uniform, self._mixes = mix, True, (mix,)
            embeds += [
                self._embeds_cache.encode(prompt, progress, mix, self._min_chunks, self._clip_skip) for prompt in group
            ]
        if len(set(mixes)) > 1:
            self._base.adapters.set_groups(_loras(mixes))
        self._mixes = mixes
        self._rows = self._base.with_size_conditioning(Conditioning.cat(embeds), [self._size] * len(embeds))


def _loras(mixes: Sequence[Sequence[LoraWeight]]) -> list[list[tuple[Lora, float]]]:
    """Return the LoRAs of each mix with their strengths. Equal LoRAs are the same object in all of them."""
    loras = {weight: weight.lora for mix in mixes for weight in mix}
    return [[(loras[weight], weight.strength) for weight in mix] for mix in mixes]


def num_chunks(base: StableDiffusion, prompts: ImagePrompts) -> int:
    """Return how many contexts an image's prompts take: the shorter prompt is padded to the longer."""
    return max(base.num_chunks(prompt.segments_at(base, 0.0)) for prompt in (prompts.prompt, prompts.negative))
