"""Write the folder of a new run, and tidy that of one that has ended."""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path
from typing import Any

from .... import storage
from ....config import TrainingSettings, settings_to_json
from ....photos.loading import is_sidecar
from ....prompts import Token
from ....training.own_prompts import write_own_prompts
from ....training.run_dir import (
    COST_FILE,
    PROGRESS_FILE,
    RESULT_FILE,
    read_json,
    read_progress,
    to_number,
    to_step,
)
from .run_folders import PHOTOS_FOLDER, PROCESS_FILE, SETTINGS_FILE, read_process
from .training_cost import MeasuredCosts
from .uploads import PhotoUploads

FEWEST_STEPS = 10  # from which the time of a step is taken


def new_run_name(settings: TrainingSettings) -> str:
    """Return a name for a run's folder that no other run has."""
    return f"{Token.parse(settings.token).slug}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def write_new_run(folder: Path, settings: TrainingSettings, uploads: PhotoUploads, place: float) -> None:
    """Write the folder of a run that waits. place: in the line. Raises UserError for unusable photos, DiskFull.

    After a crash at any moment the page lists the run, so that it can be discarded, or it is swept.
    """
    with storage.new_folder(folder) as staged:
        uploads.copy_to(staged / PHOTOS_FOLDER)
        photos = [name for name in os.listdir(staged / PHOTOS_FOLDER) if not is_sidecar(name)]
        storage.write_json(staged / SETTINGS_FILE, settings_to_json(settings))
        if settings.sample_prompts:
            write_own_prompts(staged, settings.sample_prompts)
        info = {"pid": 0, "born": 0.0, "began": time.time(), "queued": place}
        storage.write_json(staged / PROCESS_FILE, info | {"created": info["began"], "photos": len(photos)})


def tidy_run(folder: Path, costs: MeasuredCosts) -> None:
    """Delete what a crash left in a run, and the photos of a finished one; save what it cost."""
    if read_process(folder).is_alive():
        return
    storage.remove_leftovers(folder)
    if read_json(folder / RESULT_FILE) and (folder / PHOTOS_FOLDER).exists():
        costs.add(read_json(folder / SETTINGS_FILE), _measured_cost(folder))
        storage.remove(folder / PHOTOS_FOLDER)


def _measured_cost(folder: Path) -> dict[str, Any]:
    """Return what the dry run measured, with the seconds that the steps took in fact since the run was resumed last."""
    cost, entries = read_json(folder / COST_FILE), read_progress(folder / PROGRESS_FILE)
    seconds, steps = [to_number(entry.get("seconds")) for entry in entries], [entry["step"] for entry in entries]
    resumed = [place for place in range(1, len(entries)) if seconds[place] < seconds[place - 1]]
    first = resumed[-1] if resumed else 0
    if entries and steps[-1] - steps[first] >= FEWEST_STEPS:
        pace = (seconds[-1] - seconds[first]) / (steps[-1] - steps[first])
        cost["seconds"] = pace * to_step(cost.get("steps"))
    return cost
