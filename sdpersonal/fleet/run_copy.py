"""Copy a run's folder into the store while it grows, and back to another machine that goes on with it.

A checkpoint counts when its manifest is there, so that is copied last; files that a resumed run cuts off after the
checkpoint (the log of the steps, the scores) are copied before it, and are never older than it.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path, PurePosixPath

from .. import storage
from ..errors import UserError
from ..training.run_dir import (
    COMMAND_FILE,
    DRY_RUN_FOLDER,
    MANIFEST_FILE,
    checkpoint_folders,
    checkpoint_steps,
    validation_folders,
)
from .store import MAX_BYTES, Store


class RunCopy:
    """The copy that one attempt makes of its run. key: the folder of all attempts' copies; number: of the attempt.

    Each attempt writes into a folder of its own, so that one that was given up, but lives on where nobody sees it,
    spoils nothing; the folders before it are removed once its own holds a checkpoint.
    """

    def __init__(self, store: Store, key: str, number: int, run: Path):
        self._store, self._all, self._number, self._run = store, key, number, run
        self._key = f"{key}/{number}"
        self._copied: dict[str, tuple[int, int]] = {}  # size and time of what is in the store
        self._seen: tuple[object, ...] = ()
        self.saved = 0  # the newest checkpoint in the store

    def download(self) -> int:
        """Write the copy of the attempt before into the folder; return the step of its newest checkpoint, or 0."""
        for number in self._earlier():
            prefix = f"{self._all}/{number}/"
            keys = self._store.files(prefix.rstrip("/"))
            if not any(key.endswith(f"/{MANIFEST_FILE}") for key in keys):
                continue
            for key in keys:
                path = storage.resolve_inside(self._run, *PurePosixPath(key.removeprefix(prefix)).parts)
                data = self._store.read(key)
                if data is not None:
                    storage.make_folder(path.parent)
                    storage.write_bytes(path, data)
            self._seen = self._milestones()
            self.saved = max(checkpoint_steps(self._run), default=0)
            break
        return self.saved

    def _earlier(self) -> list[int]:
        numbers = [int(name) for name in self._store.names(self._all) if name.isascii() and name.isdecimal()]
        return sorted((number for number in numbers if number < self._number), reverse=True)

    def upload(self, finished: bool = False) -> None:
        """Copy what is new, if there is a new checkpoint or validation; all of it when the run is finished."""
        milestones = self._milestones()
        if not finished and milestones == self._seen:
            return
        folders = checkpoint_folders(self._run)
        checkpoints = [folder.name for step, folder in folders.items() if step in checkpoint_steps(self._run)]
        files = self._files()
        others = [name for name in files if not name.startswith("step-")]
        parts = [name for name in files if name.partition("/")[0] in checkpoints]
        for name in [*others, *sorted(parts, key=lambda name: (name.partition("/")[0], name.endswith(MANIFEST_FILE)))]:
            self._upload_file(name)
        self._remove_old(checkpoints)
        if checkpoints or finished:
            for number in self._earlier():
                self._store.remove(f"{self._all}/{number}")
        self.saved = max((int(name.removeprefix("step-")) for name in checkpoints), default=self.saved)
        self._seen = milestones

    def _milestones(self) -> tuple[object, ...]:
        return (tuple(checkpoint_steps(self._run)), tuple(validation_folders(self._run)))

    def _files(self) -> list[str]:
        """List the run's files, without those of this moment and this machine only."""
        names = []
        for parent, folders, files in os.walk(self._run):
            folders[:] = sorted(name for name in folders if name[0] != "." and name != DRY_RUN_FOLDER)
            names += [(Path(parent) / name).relative_to(self._run).as_posix() for name in files if name[0] != "."]
        return sorted(name for name in names if name != COMMAND_FILE)

    def _stamp(self, name: str) -> tuple[int, int] | None:
        with suppress(OSError):
            status = os.stat(self._run / name)
            return status.st_size, status.st_mtime_ns
        return None

    def _upload_file(self, name: str) -> None:
        stamp = self._stamp(name)
        if stamp is None or self._copied.get(name) == stamp:
            return
        try:
            data = storage.read_bytes(self._run / name, MAX_BYTES)
        except UserError:
            if self._stamp(name) is None:  # the run has removed an old checkpoint meanwhile
                return
            raise
        self._store.write(f"{self._key}/{name}", data)
        self._copied[name] = stamp

    def _remove_old(self, checkpoints: list[str]) -> None:
        """Remove checkpoints from the store that the run has removed."""
        for name in self._store.names(self._key):
            if name.startswith("step-") and name not in checkpoints:
                self._store.remove(f"{self._key}/{name}")
                self._copied = {key: value for key, value in self._copied.items() if not key.startswith(f"{name}/")}
