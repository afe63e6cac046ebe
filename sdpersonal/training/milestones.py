"""A run from milestone to milestone: at each the concept is examined, and where there is no more to learn it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from .control import Wish
from .distributed import agreed
from .early_stopping import can_settle, evidence
from .loop import Lesson, Plan, Silent, learn
from .presets import Preset
from .progress_log import Journal
from .validation import Exam, Trial, wants_more


@dataclass(frozen=True)
class Course:
    """spacing: steps between milestones; early_stop: whether the run may end at one of them; pivot: the step before
    which the fixed batch's losses are another curve."""

    spacing: int
    early_stop: bool
    pivot: int = 0

    def milestones(self, steps: int) -> list[int]:
        return [*range(self.spacing, steps, self.spacing), steps]


def course_of(chosen: Preset, examined: bool, early_stop: bool) -> Course:
    """Without anything to do at a milestone there is one, at the end. A run too short to be measured settles never."""
    early_stop = early_stop and can_settle(chosen.steps, chosen.measure_every)
    spacing = max(1, -(-chosen.steps // chosen.milestones)) if examined or early_stop else chosen.steps
    return Course(spacing, early_stop, chosen.pivot)


@dataclass(frozen=True)
class End:
    """The step at which a run ended, and why, in words."""

    step: int
    why: str = ""


def follow(
    lesson: Lesson, plan: Plan, course: Course, journal: Journal | Silent, exam: Exam | None, say: Callable[[str], None]
) -> End:
    """Learn from `plan.start` to where it ends. Raises as `learn` does.

    exam: in the first process only, which decides for all.
    """
    at, wish, marks = plan.start, Wish.NOTHING, course.milestones(plan.steps)
    while True:
        if exam and (wish or at in marks):
            with lesson.average.put_in(), lesson.room.at("drawing sample pictures", "Add --no-samples."):
                exam.hold(lesson.method, at, asked=bool(wish))
        if wish is Wish.KEEP:
            say(f"Ended after step {at} of {plan.steps}, as asked.")
            return End(at, "as asked")
        if at in marks and course.early_stop:
            seen = evidence(journal.measured, course.pivot)
            settled = bool(seen) and seen[-1].settled and not (exam and wants_more(_at(exam.held, marks)))
            if at < plan.steps and agreed(lesson.accelerator, settled):
                say(f"There is no more to learn: ended after step {at} of {plan.steps} (--no-early-stop goes on).")
                return End(at, "since there was no more to learn")
        if at >= plan.steps:
            return End(at)
        until = next(mark for mark in marks if mark > at)
        at, wish = learn(lesson, replace(plan, start=at, until=until, best=exam.best_step if exam else None), journal)


def _at(trials: Sequence[Trial], marks: Sequence[int]) -> list[Trial]:
    """Without those that somebody asked for: whether a run goes on must not depend on who looks at it."""
    return [trial for trial in trials if trial.step in marks]
