"""How a training stands, read from its folder: the page that started it may be long gone, and the app too."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .... import storage
from ....errors import UserError
from ....prompts import printable
from .processes import ERRORS_FILE, OUTPUT_FILE, Process

PROCESS_FILE, SETTINGS_FILE, PHOTOS_FOLDER = "process.json", "settings.json", "photos"
# As the trainer names them: its modules load torch, which reading takes no part in.
PROGRESS_FILE, RESULT_FILE, COST_FILE, COMMAND_FILE = "progress.jsonl", "result.json", "cost.json", "ask"
RunState = Literal["starting", "learning", "finishing", "done", "stopped", "failed"]
RUNNING_STATES = ("starting", "learning", "finishing")
_TEXT, _JSON, _LINES = 200_000, 1 << 20, 64 << 20  # bytes read at most
_MAX_SHOWN = 600  # characters of what a trainer says
_ENDING_LINES = ("There is no more to learn", "Ended after step")
_KILLED_MESSAGE = "It ended without a word: it was killed, or the machine ran out of memory."


@dataclass(frozen=True)
class LossPoints:
    """steps' losses as (step, loss); fixed: the fixed batch's."""

    losses: list[tuple[int, float]] = field(default_factory=list)
    fixed_batch_losses: list[tuple[int, float]] = field(default_factory=list)


@dataclass(frozen=True)
class RunStatus:
    """state: how the run stands; step of steps, left: seconds; points: the curve; said: the trainer's last line that
    is worth showing; cost: what the rehearsal measured ({} before); token, seconds: of the finished concept; asked:
    whether something was asked and is not heard yet."""

    folder: Path
    state: RunState
    settings: dict[str, Any]
    began: float
    step: int = 0
    steps: int = 0
    left: float | None = None
    points: LossPoints = field(default_factory=LossPoints)
    said: str = ""
    cost: dict[str, float] = field(default_factory=dict)
    token: str = ""
    seconds: float = 0.0
    asked: str = ""

    @property
    def running(self) -> bool:
        return self.state in RUNNING_STATES

    @property
    def can_resume(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return self.state == "stopped"


@dataclass
class ProgressReader:
    """A run's `progress.jsonl`, read on from where it was read to the last time."""

    path: Path
    read: int = 0
    last: dict[str, Any] = field(default_factory=dict)
    points: LossPoints = field(default_factory=LossPoints)

    def look(self) -> None:
        try:
            with storage.open_to_read(self.path) as file:
                if file.seek(0, 2) < self.read:  # a run that goes on drops what came after its checkpoint
                    self.read, self.last, self.points = 0, {}, LossPoints()
                file.seek(self.read)
                new = file.read(_LINES)
        except UserError:
            return
        whole = new[: new.rfind(b"\n") + 1]
        self.read += len(whole)
        for line in whole.splitlines():
            self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            entry = json.loads(line)
            step, loss = int(entry["step"]), float(entry["loss"])
            fixed = float(entry["fixed"]) if "fixed" in entry else None
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            return
        if not math.isfinite(loss):
            return
        self.last = entry
        self.points.losses.append((step, loss))
        if fixed is not None and math.isfinite(fixed):
            self.points.fixed_batch_losses.append((step, fixed))


class RunStatusReader:
    """Reads runs; remembers how far it has read each."""

    def __init__(self):
        self._progress_readers: dict[Path, ProgressReader] = {}

    def look(self, folder: Path) -> RunStatus | None:
        """How the run in this folder stands; None where it is none of the app's."""
        about, settings = read_json(folder / PROCESS_FILE), read_json(folder / SETTINGS_FILE)
        if not about or not settings:
            return None
        began = to_number(about.get("began"))
        alive = parse_process(about).is_alive()
        result = read_json(folder / RESULT_FILE)
        if result and not alive:
            return self._done(folder, settings, began, result)
        ledger = self._progress_readers.setdefault(folder, ProgressReader(folder / PROGRESS_FILE))
        ledger.look()
        said = _read_tail(folder / OUTPUT_FILE)
        step, steps = int(to_number(ledger.last.get("step"))), int(to_number(ledger.last.get("steps")))
        common = {"step": step, "steps": steps, "points": ledger.points, "cost": read_json(folder / COST_FILE)}
        common |= {"left": to_number(ledger.last.get("left")) if steps else None}
        common |= {"asked": _read_tail(folder / COMMAND_FILE).strip()[:20]}
        if alive:
            fresh = said[said.rfind(RUN_SEPARATOR) + 1 :]
            return RunStatus(folder, _running_state(folder, began, step, steps, fresh), settings, began, **common)
        said = _last_message(_read_tail(folder / ERRORS_FILE))
        if saved := newest_checkpoint_step(folder):
            return RunStatus(folder, "stopped", settings, began, said=said, **common | {"step": saved})
        return RunStatus(folder, "failed", settings, began, said=said, **common)

    def _done(self, folder: Path, settings: dict, began: float, result: dict) -> RunStatus:
        ledger = self._progress_readers.setdefault(folder, ProgressReader(folder / PROGRESS_FILE))
        ledger.look()
        common = {"step": int(to_number(result.get("steps"))), "token": printable(str(result.get("token", "")))}
        common |= {"seconds": to_number(result.get("seconds")), "points": ledger.points}
        return RunStatus(folder, "done", settings, began, cost=read_json(folder / COST_FILE), **common)

    def forget(self, folder: Path) -> None:
        self._progress_readers.pop(folder, None)


RUN_SEPARATOR = "\f"  # in the trainer's log, where a run was begun or went on


def _running_state(folder: Path, began: float, step: int, steps: int, said: str) -> RunState:
    if any(line.startswith(_ENDING_LINES) for line in said.splitlines()) or (steps and step >= steps):
        return "finishing"
    try:
        fresh = (folder / PROGRESS_FILE).stat().st_mtime >= began
    except OSError:
        return "starting"
    return "learning" if step and fresh else "starting"


def parse_process(about: dict[str, Any]) -> Process:
    return Process(int(to_number(about.get("pid"))), to_number(about.get("born")))


def newest_checkpoint_step(folder: Path) -> int:
    """The newest checkpoint's step, 0 without one."""
    found = (path.parent.name.removeprefix("step-") for path in folder.glob("step-*/manifest.json"))
    return max((int(step) for step in found if step.isdecimal()), default=0)


def read_json(path: Path) -> dict[str, Any]:
    """{} where there is no such file, or no object in it."""
    try:
        found = json.loads(storage.read_bytes(path, _JSON))
    except (UserError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def to_number(value: object) -> float:
    """0 for what is none."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else 0.0


def _read_tail(path: Path) -> str:
    """The end of a text file; "" where there is none."""
    try:
        with storage.open_to_read(path) as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TEXT))
            return file.read(_TEXT).decode(errors="replace")
    except UserError:
        return ""


def _last_message(errors: str) -> str:
    """The trainer's own last sentence; never a traceback."""
    lines = [line for line in errors[errors.rfind(RUN_SEPARATOR) + 1 :].splitlines() if line.strip()]
    for place in range(len(lines) - 1, -1, -1):
        if lines[place].startswith("error: "):
            told = [lines[place].removeprefix("error: "), *lines[place + 1 : place + 5]]
            return "\n".join(
                printable(line, _MAX_SHOWN) for line in told if not line.startswith(("step ", "Traceback"))
            )
        if lines[place].startswith("Stopped"):
            return printable(lines[place], _MAX_SHOWN)
    if any(line.startswith("Traceback") for line in lines):
        return "The trainer broke down. That is a mistake of this program, not yours; its log is in the run's folder."
    return _KILLED_MESSAGE


def format_start(began: float) -> str:
    """10:02, or the day too where it was another."""
    then = time.localtime(began)
    same = time.localtime()[:3] == then[:3]
    return time.strftime("%H:%M" if same else "%d %B, %H:%M", then)


def list_runs(folder: Path) -> Sequence[Path]:
    """The app's own runs in a folder, newest first."""
    found = []
    for path in folder.glob(f"*/{PROCESS_FILE}"):
        found.append((to_number(read_json(path).get("began")), path.parent))
    return [path for _, path in sorted(found, reverse=True)]
