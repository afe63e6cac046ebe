"""Real processes that train by the command line, as a launcher starts them: with RANK, WORLD_SIZE and a meeting port.

They are forked from a server that has imported and loaded what they need, which saves each of them some seconds.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["sdpersonal.cli.main", "support.warm_server"])
_TESTS = Path(__file__).resolve().parents[1]


@dataclass
class RankProcess:
    process: multiprocessing.process.BaseProcess
    out: Path
    err: Path

    def wait(self, seconds: float = 120) -> int:
        """Its exit code: negative for a signal's number."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(f"still running; it said {self.err.read_text()}")
        return self.process.exitcode

    @property
    def stdout(self) -> str:
        return self.out.read_text()

    @property
    def errors(self) -> str:
        """What it wrote to stderr besides its progress."""
        return "".join(line for line in self.err.read_text().splitlines(True) if not line.startswith("step "))

    def after_lines(self, progress: Path, count: int) -> RankProcess:
        """Waits until the run has written that many lines of progress."""
        while self.process.is_alive() and not (progress.exists() and progress.read_text().count("\n") >= count):
            time.sleep(0.01)
        return self


def start(
    argv: Sequence[object],
    folder: Path,
    environment: dict[str, str] | None = None,
    fault: Callable | None = None,
    files: tuple[Path, Path] | None = None,
    cwd: Path | None = None,
) -> RankProcess:
    """`sdpersonal ARGV` in a process of its own; fault: called there first, to plant what will go wrong.

    files: where its stdout and stderr are appended, instead of new files in the folder; cwd: instead of this process's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = (environment or {}).get("RANK", "0")
    if not files:
        files = (folder / f"out-{name}", folder / f"err-{name}")
        for path in files:
            path.unlink(missing_ok=True)
    child = RankProcess(None, *files)
    settings = dict(os.environ) | (environment or {})
    _start_server()
    child.process = _context.Process(
        target=_run, args=([*map(str, argv)], str(cwd or os.getcwd()), settings, child.out, child.err, fault)
    )
    child.process.start()
    return child


def start_two(argvs: Sequence[Sequence[object]], folder: Path, faults: Sequence[Callable | None] = (None, None)):
    """Rank 0 and rank 1 of one run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    return [
        start(argv, folder, meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, fault)
        for rank, (argv, fault) in enumerate(zip(argvs, faults, strict=True))
    ]


def lead_session() -> None:
    """A fault: start as the app starts its trainings, in a session of its own; and draw rough images."""
    from support.quick_trainings import draw_rough_images

    os.setsid()
    draw_rough_images()


def _start_server() -> None:
    """Start the server unless it runs. It imports by its environment alone, not by this process's `sys.path`."""
    paths = os.pathsep.join(filter(None, [str(_TESTS), os.environ.get("PYTHONPATH")]))
    with mock.patch.dict(os.environ, {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}):
        forkserver.ensure_running()


def _run(argv, folder, environment, out, err, fault):
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    tempfile.tempdir = None  # by this environment, not by the server's
    for path, stream in ((out, sys.stdout), (err, sys.stderr)):
        with open(path, "ab", buffering=0) as file:
            os.dup2(file.fileno(), stream.fileno())
        stream.reconfigure(line_buffering=True)
    import torch

    from sdpersonal.cli.main import main
    from support import no_fsync
    from support.quick_trainings import quick_trainings

    no_fsync.install()
    torch.set_num_threads(1)
    with quick_trainings():
        if fault:
            fault()
        sys.exit(main(argv))
