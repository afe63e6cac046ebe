"""How long and how fast each method learns, per kind of base: the only table of such numbers.

SD 1.x, 2.x and SDXL, from published recipes, not yet measured here:
- LoRA 1e-4 for 500 steps (README of diffusers' DreamBooth script); the token's rows ten times faster, since they start
  from the class noun and carry the name. SDXL 800 steps: its README trains 500 at 1e-4 without rows of its own.
- textual inversion 1e-3 in steps of 4 photos; diffusers' README takes 2e-3 for 3,000 steps, of which most are wasted
  (DVAR, arXiv 2302.04841: 8 to 15 times fewer do), hence 800.
- full 5e-6 for 400 steps (the paper: 1,000 steps of one photo; here a step has 2).
- pivotal: 300 steps of rows at textual inversion's rate, then the LoRA, with the rows ten times slower.
- a person's face wants half as many steps again, a style half the rate: its photos share less (kohya's and diffusers'
  discussions agree on the direction, nobody measured it well).

Steps are the most that a run takes: it ends where there is no more to learn (settling.py), usually at half of them.

tiny: measured on kept-out subjects of five photos. Its layers are a fifth as wide as SD's, so its rates are tens of
times SD's; and a shape that it does not know is learned in the convolutions: with them a teddy bear gets its arms and
legs in 200 steps, without them not in 300. Averaged, a LoRA at 3e-3 is after 120 steps where one at 1.5e-3 that is not
averaged is after 280. A pivotal run is gentler: with the rows at textual inversion's rate and the LoRA at its own it
forgets the place that a prompt asks for in a fifth of pictures, so in a tenth (four subjects). A row of it holds a
quarter of what one of SD's holds: with 8 the likeness to the bear is 0.63, with 4 it is 0.56 (the photos: 0.66).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..models.lora import LoraTargets


@dataclass(frozen=True)
class Preset:
    steps: int
    batch: int  # photos at once in each process
    lr: float  # of what the method mainly trains
    embedding_lr: float  # of the token's rows
    vectors: int = 4  # rows of a token that starts from any words
    targets: LoraTargets = "attention"  # what a LoRA changes
    pivot: int = 0  # steps of rows alone before it
    pivot_lr: float = 0.0  # of the rows in them
    snr_gamma: float | None = None  # min-SNR weighting
    average: float = 0.95  # decay of the average of what trains; 0 keeps none
    milestones: int = 10  # at which the concept is examined; each leaves a checkpoint
    measure_every: int = 1  # steps between measurements of the fixed batch; worked out for each run


_STABLE_DIFFUSION = {
    "textual-inversion": Preset(steps=800, batch=4, lr=1e-3, embedding_lr=1e-3),
    "dreambooth-lora": Preset(steps=500, batch=4, lr=1e-4, embedding_lr=1e-3),
    "dreambooth-pivotal": Preset(steps=600, batch=4, lr=1e-4, embedding_lr=1e-4, pivot=300, pivot_lr=1e-3),
    "dreambooth-full": Preset(steps=400, batch=2, lr=5e-6, embedding_lr=0.0, average=0.0, milestones=4),
}
_SDXL = _STABLE_DIFFUSION | {
    "dreambooth-lora": Preset(steps=800, batch=2, lr=1e-4, embedding_lr=1e-3),
    "dreambooth-pivotal": Preset(steps=800, batch=2, lr=1e-4, embedding_lr=1e-4, pivot=300, pivot_lr=1e-3),
}
_TINY = {
    "textual-inversion": Preset(steps=400, batch=4, lr=2e-2, embedding_lr=2e-2, vectors=8),
    "dreambooth-lora": Preset(steps=320, batch=4, lr=3e-3, embedding_lr=5e-3, targets="all"),
    "dreambooth-pivotal": Preset(
        steps=400, batch=4, lr=2e-3, embedding_lr=3e-4, targets="all", pivot=60, pivot_lr=1e-2
    ),
    "dreambooth-full": Preset(steps=240, batch=4, lr=4e-4, embedding_lr=0.0),
}
_TABLES = {"tiny": _TINY, "sd1": _STABLE_DIFFUSION, "sd2": _STABLE_DIFFUSION, "sdxl": _SDXL}


def scale_steps(steps: int, photos: int) -> int:
    """A preset's steps, which are for five photos, for more: by the root of their number, up to three times as many.

    The longer set needs more, but not in proportion: what the photos share is learned from all of them.
    """
    return round(steps * min(3.0, max(1.0, (photos / 5) ** 0.5)) / 10) * 10


def lower_rate(rate: float, usual: float) -> float:
    """The learning rate to propose where `rate` diverged: a tenth of it, and never above the preset's."""
    return min(rate / 10, usual)


def preset(method: str, base_kind: str, kind: str = "object") -> Preset:
    """method: as `methods.method_name` has it; base_kind: "tiny", "sd1", "sd2", "sdxl"; kind: what the photos share."""
    found = _TABLES[base_kind][method]
    if base_kind == "tiny" or kind == "object":
        return found
    if kind == "person":
        return replace(found, steps=found.steps * 3 // 2)
    return replace(found, lr=found.lr / 2)
