"""Start training processes without a shell, recognize them after a restart, end them with all their children.

Settings are passed to the process as a command line, and read from JSON to resume a run. A process is identified by its
pid and its creation time, because pids are reused.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # psutil ships no types

from .... import storage
from ....config import TrainingSettings, command_name, flag_of

OUTPUT_FILE, ERRORS_FILE = "said.txt", "errors.txt"
_CLOCK_TOLERANCE = 2.0  # seconds by which the system clock may have been adjusted meanwhile
# Environment variables that a training may need. No others are passed on: they may hold keys and passwords.
_INHERITED = {"PATH", "HOME", "USER", "LANG", "LANGUAGE", "TMPDIR", "TZ", "VIRTUAL_ENV", "LD_LIBRARY_PATH"}
_INHERITED |= {"XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "CUDA_HOME"}
_INHERITED |= {"GOMP_SPINCOUNT", "KMP_BLOCKTIME", "PYTHONUNBUFFERED"}
_INHERITED_PREFIXES = ("LC_", "OMP_", "MKL_", "CUDA_", "NVIDIA_", "PYTORCH_", "TORCHINDUCTOR_")


@dataclass(frozen=True)
class Process:
    """A process by pid and create_time: seconds since 1970, as the system reports it."""

    pid: int
    create_time: float

    def is_alive(self) -> bool:
        with suppress(psutil.Error, ValueError, OverflowError):
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.create_time) <= _CLOCK_TOLERANCE
            return same and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
        return False

    def terminate(self, at_once: bool = False, wait: float = 10.0) -> bool:
        """Ask the process group to finish its step and save, or kill it at once; return whether it has ended within
        `wait` seconds."""
        if not self.is_alive():
            return True
        signal_number = getattr(signal, "SIGKILL", signal.SIGTERM) if at_once else signal.SIGTERM
        with suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg"):
                os.killpg(self.pid, signal_number)  # it leads its own process group
            else:
                os.kill(self.pid, signal_number)
        with suppress(psutil.Error):
            psutil.wait_procs([psutil.Process(self.pid)], timeout=wait)
        return not self.is_alive()


NO_PROCESS = Process(0, 0.0)  # of a run that has none yet


def start_process(argv: Sequence[str], folder: Path) -> tuple[Process, subprocess.Popen]:
    """Start `sdpersonal ARGV` with its output in files of `folder`. argv: each flag with its value in one word."""
    root = str(Path(__file__).parents[4])
    environment = {
        name: value for name, value in os.environ.items() if name in _INHERITED or name.startswith(_INHERITED_PREFIXES)
    }
    with storage.open_log(folder / OUTPUT_FILE) as output, storage.open_log(folder / ERRORS_FILE) as errors:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "sdpersonal", *argv],  # -P: no module is taken from the current folder
            env=environment | {"PYTHONPATH": root, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            start_new_session=True,
        )
    return Process(child.pid, psutil.Process(child.pid).create_time()), child


def settings_to_argv(settings: TrainingSettings) -> list[str]:
    """Return the settings as a command line: each value is in one word with its flag, so none is taken for a flag. The
    sample prompts, which are many words, are in the run's folder."""
    arguments = []
    for name, value in settings.model_dump(mode="json", exclude={"sample_prompts"}, exclude_defaults=True).items():
        flag = flag_of(type(settings), name)
        if isinstance(value, bool):
            arguments.append(flag if value else f"--no-{flag.removeprefix('--')}")
        elif value is not None:
            arguments.append(f"{flag}={value}")
    return ["train", command_name(settings), *arguments]
