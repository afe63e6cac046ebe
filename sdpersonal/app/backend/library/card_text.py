"""Tell the facts on a concept's card in the page's words."""

from __future__ import annotations

import re

from ....concepts.card import BASE_TITLES, Card
from ....concepts.library import Entry
from ....display.units import format_bytes
from ....evaluation.concept_score import ConceptScores, explain_scores
from ..error_text import LABELS, name_fields

KINDS = {"object": "Object or animal", "person": "Person", "style": "Style"}
CONSENT = {"unknown": "Unknown", "yes": "Yes", "no": "No"}
METHODS = {
    "dreambooth-lora": "DreamBooth LoRA",
    "dreambooth-pivotal": "Pivotal tuning",
    "dreambooth-full": "DreamBooth of the whole model",
    "textual-inversion": "Textual inversion",
    "merged": "Merged from other concepts",
}
_SETTINGS = {  # of the card's recipe that people choose: the labels that the Train tab has
    "continue_from": "Continued from",
    "resolution": LABELS["resolution"],
    "lr": LABELS["lr"],
    "batch": "Photos in a step",
    "rank": LABELS["rank"],
    "prior": "Prior preservation",
    "targets": "Trained layers",
    "vectors": "Embeddings joined by",
    "longest_row": "Size of its largest embedding",
}
_VALUES = {
    ("prior", "none"): "none",
    ("prior", "predicted"): "predicted by the model",
    ("prior", "generated"): "generated class images",
    ("prior", "photos"): "class photos",
    ("targets", "attention"): "the attention layers",
    ("targets", "all"): "all layers",
}
_REPRODUCING = {
    "seed": "Seed",
    "base_sha256": "Model's fingerprint (SHA-256)",
    "prediction_type": "The model predicts",
}
_PREDICTIONS = {"epsilon": "the noise", "v_prediction": "the velocity (v)", "sample": "the image"}
_PART = re.compile(r"part_(\d+)")

Facts = list[tuple[str, str]]


def main_facts(entry: Entry) -> Facts:
    """Return (name, text) of what everybody wants to know of a concept, known ones only."""
    card = entry.card
    if card is None:
        return [("Damaged", str(entry.damaged)), ("Size", format_bytes(entry.size))]
    consent = "" if card.kind != "person" and card.consent == "unknown" else CONSENT[card.consent]
    consent += f": {card.consent_note}" if consent and card.consent_note else ""
    return _known(
        [
            ("What it is", f"{KINDS[card.kind]}: {card.class_noun}" if card.class_noun else KINDS[card.kind]),
            ("Made for", BASE_TITLES[card.base] + (f" ({card.base_name})" if card.base_name else "")),
            ("Holds", f"{entry.contents}, {format_bytes(entry.size)}"),
            ("Trigger words", ", ".join(card.trigger_words)),
            ("Created", _date(card.created)),
            ("Author", card.author),
            ("Licence", card.license),
            ("Consent", consent),
        ]
    )


def settings_facts(card: Card) -> Facts:
    """Return (name, text) of the settings that it was trained with."""
    facts = [
        ("Method", METHODS.get(card.method, card.method)),
        ("Steps", f"{card.steps:,}" if card.steps else ""),
        *((label, _value(key, card.recipe.get(key))) for key, label in _SETTINGS.items()),
    ]
    for key, value in card.recipe.items():
        if match := _PART.fullmatch(key):
            strength = card.recipe.get(f"strength_{match[1]}")
            facts.append((f"Part {match[1]}", f"{value}" + ("" if strength is None else f" at strength {strength}")))
    return _known(facts)


def reproducing_facts(entry: Entry) -> Facts:
    """Return (name, text) of what only somebody who repeats the training needs."""
    card = entry.card
    if card is None:
        return []
    shown = {*_SETTINGS, *_REPRODUCING} | {key for key in card.recipe if key.startswith(("part_", "strength_"))}
    return _known(
        [
            *((label, _value(key, card.recipe.get(key))) for key, label in _REPRODUCING.items()),
            *((_in_words(key), _value(key, value)) for key, value in card.recipe.items() if key not in shown),
            ("This file's fingerprint (SHA-256)", entry.identity or ""),
        ]
    )


def score_facts(card: Card) -> Facts:
    """Return (name, text) of the scores that it got at the end of its training."""
    scores = ConceptScores.from_dict(card.scores)
    if scores is None:
        return [(_in_words(name), f"{value:.2f}") for name, value in card.scores.items()]
    copied = ("Photos copied", f"{scores.copying:.0%}")
    if scores.out_of_domain:
        return [copied]
    return _known(
        [
            ("Likeness to the photos", f"{scores.likeness:.0%}"),
            *((f"… in {name}", f"{value:.0%}") for name, value in scores.aspects.items()),
            ("Prompts followed", f"{scores.fidelity:.0%}"),
            copied,
        ]
    )


def verdict(card: Card) -> list[str]:
    """Return sentences on the scores; [] without any."""
    scores = ConceptScores.from_dict(card.scores)
    sentences = explain_scores(scores, card.class_noun or "other thing", card.kind) if scores else []
    return [name_fields(sentence) for sentence in sentences]


def _known(facts: Facts) -> Facts:
    return [(name, text) for name, text in facts if text]


def _value(key: str, value: object) -> str:
    if value is None or value == "":
        return ""
    if key == "prediction_type":
        return _PREDICTIONS.get(str(value), str(value))
    if key == "resolution":
        return f"{value} x {value} pixels"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _VALUES.get((key, str(value)), f"{value:g}" if isinstance(value, float) else str(value))


def _in_words(key: str) -> str:
    return key.replace("_", " ").capitalize()


def _date(created: str) -> str:
    return f"{created[:16].replace('T', ' ')} UTC"
