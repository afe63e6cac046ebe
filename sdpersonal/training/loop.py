"""Run the training loop, for every method and any number of processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..errors import DiskFull, Interrupted
from .checkpoint import save_checkpoint
from .control import NO_REQUEST, StopRequest, StopSignals, poll
from .distributed import average_gradients
from .early_stopping import fixed_batch_loss
from .loss_inputs import prefetch
from .run_dir import latest_step
from .step_result import StepResult
from .train_state import LoopConfig, LoopHooks, TrainState

_REPEAT_WINDOW = 1.0  # seconds; a launcher passes on a Ctrl-C that the terminal has sent already


def fit(state: TrainState, config: LoopConfig, hooks: LoopHooks) -> StopRequest:
    """Train to the next milestone, or until a command arrives, which is returned; save a checkpoint there.

    The numbers of a step are read after the next one has started, so that reading them does not hold it up.

    Raises: Diverged at the first loss or gradient that is not finite, Interrupted (with a checkpoint) on Ctrl-C or
    SIGTERM, DiskFull naming the last checkpoint, UserError when out of memory.
    """
    accelerator, method, optimizer = state.accelerator, state.method, state.optimizer
    parameters, end = method.trainable_parameters().values(), config.next_milestone(state.step)
    pending: deque[StepResult] = deque()
    inputs_of_steps = prefetch(partial(state.load_inputs, config), range(state.step, end), accelerator.device)
    with (
        _name_checkpoint_if_disk_full(config.run),
        _stop_signals(state) as signals,
        closing(inputs_of_steps),
    ):
        for step in range(state.step, end):
            request = poll(config.run) if accelerator.is_main_process else NO_REQUEST
            with state.oom_advice.translate(f"at step {step + 1}"):
                inputs = next(inputs_of_steps)
                learning_rates = _set_learning_rates(optimizer, method.learning_rates(step), config.lr_factor(step))
                losses = [state.gradients.add(batch, step, 1 / config.accumulate) for batch in inputs]
                average_gradients(accelerator, parameters)
                grad_norm = state.gradients.apply(optimizer)
                state.ema.update(step)
                measured = _measure_fixed_batch(state, config)
                request |= StopRequest(signals.signal_number)
                pending.append(StepResult.of(accelerator, step, learning_rates, losses, grad_norm, measured, request))
            state.step = step + 1
            # Several processes must stop at the same step: where all of them read the result with the request.
            request = request if accelerator.num_processes == 1 else NO_REQUEST
            saving = state.step % config.save_every == 0 or state.step == end
            while len(pending) > (0 if saving or request else 1):
                request |= pending.popleft().record(state, config, hooks)
            if saving or request:
                _save(state, config, hooks, request)
            if request.signal and state.step < config.steps:
                raise _interrupted_error(state.step, config.steps, request.signal)
            if request:
                return request
    return NO_REQUEST


def _set_learning_rates(optimizer: torch.optim.Optimizer, learning_rates: list[float], factor: float) -> list[float]:
    for group, rate in zip(optimizer.param_groups, learning_rates, strict=True):
        group["lr"] = rate * factor
    return [rate * factor for rate in learning_rates]


def _measure_fixed_batch(state: TrainState, config: LoopConfig) -> Tensor | None:
    """Measure the fixed batch's loss after a step, a scalar on the device; None if it is not due."""
    if not config.fixed_batch or (state.step + 1) % config.measure_every:
        return None
    with state.ema.applied():
        return fixed_batch_loss(state.gradients.loss, config.fixed_batch, state.step)


def _save(state: TrainState, config: LoopConfig, hooks: LoopHooks, request: StopRequest) -> None:
    if not state.accelerator.is_main_process:
        return
    if hooks.log:
        hooks.log.flush()
    best_step = hooks.validator.best_step if hooks.validator else None
    save_checkpoint(config.run, state.step, state.checkpoint_state(), config.identity, request.step or best_step)


def _stop_signals(state: TrainState) -> AbstractContextManager[StopSignals]:
    if state.signals:
        return nullcontext(state.signals)
    accelerator = state.accelerator
    window = 0.0 if accelerator.num_processes == 1 else _REPEAT_WINDOW
    return StopSignals(window, verbose=accelerator.is_main_process)


def _interrupted_error(step: int, steps: int, signal: int) -> Interrupted:
    error = Interrupted(f"Stopped after step {step} of {steps}; it is saved.", "Add --resume to go on.")
    error.exit_code = 128 + signal  # the shell's convention: 130 for Ctrl-C, 143 for SIGTERM
    return error


@contextmanager
def _name_checkpoint_if_disk_full(run: Path) -> Iterator[None]:
    """Name in DiskFull the newest checkpoint, from which the run can be resumed."""
    try:
        yield
    except DiskFull as error:
        step = latest_step(run)
        fix = (
            f"Free some space; --resume then goes on from step {step}." if step else "Free some space and start again."
        )
        raise DiskFull(error.message, fix) from error
