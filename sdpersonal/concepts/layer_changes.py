"""Define names, shapes and checks of layer changes that are not a plain LoRA.

A change is a layer's tensors under the names that LyCORIS gives them, with `lora_unet_...` before the first dot:

    LoRA, Tucker     lora_up.weight, lora_down.weight, lora_mid.weight, alpha
    LoHa             hada_w1_a, hada_w1_b, hada_w2_a, hada_w2_b, hada_t1, hada_t2, alpha    (arXiv 2108.06098)
    LoKr             lokr_w1 or lokr_w1_a, _b; lokr_w2 or lokr_w2_a, _b; lokr_t2; alpha     (arXiv 2309.14859)
    full, set, norm  diff, set_weight, w_norm; each with diff_b or b_norm for the bias
    IA3              weight, on_input, and here on_bias                                     (arXiv 2205.05638)
    GLoRA            a1.weight, a2.weight, b1.weight, b2.weight, alpha                      (arXiv 2306.07967)
    OFT, BOFT        oft_blocks (n, b, b) or (m, n, b, b), rescale, alpha         (arXiv 2306.07280, 2311.06243)
    OFT of inputs    oft_R.weight (n, b (b - 1) / 2), and here oft_terms                    (PEFT, OneTrainer)
    DoRA             dora_scale beside a LoRA, LoHa or LoKr                                 (arXiv 2402.09353)

This module needs numpy only; `weight_deltas` computes the new weights, `plain_lora` the LoRA that equals a change.
Sources of names and shapes: LyCORIS `modules/*.py`, PEFT `tuners/oft/layer.py`, `tuners/lora/dora.py`, ComfyUI
`comfy/weight_adapter`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np

Change = Mapping[str, np.ndarray]
"""One layer's tensors, keyed by the part of their names after the layer's name and its dot."""
Shapes = Mapping[str, tuple[int, ...]]
"""The shapes of such tensors, by the same keys."""

MAX_ALPHA_PER_RANK = 64.0  # no training ends above it; a hostile file would turn every image to noise
MAX_NUMBERS = 1 << 26  # in one weight: twice the largest of SDXL
MAX_RANK = 4096
MAX_BLOCK = 2560  # rows of an OFT block, whose matrix is inverted
MAX_STAGES = 16  # butterfly stages of BOFT

_LOHA = {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}
_LOKR = {"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"}
_GLORA = {"a1.weight", "a2.weight", "b1.weight", "b2.weight"}
_FORMS: dict[str, tuple[set[str], set[str]]] = {  # name: (required tensors, optional tensors)
    "LoRA": ({"lora_up.weight", "lora_down.weight"}, {"lora_mid.weight", "alpha"}),
    "LoHa": (_LOHA, {"hada_t1", "hada_t2", "alpha"}),
    "LoKr": (set(), _LOKR | {"lokr_t2", "alpha"}),
    "full": ({"diff"}, {"alpha"}),
    "set": ({"set_weight"}, {"alpha"}),
    "norm": ({"w_norm"}, set()),
    "IA3": ({"weight", "on_input"}, {"on_bias"}),
    "GLoRA": (_GLORA, {"alpha"}),
    "OFT": ({"oft_blocks"}, {"rescale", "alpha"}),
    "OFT of inputs": ({"oft_R.weight"}, {"oft_terms", "alpha"}),
}
_MARKS = {  # a tensor that only one form has -> that form
    "lora_up.weight": "LoRA", "lora_down.weight": "LoRA", "diff": "full", "set_weight": "set", "w_norm": "norm",
    "on_input": "IA3", "oft_blocks": "OFT", "oft_R.weight": "OFT of inputs",
    **dict.fromkeys(_LOHA, "LoHa"), **dict.fromkeys(_LOKR, "LoKr"), **dict.fromkeys(_GLORA, "GLoRA"),
}  # fmt: skip
BIASES = {"diff_b", "b_norm"}
_SCALED = ("LoRA", "LoHa", "LoKr")  # forms that DoRA can rescale
_NEEDS_WEIGHT = {"IA3", "GLoRA", "OFT", "BOFT", "OFT of inputs", "set"}
_ONE_NUMBER = {"alpha", "on_input", "on_bias", "oft_terms"}
SUFFIXES = frozenset().union(*(required | optional for required, optional in _FORMS.values()), BIASES, {"dora_scale"})
PLAIN = frozenset({"lora_up.weight", "lora_down.weight", "alpha"})  # tensors of a plain LoRA layer


def form(names: Iterable[str]) -> str:
    """Return the form that tensor names show: a key of `_FORMS`, "bias" for biases alone, "" for none or several."""
    names = set(names)
    marks = {_MARKS[name] for name in names if name in _MARKS}
    if len(marks) > 1:
        return ""
    return marks.pop() if marks else "bias" if names and names <= BIASES else ""


def kind(change: Change | Shapes) -> str:
    """Return the kind as text: "LoHa", "DoRA", "BOFT", ... `change` holds arrays or shapes by name."""
    name = form(change)
    if "dora_scale" in change:
        return "DoRA" if name == "LoRA" else f"DoRA of {name}"
    if name == "LoRA":
        return "Tucker LoCon" if "lora_mid.weight" in change else "LoRA"
    if name == "OFT":
        return "BOFT" if len(_shape(change["oft_blocks"])) == 4 else "OFT"
    if name == "OFT of inputs":
        return "OFT"
    return {"full": "full weights", "set": "full weights", "norm": "norms", "bias": "biases"}.get(name, name)


def kinds(changes: Iterable[Change | Shapes]) -> str:
    """Return all kinds as text, the commonest first; empty without changes."""
    counts = Counter(map(kind, changes))
    return " and ".join(sorted(counts, key=lambda name: (-counts[name], name)))


def is_complete(names: Iterable[str]) -> bool:
    """Return whether tensors of these names make exactly one change, of one form."""
    names = set(names)
    name = form(names)
    required, optional = _FORMS.get(name, (set(), set()))
    extra = BIASES | ({"dora_scale"} if name in _SCALED else set())
    return bool(name) and required <= names <= required | optional | extra


def is_plain(names: Iterable[str]) -> bool:
    """Return whether a layer's tensors are those of a plain LoRA."""
    return set(names) <= PLAIN


def needs_weight(change: Change) -> bool:
    """Return whether the change depends on the weight that it is applied to."""
    return "dora_scale" in change or "on_bias" in change or form(change) in _NEEDS_WEIGHT


def weight_size(change: Change | Shapes) -> tuple[int, int]:
    """Return (rows, numbers per row) of the weight that the shapes fit; 0 where unknown. Norms have rows of 1.

    The shapes must have passed `find_problem`, except those of a LoRA, which may come from anywhere.
    """
    shapes = {name: _shape(value) for name, value in change.items()}
    name = form(shapes)
    if name == "LoRA":
        inner = math.prod(shapes["lora_mid.weight"][2:]) if "lora_mid.weight" in shapes else 1
        return shapes["lora_up.weight"][0], math.prod(shapes["lora_down.weight"][1:]) * inner
    if name == "LoHa":
        if "hada_t1" in shapes:
            width = shapes["hada_w1_b"][1] * math.prod(shapes["hada_t1"][2:])
            return shapes["hada_w1_a"][1], width
        return shapes["hada_w1_a"][0], math.prod(shapes["hada_w1_b"][1:])
    if name == "LoKr":
        (a, b), (c, d) = _kron_sides(shapes)
        return a * c, b * d
    if name == "GLoRA":
        return shapes["b1.weight"][0], math.prod(shapes["b2.weight"][1:])
    if name == "OFT":
        return math.prod(shapes["oft_blocks"][-3:-1]), 0
    if name == "OFT of inputs":
        blocks, numbers = shapes["oft_R.weight"]
        return 0, blocks * block_size(numbers) if blocks > 1 else 0
    if name == "IA3":
        return _ia3_outline(change)
    weight = next((shapes[key] for key in ("diff", "set_weight", "w_norm") if key in shapes), None)
    if weight:
        return weight[0], math.prod(weight[1:])
    return next(shapes[key][0] for key in ("diff_b", "b_norm") if key in shapes), 0


def _ia3_outline(change: Change | Shapes) -> tuple[int, int]:
    """Return the outline of IA3: (0, 0) for shapes alone, since only the value of `on_input` tells the scaled side."""
    weight, on_input = change["weight"], change["on_input"]
    if isinstance(weight, tuple) or isinstance(on_input, tuple) or not on_input.size:
        return 0, 0
    if not on_input.flat[0]:
        return weight.size, 0
    return 0, weight.size if weight.ndim < 4 else 0


def find_problem(change: Change) -> str | None:
    """Return what is wrong with the tensors, or None where they can be used. Nothing large is computed."""
    name = form(change)
    if not is_complete(change):
        return f"its tensors {', '.join(sorted(change))[:200]} make no known change"
    if not {value.dtype for value in change.values()} <= {np.dtype(np.float32), np.dtype(np.float16)}:
        return "weights must be float32 or float16"
    shapes = {key: value.shape for key, value in change.items()}
    if bad_key := next((key for key in _ONE_NUMBER & shapes.keys() if math.prod(shapes[key]) != 1), None):
        return f"its {bad_key} is not one number"
    if not all(math.prod(shape) for shape in shapes.values()):
        return "it is empty"
    if not all(len(shape) == 1 for key, shape in shapes.items() if key in BIASES | {"w_norm"}):
        return "a bias or the weight of a norm has one axis"
    if not _CHECKS.get(name, lambda shapes: True)(shapes):
        return (
            f"shapes {', '.join(str(shapes[key]) for key in sorted(shapes) if shapes[key])[:200]} do not fit together"
        )
    return _bounds_problem(change, name)


def fits(change: Change, shape: tuple[int, ...]) -> bool:
    """Return whether tensors that passed `find_problem` are a change of a weight of that shape."""
    rows, width = weight_size(change)
    inner = math.prod(shape[1:])
    if rows not in (0, shape[0]) or width not in (0, inner):
        return False
    if any(change[key].size != shape[0] for key in BIASES & change.keys()):
        return False
    name = form(change)
    if name == "IA3":
        return len(shape) > 1 and change["weight"].size == shape[1 if scalar(change, "on_input") else 0]
    if name == "OFT of inputs":
        return inner % block_size(change["oft_R.weight"].shape[1]) == 0
    if "dora_scale" in change:
        scale = change["dora_scale"]
        return scale.size == shape[0] or (scale.shape[:1] == (1,) and len(shape) > 1 and scale.size == shape[1])
    return name != "norm" or len(shape) == 1


def _bounds_problem(change: Change, name: str) -> str | None:
    rows, width = weight_size(change)
    if rows * max(width, 1) > MAX_NUMBERS or max(rows, width) > MAX_NUMBERS:
        return f"a weight of {rows} x {width} is in no Stable Diffusion"
    if "dora_scale" in change and not _dora_fits(change["dora_scale"].shape, rows, width):
        return f"its dora_scale {change['dora_scale'].shape} does not fit a weight of {rows} x {width}"
    if not all(np.isfinite(value).all() for value in change.values()):
        return "it holds numbers that are not finite"
    if name in ("LoRA", "LoHa", "LoKr", "GLoRA") and "alpha" in change:
        alpha, rank = scalar(change, "alpha"), rank_of(change)
        if rank and not abs(alpha) <= MAX_ALPHA_PER_RANK * rank:
            return f"alpha {alpha:g} with rank {rank} is out of bounds"
    if name == "OFT of inputs" and not 0 <= scalar(change, "oft_terms", 5) <= 100:
        return "its oft_terms are out of bounds"
    return None


def scalar(change: Change, name: str, default: float = 0.0) -> float:
    """Return a single-number tensor of the change, such as alpha, as a float."""
    return float(change[name].reshape(())) if name in change else default


def rank_of(change: Change | Shapes) -> int:
    """Return the rank that divides alpha; 0 where none does: LoKr of two whole matrices, full changes, rotations."""
    shapes = {name: _shape(value) for name, value in change.items()}
    name = form(shapes)
    if name == "LoKr":
        key = "lokr_w2_b" if "lokr_w2_b" in shapes else "lokr_w1_b"
    else:
        key = {"LoRA": "lora_down.weight", "LoHa": "hada_w1_b", "GLoRA": "b2.weight"}.get(name, "")
    return (shapes.get(key) or (0,))[0]


def scale_of(change: Change) -> float:
    """Return alpha / r. kohya's and LyCORIS' rule: a missing alpha, or 0, means the rank."""
    rank = rank_of(change)
    return (scalar(change, "alpha") or rank) / rank if rank else 1.0


def block_size(numbers: int) -> int:
    """Return the b for which a block's upper triangle has `numbers` = b (b - 1) / 2 entries; 0 if no b does."""
    size = (1 + math.isqrt(1 + 8 * numbers)) // 2
    return size if size * (size - 1) // 2 == numbers else 0


# --- shapes that must match -------------------------------------------------------------------------------------------


def _shape(value: np.ndarray | tuple[int, ...]) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else value.shape


def _lora_fits(shapes: Shapes) -> bool:
    up, down, mid = shapes["lora_up.weight"], shapes["lora_down.weight"], shapes.get("lora_mid.weight")
    if len(up) < 2 or len(down) < 2:
        return False
    rank = down[0]
    if up[1] != rank or math.prod(up[2:]) != 1 or rank > MAX_RANK:
        return False
    return mid is None or (len(mid) == 4 and mid[:2] == (rank, rank) and math.prod(down[2:]) == 1)


def _loha_fits(shapes: Shapes) -> bool:
    if ("hada_t1" in shapes) != ("hada_t2" in shapes) or any(len(shapes[key]) < 2 for key in _LOHA):
        return False
    first, second = ({part: shapes[f"hada_w{i}_{part}"] for part in "ab"} for i in (1, 2))
    rank = first["b"][0]
    if rank > MAX_RANK or second["b"][0] > MAX_RANK:
        return False
    if "hada_t1" not in shapes:
        same = first["a"][0] == second["a"][0] and math.prod(first["b"][1:]) == math.prod(second["b"][1:])
        return same and all(len(part["a"]) == 2 and part["a"][1] == part["b"][0] for part in (first, second))
    cores = shapes["hada_t1"], shapes["hada_t2"]
    fit = all(
        len(core) == 4 and core[:2] == (part["a"][0], part["b"][0]) and len(part["a"]) == len(part["b"]) == 2
        for core, part in zip(cores, (first, second), strict=True)
    )
    return fit and cores[0][2:] == cores[1][2:] and (first["a"][1], first["b"][1]) == (second["a"][1], second["b"][1])


def _lokr_fits(shapes: Shapes) -> bool:
    for i in (1, 2):
        matrix, factors = f"lokr_w{i}" in shapes, [f"lokr_w{i}_{part}" in shapes for part in "ab"]
        if matrix == all(factors) or any(factors) != all(factors):
            return False
    if any(len(shapes[key]) < 2 or len(shapes[key]) > 4 for key in shapes.keys() & (_LOKR | {"lokr_t2"})):
        return False
    if "lokr_w1_a" in shapes and not (
        shapes["lokr_w1_a"][1] == shapes["lokr_w1_b"][0] <= MAX_RANK
        and len(shapes["lokr_w1_a"]) == len(shapes["lokr_w1_b"]) == 2
    ):
        return False
    if len(shapes.get("lokr_w1", (1, 1))) != 2:
        return False
    if "lokr_t2" in shapes:
        core, a, b = (shapes.get(key, ()) for key in ("lokr_t2", "lokr_w2_a", "lokr_w2_b"))
        return len(core) == 4 and core[:2] == (a[:1] + b[:1]) and len(a) == len(b) == 2 and max(core[:2]) <= MAX_RANK
    if "lokr_w2_a" in shapes:
        a, b = shapes["lokr_w2_a"], shapes["lokr_w2_b"]
        return len(a) == 2 and a[1] == b[0] <= MAX_RANK
    return True


def _kron_sides(shapes: Shapes) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return ((a, b), (c, d)) for w1 (a, b) and w2 (c, d); d includes the kernel."""
    if "lokr_w1" in shapes:
        rows, columns = shapes["lokr_w1"]
    else:
        rows, columns = shapes["lokr_w1_a"][0], shapes["lokr_w1_b"][1]
    if "lokr_t2" in shapes:
        second = (shapes["lokr_w2_a"][1], shapes["lokr_w2_b"][1] * math.prod(shapes["lokr_t2"][2:]))
    elif "lokr_w2" in shapes:
        second = (shapes["lokr_w2"][0], math.prod(shapes["lokr_w2"][1:]))
    else:
        second = (shapes["lokr_w2_a"][0], math.prod(shapes["lokr_w2_b"][1:]))
    return (rows, columns), second


def _dora_fits(scale: tuple[int, ...], rows: int, width: int) -> bool:
    """Return whether `scale` has one number per row, or per input (1, in[, 1, 1]), of a weight (rows, in * k * k)."""
    size = math.prod(scale)
    return size == rows or (scale[:1] == (1,) and width % size == 0)


def _glora_fits(shapes: Shapes) -> bool:
    a1, a2, b1, b2 = (shapes[f"{key}.weight"] for key in ("a1", "a2", "b1", "b2"))
    if any(len(shape) < 2 for shape in (a1, a2, b1, b2)) or math.prod(a1[2:] + a2[2:] + b1[2:]) != 1:
        return False
    return a1[1] == a2[0] <= MAX_RANK and b1[1] == b2[0] <= MAX_RANK and a1[0] == a2[1] == b2[1]


def _oft_fits(shapes: Shapes) -> bool:
    blocks = shapes["oft_blocks"]
    if len(blocks) not in (3, 4) or blocks[-1] != blocks[-2] or blocks[-1] > MAX_BLOCK:
        return False
    rows = blocks[-3] * blocks[-2]
    if len(blocks) == 4:  # stage i pairs rows that are 2^i b / 2 apart
        pairs = blocks[-1] << (blocks[0] - 1) if blocks[0] <= MAX_STAGES else 0
        if blocks[-1] % 2 or not pairs or rows % pairs:
            return False
    return math.prod(shapes.get("rescale", (rows,))) == rows


def _inner_oft_fits(shapes: Shapes) -> bool:
    blocks = shapes["oft_R.weight"]
    return len(blocks) == 2 and 2 <= block_size(blocks[1]) <= MAX_BLOCK


_CHECKS = {
    "LoRA": _lora_fits,
    "LoHa": _loha_fits,
    "LoKr": _lokr_fits,
    "GLoRA": _glora_fits,
    "OFT": _oft_fits,
    "OFT of inputs": _inner_oft_fits,
    "full": lambda shapes: len(shapes["diff"]) in (1, 2, 4),
    "set": lambda shapes: len(shapes["set_weight"]) in (1, 2, 4),
}
