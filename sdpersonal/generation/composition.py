"""Generate several subjects in one image: each at the model's full size with its own words and LoRA, then joined.

A LoRA changes every place of an image, so two of them in one prediction blend into one thing. Here each subject has an
image of its own, of which the backgrounds are shared while the layout forms: at every step, x_0 outside the subjects
is replaced with the mean of all (as MultiDiffusion does with overlapping windows, Bar-Tal et al. 2023, arXiv
2302.08113). Where a subject is, its token's cross-attention tells. Then each image is shrunk to its subject's box and
pasted on the background, with the attention as a soft mask.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..models import StableDiffusion
from ..models.attention_maps import AttentionMaps
from ..prompts import ConceptRef, Region, Text
from .placement import place_subjects
from .prompt_resolution import Piece, ResolvedPrompt
from .style_guidance import leading_words

SHARED_UNTIL = 0.4  # progress until which the backgrounds are shared: the layout is fixed by then
_BOX_SCALE = 1.3  # a box's side as a multiple of its region's: subjects fill about three quarters of an image
_HEIGHT = 0.62  # where a box is between the top (0) and the bottom (1) of its region: things stand on the ground
_FEATHER = 0.1  # of a box's side
_CONNECTORS = re.compile(
    r"(?:^|(?<![\s,;])[\s,;]++)(?:(?:and|with|&|next\s+to|beside|near|by|together\s+with|in\s+front\s+of|behind|beneath|under|below"
    r"|above|over|on\s+top\s+of|(?:to\s+the\s+)?(?:left|right)\s+of|holding|riding|hugging|facing|looking\s+at)\s*)?"
    r"(?:\b(?:an?|the|my|another)\s*)?\Z",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Subject:
    """One subject of a composition: its own prompt, the index of its reference there, and where it is to be."""

    prompt: ResolvedPrompt
    index: int
    region: Region


def split_subjects(resolved: ResolvedPrompt) -> tuple[Subject, ...]:
    """Return a prompt's subjects if it is to be composed, else none.

    It is if two or more subjects are named, or a region is given. A reference is a subject if any of its concepts is no
    style. One that acts in a part of the sampling only is meant to blend with the others, so nothing is composed then.
    """
    indices = [i for i, reference in enumerate(resolved.references) if _is_subject(resolved, reference)]
    references = [resolved.references[i] for i in indices]
    identities = {resolved.identity(reference) for reference in references}
    if any((reference.start, reference.end) != (0, 1) for reference in references):
        return ()
    if len(identities) < 2 and not any(reference.region for reference in references):
        return ()
    regions = place_subjects(resolved.prompt, references)
    prompts = (_own_prompt(resolved, indices, number) for number in range(len(indices)))
    return tuple(
        Subject(prompt, prompt.index_of(reference), region)
        for prompt, reference, region in zip(prompts, references, regions, strict=True)
    )


def _is_subject(resolved: ResolvedPrompt, reference: ConceptRef) -> bool:
    return resolved.kinds(reference) != {"style"}


def _own_prompt(resolved: ResolvedPrompt, subjects: Sequence[int], number: int) -> ResolvedPrompt:
    """Return the prompt with one subject only: without the others, and what connects them or belongs to them."""
    positions = [resolved.positions[index] for index in subjects]
    return resolved.with_pieces(list(_own_pieces(resolved.prompt.pieces, positions, number)))


def _own_pieces(pieces: Sequence[Piece], subjects: Sequence[int], number: int) -> Iterator[Piece]:
    """Yield the pieces of one subject's prompt. subjects: the positions of all."""
    for i, piece in enumerate(pieces):
        if i in subjects:
            if i == subjects[number]:
                yield piece
        elif isinstance(piece, Text) and subjects[0] < i < subjects[-1]:
            if text := _text_between(pieces, i, subjects, number).rstrip():
                yield replace(piece, text=text)
        else:
            yield piece


def _text_between(pieces: Sequence[Piece], position: int, subjects: Sequence[int], number: int) -> str:
    """Return what one subject's prompt has of a text between two subjects: if it follows another one, only the words
    of a style after it."""
    piece = pieces[position]
    text = piece.text if isinstance(piece, Text) else ""
    belongs_to_other = position - 1 in subjects and position - 1 != subjects[number]
    if position + 1 in subjects:
        return "" if belongs_to_other else _CONNECTORS.sub("", text)
    return leading_words(text) if belongs_to_other else text


@dataclass(frozen=True)
class Box:
    """A square of the image in pixels, inside the image."""

    left: int
    top: int
    side: int


def box_of(region: Region, size: tuple[int, int]) -> Box:
    """Return the square for a subject in a region of an image of that (width, height)."""
    width, height = (region.right - region.left) * size[0], (region.bottom - region.top) * size[1]
    side = max(8, min(round(_BOX_SCALE * min(width, height)), *size))
    left = region.left * size[0] + (width - side) / 2
    top = region.top * size[1] + (height - side) * _HEIGHT
    return Box(round(min(max(left, 0), size[0] - side)), round(min(max(top, 0), size[1] - side)), side)


class SharedBackground:
    """Shares the background among the images of the subjects while they are denoised, and keeps where subjects are.

    The batch has B images of each of K subjects, subject by subject.
    """

    def __init__(self, maps: AttentionMaps, num_subjects: int):
        self._maps, self._num_subjects = maps, num_subjects
        self.masks = torch.empty(0)  # (K B, 1, h, w) after a step

    def __call__(self, x0: Tensor, progress: float) -> Tensor | None:
        """Return x_0 (K B, C, h, w) with a shared background, after the prediction of a step; None once it is set."""
        self.masks = self._maps.finish_step()
        if progress >= SHARED_UNTIL or self._num_subjects == 1:
            return None
        subject = _ramp(self.masks, 0.1, 0.4)
        subjects, images = (x.unflatten(0, (self._num_subjects, -1)) for x in (subject, x0))
        total = (1 - subjects).sum(0) + 1e-3
        background = ((1 - subjects) * images).sum(0) / total  # (B, C, h, w)
        return (subjects * images + (1 - subjects) * background).flatten(0, 1)


def token_positions(base: StableDiffusion, prompt: ResolvedPrompt, index: int) -> list[int]:
    """Return the positions of a reference, by index, in the embeddings of its prompt."""
    marked = prompt.marked_segments(base, prompt.positions[index])
    weights = [weight for chunk in base.encoders["clip_l"].chunks(marked) for weight in chunk.weights]
    return [i for i, weight in enumerate(weights) if weight == 2.0]


def join(images: Sequence[np.ndarray], masks: Tensor, boxes: Sequence[Box], size: tuple[int, int]) -> np.ndarray:
    """Join the images of K subjects, uint8 (H, W, 3) each, in one of that (width, height).

    masks: where the subjects are, (K, 1, h, w), 0 to 1. The background is that of the images around the subjects, and
    grows from there to where none is.
    """
    width, height = size
    background, weight = torch.zeros(1, 3, height, width), torch.zeros(1, 1, height, width)
    layers = []
    for image, mask, box in zip(images, masks.cpu(), boxes, strict=True):
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
        pixels = F.interpolate(pixels, (box.side, box.side), mode="bilinear", antialias=True)
        mask = F.interpolate(mask[None], (box.side, box.side), mode="bicubic").clamp(0, 1)
        feather = _feather(box, size)
        area = (..., slice(box.top, box.top + box.side), slice(box.left, box.left + box.side))
        around = (1 - _ramp(mask, 0.05, 0.25)) * feather
        around = around if around.any() else feather.expand_as(mask)  # a subject that fills its box is all we know
        background[area] += pixels * around
        weight[area] += around
        layers.append((area, pixels, _ramp(mask, 0.1, 0.4) * feather))
    joined = _fill(background / weight.clamp(min=1e-3), weight.clamp(0, 1))
    for area, pixels, alpha in layers:
        joined[area] = alpha * pixels + (1 - alpha) * joined[area]
    return joined[0].permute(1, 2, 0).clamp(0, 255).round().to(torch.uint8).numpy()


def _fill(image: Tensor, weight: Tensor) -> Tensor:
    """Fill where the weight is below 1 from the surroundings (pull-push, Gortler et al. 1996, section 3.4)."""
    height, width = image.shape[2:]
    if height == 1 and width == 1:
        return image
    padding = (0, width % 2, 0, height % 2)
    weighted, weights = (F.pad(x, padding) for x in (image * weight, weight))
    coarse_weight = F.avg_pool2d(weights, 2)
    coarse = F.avg_pool2d(weighted, 2) / coarse_weight.clamp(min=1e-6)
    coarse = _fill(coarse, (coarse_weight * 4).clamp(max=1))
    return weight * image + (1 - weight) * F.interpolate(coarse, (height, width), mode="bilinear")


def _feather(box: Box, size: tuple[int, int]) -> Tensor:
    """Return a weight that falls to 0 at the edges of a box that are inside an image of that size, (side, side)."""
    rows, columns = _fade(box.top, box.side, size[1]), _fade(box.left, box.side, size[0])
    return rows[:, None] * columns


def _fade(start: int, side: int, length: int) -> Tensor:
    distance = torch.linspace(0, 1, side)
    before = distance if start > 0 else torch.ones(side)
    after = 1 - distance if start + side < length else torch.ones(side)
    return _ramp(torch.minimum(before, after), 0.0, _FEATHER)


def _ramp(x: Tensor, low: float, high: float) -> Tensor:
    return ((x - low) / (high - low)).clamp(0, 1)


def arrange(latents: Tensor, boxes: Sequence[Box], size: tuple[int, int], factor: int) -> Tensor:
    """Place the latents of K subjects, (K, B, C, h, w), in their boxes of an image of that size: a preview of it."""
    arranged = latents.mean(0)
    arranged = F.interpolate(arranged, (size[1] // factor, size[0] // factor), mode="bilinear")
    for images, box in zip(latents, boxes, strict=True):
        left, top, side = (max(value // factor, low) for value, low in ((box.left, 0), (box.top, 0), (box.side, 1)))
        arranged[:, :, top : top + side, left : left + side] = F.interpolate(images, (side, side), mode="area")
    return arranged
