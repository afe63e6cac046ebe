"""Merge several concepts into one: average or concatenate embeddings, concatenate LoRAs or truncate their rank.

A prompt that mixes `<me/a:0.6>` and `<me/b:0.4>` loads the sum of both changes into each layer. A merged LoRA is that
sum as one file: exactly, by rank concatenation (models/lora.py), or the nearest of a given rank (Eckart and Young
1936). In a prompt, a strength interpolates embeddings from those of the class noun, which needs the base; merging
scales them, which is the same without a class noun, at strength 1, and in an average of strengths that sum to 1. A
negative strength subtracts a LoRA's change, and moves an average of vectors beyond the other concepts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ..errors import UserError
from ..prompts import MAX_STRENGTH, Token
from .card import BASE_TITLES, Card, Consent, Scalar
from .compare import scaled_factors, thin_svd
from .concept import MAX_VECTORS, Concept, Lora, LoraLayer
from .plain_lora import plain_lora

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class MergeResult:
    """A merged concept and what the merge lost.

    vectors: how they were merged ("average", "concatenation", or "" without any). energy_kept: the share of the LoRA's
    energy (squared Frobenius norm over all layers) left after conversion to plain LoRA and truncation to `rank`; 1 if
    exact.
    left_out: changes of biases and norms were left out.
    """

    concept: Concept
    vectors: str
    energy_kept: float
    left_out: bool = False


def merge(
    parts: Sequence[tuple[Concept, float]], token: Token, rank: int | None = None, concatenate: bool = False
) -> MergeResult:
    """Merge `parts` at their strengths into a concept called `token`.

    Concepts with as many vectors as each other are averaged, weighted by strength. With `concatenate`, and where the
    numbers differ, the vectors are concatenated, each multiplied by its strength.
    rank: truncate each layer of the LoRA to this rank.
    Raises UserError for parts of different base kinds, fewer than two parts, too many vectors, strengths that give no
    usable average, and parts whose weight changes depend on their base.
    """
    _check_parts(parts)
    vectors, method = _merge_vectors(
        [(concept, strength) for concept, strength in parts if concept.vectors], concatenate
    )
    plain = [(plain_lora(concept), s) for concept, s in parts if concept.lora is not None]
    lora, share = _merge_loras([(part.lora, strength) for part, strength in plain], rank) if plain else (None, 1.0)
    share *= min((part.energy_kept for part, _ in plain), default=1.0)
    left_out = any(part.left_out for part, _ in plain)
    return MergeResult(
        Concept(token, _merge_cards(parts, token, rank, method), vectors, lora),
        method,
        share,
        left_out,
    )


def _check_parts(parts: Sequence[tuple[Concept, float]]) -> None:
    if len(parts) < 2:
        raise UserError("Merging needs at least two concepts.", "For example: <me/a:0.6> <me/b:0.4>")
    first = parts[0][0]
    for concept, strength in parts:
        if concept.card.base != first.card.base:
            raise UserError(
                f"{first.token} is made for {BASE_TITLES[first.card.base]}, {concept.token} for "
                f"{BASE_TITLES[concept.card.base]}.",
                "Merge concepts of one base.",
            )
        if strength == 0:
            raise UserError(f"{concept.token} has strength 0: nothing of it would be left.", "Leave it out.")


# --- vectors ----------------------------------------------------------------------------------------------------------


def _merge_vectors(parts: list[tuple[Concept, float]], concatenate: bool) -> tuple[dict[str, np.ndarray], str]:
    if not parts:
        return {}, ""
    widths = {key: {concept.vectors[key].shape[1] for concept, _ in parts} for key in parts[0][0].vectors}
    if any(len(width) > 1 for width in widths.values()):
        raise UserError("Their vectors differ in width: they are made for different text encoders.")
    counts = {len(array) for concept, _ in parts for array in concept.vectors.values()}
    if concatenate or len(counts) > 1:
        return _concatenate_vectors(parts), "concatenation"
    weights = np.array([strength for _, strength in parts], np.float64)
    if weights.sum() * MAX_STRENGTH < np.abs(weights).max():
        raise UserError(
            f"The strengths of the concepts that have vectors sum to {weights.sum():.3g}; that gives no average.",
            "Give the one to be kept more strength than those to be taken away: <me/a:1> <me/b:-0.5>.",
        )
    weights /= weights.sum()  # so that the vectors keep the norm of a word's embedding
    merged = {
        key: np.tensordot(weights, np.stack([concept.vectors[key] for concept, _ in parts]), 1).astype(np.float32)
        for key in widths
    }
    return merged, "average"


def _concatenate_vectors(parts: list[tuple[Concept, float]]) -> dict[str, np.ndarray]:
    if negative := next((concept for concept, strength in parts if strength < 0), None):
        raise UserError(
            f"The vectors of {negative.token} cannot be concatenated at a negative strength.",
            "Give it a positive one, or merge concepts with as many vectors, without --concatenate.",
        )
    total = sum(len(next(iter(concept.vectors.values()))) for concept, _ in parts)
    if total > MAX_VECTORS:
        raise UserError(f"Together they have {total} vectors; a concept has {MAX_VECTORS} at most.")
    return {
        key: np.concatenate([concept.vectors[key] * np.float32(strength) for concept, strength in parts])
        for key in parts[0][0].vectors
    }


# --- LoRAs ------------------------------------------------------------------------------------------------------------


def _merge_loras(parts: list[tuple[Lora, float]], rank: int | None) -> tuple[Lora, float]:
    """Return the merged LoRA and the share of energy that it keeps."""
    layers: dict[str, list[tuple[LoraLayer, float]]] = {}
    for lora, strength in parts:
        for name, layer in lora.layers.items():
            layers.setdefault(name, []).append((layer, strength))
    merged = {name: _concatenate_layers(name, parts_of_layer) for name, parts_of_layer in layers.items()}
    if rank is None:
        return Lora(merged), 1.0
    cut, energies = {}, np.zeros(2)
    for name, layer in merged.items():
        cut[name], energy = _truncate_layer(layer, rank)
        energies += energy
    return Lora(cut), float(energies[0] / energies[1]) if energies[1] else 1.0


def _concatenate_layers(name: str, parts: list[tuple[LoraLayer, float]]) -> LoraLayer:
    """Return A = [A_1; A_2], B = [s_1 alpha_1/r_1 B_1, ...], with alpha = rank so that the scale is 1."""
    shapes = {(layer.up.shape[0], layer.down.shape[1:]) for layer, _ in parts}
    if len(shapes) > 1:
        raise UserError(f"Their layers {name} differ in shape: they are made for different bases.")
    down = np.concatenate([layer.down.astype(np.float32) for layer, _ in parts])
    up = np.concatenate(
        [layer.up.astype(np.float32) * np.float32(s * layer.alpha / layer.rank) for layer, s in parts], axis=1
    )
    return LoraLayer(down, up, float(len(down)))


def _truncate_layer(layer: LoraLayer, rank: int) -> tuple[LoraLayer, tuple[float, float]]:
    """Return the nearest layer of at most `rank`, and (energy kept, energy before). Each factor gets sqrt(s)."""
    if layer.rank <= rank:
        energy = float((thin_svd(*scaled_factors(layer))[1] ** 2).sum())
        return layer, (energy, energy)
    left, values, right = thin_svd(*scaled_factors(layer))
    root = np.sqrt(values[:rank])
    up = (left[:, :rank] * root).astype(np.float32).reshape(len(left), rank, *layer.up.shape[2:])
    down = (root[:, None] * right[:rank]).astype(np.float32).reshape(rank, *layer.down.shape[1:])
    return LoraLayer(down, up, float(rank)), (float((values[:rank] ** 2).sum()), float((values**2).sum()))


# --- the card ---------------------------------------------------------------------------------------------------------


def _merge_cards(parts: Sequence[tuple[Concept, float]], token: Token, rank: int | None, vector_method: str) -> Card:
    """Build the merged card: fields on which the parts agree, and the parts themselves in the recipe."""
    cards = [concept.card for concept, _ in parts]
    names = " + ".join(f"{str(concept.token)[:-1]}:{strength:g}>" for concept, strength in parts)
    recipe: dict[str, Scalar] = {f"part_{i}": str(c.token) for i, (c, _) in enumerate(parts[:16], 1)}
    recipe |= {f"strength_{i}": float(strength) for i, (_, strength) in enumerate(parts[:16], 1)}
    return Card(
        token=str(token),
        title=f"{len(parts)} concepts merged",
        description=f"Merged of {names}"[:2000],
        kind=_common_value([card.kind for card in cards], "object"),
        class_noun=_common_value([card.class_noun for card in cards], ""),
        base=cards[0].base,
        base_name=_common_value([card.base_name for card in cards], ""),
        method="merged",
        license=_common_value([card.license for card in cards], ""),
        consent=_merge_consent(cards),
        author=_common_value([card.author for card in cards], ""),
        trigger_words=tuple(dict.fromkeys(word for card in cards for word in card.trigger_words))[:16],
        recipe=recipe | {"rank": rank, "vectors": vector_method},
    )


def _common_value(values: list[_Value], default: _Value) -> _Value:
    return values[0] if len(set(values)) == 1 else default


def _merge_consent(cards: Sequence[Card]) -> Consent:
    """Return the weakest consent of the parts that show a person, the others need none; "unknown" without any."""
    consents = [card.consent for card in cards if card.kind == "person"]
    if "no" in consents:
        return "no"
    return "yes" if consents and "unknown" not in consents else "unknown"
