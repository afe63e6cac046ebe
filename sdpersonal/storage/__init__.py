"""Read and write files all or nothing. No other package creates, renames or deletes files.

Content is written to a temporary file beside its target, is flushed to the disk, and is then renamed into place, so
that a crash at any moment leaves the old content or the new (the order is SQLite's: data before the name, the folder
after it). A process killed half-way leaves a temporary file; `remove_leftovers` removes those that
no living process holds.
"""

from .atomic import (
    append_line,
    open_log,
    private_folder,
    remove_leftovers,
    sync,
    write_bytes,
    write_json,
    write_new_bytes,
    write_text,
)
from .folders import check_folder, make_folder, new_folder, remove, remove_empty_folder, rename
from .locks import LOCK_NAME, LOCK_TIMEOUT, hold_lock, lock
from .os_errors import free_bytes
from .reading import open_to_read, read_bytes, read_head, resolve_inside, sha256

__all__ = [
    "LOCK_NAME",
    "LOCK_TIMEOUT",
    "append_line",
    "check_folder",
    "free_bytes",
    "hold_lock",
    "lock",
    "make_folder",
    "new_folder",
    "open_log",
    "open_to_read",
    "private_folder",
    "read_bytes",
    "read_head",
    "remove",
    "remove_empty_folder",
    "remove_leftovers",
    "rename",
    "resolve_inside",
    "sha256",
    "sync",
    "write_bytes",
    "write_json",
    "write_new_bytes",
    "write_text",
]
