"""How long and how fast each method learns, per kind of base: the only table of such numbers.

SD 1.x and 2.x, from published recipes, not yet measured here: LoRA 1e-4 for 500 steps (README of diffusers' DreamBooth
script), the token's rows ten times faster, since they start from the class noun and carry the name. Textual inversion
1e-3 a step of 4 photos; diffusers' README takes 2e-3 for 3,000 steps, of which most are wasted (DVAR, arXiv 2302.04841:
8 to 15 times fewer do), hence 800.

tiny: measured on the sample photos. Its layers are a fifth as wide as SD's, so its rates are about ten times SD's, and
attention alone is too little to learn a shape: with the feed-forward layers too the loss is 0.09 after 180 steps,
without them 0.15 after 200.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..lora import Targets


@dataclass(frozen=True)
class Preset:
    steps: int
    batch: int  # photos a step
    lr: float  # of what the method mainly trains
    rows_lr: float  # of the token's rows
    targets: Targets = "attention"  # what a LoRA changes


_STABLE_DIFFUSION = {
    "textual-inversion": Preset(steps=800, batch=4, lr=1e-3, rows_lr=1e-3),
    "dreambooth-lora": Preset(steps=500, batch=4, lr=1e-4, rows_lr=1e-3),
}
_TINY = {
    "textual-inversion": Preset(steps=250, batch=4, lr=1e-2, rows_lr=1e-2),
    "dreambooth-lora": Preset(steps=150, batch=4, lr=1e-3, rows_lr=5e-3, targets="transformer"),
}


def preset(method: str, base_kind: str) -> Preset:
    return (_TINY if base_kind == "tiny" else _STABLE_DIFFUSION)[method]
