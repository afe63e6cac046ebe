"""Build the view of a training for the page: texts, a progress bar, a loss curve, sample images."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .... import storage
from ....config import CONCEPT_KINDS
from ....display.units import GB, format_minutes
from ....errors import UserError, printable
from ....training.run_dir import (
    CLASS_NOUN_IMAGE,
    REPORT_FILE,
    SAMPLES_FILE,
    VALIDATIONS_FOLDER,
    to_number,
    to_text,
    validation_images,
)
from ..workspace import Workspace
from .loss_plot import loss_svg, progress_html
from .run_status import RunStatus

_LARGEST = 64 << 20  # bytes of an image or a report
_PNG = b"\x89PNG\r\n\x1a\n"  # the first bytes of a PNG


@dataclass(frozen=True)
class RunView:
    """A training as the page shows it. title, text: its status; bar, curve: HTML made of numbers; images: (file in
    the session folder, caption); score: the best validation so far; stamp: changes with the images only."""

    title: str
    text: str
    bar: str = ""
    curve: str = ""
    images: tuple[tuple[str, str], ...] = ()
    score: str = ""
    stamp: str = ""
    prompts: tuple[str, ...] = ()
    report: str = ""


def run_view(status: RunStatus, workspace: Workspace, page: str, seen: str = "") -> RunView:
    """Build the view of a run. seen: stamp of the images that the page shows already, which are not copied again."""
    formatters = {
        "starting": _starting_text,
        "training": _training_text,
        "finishing": _finishing_text,
        "done": _done_text,
    }
    title, text, share = formatters.get(status.state, _ended_text)(status)
    stamp, images = _find_images(status)
    stamp = f"{status.folder.name} {stamp}"
    images_changed = stamp != seen
    return RunView(
        title,
        text,
        progress_html(share) if status.running else "",
        loss_svg(status.points, status.steps),
        _publish_images(images, workspace, page) if images_changed else (),
        _score_text(status),
        stamp,
        _prompts(status, workspace) if status.state == "done" else (),
        _report(status, workspace, page) if status.state == "done" and images_changed else "",
    )


def _token(status: RunStatus) -> str:
    return to_text(status.settings.get("token"))


def _starting_text(status: RunStatus) -> tuple[str, str, float | None]:
    waited = min(max(0, round(time.time() - status.started_at)), 86_400)
    text = "Loading the model, checking the photos, testing one step"
    if cost := _cost_text(status):
        text = f"The dry run is done. {cost}"
    return f"Preparing to train {_token(status)}", f"{text} … ({waited} s)", None


def _training_text(status: RunStatus) -> tuple[str, str, float | None]:
    left = f"at most about {format_minutes(status.seconds_left)} left" if status.seconds_left is not None else ""
    text = f"Step {status.step:,} of at most {status.steps:,}; {left}. It stops earlier if the loss has converged."
    if status.pending_command:
        text += {"sample": " Samples come after this step.", "keep": " It stops after this step."}.get(
            status.pending_command, ""
        )
    return f"Training {_token(status)}", text, status.step / max(status.steps, 1)


def _finishing_text(status: RunStatus) -> tuple[str, str, float | None]:
    text = f"Trained for {status.step:,} steps. Choosing the best checkpoint and generating its samples …"
    return f"Finishing {_token(status)}", text, None


def _done_text(status: RunStatus) -> tuple[str, str, float | None]:
    duration = f", after {format_minutes(status.seconds)}" if status.seconds else ""
    text = f"It is in your library{duration}. Use {status.token} in a prompt, or try one of these."
    return f"{status.token} is ready", text, None


def _ended_text(status: RunStatus) -> tuple[str, str, float | None]:
    if status.state == "damaged":
        title = f"The training of {_token(status)} is damaged" if _token(status) else "A training is damaged"
        folder = printable(str(status.folder), 300)
        return title, f"{status.message}\nIt cannot be resumed. Discard deletes its folder, {folder}.", None
    if status.can_resume:
        next_ = f"It is saved up to step {status.step:,} of {status.steps:,}: press Resume to continue."
    else:
        next_ = "Nothing was added. Press Resume to try again, or Discard and start with other settings."
    title = f"{_token(status)} is not finished"
    return title, f"{page_text(status.message)}\n{next_}", None


def page_text(message: str) -> str:
    """Remove the trainer's command-line hints that the page has buttons for."""
    lines = [line for line in message.splitlines() if line.strip() not in ("Add --resume to go on.",)]
    return "\n".join(lines)


def _cost_text(status: RunStatus) -> str:
    memory, seconds = to_number(status.cost.get("held")), to_number(status.cost.get("seconds"))
    if not memory or not seconds:
        return ""
    return f"At most {format_minutes(seconds)}, with {memory / GB:.1f} GB of memory"


def _read_validations(status: RunStatus) -> list:
    from ....training.validation import read_validations

    return read_validations(status.folder)


def _find_images(status: RunStatus) -> tuple[str, list[tuple[Path, str]]]:
    """Return the stamp and images: the newest samples or the finished concept's, and the class noun's to compare."""
    if status.state == "done":
        images = [(status.folder / SAMPLES_FILE, f"{status.token}: samples")]
        stamp = "done"
    else:
        sample_sheets = validation_images(status.folder)
        if not sample_sheets:
            return "", []
        step, newest = max(sample_sheets.items())
        images = [(newest, f"After step {step:,}")]
        stamp = f"{step} {_modified_at(newest)}"
    class_noun_image = status.folder / VALIDATIONS_FOLDER / CLASS_NOUN_IMAGE
    images.append((class_noun_image, f"For comparison: {printable(_noun(status), 40)} without the concept"))
    return stamp, images


def _modified_at(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _noun(status: RunStatus) -> str:
    nouns = (to_text(status.settings.get(name)) for name in ("class_noun", "init"))
    return next(filter(None, nouns), "the class")


def _publish_images(images: Sequence[tuple[Path, str]], workspace: Workspace, page: str) -> tuple[tuple[str, str], ...]:
    """Copy the images into the page's folder, without those that are missing or no images."""
    published = []
    for path, caption in images:
        with suppress(UserError):
            if storage.read_head(path, len(_PNG))[0] == _PNG:
                published.append((_publish(path, workspace, page), caption))
    return tuple(published)


def _publish(path: Path, workspace: Workspace, page: str) -> str:
    run_folder = path.parent.parent if path.parent.name == VALIDATIONS_FOLDER else path.parent
    folder = storage.make_folder(workspace.session_dir(page) / run_folder.name)
    data = storage.read_bytes(path, _LARGEST)
    target = folder / f"{path.stem}-{storage.sha256(data)[:8]}{path.suffix}"
    if not target.exists():
        storage.write_bytes(target, data)
    return str(target)


def _score_text(status: RunStatus) -> str:
    from ....evaluation import explain_scores, format_scores
    from ....training.validation import best_validation

    best = best_validation(_read_validations(status))
    if best is None or best.scores is None:
        return ""
    prefix = "" if status.state == "done" else f"So far (step {best.step:,} is the best): "
    kinds = [kind for kind in CONCEPT_KINDS if kind == status.settings.get("kind")]
    sentences = explain_scores(best.scores, _noun(status), *kinds)
    explanation = " ".join(printable(line, 400) for line in sentences)
    return f"{prefix}{explanation}\n{format_scores(best.scores)}"


def _prompts(status: RunStatus, workspace: Workspace) -> tuple[str, ...]:
    from ....prompts import Token

    try:
        card = workspace.library.find(Token.parse(status.token)).card
    except UserError:  # deleted or renamed since
        return ()
    return card.prompts[:4] if card else ()


def _report(status: RunStatus, workspace: Workspace, page: str) -> str:
    with suppress(UserError):
        return _publish(status.folder / REPORT_FILE, workspace, page)
    return ""  # it is missing or too large
