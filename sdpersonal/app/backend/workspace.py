"""Locate the folders of the app, and those of each user."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ... import storage
from ...concepts.library import Library
from ...errors import UserError
from ...outputs import Outputs
from ...storage.user_file import user_folder_name

TILES = "tiles"  # the folder of the library's tiles, which all pages share


@dataclass(frozen=True)
class Workspace:
    """The folders of the app.

    library: concepts, shared by all users; outputs: images, and runs: training runs, both separate for each user;
    served_dir: private folder of files that the page may serve, deleted when the app ends; wildcards: lists for
    prompts. The user is None where nobody logs in.
    """

    library: Library
    outputs: Path
    runs: Path
    served_dir: Path
    wildcards: Path | None = None
    _user_dirs: dict[str, str] = field(default_factory=dict, compare=False)

    def user_outputs(self, user: str | None) -> Outputs:
        """Return the user's saved images."""
        return Outputs(self.outputs / user_folder_name(user) if user else self.outputs)

    def is_used(self, user: str | None) -> bool:
        """Return whether there is a concept, or an image of the user: whether anything can be done but to train."""
        try:
            return bool(self.library.entries()) or bool(self.user_outputs(user).days())
        except UserError:
            return True

    def user_runs(self, user: str | None) -> Path:
        """Return the folder of the user's runs."""
        return self.runs / user_folder_name(user) if user else self.runs

    def user_dir(self, user: str | None) -> Path:
        """Return the folder of files made for the user's pages, which are gone when the app ends; its random name
        cannot be guessed."""
        name = self._user_dirs.setdefault(user or "", secrets.token_urlsafe(16))
        return storage.make_folder(self.served_dir / name)

    def uploaded_file(self, path: object) -> Path:
        """Return the path of an uploaded file. Raises UserError for any other path, since a page may send any text."""
        refusal = UserError("That is not an uploaded file.", "Drop it again.")
        if not isinstance(path, str) or not Path(path).is_absolute():
            raise refusal
        try:
            resolved = storage.resolve_inside(self.served_dir, path)
        except UserError:  # which would name the folder
            raise refusal from None
        top = resolved.relative_to(self.served_dir.resolve()).parts[0]
        is_link = resolved != self.served_dir.resolve() / os.path.relpath(path, self.served_dir)
        if is_link or top == TILES or top in self._user_dirs.values() or resolved.is_dir():
            raise refusal
        if not resolved.is_file():
            raise UserError("The uploaded file is gone.", "Drop it again.")
        return resolved

    def discard_upload(self, path: str | Path) -> None:
        """Delete an uploaded file that was used; do nothing if it is none, or gone."""
        with suppress(UserError):
            upload = self.uploaded_file(str(path))
            storage.remove(upload)
            self.remove_empty_folders(upload)

    def remove_empty_folders(self, upload: Path) -> None:
        """Remove the folders of an upload that is gone, if they are empty."""
        for folder in list(upload.parents)[: max(0, len(upload.relative_to(self.served_dir.resolve()).parts) - 1)]:
            storage.remove_empty_folder(folder)
