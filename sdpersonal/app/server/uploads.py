"""Keep each upload in a folder of its own, within a limit on the disk space of all uploads together.

Gradio leaves a file that is not received to its end, or that it does not use, in its folder for good. With a folder for
each request, whatever a failed request leaves goes with the folder.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
import time
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from python_multipart.multipart import parse_options_header

from ... import storage
from ...errors import UserError

MAX_UPLOAD = 1 << 30  # bytes of a file (a LoRA), of one request, and of all uploads on the disk
MAX_PARTS = 60  # files at once
MIN_FREE_DISK = 2 << 30  # bytes that must stay free on the disk
_MAX_AGE = 3600.0  # seconds after which an upload is deleted
_MIN_AGE = 60.0  # seconds before an upload may make room for others: the page is about to use it
_MAX_RUNNING, _MAX_ENDED = 20, 500  # uploads of one user
_MAX_HEADER = 8192  # bytes of a part's header, as in Gradio's parser
_MAX_BOUNDARY = 200  # bytes

request_folder: ContextVar[Path | None] = ContextVar("request_folder", default=None)


class Refusal(Exception):
    """A request is refused; status: the HTTP status; message: for the client."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status, self.message = status, message


class UploadDir(os.PathLike[str]):
    """The folder in which Gradio stores uploads: in an upload's request that request's own, else `folder`."""

    def __init__(self, folder: Path):
        self._folder = folder

    def __fspath__(self) -> str:
        return str(request_folder.get() or self._folder)

    __str__ = __fspath__


@dataclass(eq=False)
class Upload:
    """One request's files. size: bytes received, then on the disk; ended_at: time.monotonic() of its end, or None."""

    folder: Path
    owner: str
    size: int = 0
    ended_at: float | None = field(default=None, init=False)


class UploadFolders:
    """The folders of all uploads, in `served_dir`; their names cannot be guessed."""

    def __init__(self, served_dir: Path):
        self.served_dir = served_dir
        self._uploads: dict[str, Upload] = {}
        self._lock = threading.RLock()

    def begin(self, owner: str) -> Upload:
        """Make the folder of a new upload. Raises Refusal where there is no room for one, or the user has too many."""
        with self._lock:
            for upload in [upload for upload in self._uploads.values() if _age(upload) > _MAX_AGE]:
                self._remove(upload)
            own = [upload for upload in self._uploads.values() if upload.owner == owner]
            ended = [upload for upload in own if upload.ended_at is not None]
            if len(own) - len(ended) >= _MAX_RUNNING:
                raise Refusal(503, "Too many uploads at once; wait for one to end.")
            for upload in ended[: max(0, len(ended) + 1 - _MAX_ENDED)]:
                self._remove(upload)
            name = f"upload-{secrets.token_urlsafe(16)}"
            upload = self._uploads[name] = Upload(storage.make_folder(self.served_dir / name), owner)
            try:
                self.grow(upload, 0)
            except Refusal:
                self._remove(upload)
                raise
        return upload

    def grow(self, upload: Upload, count: int) -> None:
        """Count bytes that have come. Raises Refusal if all uploads together become too many, or the disk too full."""
        with self._lock:
            upload.size += count
            if self._excess() > 0:
                self._make_room(upload.owner)
            if self._excess() > 0:
                raise Refusal(507, "The space for uploads is full; try again in some minutes.")
        if storage.free_bytes(self.served_dir) < MIN_FREE_DISK:
            raise Refusal(507, "The disk is nearly full.")

    def end(self, upload: Upload, succeeded: bool) -> None:
        """Delete what a failed upload left, or all but the files that Gradio moved to their places."""
        with self._lock:
            if succeeded:
                for path in list(upload.folder.glob("*")):
                    if not path.is_dir():
                        storage.remove(path)
                upload.ended_at = time.monotonic()
                self._measure(upload)
            else:
                self._remove(upload)

    def is_owner(self, relative: Path, owner: str) -> bool:
        """Return whether a file is an upload of `owner`. relative: its path in served_dir."""
        with self._lock:
            upload = self._uploads.get(relative.parts[0]) if relative.parts else None
        return upload is not None and upload.owner == owner

    def _excess(self) -> int:
        return sum(upload.size for upload in self._uploads.values()) - MAX_UPLOAD

    def _make_room(self, owner: str) -> None:
        """Forget files that were deleted since, then delete ended uploads of those who have more, and of the owner."""
        ended = [upload for upload in self._uploads.values() if upload.ended_at is not None]
        for upload in ended:
            self._measure(upload)
        for upload in sorted(ended, key=lambda upload: -self._total(upload.owner)):  # each user's oldest first
            if self._excess() <= 0:
                return
            is_larger = upload.owner == owner or self._total(upload.owner) > self._total(owner)
            if upload.folder.name in self._uploads and _age(upload) > _MIN_AGE and is_larger:
                self._remove(upload)

    def _total(self, owner: str) -> int:
        return sum(upload.size for upload in self._uploads.values() if upload.owner == owner)

    def _measure(self, upload: Upload) -> None:
        sizes = _file_sizes(upload.folder)
        upload.size = sum(sizes)
        if not sizes:
            self._remove(upload)

    def _remove(self, upload: Upload) -> None:
        with suppress(UserError):  # it is gone, or the disk fails; nobody waits for an answer
            storage.remove(upload.folder)
        self._uploads.pop(upload.folder.name, None)


class UploadParts:
    """Check the parts of a multipart body as it comes: how many there are, and of an upload that all are its files.

    Raises Refusal at the first part too many; `content_type` is read as Gradio's parser reads it.
    """

    def __init__(self, content_type: str, max_parts: int | None = None, files_only: bool = True):
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/form-data" or not 0 < len(boundary) <= _MAX_BOUNDARY:
            raise Refusal(400, "That is not an upload." if files_only else "The Content-Type is invalid.")
        self._mark, self._rest, self._in_header, self._count = b"--" + boundary, b"", False, 0
        self._max_parts, self._files_only = MAX_PARTS if max_parts is None else max_parts, files_only

    def feed(self, body: bytes) -> None:
        data, position = self._rest + body, 0
        while True:
            if self._in_header:
                end = data.find(b"\r\n\r\n", position)
                if (len(data) if end < 0 else end) - position > _MAX_HEADER:
                    raise Refusal(400, "That is not an upload.")
                if end < 0:
                    self._rest = data[position:]
                    return
                self._add_part(data[position:end])
                self._in_header, position = False, end + 2  # an empty part's end begins with this line's end
            mark = data.find(self._mark, position)
            if mark < 0 or len(data) < mark + len(self._mark) + 2:
                self._rest = data[max(position, len(data) - len(self._mark) - 1) if mark < 0 else mark :]
                return
            position = mark + len(self._mark)
            self._in_header = data[position : position + 2] != b"--"  # those end the body

    def _add_part(self, header: bytes) -> None:
        self._count += 1
        if self._count > self._max_parts:
            raise Refusal(413, f"At most {self._max_parts} files are accepted at once.")
        if self._mark in header:
            raise Refusal(400, "That is not an upload.")
        disposition: bytes = b""
        for line in header.split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.lower() == b"content-disposition":
                disposition = value.strip()
        options = parse_options_header(disposition.decode("latin-1"))[1]
        # Gradio gathers a part without a file name in memory, and never uses files of another name.
        if self._files_only and not (options.get(b"name") == b"files" and b"filename" in options):
            raise Refusal(400, "That is not an upload.")


def forget_progress(upload_id: str, seconds: float = 0) -> None:
    """Make Gradio forget an upload's progress, after some seconds in which the page may still read its end.

    Gradio forgets only those whose end was read.
    """
    from gradio.routes import file_upload_statuses

    def forget() -> None:
        file_upload_statuses.stop_tracking(upload_id)
        file_upload_statuses._signals.pop(upload_id, None)

    if not upload_id:
        return
    if seconds:
        asyncio.get_running_loop().call_later(seconds, forget)
    else:
        forget()


def _age(upload: Upload) -> float:
    return -1.0 if upload.ended_at is None else time.monotonic() - upload.ended_at


def _file_sizes(folder: Path) -> list[int]:
    """Return the bytes of each file in the folder; files deleted meanwhile do not count."""
    sizes = []
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                sizes.append(os.lstat(os.path.join(parent, name)).st_size)
    return sizes
