"""Read the contents of a run folder: file names and checkpoints, with readers that tolerate what a kill left.

This module imports no torch, so that the app and the command line can look into a run folder at once.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from .. import storage
from ..errors import UserError, printable

RUNS_FOLDER = Path("runs")  # run folders are in it unless --run says otherwise
PROGRESS_FILE = "progress.jsonl"  # a line for each step
VALIDATIONS_FILE = "trials.jsonl"  # a line for each validation
VALIDATIONS_FOLDER = "trials"  # images of each validation
CLASS_NOUN_IMAGE = "class-noun.png"  # in VALIDATIONS_FOLDER
CLASS_NOUN_FOLDER = "class-noun"  # in VALIDATIONS_FOLDER: single images
IMAGES_FILE = "images.json"  # in a folder of single images: the prompt and the seed of each
SNAPSHOT_FILE = "concept.safetensors"  # in a validation's folder: the concept as it was then
PROMPTS_FILE = "prompts.json"  # the user's own sample prompts, read at each validation
KEPT_FILE = "kept.json"  # what was made from snapshots after the run's end: {step: token}
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

MAX_SAMPLE_IMAGES = 50  # of a validation
MAX_STEP = 999_999_999  # the largest that a checkpoint's folder can be named by
_CHECKPOINT = re.compile(r"step-([0-9]{6,9})")
_SAMPLE_NAME = re.compile(r"[0-9]{1,2}\.png")
_MAX_JSON_BYTES = 1 << 20
_MAX_PROGRESS_BYTES = 64 << 20  # the file of 100,000 steps has 10 MB
_MAX_DEPTH = 20  # of nested lists and objects; a deep value can be read, but not be shown or compared
_MAX_DIGITS = 20  # of a whole number; more are no number of ours
_MAX_LOSS = 1e6  # a training ends far below
_MAX_NUMBER = 1e15  # of bytes, seconds, steps and times


def checkpoint_folder(run: Path, step: int) -> Path:
    return run / f"step-{step:06d}"


def checkpoint_folders(run: Path) -> dict[int, Path]:
    """Return the folders of all checkpoints by step, ascending; a damaged one has perhaps no manifest."""
    paths = {path.name: path for path in run.glob("step-*") if path.is_dir()}
    steps = sorted(int(match[1]) for match in map(_CHECKPOINT.fullmatch, paths) if match)
    folders = {step: checkpoint_folder(run, step) for step in steps}
    return {step: folder for step, folder in folders.items() if folder.name in paths}  # step-0000010 is none


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


def validation_folder(run: Path, step: int) -> Path:
    """Return the folder of a validation's single images and its snapshot."""
    return run / VALIDATIONS_FOLDER / f"step-{step:06d}"


def validation_folders(run: Path) -> dict[int, Path]:
    """Return the folders of all validations by step, ascending; runs of former versions have none."""
    matches = ((_CHECKPOINT.fullmatch(path.name), path) for path in (run / VALIDATIONS_FOLDER).glob("step-*"))
    return dict(sorted((int(match[1]), path) for match, path in matches if match and path.is_dir()))


def snapshot_file(run: Path, step: int) -> Path:
    return validation_folder(run, step) / SNAPSHOT_FILE


def has_snapshot(run: Path, step: int) -> bool:
    return 0 < step <= MAX_STEP and snapshot_file(run, step).is_file()


@dataclass(frozen=True)
class SampleImage:
    """A single image of a validation. prompt: with {} for the subject; is_own: of one of the user's own prompts."""

    path: Path
    prompt: str
    seed: int
    is_own: bool = False


def write_sample_images(folder: Path, images: Sequence[SampleImage]) -> None:
    """Write the list of a folder's images."""
    entries = [
        {"file": image.path.name, "prompt": image.prompt, "seed": image.seed, "own": image.is_own} for image in images
    ]
    storage.write_json(folder / IMAGES_FILE, {"images": entries})


def read_sample_images(folder: Path) -> list[SampleImage]:
    """Read the list of a folder's images; [] if there is none, without entries that are none of ours."""
    entries = read_json(folder / IMAGES_FILE).get("images")
    images = []
    for entry in entries[:MAX_SAMPLE_IMAGES] if isinstance(entries, list) else ():
        if not isinstance(entry, dict) or not _SAMPLE_NAME.fullmatch(str(entry.get("file"))):
            continue
        prompt, seed = to_text(entry.get("prompt")), int(to_number(entry.get("seed"), 2**64))
        images.append(SampleImage(folder / entry["file"], prompt, seed, entry.get("own") is True))
    return images


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
    """Parse a JSON object; None if the text is none, such as a line that a kill cut off, or is nested too deeply.

    A whole number that is too long becomes NaN, so that one bad number does not cost the others.
    """
    try:
        value = json.loads(text, parse_int=_parse_int)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and is_shallow(value) else None


def _parse_int(digits: str) -> int | float:
    return int(digits) if len(digits) <= _MAX_DIGITS else math.nan


def is_shallow(value: object) -> bool:
    """Return whether a JSON value has at most _MAX_DEPTH lists and objects in each other."""
    level: list[object] = [value]
    for _ in range(_MAX_DEPTH):
        containers = [part for part in level if isinstance(part, dict | list)]
        level = [part for parts in containers for part in (parts.values() if isinstance(parts, dict) else parts)]
        if not level:
            return True
    return False


def is_number(value: object, largest: float) -> TypeGuard[int | float]:
    """Return whether a JSON value is a number from -largest to largest."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= largest


def to_number(value: object, largest: float = _MAX_NUMBER) -> float:
    """Convert a JSON value to a float; 0 if it is no number from 0 to `largest`."""
    return float(value) if is_number(value, largest) and value >= 0 else 0.0


def to_step(value: object) -> int:
    """Convert a JSON value to the number of a step; 0 if it is none."""
    return int(to_number(value, MAX_STEP))


def to_text(value: object) -> str:
    """Return a JSON value that is text, safe to show; "" for any other."""
    return printable(value, 200) if isinstance(value, str) else ""


def read_progress(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a progress file that `parse_progress` can use; a missing file, or one too large, has none."""
    try:
        lines = storage.read_bytes(path, _MAX_PROGRESS_BYTES).splitlines()
    except UserError:
        return []
    return [entry for line in lines if (entry := parse_progress(line)) is not None]


def parse_progress(line: bytes) -> dict[str, Any] | None:
    """Parse a line of the progress file: "step" and "loss" are usable numbers, and "fixed", if it is there. None for
    any other line."""
    entry = parse_object(line) or {}
    step, loss, fixed = (entry.get(key) for key in ("step", "loss", "fixed"))
    if type(step) is not int or not 0 < step <= MAX_STEP or not _is_loss(loss):
        return None
    return entry if _is_loss(fixed) else {key: value for key, value in entry.items() if key != "fixed"}


def _is_loss(value: object) -> bool:
    return is_number(value, _MAX_LOSS) and value >= 0
