"""Record in our exports which concept they were made from, so that an import gives the same concept.

The header has `sdpersonal.origin`, JSON: `card`; `part`, the identity of what the file (SDXL: both files) holds, by
which a file that was changed since is recognised; `whole`, the identity of the concept that had this part. Files in
our own layout say the same with `sdpersonal.card` and `sdpersonal.whole`; those for OneTrainer have `sdpersonal.ranks`.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ...errors import UserError
from ...prompts import Token
from ..card import Card, parse_card
from ..concept import Concept, LoraLayer
from ..modelspec import from_data_url
from ..strict_safetensors import parse_strict_json
from ..thumbnail import reencode_thumbnail

ORIGIN = "sdpersonal.origin"
RANKS = "sdpersonal.ranks"  # the rank and alpha of layers before they were padded to one rank


@dataclass(frozen=True)
class Origin:
    """A file's claim. identity: of what the file holds; part_of: that of the full concept, "" where it is all of it."""

    card: Card
    identity: str
    part_of: str

    @property
    def token(self) -> Token:
        return Token.parse(self.card.token)


def origin_json(part: Concept) -> str:
    """Return the claim of a file that holds `part`, as JSON."""
    card = part.card.model_copy(update={"token": str(part.token.unversioned())})
    claim = {"card": card.model_dump(mode="json"), "part": part.identity, "whole": part.part_of}
    return json.dumps(claim, sort_keys=True, separators=(",", ":"))


def read_origin(facts: Mapping[str, object], name: str) -> Origin | None:
    """Return the claim in a header, not yet verified; None where none can be read."""
    text = facts.get(ORIGIN)
    if not isinstance(text, str):
        return None
    try:
        claim = parse_strict_json(text)
        if not isinstance(claim, dict):
            return None
        card = parse_card(json.dumps(claim["card"]), name)
        origin_claim = Origin(card, str(claim["part"]), str(claim["whole"]))
        valid_hashes = all(
            re.fullmatch(r"([0-9a-f]{64})?", text) for text in (origin_claim.identity, origin_claim.part_of)
        )
        return origin_claim if valid_hashes and origin_claim.token.owner else None
    except (ValueError, TypeError, KeyError, UserError):
        return None


def with_origin(
    read: Callable[[Token | None], Concept], facts: Mapping[str, object], name: str, token: Token | None
) -> Concept:
    """Call `read` for a file with a token; add the card and thumbnail of its header's claim where that holds.

    Raises UserError as `read` does.
    """
    claim = read_origin(facts, name)
    if claim is None:
        return read(token)
    concept = read(token or claim.token)
    if concept.identity != claim.identity or concept.card.base != claim.card.base:  # the file was changed since
        return read(token)
    part_of = claim.part_of if claim.part_of != claim.identity else ""
    return dataclasses.replace(concept, card=claim.card, thumbnail=_picture(facts), part_of=part_of)


def restore_ranks(concept: Concept, notes: Mapping[str, str]) -> Concept:
    """Restore the ranks that our LoRA had before an export for OneTrainer padded its layers with zeros."""
    try:
        ranks = parse_strict_json(notes.get(RANKS, "{}"))
    except ValueError:
        return concept
    if concept.lora is None or not isinstance(ranks, dict) or not ranks:
        return concept
    layers = {name: _cut_to_rank(layer, ranks.get(name)) for name, layer in concept.lora.layers.items()}
    return dataclasses.replace(concept, lora=dataclasses.replace(concept.lora, layers=layers))


def _cut_to_rank(layer: LoraLayer, was: object) -> LoraLayer:
    """Cut the layer to the noted [rank, alpha] where what is cut off is zero; else return it unchanged."""
    match was:
        case [int(rank), float(alpha)] if 0 < rank < layer.rank and not layer.down[rank:].any():
            return LoraLayer(layer.down[:rank].copy(), layer.up[:, :rank].copy(), alpha)
    return layer


def _picture(facts: Mapping[str, object]) -> bytes | None:
    text = facts.get("modelspec.thumbnail")
    try:
        return reencode_thumbnail(from_data_url(text)) if isinstance(text, str) else None
    except (ValueError, UserError):
        return None
