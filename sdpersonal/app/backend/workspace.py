"""Locate the folders of the app, per user and per session."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from ... import storage
from ...concepts.library import Library
from ...errors import UserError
from ...outputs import Outputs

_LARGEST = 1 << 30  # bytes
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")


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
    _session_names: dict[str, str] = field(default_factory=dict, compare=False)

    def user_outputs(self, user: str | None) -> Outputs:
        """Return the user's saved images."""
        return Outputs(self.outputs / user_folder_name(user) if user else self.outputs)

    def user_runs(self, user: str | None) -> Path:
        """Return the folder of the user's runs."""
        return self.runs / user_folder_name(user) if user else self.runs

    def session_dir(self, page: str) -> Path:
        """Return the session folder that may be served to one page; its random name cannot be guessed."""
        name = self._session_names.setdefault(page, secrets.token_urlsafe(16))
        return storage.make_folder(self.served_dir / name)

    def publish(self, path: Path, page: str) -> Path:
        """Copy an image's file into the page's session folder."""
        target = self.session_dir(page) / path.name
        storage.write_bytes(target, storage.read_bytes(path, _LARGEST))
        return target

    def close_session(self, page: str) -> None:
        """Delete the session folder of a closed page."""
        if name := self._session_names.pop(page, None):
            storage.remove(self.served_dir / name)


def user_folder_name(user: str) -> str:
    """Return the user's name as a folder name. Raises UserError if it is not allowed."""
    if not _NAME.fullmatch(user):
        raise UserError("A user's name has 1 to 32 of a-z, 0-9 and -.")
    return user
