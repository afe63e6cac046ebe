"""Read the user's own sample prompts of a run: those of its settings, or of the file that the app writes meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .. import storage
from ..config.sample_prompts import check_sample_prompts
from ..errors import UserError
from .run_dir import PROMPTS_FILE, read_json

OWN_SEED = 0  # of each own prompt's image, so that the images of all milestones can be compared


def write_own_prompts(run: Path, prompts: Sequence[str]) -> None:
    """Write the prompts, each with {} for the subject; the run reads them at its next validation."""
    storage.write_json(run / PROMPTS_FILE, {"prompts": list(prompts)})


def read_own_prompts(run: Path, settings_prompts: Sequence[str], token: str, kind: str) -> tuple[str, ...]:
    """Return a run's own prompts, each with {} for the subject. settings_prompts: used without a file."""
    written = read_json(run / PROMPTS_FILE).get("prompts", settings_prompts)
    try:
        return check_sample_prompts(written, token, kind)
    except UserError:  # the file was edited
        return ()
