"""Run trainings for pages: one at a time on the machine, each in its own process, recovered from its folder on disk.

A training that cannot start at once waits in line; `training_watcher` starts the next one when the machine is free.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from .... import storage
from ....config import TrainingSettings, settings_from_json
from ....errors import DiskFull, UserError
from ....models.loading import kind_of
from ....training.methods.continuation import find_start
from ....training.run_dir import RESULT_FILE, latest_step, read_json
from ..workspace import Workspace
from .photo_files import MIN_FREE_BYTES
from .run_files import new_run_name, tidy_run, write_new_run
from .run_folders import (
    PHOTOS_FOLDER,
    is_app_run,
    list_folders,
    list_runs,
    read_process,
    write_process,
)
from .run_settings import own_paths, replaced_note, untrusted_settings, waiting_settings
from .run_status import RUN_SEPARATOR, RunStatus, RunStatusReader
from .trainer_process import (
    ERRORS_FILE,
    NO_PROCESS,
    OUTPUT_FILE,
    settings_to_argv,
    start_process,
)
from .training_cost import MeasuredCosts
from .training_queue import MAX_WAITING, RunningTraining, move_waiting, next_place, waiting_runs
from .uploads import PhotoUploads

_END_SECONDS = 5.0  # that the app waits at its end for a step and its checkpoint; the training saves it in any case
_LOCK_SECONDS = 10.0  # that another app on the same folder may take to start a training
_GONE = "That training does not exist any more."


class TrainingService:
    """Start, observe and stop trainings.

    release: called before a start, to free the memory of generation; loaded_model: returns the name of the model that
    the page generates with.
    """

    def __init__(
        self,
        workspace: Workspace,
        release: Callable[[], None] = lambda: None,
        loaded_model: Callable[[], str | None] = lambda: None,
    ):
        self.workspace, self._release, self._loaded_model = workspace, release, loaded_model
        self.measured_costs = MeasuredCosts(workspace.runs / "pace.json")
        self.on_work: Callable[[], None] = lambda: None  # called when a training was started or waits
        self._reader, self._mutex, self._closed = RunStatusReader(), threading.RLock(), False
        self._own_settings: dict[Path, TrainingSettings] = {}  # of waiting runs that this app made
        self._current = self._find_running()
        for runs_folder in self._runs_folders():
            with suppress(OSError, UserError):  # what cannot be read or deleted does not keep the app from starting
                storage.remove_leftovers(runs_folder)
            for folder in list_runs(runs_folder):
                with suppress(OSError, UserError):
                    tidy_run(folder, self.measured_costs)

    # --- starting -----------------------------------------------------------------------------------------------------

    def start(self, settings: TrainingSettings, uploads: PhotoUploads, user: str | None) -> Path:
        """Start a training on the uploaded photos, or let it wait in line; return its folder. settings: photos, library
        and run are set here.

        Raises UserError if the photos cannot be used or too many trainings wait, DiskFull.
        """
        find_start(settings.model_copy(update={"library": self.workspace.library.folder}), kind_of(settings.base))
        self._free_memory_if_idle()
        with self._mutex:
            runs_folder = self.workspace.user_runs(user).resolve()
            if len(waiting_runs(list_runs(runs_folder))) >= MAX_WAITING:
                raise UserError(f"{MAX_WAITING} of your trainings are waiting already.", "Cancel one of them first.")
            if storage.free_bytes(runs_folder) < MIN_FREE_BYTES:
                raise DiskFull("The disk is nearly full, so training was not started.", "Free some disk space first.")
            folder = runs_folder / new_run_name(settings)
            settings = settings.model_copy(update=own_paths(folder, self.workspace))
            try:
                write_new_run(folder, settings, uploads, next_place(self._all()))
                self._own_settings[folder] = settings
                self._launch_if_next(folder, settings)
            except BaseException:
                self._own_settings.pop(folder, None)
                if folder.exists():
                    storage.remove(folder)
                raise
        self.on_work()
        return folder

    def resume(self, user: str | None, run: str) -> str:
        """Resume an unfinished run, or let it wait in line; return a note on the settings that were not taken from its
        file, "" if all were. Raises UserError."""
        self._free_memory_if_idle()
        with self._mutex:
            status = self.find(user, run)
            if status.state == "damaged":
                raise UserError(f"This training cannot be resumed. {status.message}", "Discard it, and start anew.")
            if status.state not in ("stopped", "failed"):
                raise UserError("This training is not one to resume.")
            saved = settings_from_json(status.settings)
            replaced = untrusted_settings(saved, status.folder, self.workspace, self._loaded_model())
            settings = saved.model_copy(update=replaced)
            write_process(status.folder, NO_PROCESS, began=time.time(), queued=next_place(self._all()))
            self._own_settings[status.folder] = settings
            try:
                self._launch_if_next(status.folder, settings)
            except BaseException:
                self._own_settings.pop(status.folder, None)
                write_process(status.folder, NO_PROCESS, began=status.started_at)
                raise
        self.on_work()
        return replaced_note(replaced)

    def start_next(self) -> Path | None:
        """Start the training that has waited longest, if none runs; return its folder. What keeps it from starting is
        written to its log, and it has failed then."""
        with self._mutex:
            if self._closed or self.running_training(None) is not None or not (line := waiting_runs(self._all())):
                return None
        self._release()  # may wait for a generation job: outside the lock, so that users' pages are not blocked
        with self._mutex:
            if self._closed or not (line := waiting_runs(self._all())):
                return None
            folder = line[0]
            try:
                settings = self._own_settings.get(folder) or waiting_settings(
                    folder, self.workspace, self._loaded_model()
                )
                return folder if self._launch_if_next(folder, settings) else None
            except (UserError, OSError) as error:
                message = error.message if isinstance(error, UserError) else "Its process could not be started."
                storage.append_line(folder / ERRORS_FILE, f"{RUN_SEPARATOR}\nerror: {message}\n")
                write_process(folder, NO_PROCESS, began=time.time())
                return folder

    def has_work(self) -> bool:
        """Return whether a training runs or waits on this machine."""
        with self._mutex:
            return not self._closed and (self.running_training(None) is not None or bool(waiting_runs(self._all())))

    def _free_memory_if_idle(self) -> None:
        if self.running_training(None) is None:
            self._release()  # may wait for a generation job: outside the lock, so that other users are not blocked

    def _launch_if_next(self, folder: Path, settings: TrainingSettings) -> bool:
        """Start a waiting run if none runs and none waits before it; return whether it was started."""
        with storage.lock(self.workspace.runs.resolve(), "The folder of trainings", _LOCK_SECONDS):  # of another app
            if self.running_training(None) is not None or waiting_runs(self._all())[:1] != [folder]:
                return False
            self._launch(folder, settings)
            return True

    def _launch(self, folder: Path, settings: TrainingSettings) -> None:
        if os.path.islink(folder / PHOTOS_FOLDER):
            raise UserError("This training cannot be started: its folder of photos is a link to another folder.")
        settings = settings.model_copy(update={"resume": latest_step(folder) is not None})
        for log in (OUTPUT_FILE, ERRORS_FILE):
            storage.append_line(folder / log, RUN_SEPARATOR)
        process, child = start_process(settings_to_argv(settings), folder)
        try:
            write_process(folder, process, began=time.time())
        except BaseException:
            process.terminate(at_once=True)  # without the file the process could not be found again
            raise
        self._current = folder
        self._own_settings.pop(folder, None)
        threading.Thread(target=self._wait_for, args=(child, folder), daemon=True).start()

    def _wait_for(self, child: Any, folder: Path) -> None:
        child.wait()
        with suppress(UserError):
            tidy_run(folder, self.measured_costs)

    # --- status -------------------------------------------------------------------------------------------------------

    def runs(self, user: str | None) -> list[RunStatus]:
        """Return the user's runs: the running one, those that wait in their order, the others newest first; without
        those that were dismissed."""
        with self._mutex:
            folders = list_runs(self.workspace.user_runs(user).resolve())
            statuses = [status for folder in folders if (status := self._reader.read(folder))]
        running = [status for status in statuses if status.running]
        waiting = sorted((status for status in statuses if status.state == "waiting"), key=lambda run: run.queued_at)
        ended = [status for status in statuses if not status.running and status.state != "waiting"]
        return [*running, *waiting, *(status for status in ended if not status.is_dismissed)]

    def find(self, user: str | None, run: str) -> RunStatus:
        """Return the status of one of the user's runs. run: the name of its folder. Raises UserError."""
        with self._mutex:
            folders = list_runs(self.workspace.user_runs(user).resolve())
            folder = next((folder for folder in folders if folder.name == run), None)
            status = self._reader.read(folder) if folder else None
        if status is None:
            raise UserError(_GONE)
        return status

    def running_training(self, user: str | None) -> RunningTraining | None:
        """Return the training that runs on this machine, of any user."""
        with self._mutex:
            if self._current is None or not read_process(self._current).is_alive():
                self._current = self._find_running()  # another app on the same folders may have started one
            if self._current is None:
                return None
            status = self._reader.read(self._current)
            if not status or not status.running:
                return None
            is_own = self._current.parent == self.workspace.user_runs(user).resolve()
            return RunningTraining(is_own, status.started_at, status.seconds_left)

    def line(self) -> list[Path]:
        """Return the folders of the trainings, of anybody, that wait, in the order in which they start."""
        with self._mutex:
            return waiting_runs(self._all())

    # --- changing -----------------------------------------------------------------------------------------------------

    def move(self, user: str | None, run: str, before: str | None) -> None:
        """Move a waiting run before another of the user's, or to the end of these. Raises UserError."""
        with self._mutex:
            mine = waiting_runs(list_runs(self.workspace.user_runs(user).resolve()))
            move_waiting(mine, run, before)

    def cancel(self, user: str | None, run: str) -> str:
        """Stop a training, take it out of the line, or discard an ended one, and delete its folder; return the message.

        Raises UserError if its process does not exit.
        """
        with self._mutex:
            status = self.find(user, run)
            was_done = status.state == "done"
            if not read_process(status.folder).terminate(at_once=True):
                raise UserError("The training process did not exit.", "Try again in a minute.")
            if not was_done and read_json(status.folder / RESULT_FILE):  # it finished before it was stopped
                tidy_run(status.folder, self.measured_costs)
                return "Training had just finished, so the concept is in your library."
            self._reader.forget(status.folder)
            self._own_settings.pop(status.folder, None)
            storage.remove(status.folder)
            if self._current == status.folder:
                self._current = None
        self.on_work()
        if was_done:
            return "Discarded: its samples and its report were deleted; the concept stays in your library."
        return "Cancelled: nothing was added, and its copies of your photos were deleted."

    def dismiss(self, user: str | None, run: str) -> None:
        """Stop showing a finished run. Its report stays."""
        with self._mutex:
            status = self.find(user, run)
            if status.state == "done":
                write_process(status.folder, read_process(status.folder), began=status.started_at, away=True)

    def close(self) -> None:
        """Stop a running training when the app ends: it finishes its step, saves, and can be resumed."""
        with self._mutex:
            self._closed = True
            if self._current:
                read_process(self._current).terminate(wait=_END_SECONDS)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _runs_folders(self) -> list[Path]:
        """Return the folders that may hold runs: the common one, and those of users in it."""
        top = self.workspace.runs.resolve()
        return [top, *(folder for folder in list_folders(top) if not is_app_run(folder))]

    def _all(self) -> list[Path]:
        return [folder for runs_folder in self._runs_folders() for folder in list_runs(runs_folder)]

    def _find_running(self) -> Path | None:
        """Return the folder of the running training, of any user."""
        return next((folder for folder in self._all() if read_process(folder).is_alive()), None)
