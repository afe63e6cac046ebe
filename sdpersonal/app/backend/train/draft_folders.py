"""Keep drafts in folders: `runs/[USER/].drafts/ID/` has `draft.json`, the list of photos, and the photos with their
captions and crops. The hidden name keeps them apart from runs."""

from __future__ import annotations

import os
import re
import secrets
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from .... import storage
from ....errors import UserError
from ....training.run_dir import read_json, to_number
from ..workspace import Workspace
from .train_form import TrainForm
from .uploads import PhotoUploads

DRAFTS_FOLDER, DRAFT_FILE = ".drafts", "draft.json"
_ID = re.compile(r"[0-9a-f]{16}")
_MAX_EMPTY_SECONDS = 86_400.0  # after which a draft without photos and words is removed


class Draft:
    """An open draft. lock: held while it is read or changed; created: seconds since 1970."""

    def __init__(self, folder: Path, side: int):
        saved = read_json(folder / DRAFT_FILE)
        self.folder, self.id = folder, folder.name
        self.created = to_number(saved.get("created"), time.time() + _MAX_EMPTY_SECONDS)
        self.form = _read_form(saved.get("form"))
        self.photos = PhotoUploads(folder, side)
        self.lock = self.photos.lock

    def set_form(self, form: TrainForm) -> None:
        """Save the form."""
        with self.lock:
            storage.write_json(self.folder / DRAFT_FILE, {"created": self.created, "form": form.model_dump()})
            self.form = form

    @property
    def is_empty(self) -> bool:
        """Whether there are no photos and nothing was typed or chosen."""
        return not self.photos.uploads and self.form == TrainForm(owner=self.form.owner)


class DraftFolders:
    """The drafts of all users on disk, each opened once. lock: held while drafts are made and removed."""

    def __init__(self, workspace: Workspace):
        self._workspace = workspace
        self._open_drafts: dict[Path, Draft] = {}
        self.lock = threading.RLock()

    def all(self, user: str | None, side: int) -> list[Draft]:
        """Return the user's drafts, oldest first. side: training resolution in pixels."""
        folder = self._folder(user)
        with self.lock:
            storage.remove_leftovers(folder)
            drafts = [self._open(folder / name, side) for name in os.listdir(folder) if self._is_draft(folder / name)]
            return sorted(drafts, key=lambda draft: (draft.created, draft.id))

    def get(self, user: str | None, draft_id: str, side: int) -> Draft:
        """Return a draft. Raises UserError if the user has none of that id."""
        folder = self._folder(user)
        with self.lock:
            if not _ID.fullmatch(draft_id) or not self._is_draft(folder / draft_id):
                raise no_draft_error()
            return self._open(folder / draft_id, side)

    def create(self, user: str | None, form: TrainForm, side: int) -> Draft:
        """Create a draft."""
        folder = self._folder(user) / secrets.token_hex(8)
        with storage.new_folder(folder) as staged:
            storage.write_json(staged / DRAFT_FILE, {"created": time.time(), "form": form.model_dump()})
        with self.lock:
            return self._open(folder, side)

    def remove(self, draft: Draft) -> None:
        """Delete a draft with its photos."""
        with draft.lock, self.lock:
            self._open_drafts.pop(draft.folder, None)
            storage.remove(draft.folder)

    def is_there(self, draft: Draft) -> bool:
        return draft.folder in self._open_drafts

    def remove_empty(self, drafts: list[Draft]) -> list[Draft]:
        """Remove drafts that were left empty for a day, but not the newest one; return the others."""
        for draft in drafts[:-1]:
            if draft.created < time.time() - _MAX_EMPTY_SECONDS and draft.lock.acquire(blocking=False):
                try:
                    if draft.is_empty:
                        self.remove(draft)
                finally:
                    draft.lock.release()
        return [draft for draft in drafts if self.is_there(draft)]

    def _folder(self, user: str | None) -> Path:
        """Return the folder of a user's drafts, which only this user of the machine can read."""
        folder = storage.make_folder(self._workspace.user_runs(user) / DRAFTS_FOLDER)
        if folder.stat().st_mode & 0o077:
            folder.chmod(0o700)
        return folder

    def _is_draft(self, folder: Path) -> bool:
        return bool(_ID.fullmatch(folder.name)) and folder.is_dir() and not folder.is_symlink()

    def _open(self, folder: Path, side: int) -> Draft:
        if folder not in self._open_drafts:
            self._open_drafts[folder] = Draft(folder, side)
        draft = self._open_drafts[folder]
        draft.photos.side = side
        return draft


def no_draft_error() -> UserError:
    return UserError("That draft does not exist any more.", "Reload the page.")


def _read_form(saved: object) -> TrainForm:
    """Return the saved form; of a damaged one the fields that can be read."""
    values: Iterable[tuple[Any, Any]] = saved.items() if isinstance(saved, dict) else ()
    form = TrainForm()
    for name, value in values:
        with suppress(UserError):
            form = form.with_values({str(name): value})
    return form
