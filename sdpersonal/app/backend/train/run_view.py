"""Describe a training for the page: a summary for the list, and its details, as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ....config import CONCEPT_KINDS
from ....errors import UserError, printable
from ....prompts import Token
from ....training.own_prompts import read_own_prompts
from ....training.run_dir import (
    KEPT_FILE,
    PROMPTS_FILE,
    REPORT_FILE,
    VALIDATIONS_FILE,
    VALIDATIONS_FOLDER,
    checkpoint_steps,
    has_snapshot,
    read_json,
    to_step,
    to_text,
    validation_folders,
    validation_images,
)
from ..error_text import name_fields
from .run_advice import advice_after, fails_again
from .run_images import ShownImage, class_images, photo_urls, samples_url, timeline_images
from .run_progress import loss_curve
from .run_status import RunStatus
from .run_text import noun_of, preparation, run_text, token_of
from .training_service import TrainingService

_MAX_RUNS = 100  # in the list
_MAX_THUMBS = 10_000  # addresses that are remembered
_MAX_TIMELINE = 200  # validations
_COMMANDS: dict[str, tuple[str, ...]] = {
    "waiting": ("cancel",),
    "starting": ("cancel",),
    "training": ("sample", "keep", "pause", "cancel"),
    "finishing": ("cancel",),
    "done": ("dismiss", "discard"),
    "stopped": ("resume", "discard"),
    "failed": ("resume", "discard"),
    "damaged": ("discard",),
}


# --- the list ---------------------------------------------------------------------------------------------------------


def run_summaries(runs: Sequence[RunStatus], service: TrainingService) -> list[dict[str, Any]]:
    """Describe the runs for the list."""
    shown = runs[:_MAX_RUNS]
    line = service.line() if any(run.state == "waiting" for run in shown) else []
    places = {folder: place for place, folder in enumerate(line)}
    return [_summary(run, places.get(run.folder, 0)) for run in shown]


def run_summary(status: RunStatus, service: TrainingService) -> dict[str, Any]:
    """Describe a run in one line, with its progress."""
    return run_summaries([status], service)[0]


def _summary(status: RunStatus, ahead: int) -> dict[str, Any]:
    """Describe a run. ahead: trainings, of anybody, that start before a waiting one."""
    title, text = run_text(status, ahead)
    losses = status.points.losses
    settings = status.settings
    return {
        "id": status.id,
        "token": printable(status.token or token_of(status), 100),
        "state": status.state,
        "step": status.step,
        "steps": status.steps or to_step(settings.get("steps")),
        "left": round(status.seconds_left) if status.seconds_left is not None else None,
        "message": title,
        "text": text,
        "thumb": _thumb(status),
        "method": to_text(settings.get("method")) or "textual-inversion",
        "kind": to_text(settings.get("kind")) or "object",
        "noun": noun_of(status),
        "model": to_text(settings.get("base")),
        "photo_count": status.photos,
        "created": status.created_at,
        "started": status.started_at,
        "ahead": ahead,
        "loss": losses[-1][1] if losses and status.running else None,
        "ready": preparation(status),
    }


def timeline_stamp(status: RunStatus) -> tuple[object, ...]:
    """Return what changes with the run's timeline, and with nothing else of it."""
    names = (VALIDATIONS_FOLDER, VALIDATIONS_FILE, KEPT_FILE, PROMPTS_FILE, REPORT_FILE)
    return status.state, *(_modified_at(status.folder / name) for name in names)


_thumbs: dict[Path, tuple[tuple[int, int], str]] = {}  # of runs that have samples


def _thumb(status: RunStatus) -> str | None:
    version = (_modified_at(status.folder / VALIDATIONS_FOLDER), status.best)
    if status.folder in _thumbs and _thumbs[status.folder][0] == version:
        return _thumbs[status.folder][1]
    steps = sorted({*validation_folders(status.folder), *validation_images(status.folder)}, reverse=True)
    step = status.best if status.best in steps else next(iter(steps), None)
    if step is not None and (images := timeline_images(status, step)):
        if len(_thumbs) >= _MAX_THUMBS:
            _thumbs.clear()
        _thumbs[status.folder] = version, images[0].url
        return images[0].url
    return next(iter(photo_urls(status)), None)


# --- the details ------------------------------------------------------------------------------------------------------


def run_details(status: RunStatus, service: TrainingService) -> dict[str, Any]:
    """Describe a run with its timeline, curve and verdict."""
    timeline, verdict = _timeline(status)
    return run_summary(status, service) | {
        "timeline": timeline,
        "class_images": [{"url": image.url, "prompt": image.prompt} for image in class_images(status)],
        "photos": [{"thumb": url} for url in photo_urls(status)],
        "curve": loss_curve(status.points),
        "verdict": verdict,
        "prompts": own_prompts(status),
        "can_set_prompts": status.state in ("waiting", "starting", "training", "stopped", "failed"),
        "try_prompts": list(_ready_prompts(status, service)) if status.state == "done" else [],
        "samples": samples_url(status),
        "report": _report_url(status),
        "advice": [asdict(advice) for advice in advice_after(status)],
        "commands": [name for name in _COMMANDS[status.state] if not (name == "resume" and fails_again(status))],
        "kept": kept_tokens(status.folder),
    }


def keepable_steps(status: RunStatus, steps: Iterable[int]) -> set[int]:
    """Return those steps from whose state the concept can be made: of LoRAs and embeddings each validation keeps one;
    all weights of a model are too large for that, so of these only the newest and the best are there."""
    if status.state not in ("training", "done", "stopped", "failed"):
        return set()
    made = set(kept_tokens(status.folder)) | ({str(status.best)} if status.state == "done" else set())
    checkpoints = checkpoint_steps(status.folder) if status.state == "training" else ()
    return {
        step for step in steps if str(step) not in made and (step in checkpoints or has_snapshot(status.folder, step))
    }


def kept_tokens(run: Path) -> dict[str, str]:
    """Return what was made of a run's snapshots after its end: {step: token}."""
    return {
        step: text for step, token in read_json(run / KEPT_FILE).items() if (text := to_text(token)) and step.isdigit()
    }


def own_prompts(status: RunStatus) -> list[str]:
    """Return the user's own sample prompts, with the token in them."""
    token, kind = token_of(status), to_text(status.settings.get("kind"))
    return [prompt.replace("{}", token) for prompt in read_own_prompts(status.folder, (), token, kind)]


def _timeline(status: RunStatus) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the entries of the timeline, and the sentences about the best one."""
    from ....evaluation import explain_scores, format_scores
    from ....training.validation import best_validation, read_validations

    validations = read_validations(status.folder)
    scores = {validation.step: validation.scores for validation in validations}
    best = best_validation(validations)
    best_step = status.best or (best.step if best else 0)
    kinds = [kind for kind in CONCEPT_KINDS if kind == status.settings.get("kind")]
    steps = sorted({*validation_folders(status.folder), *validation_images(status.folder), *scores})[-_MAX_TIMELINE:]
    keepable = keepable_steps(status, steps)
    entries = []
    verdict: list[str] = []
    for step in steps:
        scored = scores.get(step)
        explained = explain_scores(scored, noun_of(status), *kinds) if scored else []
        sentences = [name_fields(printable(sentence, 400)) for sentence in explained]
        if step == best_step and scored:
            verdict = [*sentences, format_scores(scored)]
        entries.append(
            {
                "step": step,
                "images": [_image_json(image) for image in timeline_images(status, step)],
                "scores": scored.to_dict() if scored else None,
                "sentences": sentences,
                "best": step == best_step and not (scored and scored.out_of_domain),
                "can_keep": step in keepable,
            }
        )
    return entries, verdict


def _image_json(image: ShownImage) -> dict[str, Any]:
    return {"url": image.url, "prompt": image.prompt, "seed": image.seed, "own": image.is_own}


def _ready_prompts(status: RunStatus, service: TrainingService) -> tuple[str, ...]:
    try:
        card = service.workspace.library.find(Token.parse(status.token)).card
    except UserError:  # deleted or renamed since
        return ()
    return card.prompts[:4] if card else ()


def _report_url(status: RunStatus) -> str | None:
    path = status.folder / REPORT_FILE
    exists = status.state == "done" and path.is_file()
    return f"/app/trainings/{status.id}/report?v={_modified_at(path):x}" if exists else None


def _modified_at(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_mtime_ns
    return 0
