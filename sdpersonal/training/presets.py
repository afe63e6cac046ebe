"""Choose the training steps and learning rates of each method, per kind of base model, from the only table of them.

SD 1.x, 2.x and SDXL, from published recipes, not yet measured here:
- LoRA 1e-4 for 500 steps (README of diffusers' DreamBooth script); the token's embeddings ten times faster, since they
  start from the class noun and carry the name. SDXL 800 steps: its README trains 500 at 1e-4 without embeddings.
- textual inversion 1e-3 in steps of 4 photos; diffusers' README takes 2e-3 for 3,000 steps, most of which are wasted
  (DVAR, arXiv 2302.04841: 8 to 15 times fewer do), hence 800.
- full 5e-6 for 400 steps (the paper: 1,000 steps of one photo; here a step has two).
- pivotal: 300 steps of embeddings at textual inversion's rate, then the LoRA, with the embeddings ten times slower.
- a person's face needs half as many steps again, a style half the rate: its photos share less (kohya's and diffusers'
  discussions agree on the direction, nobody measured it well).

Steps are a maximum: a run ends when its loss has converged and its score rises no longer (early_stopping.py); on the
built-in model after 74 % of them with a LoRA, and 95 % with textual inversion (docs/learning.md).

tiny: measured on held-out subjects of five photos. Its layers are a fifth as wide as SD's, so its rates are tens of
times SD's; and a shape that it does not know is trained in the convolutions: with them a teddy bear gets its arms and
legs in 200 steps, without them not in 300. With EMA, a LoRA at 3e-3 gets as far in 120 steps as one at 1.5e-3 without
EMA in 280. The pivotal rates are lower: with the embeddings at textual inversion's rate and the LoRA at its own, a
fifth of images miss the place in the prompt, with these rates a tenth (four subjects). An embedding of tiny holds a
quarter of what one of SD's holds: with 8 the likeness to the bear is 0.63, with 4 it is 0.56 (the photos: 0.66).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..models.lora import LoraTargets


@dataclass(frozen=True)
class Preset:
    steps: int
    batch: int  # batch size of each process
    lr: float  # of the method's main parameters
    embedding_lr: float  # of the token's embeddings
    vectors: int = 4  # embeddings of a token that starts from any words
    targets: LoraTargets = "attention"  # layers that get a LoRA
    pivot_steps: int = 0  # steps that train the embeddings alone, before the LoRA
    pivot_lr: float = 0.0  # of the embeddings in these steps
    snr_gamma: float | None = None  # min-SNR weighting
    ema_decay: float = 0.95  # decay of the EMA; 0 for no EMA
    milestones: int = 10  # number of validations; each has a checkpoint
    measure_every: int = 1  # steps between measurements of the fixed batch; computed for each run


_STABLE_DIFFUSION = {
    "textual-inversion": Preset(steps=800, batch=4, lr=1e-3, embedding_lr=1e-3),
    "dreambooth-lora": Preset(steps=500, batch=4, lr=1e-4, embedding_lr=1e-3),
    "dreambooth-pivotal": Preset(steps=600, batch=4, lr=1e-4, embedding_lr=1e-4, pivot_steps=300, pivot_lr=1e-3),
    "dreambooth-full": Preset(steps=400, batch=2, lr=5e-6, embedding_lr=0.0, ema_decay=0.0, milestones=4),
}
_SDXL = _STABLE_DIFFUSION | {
    "dreambooth-lora": Preset(steps=800, batch=2, lr=1e-4, embedding_lr=1e-3),
    "dreambooth-pivotal": Preset(steps=800, batch=2, lr=1e-4, embedding_lr=1e-4, pivot_steps=300, pivot_lr=1e-3),
}
_TINY = {
    "textual-inversion": Preset(steps=400, batch=4, lr=2e-2, embedding_lr=2e-2, vectors=8),
    "dreambooth-lora": Preset(steps=320, batch=4, lr=3e-3, embedding_lr=5e-3, targets="all"),
    "dreambooth-pivotal": Preset(
        steps=400, batch=4, lr=2e-3, embedding_lr=3e-4, targets="all", pivot_steps=60, pivot_lr=1e-2
    ),
    "dreambooth-full": Preset(steps=240, batch=4, lr=4e-4, embedding_lr=0.0),
}
_TABLES = {"tiny": _TINY, "sd1": _STABLE_DIFFUSION, "sd2": _STABLE_DIFFUSION, "sdxl": _SDXL}


def scale_steps(steps: int, photos: int) -> int:
    """Scale a preset's steps, which are for five photos, by the root of the number of photos, up to three times.

    A larger set needs more steps, but not in proportion: what the photos share is trained by all of them.
    """
    return round(steps * min(3.0, max(1.0, (photos / 5) ** 0.5)) / 10) * 10


def lower_rate(rate: float, usual: float) -> float:
    """Return the learning rate to propose after `rate` diverged: a tenth of it, at most the preset's."""
    return min(rate / 10, usual)


def preset(method: str, base_kind: str, kind: str = "object") -> Preset:
    """Return the preset. method: see `method_name`; base_kind: "tiny", "sd1", "sd2", "sdxl"; kind: the subject's."""
    object_preset = _TABLES[base_kind][method]
    if base_kind == "tiny" or kind == "object":
        return object_preset
    if kind == "person":
        return replace(object_preset, steps=object_preset.steps * 3 // 2)
    return replace(object_preset, lr=object_preset.lr / 2)
