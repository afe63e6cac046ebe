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
_REPEAT_WINDOW = 1.0  # seconds; a launcher passes on a Ctrl-C that the terminal has sent already


@dataclass(frozen=True)
class TrainState:
    """What a training step works with: processes, method, data, optimizer, memory advice, average."""

    accelerator: Accelerator
    method: Method
    photos: PhotoDataset
    optimizer: torch.optim.Optimizer
    oom_advice: OomAdvice
    ema: EMA | NoEMA = field(default_factory=NoEMA)

    def checkpoint_state(self) -> CheckpointState:
        """Return what a checkpoint stores of it."""
        return CheckpointState(self.method.trainable_parameters(), self.optimizer, self.ema.values)


@dataclass(frozen=True)
class LoopConfig:
    """Settings of the loop up to a milestone. A step trains on batch * accumulate * processes photos."""

    run: Path
    start: int
    steps: int
    batch: int  # batch size of each process
    accumulate: int  # gradient accumulation: batches of each process in a step
    save_every: int
    lr: float  # the value of --lr, for messages
    lr_factor: Callable[[int], float]  # factor of the method's learning rates at a step
    identity: dict[str, object]  # must be equal for a run to be resumed
    stop_step: int | None = None  # the milestone to stop at; by default the last step
    fixed_batch: Batch | None = None  # its loss is measured in the main process
    measure_every: int = 1  # steps
    usual_lr: float = math.inf  # the preset's, the highest that is proposed after divergence
    best_step: int | None = None  # the step whose checkpoint is never deleted


def fit(state: TrainState, config: LoopConfig, log: ProgressLog | NullLog) -> tuple[int, Command]:
    """Train from step `plan.start` to `plan.stop_step` or until a command arrives, and save a checkpoint there.

    The loop never waits for the device at a step's end: it reads a step's numbers while the next one runs, and always
    before a checkpoint.

    Returns: the step that was reached and the command that ended the loop, if any.
    Raises: Diverged at the first loss or gradient that is not finite, Interrupted (with a checkpoint) on Ctrl-C or
    SIGTERM, DiskFull naming the last checkpoint, UserError when out of memory.
    """
    accelerator, method, photos, optimizer = state.accelerator, state.method, state.photos, state.optimizer
    trainable, last_step = method.trainable_parameters(), config.stop_step or config.steps
    alone, main = accelerator.num_processes == 1, accelerator.is_main_process
    pending: deque[_StepResult] = deque()
    done, stop_code = config.start, 0
    with _name_checkpoint_if_disk_full(config.run), StopSignals(0.0 if alone else _REPEAT_WINDOW, verbose=main) as stop:
        for step in range(config.start, last_step):
            command = poll(config.run) if main else Command.NOTHING
            with state.oom_advice.translate(f"at step {step + 1}"):
                rates = _set_rates(optimizer, method.learning_rates(step), config.lr_factor(step))
                losses = _backward(accelerator, method, photos, config, step)
                gathered = _reduce_gradients(accelerator, losses, trainable.values(), stop.signal_number or command)
                norm = nn.utils.clip_grad_norm_(trainable.values(), MAX_GRAD_NORM)
                optimizer.step()
                optimizer.zero_grad()
                state.ema.update(step)
                measured = _measure_if_due(state, config, step) if main else []
                pending.append(_StepResult.of(step, torch.cat([norm.view(1), gathered.flatten(), *measured]), rates))
            done, stop_code = step + 1, (stop.signal_number or command) if alone else 0
            saving = done % config.save_every == 0 or done == last_step
            while len(pending) > (0 if saving or stop_code else 1):
                # All processes must stop at the same step: the one whose all-reduce told them of the signal.
                stop_code = _record_step(pending.popleft(), accelerator, photos, config, log) or stop_code
            if main and (saving or stop_code):
                log.flush()
                save_checkpoint(config.run, done, state.checkpoint_state(), config.identity, config.best_step)
            if stop_code > 0 and done < config.steps:
                raise _interrupted_error(done, config.steps, stop_code)
            if stop_code:
                break
    return done, Command(min(stop_code, 0))


@dataclass(frozen=True)
class _StepResult:
    """The numbers of a step: [gradient norm, then for each process its A losses and its signal, command or 0, then the
    fixed batch's loss if it was measured]."""

    step: int
    values: Tensor  # on the CPU; the copy may still be running
    copy_event: torch.cuda.Event | None
    learning_rates: list[float]

    @classmethod
    def of(cls, step: int, numbers: Tensor, rates: list[float]) -> _StepResult:
        on_cpu = numbers.detach().to("cpu", non_blocking=True)
        event = None
        if numbers.is_cuda:
            event = torch.cuda.Event()
            event.record()
        return cls(step, on_cpu, event, rates)

    def read(self) -> tuple[float, list[list[float]]]:
        if self.copy_event:
            self.copy_event.synchronize()
        norm, *rest = self.values.tolist()
        return norm, rest


def _measure_if_due(state: TrainState, config: LoopConfig, step: int) -> list[Tensor]:
    """Measure the fixed batch's loss after a step: [(1,)] if it is due, else []."""
    if config.fixed_batch is None or (step + 1) % config.measure_every:
        return []
    with state.ema.applied():
        return [fixed_batch_loss(state.method, config.fixed_batch, step, config.batch).view(1)]


def _set_rates(optimizer: torch.optim.Optimizer, rates: list[float], factor: float) -> list[float]:
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate * factor
    return [rate * factor for rate in rates]


def sample_indices(step: int, part: int, rank: int, processes: int, config: LoopConfig) -> range:
    """Return the sample indices of batch `part` of a step in process `rank`. They are counted over the whole run, so
    a step trains on the same photos however it is split into batches and processes."""
    first = ((step * config.accumulate + part) * processes + rank) * config.batch
    return range(first, first + config.batch)


def _backward(accelerator: Accelerator, method: Method, photos: PhotoDataset, config: LoopConfig, step: int) -> Tensor:
    """Accumulate the mean gradient of this process's batches; return their losses, (A,)."""
    losses = []
    for part in range(config.accumulate):
        indices = sample_indices(step, part, accelerator.process_index, accelerator.num_processes, config)
        loss = method.loss(photos.batch(indices), step).mean()
        accelerator.backward(loss / config.accumulate)
        losses.append(loss.detach())
    return torch.stack(losses)


def _reduce_gradients(accelerator: Accelerator, losses: Tensor, trained: Iterable[nn.Parameter], stop: int) -> Tensor:
    """Average the gradients over the W processes; return the losses and `stop` of each process, (W, A + 1).

    stop: the signal that this process got, or the command that it read, or 0.

    A parameter without a gradient here has none in any process: a method decides that by the step alone.
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
    """Group tensors into messages: a LoRA fits one, a UNet needs several, since each message is a copy."""
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
    config: LoopConfig,
    log: ProgressLog | NullLog,
) -> int:
    """Check a step's numbers and log them; return the signal that a process got, else the command, or 0."""
    norm, flat = outcome.read()
    width = config.accumulate + 1
    end = width * accelerator.num_processes
    shares, measured = [flat[start : start + width] for start in range(0, end, width)], flat[end:]
    losses = {(rank, part): loss for rank, share in enumerate(shares) for part, loss in enumerate(share[:-1])}
    bad = [key for key, loss in losses.items() if not (math.isfinite(loss) and loss < ABSURD_LOSS)]
    if bad or not math.isfinite(norm):
        value = losses[bad[0]] if bad else norm
        names = [
            name
            for rank, part in bad or losses
            for name in photos.batch(sample_indices(outcome.step, part, rank, accelerator.num_processes, config)).photos
        ]
        raise _diverged_error("loss" if bad else "gradient", value, outcome.step, names, config)
    log.step(outcome.step + 1, math.fsum(losses.values()) / len(losses), outcome.learning_rates, *measured)
    stop_codes = [share[-1] for share in shares]
    return int(max(stop_codes) or min(stop_codes))


def _diverged_error(what: str, value: float, step: int, photos: list[str], config: LoopConfig) -> Diverged:
    shown = "NaN" if math.isnan(value) else "infinite" if math.isinf(value) else f"{value:.3g}"
    names = list(dict.fromkeys(photos))
    where = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    last_checkpoint = latest_step(config.run)
    after = f"Nothing after step {last_checkpoint} was kept" if last_checkpoint else "Nothing was kept"
    return Diverged(
        f"The {what} became {shown} at step {step + 1} ({where}; --lr {config.lr:g}). {after}. No concept was made.",
        f"Try --lr {lower_rate(config.lr, config.usual_lr):g}, with another --run.",
    )


def _interrupted_error(done: int, steps: int, signal: int) -> Interrupted:
    error = Interrupted(f"Stopped after step {done} of {steps}; it is saved.", "Add --resume to go on.")
    error.exit_code = 128 + signal  # the shell's convention: 130 for Ctrl-C, 143 for SIGTERM
    return error


@contextmanager
def _name_checkpoint_if_disk_full(run: Path) -> Iterator[None]:
    """Name in DiskFull the newest checkpoint, from which the run can be resumed."""
    try:
        yield
    except DiskFull as error:
        step = latest_step(run)
        fix = f"Make room; --resume then goes on from step {step}." if step else "Make room and start again."
        raise DiskFull(error.message, fix) from error


class NullLog:
    """The progress log of every process but the main one: it writes nothing."""

    losses: tuple[float, ...] = ()
    fixed_batch_losses: tuple[tuple[int, float], ...] = ()

    def __enter__(self) -> NullLog:
        return self

    def __exit__(self, *_) -> None:
        pass

    def step(self, step: int, loss: float, rates: list[float], fixed: float | None = None) -> None:
        pass

    def flush(self) -> None:
        pass
