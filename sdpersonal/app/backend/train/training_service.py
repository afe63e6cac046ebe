"""Run trainings for pages: one at a time on the machine, each in its own process, recovered from its folder on disk."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .... import storage
from ....config import DreamboothSettings, TrainingSettings
from ....display.units import format_minutes
from ....errors import DiskFull, UserError
from ....models.loading import BUILT_IN
from ....models.loading.diffusers_folder import missing_file
from ....models.loading.hub_cache import SHORT_NAMES, cached_folder
from ....prompts import Token
from ....training.run_dir import COST_FILE, RESULT_FILE, read_json
from ..workspace import Workspace
from .photo_files import MIN_FREE_BYTES
from .run_status import (
    PHOTOS_FOLDER,
    PROCESS_FILE,
    RUN_SEPARATOR,
    SETTINGS_FILE,
    RunStatus,
    RunStatusReader,
    format_start,
    is_app_run,
    list_folders,
    list_runs,
    parse_process,
)
from .train_form import PRIORS
from .trainer_process import (
    ERRORS_FILE,
    OUTPUT_FILE,
    Process,
    command_name,
    settings_from_json,
    settings_to_argv,
    start_process,
)
from .training_cost import MeasuredCosts
from .uploads import PhotoUploads

RUN_COMMANDS = ("sample", "keep")
_END_SECONDS = 30.0  # seconds for a step and its checkpoint when the app ends


@dataclass(frozen=True)
class RunningTraining:
    """A running training. is_own: whether it belongs to the asking user; left: seconds, None if not known yet."""

    is_own: bool
    began: float
    left: float | None

    def message(self) -> str:
        """Explain to a user why no other training can start."""
        who = "You are already training" if self.is_own else "Another user is training"
        left = f", for about {format_minutes(self.left)} more" if self.left is not None else ""
        where = ", in another tab" if self.is_own else ""
        return f"{who}, since {format_start(self.began)}{where}{left}."


class TrainingService:
    """Start, observe and stop trainings. release: called before a start, to free the memory of generation."""

    def __init__(self, workspace: Workspace, release: Callable[[], None] = lambda: None):
        self.workspace, self._release = workspace, release
        self.measured_costs = MeasuredCosts(workspace.runs / "pace.json")
        self._reader, self._mutex = RunStatusReader(), threading.RLock()
        self._current = self._find()
        for runs_folder in self._runs_folders():
            with suppress(OSError, UserError):  # what cannot be read or deleted does not keep the app from starting
                storage.remove_leftovers(runs_folder)
            for folder in list_runs(runs_folder):
                with suppress(OSError, UserError):
                    self._tidy(folder)

    # --- starting -----------------------------------------------------------------------------------------------------

    def start(self, settings: TrainingSettings, uploads: PhotoUploads, user: str | None) -> Path:
        """Start a training on the uploaded photos; return its folder. settings: photos, library and run are set here.

        Raises UserError if a training runs already or the photos cannot be used, DiskFull.
        """
        self._check_can_start(user)
        with self._mutex:
            self._check_free(user)
            runs_folder = self.workspace.user_runs(user).resolve()
            if storage.free_bytes(runs_folder) < MIN_FREE_BYTES:
                raise DiskFull("The disk is nearly full, so training was not started.", "Free some disk space first.")
            folder = runs_folder / _folder_name(settings)
            try:
                paths = {
                    "photos": folder / PHOTOS_FOLDER,
                    "library": self.workspace.library.folder.resolve(),
                    "run": folder,
                }
                settings = settings.model_copy(update=paths)
                # After a crash at any moment the page lists the run, so that it can be discarded, or it is swept.
                with storage.new_folder(folder) as staged:
                    uploads.copy_to(staged / PHOTOS_FOLDER)
                    saved = settings.model_dump(mode="json") | {"program": command_name(settings)}
                    storage.write_json(staged / SETTINGS_FILE, saved)
                    storage.write_json(staged / PROCESS_FILE, {"pid": 0, "born": 0.0, "began": time.time()})
                self._launch(folder, settings)
            except BaseException:
                if folder.exists():
                    storage.remove(folder)
                raise
            return folder

    def resume(self, user: str | None, base: str | None = None) -> str:
        """Resume the unfinished run that the user's page shows; return a note on the settings that were not taken from
        its file, "" if all were.

        base: name of the model that the page generates with. Raises UserError.
        """
        self._check_can_start(user)
        with self._mutex:
            self._check_free(user)
            status = self.shown_run(user)
            if status is None or status.state == "done":
                raise UserError("There is no training to resume.", "Start a new one.")
            if status.state == "damaged":
                raise UserError(f"This training cannot be resumed. {status.message}", "Discard it, and start anew.")
            if os.path.islink(status.folder / PHOTOS_FOLDER):
                raise UserError("This training cannot be resumed: its folder of photos is a link to another folder.")
            saved = settings_from_json(status.settings)
            replaced = self._untrusted_settings(saved, status.folder, base)
            self._launch(status.folder, saved.model_copy(update=replaced | {"resume": status.can_resume}))
            return _replaced_note(replaced)

    def _untrusted_settings(self, saved: TrainingSettings, folder: Path, base: str | None) -> dict[str, object]:
        """Return the values to use in place of those of a run's file which the page could not have set there: the run
        may be somebody else's, and these name what is read, written or sent."""
        own: dict[str, object] = {
            "photos": folder / PHOTOS_FOLDER,
            "library": self.workspace.library.folder.resolve(),
            "run": folder,
            "base": saved.base if saved.base == BUILT_IN or _is_cached(saved.base) else base,
            "revision": None,
            "vae": None,
            "report_to": None,
        }
        if isinstance(saved, DreamboothSettings):
            own["prior"] = saved.prior if saved.prior in PRIORS.values() else "none"
        return {name: value for name, value in own.items() if getattr(saved, name) != value}

    def _check_can_start(self, user: str | None) -> None:
        self._check_free(user)
        self._release()  # may wait for a generation job: outside the lock, so that other users' pages are not blocked

    def _check_free(self, user: str | None) -> None:
        if busy := self.running_training(user):
            raise UserError(
                busy.message(), "Wait until it is done." if not busy.is_own else "Watch it there, or reload this page."
            )

    def _launch(self, folder: Path, settings: TrainingSettings) -> None:
        for log in (OUTPUT_FILE, ERRORS_FILE):
            storage.append_line(folder / log, RUN_SEPARATOR)
        process, child = start_process(settings_to_argv(settings), folder)
        process_info = {"pid": process.pid, "born": process.create_time, "began": time.time()}
        try:
            storage.write_json(folder / PROCESS_FILE, process_info)
        except BaseException:
            process.terminate(at_once=True)  # without the file the process could not be found again
            raise
        self._current = folder
        threading.Thread(target=self._wait_for, args=(child, folder), daemon=True).start()

    def _wait_for(self, child, folder: Path) -> None:
        child.wait()
        with suppress(UserError):
            self._tidy(folder)

    # --- status -------------------------------------------------------------------------------------------------------

    def shown_run(self, user: str | None) -> RunStatus | None:
        """Return the run that the user's page shows: the running one, else the newest that was not dismissed."""
        with self._mutex:
            runs_folder = self.workspace.user_runs(user).resolve()
            current = self._current
            if current and current.parent == runs_folder and (status := self._reader.read(current)):
                return status
            for folder in list_runs(runs_folder):
                if read_json(folder / PROCESS_FILE).get("away") is not True and (status := self._reader.read(folder)):
                    return status
            return None

    def running_training(self, user: str | None) -> RunningTraining | None:
        """Return the training that runs on this machine, of any user."""
        with self._mutex:
            if self._current is None or not _read_process(self._current).is_alive():
                self._current = self._find()  # another app on the same folders may have started one
            if self._current is None:
                return None
            status = self._reader.read(self._current)
            if not status or not status.running:
                return None
            is_own = self._current.parent == self.workspace.user_runs(user).resolve()
            return RunningTraining(is_own, status.started_at, status.seconds_left)

    # --- while it runs ------------------------------------------------------------------------------------------------

    def send_command(self, user: str | None, command: str) -> None:
        """Send the command "sample" or "keep" to the user's running training. Raises UserError if none runs."""
        status = self._own_run(user)
        if command not in RUN_COMMANDS:
            raise UserError("The command must be sample or keep.")
        storage.write_text(status.folder / "ask", command + "\n")

    def cancel(self, user: str | None) -> str:
        """Stop the user's training, or discard an unfinished one, and delete its folder; return the message.

        Raises UserError if there is none, or its process does not exit.
        """
        with self._mutex:
            status = self.shown_run(user)
            if status is None:
                raise UserError("There is no training to cancel.")
            if not _read_process(status.folder).terminate(at_once=True):
                raise UserError("The training process did not exit.", "Try again in a minute.")
            if read_json(status.folder / RESULT_FILE):  # it finished before it was stopped
                self._tidy(status.folder)
                return "Training had just finished, so the concept is in your library."
            self._drop(status.folder)
            return "Cancelled: nothing was added, and its copies of your photos were deleted."

    def dismiss(self, user: str | None) -> None:
        """Stop showing the finished run. Its report stays."""
        with self._mutex:
            status = self.shown_run(user)
            if status and status.state == "done":
                process = _read_process(status.folder)
                info = {"pid": process.pid, "born": process.create_time, "began": status.started_at, "away": True}
                storage.write_json(status.folder / PROCESS_FILE, info)
                self._current = None

    def close(self) -> None:
        """Stop a running training when the app ends: it finishes its step, saves, and can be resumed."""
        with self._mutex:
            if self._current:
                _read_process(self._current).terminate(wait=_END_SECONDS)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _own_run(self, user: str | None) -> RunStatus:
        status = self.shown_run(user)
        if status is None or not status.running:
            raise UserError("You have no running training.")
        return status

    def _runs_folders(self) -> list[Path]:
        """Return the folders that may hold runs: the common one, and those of users in it."""
        top = self.workspace.runs.resolve()
        return [top, *(folder for folder in list_folders(top) if not is_app_run(folder))]

    def _all(self) -> list[Path]:
        return [folder for runs_folder in self._runs_folders() for folder in list_runs(runs_folder)]

    def _find(self) -> Path | None:
        """Return the folder of the running training, of any user."""
        return next((folder for folder in self._all() if _read_process(folder).is_alive()), None)

    def _tidy(self, folder: Path) -> None:
        """Delete what a crash left in a run, and the photos of a finished one; save what it cost."""
        if _read_process(folder).is_alive():
            return
        storage.remove_leftovers(folder)
        if read_json(folder / RESULT_FILE) and (folder / PHOTOS_FOLDER).exists():
            self.measured_costs.add(read_json(folder / SETTINGS_FILE), read_json(folder / COST_FILE))
            storage.remove(folder / PHOTOS_FOLDER)

    def _drop(self, folder: Path) -> None:
        self._reader.forget(folder)
        storage.remove(folder)
        if self._current == folder:
            self._current = None


def _is_cached(base: str | None) -> bool:
    """Return whether this is a model with a short name, which is on this machine."""
    hub_id = SHORT_NAMES.get(base or "")
    return hub_id is not None and cached_folder(hub_id, None, missing_file) is not None


def _replaced_note(names: Iterable[str]) -> str:
    listed = ", ".join(names)
    return f"Not taken from the run's {SETTINGS_FILE}, but set by this app: {listed}." if listed else ""


def _folder_name(settings: TrainingSettings) -> str:
    return f"{Token.parse(settings.token).slug}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def _read_process(folder: Path) -> Process:
    return parse_process(read_json(folder / PROCESS_FILE))
