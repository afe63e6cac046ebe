"""Store the sha256 of a base's weights, by which recipes identify it, between runs: hashing 10 GB takes seconds.

A hash is kept by the path, size, times and inode of each file, so that a file that is changed or replaced is hashed
anew. The hashes are in one small JSON file in the user's cache folder. It can be deleted at any time; where it cannot
be read or written, files are hashed each time.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ... import storage
from ...errors import UserError

_CACHE_NAME = "weight-hashes.json"
_MIN_BYTES = 64 << 20  # smaller files are hashed in a tenth of a second
_MAX_ENTRIES = 200
_MAX_CACHE_BYTES = 1 << 20
# A file changed again within one tick of the file system's clock would keep its time; 2 s is FAT's tick.
_SETTLED_NS = 2_000_000_000
_LOCK_SECONDS = 2.0
_SHA256 = re.compile(r"[0-9a-f]{64}")


def sha256_of_files(paths: Sequence[Path]) -> str:
    """Return the sha256 of the files' bytes; for one file it equals `sha256sum` and A1111's model hash.

    Large files that have not changed since they were hashed are not read again.
    """
    before = [path.stat() for path in paths]
    if sum(status.st_size for status in before) < _MIN_BYTES:
        return _compute(paths)
    key = _key(paths, before)
    if stored := _read().get(key):
        return stored
    computed = _compute(paths)
    after = [path.stat() for path in paths]
    is_settled = all(time.time_ns() - status.st_mtime_ns > _SETTLED_NS for status in after)
    if is_settled and _key(paths, after) == key:
        _store(key, computed)
    return computed


def _compute(paths: Sequence[Path]) -> str:
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 24):
                total.update(block)
    return total.hexdigest()


def _key(paths: Sequence[Path], statuses: Sequence[os.stat_result]) -> str:
    """Return what identifies the files and their content. st_ctime_ns: setting the other time back changes it."""
    return json.dumps(
        [
            [str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev]
            for path, status in zip(paths, statuses, strict=True)
        ]
    )


def _cache_folder() -> Path | None:
    """Return the folder of the cache; None if the user has no home."""
    with suppress(RuntimeError):
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sdpersonal"
    return None


def _read() -> dict[str, str]:
    """Return the stored hashes by key; none if the cache is missing or damaged."""
    folder = _cache_folder()
    if folder is None:
        return {}
    try:
        content = json.loads(storage.read_bytes(folder / _CACHE_NAME, _MAX_CACHE_BYTES))
    except (UserError, ValueError, RecursionError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {key: value for key, value in content.items() if isinstance(value, str) and _SHA256.fullmatch(value)}


def _store(key: str, computed: str) -> None:
    """Add a hash to the cache, the newest last; do nothing where it cannot be written."""
    folder = _cache_folder()
    if folder is None:
        return
    with suppress(UserError, OSError), storage.lock(folder, timeout=_LOCK_SECONDS):
        entries = {**_read(), key: computed}
        storage.write_json(folder / _CACHE_NAME, dict(list(entries.items())[-_MAX_ENTRIES:]))
