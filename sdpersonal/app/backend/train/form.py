"""Build training settings from the page's form, and summarize them before a training starts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from ....concepts.library import Library
from ....config import DreamboothSettings, TextualInversionSettings, TrainingSettings
from ....errors import UserError
from ....prompts import Token, printable
from ....units import GB, format_minutes
from ..error_text import labelled
from ..models.info import ModelInfo
from .training_service import pace_key

_THOUSANDS = re.compile(r"[1-9]\d{0,2}(,\d{3})+")  # thousands separators only: 0,001 must not become 1

KINDS = {"One thing or animal": "object", "One person": "person", "A style": "style"}
METHODS = {
    "Closest likeness (DreamBooth, LoRA)": "lora",
    "Likeness that mixes well (pivotal tuning)": "pivotal",
    "Smallest file (textual inversion)": "textual-inversion",
}
PRIORS = {"Nothing": "none", "The class, as the base knows it": "predicted", "The class, from drawn pictures": "drawn"}
_METHOD_EFFECTS = {
    "lora": "changes how the base draws a little, in a file of a few megabytes",
    "pivotal": "learns the word first and then how it is drawn",
    "textual-inversion": "learns a word alone, in a file of a few kilobytes",
}
# Seconds of a step with all overhead, and GB, until a training was measured here; by (kind, device).
_ESTIMATES = {
    ("tiny", "cpu"): (0.4, 0.9),
    ("tiny", "cuda"): (0.15, 1.5),
    ("sd1", "cpu"): (90.0, 9.0),
    ("sd1", "cuda"): (0.8, 9.0),
    ("sd2", "cpu"): (90.0, 9.0),
    ("sd2", "cuda"): (0.8, 9.0),
    ("sdxl", "cpu"): (600.0, 24.0),
    ("sdxl", "cuda"): (2.0, 20.0),
}
_PLACEHOLDER_FOLDER = Path("photos")  # until there is a run


def parse_settings(form: Mapping[str, Any], base: ModelInfo) -> TrainingSettings:
    """Build the training settings from the page's form. Raises UserError for invalid fields.

    form: owner, name, kind, noun, agrees, method, and under "more" steps, lr, rank, resolution, crop, flip, prior,
    text_encoder, early_stop, seed: numbers as typed text, empty for the default.
    """
    kind, method = _parse_choice(KINDS, form["kind"]), _parse_choice(METHODS, form["method"])
    noun = form["noun"].strip() if isinstance(form["noun"], str) else form["noun"]
    if not noun:
        raise UserError("Say in a word or two what it is.", "For example 'toy duck', 'woman' or 'watercolour'.")
    if kind == "person" and form["agrees"] is not True:
        raise UserError("Please tick that this person agrees.", "It is written on the concept's card.")
    common = {
        "photos": _PLACEHOLDER_FOLDER,
        "token": str(parse_form_token(form)),
        "kind": kind,
        "base": base.name,
        "crop": "subject" if form["crop"] else "center",
        "flip": form["flip"],
        "early_stop": form["early_stop"],
    }
    numbers = {name: typed_number(form[name]) for name in ("steps", "lr", "resolution", "seed")}
    common |= {name: value for name, value in numbers.items() if value is not None}
    if kind == "person":
        common["consent"] = "yes"
    if method == "textual-inversion":
        return TextualInversionSettings(**common, init=noun)
    dreambooth = {"class_noun": noun, "method": method, "prior": _parse_choice(PRIORS, form["prior"])}
    dreambooth["text_encoder"] = form["text_encoder"]
    if (rank := typed_number(form["rank"])) is not None:
        dreambooth["rank"] = rank
    return DreamboothSettings(**common, **dreambooth)


def parse_kind(title: object) -> str:
    """Return "object", "person" or "style"; "object" for an unknown title."""
    return KINDS.get(title, "object") if isinstance(title, str) else "object"


def parse_form_token(form: Mapping[str, Any]) -> Token:
    """Build the token from the form's owner and name. Raises UserError, with a spelling that works."""
    owner, name = (form[part].strip() if isinstance(form[part], str) else "" for part in ("owner", "name"))
    if not name:
        raise UserError("Give it a name.", "For example: my-cat")
    token = Token.parse(f"<{owner or 'me'}/{name}>")
    if token.version:
        raise UserError(f"{token} has a version; I count versions myself.", f"Call it {token.name}.")
    return token


def name_note(form: Mapping[str, Any], library: Library) -> str:
    """Return the note on the name while it is typed."""
    if not form["name"]:
        return "This is the word that you will write in prompts."
    try:
        token = parse_form_token(form)
        versions = library.versions(token)
    except UserError as error:
        return " ".join(str(error).splitlines())
    if not versions:
        return f"You will write {token} in prompts."
    return f"{token} is in the library already: this will be version {versions[-1].version + 1}; the others stay."


def plan_text(form: Mapping[str, Any], photos: int, base: ModelInfo, library: Library, pace: Mapping[str, Any]) -> str:
    """Summarize what Start would do: the method, the longest time, the memory."""
    try:
        settings = parse_settings(form, base)
    except UserError as error:
        return f"Before I can start: {labelled(error)}" if photos else "Add photos first, then say what it is."
    if not photos:
        return "Before I can start: add photos."
    method = getattr(settings, "method", "textual-inversion")
    token = parse_form_token(form)
    version = len(library.versions(token)) and library.versions(token)[-1].version + 1
    steps = _max_steps(settings, base, photos)
    measured = pace.get(pace_key(settings.model_dump(mode="json")))
    lines = [
        f"I teach {base.name} the word {token}{f' (version {version})' if version else ''} "
        f"from {photos} photo{'s' if photos > 1 else ''} of "
        f"{'the style ' if settings.kind == 'style' else ''}{printable(str(form['noun']).strip(), 60)}: "
        f"it {_METHOD_EFFECTS[method]}.",
        f"At most {steps:,} steps, {_duration_text(steps, measured, base)}",
        _memory_text(measured, base),
    ]
    return "\n".join(lines)


def _max_steps(settings: TrainingSettings, base: ModelInfo, photos: int) -> int:
    from ....training.methods.factory import resolve_preset

    return resolve_preset(settings, base, photos).steps


def _duration_text(steps: int, took: Mapping[str, float] | None, base: ModelInfo) -> str:
    early_stop_note = "It ends sooner where there is no more to learn."
    if took:
        return f"about {format_minutes(steps * took['step'])}, going by the last one here. {early_stop_note}"
    estimate = steps * _ESTIMATES[base.kind, base.device][0]
    return f"roughly {format_minutes(estimate)}: a guess, until I have tried a step at the start. {early_stop_note}"


def _memory_text(took: Mapping[str, float] | None, base: ModelInfo) -> str:
    needed = took["held"] / GB if took else _ESTIMATES[base.kind, base.device][1]
    free = free_memory(base.device) / GB
    line = f"It needs about {needed:.1f} GB of memory; {free:.1f} GB are free."
    return line if free > needed else f"{line} That may be too little: close other programs, or choose a smaller base."


def free_memory(device: str) -> int:
    """Return the bytes free for a training. On a GPU that includes the memory of generation, which is released."""
    if device == "cuda":
        import torch

        return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
    return psutil.virtual_memory().available


def _parse_choice(choices: Mapping[str, str], title: object) -> str:
    if not isinstance(title, str) or title not in choices:
        raise UserError("That is not one of the choices.", f"I know: {', '.join(choices)}.")
    return choices[title]


def typed_number(typed: object) -> object:
    """Parse a number field: None if empty; invalid text is returned unchanged so that validation can name it."""
    if not isinstance(typed, str):
        return typed
    text = typed.strip()
    if _THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    if not text:
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return typed
