"""Evaluate a concept: the scorers, the concept's scores, and their explanation in words."""

from .concept_score import ConceptEvaluation, ConceptScores, explain_scores, format_scores
from .scorers import Scorer, likeness_by_region, scorer_for_base

__all__ = [
    "ConceptEvaluation",
    "ConceptScores",
    "Scorer",
    "explain_scores",
    "format_scores",
    "likeness_by_region",
    "scorer_for_base",
]
