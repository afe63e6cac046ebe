"""Where an app keeps things, and for whom."""

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
    """library: concepts, of all who use the app; outputs: pictures, runs: trainings, both for each user apart;
    shown: a private folder of what the page may serve, gone when the app ends; wildcards: lists for prompts.

    A user is None where there is one only, who needs no name.
    """

    library: Library
    outputs: Path
    runs: Path
    shown: Path
    wildcards: Path | None = None
    _session_names: dict[str, str] = field(default_factory=dict, compare=False)

    def pictures(self, user: str | None) -> Outputs:
        """The user's own pictures, which stay."""
        return Outputs(self.outputs / user_folder_name(user) if user else self.outputs)

    def trainings(self, user: str | None) -> Path:
        """The folder of the user's own runs."""
        return self.runs / user_folder_name(user) if user else self.runs

    def room(self, page: str) -> Path:
        """A folder that the app may serve to one page: nobody who does not know its name finds it."""
        name = self._session_names.setdefault(page, secrets.token_urlsafe(16))
        return storage.make_folder(self.shown / name)

    def copy(self, picture: Path, page: str) -> Path:
        """A file in the page's room with the same bytes."""
        place = self.room(page) / picture.name
        storage.write_bytes(place, storage.read_bytes(picture, _LARGEST))
        return place

    def leave(self, page: str) -> None:
        """The page is closed: what was shown on it goes."""
        if name := self._session_names.pop(page, None):
            storage.remove(self.shown / name)


def user_folder_name(user: str) -> str:
    """A user's name as a folder's. Raises UserError if it cannot be one."""
    if not _NAME.fullmatch(user):
        raise UserError("A user's name has 1 to 32 of a-z, 0-9 and -.")
    return user
