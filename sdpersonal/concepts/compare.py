"""Compare two concepts by their weights alone: embeddings by cosine, LoRAs by the change they make to each layer.

A layer's change is D = up @ down * alpha / r. It is never multiplied out: inner products and singular vectors come from
the factors, in r x r matrices. Everything is computed in numpy, float64.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..errors import UserError
from .card import BASE_TITLES
from .concept import Concept, Lora, LoraLayer
from .plain_lora import is_possible, needs_base, plain_lora

# Thresholds measured on concepts of the built-in base (docs/performance.md, "The library"): two trainings of one
# subject lie above, of different subjects below; vectors that started from the same class noun lie above as well.
PARALLEL_COSINE = 0.3  # cosine of vectors: 0.31 to 0.91 above, up to 0.27 below
# Cosine of LoRAs: 0.08 to 0.21 above, up to 0.03 below. Chance gives 0, while overlap grows with rank.
UNRELATED_COSINE = 0.05
PLAIN_MIXING = "without composition, or from an init image"


@dataclass(frozen=True)
class Similarity:
    """The similarity of two concepts; a value is None where one of them lacks the part.

    encoders: the cosine of their embeddings by text encoder; vectors: the mean of those. lora: the cosine of all
    layers' changes as one long vector; layers: the same for each layer. overlap: how far the LoRAs act in the same
    directions, 0 to 1. note: why existing LoRAs were not compared.
    """

    vectors: float | None
    encoders: dict[str, float]
    lora: float | None
    layers: dict[str, float]
    overlap: float | None
    note: str = ""


Mixing = Literal["composed", "guided", "plain"]
"""How two concepts in one prompt are generated: subjects apart, a style with guidance of its own, or as one."""


@dataclass(frozen=True)
class Conflict:
    """Why two concepts may disturb each other in one prompt, and strengths to try. is_fatal: they cannot be mixed.

    mixing: how they are generated; with "composed" they disturb each other only where they are mixed plainly.
    """

    concepts: tuple[str, str]
    kind: str  # base, same, subject, vectors, lora
    message: str
    is_fatal: bool = False
    strengths: tuple[float, float] | None = None
    mixing: Mixing = "plain"

    def as_json(self) -> dict[str, object]:
        """Return the conflict as JSON. Other programs read these keys, so they must not change."""
        return {
            "concepts": self.concepts,
            "kind": self.kind,
            "problem": self.message,
            "hard": self.is_fatal,
            "strengths": self.strengths,
            "mixing": self.mixing,
        }


@dataclass(frozen=True)
class PairAdvice:
    """What generation does by itself with two concepts in one prompt, and what they need beyond that."""

    concepts: tuple[str, str]
    does: str  # a sentence; "" where they cannot be mixed
    conflict: Conflict | None

    @property
    def text(self) -> str:
        """Describe it in a few sentences."""
        sentences = [self.does]
        if conflict := self.conflict:
            sentences.append(conflict.message)
            if conflict.strengths:
                pairs = zip(self.concepts, conflict.strengths, strict=True)
                tokens = " ".join(f"{token[:-1]}:{strength:g}>" for token, strength in pairs)
                sentences.append(f"{'Then try' if conflict.mixing == 'composed' else 'Try'} {tokens}")
        return f"{self.concepts[0]} and {self.concepts[1]}: {' '.join(filter(None, sentences))}"


def compare(a: Concept, b: Concept) -> Similarity:
    """Compare embeddings and LoRAs. Raises UserError where base kinds or embedding widths differ."""
    if a.card.base != b.card.base:
        raise UserError(
            f"{a.token} is made for {BASE_TITLES[a.card.base]}, {b.token} for {BASE_TITLES[b.card.base]}: "
            "concepts for different bases cannot be compared."
        )
    encoders = {key: embedding_cosine(a.vectors[key], b.vectors[key]) for key in a.vectors.keys() & b.vectors.keys()}
    vectors = float(np.mean(list(encoders.values()))) if encoders else None
    if a.lora is None or b.lora is None:
        return Similarity(vectors, encoders, None, {}, None)
    for token, lora in ((a.token, a.lora), (b.token, b.lora)):
        if needs_base(lora) or not is_possible(lora):
            note = f"{token} changes layers as {lora.kinds}, which cannot be compared without a base."
            return Similarity(vectors, encoders, None, {}, None, note)
    lora_a, lora_b = (plain_lora(concept).lora for concept in (a, b))
    return Similarity(vectors, encoders, *lora_cosines(lora_a, lora_b), lora_overlap(lora_a, lora_b))


def find_conflicts(concepts: Sequence[Concept]) -> list[Conflict]:
    """Return the worst conflict of each pair of concepts named in one prompt, from their cards and weights."""
    return [pair.conflict for pair in advise(concepts) if pair.conflict]


def advise(concepts: Sequence[Concept]) -> list[PairAdvice]:
    """Return what generation does with each pair of concepts named in one prompt, and their worst conflict."""
    return [
        PairAdvice((str(a.token), str(b.token)), _describe_mixing(a, b), _find_conflict(a, b))
        for a, b in itertools.combinations(concepts, 2)
    ]


def _describe_mixing(a: Concept, b: Concept) -> str:
    mixing = _mixing_of(a, b)
    if mixing == "plain":
        return ""
    if mixing == "composed":
        return "Each is generated apart, in a place of its own, and then joined."
    if a.card.kind == b.card.kind:
        return "Beside a subject each style has guidance of its own; if both are too much, add :guidance=1 to each."
    return "The style has guidance of its own, so that the subject does not outweigh it."


def _mixing_of(a: Concept, b: Concept) -> Mixing:
    if a.card.base != b.card.base or a.identity == b.identity:
        return "plain"
    return "guided" if "style" in (a.card.kind, b.card.kind) else "composed"


def _find_conflict(a: Concept, b: Concept) -> Conflict | None:
    names = str(a.token), str(b.token)
    if a.card.base != b.card.base:
        fact = f"{names[0]} is made for {BASE_TITLES[a.card.base]}, {names[1]} for {BASE_TITLES[b.card.base]}"
        return Conflict(names, "base", f"{fact}: no base can generate both.", is_fatal=True)
    if a.identity == b.identity:
        return Conflict(names, "same", "They are the same concept under two names.", strengths=(1.0, 0.0))
    mixing, pair = _mixing_of(a, b), compare(a, b)
    where = f"; {PLAIN_MIXING}," if mixing == "composed" else ";"
    if pair.lora is not None and pair.lora > UNRELATED_COSINE:
        fact = (
            f"Their LoRAs partly make the same change (cosine {pair.lora:.2f}, {pair.overlap:.0%} of directions shared)"
        )
        strengths = _balanced_strengths(a, b, pair.lora)
        return Conflict(
            names, "lora", f"{fact}{where} together they make too much of it.", strengths=strengths, mixing=mixing
        )
    if pair.vectors is not None and pair.vectors > PARALLEL_COSINE:
        message = f"Their vectors are nearly parallel (cosine {pair.vectors:.2f}){where} the text encoder hardly tells "
        return Conflict(names, "vectors", f"{message}them apart.", strengths=(1.0, 0.7), mixing=mixing)
    noun = a.card.class_noun.casefold()
    if noun and noun == b.card.class_noun.casefold() and mixing == "composed":
        message = f"Both are a {a.card.class_noun}{where} they may blend into one."
        return Conflict(names, "subject", message, strengths=(0.8, 0.8), mixing=mixing)
    return None


def _balanced_strengths(a: Concept, b: Concept, cosine: float) -> tuple[float, float]:
    """Return strengths for two changes with this cosine.

    Equal ones at which they sum to the size of one, 1 / sqrt(2 + 2 cos); a subject beside a style stays whole, since
    its own prediction has only its LoRA.
    """
    strength = round(1 / math.sqrt(2 + 2 * cosine), 1)
    is_style = [concept.card.kind == "style" for concept in (a, b)]
    first, second = (strength if style or not any(is_style) else 1.0 for style in is_style)
    return first, second


# --- vectors ----------------------------------------------------------------------------------------------------------


def embedding_cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Return the mean cosine of (n, d) and (m, d): by row if n = m, else each row of the smaller with its best match.

    Raises UserError where the widths differ.
    """
    if a.shape[1] != b.shape[1]:
        raise UserError(f"Vectors of widths {a.shape[1]} and {b.shape[1]} cannot be compared.")
    table = _normalize(a) @ _normalize(b).T
    if len(a) == len(b):
        return float(np.diag(table).mean())
    return float((table if len(a) < len(b) else table.T).max(axis=1).mean())


def _normalize(vectors: np.ndarray) -> np.ndarray:
    vectors = vectors.astype(np.float64)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)


# --- LoRAs ------------------------------------------------------------------------------------------------------------


def scaled_factors(layer: LoraLayer) -> tuple[np.ndarray, np.ndarray]:
    """Return float64 matrices up (out, r) and down (r, in * k * k), the scale alpha / r in `up`."""
    rank = layer.rank
    up = layer.up.reshape(len(layer.up), rank).astype(np.float64) * (layer.alpha / rank)
    return up, layer.down.reshape(rank, -1).astype(np.float64)


def inner_product(a: LoraLayer, b: LoraLayer) -> float:
    """Return the Frobenius inner product of two changes: tr(A^T B) = sum((up_a^T up_b) * (down_a down_b^T))."""
    (up_a, down_a), (up_b, down_b) = scaled_factors(a), scaled_factors(b)
    if up_a.shape[0] != up_b.shape[0] or down_a.shape[1] != down_b.shape[1]:
        return 0.0  # layers of the same name in models of different architecture
    return float(((up_a.T @ up_b) * (down_a @ down_b.T)).sum())


def lora_cosines(a: Lora, b: Lora) -> tuple[float, dict[str, float]]:
    """Return the cosine of all changes as one vector, and of each layer that both LoRAs change."""
    norms_a, norms_b = ({name: inner_product(layer, layer) for name, layer in lora.layers.items()} for lora in (a, b))
    shared = {name: inner_product(a.layers[name], b.layers[name]) for name in a.layers if name in b.layers}
    total_norm = math.sqrt(sum(norms_a.values()) * sum(norms_b.values()))
    cosines = {
        name: value / scale if (scale := math.sqrt(norms_a[name] * norms_b[name])) > 0 else 0.0
        for name, value in shared.items()
    }
    return (sum(shared.values()) / total_norm if total_norm > 0 else 0.0), cosines


def lora_overlap(a: Lora, b: Lora) -> float:
    """Return how far two LoRAs act in the same directions, 0 to 1, ignoring signs; layers are weighted by their change.

    With singular values s_i, t_j and the cosines c_ij of the principal directions of a layer's two changes, weighted by
    their energies p_i = s_i^2 / sum s^2: sum_ij p_i q_j c_ij^2 / sqrt(sum p^2 sum q^2), once for the inputs and
    once for the outputs; the layer's overlap is the geometric mean of the two.
    """
    total = weights = 0.0
    energies = [{name: inner_product(layer, layer) for name, layer in lora.layers.items()} for lora in (a, b)]
    scales = [math.sqrt(sum(energy.values())) or 1.0 for energy in energies]
    for name in a.layers.keys() | b.layers.keys():
        first, second = (
            math.sqrt(max(energy.get(name, 0.0), 0.0)) / scale for energy, scale in zip(energies, scales, strict=True)
        )
        weights += max(first, second) ** 2
        if first and second:
            total += first * second * _layer_overlap(a.layers[name], b.layers[name])
    return total / weights if weights else 0.0


def _layer_overlap(a: LoraLayer, b: LoraLayer) -> float:
    """Compute a layer's overlap from Gram matrices alone.

    sum_ij p_i q_j c_ij^2 is |A B^T|^2 for the inputs and |A^T B|^2 for the outputs, over |A|^2 |B|^2, and the squared
    norm of a product of factors needs only their inner products, r x r.
    """
    (up_a, down_a), (up_b, down_b) = scaled_factors(a), scaled_factors(b)
    if len(up_a) != len(up_b) or down_a.shape[1] != down_b.shape[1]:
        return 0.0
    ups = up_a.T @ up_a, up_a.T @ up_b, up_b.T @ up_b
    downs = down_a @ down_a.T, down_a @ down_b.T, down_b @ down_b.T
    return math.sqrt(_gram_cosine(ups, downs) * _gram_cosine(downs, ups))


_Grams = tuple[np.ndarray, np.ndarray, np.ndarray]  # of a with a, a with b, b with b


def _gram_cosine(weights: _Grams, directions: _Grams) -> float:
    """Return tr(W_a C W_b C^T), divided by the root of the same for a with a and b with b; C holds inner products."""
    (w_a, _, w_b), (c_a, c, c_b) = weights, directions
    both = np.vdot(w_a @ c, c @ w_b)
    size = math.sqrt(np.vdot(w_a @ c_a, c_a @ w_a) * np.vdot(w_b @ c_b, c_b @ w_b))
    return float(both / size) if size > 0 else 0.0


def thin_svd(up: np.ndarray, down: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the SVD (out, r), (r,), (r, in) of up @ down, by QR of both: r^3 instead of out * in * min(out, in)."""
    left, r_left = np.linalg.qr(up)
    right, r_right = np.linalg.qr(down.T)
    u, values, v = np.linalg.svd(r_left @ r_right.T)
    rank = len(values)
    return left @ u[:, :rank], values, v[:rank] @ right.T
