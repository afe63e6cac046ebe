"""Trainings for pages: one at a time on the machine, each a process of its own, found again from its folder on disk."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .... import storage
from ....config import DreamboothSettings, InversionSettings, Training
from ....errors import NoRoom, PersonalError
from ....prompts import Token
from ..workspace import House
from .processes import ERRORS, SAID, Process, begin
from .run_status import (
    BEGINNING,
    COST,
    PHOTOS,
    PROCESS,
    RESULT,
    SETTINGS,
    Reader,
    Standing,
    ago,
    number,
    process_of,
    read_json,
    runs_in,
)
from .uploads import LEAST_FREE, Tray

WISHES = ("sample", "keep")
_PATIENCE = 30.0  # seconds for a step and its checkpoint when the app ends
PACE = "pace.json"
_PATHS = ("photos", "library", "run", "vae")


@dataclass(frozen=True)
class Busy:
    """A training that runs. mine: whether it is that of who asks; left: seconds, None where nobody can say yet."""

    mine: bool
    began: float
    left: float | None

    def words(self) -> str:
        """For whom it keeps from starting another."""
        who = "You are training already" if self.mine else "Somebody is training"
        left = f", for about {minutes(self.left)} more" if self.left is not None else ""
        where = ", in another tab" if self.mine else ""
        return f"{who}, since {ago(self.began)}{where}{left}."


class Trainings:
    """release: called before one starts, for the memory that drawing holds."""

    def __init__(self, house: House, release: Callable[[], None] = lambda: None):
        self.house, self._release = house, release
        self._reader, self._mutex = Reader(), threading.RLock()
        self._current = self._find()
        for folder in self._all():
            self._tidy(folder)

    # --- starting -----------------------------------------------------------------------------------------------------

    def start(self, settings: Training, tray: Tray, user: str | None) -> Path:
        """Begin a training of the tray's photos; its folder. settings: photos, library and run are filled in here.

        Raises PersonalError where one runs already, or the photos cannot be used, NoRoom.
        """
        self._make_way(user)
        with self._mutex:
            self._check_free(user)
            home = self.house.trainings(user).resolve()
            if storage.free_bytes(home) < LEAST_FREE:
                raise NoRoom("The disk is nearly full, so I do not start.", "Make room first.")
            folder = home / _folder_name(settings)
            try:
                storage.make_folder(folder)
                tray.deliver(folder / PHOTOS)
                places = {"photos": folder / PHOTOS, "library": self.house.library.folder.resolve(), "run": folder}
                settings = settings.model_copy(update=places)
                storage.write_json(
                    folder / SETTINGS, settings.model_dump(mode="json") | {"program": _program(settings)}
                )
                self._launch(folder, settings)
            except BaseException:
                if folder.exists():
                    storage.remove(folder)
                raise
            return folder

    def go_on(self, user: str | None) -> None:
        """Take up the unfinished run that the user's page shows. Raises PersonalError."""
        self._make_way(user)
        with self._mutex:
            self._check_free(user)
            standing = self.shown(user)
            if standing is None or standing.state == "done":
                raise PersonalError("There is nothing to go on with.", "Start a new one.")
            settings = settings_from(standing.settings).model_copy(update={"resume": standing.can_go_on})
            self._launch(standing.folder, settings)

    def _make_way(self, user: str | None) -> None:
        self._check_free(user)
        self._release()  # may wait for a drawing: not while others want to know how their trainings stand

    def _check_free(self, user: str | None) -> None:
        if busy := self.busy(user):
            raise PersonalError(busy.words(), "Wait until it is done." if not busy.mine else "See it there, or reload.")

    def _launch(self, folder: Path, settings: Training) -> None:
        for log in (SAID, ERRORS):
            storage.append_line(folder / log, BEGINNING)
        process, child = begin(argv_of(settings), folder)
        about = {"pid": process.pid, "born": process.born, "began": time.time()}
        try:
            storage.write_json(folder / PROCESS, about)
        except BaseException:
            process.end(at_once=True)  # nobody would find it again
            raise
        self._current = folder
        threading.Thread(target=self._attend, args=(child, folder), daemon=True).start()

    def _attend(self, child, folder: Path) -> None:
        child.wait()
        with suppress(PersonalError):
            self._tidy(folder)

    # --- looking ------------------------------------------------------------------------------------------------------

    def shown(self, user: str | None) -> Standing | None:
        """The run that the user's page shows: the one that runs, else the newest that was not put away."""
        with self._mutex:
            home = self.house.trainings(user).resolve()
            current = self._current
            if current and current.parent == home and (standing := self._reader.look(current)):
                return standing
            for folder in runs_in(home):
                if not read_json(folder / PROCESS).get("away") and (standing := self._reader.look(folder)):
                    return standing
            return None

    def busy(self, user: str | None) -> Busy | None:
        """The training that runs on this machine, whoever's it is."""
        with self._mutex:
            if self._current is None or not _process(self._current).alive():
                self._current = self._find()  # another app on the same folders may have begun one
            standing = self._current and self._reader.look(self._current)
            if not standing or not standing.running:
                return None
            mine = self._current.parent == self.house.trainings(user).resolve()
            return Busy(mine, standing.began, standing.left)

    def pace(self) -> dict[str, dict[str, float]]:
        """What earlier trainings took: {what: {"step": seconds of a step, "held": bytes}}."""
        return {key: value for key, value in read_json(self._pace).items() if isinstance(value, dict)}

    # --- while it runs ------------------------------------------------------------------------------------------------

    def ask(self, user: str | None, wish: str) -> None:
        """Ask "sample" or "keep" of the user's running training. Raises PersonalError where none runs."""
        standing = self._mine(user)
        if wish not in WISHES:
            raise PersonalError("I know only sample and keep.")
        storage.write_text(standing.folder / "ask", wish + "\n")

    def cancel(self, user: str | None) -> str:
        """End the user's training, or put an unfinished one away; its photos and its folder go. Returns what to say."""
        with self._mutex:
            standing = self.shown(user)
            if standing is None:
                raise PersonalError("There is no training to cancel.")
            if not _process(standing.folder).end(at_once=True):
                raise PersonalError("It does not end.", "Try once more in a minute.")
            if read_json(standing.folder / RESULT):  # a moment too late
                self._tidy(standing.folder)
                return "It had just finished, so the concept is in your library."
            self._drop(standing.folder)
            return "Cancelled: nothing was added, and its copies of your photos are gone."

    def put_away(self, user: str | None) -> None:
        """The finished run is not shown again. Its report stays."""
        with self._mutex:
            standing = self.shown(user)
            if standing and standing.state == "done":
                storage.write_json(standing.folder / PROCESS, read_json(standing.folder / PROCESS) | {"away": True})
                self._current = None

    def close(self) -> None:
        """The app ends: a training that runs finishes its step, saves, and can go on another time."""
        with self._mutex:
            if self._current:
                _process(self._current).end(wait=_PATIENCE)

    # --- inside -------------------------------------------------------------------------------------------------------

    @property
    def _pace(self) -> Path:
        return self.house.runs / PACE

    def _mine(self, user: str | None) -> Standing:
        standing = self.shown(user)
        if standing is None or not standing.running:
            raise PersonalError("No training of yours is running.")
        return standing

    def _all(self) -> list[Path]:
        top = self.house.runs.resolve()
        homes = [top, *(path for path in top.glob("*") if path.is_dir() and not (path / PROCESS).exists())]
        return [folder for home in homes for folder in runs_in(home)]

    def _find(self) -> Path | None:
        """The run that goes on, of whoever it is."""
        return next((folder for folder in self._all() if _process(folder).alive()), None)

    def _tidy(self, folder: Path) -> None:
        """Where the concept is made, its photos are not needed any more; what it took is remembered."""
        if not read_json(folder / RESULT) or _process(folder).alive():
            return
        if (folder / PHOTOS).exists():
            self._remember(folder)
            storage.remove(folder / PHOTOS)

    def _remember(self, folder: Path) -> None:
        cost = read_json(folder / COST)
        steps = number(cost.get("steps"))
        if steps:
            took = {"step": number(cost.get("seconds")) / steps, "held": number(cost.get("held"))}
            storage.write_json(self._pace, self.pace() | {pace_key(read_json(folder / SETTINGS)): took})

    def _drop(self, folder: Path) -> None:
        self._reader.forget(folder)
        storage.remove(folder)
        if self._current == folder:
            self._current = None


def argv_of(settings: Training) -> list[str]:
    """The command line of these settings: every value is in one word with its flag, so none is taken for a flag."""
    words = []
    for name, value in settings.model_dump(mode="json", exclude_defaults=True).items():
        flag = "class" if name == "class_noun" else name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            words.append(f"--{flag}={value}")
    return ["train", _program(settings), *words]


def settings_from(kept: dict[str, Any]) -> Training:
    """Settings as `start` kept them. Raises PersonalError where they were changed to what cannot be."""
    values = {name: value for name, value in kept.items() if name != "program"}
    kind = DreamboothSettings if kept.get("program") == "dreambooth" else InversionSettings
    return kind(**values | {name: Path(values[name]) for name in _PATHS if isinstance(values.get(name), str)})


def pace_key(settings: dict[str, Any]) -> str:
    """Under which the time of a step is remembered."""
    method = settings.get("method") or "textual-inversion"
    return f"{settings.get('base')} {method} {settings.get('resolution') or 'own'}"[:200]


def minutes(seconds: float) -> str:
    """Less than a minute, 4 minutes, 2 hours."""
    if seconds < 50:
        return "less than a minute"
    if seconds < 90:
        return "a minute"
    return f"{round(seconds / 60)} minutes" if seconds < 5400 else f"{round(seconds / 3600)} hours"


def _program(settings: Training) -> str:
    return "dreambooth" if isinstance(settings, DreamboothSettings) else "textual-inversion"


def _folder_name(settings: Training) -> str:
    return f"{Token.parse(settings.token).slug}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def _process(folder: Path) -> Process:
    return process_of(read_json(folder / PROCESS))
