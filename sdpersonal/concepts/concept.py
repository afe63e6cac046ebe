"""Hold a concept: its token, embeddings, LoRA and card, and the checks of what can work."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from .. import storage
from ..config.base import BaseKind
from ..errors import UserError, printable
from ..prompts import Token
from . import layer_changes as changes
from .card import Card, with_token
from .strict_safetensors import tensor_bytes
from .thumbnail import media_type

MAX_VECTORS = 64
EMBEDDING_WIDTHS: dict[BaseKind, dict[str, int]] = {
    "sd1": {"clip_l": 768},
    "sd2": {"clip_l": 1024},
    "sdxl": {"clip_l": 768, "clip_g": 1280},
}  # embedding width of each text encoder
LAYER_NAME = re.compile(r"lora_(unet|te|te1|te2)_[A-Za-z0-9_]{1,200}")


@dataclass(frozen=True)
class LoraLayer:
    """One layer's change: delta weight = up @ down * alpha / r. down (r, in[, k, k]), up (out, r[, 1, 1]).

    Matrices read from a file are views of its bytes, and read-only.
    """

    down: np.ndarray
    up: np.ndarray
    alpha: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]


@dataclass(frozen=True)
class Lora:
    """Layers by kohya module name, e.g. `lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q`.

    changes: other changes of layers (LoHa, LoKr, DoRA, ...), by the same names; no layer is in both. change_factors:
    factors of the strength of a change, 1 for those not in it; a concept's own LoRA has none (`lora_blocks`).
    """

    layers: dict[str, LoraLayer]
    changes: dict[str, changes.Change] = field(default_factory=dict)
    change_factors: dict[str, float] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """The largest rank of its layers; 0 where all are changed in other ways."""
        return max((layer.rank for layer in self.layers.values()), default=0)

    @property
    def kinds(self) -> str:
        """The kinds of `changes` as text; empty for a plain LoRA."""
        return changes.kinds(self.changes.values())


@dataclass(frozen=True)
class Concept:
    """A token with its vectors, LoRA, or both. Raises UserError where they could not work.

    token: owner and name; version is None until a library assigns one. vectors: float32 (n, dim), 1 to 64 rows, keyed
    `clip_l` and, for SDXL, `clip_g`. thumbnail: PNG, JPEG or WebP. The card repeats the token.
    """

    token: Token
    card: Card
    vectors: dict[str, np.ndarray] = field(default_factory=dict)
    lora: Lora | None = None
    thumbnail: bytes | None = None
    part_of: str = ""  # identity of the full concept if an export split this part off; "" for a full concept

    def __post_init__(self):
        check_token(self.token)
        if self.card.token != str(self.token):
            object.__setattr__(self, "card", with_token(self.card, self.token))
        if not self.vectors and self.lora is None:
            raise UserError(f"{self.token} holds neither vectors nor a LoRA.")
        if self.vectors:
            _check_vectors(self.vectors, self.card.base)
        if self.lora is not None:
            _check_lora(self.lora, self.card.base)
        if self.thumbnail is not None and not media_type(self.thumbnail):
            raise UserError("The thumbnail is not a PNG, JPEG or WebP of at most 250 kB.")

    @cached_property
    def identity(self) -> str:
        """sha256 of the file's bytes after its header, 64 hexadecimal digits; it does not depend on the token."""
        return storage.sha256(*tensor_bytes(self.tensors()))

    def tensors(self) -> dict[str, np.ndarray]:
        """Return every tensor under its name in the concept's file."""
        tensors = {self._vectors_name(key): vectors for key, vectors in self.vectors.items()}
        for name, layer in (self.lora.layers if self.lora else {}).items():
            tensors[f"{name}.lora_down.weight"] = layer.down
            tensors[f"{name}.lora_up.weight"] = layer.up
            tensors[f"{name}.alpha"] = np.array(layer.alpha, np.float32)
        for name, change in (self.lora.changes if self.lora else {}).items():
            tensors |= {f"{name}.{part}": value for part, value in change.items()}
        return tensors

    def _vectors_name(self, key: str) -> str:
        if self.lora is None:
            return key if self.card.base == "sdxl" else "emb_params"
        return f"bundle_emb.{self.token.slug}.{key if self.card.base == 'sdxl' else 'string_to_param.*'}"


def describe_contents(vectors: int, lora_rank: int, kinds: str = "") -> str:
    """Describe contents as text, e.g. `2 vectors + LoRA rank 4 + norms`; 0 and "" mean none. kinds: `Lora.kinds`."""
    texts = [f"{vectors} vector{'s' * (vectors > 1)}"] if vectors else []
    texts += [f"LoRA rank {lora_rank}"] if lora_rank else []
    return " + ".join(texts + ([kinds] if kinds else []))


# --- validation -------------------------------------------------------------------------------------------------------


def check_token(token: Token) -> None:
    """Raise UserError unless the token is valid for a concept: it has an owner, and `Token.parse` reads it the same."""
    if token.owner is None:
        raise UserError(f"{token} has no owner.", f"Write it like <me/{token.name}>.")
    if Token.parse(str(token)) != token or Token.parse(str(token.unversioned())) != token.unversioned():
        raise UserError(f"{token.unversioned()} ends like a version.", "Leave out the -v and the number.")


def _check_vectors(vectors: dict[str, np.ndarray], base: BaseKind) -> None:
    encoders = {"clip_l", "clip_g"} if base == "sdxl" else {"clip_l"}
    if vectors.keys() != encoders:
        raise UserError(f"A concept for {base} has vectors {sorted(encoders)}, not {printable(str(sorted(vectors)))}.")
    for key, array in vectors.items():
        width = EMBEDDING_WIDTHS.get(base, {}).get(key)
        if array.dtype != np.float32 or array.ndim != 2 or (width and array.shape[1] != width):
            expected = f"(n, {width or 'dim'}) float32"
            raise UserError(f"The vectors {key} for {base} must be {expected}, not {array.shape} {array.dtype}.")
        if not 1 <= len(array) <= MAX_VECTORS:
            raise UserError(f"A concept has 1 to {MAX_VECTORS} vectors, not {len(array)}.")
        if not (finite := np.isfinite(array).all(axis=1)).all():
            raise UserError(f"Row {finite.argmin()} of the vectors {key} holds numbers that are not finite.")
    if len({len(array) for array in vectors.values()}) > 1:
        raise UserError("The encoders' vectors differ in number.")


def _check_lora(lora: Lora, base: BaseKind) -> None:
    if not lora.layers and not lora.changes:
        raise UserError("The LoRA has no layers.")
    encoders = ("unet", "te1", "te2") if base == "sdxl" else ("unet", "te")
    for name in (*lora.layers, *lora.changes):
        match = LAYER_NAME.fullmatch(name)
        if not match or match[1] not in encoders or (name in lora.layers and name in lora.changes):
            raise UserError(f"{printable(name)} is not a LoRA layer of {base}.")
        plain = name in lora.layers
        problem = _layer_problem(lora.layers[name]) if plain else _change_problem(lora.changes[name])
        if problem:
            raise UserError(f"LoRA layer {printable(name)}: {problem}.")


def _change_problem(change: changes.Change) -> str | None:
    return "it is a plain LoRA" if changes.is_plain(change) else changes.find_problem(change)


def _layer_problem(layer: LoraLayer) -> str | None:
    down, up = layer.down, layer.up
    if not {down.dtype, up.dtype} <= {np.dtype(np.float32), np.dtype(np.float16)}:
        return f"weights must be float32 or float16, not {down.dtype} and {up.dtype}"
    same_kind = down.ndim == up.ndim and down.ndim in (2, 4)
    if not same_kind or up.shape[1] != down.shape[0] or up.shape[2:] not in ((), (1, 1)):
        return f"shapes {up.shape} and {down.shape} do not multiply"
    if 0 in down.shape or 0 in up.shape:
        return "it is empty"
    if not (np.isfinite(down).all() and np.isfinite(up).all()):
        return "it holds numbers that are not finite"
    if layer.alpha == 0 and not up.any():
        return None  # PEFT's inactive layer; zeros keep it inactive in programs that read alpha 0 as the rank
    if not (math.isfinite(layer.alpha) and 0 < layer.alpha <= changes.MAX_ALPHA_PER_RANK * layer.rank):
        return f"alpha {layer.alpha:g} with rank {layer.rank} is out of bounds"
    return None
