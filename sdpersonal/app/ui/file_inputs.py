"""Components for files and images that hand on what the client sent as it came: nothing is decoded or kept here.

Gradio's own leave an empty file behind for every file of an event, and decode images of any size and number before a
handler sees them.
"""

from __future__ import annotations

from abc import ABCMeta
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.component_meta import ComponentMeta
from gradio.data_classes import FileData
from gradio.utils import NamedString


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


class InitImageEditor(gr.ImageEditor, metaclass=_Meta):
    """An image editor whose value is {"background": path, "layers": paths, "composite": path} of uploads."""

    is_template = True

    def preprocess(self, payload: Any) -> Any:
        if payload is None or payload.id is not None:  # an image that was sent to `accept_blobs`
            return None
        background, composite = (file and Path(file.path) for file in (payload.background, payload.composite))
        layers = [Path(layer.path) for layer in payload.layers or () if layer]
        return {"background": background, "layers": layers, "composite": composite}

    def accept_blobs(self, data: Any) -> None:
        """Do nothing, and be closed to clients: Gradio's keeps all it is sent, for editors with a change event."""
