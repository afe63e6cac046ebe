"""A worker trains one job after the other, with its modules loaded and each training in a process of its own.

It is an actor of Ray, but knows nothing of Ray: tests call it as it is. While a training runs it writes a beat every
few seconds, copies each new checkpoint into the store, and asks whether the job was cancelled or given to another.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from .. import storage
from ..concepts.concept_file import read_header
from ..concepts.library import Library
from ..config import settings_to_json
from ..config.training import TrainingSettings
from ..errors import Interrupted, UserError
from ..training.run_dir import RESULT_FILE, has_checkpoint, read_json, to_number, to_text
from .jobs import Attempt, Failure, Job, Outcome, Result
from .run_copy import RunCopy
from .store import Store, keep_trying, open_store
from .training_process import LOG_FILE, TrainingTask, WarmStarter, read_error, read_last_progress, read_tail
from .worker import WorkerInfo, WorkerOptions, describe_worker

_MAX_CONCEPT_BYTES = 4 << 30
_STOP_SECONDS = 60.0  # for a step and its checkpoint, before a stopped training is killed
_FINAL = {UserError.exit_code, 4}  # the user's mistake, diverged: another try would end the same way


@dataclass(frozen=True)
class TrainingOptions(WorkerOptions):
    """beat_seconds: between two beats of a training."""

    beat_seconds: float = 5.0


class TrainingWorker:
    """Trains jobs. `run` is called in one thread, `stop` in another."""

    def __init__(self, options: TrainingOptions):
        self._options = options
        self._stopping = threading.Event()
        self._store: Store = open_store(options.uri)
        self._starter = WarmStarter()
        self._folder = storage.private_folder("sdpersonal-fleet-")

    def prepare(self) -> WorkerInfo:
        """Load the modules, and check that this machine sees the fleet's storage."""
        self._starter.warm_up()
        return describe_worker(self._store, self._options)

    def stop(self) -> None:
        """End the running training after its step, with a checkpoint in the store; begin no other."""
        self._stopping.set()

    def run(self, job_id: str, number: int) -> Attempt:
        """Train a job; return how the attempt ended. Its number was claimed by the driver. Raises UserError if the
        store fails for longer than `patience`."""
        job = Job(self._store, job_id)
        attempt = keep_trying(lambda: job.attempt(number), self._options.patience)
        folder = self._folder / job_id
        if attempt is None or self._stopping.is_set():
            return replace(attempt or Attempt(number, ""), outcome=Outcome.STOPPED)
        try:
            return _Attempt(self, job, attempt, folder).run()
        finally:
            if folder.exists():
                storage.remove(folder)

    @property
    def options(self) -> TrainingOptions:
        return self._options

    @property
    def is_stopping(self) -> bool:
        return self._stopping.is_set()

    def start_process(self, settings: TrainingSettings, folder: Path) -> ForkServerProcess:
        options = self._options
        return self._starter.start(
            TrainingTask(settings_to_json(settings), folder, options.threads, options.gpu_fraction)
        )


class _Attempt:
    """One attempt at a job, from its inputs to its concept."""

    def __init__(self, worker: TrainingWorker, job: Job, attempt: Attempt, folder: Path):
        self._worker, self._job, self._folder = worker, job, folder
        self._attempt = replace(attempt, node=socket.gethostname())
        self._run = folder / "run"
        self._library = folder / "library"
        self._copy = RunCopy(job.store, f"{job.key}/run", attempt.number, self._run)
        self._began = time.monotonic()

    def run(self) -> Attempt:
        patience = self._worker.options.patience
        if self._folder.exists():
            storage.remove(self._folder)
        try:
            first = keep_trying(self._download, patience)
            self._attempt = replace(self._attempt, first=first, saved=first, step=first)
            self._beat()
            reason, code = self._watch(self._worker.start_process(self._settings(), self._folder))
            outcome, failure = self._judge(reason, code)
            if outcome is Outcome.TRAINED:
                keep_trying(self._hand_over, patience)
            elif outcome is not Outcome.REPLACED:
                keep_trying(lambda: self._copy.upload(), patience)
            if failure and outcome is Outcome.FAILED:
                keep_trying(lambda: self._job.write_failure(failure), patience)
            return self._end(outcome, failure.message if failure else "")
        except UserError as error:  # a full disk, a store that failed for longer than `patience`, a damaged job
            return self._end(Outcome.DIED, error.message)

    def _download(self) -> int:
        storage.make_folder(self._run)
        self._job.download_inputs(self._folder / "photos", self._library)
        return self._copy.download()

    def _settings(self) -> TrainingSettings:
        places = {"photos": self._folder / "photos", "run": self._run, "library": self._library}
        return self._job.settings().model_copy(update=places | {"resume": has_checkpoint(self._run)})

    # --- while it trains ----------------------------------------------------------------------------------------------

    def _watch(self, process: ForkServerProcess) -> tuple[Outcome, int]:
        """Wait for the process to end; return why it was ended (TRAINED: by itself) and its exit code."""
        reason, deadline = Outcome.TRAINED, float("inf")
        while process.exitcode is None:
            wait([process.sentinel], timeout=self._worker.options.beat_seconds)
            if process.exitcode is not None:
                break
            if reason is Outcome.TRAINED and (reason := self._reason_to_end()) is not Outcome.TRAINED:
                process.kill() if reason is Outcome.REPLACED else process.terminate()
                deadline = time.monotonic() + _STOP_SECONDS
            if time.monotonic() > deadline:
                process.kill()
        process.join()
        return reason, process.exitcode or 0

    def _reason_to_end(self) -> Outcome:
        """Write a beat and copy checkpoints; return why the training must end, TRAINED if it may go on.

        A store that fails now and then stops no training: the next beat tries again.
        """
        if self._worker.is_stopping:
            return Outcome.STOPPED
        try:
            if self._job.is_replaced(self._attempt):
                return Outcome.REPLACED
            if self._job.is_cancelled():
                return Outcome.CANCELLED
            self._copy.upload()
            self._beat()
        except UserError:
            pass
        return Outcome.TRAINED

    def _beat(self) -> None:
        step, steps, left = read_last_progress(self._run)
        attempt = self._attempt
        self._attempt = replace(
            attempt,
            beat=attempt.beat + 1,
            time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            step=step or attempt.step,
            steps=steps or attempt.steps,
            left=left,
            seconds=round(time.monotonic() - self._began, 1),
            saved=max(attempt.saved, self._copy.saved),
        )
        self._job.update(self._attempt)

    # --- when it has ended --------------------------------------------------------------------------------------------

    def _judge(self, reason: Outcome, code: int) -> tuple[Outcome, Failure | None]:
        """Return the outcome, and what is wrong if there is something wrong."""
        if code == 0:
            return Outcome.TRAINED, None  # also if it was to be ended: it was quicker
        if reason is not Outcome.TRAINED:
            return reason, None
        error = read_error(self._folder, code)
        failure = Failure(error.exit_code, error.message.replace("\n", "; "), error.hint.replace("\n", " "))
        if code in _FINAL:
            return Outcome.FAILED, failure
        if code != Interrupted.exit_code and (log := read_tail(self._folder / LOG_FILE)):
            self._job.store.write(f"{self._job.key}/logs/{self._attempt.number}.txt", log)
        return Outcome.DIED, failure

    def _hand_over(self) -> None:
        """Put the run and its concept into the store."""
        self._copy.upload(finished=True)
        saved = read_json(self._run / RESULT_FILE)
        path = Library(self._library).find(to_text(saved.get("token"))).path
        identity = read_header(path, thumbnail=False).identity or ""
        seconds = round(time.monotonic() - self._began, 1)
        result = Result("", identity, int(to_number(saved.get("steps"))), seconds)
        self._job.write_trained(result, storage.read_bytes(path, _MAX_CONCEPT_BYTES))

    def _end(self, outcome: Outcome, detail: str) -> Attempt:
        self._attempt = replace(self._attempt, outcome=outcome, detail=detail)
        with suppress(UserError):  # the driver writes it too
            self._beat()
        return self._attempt
