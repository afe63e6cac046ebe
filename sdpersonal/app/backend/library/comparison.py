"""Compare two concepts, and find conflicts between several in one prompt."""

from __future__ import annotations

from typing import Any

from ....concepts.compare import PARALLEL_COSINE, UNRELATED_COSINE, Similarity, advise, compare
from ....concepts.library import Entry, Library
from ....errors import UserError
from .card_text import main_facts, score_facts, settings_facts
from .concept_details import parse_token
from .thumbnails import thumb_url

MAX_CONCEPTS = 4  # concepts in one check


def compare_concepts(library: Library, first: object, second: object) -> dict[str, Any]:
    """Compare two concepts, or two versions of one.

    Returns {tokens, images: of both; rows: [[fact, first's value, second's]]; sentences: how similar their weights
    are}. Raises UserError.
    """
    a, b = (_find_undamaged(library, token) for token in (first, second))
    if a.token == b.token:
        raise UserError("Both are the same concept.", "Choose two different ones.")
    first_facts, second_facts = _all_facts(a), _all_facts(b)
    rows = [
        (name, first_facts.get(name, ""), second_facts.get(name, ""))
        for name in dict.fromkeys([*first_facts, *second_facts])
    ]
    return {
        "tokens": (str(a.token), str(b.token)),
        "images": (thumb_url(a, "large"), thumb_url(b, "large")),
        "rows": rows,
        "sentences": _similarity_sentences(library, a, b),
    }


def check_conflicts(library: Library, tokens: object) -> list[str]:
    """Describe how these concepts are mixed in one prompt, their conflicts, and strengths to try. Raises UserError."""
    if not isinstance(tokens, list | tuple) or not 2 <= len(tokens) <= MAX_CONCEPTS:
        raise UserError(f"Choose 2 to {MAX_CONCEPTS} concepts.")
    # Headers are checked first: a damaged concept is reported before any weights are read.
    entries = [_find_undamaged(library, token) for token in tokens]
    pairs = advise([library.get(entry.token) for entry in entries])
    sentences = [pair.text for pair in pairs]
    if not any(pair.conflict for pair in pairs):
        sentences.append("No conflicts: they can be used in one prompt.")
    return sentences


def _all_facts(entry: Entry) -> dict[str, str]:
    card = entry.card
    return dict([*main_facts(entry), *(settings_facts(card) + score_facts(card) if card else ())])


def _find_undamaged(library: Library, token_text: object) -> Entry:
    entry = library.find(parse_token(token_text))
    if entry.card is None:
        raise UserError(f"{entry.token} is damaged: {entry.damaged}")
    return entry


def _similarity_sentences(library: Library, a: Entry, b: Entry) -> list[str]:
    if a.card and b.card and a.card.base != b.card.base:
        return ["They are made for different kinds of models, so their weights cannot be compared."]
    if a.identity == b.identity:
        return ["Their embeddings and weights are identical."]
    return _format_similarity(compare(library.get(a.token), library.get(b.token)))


def _format_similarity(similarity: Similarity) -> list[str]:
    sentences = []
    if similarity.vectors is not None:
        relation = "similar" if similarity.vectors > PARALLEL_COSINE else "not similar"
        sentences.append(
            f"Their embeddings are {relation}: cosine {similarity.vectors:.2f} (1 is the same, 0 is unrelated)."
        )
    if similarity.lora is not None:
        relation = "overlap" if similarity.lora > UNRELATED_COSINE else "differ"
        sentences.append(
            f"Their LoRAs {relation}: cosine {similarity.lora:.2f}, "
            f"{similarity.overlap:.0%} of their directions shared."
        )
    return sentences or ["One has only embeddings, the other only a LoRA: there is nothing to compare."]
