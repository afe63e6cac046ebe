"""The training loop, for every method and any number of processes."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..errors import DiskFull, Diverged, Interrupted
from .checkpoint import CheckpointState, latest_step, save_checkpoint
from .control import Command, poll
from .dataset import Batch, PhotoDataset
from .early_stopping import fixed_batch_loss
from .ema import EMA, NoEMA
from .methods.protocol import Method
from .oom_advice import OomAdvice
from .presets import lower_rate
from .progress_log import ProgressLog
from .signals import StopSignals

MAX_GRAD_NORM = 1.0
ABSURD_LOSS = 100.0  # targets have variance 1: a prediction this far off is none
_BUCKET_SIZE = 1 << 24  # numbers in one message between processes, 64 MB
_REPEAT_WINDOW = 1.0  # seconds; a launcher passes on the Ctrl-C that the terminal has sent already


@dataclass(frozen=True)
class TrainState:
    """Who learns, from what, with what, and in which room."""

    accelerator: Accelerator
    method: Method
    photos: PhotoDataset
    optimizer: torch.optim.Optimizer
    room: OomAdvice
    average: EMA | NoEMA = field(default_factory=NoEMA)

    def checkpoint_state(self) -> CheckpointState:
        """What a checkpoint keeps of it."""
        return CheckpointState(self.method.trainable_parameters(), self.optimizer, self.average.values)


@dataclass(frozen=True)
class LoopConfig:
    """How a method is taught, up to a milestone. A step learns from batch * accumulate * processes photos."""

    run: Path
    start: int
    steps: int
    batch: int  # photos at once in each process
    accumulate: int  # batches of each process in a step
    save_every: int
    lr: float  # as --lr gives it, for messages
    lr_factor: Callable[[int], float]  # what the method's rates are multiplied with at a step
    identity: dict[str, object]  # what must be equal for a run to go on
    stop_step: int | None = None  # the milestone; by default the last step
    fixed_batch: Batch | None = None  # the fixed batch that is measured in the first process
    measure_every: int = 1  # steps
    usual_lr: float = math.inf  # the preset's, which is proposed where --lr was far too high
    best: int | None = None  # step whose checkpoint is kept however old it is


def fit(lesson: TrainState, plan: LoopConfig, journal: ProgressLog | NullLog) -> tuple[int, Command]:
    """Train from step `plan.start` to `plan.until`, or until something is asked; and keep a checkpoint there. Returns
    the step that was reached, and what was asked.

    The device is never waited for at a step's end: its numbers are looked at when the next one is under way, and always
    before a checkpoint. Raises Diverged at the first loss or gradient that is not finite, Interrupted (with a
    checkpoint) on Ctrl-C or SIGTERM, DiskFull naming the last checkpoint, UserError when out of memory.
    """
    accelerator, method, photos, optimizer = lesson.accelerator, lesson.method, lesson.photos, lesson.optimizer
    trained, until = method.trainable_parameters(), plan.stop_step or plan.steps
    alone, main = accelerator.num_processes == 1, accelerator.is_main_process
    unread: deque[_StepResult] = deque()
    done, stopping = plan.start, 0
    with _name_checkpoint_if_disk_full(plan.run), StopSignals(0.0 if alone else _REPEAT_WINDOW, speak=main) as stop:
        for step in range(plan.start, until):
            wish = poll(plan.run) if main else Command.NOTHING
            with lesson.room.at(f"at step {step + 1}"):
                rates = _set_rates(optimizer, method.learning_rates(step), plan.lr_factor(step))
                losses = _backward(accelerator, method, photos, plan, step)
                shares = _reduce_gradients(accelerator, losses, trained.values(), stop.asked or wish)
                norm = nn.utils.clip_grad_norm_(trained.values(), MAX_GRAD_NORM)
                optimizer.step()
                optimizer.zero_grad()
                lesson.average.update(step)
                measured = _measure_if_due(lesson, plan, step) if main else []
                unread.append(_StepResult.of(step, torch.cat([norm.view(1), shares.flatten(), *measured]), rates))
            done, stopping = step + 1, (stop.asked or wish) if alone else 0
            saving = done % plan.save_every == 0 or done == until
            while len(unread) > (0 if saving or stopping else 1):
                # Of several processes all must stop at one step: where they have heard of it from each other.
                stopping = _record_step(unread.popleft(), accelerator, photos, plan, journal) or stopping
            if main and (saving or stopping):
                journal.keep()
                save_checkpoint(plan.run, done, lesson.checkpoint_state(), plan.identity, plan.best)
            if stopping > 0 and done < plan.steps:
                raise _interrupted_error(done, plan.steps, stopping)
            if stopping:
                break
    return done, Command(min(stopping, 0))


@dataclass(frozen=True)
class _StepResult:
    """What a step gave: [gradient's norm, then for each process its A losses and the signal it got, the wish it heard
    or 0, then the fixed batch's loss if it was measured]."""

    step: int
    numbers: Tensor  # on the CPU, or on its way there
    copy_event: torch.cuda.Event | None
    learning_rates: list[float]

    @classmethod
    def of(cls, step: int, numbers: Tensor, rates: list[float]) -> _StepResult:
        here = numbers.detach().to("cpu", non_blocking=True)
        event = None
        if numbers.is_cuda:
            event = torch.cuda.Event()
            event.record()
        return cls(step, here, event, rates)

    def read(self) -> tuple[float, list[list[float]]]:
        if self.copy_event:
            self.copy_event.synchronize()
        norm, *rest = self.numbers.tolist()
        return norm, rest


def _measure_if_due(lesson: TrainState, plan: LoopConfig, step: int) -> list[Tensor]:
    """The fixed batch's loss after a step, (1,), where it is due."""
    if plan.fixed_batch is None or (step + 1) % plan.measure_every:
        return []
    with lesson.average.applied():
        return [fixed_batch_loss(lesson.method, plan.fixed_batch, step, plan.batch).view(1)]


def _set_rates(optimizer: torch.optim.Optimizer, rates: list[float], factor: float) -> list[float]:
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate * factor
    return [rate * factor for rate in rates]


def sample_indices(step: int, part: int, rank: int, processes: int, plan: LoopConfig) -> range:
    """The numbers of the samples in batch `part` of a step's, in process `rank`: counted over the whole run, so that
    the step sees the same photos however it is cut into batches and shared out."""
    first = ((step * plan.accumulate + part) * processes + rank) * plan.batch
    return range(first, first + plan.batch)


def _backward(accelerator: Accelerator, method: Method, photos: PhotoDataset, plan: LoopConfig, step: int) -> Tensor:
    """Leaves the mean gradient of this process's batches; returns their losses, (A,)."""
    losses = []
    for part in range(plan.accumulate):
        mine = sample_indices(step, part, accelerator.process_index, accelerator.num_processes, plan)
        loss = method.loss(photos.samples(mine), step).mean()
        accelerator.backward(loss / plan.accumulate)
        losses.append(loss.detach())
    return torch.stack(losses)


def _reduce_gradients(accelerator: Accelerator, losses: Tensor, trained: Iterable[nn.Parameter], stop: int) -> Tensor:
    """Mean gradients over the W processes; returns each one's losses and `stop`, (W, A + 1).

    stop: the signal that this process got, or the wish that it heard, or 0.

    What has no gradient here has none anywhere: a method decides that by the step alone.
    """
    shares = losses.new_zeros(accelerator.num_processes, len(losses) + 1)
    shares[accelerator.process_index, :-1] = losses
    shares[accelerator.process_index, -1] = stop
    if accelerator.num_processes > 1:
        gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
        for message in _buckets([shares, *gradients]):
            summed = accelerator.reduce(torch.cat([tensor.flatten() for tensor in message]), reduction="sum")
            for tensor, part in zip(message, summed.split([tensor.numel() for tensor in message]), strict=True):
                tensor.copy_(part.view_as(tensor))
        torch._foreach_div_(gradients, accelerator.num_processes)
    return shares


def _buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """A LoRA goes in one message; a whole UNet in several, since each is a copy."""
    message, size = [], 0
    for tensor in tensors:
        if message and size + tensor.numel() > _BUCKET_SIZE:
            yield message
            message, size = [], 0
        message.append(tensor)
        size += tensor.numel()
    yield message


def _record_step(
    outcome: _StepResult,
    accelerator: Accelerator,
    photos: PhotoDataset,
    plan: LoopConfig,
    journal: ProgressLog | NullLog,
) -> int:
    """Look at a step's numbers, and write them down; returns the signal that asked a process to stop, else the wish,
    or 0."""
    norm, flat = outcome.read()
    width = plan.accumulate + 1
    end = width * accelerator.num_processes
    shares, measured = [flat[place : place + width] for place in range(0, end, width)], flat[end:]
    losses = {(rank, part): loss for rank, share in enumerate(shares) for part, loss in enumerate(share[:-1])}
    bad = [place for place, loss in losses.items() if not (math.isfinite(loss) and loss < ABSURD_LOSS)]
    if bad or not math.isfinite(norm):
        value = losses[bad[0]] if bad else norm
        names = [
            name
            for rank, part in bad or losses
            for name in photos.samples(sample_indices(outcome.step, part, rank, accelerator.num_processes, plan)).photos
        ]
        raise _diverged_error("loss" if bad else "gradient", value, outcome.step, names, plan)
    journal.step(outcome.step + 1, math.fsum(losses.values()) / len(losses), outcome.learning_rates, *measured)
    asked = [share[-1] for share in shares]
    return int(max(asked) or min(asked))


def _diverged_error(what: str, value: float, step: int, photos: list[str], plan: LoopConfig) -> Diverged:
    shown = "NaN" if math.isnan(value) else "infinite" if math.isinf(value) else f"{value:.3g}"
    names = list(dict.fromkeys(photos))
    where = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    kept = latest_step(plan.run)
    after = f"Nothing after step {kept} was kept" if kept else "Nothing was kept"
    return Diverged(
        f"The {what} became {shown} at step {step + 1} ({where}; --lr {plan.lr:g}). {after}. No concept was made.",
        f"Try --lr {lower_rate(plan.lr, plan.usual_lr):g}, with another --run.",
    )


def _interrupted_error(done: int, steps: int, signal: int) -> Interrupted:
    error = Interrupted(f"Stopped after step {done} of {steps}; it is saved.", "Add --resume to go on.")
    error.exit_code = 128 + signal  # as a shell counts: 130 for Ctrl-C, 143 for SIGTERM
    return error


@contextmanager
def _name_checkpoint_if_disk_full(run: Path) -> Iterator[None]:
    """A full disk stops a run, which can go on from its newest checkpoint: DiskFull says from which."""
    try:
        yield
    except DiskFull as error:
        step = latest_step(run)
        fix = f"Make room; --resume then goes on from step {step}." if step else "Make room and start again."
        raise DiskFull(error.message, fix) from error


class NullLog:
    """The journal of every process but the first."""

    losses: tuple[float, ...] = ()
    fixed_batch_losses: tuple[tuple[int, float], ...] = ()

    def __enter__(self) -> NullLog:
        return self

    def __exit__(self, *_) -> None:
        pass

    def step(self, step: int, loss: float, rates: list[float], fixed: float | None = None) -> None:
        pass

    def keep(self) -> None:
        pass
