"""Copy the numbers of a training step to the CPU while the next step runs, then check and log them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import Diverged
from .control import NO_REQUEST, Command, StopRequest
from .distributed import Accelerator, all_gather
from .presets import lower_rate
from .run_dir import latest_step
from .train_state import LoopConfig, LoopHooks, TrainState

_REQUEST_NUMBERS = 3  # of a StopRequest; a step up to 2**24 is exact in fp32
ABSURD_LOSS = 100.0  # targets have variance 1: a prediction this far off is none


@dataclass(frozen=True)
class StepResult:
    """The numbers of a step in W processes, on the CPU; the copies may still be running."""

    step: int
    learning_rates: list[float]  # of each parameter group
    per_process: Tensor  # (W, accumulate + 3): losses, then signal, command and step of its StopRequest
    grad_norm: Tensor  # ()
    fixed_batch_loss: Tensor | None  # (), where it was measured
    copied: torch.cuda.Event | None

    @classmethod
    def of(
        cls,
        accelerator: Accelerator,
        step: int,
        learning_rates: list[float],
        losses: Sequence[Tensor],
        grad_norm: Tensor,
        fixed_batch_loss: Tensor | None,
        request: StopRequest,
    ) -> StepResult:
        """Gather the losses and requests of all processes, and begin to copy all numbers to the CPU at once."""
        numbers = losses[0].new_zeros(_REQUEST_NUMBERS)
        if request:  # filled: a copy from the CPU would wait for the device
            numbers[0], numbers[1], numbers[2] = request.signal, int(request.command), request.step
        gathered = all_gather(accelerator, torch.stack([*losses, *numbers]))
        measured = [] if fixed_batch_loss is None else [fixed_batch_loss]
        shared = torch.stack([grad_norm, *measured]).detach()
        flat = torch.cat([gathered.flatten(), shared]).to("cpu", non_blocking=True)
        per_process, (norm, *fixed) = flat[: -len(shared)].view(gathered.shape), flat[-len(shared) :]
        event = _record_event() if grad_norm.is_cuda else None
        return cls(step, learning_rates, per_process, norm, fixed[0] if fixed else None, event)

    def record(self, state: TrainState, config: LoopConfig, hooks: LoopHooks) -> StopRequest:
        """Log the numbers; return the request of all processes: a signal that any of them got, else the command.

        Raises Diverged if a loss or the gradient is not finite.
        """
        if self.copied:
            self.copied.synchronize()
        self._check_finite(state, config)
        if hooks.log:
            losses = self.per_process[:, :-_REQUEST_NUMBERS].flatten().tolist()
            fixed_batch_loss = None if self.fixed_batch_loss is None else float(self.fixed_batch_loss)
            hooks.log.step(self.step + 1, math.fsum(losses) / len(losses), self.learning_rates, fixed_batch_loss)
        signal, command, step = map(int, self.per_process[:, -_REQUEST_NUMBERS:].amax(0).tolist())
        return NO_REQUEST | StopRequest(signal, Command(command), step)

    def _check_finite(self, state: TrainState, config: LoopConfig) -> None:
        rows = self.per_process[:, :-_REQUEST_NUMBERS].tolist()
        losses = {(rank, part): loss for rank, row in enumerate(rows) for part, loss in enumerate(row)}
        bad = [key for key, loss in losses.items() if not (math.isfinite(loss) and loss < ABSURD_LOSS)]
        grad_norm = float(self.grad_norm)
        if not bad and math.isfinite(grad_norm):
            return
        names = [
            name
            for rank, part in bad or losses
            for name in state.photos.batch(
                config.sample_indices(self.step, part, rank, state.accelerator.num_processes)
            ).photos
        ]
        what, value = ("loss", losses[bad[0]]) if bad else ("gradient", grad_norm)
        raise _diverged_error(what, value, self.step, names, config)


def _record_event() -> torch.cuda.Event:
    event = torch.cuda.Event()
    event.record()
    return event


def _diverged_error(what: str, value: float, step: int, photos: Sequence[str], config: LoopConfig) -> Diverged:
    shown = "NaN" if math.isnan(value) else "infinite" if math.isinf(value) else f"{value:.3g}"
    names = list(dict.fromkeys(photos))
    where = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    last_checkpoint = latest_step(config.run)
    after = f"Nothing after step {last_checkpoint} was kept" if last_checkpoint else "Nothing was kept"
    return Diverged(
        f"The {what} became {shown} at step {step + 1} ({where}; --lr {config.lr:g}). {after}. No concept was made.",
        f"Try --lr {lower_rate(config.lr, config.usual_lr):g}, with another --run.",
    )
