"""Save the images of a fleet in a folder of images, each exactly once, whoever dies when."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from .. import storage
from ..errors import UserError
from ..outputs import Outputs
from ..outputs.folder import content_mark
from .chunks import image_key, saved_ids, saved_key
from .store import Store


@dataclass(frozen=True)
class StoredImage:
    """An image in the store. is_leftover: it may have been saved by a command that died before it could note that."""

    id: str
    sha256: str
    is_leftover: bool = False


@dataclass
class ImageSaver:
    """Saves images of the store in a folder, and notes in the store where each is. Thread-safe."""

    store: Store
    outputs: Outputs
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _unsure: set[str] = field(default_factory=set)  # images whose saving failed at some point

    def saved(self, ids: set[str]) -> dict[str, Path]:
        """Return the files of the images that are in the folder already."""
        paths: dict[str, Path] = {}
        for image_id in ids & saved_ids(self.store):
            path = self._noted(image_id)
            if path:
                paths[image_id] = path
        return paths

    def save(self, image: StoredImage) -> Path | None:
        """Save an image; return its file, None if what the store holds is damaged. Raises UserError, DiskFull."""
        is_unsure = image.is_leftover or image.id in self._unsure
        self._unsure.add(image.id)
        key = image_key(image.id, image.sha256)
        data = self.store.read(key)
        # Two commands may have made the same image: the lock lets one of them save it.
        with self._lock, storage.lock(self.outputs.folder, timeout=storage.LOCK_TIMEOUT):
            path = self._noted(image.id)
            if path is None and (data is None or storage.sha256(data) != image.sha256):
                with suppress(UserError):
                    self.store.remove(key)
                return None
            if path is None and data is not None:
                path = (self._same_file(data) if is_unsure else None) or self.outputs.save(data)
                name = path.relative_to(self.outputs.folder).as_posix()
                self.store.write_json(saved_key(image.id), {"folder": self._folder, "name": name})
        self.store.remove(key)
        self._unsure.discard(image.id)
        return path

    @property
    def _folder(self) -> str:
        return os.path.abspath(self.outputs.folder)

    def _noted(self, image_id: str) -> Path | None:
        """Return the file that is noted for an image, if it is in this folder and still there."""
        note = self.store.read_json(saved_key(image_id)) or {}
        name = note.get("name")
        if note.get("folder") != self._folder or not isinstance(name, str):
            return None
        path = self.outputs.folder / name
        return path if path.is_file() else None

    def _same_file(self, data: bytes) -> Path | None:
        """Return a file of the folder with exactly this content."""
        for path in self.outputs.marked(content_mark(data)):
            with suppress(UserError):
                if storage.read_bytes(path, len(data)) == data:
                    return path
        return None
