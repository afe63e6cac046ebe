"""Train one concept in a process of its own, forked from a server that has loaded all modules.

Loading torch and diffusers takes eight seconds of a core, as much as forty steps of the built-in model. The standard
library's fork server loads them once, without starting a thread or touching a card, and each training gets a copy: its
memory, its CUDA context and its signals are its own, and it can be killed without harm to the next.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

from .. import storage
from ..errors import UserError
from ..training.run_dir import PROGRESS_FILE, parse_progress, read_json, to_number

ERROR_FILE, LOG_FILE = "error.json", "log.txt"  # in a job's folder on the worker's machine
_PRELOADED = ["sdpersonal.training.run", "sdpersonal.fleet.training_process", "matplotlib.figure", "jinja2"]
_TAIL_BYTES = 4096


@dataclass(frozen=True)
class TrainingTask:
    """What a training process is given. settings: as JSON, with the paths on this machine; folder: of the job on this
    machine; threads: of the CPU; gpu_fraction: of a card's memory that it may take."""

    settings: dict[str, Any]
    folder: Path
    threads: int
    gpu_fraction: float = 1.0


@dataclass(frozen=True)
class TrainingError:
    """How a training process failed. exit_code: negative for a signal."""

    exit_code: int
    message: str
    hint: str = ""


class WarmStarter:
    """Starts training processes whose modules are loaded."""

    def __init__(self) -> None:
        # Without this a fork server would ask the driver of a card, which must not happen before the fork.
        os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
        os.environ.setdefault("MPLBACKEND", "Agg")
        self._context: ForkServerContext = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(_PRELOADED)

    def warm_up(self) -> None:
        """Start the server and wait until its modules are loaded."""
        process = self._context.Process(target=_nothing)
        _start_without_main(process)
        process.join()

    def start(self, task: TrainingTask) -> ForkServerProcess:
        process = self._context.Process(target=run_training, args=(task,))
        _start_without_main(process)
        return process


def _start_without_main(process: ForkServerProcess) -> None:
    """Start the process without importing this one's main module there: it is Ray's, and of no use to a training."""
    main = sys.modules["__main__"]
    path, spec = getattr(main, "__file__", None), getattr(main, "__spec__", None)
    main.__file__, main.__spec__ = None, None
    try:
        process.start()
    finally:
        main.__file__, main.__spec__ = path, spec


def _nothing() -> None:
    pass


def run_training(task: TrainingTask) -> None:
    """Run in the new process: train, and exit with the codes of the command line."""
    _log_to(task.folder / LOG_FILE)
    _end_with_parent()
    os.chdir(task.folder.parent)  # where class images are kept for the worker's next job
    code = 1
    try:
        _train(task)
        code = 0
    except UserError as error:
        content = {"exit_code": error.exit_code, "message": error.message, "hint": error.hint}
        code = error.exit_code
        storage.write_json(task.folder / ERROR_FILE, content)
    except BaseException:  # a defect: its traceback is for the log, the exit code for the worker
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # the exit handlers are the server's


def _train(task: TrainingTask) -> None:
    import torch

    from ..config import settings_from_json
    from ..training import train

    torch.set_num_threads(task.threads)
    if task.gpu_fraction < 1 and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(task.gpu_fraction)
    train(settings_from_json(task.settings), on_progress=lambda progress: None)


def _log_to(path: Path) -> None:
    with storage.open_log(path) as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)


def _end_with_parent() -> None:
    """End this process as soon as the worker is dead: nobody would read what it computes."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))

    threading.Thread(target=watch, daemon=True).start()


def read_error(folder: Path, exit_code: int) -> TrainingError:
    """Return how the process of this job's folder failed."""
    saved = read_json(folder / ERROR_FILE)
    if exit_code > 0 and isinstance(saved.get("message"), str):
        hint = saved.get("hint")
        return TrainingError(exit_code, saved["message"], hint if isinstance(hint, str) else "")
    if exit_code < 0:
        name = signal.Signals(-exit_code).name if -exit_code in {*signal.Signals} else str(-exit_code)
        return TrainingError(exit_code, f"The training's process was ended by {name}.")
    lines = [line for line in read_tail(folder / LOG_FILE).decode(errors="replace").splitlines() if line.strip()]
    return TrainingError(exit_code, f"The training's process failed: {lines[-1] if lines else 'it said nothing'}")


def read_last_progress(run: Path) -> tuple[int, int, float]:
    """Return step, steps and seconds left of the last line of the progress file; zeros before the first."""
    for line in reversed(read_tail(run / PROGRESS_FILE).splitlines()):
        if entry := parse_progress(line):
            return int(entry["step"]), int(to_number(entry.get("steps"))), to_number(entry.get("left"))
    return 0, 0, 0.0


def read_tail(path: Path) -> bytes:
    """Return the last bytes of a file; none if it cannot be read."""
    try:
        with storage.open_to_read(path) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            return file.read(_TAIL_BYTES)
    except UserError:
        return b""
