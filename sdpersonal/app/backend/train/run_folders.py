"""The folders of the app's runs: which there are, and the small JSON files in them, which are read again only if they
have changed."""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .... import storage
from ....training.run_dir import read_json, to_number, to_step
from .trainer_process import Process

PROCESS_FILE, SETTINGS_FILE, PHOTOS_FOLDER = "process.json", "settings.json", "photos"
MAX_AHEAD = 86_400.0  # seconds by which a run may have begun after the present time: the clock was set back
_MAX_CACHED = 20_000  # files

_cache: dict[Path, tuple[tuple[int, int, int], dict[str, Any]]] = {}
_cache_lock = threading.Lock()


def read_run_json(path: Path) -> dict[str, Any]:
    """Read a JSON object as `read_json` does. It must not be changed: it is kept until the file changes."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return read_json(path)
    if not stat.S_ISREG(status.st_mode):
        return read_json(path)
    version = (status.st_mtime_ns, status.st_size, status.st_ino)
    with _cache_lock:
        known = _cache.get(path)
    if known and known[0] == version:
        return known[1]
    content = read_json(path)
    with _cache_lock:
        if len(_cache) >= _MAX_CACHED:
            _cache.clear()
        _cache[path] = version, content
    return content


def is_app_run(folder: Path) -> bool:
    """Return whether the app started the run in this folder, whatever its files hold now."""
    return any(os.path.lexists(folder / name) for name in (PROCESS_FILE, SETTINGS_FILE))


def start_time(process_info: dict[str, Any]) -> float:
    """Return when a run began, in seconds since 1970; 0 if that is unknown, or has yet to come."""
    return to_number(process_info.get("began"), time.time() + MAX_AHEAD)


def parse_process(about: dict[str, Any]) -> Process:
    """Return the process that a run's file names."""
    return Process(int(to_number(about.get("pid"))), to_number(about.get("born")))


def read_process(folder: Path) -> Process:
    """Return the process of a run, which may have ended."""
    return parse_process(read_run_json(folder / PROCESS_FILE))


def list_folders(folder: Path) -> list[Path]:
    """List the folders in a folder, without hidden ones, such as those that a kill left half deleted."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    return [folder / name for name in names if not name.startswith(".") and os.path.isdir(folder / name)]


def write_process(folder: Path, process: Process, **values: float | bool) -> None:
    """Write which process a run is, and these values; when it was made, and on how many photos, stays."""
    info = read_run_json(folder / PROCESS_FILE)
    lasting = {"created": to_number(info.get("created")), "photos": to_step(info.get("photos"))}
    known = {name: value for name, value in lasting.items() if value}
    storage.write_json(folder / PROCESS_FILE, known | {"pid": process.pid, "born": process.create_time} | values)


def list_runs(folder: Path) -> Sequence[Path]:
    """List the runs in a folder that the app started, newest first; those of an unknown time come last."""
    runs = [path for path in list_folders(folder) if is_app_run(path)]
    return sorted(runs, key=lambda path: (start_time(read_run_json(path / PROCESS_FILE)), path), reverse=True)
