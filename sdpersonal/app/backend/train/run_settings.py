"""Read the settings of a run from its folder, which somebody else may have written: they may say what is trained, but
not what is read, written or sent."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ....config import DreamboothSettings, TrainingSettings, settings_from_json
from ....errors import UserError
from ....models.loading import BUILT_IN
from ....models.loading.diffusers_folder import missing_file
from ....models.loading.hub_cache import SHORT_NAMES, cached_folder
from ..workspace import Workspace
from .run_folders import PHOTOS_FOLDER, SETTINGS_FILE, read_run_json
from .train_form import PRIORS


def own_paths(folder: Path, workspace: Workspace) -> dict[str, object]:
    """Return the paths in the settings of every run of the app."""
    return {"photos": folder / PHOTOS_FOLDER, "library": workspace.library.folder.resolve(), "run": folder}


def untrusted_settings(
    saved: TrainingSettings, folder: Path, workspace: Workspace, loaded_model: str | None
) -> dict[str, object]:
    """Return the values to use in place of those of a run's file which the page could not have set there. loaded_model:
    used in place of a model that is not one of this machine by a short name."""
    is_ours = saved.base == BUILT_IN or _is_cached(saved.base)
    own = own_paths(folder, workspace) | {
        "base": saved.base if is_ours else loaded_model,
        "revision": None,
        "vae": None,
        "report_to": None,
    }
    if isinstance(saved, DreamboothSettings):
        own["prior"] = saved.prior if saved.prior in PRIORS else "none"
    return {name: value for name, value in own.items() if getattr(saved, name) != value}


def waiting_settings(folder: Path, workspace: Workspace, loaded_model: str | None) -> TrainingSettings:
    """Return the settings of a run that waited when the app started. Raises UserError if its model is not one that the
    app may load by that name."""
    saved = settings_from_json(read_run_json(folder / SETTINGS_FILE))
    replaced = untrusted_settings(saved, folder, workspace, loaded_model)
    if "base" in replaced:
        raise UserError("The model of this training has to be chosen again: Resume takes the loaded one.")
    return saved.model_copy(update=replaced)


def _is_cached(base: str | None) -> bool:
    """Return whether this is a model with a short name, which is on this machine."""
    hub_id = SHORT_NAMES.get(base or "")
    return hub_id is not None and cached_folder(hub_id, None, missing_file) is not None


def replaced_note(names: Iterable[str]) -> str:
    """Name the settings that were replaced; "" if there are none."""
    listed = ", ".join(names)
    return f"Not taken from the run's {SETTINGS_FILE}, but set by this app: {listed}." if listed else ""
