"""Word error messages for the page."""

from __future__ import annotations

import logging
import re
import uuid

from ...config.text_checks import IF_UNSET
from ...errors import FieldError, UserError

log = logging.getLogger(__name__)


# Labels of the fields of `GenerateRequest` and of the training settings, as the page's scripts have them (tested).
LABELS = {
    "prompt": "Prompt",
    "negative": "Negative prompt",
    "num_images": "Images",
    "steps": "Steps",
    "guidance": "Guidance",
    "size": "Shape",
    "seed": "Seed",
    "all_combinations": "All combinations of {a|b}",
    "hires_scale": "Hires fix",
    "rescale": "Rescale",
    "fast": "Fast LoRA",
    "scheduler": "Scheduler",
    "clip_skip": "Clip skip",
    "compose": "Compose",
    "strength": "Denoising strength",
    "init_image": "Start from an image",
    "class_noun": "Class noun",
    "init": "Class noun",
    "token": "Concept name",
    "lr": "Learning rate",
    "rank": "LoRA rank",
    "resolution": "Resolution",
    "continue_from": "Continue from a concept",
    "method": "Method",
    "vectors": "Vectors",
    "sample_prompts": "Own sample prompts",
}
_FLAG = re.compile(r"--(?:no-)?([a-z][a-z-]*)")
_FLAG_NAMES = {"class": "class noun", "photos": "photos", "base": "model", "run": "training"}
GET_CONCEPT = "Get its file from its author or from the Hub, and import it in the library."


def labelled(error: UserError) -> UserError:
    """Replace the field's name in the error by its label on the page, and drop hints about shells."""
    if isinstance(error, FieldError) and (error.hint == IF_UNSET or error.hint.startswith("See: sdpersonal ")):
        error = FieldError(error.field, error.message)
    elif "sdpersonal hub pull" in error.hint:
        error = UserError(error.message, GET_CONCEPT)
    if isinstance(error, FieldError) and error.field in LABELS and error.message.startswith(f"{error.field} "):
        return error.called(LABELS[error.field])
    return error


def name_fields(text: str) -> str:
    """Replace flags of the command line by the names of the page's fields: "more --steps" becomes "more steps"."""
    text = text.replace("--method lora", "the method DreamBooth LoRA")
    text = text.replace("--base sd15", "choose it on the page Models")
    return _FLAG.sub(lambda match: _field_name(match[1]), text)


def _field_name(flag: str) -> str:
    return _FLAG_NAMES.get(flag) or LABELS.get(flag.replace("-", "_"), flag.replace("-", " ")).lower()


def describe_error(error: Exception) -> str:
    """Return a UserError's full text, else a failure number that the terminal's log explains: internals are not
    shown."""
    if isinstance(error, UserError):
        return str(labelled(error))
    failure_id = uuid.uuid4().hex[:8]
    log.error("failure %s", failure_id, exc_info=error)
    return f"Internal error {failure_id}; the terminal shows the details. Nothing was lost: try again."
