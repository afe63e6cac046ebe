"""Train several concepts, textual inversions or LoRAs, in one batch over one frozen model.

Each is the ordinary run, `run.train`, with its own folder, log, checkpoints, validation, random numbers and end, so
that any of them can be resumed alone. They share the model and the pass that computes gradients: a run works, in a
thread of its own, until it needs the gradients of a batch. When all runs wait for theirs, the inputs of all become one
batch, whose one forward and backward pass gives each run its loss and gradients; no sample depends on another, and each
has its own run's LoRA. Threads take turns, so nothing happens at the same time, and the order is always the same.
While a run works, the model's adapters hold its LoRA.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ..config import DreamboothSettings, TrainingSettings
from ..config.base import BaseKind
from ..config.training import MAX_TOGETHER
from ..display.progress import Progress
from ..errors import Interrupted, UserError
from ..evaluation import Scorer, scorer_for_base
from ..models import StableDiffusion, load_base
from ..models.lora import AdapterContents
from .control import StopSignals
from .distributed import init_distributed
from .gradients import Gradients
from .loss_inputs import LossInputs
from .methods.dreambooth_lora import DreamboothLora
from .methods.factory import method_name
from .methods.textual_inversion import TextualInversion
from .objective import batch_loss, min_snr
from .presets import preset
from .resume import run_folder
from .run import train
from .train_result import TrainResult
from .train_state import TrainState

JointMethod = TextualInversion | DreamboothLora
_SHARED_SETTINGS = ("base", "revision", "vae", "resolution", "checkpointing")


def train_together(
    settings: Sequence[TrainingSettings],
    log: Callable[[str], None] = print,
    on_progress: Callable[[int, Progress], None] = lambda run, progress: None,
) -> list[TrainResult | UserError]:
    """Train several concepts of one base and resolution in one batch: textual inversions, and DreamBooth with LoRA.

    on_progress: called after each step of each run, with its index.
    Returns: for each run its result, or its error, which ends no other run.
    Raises: UserError if the runs cannot be trained together, before any begins; Interrupted if a signal stopped them,
    each with a checkpoint.
    """
    check_together(settings)
    accelerator = init_distributed()
    if accelerator.num_processes > 1:
        raise UserError("Runs are trained together in one process only.", "Start it without accelerate launch.")
    first = settings[0]
    base = load_base(first.base, accelerator.device, revision=first.revision, vae=first.vae)
    _check_batches(settings, base.kind)
    scorer = scorer_for_base(base.kind)
    if scorer:
        scorer.use_device(base.device)
    signals = StopSignals()
    runs = [
        JointRun(base, scorer, signals, partial(train, run, _labelled(log, run), partial(on_progress, i)))
        for i, run in enumerate(settings)
    ]
    with _closing(runs), signals:
        _run_in_turns(base, runs)
    return [run.outcome() for run in runs]


def check_together(settings: Sequence[TrainingSettings]) -> None:
    """Raise UserError for runs that cannot be trained in one batch, as far as their settings say so."""
    if not 1 <= len(settings) <= MAX_TOGETHER:
        raise UserError(f"From 1 to {MAX_TOGETHER} runs are trained together, got {len(settings)}.")
    for other in settings:
        if reason := _reason_for_alone(other):
            raise UserError(f"{other.token} cannot be trained together with others: {reason}.", "Train it by itself.")
        for name in _SHARED_SETTINGS:
            ours, theirs = getattr(settings[0], name), getattr(other, name)
            if ours != theirs:
                raise UserError(
                    f"{settings[0].token} has {name} {ours} and {other.token} has {theirs}.",
                    f"Runs with other values of {', '.join(_SHARED_SETTINGS)} are trained one after the other.",
                )
    folders = [run_folder(run).resolve() for run in settings]
    for second, folder in enumerate(folders):
        if (earlier := folders.index(folder)) != second:
            raise UserError(
                f"{settings[earlier].token} and {settings[second].token} have the same run folder.",
                "Give each its own --run.",
            )


def _reason_for_alone(settings: TrainingSettings) -> str:
    """Return why a run cannot be trained together with others, "" if it can."""
    if not isinstance(settings, DreamboothSettings):
        return ""
    if settings.method != "lora":
        return f"it has --method {settings.method}"
    if settings.prior != "none":
        return "it has a --prior"
    return "its text encoder is trained" if settings.text_encoder else ""


def _check_batches(settings: Sequence[TrainingSettings], kind: BaseKind) -> None:
    """Raise UserError unless runs with LoRAs have as many samples: the rows of a batch are equal groups."""
    sizes = {run.batch or preset(method_name(run), kind, run.kind).batch: run for run in settings}
    if len(sizes) > 1 and any(isinstance(run, DreamboothSettings) for run in settings):
        texts = [f"{run.token} has {size}" for size, run in sorted(sizes.items())]
        raise UserError(f"With LoRAs all need the same batch size: {', '.join(texts)}.", "Give all the same --batch.")


def _labelled(log: Callable[[str], None], settings: TrainingSettings) -> Callable[[str], None]:
    return lambda text: log("\n".join(f"{settings.token}: {line}" for line in text.splitlines()))


def _run_in_turns(base: StableDiffusion, runs: Sequence[JointRun]) -> None:
    """Let each run work until it waits for gradients, compute those of all, and so on until all have ended."""
    active = list(runs)
    while active:
        for run in active:
            run.resume()
            if run.error and not isinstance(run.error, UserError):
                raise run.error
        active = [run for run in active if run.pending]
        if active:
            _answer_all(base, [run.pending for run in active if run.pending])


@dataclass
class _PendingGradients:
    """A batch of a run that waits for its gradients.

    scale: the loss's factor: its share of the step, and that of a loss in fp16; answer: the mean loss, or what went
    wrong.
    """

    method: JointMethod
    inputs: LossInputs
    scale: Callable[[Tensor], Tensor]
    answer: Tensor | BaseException | None = None


def _answer_all(base: StableDiffusion, pending: Sequence[_PendingGradients]) -> None:
    try:
        with base.adapters.trained_in_groups([request.method.trained_lora for request in pending]):
            losses = joint_losses(base, [(request.method, request.inputs) for request in pending])
            means = [loss.mean() for loss in losses]
            torch.stack([request.scale(mean) for request, mean in zip(pending, means, strict=True)]).sum().backward()
    except Exception as error:  # each run reports it in its own words
        for request in pending:
            request.answer = error
        return
    for request, mean in zip(pending, means, strict=True):
        request.answer = mean.detach()


def joint_losses(base: StableDiffusion, batches: Sequence[tuple[JointMethod, LossInputs]]) -> list[Tensor]:
    """Compute the losses of the batches of several runs in one pass: per sample, (B_k,) for each run k. LoRAs are those
    that act on the model."""
    embeddings = [method.embeddings for method, _ in batches]
    vectors = {key: torch.cat([of_run[key] for of_run in embeddings]) for key in embeddings[0]}
    counts = [len(next(iter(of_run.values()))) for of_run in embeddings]
    on_device = [inputs.to(base.device) for _, inputs in batches]
    losses = batch_loss(base, vectors, _concatenate(on_device, counts), None).split([len(x.t) for x in on_device])
    return [
        loss if method.snr_gamma is None else loss * min_snr(base.schedule, inputs.t, method.snr_gamma)
        for loss, inputs, (method, _) in zip(losses, on_device, batches, strict=True)
    ]


def _concatenate(batches: Sequence[LossInputs], num_vectors: Sequence[int]) -> LossInputs:
    """Return the batches of several runs as one, for their vectors one after the other."""
    parts, first_vector, first_caption = [], 0, 0
    for inputs, count in zip(batches, num_vectors, strict=True):
        ids, vectors = inputs.tokens.unbind(2)  # (D, encoders, 77) each
        moved = torch.where(vectors >= 0, vectors + first_vector, vectors)
        parts.append(replace(inputs, tokens=torch.stack([ids, moved], dim=2), caption=inputs.caption + first_caption))
        first_vector, first_caption = first_vector + count, first_caption + len(inputs.tokens)
    columns = zip(*(part.tensors() for part in parts), strict=True)
    latents, noise, t, time_ids, tokens, caption = (torch.cat(tensors) for tensors in columns)
    return LossInputs(latents, noise, t, time_ids, tokens, caption)


class JointGradients(Gradients):
    """The gradients of a run that is trained together with others."""

    def __init__(self, state: TrainState, run: JointRun):
        super().__init__(state.method, state.accelerator, state.scaler, state.say, captures=False)
        self._run = run

    def add(self, inputs: LossInputs, step: int, share: float = 1.0) -> Tensor:
        if not isinstance(self._method, TextualInversion | DreamboothLora):
            raise TypeError(f"{self._method.name} cannot be trained together with others")
        request = _PendingGradients(self._method, inputs, lambda loss: self._scaler.scale(loss * share))
        return self._run.wait_for(request)


class JointRun:
    """One run in a thread of its own, which works only between `resume` and the next `wait_for`, or its end."""

    def __init__(
        self,
        base: StableDiffusion,
        scorer: Scorer | None,
        signals: StopSignals,
        train: Callable[..., TrainResult | None],
    ):
        self.base, self.scorer, self._signals = base, scorer, signals
        self.pending: _PendingGradients | None = None  # what it waits for; None before the start and after the end
        self.is_done = False
        self._train = train
        self._result: TrainResult | None = None
        self.error: BaseException | None = None
        self._abort: BaseException | None = None
        self._works = False
        self._adapters: AdapterContents | None = None  # while it waits
        self._go, self._paused = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._work, name="training", daemon=True)

    def join(self, state: TrainState) -> None:
        """Have its gradients computed with those of the others, and stop it with them."""
        state.gradients, state.signals = JointGradients(state, self), self._signals

    def resume(self) -> None:
        """Let it work until it waits or ends; called by the main thread."""
        if not self._thread.ident:
            self._thread.start()
        if self._adapters:
            self.base.adapters.put_back(self._adapters)
        self.pending, self._works = None, True
        self._go.release()
        self._await_pause()

    def _await_pause(self) -> None:
        self._paused.acquire()  # a signal's handler runs meanwhile
        self._works, self._adapters = False, self.base.adapters.take_out()

    def wait_for(self, request: _PendingGradients) -> Tensor:
        """Wait for the gradients of a batch; return its mean loss. Called in the run's thread."""
        self.pending = request
        self._paused.release()
        self._go.acquire()
        answer = self._abort or request.answer
        if isinstance(answer, Tensor):
            return answer
        raise answer or RuntimeError("no gradients were computed")

    def abort(self, error: BaseException) -> None:
        """End it with an error, wherever it waits, so that it leaves its folder as it should."""
        self._abort = error
        if self._works:
            self._await_pause()
        while self._thread.ident and not self.is_done:
            self.resume()

    def outcome(self) -> TrainResult | UserError:
        """Return its result, or the error that ended it. Raises Interrupted, and errors that are no UserError."""
        if self._result:
            return self._result
        if isinstance(self.error, UserError) and not isinstance(self.error, Interrupted):
            return self.error
        raise self.error or RuntimeError("the run has not ended")

    def _work(self) -> None:
        self._go.acquire()
        try:
            if self._abort:
                raise self._abort
            self._result = self._train(joint=self)
        except BaseException as error:
            self.error = error
        finally:
            self.pending, self.is_done = None, True
            self._paused.release()


@contextmanager
def _closing(runs: Sequence[JointRun]) -> Iterator[None]:
    """End all runs if the block is left by an error, such as a second Ctrl-C."""
    try:
        yield
    except BaseException:
        for run in runs:
            run.abort(Interrupted("Stopped.", "Add --resume to go on from the newest checkpoint."))
        raise
