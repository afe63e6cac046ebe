"""Read the status of a training from its folder: the page and the app that started it may be gone."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from .... import storage
from ....errors import UserError, printable
from ....training.run_dir import (
    COMMAND_FILE,
    COST_FILE,
    ENDING_LINES,
    PROGRESS_FILE,
    RESULT_FILE,
    latest_step,
    parse_object,
    read_json,
    to_number,
)
from .trainer_process import ERRORS_FILE, OUTPUT_FILE, Process

PROCESS_FILE, SETTINGS_FILE, PHOTOS_FOLDER = "process.json", "settings.json", "photos"
RunState = Literal["starting", "training", "finishing", "done", "stopped", "failed"]
RUNNING_STATES = ("starting", "training", "finishing")
_TEXT, _LINES = 200_000, 64 << 20  # bytes read at most
_MAX_SHOWN = 600  # characters of a line of the trainer's log
_KILLED_MESSAGE = "The process ended without a message: it was killed, or the machine ran out of memory."


@dataclass(frozen=True)
class LossPoints:
    """Losses of the steps as (step, loss); fixed_batch_losses: those of the fixed batch."""

    losses: list[tuple[int, float]] = field(default_factory=list)
    fixed_batch_losses: list[tuple[int, float]] = field(default_factory=list)


@dataclass(frozen=True)
class RunStatus:
    """Status of a run. started_at: seconds since 1970; step of steps; points: the loss curve; message: the trainer's
    last line that is worth showing; cost: measurements of the dry run ({} before it); token, seconds: of the finished
    concept; pending_command: one that the trainer has not read yet, else ""."""

    folder: Path
    state: RunState
    settings: dict[str, Any]
    started_at: float
    step: int = 0
    steps: int = 0
    seconds_left: float | None = None
    points: LossPoints = field(default_factory=LossPoints)
    message: str = ""
    cost: dict[str, float] = field(default_factory=dict)
    token: str = ""
    seconds: float = 0.0
    pending_command: str = ""

    @property
    def running(self) -> bool:
        return self.state in RUNNING_STATES

    @property
    def can_resume(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return self.state == "stopped"


@dataclass
class ProgressReader:
    """Incremental reader of a run's `progress.jsonl`; `offset`: bytes read so far."""

    path: Path
    offset: int = 0
    last: dict[str, Any] = field(default_factory=dict)
    points: LossPoints = field(default_factory=LossPoints)

    def update(self) -> None:
        try:
            with storage.open_to_read(self.path) as file:
                if file.seek(0, 2) < self.offset:  # a resumed run truncates the file to its checkpoint
                    self.offset, self.last, self.points = 0, {}, LossPoints()
                file.seek(self.offset)
                data = file.read(_LINES)
        except UserError:
            return
        complete_lines = data[: data.rfind(b"\n") + 1]
        self.offset += len(complete_lines)
        for line in complete_lines.splitlines():
            self._add_line(line)

    def _add_line(self, line: bytes) -> None:
        entry = parse_object(line) or {}
        try:
            step, loss = int(entry["step"]), float(entry["loss"])
            fixed = float(entry["fixed"]) if "fixed" in entry else None
        except (ValueError, TypeError, KeyError, OverflowError):
            return
        if not math.isfinite(loss):
            return
        self.last = entry
        self.points.losses.append((step, loss))
        if fixed is not None and math.isfinite(fixed):
            self.points.fixed_batch_losses.append((step, fixed))


class RunStatusReader:
    """Read the status of runs, and remember how far each progress file was read."""

    def __init__(self) -> None:
        self._progress_readers: dict[Path, ProgressReader] = {}

    def read(self, folder: Path) -> RunStatus | None:
        """Return the status of the run in this folder; None if the app did not start it."""
        process_info, settings = read_json(folder / PROCESS_FILE), read_json(folder / SETTINGS_FILE)
        if not process_info or not settings:
            return None
        began = to_number(process_info.get("began"))
        alive = parse_process(process_info).is_alive()
        result = read_json(folder / RESULT_FILE)
        if result and not alive:
            return self._done(folder, settings, began, result)
        progress = self._progress_readers.setdefault(folder, ProgressReader(folder / PROGRESS_FILE))
        progress.update()
        step, steps = int(to_number(progress.last.get("step"))), int(to_number(progress.last.get("steps")))
        status = RunStatus(
            folder,
            _running_state(folder, began, step, steps) if alive else "failed",
            settings,
            began,
            step=step,
            steps=steps,
            seconds_left=to_number(progress.last.get("left")) if steps else None,
            points=progress.points,
            cost=read_json(folder / COST_FILE),
            pending_command=_read_tail(folder / COMMAND_FILE).strip()[:20],
        )
        if alive:
            return status
        status = replace(status, message=_last_message(_read_tail(folder / ERRORS_FILE)))
        saved = latest_step(folder)
        return replace(status, state="stopped", step=saved) if saved else status

    def _done(self, folder: Path, settings: dict, began: float, result: dict) -> RunStatus:
        progress = self._progress_readers.setdefault(folder, ProgressReader(folder / PROGRESS_FILE))
        progress.update()
        return RunStatus(
            folder,
            "done",
            settings,
            began,
            step=int(to_number(result.get("steps"))),
            points=progress.points,
            cost=read_json(folder / COST_FILE),
            token=printable(str(result.get("token", ""))),
            seconds=to_number(result.get("seconds")),
        )

    def forget(self, folder: Path) -> None:
        self._progress_readers.pop(folder, None)


RUN_SEPARATOR = "\f"  # in the trainer's log, where a run was started or resumed


def _running_state(folder: Path, began: float, step: int, steps: int) -> RunState:
    log_text = _read_tail(folder / OUTPUT_FILE)
    current_log = log_text[log_text.rfind(RUN_SEPARATOR) + 1 :]
    if any(line.startswith(ENDING_LINES) for line in current_log.splitlines()) or (steps and step >= steps):
        return "finishing"
    try:
        fresh = (folder / PROGRESS_FILE).stat().st_mtime >= began
    except OSError:
        return "starting"
    return "training" if step and fresh else "starting"


def parse_process(about: dict[str, Any]) -> Process:
    return Process(int(to_number(about.get("pid"))), to_number(about.get("born")))


def _read_tail(path: Path) -> str:
    """Read the end of a text file; "" if it is missing."""
    try:
        with storage.open_to_read(path) as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TEXT))
            return file.read(_TEXT).decode(errors="replace")
    except UserError:
        return ""


def _last_message(errors: str) -> str:
    """Return the trainer's last message, never a traceback."""
    lines = [line for line in errors[errors.rfind(RUN_SEPARATOR) + 1 :].splitlines() if line.strip()]
    for index in range(len(lines) - 1, -1, -1):
        if lines[index].startswith("error: "):
            message = [lines[index].removeprefix("error: "), *lines[index + 1 : index + 5]]
            return "\n".join(
                printable(line, _MAX_SHOWN) for line in message if not line.startswith(("step ", "Traceback"))
            )
        if lines[index].startswith("Stopped"):
            return printable(lines[index], _MAX_SHOWN)
    if any(line.startswith("Traceback") for line in lines):
        return (
            "Training failed because of an error in this program, not in your settings; the log is in the run's folder."
        )
    return _KILLED_MESSAGE


def format_start(began: float) -> str:
    """Format a start time as 10:02, with the day if it was not today."""
    local_start = time.localtime(began)
    is_today = time.localtime()[:3] == local_start[:3]
    return time.strftime("%H:%M" if is_today else "%d %B, %H:%M", local_start)


def list_runs(folder: Path) -> Sequence[Path]:
    """List the runs in a folder that the app started, newest first."""
    runs = []
    for path in folder.glob(f"*/{PROCESS_FILE}"):
        runs.append((to_number(read_json(path).get("began")), path.parent))
    return [path for _, path in sorted(runs, reverse=True)]
