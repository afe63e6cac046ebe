"""Measure how much of each concept is where in an image: the bleed meter.

While an image with several concepts is generated, the cross-attention to each concept's positions in the prompt is
recorded in some of the steps. The recording changes no prediction.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..image_metadata import Presence
from ..models import StableDiffusion
from ..models.attention_maps import AttentionRecorder
from ..prompts import ConceptRef
from .composition import Box, token_positions
from .denoise import ConditioningAt, SamplingConfig, StepConditioning
from .prompt_encoding import ImagePrompts
from .prompt_resolution import is_active_at
from .style_guidance import StylePrompt

MAX_CONCEPTS = 6  # of an image: more would make its recipe long
EVERY = 4  # predictions, counted from the last, of which one is recorded: that takes 2 % of the time, all 7 %
HEAT_SIDE = 8  # of the coarse map in a recipe
_CANVAS_SIDE = 64  # of the map of an image


@dataclass(frozen=True, eq=False)
class _Source:
    """A reference whose attention is recorded in the rows of one image of one part.

    positions: in the embeddings of the prompt without styles, or of `style`, if that is its own prompt.
    """

    part: int
    image: int
    reference: ConceptRef
    tokens: tuple[str, ...]
    positions: tuple[int, ...]
    style: StylePrompt | None = None


class PresenceMeter:
    """Records the attention to the concepts of a batch's images.

    Args:
        parts: the batch's prompts: one group for images that are generated as a whole, else one for each subject.
        boxes: of the subjects in an image of that `size`, (width, height) in pixels; none: the whole image.
    """

    def __init__(
        self,
        base: StableDiffusion,
        parts: Sequence[Sequence[ImagePrompts]],
        latent_size: tuple[int, int],
        sampling: SamplingConfig,
        boxes: Sequence[Box] = (),
        size: tuple[int, int] = (1, 1),
    ):
        self._parts, self._boxes, self._size = parts, boxes, size
        self._first_row = len(parts) * len(parts[0]) if sampling.has_negative else 0
        self._recorder = AttentionRecorder(base, latent_size)
        self._remaining = sampling.num_predictions
        self._styles = {
            str(concept.token)
            for prompts in parts
            for prompt in prompts
            for concept in prompt.prompt.concepts.values()
            if concept.card.kind == "style"
        }
        self._sources = [
            source
            for part, prompts in enumerate(parts)
            for image, prompt in enumerate(prompts)
            for source in _sources_of(base, prompt, part, image)
        ]
        self._recorded: dict[_Source, int] = {}
        self._sums: dict[_Source, tuple[Tensor, int]] = {}

    @contextmanager
    def recording(self, conditioning_at: ConditioningAt) -> Iterator[ConditioningAt]:
        """Record predictions in the block. Yields what `denoise` is to be given in place of `conditioning_at`."""

        def watched(progress: float, holds_styles: bool) -> StepConditioning:
            self._finish_prediction()
            self._remaining -= 1
            self._choose(progress if self._remaining % EVERY == 0 else None)
            return conditioning_at(progress, holds_styles)

        with self._recorder.recording():
            yield watched
        self._finish_prediction()

    def _choose(self, progress: float | None) -> None:
        """Choose what is recorded of the next prediction: all that is active at that progress; None: nothing."""
        rows = {} if progress is None else {source: self._row(source, progress) for source in self._sources}
        self._recorded = {source: row for source, row in rows.items() if row is not None}
        self._recorder.targets = [(row, source.positions) for source, row in self._recorded.items()]

    def _row(self, source: _Source, progress: float) -> int | None:
        """Return the row of the batch that a source is recorded in; None where it is not active."""
        count = len(self._parts) * len(self._parts[0])
        row = self._first_row + source.part * len(self._parts[0]) + source.image
        if source.style is None:
            return row if is_active_at(source.reference, progress) else None
        active = self._parts[source.part][source.image].active_styles(progress)
        return next((row + count * (1 + i) for i, style in enumerate(active) if style is source.style), None)

    def _finish_prediction(self) -> None:
        if self._recorder.is_empty:  # also of a UNet without cross-attention in its smaller layers
            return
        for source, attention in zip(self._recorded, self._recorder.take(), strict=True):
            total, count = self._sums.get(source, (torch.zeros_like(attention), 0))
            self._sums[source] = total + attention, count + 1
        self._recorded = {}

    def presences(self, image: int) -> dict[str, Presence]:
        """Return the presence of the concepts in one image by their full tokens; {} if fewer than two were seen."""
        maps = self._maps(image)
        return measure(maps, self._styles) if len(maps) > 1 else {}

    def _maps(self, image: int) -> dict[str, np.ndarray]:
        """Return the attention to each concept, (h, w), by token: each part's own in its box, NaN elsewhere."""
        by_part: dict[tuple[str, int], Tensor] = {}
        for source, (total, count) in self._sums.items():
            for token in source.tokens if source.image == image else ():
                mean = total / count / len(source.tokens)
                by_part[token, source.part] = by_part.get((token, source.part), 0) + mean
        canvases: dict[str, np.ndarray] = {}
        for (token, part), attention in by_part.items():
            placed = self._place(attention.cpu(), part).numpy()
            canvases[token] = np.fmax(canvases.get(token, placed), placed)
        return canvases

    def _place(self, attention: Tensor, part: int) -> Tensor:
        """Return a map (1, h, w) as one of the whole image, (_CANVAS_SIDE, _CANVAS_SIDE), NaN outside its box."""
        canvas = torch.full((_CANVAS_SIDE, _CANVAS_SIDE), torch.nan)
        left, top, right, bottom = self._box_on_canvas(part)
        area = F.interpolate(attention[None], (bottom - top, right - left), mode="bilinear")[0, 0]
        canvas[top:bottom, left:right] = area
        return canvas

    def _box_on_canvas(self, part: int) -> tuple[int, int, int, int]:
        if not self._boxes:
            return 0, 0, _CANVAS_SIDE, _CANVAS_SIDE
        box, (width, height) = self._boxes[part], self._size
        left, right = (round(x / width * _CANVAS_SIDE) for x in (box.left, box.left + box.side))
        top, bottom = (round(y / height * _CANVAS_SIDE) for y in (box.top, box.top + box.side))
        left, top = min(left, _CANVAS_SIDE - 1), min(top, _CANVAS_SIDE - 1)
        return left, top, max(right, left + 1), max(bottom, top + 1)


def _sources_of(base: StableDiffusion, prompts: ImagePrompts, part: int, image: int) -> Iterator[_Source]:
    """Yield the references of an image's prompt, each in the prompt in which it is predicted."""
    for index, reference in enumerate(prompts.base.references):
        positions = token_positions(base, prompts.base, index)
        if positions:
            yield _Source(part, image, reference, _full_tokens(prompts, reference), tuple(positions))
    for style in prompts.styles:
        positions = token_positions(base, style.prompt, style.prompt.index_of(style.reference))
        if positions:
            yield _Source(part, image, style.reference, _full_tokens(prompts, style.reference), tuple(positions), style)


def _full_tokens(prompts: ImagePrompts, reference: ConceptRef) -> tuple[str, ...]:
    return tuple(str(prompts.prompt.concepts[part.token].token) for part in reference.parts)


def named_concepts(prompts: ImagePrompts) -> set[str]:
    """Return the full tokens of all concepts in an image's prompt."""
    return {str(concept.token) for concept in prompts.prompt.concepts.values()}


def measure(maps: Mapping[str, np.ndarray], styles: Collection[str] = ()) -> dict[str, Presence]:
    """Measure where each concept is from its attention in an image, (h, w), NaN where none was recorded.

    Every place attends a little to all tokens, so a concept's area is where its attention is above half of its range.

    styles: tokens of concepts that are to lie over the others, which therefore do not count as an overlap of these.
    """
    total = sum(float(np.nansum(attention)) for attention in maps.values()) or 1.0
    heats = {token: np.nan_to_num(attention - np.nanmin(attention)) for token, attention in maps.items()}
    areas = {token: heat > heat.max() / 2 for token, heat in heats.items()}
    presences = {}
    for token, area in areas.items():
        others = [other for name, other in areas.items() if name != token and name not in styles]
        shared = area & np.logical_or.reduce([np.zeros_like(area), *others])
        presences[token] = Presence(
            share=_rounded(np.nansum(maps[token]) / total),
            box=_box_of(area),
            overlap=_rounded(shared.sum() / max(1, area.sum())),
            heat=_coarse(heats[token]),
        )
    return presences


def _box_of(area: np.ndarray) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom of what is true in (h, w), as fractions; the whole if nothing is."""
    (height, width), (rows, columns) = area.shape, np.nonzero(area)
    if not len(rows):
        return 0.0, 0.0, 1.0, 1.0
    sides = columns.min() / width, rows.min() / height, (columns.max() + 1) / width, (rows.max() + 1) / height
    left, top, right, bottom = map(_rounded, sides)
    return left, top, right, bottom


def _coarse(heat: np.ndarray) -> str:
    """Return the means in HEAT_SIDE x HEAT_SIDE cells as hexadecimal digits, the largest as f."""
    cells = F.adaptive_avg_pool2d(torch.from_numpy(heat)[None, None].float(), HEAT_SIDE)
    digits = (cells / cells.max().clamp(min=1e-12) * 15).round().int().flatten().tolist()
    return "".join(f"{digit:x}" for digit in digits)


def _rounded(value: float) -> float:
    return round(float(value), 3)
