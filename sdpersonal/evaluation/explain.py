"""What the figures of an acceptance test mean, in words, and what to do about it."""

from __future__ import annotations

from .concept_score import ConceptScores

NO_EFFECT = 0.15  # of the way from the class noun to the photos
SOME_LIKENESS = 0.5
MANY_COPIES = 0.5  # of the pictures
LOW_FIDELITY = 0.6  # fidelity


def explain_scores(scores: ConceptScores, class_noun: str) -> list[str]:
    """One to three sentences, the gravest first."""
    said = []
    if scores.copying >= MANY_COPIES:
        said.append(
            f"It only copies a photo: {scores.copying:.0%} of the pictures are one of the photos over again. "
            "More photos, in other places, with captions, or fewer --steps."
        )
    elif scores.fidelity < LOW_FIDELITY:
        said.append(
            "The photos' surroundings came along: the place that a prompt asks for is often not drawn. "
            "Captions beside the photos help, and a strength below 1 in the prompt, as in <me/it:0.7>."
        )
    if scores.likeness < NO_EFFECT:
        said.append(
            f"Training had no effect: the pictures are no more like the photos than any {class_noun}. "
            "Give more --steps, or a larger --lr, or --method lora."
        )
    elif scores.likeness < SOME_LIKENESS:
        said.append("It is somewhat like the photos. More --steps, more vectors or --method lora bring it nearer.")
    elif not said:
        said.append("It is like the photos, and the places that prompts ask for are drawn.")
    return said


def format_scores(scores: ConceptScores) -> str:
    """One line: every figure, with what it is out of."""
    return (
        f"score {scores.score:.2f}: likeness {scores.likeness:.2f} (0 the class noun's, 1 the photos' own), "
        f"prompts followed {scores.fidelity:.0%}, copied {scores.copying:.0%}"
    )
