"""Components for files and images that hand on what the client sent as it came: nothing is decoded or kept here.

Gradio's own leave an empty file behind for every file of an event, decode images of any size and number before a
handler sees them, and keep an editor's layers until the event that uses them, which may never come.
"""

from __future__ import annotations

import tempfile
import threading
import time
from abc import ABCMeta
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import gradio as gr
from gradio.component_meta import ComponentMeta
from gradio.components.base import server
from gradio.data_classes import FileData
from gradio.utils import NamedString
from starlette.exceptions import HTTPException

MAX_LAYERS = 2  # of an edited image; the page has one
_MAX_EDITS = 64  # edited images whose parts have come and that no event has used yet
_MAX_PAGE_EDITS = 2  # of one page
_EDIT_SECONDS = 600.0
_MAX_NAME = 100  # characters
_PARTS = ("background", *(f"layer {number}" for number in range(MAX_LAYERS)))


class _Meta(ComponentMeta):
    """Gradio's own writes an interface file beside each component's module."""

    def __new__(mcs, name: str, bases: tuple[type, ...], attrs: dict[str, Any]) -> type:
        return ABCMeta.__new__(mcs, name, bases, attrs)


class FileDrop(gr.File, metaclass=_Meta):
    """A file area whose value is the paths of the uploads."""

    is_template = True  # shown as the class above it

    def _process_single_file(self, f: FileData) -> NamedString:
        return NamedString(f.path)


class FileButton(gr.UploadButton, metaclass=_Meta):
    """An upload button whose value is the paths of the uploads."""

    is_template = True

    def _process_single_file(self, f: FileData) -> NamedString:
        return NamedString(f.path)


@dataclass
class _Edit:
    """The parts of an edited image, in files without a name, which are gone when they are closed."""

    page: str
    since: float
    parts: dict[str, IO[bytes]] = field(default_factory=dict)

    def put(self, part: str, content: bytes) -> None:
        if part in self.parts:
            self.parts[part].close()
        self.parts[part] = tempfile.TemporaryFile()  # noqa: SIM115  # it lives until the image is used
        self.parts[part].write(content)

    def get(self, part: str) -> bytes | None:
        if part not in self.parts:
            return None
        self.parts[part].seek(0)
        return self.parts[part].read()

    def close(self) -> None:
        for file in self.parts.values():
            file.close()


class EditedImages:
    """The edited images whose parts have come and that no event has used yet: few, and for some minutes."""

    def __init__(self) -> None:
        self._edits: dict[str, _Edit] = {}  # by the page's name for the image, the oldest first
        self._mutex = threading.Lock()

    def put(self, name: str, page: str, part: str, content: bytes) -> None:
        """Keep one part; the oldest images of the page, then of all, make room for a new one."""
        with self._mutex:
            self._drop_old()
            self._edits.setdefault(name, _Edit(page, time.monotonic())).put(part, content)
            of_page = [other for other, edit in self._edits.items() if edit.page == page]
            for dropped in {*of_page[:-_MAX_PAGE_EDITS], *list(self._edits)[:-_MAX_EDITS]}:
                self._edits.pop(dropped).close()

    def take(self, name: str) -> dict[str, bytes] | None:
        """Return the parts of an image and forget it; None if there is none of that name."""
        with self._mutex:
            self._drop_old()
            edit = self._edits.pop(name, None)
        if edit is None:
            return None
        try:
            return {part: content for part in _PARTS if (content := edit.get(part))}
        finally:
            edit.close()

    def _drop_old(self) -> None:
        for name, edit in list(self._edits.items()):
            if edit.since < time.monotonic() - _EDIT_SECONDS:
                self._edits.pop(name).close()


class InitImageEditor(gr.ImageEditor, metaclass=_Meta):
    """An image editor whose value is {"background": file, "layers": files}; a file is its bytes, or the path of an
    upload. It is {"lost": True} where the page names an image that has not come, or made room for others.

    The composite is not used, and so is not kept.
    """

    is_template = True
    edits = EditedImages()

    def preprocess(self, payload: Any) -> Any:
        if payload is None:
            return {"background": None, "layers": []}
        if payload.id is None:
            layers = [Path(layer.path) for layer in (payload.layers or [])[:MAX_LAYERS] if layer]
            return {"background": payload.background and Path(payload.background.path), "layers": layers}
        parts = self.edits.take(payload.id)
        if parts is None:
            return {"lost": True}
        return {"background": parts.pop("background", None), "layers": list(parts.values())}

    @server
    def accept_blobs(self, data: Any) -> None:
        """Keep one part of an edited image until the event that uses it. Raises HTTPException."""
        fields, files = getattr(data, "data", None), getattr(data, "files", None)
        if not isinstance(fields, Mapping) or not files:
            raise HTTPException(400, "That is not a part of an edited image.")
        name, page = str(fields.get("id")), str(fields.get("session_hash"))
        kind = str(fields.get("type"))
        part = f"layer {fields.get('index')}" if kind == "layer" else kind
        if part == "composite":
            return
        if part not in _PARTS or len(name) > _MAX_NAME or len(page) > _MAX_NAME:
            raise HTTPException(400, "That is not a part of an edited image.")
        self.edits.put(name, page, part, files[0][1])
