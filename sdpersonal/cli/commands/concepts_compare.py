"""Run the commands that compare and combine concepts: diff, check, merge."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import tyro
from pydantic import Field

from ...concepts.card import Card
from ...concepts.library import Entry, Library
from ...config import TokenText, WholeNumber
from ...errors import UserError, printable
from ...prompts import ConceptRef, Mention, Token, parse
from ..terminal import print_json, say
from .concepts_list import ListArgs

if TYPE_CHECKING:
    from ...concepts.compare import Similarity


class DiffArgs(ListArgs):
    """Show how two concepts differ: settings, scores, and the cosine of their embeddings and weights."""

    first: Annotated[TokenText, tyro.conf.Positional, tyro.conf.arg(metavar="FIRST")]
    """For example '<me/duck-v1>'."""
    second: Annotated[TokenText, tyro.conf.Positional, tyro.conf.arg(metavar="SECOND")]
    """For example '<me/duck-v2>'."""
    layers: bool = False
    """Also show the cosine of every LoRA layer."""


class ConflictArgs(ListArgs):
    """Show how these concepts are mixed in one prompt, what can go wrong, and the strengths to try."""

    tokens: Annotated[tuple[str, ...], Field(min_length=2), tyro.conf.Positional, tyro.conf.arg(metavar="TOKENS")]
    """For example '<me/duck>' '<me/ink>'."""


class MergeArgs(ListArgs):
    """Merge several concepts into one."""

    parts: Annotated[tuple[str, ...], Field(min_length=2), tyro.conf.Positional, tyro.conf.arg(metavar="PARTS")]
    """Concepts with their strengths, for example '<me/duck:0.6>' '<me/ink:0.4>'."""
    as_: Annotated[TokenText, tyro.conf.arg(name="as")]
    """Token of the merged concept, for example '<me/inky-duck>'."""
    rank: Annotated[int, WholeNumber, Field(ge=1, le=1024)] | None = None
    """Reduce the LoRA to this rank. Default: the sum of the parts' ranks, which keeps all of it."""
    concatenate: bool = False
    """Concatenate the embedding vectors, as in a prompt, instead of averaging those of the same number."""


def diff_concepts(settings: DiffArgs) -> int:
    from ...concepts.compare import compare

    library = Library(settings.library)
    tokens = [Token.parse(word) for word in (settings.first, settings.second)]
    entries = [library.find(token) for token in tokens]
    cards = [_undamaged_card(entry) for entry in entries]
    facts = _differences(*entries)
    similarities = None
    if cards[0].base == cards[1].base:
        similarities = compare(*(library.get(entry.token) for entry in entries))
    if settings.json_:
        print_json(
            {
                "concepts": [str(e.token) for e in entries],
                "different": facts,
                "alike": similarities and dataclasses.asdict(similarities),
            }
        )
        return 0
    width = max((len(name) for name in facts), default=0)
    lines = [
        f"{name:{width}}  {_shorten(value)} | {_shorten(other_value)}" for name, (value, other_value) in facts.items()
    ]
    say("\n".join([f"{entries[0].token} | {entries[1].token}", *(lines or ["Their cards are the same."])]))
    if similarities is None:
        say("They are for different models, so their weights cannot be compared.")
    else:
        say(
            "\n".join(
                _similarity_lines(similarities, settings.layers) or ["One has only embeddings, the other only a LoRA."]
            )
        )
    return 0


def check_concepts(settings: ConflictArgs) -> int:
    from ...concepts.compare import advise

    library = Library(settings.library)
    # Headers first: concepts that no model can use together are reported before anything large is read.
    entries = [library.find(_parse_mention(word).token) for word in settings.tokens]
    for entry in entries:
        _undamaged_card(entry)
    pairs = advise([library.get(entry.token) for entry in entries])
    if settings.json_:
        print_json([pair.conflict.as_json() for pair in pairs if pair.conflict])
        return 0
    for pair in pairs:
        say(pair.text)
    if not any(pair.conflict for pair in pairs):
        say("No conflict: they can be used in one prompt.")
    return 0


def merge_concepts(settings: MergeArgs) -> int:
    from ...concepts.merge import merge

    library, as_ = Library(settings.library), Token.parse(settings.as_)
    mentions = [_parse_mention(word) for word in settings.parts]
    parts = [(library.get(mention.token), mention.strength) for mention in mentions]
    merged = merge(parts, as_, settings.rank, settings.concatenate)
    token = library.add(merged.concept)
    lora = merged.concept.lora
    licences = sorted({concept.card.license for concept, _ in parts})
    facts: dict[str, object] = {
        "merged": [str(token)],
        "vectors": merged.vectors,
        "lora_rank": lora.rank if lora else 0,
        "kept": round(merged.energy_kept, 6),
        "left_out": merged.left_out,
        "licences": licences,
    }
    if settings.json_:
        print_json(facts)
        return 0
    lines = [f"merged: {token}"]
    lines += [f"Vectors: {merged.vectors} of {len(parts)}."] if merged.vectors else []
    lines += [f"LoRA: rank {lora.rank}, {merged.energy_kept:.1%} of the parts' combined change."] if lora else []
    lines += ["Their changes of biases and norms are left out: a LoRA cannot hold them."] if merged.left_out else []
    if len(licences) > 1:
        lines.append("Their licences differ: set its own with sdpersonal concepts edit --licence.")
    say("\n".join(lines))
    return 0


def _parse_mention(word: str) -> Mention:
    prompt = parse(_add_brackets(word))
    if len(prompt.mentions) != 1:
        raise UserError(f"{printable(word)} is not one concept's token.", "For example '<me/duck:0.6>'.")
    mention = Mention(prompt.mentions[0].token, prompt.mentions[0].strength)
    if prompt.pieces != (ConceptRef((mention,)),):
        raise UserError(
            f"{printable(word)} is not one concept's token with a strength alone.", "For example '<me/duck:0.6>'."
        )
    return mention


def _add_brackets(word: str) -> str:
    return word if word.startswith("<") else f"<{word}>"


def _undamaged_card(entry: Entry) -> Card:
    if entry.damaged or entry.card is None:
        raise UserError(f"{entry.token} is damaged: {entry.damaged}", "See: sdpersonal concepts verify")
    return entry.card


def _differences(a: Entry, b: Entry) -> dict[str, tuple[object, object]]:
    """Return the facts of the cards and shapes that differ; recipe and scores by their own names."""
    facts, other_facts = (
        {
            key: value
            for key, value in e.as_json().items()
            if key not in ("token", "path", "damaged", "recipe", "scores")
        }
        | {f"{group}.{key}": value for group in ("recipe", "scores") for key, value in getattr(e.card, group).items()}
        for e in (a, b)
    )
    return {
        key: (facts.get(key), other_facts.get(key))
        for key in sorted(facts.keys() | other_facts.keys())
        if facts.get(key) != other_facts.get(key)
    }


def _similarity_lines(alike: Similarity, layers: bool) -> list[str]:
    lines = [f"cosine of the vectors: {alike.vectors:.3f}"] if alike.vectors is not None else []
    if alike.lora is not None:
        lines += [f"cosine of the LoRAs: {alike.lora:.3f}", f"their directions overlap: {alike.overlap:.0%}"]
        lines += [f"  {cosine:6.3f}  {name}" for name, cosine in sorted(alike.layers.items())] if layers else []
    return lines + ([alike.note] if alike.note else [])


def _shorten(value: object) -> str:
    return "-" if value in (None, "", [], ()) else printable(str(value), 60)


COMMANDS = {
    "concepts diff": (diff_concepts, DiffArgs),
    "concepts check": (check_concepts, ConflictArgs),
    "concepts merge": (merge_concepts, MergeArgs),
}
