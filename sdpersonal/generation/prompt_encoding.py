"""Encode prompts for each step and load the LoRA adapters; embeddings are cached for the next images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from itertools import cycle
from weakref import WeakValueDictionary

from ..concepts.concept import Lora
from ..models import Conditioning, SizeConditioning, StableDiffusion, sampling_progress
from .composition import Subject, split_subjects
from .denoise import StepConditioning
from .prompt_resolution import LoraWeight, ResolvedPrompt
from .style_guidance import StylePrompt, split_styles

Mix = tuple[LoraWeight, ...]
"""The LoRAs that a prompt is predicted with."""

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
        subjects: what is generated apart and then joined, each with its own base and styles; none if the image is
            generated as a whole.
    """

    prompt: ResolvedPrompt
    negative: ResolvedPrompt
    base: ResolvedPrompt
    styles: tuple[StylePrompt, ...] = ()
    fast: LoraWeight | None = None
    subjects: tuple[SubjectPrompts, ...] = ()

    @classmethod
    def of(
        cls, prompt: ResolvedPrompt, negative: ResolvedPrompt, fast: LoraWeight | None = None, compose: bool = True
    ) -> ImagePrompts:
        """Separate a prompt's styles and, if it is to be composed, its subjects.

        compose: whether styles have guidance of their own by default and several subjects are generated apart.
        """
        base, styles = split_styles(prompt, automatic=compose)
        subjects = split_subjects(prompt) if compose else ()
        parts = tuple(SubjectPrompts(cls.of_subject(subject, negative, fast), subject) for subject in subjects)
        return cls(prompt, negative, base, styles, fast, parts)

    @classmethod
    def of_subject(cls, subject: Subject, negative: ResolvedPrompt, fast: LoraWeight | None) -> ImagePrompts:
        base, styles = split_styles(subject.prompt, subject=subject.index)
        return cls(subject.prompt, negative, base, styles, fast)

    def active_styles(self, progress: float) -> tuple[StylePrompt, ...]:
        return tuple(style for style in self.styles if style.scale_at(progress))

    def mixes_at(self, progress: float) -> tuple[Mix, ...]:
        """Return the active LoRAs of the prompt without its styles, and those of each active style."""
        # A LoRA acts on both halves of the guidance, so one that is only in the negative prompt must not be loaded.
        fast = (self.fast,) if self.fast else ()
        styles = (style.loras_at(progress) for style in self.active_styles(progress))
        return tuple((*loras, *fast) for loras in (self.base.loras_at(progress), *styles))

    def scales_at(self, progress: float) -> dict[int, float]:
        """Return the guidance scale of each active style, by its index among all."""
        scales = {index: style.scale_at(progress) for index, style in enumerate(self.styles)}
        return {index: scale for index, scale in scales.items() if scale}

    def scales_by_step(self, steps: int) -> tuple[tuple[tuple[int, float], ...], ...]:
        """Return the index and the guidance scale of the active styles of every step."""
        return tuple(tuple(self.scales_at(sampling_progress(i, steps)).items()) for i in range(steps))

    def num_rows(self, has_negative: bool) -> int:
        """Return how many predictions a step takes at most."""
        parts = [part.prompts for part in self.subjects] or [self]
        return (1 + has_negative) * sum(1 + len(part.styles) for part in parts)

    def mixes_by_step(self, steps: int) -> tuple[tuple[Mix, ...], ...]:
        """Return the active LoRAs of every step."""
        return tuple(self.mixes_at(sampling_progress(i, steps)) for i in range(steps))


@dataclass(frozen=True)
class SubjectPrompts:
    """What one subject of a composition is predicted from."""

    prompts: ImagePrompts
    subject: Subject

    @property
    def reference(self) -> int:
        """The index of the subject's reference in the prompt without its styles."""
        return self.prompts.base.index_of(self.subject.prompt.references[self.subject.index])


class PromptEmbedsCache:
    """LRU cache of prompt embeddings, keyed by prompt and active LoRAs. Not thread-safe: hold the model lock."""

    def __init__(self, base: StableDiffusion):
        self._base = base
        self._cache: OrderedDict[Hashable, Conditioning] = OrderedDict()
        self._loras: WeakValueDictionary[Hashable, Lora] = WeakValueDictionary()

    def lora(self, weight: LoraWeight) -> Lora:
        """Return the LoRA, as the same object for all copies of a concept: a library loads another for each request,
        and a card keeps LoRAs by object."""
        return self._loras.setdefault((weight.identity, weight.blocks), weight.lora)

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
        prompts: groups of as many prompts each, one prompt per image; those of a group have equal LoRAs at every step,
            and all have equal lengths and as many styles. The images of a batch are one group, or one for each mix of
            LoRAs; with subjects, subject by subject.
        has_negative: whether the negative prompts are predicted: not if the guidance scale is 1.
    """

    def __init__(
        self,
        base: StableDiffusion,
        embeds_cache: PromptEmbedsCache,
        prompts: Sequence[Sequence[ImagePrompts]],
        size: SizeConditioning,
        clip_skip: int = 1,
        has_negative: bool = True,
    ):
        self._base, self._embeds_cache, self._clip_skip = base, embeds_cache, clip_skip
        self._prompts, self._size, self._has_negative = prompts, size, has_negative
        self._min_chunks = max(num_chunks(base, group[0]) for group in prompts)
        self._active: Hashable = None
        self._mixes: tuple[Mix, ...] = ()
        self._rows: Conditioning | None = None
        self._styles: Collection[int] = ()  # of the last call, by index

    def __call__(self, progress: float, holds_styles: bool = False) -> StepConditioning:
        """Return the conditioning for a progress of 0 (noise) to 1 (image).

        holds_styles: leave out the rows of styles if the last call had the same styles.
        """
        groups = self._groups(progress)
        active = tuple(prompt.active_at(progress) for prompts, _ in groups for prompt in prompts)
        if self._rows is None or active != self._active:
            self._rows, self._active = self._encode(groups, progress), active
        scales = self._prompts[0][0].scales_at(progress)
        predicts_styles = bool(scales) and not (holds_styles and scales.keys() == self._styles)
        self._styles = scales.keys()
        count = len(groups) if predicts_styles else (1 + self._has_negative) * len(self._prompts)
        self._base.adapters.use_first_groups(count)
        num_rows = sum(len(prompts) for prompts, _ in groups[:count])
        return StepConditioning(self._rows[:num_rows], scales, predicts_styles)

    def _groups(self, progress: float) -> list[tuple[list[ResolvedPrompt], Mix]]:
        """Return the prompts of the batch's rows with the LoRAs of each group, in the order of `StepConditioning`."""
        mixes = [group[0].mixes_at(progress) for group in self._prompts]
        groups: list[tuple[list[ResolvedPrompt], Mix]] = []
        if self._has_negative:
            groups += [([p.negative for p in group], mix[0]) for group, mix in zip(self._prompts, mixes, strict=True)]
        groups += [([p.base for p in group], mix[0]) for group, mix in zip(self._prompts, mixes, strict=True)]
        styles: list[tuple[list[ResolvedPrompt], Mix]] = []
        for i in range(len(mixes[0]) - 1):
            for group, mix in zip(self._prompts, mixes, strict=True):
                styles.append(([p.active_styles(progress)[i].prompt for p in group], mix[i + 1]))
        groups += styles
        if self._has_negative:
            negatives = cycle([p.negative for p in group] for group in self._prompts)
            groups += [(prompts, mix) for prompts, (_, mix) in zip(negatives, styles, strict=False)]
        return groups

    def _encode(self, groups: Sequence[tuple[list[ResolvedPrompt], Mix]], progress: float) -> Conditioning:
        """Encode the prompts of all rows, each group with its LoRAs, and load these LoRAs for the UNet."""
        mixes = tuple(mix for _, mix in groups)
        loaded = self._mixes[0] if len(set(self._mixes)) == 1 else None
        embeds: dict[int, list[Conditioning]] = {}  # by group
        for mix in dict.fromkeys(mixes):  # each is loaded once
            if mix != loaded:
                self._base.adapters.set(self._loras_of(mix))
                loaded = mix
            for i, (prompts, _) in enumerate(groups):
                if mixes[i] == mix:
                    embeds[i] = [self._embed(prompt, progress, mix) for prompt in prompts]
        if len(set(mixes)) > 1:
            self._base.adapters.set_groups([self._loras_of(mix) for mix in mixes])
        self._mixes = mixes
        rows = [row for i in range(len(groups)) for row in embeds[i]]
        return self._base.with_size_conditioning(Conditioning.cat(rows), [self._size] * len(rows))

    def _embed(self, prompt: ResolvedPrompt, progress: float, mix: Mix) -> Conditioning:
        return self._embeds_cache.encode(prompt, progress, mix, self._min_chunks, self._clip_skip)

    def _loras_of(self, mix: Mix) -> list[tuple[Lora, float]]:
        return [(self._embeds_cache.lora(weight), weight.strength) for weight in mix]


def num_chunks(base: StableDiffusion, prompts: ImagePrompts) -> int:
    """Return how many contexts an image's prompts take: the shorter prompt is padded to the longer."""
    return max(base.num_chunks(prompt.segments_at(base, 0.0)) for prompt in (prompts.prompt, prompts.negative))
