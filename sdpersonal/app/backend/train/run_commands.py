"""Do what a user asks of a training: sample now, keep a step, change the sample prompts, cancel, resume, dismiss."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from .... import storage
from ....concepts.concept import Concept
from ....concepts.concept_file import concept_from_bytes
from ....concepts.strict_safetensors import MAX_FILE_BYTES
from ....concepts.thumbnail import make_thumbnail
from ....config.sample_prompts import check_sample_prompts
from ....errors import UserError
from ....training.control import Command, send
from ....training.own_prompts import write_own_prompts
from ....training.run_dir import (
    KEPT_FILE,
    read_json,
    read_sample_images,
    snapshot_file,
    to_text,
    validation_folder,
)
from .run_folders import read_process
from .run_status import RunStatus
from .run_view import keepable_steps
from .training_service import TrainingService

_MAX_IMAGE_BYTES = 64 << 20
_MAX_IMAGE_SIDE = 4096  # pixels


def run_command(service: TrainingService, user: str | None, run: str, command: str) -> str:
    """Do what a button says; return a message for the user, "" if there is none. Raises UserError."""
    if command in ("sample", "keep"):
        send(_find_running(service, user, run), Command[command.upper()])
        return ""
    if command in ("cancel", "discard"):
        return service.cancel(user, run)
    if command == "resume":
        return service.resume(user, run)
    if command == "pause":  # it finishes its step, saves and stops
        read_process(_find_running(service, user, run)).terminate(wait=0.0)
        return ""
    if command == "dismiss":
        service.dismiss(user, run)
        return ""
    raise UserError("There is no such command.")


def _find_running(service: TrainingService, user: str | None, run: str) -> Path:
    """Return the folder of a running training. Raises UserError if it does not run."""
    status = service.find(user, run)
    if not status.running:
        raise UserError("This training does not run.")
    return status.folder


def keep_step(service: TrainingService, user: str | None, run: str, step: int) -> str:
    """Make the concept from the state after this step: a running training ends for it, of an ended one the state is
    added to the library as a further version. Return a message. Raises UserError if the state was not kept."""
    status = service.find(user, run)
    if step not in keepable_steps(status, [step]):
        raise UserError(f"The state after step {step:,} was not kept.", "Choose another step.")
    if status.running:
        send(status.folder, Command.KEEP, step)
        return f"The training ends now, with the concept as it was after step {step:,}."
    token = service.workspace.library.add(_read_snapshot(status, step))
    saved = read_json(status.folder / KEPT_FILE)
    storage.write_json(status.folder / KEPT_FILE, saved | {str(step): str(token)})
    return f"{token} is in your library: the concept as it was after step {step:,}."


def set_prompts(service: TrainingService, user: str | None, run: str, prompts: Sequence[str]) -> None:
    """Set the sample prompts of a training, from its next samples on. Raises UserError."""
    status = service.find(user, run)
    if status.state in ("done", "damaged"):
        raise UserError("This training has ended.", "Change the prompts before its last step.")
    token, kind = to_text(status.settings.get("token")), to_text(status.settings.get("kind"))
    write_own_prompts(status.folder, check_sample_prompts(prompts, token, kind))


def _read_snapshot(status: RunStatus, step: int) -> Concept:
    """Read the concept of a validation; its thumbnail is the validation's first image."""
    path = snapshot_file(status.folder, step)
    concept = concept_from_bytes(storage.read_bytes(path, MAX_FILE_BYTES), path.name)
    if concept.token.unversioned() != concept.token:
        concept = dataclasses.replace(concept, token=concept.token.unversioned())
    images = read_sample_images(validation_folder(status.folder, step))
    if not images:
        return concept
    try:
        with Image.open(io.BytesIO(storage.read_bytes(images[0].path, _MAX_IMAGE_BYTES)), formats=["PNG"]) as image:
            if max(image.size) > _MAX_IMAGE_SIDE:
                return concept
            return dataclasses.replace(concept, thumbnail=make_thumbnail(image.convert("RGB")))
    except (UserError, OSError, ValueError, SyntaxError):
        return concept
