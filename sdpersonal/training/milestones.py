"""A run from milestone to milestone: at each the concept is examined, and where there is no more to learn it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from .control import Command
from .distributed import broadcast_decision
from .early_stopping import can_converge, dvar
from .loop import LoopConfig, NullLog, TrainState, fit
from .presets import Preset
from .progress_log import ProgressLog
from .validation import Validation, Validator, is_improving


@dataclass(frozen=True)
class Milestones:
    """spacing: steps between milestones; early_stop: whether the run may end at one of them; pivot: the step before
    which the fixed batch's losses are another curve."""

    spacing: int
    early_stop: bool
    pivot: int = 0

    def milestones(self, steps: int) -> list[int]:
        return [*range(self.spacing, steps, self.spacing), steps]


def plan_milestones(chosen: Preset, examined: bool, early_stop: bool) -> Milestones:
    """Without anything to do at a milestone there is one, at the end. A run too short to be measured settles never."""
    early_stop = early_stop and can_converge(chosen.steps, chosen.measure_every)
    spacing = max(1, -(-chosen.steps // chosen.milestones)) if examined or early_stop else chosen.steps
    return Milestones(spacing, early_stop, chosen.pivot)


@dataclass(frozen=True)
class RunEnd:
    """The step at which a run ended, and why, in words."""

    step: int
    reason: str = ""


def run_milestones(
    lesson: TrainState,
    plan: LoopConfig,
    course: Milestones,
    journal: ProgressLog | NullLog,
    exam: Validator | None,
    say: Callable[[str], None],
) -> RunEnd:
    """Learn from `plan.start` to where it ends. Raises as `learn` does.

    exam: in the first process only, which decides for all.
    """
    at, wish, marks = plan.start, Command.NOTHING, course.milestones(plan.steps)
    while True:
        if exam and (wish or at in marks):
            with lesson.average.applied(), lesson.room.at("drawing sample pictures", "Add --no-samples."):
                exam.run(lesson.method, at, asked=bool(wish))
        if wish is Command.KEEP:
            say(f"Ended after step {at} of {plan.steps}, as asked.")
            return RunEnd(at, "as asked")
        if at in marks and course.early_stop:
            seen = dvar(journal.fixed_batch_losses, course.pivot)
            settled = (
                bool(seen) and seen[-1].converged and not (exam and is_improving(_at_milestones(exam.held, marks)))
            )
            if at < plan.steps and broadcast_decision(lesson.accelerator, settled):
                say(f"There is no more to learn: ended after step {at} of {plan.steps} (--no-early-stop goes on).")
                return RunEnd(at, "since there was no more to learn")
        if at >= plan.steps:
            return RunEnd(at)
        until = next(mark for mark in marks if mark > at)
        at, wish = fit(lesson, replace(plan, start=at, stop_step=until, best=exam.best_step if exam else None), journal)


def _at_milestones(trials: Sequence[Validation], marks: Sequence[int]) -> list[Validation]:
    """Without those that somebody asked for: whether a run goes on must not depend on who looks at it."""
    return [trial for trial in trials if trial.step in marks]
