"""Find a run's folder, its identity, and the step from which it resumes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..config import TrainingSettings
from ..errors import UserError, printable
from ..models import StableDiffusion
from ..photos.loading import PhotoSet
from ..prompts import Token
from .checkpoint import (
    CheckpointState,
    check_same_run,
    latest_identity,
    load_checkpoint,
    no_checkpoint_error,
)
from .methods.factory import method_name
from .presets import Preset
from .run_dir import RESULT_FILE, RUNS_FOLDER, latest_step

# The result does not depend on these, or only through what `run_identity` adds in their place. Steps may grow.
_NOT_IN_IDENTITY = {"photos", "base", "revision", "steps", "lr", "batch", "accumulate", "checkpointing"} | {
    "library",
    "run",
    "resume",
    "save_every",
    "samples",
    "sample_prompts",
    "early_stop",
    "report_to",
    "consent",
}


def run_folder(settings: TrainingSettings) -> Path:
    """Return --run; else the first of runs/me-duck-method, ...-2, ... that holds no finished run.

    With --resume it is the newest of those that exists. Raises UserError if --resume finds no checkpoint there, or
    if the folder is inside that of the photos, where its images would be trained on.
    """
    folder = settings.run or _default_folder(settings)
    if folder.resolve().is_relative_to(settings.photos.resolve()):
        raise UserError(
            f"The run's folder {printable(str(folder))} is inside the folder of photos.",
            "Give a --run folder elsewhere.",
        )
    if settings.resume and latest_step(folder) is None:
        raise no_checkpoint_error(folder)
    return folder


def _default_folder(settings: TrainingSettings) -> Path:
    name = f"{Token.parse(settings.token).slug}-{method_name(settings)}"
    number, folder = 1, RUNS_FOLDER / name
    previous = folder
    while folder.exists() if settings.resume else (folder / RESULT_FILE).exists():
        number += 1
        previous, folder = folder, RUNS_FOLDER / f"{name}-{number}"
    return previous if settings.resume else folder


def run_identity(
    settings: TrainingSettings, base: StableDiffusion, photos: PhotoSet, preset: Preset, photos_per_step: int
) -> dict[str, object]:
    """Return all that the result of the run depends on, except the number of steps, which may grow."""
    return settings.model_dump(mode="json", exclude=_NOT_IN_IDENTITY) | {
        "method": method_name(settings),
        "base": base.version,
        "resolution": settings.resolution or base.resolution,
        "photos": photos.identity,
        "lr": preset.lr,
        "targets": preset.targets,
        "snr_gamma": preset.snr_gamma,
        "batch": photos_per_step,
        "steps": preset.steps if settings.schedule == "cosine" else None,  # cosine: every step's rate depends on them
    }


def start_step(
    settings: TrainingSettings,
    run: Path,
    checkpoint_state: CheckpointState,
    identity: dict[str, object],
    steps: int,
    say: Callable[[str], None],
) -> int:
    """Return 0 for a new run. With --resume, load the newest whole checkpoint and return its step.

    Raises UserError if the checkpoint belongs to another run.
    """
    if not settings.resume:
        return 0
    checkpoint = load_checkpoint(run, checkpoint_state, identity)
    if checkpoint.step > steps:
        raise UserError(
            f"The run is at step {checkpoint.step} already, past --steps {steps}.",
            "Give more --steps, or another --run to start anew.",
        )
    say(checkpoint.note)
    return checkpoint.step


def check_not_finished(settings: TrainingSettings, run: Path) -> None:
    """Raise UserError if the folder holds a finished run and --resume was not given."""
    if settings.resume or not (run / RESULT_FILE).exists() or (step := latest_step(run)) is None:
        return
    raise UserError(
        f"{printable(str(run))} holds a finished run, of {step} steps.",
        "Add --resume --no-early-stop and more --steps to continue it, or give another --run folder.",
    )


def check_no_earlier_run(settings: TrainingSettings, run: Path, identity: dict[str, object], steps: int) -> None:
    """Raise UserError if the folder holds a run and --resume was not given."""
    if settings.resume:
        return
    step, folder = latest_step(run), printable(str(run))
    if step is None:
        return
    check_not_finished(settings, run)
    try:
        check_same_run(identity, latest_identity(run) or {})
    except UserError:
        raise UserError(
            f"{folder} holds an unfinished run of other settings, at step {step}.", "Give another --run folder."
        ) from None
    raise UserError(
        f"{folder} holds an unfinished run of the same settings, at step {step} of {steps}.",
        "Add --resume to continue it, or give another --run folder to start anew.",
    )
