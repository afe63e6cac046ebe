"""Explain a concept's scores in words, with advice."""

from __future__ import annotations

from .concept_score import ConceptScores

NO_EFFECT = 0.15  # likeness: 0 is the class noun's images, 1 the photos
SOME_LIKENESS = 0.5  # likeness
MANY_COPIES = 0.5  # share of the images
LOW_FIDELITY = 0.6  # fidelity


def explain_scores(scores: ConceptScores, class_noun: str) -> list[str]:
    """Explain the scores in a few sentences, the most serious first."""
    messages = []
    if scores.copying >= MANY_COPIES:
        messages.append(
            f"It only copies a photo: {scores.copying:.0%} of the pictures are one of the photos over again. "
            "More photos, in other places, with captions, or fewer --steps."
        )
    elif scores.fidelity < LOW_FIDELITY:
        messages.append(
            "The photos' surroundings came along: the place that a prompt asks for is often not drawn. "
            "Captions beside the photos help, and a strength below 1 in the prompt, as in <me/it:0.7>."
        )
    if scores.likeness < NO_EFFECT:
        messages.append(
            f"Training had no effect: the pictures are no more like the photos than any {class_noun}. "
            "Give more --steps, or a larger --lr, or --method lora."
        )
    elif scores.likeness < SOME_LIKENESS:
        messages.append("It is somewhat like the photos. More --steps, more vectors or --method lora bring it nearer.")
    elif not messages:
        messages.append("It is like the photos, and the places that prompts ask for are drawn.")
    return messages


def format_scores(scores: ConceptScores) -> str:
    """Format the main scores in one line, with their scales."""
    return (
        f"score {scores.score:.2f}: likeness {scores.likeness:.2f} (0 the class noun's, 1 the photos' own), "
        f"prompts followed {scores.fidelity:.0%}, copied {scores.copying:.0%}"
    )
