"""How good a concept is, in numbers: the judges, the acceptance test, its words."""

from .acceptance import Acceptance, Scores
from .judges import Judge, judge_for
from .verdict import in_figures, verdict

__all__ = ["Acceptance", "Judge", "Scores", "in_figures", "judge_for", "verdict"]
