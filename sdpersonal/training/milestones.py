"""Run the loop from milestone to milestone: each validates the concept and ends the run if it has converged."""

from __future__ import annotations

from dataclasses import dataclass

from .control import NO_REQUEST, Command
from .distributed import broadcast_decision
from .early_stopping import dvar
from .loop import fit
from .run_dir import CONVERGED_LINE, KEPT_LINE
from .train_state import LoopConfig, LoopHooks, TrainState
from .validation import is_improving


@dataclass(frozen=True)
class RunEnd:
    """The step at which a run ended, and the reason in words; "" after the last step. chosen_step: the one whose state
    a user chose for the concept, 0 for the best."""

    step: int
    reason: str = ""
    chosen_step: int = 0


def milestone_steps(steps: int, count: int) -> tuple[int, ...]:
    """Place `count` milestones or fewer, evenly spaced; the last step is one."""
    interval = max(1, -(-steps // count))
    return (*range(interval, steps, interval), steps)


def run_milestones(state: TrainState, config: LoopConfig, hooks: LoopHooks) -> RunEnd:
    """Train from `state.step` to the run's end. Raises as `fit` does."""
    request = NO_REQUEST
    while True:
        step, at_milestone = state.step, config.is_milestone(state.step)
        if hooks.validator and (request or at_milestone) and not request.step:
            with state.ema.applied(), state.oom_advice.translate("while generating samples", "Add --no-samples."):
                hooks.validator.run(state.method, step, on_request=bool(request))
        if request.command is Command.KEEP:
            hooks.say(f"{KEPT_LINE} {step} of {config.steps}, as requested.")
            return RunEnd(step, "as requested", request.step)
        if step >= config.steps:
            return RunEnd(step)
        # The main process decides for all: only it has the losses of the fixed batch and the scores.
        if at_milestone and config.early_stop and broadcast_decision(state.accelerator, _converged(config, hooks)):
            hooks.say(f"{CONVERGED_LINE} {step} of {config.steps} (--no-early-stop runs all of them).")
            return RunEnd(step, "since the loss had converged")
        request = fit(state, config, hooks)


def _converged(config: LoopConfig, hooks: LoopHooks) -> bool:
    points = dvar(hooks.log.fixed_batch_losses, config.pivot_steps) if hooks.log else []
    # Validations that a user requested do not count: looking at a run must not change when it ends.
    validations = [
        validation
        for validation in (hooks.validator.validations if hooks.validator else [])
        if config.is_milestone(validation.step)
    ]
    return bool(points) and points[-1].converged and not is_improving(validations)
