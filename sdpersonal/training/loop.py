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

from ..errors import Diverged, Interrupted, NoRoom
from .checkpoint import Learned, latest_step, save_checkpoint
from .control import Wish, heard
from .dataset import Batch, TrainingPhotos
from .early_stopping import measure
from .ema import Average, NoAverage
from .methods.protocol import Method
from .oom_advice import Room
from .presets import lower_rate
from .progress_log import Journal
from .signals import StopSignals

MAX_GRAD_NORM = 1.0
ABSURD_LOSS = 100.0  # targets have variance 1: a prediction this far off is none
_MESSAGE = 1 << 24  # numbers in one message between processes, 64 MB
_ECHO = 1.0  # seconds; a launcher passes on the Ctrl-C that the terminal has sent already


@dataclass(frozen=True)
class Lesson:
    """Who learns, from what, with what, and in which room."""

    accelerator: Accelerator
    method: Method
    photos: TrainingPhotos
    optimizer: torch.optim.Optimizer
    room: Room
    average: Average | NoAverage = field(default_factory=NoAverage)

    def learned(self) -> Learned:
        """What a checkpoint keeps of it."""
        return Learned(self.method.trained(), self.optimizer, self.average.values)


@dataclass(frozen=True)
class Plan:
    """How a method is taught, up to a milestone. A step learns from batch * accumulate * processes photos."""

    run: Path
    start: int
    steps: int
    batch: int  # photos at once in each process
    accumulate: int  # batches of each process in a step
    save_every: int
    lr: float  # as --lr gives it, for messages
    factor: Callable[[int], float]  # what the method's rates are multiplied with at a step
    identity: dict[str, object]  # what must be equal for a run to go on
    until: int | None = None  # the milestone; by default the last step
    watched: Batch | None = None  # the fixed batch that is measured in the first process
    measure_every: int = 1  # steps
    usual_lr: float = math.inf  # the preset's, which is proposed where --lr was far too high
    best: int | None = None  # step whose checkpoint is kept however old it is


def learn(lesson: Lesson, plan: Plan, journal: Journal | Silent) -> tuple[int, Wish]:
    """Train from step `plan.start` to `plan.until`, or until something is asked; and keep a checkpoint there. Returns
    the step that was reached, and what was asked.

    The device is never waited for at a step's end: its numbers are looked at when the next one is under way, and always
    before a checkpoint. Raises Diverged at the first loss or gradient that is not finite, Interrupted (with a
    checkpoint) on Ctrl-C or SIGTERM, NoRoom naming the last checkpoint, PersonalError when out of memory.
    """
    accelerator, method, photos, optimizer = lesson.accelerator, lesson.method, lesson.photos, lesson.optimizer
    trained, until = method.trained(), plan.until or plan.steps
    alone, main = accelerator.num_processes == 1, accelerator.is_main_process
    unread: deque[_Outcome] = deque()
    done, stopping = plan.start, 0
    with _naming_checkpoint(plan.run), StopSignals(0.0 if alone else _ECHO, speak=main) as stop:
        for step in range(plan.start, until):
            wish = heard(plan.run) if main else Wish.NOTHING
            with lesson.room.at(f"at step {step + 1}"):
                rates = _set_rates(optimizer, method.rates(step), plan.factor(step))
                losses = _backward(accelerator, method, photos, plan, step)
                shares = _average(accelerator, losses, trained.values(), stop.asked or wish)
                norm = nn.utils.clip_grad_norm_(trained.values(), MAX_GRAD_NORM)
                optimizer.step()
                optimizer.zero_grad()
                lesson.average.update(step)
                measured = _measured(lesson, plan, step) if main else []
                unread.append(_Outcome.of(step, torch.cat([norm.view(1), shares.flatten(), *measured]), rates))
            done, stopping = step + 1, (stop.asked or wish) if alone else 0
            saving = done % plan.save_every == 0 or done == until
            while len(unread) > (0 if saving or stopping else 1):
                # Of several processes all must stop at one step: where they have heard of it from each other.
                stopping = _read(unread.popleft(), accelerator, photos, plan, journal) or stopping
            if main and (saving or stopping):
                journal.keep()
                save_checkpoint(plan.run, done, lesson.learned(), plan.identity, plan.best)
            if stopping > 0 and done < plan.steps:
                raise _interrupted(done, plan.steps, stopping)
            if stopping:
                break
    return done, Wish(min(stopping, 0))


@dataclass(frozen=True)
class _Outcome:
    """What a step gave: [gradient's norm, then for each process its A losses and the signal it got, the wish it heard
    or 0, then the fixed batch's loss if it was measured]."""

    step: int
    numbers: Tensor  # on the CPU, or on its way there
    arrived: torch.cuda.Event | None
    rates: list[float]

    @classmethod
    def of(cls, step: int, numbers: Tensor, rates: list[float]) -> _Outcome:
        here = numbers.detach().to("cpu", non_blocking=True)
        event = None
        if numbers.is_cuda:
            event = torch.cuda.Event()
            event.record()
        return cls(step, here, event, rates)

    def read(self) -> tuple[float, list[list[float]]]:
        if self.arrived:
            self.arrived.synchronize()
        norm, *rest = self.numbers.tolist()
        return norm, rest


def _measured(lesson: Lesson, plan: Plan, step: int) -> list[Tensor]:
    """The fixed batch's loss after a step, (1,), where it is due."""
    if plan.watched is None or (step + 1) % plan.measure_every:
        return []
    with lesson.average.put_in():
        return [measure(lesson.method, plan.watched, step, plan.batch).view(1)]


def _set_rates(optimizer: torch.optim.Optimizer, rates: list[float], factor: float) -> list[float]:
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate * factor
    return [rate * factor for rate in rates]


def samples_of(step: int, part: int, rank: int, processes: int, plan: Plan) -> range:
    """The numbers of the samples in batch `part` of a step's, in process `rank`: counted over the whole run, so that
    the step sees the same photos however it is cut into batches and shared out."""
    first = ((step * plan.accumulate + part) * processes + rank) * plan.batch
    return range(first, first + plan.batch)


def _backward(accelerator: Accelerator, method: Method, photos: TrainingPhotos, plan: Plan, step: int) -> Tensor:
    """Leaves the mean gradient of this process's batches; returns their losses, (A,)."""
    losses = []
    for part in range(plan.accumulate):
        mine = samples_of(step, part, accelerator.process_index, accelerator.num_processes, plan)
        loss = method.loss(photos.samples(mine), step).mean()
        accelerator.backward(loss / plan.accumulate)
        losses.append(loss.detach())
    return torch.stack(losses)


def _average(accelerator: Accelerator, losses: Tensor, trained: Iterable[nn.Parameter], stop: int) -> Tensor:
    """Mean gradients over the W processes; returns each one's losses and `stop`, (W, A + 1).

    stop: the signal that this process got, or the wish that it heard, or 0.

    What has no gradient here has none anywhere: a method decides that by the step alone.
    """
    shares = losses.new_zeros(accelerator.num_processes, len(losses) + 1)
    shares[accelerator.process_index, :-1] = losses
    shares[accelerator.process_index, -1] = stop
    if accelerator.num_processes > 1:
        gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
        for message in _messages([shares, *gradients]):
            summed = accelerator.reduce(torch.cat([tensor.flatten() for tensor in message]), reduction="sum")
            for tensor, part in zip(message, summed.split([tensor.numel() for tensor in message]), strict=True):
                tensor.copy_(part.view_as(tensor))
        torch._foreach_div_(gradients, accelerator.num_processes)
    return shares


def _messages(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """A LoRA goes in one message; a whole UNet in several, since each is a copy."""
    message, size = [], 0
    for tensor in tensors:
        if message and size + tensor.numel() > _MESSAGE:
            yield message
            message, size = [], 0
        message.append(tensor)
        size += tensor.numel()
    yield message


def _read(
    outcome: _Outcome, accelerator: Accelerator, photos: TrainingPhotos, plan: Plan, journal: Journal | Silent
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
            for name in photos.samples(samples_of(outcome.step, part, rank, accelerator.num_processes, plan)).photos
        ]
        raise _diverged("loss" if bad else "gradient", value, outcome.step, names, plan)
    journal.step(outcome.step + 1, math.fsum(losses.values()) / len(losses), outcome.rates, *measured)
    asked = [share[-1] for share in shares]
    return int(max(asked) or min(asked))


def _diverged(what: str, value: float, step: int, photos: list[str], plan: Plan) -> Diverged:
    shown = "NaN" if math.isnan(value) else "infinite" if math.isinf(value) else f"{value:.3g}"
    names = list(dict.fromkeys(photos))
    where = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    kept = latest_step(plan.run)
    after = f"Nothing after step {kept} was kept" if kept else "Nothing was kept"
    return Diverged(
        f"The {what} became {shown} at step {step + 1} ({where}; --lr {plan.lr:g}). {after}. No concept was made.",
        f"Try --lr {lower_rate(plan.lr, plan.usual_lr):g}, with another --run.",
    )


def _interrupted(done: int, steps: int, signal: int) -> Interrupted:
    error = Interrupted(f"Stopped after step {done} of {steps}; it is saved.", "Add --resume to go on.")
    error.exit_code = 128 + signal  # as a shell counts: 130 for Ctrl-C, 143 for SIGTERM
    return error


@contextmanager
def _naming_checkpoint(run: Path) -> Iterator[None]:
    """A full disk stops a run, which can go on from its newest checkpoint: NoRoom says from which."""
    try:
        yield
    except NoRoom as error:
        step = latest_step(run)
        fix = f"Make room; --resume then goes on from step {step}." if step else "Make room and start again."
        raise NoRoom(error.problem, fix) from error


class Silent:
    """The journal of every process but the first."""

    losses: tuple[float, ...] = ()
    measured: tuple[tuple[int, float], ...] = ()

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_) -> None:
        pass

    def step(self, step: int, loss: float, rates: list[float], fixed: float | None = None) -> None:
        pass

    def keep(self) -> None:
        pass
