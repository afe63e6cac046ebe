"""Read the status of a training from its folder: the page and the app that started it may be gone."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field, replace
from functools import lru_cache
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
    to_number,
    to_step,
    to_text,
)
from .run_folders import (
    MAX_AHEAD,
    PROCESS_FILE,
    SETTINGS_FILE,
    is_app_run,
    parse_process,
    read_run_json,
    start_time,
)
from .run_progress import LossPoints, ProgressReader
from .trainer_process import ERRORS_FILE, OUTPUT_FILE

RunState = Literal["waiting", "starting", "training", "finishing", "done", "stopped", "failed", "damaged"]
RUNNING_STATES = ("starting", "training", "finishing")
_TEXT = 200_000  # bytes of a log read at most
_MAX_LEFT = 1e8  # seconds, three years
_MAX_SHOWN = 600  # characters of a line of the trainer's log
_MAX_MESSAGES = 1000  # of ended runs that are remembered
_KILLED_MESSAGE = "The process ended without a message: it was killed, or the machine ran out of memory."


@dataclass(frozen=True)
class RunStatus:
    """Status of a run. started_at: seconds since 1970; step of steps; points: the loss curve; message: the trainer's
    last line that is worth showing, or what is damaged; cost: measurements of the dry run ({} before it); token,
    seconds: of the finished concept; best: its step; pending_command: one that the trainer has not read yet, else "";
    queued_at: of a waiting run, the place in the line; created_at: seconds since 1970, also after a resume; photos:
    their number, 0 if unknown; is_dismissed: whether the finished run is no longer shown."""

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
    best: int = 0
    pending_command: str = ""
    queued_at: float = 0.0
    created_at: float = 0.0
    photos: int = 0
    is_dismissed: bool = False

    @property
    def id(self) -> str:
        """The run's name among its user's runs."""
        return self.folder.name

    @property
    def running(self) -> bool:
        return self.state in RUNNING_STATES


class RunStatusReader:
    """Read the status of runs, and remember how far each progress file was read."""

    def __init__(self) -> None:
        self._progress_readers: dict[Path, ProgressReader] = {}

    def read(self, folder: Path) -> RunStatus | None:
        """Return the status of the run in this folder; None if the app did not start it.

        A file that cannot be read makes the run "damaged", unless it is running or finished all the same.
        """
        try:
            return self._read(folder)
        except OSError as error:
            return RunStatus(folder, "damaged", {}, 0.0, message=f"Its folder cannot be read: {error.strerror}.")

    def _read(self, folder: Path) -> RunStatus | None:
        if not is_app_run(folder):
            return None
        process_info, settings = read_run_json(folder / PROCESS_FILE), read_run_json(folder / SETTINGS_FILE)
        result, began = read_run_json(folder / RESULT_FILE), start_time(process_info)
        alive = parse_process(process_info).is_alive()
        progress = self._progress_readers.setdefault(folder, ProgressReader(folder / PROGRESS_FILE))
        progress.update()
        status = RunStatus(
            folder,
            "done",
            settings,
            began,
            points=progress.points,
            cost=read_run_json(folder / COST_FILE),
            queued_at=to_number(process_info.get("queued")),
            created_at=to_number(process_info.get("created"), time.time() + MAX_AHEAD) or began,
            photos=to_step(process_info.get("photos")),
            is_dismissed=process_info.get("away") is True,
        )
        if alive:
            return _running_status(status, progress.last)
        if result:
            return replace(
                status,
                step=to_step(result.get("steps")),
                best=to_step(result.get("best")),
                token=to_text(result.get("token")) or to_text(settings.get("token")),
                seconds=to_number(result.get("seconds"), _MAX_LEFT),
            )
        return _ended_status(status, progress.last, _damaged_file(folder, process_info, settings))

    def forget(self, folder: Path) -> None:
        self._progress_readers.pop(folder, None)


RUN_SEPARATOR = "\f"  # in the trainer's log, where a run was started or resumed


def _damaged_file(folder: Path, process_info: dict[str, Any], settings: dict[str, Any]) -> str:
    """Return the name of the file of a run that ended without a result which cannot be read; "" if there is none."""
    if os.path.lexists(folder / RESULT_FILE):
        return RESULT_FILE
    return SETTINGS_FILE if not settings else PROCESS_FILE if not process_info else ""


def _running_status(status: RunStatus, last: dict[str, Any]) -> RunStatus:
    step, steps = to_step(last.get("step")), to_step(last.get("steps"))
    return replace(
        status,
        state=_running_state(status.folder, status.started_at, step, steps),
        step=step,
        steps=steps,
        seconds_left=to_number(last.get("left"), _MAX_LEFT) if steps else None,
        pending_command=_read_tail(status.folder / COMMAND_FILE).strip()[:20],
    )


def _ended_status(status: RunStatus, last: dict[str, Any], damaged_file: str) -> RunStatus:
    """Return the status of a run that ended without a result. damaged_file: as `_damaged_file` names it."""
    status = replace(status, step=to_step(last.get("step")), steps=to_step(last.get("steps")))
    if damaged_file:
        return replace(status, state="damaged", message=f"Its file {damaged_file} is damaged or missing.")
    if status.queued_at:
        return replace(status, state="waiting", step=latest_step(status.folder) or 0)
    status = replace(status, state="failed", message=_last_message(status.folder / ERRORS_FILE))
    saved = latest_step(status.folder)
    return replace(status, state="stopped", step=saved) if saved else status


def _running_state(folder: Path, began: float, step: int, steps: int) -> RunState:
    if any(line.startswith(ENDING_LINES) for line in current_log(folder)) or (steps and step >= steps):
        return "finishing"
    try:
        fresh = (folder / PROGRESS_FILE).stat().st_mtime >= began
    except OSError:
        return "starting"
    return "training" if step and fresh else "starting"


def current_log(folder: Path) -> list[str]:
    """Return the lines that the trainer has written since it was started or resumed."""
    text = _read_tail(folder / OUTPUT_FILE)
    return text[text.rfind(RUN_SEPARATOR) + 1 :].splitlines()


def _read_tail(path: Path) -> str:
    """Read the end of a text file; "" if it is missing."""
    try:
        with storage.open_to_read(path) as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TEXT))
            return file.read(_TEXT).decode(errors="replace")
    except UserError:
        return ""


def _last_message(path: Path) -> str:
    """Return the last message in the trainer's log of errors, which is read again only after a change."""
    try:
        status = path.stat()
    except OSError:
        return _KILLED_MESSAGE
    return _read_last_message(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=_MAX_MESSAGES)
def _read_last_message(path: Path, modified_at: int, size: int) -> str:
    return _parse_last_message(_read_tail(path))


def _parse_last_message(errors: str) -> str:
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
