"""Read and write weights for the blocks of a concept's LoRA, in the notation of A1111's LoRA Block Weight extension.

A UNet's blocks have the original's numbers: IN00 to IN11 on the way down, MID, OUT00 to OUT11 on the way up; BASE is
the text encoder. SDXL's UNet ends at IN08 and OUT08. Source of names, forms and presets: README.md and the script of
hako-mikan/sd-webui-lora-block-weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

_INS = tuple(f"IN{i:02}" for i in range(12))
_OUTS = tuple(f"OUT{i:02}" for i in range(12))
BLOCKS = ("BASE", *_INS, "MID", *_OUTS)


def _form(ins: tuple[int, ...], outs: range) -> tuple[str, ...]:
    return ("BASE", *(_INS[i] for i in ins), "MID", *(_OUTS[i] for i in outs))


FORMS = {
    12: _form((4, 5, 7, 8), range(6)),  # SDXL: the blocks with attention
    17: _form((1, 2, 4, 5, 7, 8), range(3, 12)),  # SD 1.x and 2.x: the blocks with attention
    20: _form(tuple(range(9)), range(9)),  # SDXL, all
    26: BLOCKS,  # SD 1.x and 2.x, all
}
"""Number of weights in a list -> the blocks that they are for, in order. Blocks that a list leaves out have 0."""


@dataclass(frozen=True)
class BlockWeights:
    """A factor of a LoRA's strength for each of `BLOCKS`."""

    values: tuple[float, ...] = (1.0,) * len(BLOCKS)

    @classmethod
    def of_groups(cls, base: float = 1.0, down: float = 1.0, mid: float = 1.0, up: float = 1.0) -> BlockWeights:
        """Return the same weight for all blocks down, and for all blocks up."""
        return cls((base, *(down for _ in _INS), mid, *(up for _ in _OUTS)))

    @classmethod
    def of_list(cls, weights: tuple[float, ...]) -> BlockWeights:
        """Return the weights of one of the `FORMS`, by their number."""
        listed = dict(zip(FORMS[len(weights)], weights, strict=True))
        return cls(tuple(listed.get(block, 0.0) for block in BLOCKS))

    def __getitem__(self, block: str) -> float:
        return self.values[BLOCKS.index(block)]

    @property
    def groups(self) -> dict[str, float] | None:
        """The weights as options of a prompt, `{"in": 0.2, "mid": 1.0, ...}`; None unless each group has one weight."""
        groups = {"in": _INS, "mid": ("MID",), "out": _OUTS, "base": ("BASE",)}
        if any(len({self[block] for block in blocks}) > 1 for blocks in groups.values()):
            return None
        return {key: self[blocks[0]] for key, blocks in groups.items()}

    @property
    def preset(self) -> str:
        """The name of the preset with these weights, or ""."""
        return next((name for name, weights in PRESETS.items() if weights == self), "")

    @property
    def shortest_list(self) -> tuple[float, ...]:
        """The weights in the shortest of the `FORMS` that holds them all."""
        lists = (tuple(self[block] for block in blocks) for blocks in FORMS.values())
        return next(weights for weights in lists if BlockWeights.of_list(weights) == self)


def _only(*blocks: str) -> BlockWeights:
    return BlockWeights(tuple(float(block in blocks) for block in BLOCKS))


def _without(block: str) -> BlockWeights:
    return BlockWeights(tuple(float(other != block) for other in BLOCKS))


# The extension's presets are lists of 17, which give 0 to the blocks without attention and to half of SDXL's way up.
# Here a preset also covers the blocks between those that it names, so that it means the same for every model.
PRESETS = {
    "NONE": _only(),
    "ALL": BlockWeights(),
    "INS": _only("BASE", *_INS[:5]),  # shallow
    "IND": _only("BASE", *_INS[5:]),  # deep
    "INALL": _only("BASE", *_INS),
    "MIDD": _only("BASE", *_INS[5:], "MID", *_OUTS[:7]),
    "OUTD": _only("BASE", *_OUTS[:7]),
    "OUTS": _only("BASE", *_OUTS[7:]),
    "OUTALL": _only("BASE", *_OUTS),
    "ALL0.5": BlockWeights((0.5,) * len(BLOCKS)),
}
"""The extension's presets by name, and for every block its name, that block alone, and NAME with an N in front, all
others."""
GROUP_PRESETS = tuple(PRESETS)
PRESETS |= {block: _only(block) for block in BLOCKS}
PRESETS |= {f"N{block}": _without(block) for block in BLOCKS}


def format_blocks(blocks: BlockWeights) -> str:
    """Format block weights as options, without the colon in front: `in=0.2:mid=0`, `lbw=OUTS` or `lbw=1,0,0.5,...`."""
    if blocks.groups:
        return ":".join(f"{key}={format_number(weight)}" for key, weight in blocks.groups.items() if weight != 1)
    return f"lbw={blocks.preset or format_block_list(blocks)}"


def format_block_list(blocks: BlockWeights) -> str:
    """Format block weights as numbers, the shortest list that A1111's LoRA Block Weight extension reads."""
    return ",".join(map(format_number, blocks.shortest_list))


def format_number(value: float) -> str:
    """Format a number with all its digits and no exponent."""
    return format(Decimal(repr(value)), "f").removesuffix(".0")
