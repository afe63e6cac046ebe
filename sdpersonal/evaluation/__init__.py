"""How good a concept is, in numbers: the judges, the acceptance test, its words."""

from .concept_score import Acceptance, Scores
from .explain import in_figures, verdict
from .scorers import Judge, judge_for

__all__ = ["Acceptance", "Judge", "Scores", "in_figures", "judge_for", "verdict"]
