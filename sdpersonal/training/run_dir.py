"""The contents of a run folder: the names of its files, its checkpoints, and readers that tolerate what a kill left.

This module imports no torch, so that the app and the command line can look into a run folder at once.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from .. import storage
from ..errors import UserError

RUNS_FOLDER = Path("runs")  # run folders are in it unless --run says otherwise
PROGRESS_FILE = "progress.jsonl"  # a line for each step
VALIDATIONS_FILE = "trials.jsonl"  # a line for each validation
VALIDATIONS_FOLDER = "trials"  # images of each validation
CLASS_NOUN_IMAGE = "class-noun.png"  # in VALIDATIONS_FOLDER
COST_FILE = "cost.json"  # measurements of the dry run
COMMAND_FILE = "ask"  # a command that the run has not read yet
RESULT_FILE = "result.json"  # written by a finished run
CURVES_FILE = "loss.png"
SAMPLES_FILE = "samples.png"
REPORT_FILE = "report.html"
MODEL_FOLDER = "model"  # the model of full DreamBooth
DRY_RUN_FOLDER = "rehearsal"  # the checkpoint of the dry run, while it is written
MANIFEST_FILE = "manifest.json"  # in a checkpoint's folder, written last

# A run logs one of these lines, each with a step number, when it ends before its last step.
CONVERGED_LINE = "The loss has converged: ended after step"
KEPT_LINE = "Ended after step"
ENDING_LINES = (CONVERGED_LINE, KEPT_LINE, "There is no more to learn")  # the last: of former versions

_CHECKPOINT = re.compile(r"step-([0-9]{6,9})")
_MAX_JSON_BYTES = 1 << 20


def checkpoint_folder(run: Path, step: int) -> Path:
    return run / f"step-{step:06d}"


def checkpoint_folders(run: Path) -> dict[int, Path]:
    """Return the folders of all checkpoints by step, ascending; a damaged one has perhaps no manifest."""
    matches = ((_CHECKPOINT.fullmatch(path.name), path) for path in run.glob("step-*"))
    return dict(sorted((int(match[1]), path) for match, path in matches if match and path.is_dir()))


def checkpoint_steps(run: Path) -> list[int]:
    """Return the steps of the checkpoints that look complete, ascending."""
    return [step for step, folder in checkpoint_folders(run).items() if (folder / MANIFEST_FILE).exists()]


def latest_step(run: Path) -> int | None:
    """Return the newest step with a checkpoint that looks complete, or None."""
    return max(checkpoint_steps(run), default=None)


def has_checkpoint(run: Path) -> bool:
    return latest_step(run) is not None


def validation_image(run: Path, step: int) -> Path:
    return run / VALIDATIONS_FOLDER / f"step-{step:06d}.png"


def validation_images(run: Path) -> dict[int, Path]:
    """Return the images of all validations by step, ascending."""
    matches = ((_CHECKPOINT.fullmatch(path.stem), path) for path in (run / VALIDATIONS_FOLDER).glob("step-*.png"))
    return dict(sorted((int(match[1]), path) for match, path in matches if match))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; {} if the file is missing or holds none."""
    try:
        return parse_object(storage.read_bytes(path, _MAX_JSON_BYTES)) or {}
    except UserError:
        return {}


def read_json_lines(path: Path, max_bytes: int) -> list[dict[str, Any]]:
    """Read the JSON objects of a file, one a line; incomplete lines are left out, a missing file has none."""
    try:
        lines = storage.read_bytes(path, max_bytes).splitlines()
    except UserError:
        return []
    return [entry for line in lines if (entry := parse_object(line)) is not None]


def parse_object(text: bytes | str) -> dict[str, Any] | None:
    """Parse a JSON object; None if the text is none, such as a line that a kill cut off."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def to_number(value: object) -> float:
    """Convert a JSON value to a float; 0 if it is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0.0
    try:
        return float(value) if math.isfinite(value) else 0.0
    except OverflowError:
        return 0.0
