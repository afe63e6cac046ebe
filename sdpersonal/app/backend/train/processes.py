"""A training as a process of its own: started without a shell, known again after a restart, ended with all it started.

A process is known by its number and the moment it began: a number alone is given to others once it has ended.
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

import psutil

from .... import storage

OUTPUT_FILE, ERRORS_FILE = "said.txt", "errors.txt"
_CLOCK_TOLERANCE = 2.0  # seconds by which a system's own clock may have been set meanwhile
# What a training may need of the environment. Nothing else is handed on: keys and passwords are in it.
_INHERITED = {"PATH", "HOME", "USER", "LANG", "LANGUAGE", "TMPDIR", "TZ", "VIRTUAL_ENV", "LD_LIBRARY_PATH"}
_INHERITED |= {"XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "CUDA_HOME"}
_INHERITED |= {"GOMP_SPINCOUNT", "KMP_BLOCKTIME", "PYTHONUNBUFFERED"}
_INHERITED_PREFIXES = ("LC_", "OMP_", "MKL_", "CUDA_", "NVIDIA_", "PYTORCH_", "TORCHINDUCTOR_")


@dataclass(frozen=True)
class Process:
    """born: seconds since 1970, as the system tells it."""

    pid: int
    create_time: float

    def is_alive(self) -> bool:
        with suppress(psutil.Error, ValueError, OverflowError):
            found = psutil.Process(self.pid)
            same = abs(found.create_time() - self.create_time) <= _CLOCK_TOLERANCE
            return same and found.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
        return False

    def end(self, at_once: bool = False, wait: float = 10.0) -> bool:
        """Ask it to finish its step and save, or end it at once, with all that it started; whether it has ended in
        `wait` seconds."""
        if not self.is_alive():
            return True
        number = getattr(signal, "SIGKILL", signal.SIGTERM) if at_once else signal.SIGTERM
        with suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg"):
                os.killpg(self.pid, number)  # it leads a group of its own
            else:
                os.kill(self.pid, number)
        with suppress(psutil.Error):
            psutil.wait_procs([psutil.Process(self.pid)], timeout=wait)
        return not self.is_alive()


def start_process(argv: Sequence[str], folder: Path) -> tuple[Process, subprocess.Popen]:
    """`sdpersonal ARGV` in this folder's name: what it says goes to files there. argv: each flag with its value."""
    root = str(Path(__file__).parents[4])
    environment = {
        name: value for name, value in os.environ.items() if name in _INHERITED or name.startswith(_INHERITED_PREFIXES)
    }
    with storage.open_log(folder / OUTPUT_FILE) as said, storage.open_log(folder / ERRORS_FILE) as errors:
        started = subprocess.Popen(
            [sys.executable, "-P", "-m", "sdpersonal", *argv],  # -P: no module is taken from the current folder
            env=environment | {"PYTHONPATH": root, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=errors,
            start_new_session=True,
        )
    return Process(started.pid, psutil.Process(started.pid).create_time()), started
