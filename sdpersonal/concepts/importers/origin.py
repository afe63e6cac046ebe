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
from ...storage.reading import parse_strict_json
from ..card import Card, parse_card
from ..concept import Concept, LoraLayer
from ..modelspec import from_data_url
from ..thumbnail import reencode_thumbnail

ORIGIN = "sdpersonal.origin"
RANKS = "sdpersonal.ranks"  # the rank and alpha of layers before they were padded to one rank


@dataclass(frozen=True)
class Origin:
    """What a file's header states about its concept.

    identity: of what the file holds; part_of: that of the full concept, "" where the file holds all of it.
    """

    card: Card
    identity: str
    part_of: str

    @property
    def token(self) -> Token:
        return Token.parse(self.card.token)


def origin_json(part: Concept) -> str:
    """Return the `Origin` of a file that holds `part`, as JSON for its header."""
    card = part.card.model_copy(update={"token": str(part.token.unversioned())})
    fields = {"card": card.model_dump(mode="json"), "part": part.identity, "whole": part.part_of}
    return json.dumps(fields, sort_keys=True, separators=(",", ":"))


def read_origin(facts: Mapping[str, object], name: str) -> Origin | None:
    """Return the origin that a header states, not yet verified; None where it states none."""
    text = facts.get(ORIGIN)
    if not isinstance(text, str):
        return None
    try:
        fields = parse_strict_json(text)
        if not isinstance(fields, dict):
            return None
        card = parse_card(json.dumps(fields["card"]), name)
        origin = Origin(card, str(fields["part"]), str(fields["whole"]))
        valid_hashes = all(re.fullmatch(r"([0-9a-f]{64})?", text) for text in (origin.identity, origin.part_of))
        return origin if valid_hashes and origin.token.owner else None
    except (ValueError, TypeError, KeyError, UserError):
        return None


def with_origin(
    read: Callable[[Token | None], Concept], facts: Mapping[str, object], name: str, token: Token | None
) -> Concept:
    """Call `read` for a file with a token; add the card and thumbnail of the origin in its header, if that is true.

    Raises UserError as `read` does.
    """
    origin = read_origin(facts, name)
    if origin is None:
        return read(token)
    concept = read(token or origin.token)
    if concept.identity != origin.identity or concept.card.base != origin.card.base:  # the file was changed since
        return read(token)
    part_of = origin.part_of if origin.part_of != origin.identity else ""
    return dataclasses.replace(concept, card=origin.card, thumbnail=_read_thumbnail(facts), part_of=part_of)


def restore_ranks(concept: Concept, metadata: Mapping[str, str]) -> Concept:
    """Restore the ranks that our LoRA had before an export for OneTrainer padded its layers with zeros."""
    try:
        ranks = parse_strict_json(metadata.get(RANKS, "{}"))
    except ValueError:
        return concept
    if concept.lora is None or not isinstance(ranks, dict) or not ranks:
        return concept
    layers = {name: _cut_to_rank(layer, ranks.get(name)) for name, layer in concept.lora.layers.items()}
    return dataclasses.replace(concept, lora=dataclasses.replace(concept.lora, layers=layers))


def _cut_to_rank(layer: LoraLayer, noted: object) -> LoraLayer:
    """Cut the layer to the noted [rank, alpha] where what is cut off is zero; else return it unchanged."""
    match noted:
        case [int(rank), float(alpha)] if 0 < rank < layer.rank and not layer.down[rank:].any():
            return LoraLayer(layer.down[:rank].copy(), layer.up[:, :rank].copy(), alpha)
    return layer


def _read_thumbnail(facts: Mapping[str, object]) -> bytes | None:
    text = facts.get("modelspec.thumbnail")
    try:
        return reencode_thumbnail(from_data_url(text)) if isinstance(text, str) else None
    except (ValueError, UserError):
        return None
