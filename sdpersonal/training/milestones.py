"""Run the loop from milestone to milestone: each validates the concept and ends the run if it has converged."""

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
    """The milestones of a run. spacing: steps between them; early_stop: whether the run may end at one of them; pivot:
    the step up to which the fixed batch's losses belong to another curve."""

    interval: int
    early_stop: bool
    pivot: int = 0

    def steps(self, steps: int) -> list[int]:
        return [*range(self.interval, steps, self.interval), steps]


def plan_milestones(chosen: Preset, examined: bool, early_stop: bool) -> Milestones:
    """Place the milestones: only one, at the end, without validation and early stopping. Short runs cannot converge."""
    early_stop = early_stop and can_converge(chosen.steps, chosen.measure_every)
    spacing = max(1, -(-chosen.steps // chosen.milestones)) if examined or early_stop else chosen.steps
    return Milestones(spacing, early_stop, chosen.pivot_steps)


@dataclass(frozen=True)
class RunEnd:
    """The step at which a run ended, and the reason in words."""

    step: int
    reason: str = ""


def run_milestones(
    state: TrainState,
    config: LoopConfig,
    course: Milestones,
    log: ProgressLog | NullLog,
    validator: Validator | None,
    say: Callable[[str], None],
) -> RunEnd:
    """Train from `plan.start` to the run's end. Raises as `fit` does.

    exam: only in the main process, which decides for all.
    """
    step, command, milestones = config.start, Command.NOTHING, course.steps(config.steps)
    while True:
        if validator and (command or step in milestones):
            with state.ema.applied(), state.oom_advice.translate("drawing sample pictures", "Add --no-samples."):
                validator.run(state.method, step, on_request=bool(command))
        if command is Command.KEEP:
            say(f"Ended after step {step} of {config.steps}, as asked.")
            return RunEnd(step, "as asked")
        if step in milestones and course.early_stop:
            points = dvar(log.fixed_batch_losses, course.pivot)
            converged = (
                bool(points)
                and points[-1].converged
                and not (validator and is_improving(_at_milestones(validator.validations, milestones)))
            )
            if step < config.steps and broadcast_decision(state.accelerator, converged):
                say(f"There is no more to learn: ended after step {step} of {config.steps} (--no-early-stop goes on).")
                return RunEnd(step, "since there was no more to learn")
        if step >= config.steps:
            return RunEnd(step)
        next_milestone = next(milestone for milestone in milestones if milestone > step)
        step, command = fit(
            state,
            replace(config, start=step, stop_step=next_milestone, best_step=validator.best_step if validator else None),
            log,
        )


def _at_milestones(validations: Sequence[Validation], marks: Sequence[int]) -> list[Validation]:
    """Leave out validations that a user asked for: looking at a run must not change when it ends."""
    return [validation for validation in validations if validation.step in marks]
