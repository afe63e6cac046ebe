"""Train a concept from Python."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any, Unpack

from ..config import DreamboothSettings, TextualInversionSettings, TrainingSettings
from ..display.progress import OnProgress, ProgressBar, ignore_missing_widgets
from ..errors import UserError
from ..prompts import Token
from .options import DreamboothOptions, StrPath, TextualInversionOptions, documented, in_keywords, to_fields

if TYPE_CHECKING:
    from ..training import TrainResult

logger = logging.getLogger("sdpersonal")


@documented(TextualInversionSettings, TextualInversionOptions)
def train_textual_inversion(
    photos: StrPath,
    token: str | Token,
    *,
    on_progress: OnProgress | None = None,
    quiet: bool = False,
    **settings: Unpack[TextualInversionOptions],
) -> TrainResult:
    """Train a concept by textual inversion: only the embeddings of its token. It suits styles; its file is small.

    A bar shows the progress in a terminal or a notebook. Messages go to the logger "sdpersonal", at INFO.

    Args:
        photos: folder with 3 to 30 photos of one thing, or in one style.
        token: that you will write in prompts, for example '<me/ink>'.
        on_progress: called with a `Progress` after each step; an exception that it raises ends the run.
        quiet: show no bar.

    Returns:
        The concept, which is in the library, and what the run left in its folder.

    Raises:
        UserError: for unusable settings or photos, before training begins.
        Interrupted: after Ctrl-C, with a checkpoint: `resume=True` continues the run.
    """
    bar = ProgressBar("training", on_progress, quiet, transient=False)
    return _train(TextualInversionSettings, TextualInversionOptions, settings, bar, photos=photos, token=token)


@documented(DreamboothSettings, DreamboothOptions)
def train_dreambooth(
    photos: StrPath,
    token: str | Token,
    class_noun: str,
    *,
    on_progress: OnProgress | None = None,
    quiet: bool = False,
    **settings: Unpack[DreamboothOptions],
) -> TrainResult:
    """Train a concept by DreamBooth: a LoRA and the embeddings of its token. It gives the closest likeness.

    A bar shows the progress in a terminal or a notebook. Messages go to the logger "sdpersonal", at INFO.

    Args:
        photos: folder with 3 to 30 photos of one thing.
        token: that you will write in prompts, for example '<me/duck>'.
        class_noun: what the thing is, for example 'toy duck'.
        on_progress: called with a `Progress` after each step; an exception that it raises ends the run.
        quiet: show no bar.

    Returns:
        The concept, which is in the library, and what the run left in its folder.

    Raises:
        UserError: for unusable settings or photos, before training begins.
        Interrupted: after Ctrl-C, with a checkpoint: `resume=True` continues the run.
    """
    bar = ProgressBar("training", on_progress, quiet, transient=False)
    explicit = {"photos": photos, "token": token, "class_noun": class_noun}
    return _train(DreamboothSettings, DreamboothOptions, settings, bar, **explicit)


def _train(
    settings_class: type[TrainingSettings], options: type, keywords: Any, bar: ProgressBar, **explicit: Any
) -> TrainResult:
    with in_keywords(settings_class):
        settings = settings_class(**explicit, **to_fields(settings_class, options, keywords))
        if int(os.environ.get("WORLD_SIZE") or 1) > 1:
            raise UserError(
                "This function trains in one process, and the launcher started several.",
                "Use `accelerate launch train_dreambooth.py`, or sdpersonal.train(settings).",
            )
        with ignore_missing_widgets():
            from ..training import train

        with bar:
            result = train(settings, logger.info, bar.show)
    if result is None:
        raise RuntimeError("Only the main process of a launcher gets a result.")
    return result
