"""Convert any layer changes of a concept to a plain LoRA, for programs and commands that support nothing else.

Tucker LoCon, LoHa and LoKr with small factors equal a LoRA exactly; full changes and larger ones become the nearest
LoRA of a rank (Eckart and Young 1936), with the share kept. Changes that depend on a base's weights are refused.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UserError
from .concept import Concept, Lora, LoraLayer
from .importers.layer_shapes import Shape, layer_table
from .layer_changes import BIASES, Change, form, kind, needs_weight, rank_of, scale_of, weight_size

if TYPE_CHECKING:
    import torch

MAX_EXACT_RANK = 128  # the largest rank of a layer that is converted exactly
NEAREST_RANK = 64  # the rank of a layer that is approximated
_NATIVE_HINT = "Generate with it here, alone or in a mix, or export it with --format native."
_FULL_SVD_SIZE = 512  # up to this many rows or columns the SVD is computed in full


@dataclass(frozen=True)
class PlainLora:
    """A converted LoRA.

    energy_kept: its share of the squared Frobenius norm of all weights' changes; left_out: changes of biases and norms,
    which no LoRA can hold, were left out.
    """

    lora: Lora
    energy_kept: float = 1.0
    left_out: bool = False

    @property
    def note(self) -> str:
        """What the conversion lost, as a sentence; empty if nothing."""
        texts = [f"the LoRA holds {self.energy_kept:.1%} of the change"] if self.energy_kept < 0.9995 else []
        texts += ["changes of biases and norms are left out"] if self.left_out else []
        return f"{' and '.join(texts).capitalize().replace('lora', 'LoRA')}." if texts else ""


def is_possible(lora: Lora) -> bool:
    """Return whether it changes any weight matrix, so that a plain LoRA can hold some of it."""
    return bool(lora.layers) or any(_has_matrix(change) for change in lora.changes.values())


def needs_base(lora: Lora) -> bool:
    return any(needs_weight(change) for change in lora.changes.values())


def plain_lora(concept: Concept) -> PlainLora:
    """Convert a concept's LoRA, of any kind. Raises UserError if it has none or its changes need a base."""
    lora, token = concept.lora, concept.token
    if lora is None:
        raise UserError(f"{token} has no LoRA.", "Choose a concept with one: sdpersonal concepts list")
    if not lora.changes:
        return PlainLora(lora)
    if bound := next((change for change in lora.changes.values() if needs_weight(change)), None):
        raise UserError(
            f"{token} changes layers as {kind(bound)}, which depends on the base's own weights: it is no plain LoRA.",
            _NATIVE_HINT,
        )
    layers, energies = dict(lora.layers), np.zeros(2)
    for name, change in lora.changes.items():
        if _has_matrix(change):
            layers[name], energy = _layer(change, layer_table(concept.card.base).get(name))
            energies += energy
    if not layers:
        raise UserError(f"{token} changes only norms and biases: none of it is a LoRA.", _NATIVE_HINT)
    left_out = any(bool(change.keys() & BIASES) or not _has_matrix(change) for change in lora.changes.values())
    total = energies[1] + sum(_energy(layer) for layer in lora.layers.values())
    kept_energy = 1 - (energies[1] - energies[0]) / total if total else 1.0
    return PlainLora(Lora(layers), float(kept_energy), left_out)


def plain_concept(concept: Concept) -> tuple[Concept, str]:
    """Return the concept with a plain LoRA, and what the conversion lost as a sentence or "".

    Raises UserError if that is impossible without a base.
    """
    if concept.lora is None or not concept.lora.changes:
        return concept, ""
    plain = plain_lora(concept)
    return dataclasses.replace(concept, lora=plain.lora), plain.note


def _has_matrix(change: Change) -> bool:
    return form(change) not in ("norm", "bias") and weight_size(change)[1] != 1


def _layer(change: Change, known: Shape | None) -> tuple[LoraLayer, np.ndarray]:
    """Return the layer and (energy kept, energy before). known: the weight's shape; LoHa's and LoKr's may be flat."""
    weights = {key: value for key, value in change.items() if key not in BIASES}
    rows, width = weight_size(weights)
    shape = known if known and (known[0], math.prod(known[1:])) == (rows, width) else None
    if factors := as_lora(weights, MAX_EXACT_RANK, shape):
        layer = LoraLayer(*factors, float(len(factors[0])))
        return layer, np.full(2, _energy(layer))
    import torch

    from .weight_deltas import weight_change

    shape = shape or (weights["diff"].shape if "diff" in weights else (rows, width))
    full = weight_change(weights, torch.zeros(shape))
    if full is None:
        raise ValueError("A change of a bias alone is no layer of a LoRA.")
    return _nearest(full)


def _nearest(change: torch.Tensor) -> tuple[LoraLayer, np.ndarray]:
    import torch

    flat = change.flatten(1)
    rank = min(NEAREST_RANK, *flat.shape)
    if min(flat.shape) <= _FULL_SVD_SIZE:
        u, s, v = torch.linalg.svd(flat, full_matrices=False)
        u, s, v = u[:, :rank], s[:rank], v[:rank]
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # makes the output reproducible
            u, s, v = torch.svd_lowrank(flat, min(2 * rank, *flat.shape), niter=4)
        u, s, v = u[:, :rank], s[:rank], v[:, :rank].T
    half = s.sqrt()
    down = (half[:, None] * v).reshape(rank, *change.shape[1:])
    up = (u * half).reshape(-1, rank, *[1] * (change.ndim - 2))
    energy = np.array([float(s.square().sum()), float(flat.square().sum())])
    return LoraLayer(down.contiguous().numpy(), up.contiguous().numpy(), float(rank)), energy


def _energy(layer: LoraLayer) -> float:
    up = layer.up.reshape(len(layer.up), -1).astype(np.float64) * (layer.alpha / layer.rank)
    down = layer.down.reshape(layer.rank, -1).astype(np.float64)
    return float(((up.T @ up) * (down @ down.T)).sum())


# --- changes that equal a LoRA ----------------------------------------------------------------------------------------


def as_lora(
    change: Change, max_rank: int, shape: tuple[int, ...] | None = None
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return float32 (down, up) whose product is exactly the change, if a rank of `max_rank` suffices; else None.

    down (r, in[, k, k]), up (out, r[, 1, 1]), the scale in `up`. shape: the weight's, where the tensors may be flat.
    Nothing is approximated: Tucker's core goes into `down`, LoHa has rank r^2 by products of columns and of rows, and
    LoKr's factors are Kronecker products. DoRA and changes that depend on the weight or change a bias give None.
    """
    if not 0 < exact_rank(change) <= max_rank:
        return None
    build = {"LoRA": _tucker_factors, "LoHa": _loha_factors, "LoKr": _lokr_factors}[form(change)]
    down, up = build({key: value.astype(np.float32) for key, value in change.items()})
    kernel = shape[2:] if shape else down.shape[2:]
    down = down.reshape(len(down), -1, *kernel)
    up = (up * np.float32(scale_of(change))).reshape(len(up), -1, *(1 for _ in kernel))
    return np.ascontiguousarray(down), np.ascontiguousarray(up)


def exact_rank(change: Change) -> int:
    """Return the rank of the plain LoRA that equals it; 0 where none does, or usually only one of full rank."""
    name = form(change)
    if needs_weight(change) or change.keys() & BIASES:
        return 0
    if name == "LoRA":
        return rank_of(change)
    if name == "LoHa":
        axis = 0 if "hada_t1" in change else 1
        return change["hada_w1_a"].shape[axis] * change["hada_w2_a"].shape[axis]
    if name != "LoKr" or "lokr_w2_a" not in change:
        return 0
    first = change["lokr_w1_a"].shape[1] if "lokr_w1_a" in change else min(change["lokr_w1"].shape)
    return first * change["lokr_w2_a"].shape[0 if "lokr_t2" in change else 1]


_Factors = tuple[np.ndarray, np.ndarray]


def _tucker_factors(change: Change) -> _Factors:
    up, down = change["lora_up.weight"], change["lora_down.weight"]
    if "lora_mid.weight" in change:
        down = np.einsum("mnxy,ni->mixy", change["lora_mid.weight"], down.reshape(len(down), -1))
    return down, up.reshape(len(up), -1)


def _loha_factors(change: Change) -> _Factors:
    a1, a2 = change["hada_w1_a"], change["hada_w2_a"]
    b1, b2 = change["hada_w1_b"], change["hada_w2_b"]
    if "hada_t1" in change:
        a1, a2 = a1.T, a2.T
        b1 = np.einsum("ijxy,jc->icxy", change["hada_t1"], b1)
        b2 = np.einsum("ijxy,jc->icxy", change["hada_t2"], b2)
    rank = a1.shape[1] * a2.shape[1]
    up = (a1[:, :, None] * a2[:, None, :]).reshape(len(a1), rank)
    down = (b1[:, None] * b2[None, :]).reshape(rank, *b1.shape[1:])
    return down, up


def _lokr_factors(change: Change) -> _Factors:
    w2 = _lokr_second_factors(change)
    if "lokr_w1_a" in change:
        first = change["lokr_w1_a"], change["lokr_w1_b"]
    else:
        w1 = change["lokr_w1"]  # (a, b): the smaller side is the rank
        first = (np.eye(len(w1), dtype=np.float32), w1) if len(w1) <= w1.shape[1] else (w1, np.eye(w1.shape[1]))
    up = np.kron(first[0], w2[0])
    kernel = w2[1].shape[2:]
    down = np.kron(first[1].reshape(*first[1].shape, *(1 for _ in kernel)), w2[1])
    return down.astype(np.float32), up.astype(np.float32)


def _lokr_second_factors(change: Change) -> _Factors:
    """Return the second matrix of LoKr as (up (c, r), down (r, d[, k, k]))."""
    if "lokr_t2" in change:
        return change["lokr_w2_a"].T, np.einsum("ijxy,jd->idxy", change["lokr_t2"], change["lokr_w2_b"])
    return change["lokr_w2_a"], change["lokr_w2_b"]
