"""Load another model in the background, telling the pages how far it is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....display.units import GB
from ....errors import UserError
from .. import App
from ..error_text import describe_error
from .picker import ModelDownload, check_name, find_download, switch_model

_REPORT_SECONDS = 1.0  # between reports of a download

Switch = Callable[[App, object, object], str]


@dataclass(frozen=True)
class SwitchStatus:
    """How far a switch is, or how the last one ended. name: of the model; share: of the download, None if unknown;
    error: why the last one failed."""

    name: str = ""
    is_loading: bool = False
    message: str = ""
    share: float | None = None
    error: str = ""

    def as_json(self) -> dict[str, Any]:
        return {
            "loading": self.name if self.is_loading else None,
            "message": self.message,
            "share": self.share,
            "error": self.error,
        }


class ModelSwitcher:
    """Switches models, one after the other, each in a thread of its own, and sends a `model` event at each change."""

    def __init__(self, app: App, switch: Switch = switch_model):
        self._app, self._switch = app, switch
        self._lock = threading.Lock()
        self._status = SwitchStatus()

    @property
    def status(self) -> SwitchStatus:
        return self._status

    def start(self, name: object, agreed: bool) -> dict[str, Any]:
        """Begin to load a model; return {question} instead if gigabytes would be downloaded and nobody `agreed`.

        Raises UserError if the name cannot be a model, may not be chosen here, or while another one is loading.
        """
        checked = check_name(self._app, name)
        download = find_download(self._app, checked)
        if download and not agreed:
            return {"question": download.question}
        with self._lock:
            if self._status.is_loading:
                raise UserError(f"{self._status.name} is being loaded.", "Wait until it is there.")
            self._set(SwitchStatus(checked, True, f"Loading {checked} …"))
        threading.Thread(target=self._work, args=(checked, agreed, download), daemon=True).start()
        return {"loading": checked}

    def _work(self, name: str, agreed: bool, download: ModelDownload | None) -> None:
        done = threading.Event()
        if download:
            threading.Thread(target=self._report, args=(name, download, done), daemon=True).start()
        try:
            self._switch(self._app, name, agreed)
            status = SwitchStatus(name, message=f"Loaded: {name}.")
        except Exception as error:
            status = SwitchStatus(name, error=describe_error(error))
        done.set()
        with self._lock:
            self._set(status)

    def _report(self, name: str, download: ModelDownload, done: threading.Event) -> None:
        started = time.monotonic()
        while not done.wait(_REPORT_SECONDS):
            size = min(_folder_size(download.folder) / GB, download.gigabytes)
            share = size / download.gigabytes
            left = ""
            if share > 0.02 and (seconds := (time.monotonic() - started) * (1 - share) / share) < 86_400:
                left = f", about {max(1, round(seconds / 60))} min left"
            text = f"Downloading {name}: {size:.1f} of {download.gigabytes:.1f} GB{left}"
            with self._lock:
                if not done.is_set():
                    self._set(SwitchStatus(name, True, text if share < 1 else f"Loading {name} …", share))

    def _set(self, status: SwitchStatus) -> None:
        self._status = status
        self._app.events.publish_to_all("model", {"model": self._app.generation.base.to_json(), **status.as_json()})


def _folder_size(folder: Path) -> int:
    """Return the bytes in a folder's files, also of those that are not complete yet."""
    total = 0
    with suppress(OSError):
        for path in folder.iterdir():
            with suppress(OSError):
                total += path.stat().st_size
    return total
