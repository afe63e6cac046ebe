"""Build training settings from the page's form, and summarize them before a training starts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ....concepts.library import Library
from ....config import ConceptKind, DreamboothSettings, TextualInversionSettings, TrainingSettings
from ....errors import UserError, printable
from ....prompts import Token
from ..error_text import labelled
from ..models.model_info import ModelInfo
from .training_cost import cost_key, duration_text, memory_text

Choice = TypeVar("Choice", bound=str)
_THOUSANDS = re.compile(r"[1-9]\d{0,2}(,\d{3})+")  # thousands separators only: 0,001 must not become 1

KINDS: dict[str, ConceptKind] = {"Object or animal": "object", "Person": "person", "Style": "style"}
METHODS = {
    "DreamBooth LoRA: closest likeness": "lora",
    "Pivotal tuning: a likeness that mixes well": "pivotal",
    "Textual inversion: smallest file": "textual-inversion",
}
PRIORS = {"None": "none", "Predicted by the model": "predicted", "Generated class images": "generated"}
START_HINT = "Add photos, then fill in the class noun and the name."
_METHOD_EFFECTS = {
    "lora": "a LoRA and the embedding of its token, in a file of a few megabytes",
    "pivotal": "first the embedding of its token, then a LoRA",
    "textual-inversion": "the embedding of its token alone, in a file of a few kilobytes",
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
        raise UserError(
            "The class noun is empty.",
            "Say in a word or two what it is, for example 'toy duck', 'woman' or 'watercolour'.",
        )
    if kind == "person" and form["agrees"] is not True:
        raise UserError("The consent of this person is not ticked.", "It is written on the concept's card.")
    common: dict[str, Any] = {
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
    dreambooth: dict[str, Any] = {"class_noun": noun, "method": method, "prior": _parse_choice(PRIORS, form["prior"])}
    dreambooth["text_encoder"] = form["text_encoder"]
    if (rank := typed_number(form["rank"])) is not None:
        dreambooth["rank"] = rank
    return DreamboothSettings(**common, **dreambooth)


def parse_kind(title: object) -> ConceptKind:
    """Return "object", "person" or "style"; "object" for an unknown title."""
    return KINDS.get(title, "object") if isinstance(title, str) else "object"


def parse_form_token(form: Mapping[str, Any]) -> Token:
    """Build the token from the form's owner and name. Raises UserError, with a spelling that works."""
    owner, name = (form[part].strip() if isinstance(form[part], str) else "" for part in ("owner", "name"))
    if not name:
        raise UserError("The concept name is empty.", "For example: my-cat")
    token = Token.parse(f"<{owner or 'me'}/{name}>")
    if token.version:
        raise UserError(f"{token} has a version; the library counts versions itself.", f"Call it {token.name}.")
    return token


def name_note(form: Mapping[str, Any], library: Library) -> str:
    """Return the note on the name while it is typed."""
    if not form["name"]:
        return "Its token is what you write in prompts."
    try:
        token = parse_form_token(form)
        versions = library.versions(token)
    except UserError as error:
        return " ".join(str(error).splitlines())
    if not versions:
        return f"Write {token} in prompts."
    return f"{token} is in the library already: this will be version {_next_version(versions)}; the older ones stay."


def plan_text(form: Mapping[str, Any], photos: int, base: ModelInfo, library: Library, costs: Mapping[str, Any]) -> str:
    """Summarize what Start would do: the method, the longest time, the memory. costs: as `MeasuredCosts.read`."""
    from ....training.methods.factory import resolve_preset

    try:
        settings = parse_settings(form, base)
    except UserError as error:
        return f"Missing before training: {labelled(error)}" if photos else START_HINT
    if not photos:
        return "Missing before training: photos."
    method = getattr(settings, "method", "textual-inversion")
    token = parse_form_token(form)
    version = _next_version(library.versions(token))
    preset = resolve_preset(settings, base.kind, photos)
    measured = costs.get(cost_key(settings.model_dump(mode="json")))
    lines = [
        f"Train {token}{f' (version {version})' if version > 1 else ''} for the model {base.name} "
        f"on {photos} photo{'s' if photos > 1 else ''} of "
        f"{'the style ' if settings.kind == 'style' else ''}{printable(str(form['noun']).strip(), 60)}: "
        f"{_METHOD_EFFECTS[method]}.",
        f"At most {preset.steps:,} steps, {duration_text(preset.steps, measured, base)}",
        memory_text(measured, base, settings, preset.batch),
    ]
    return "\n".join(lines)


def _next_version(versions: Sequence[Token]) -> int:
    """Return the version that a concept gets; versions: those in the library, oldest first."""
    return (versions[-1].version or 0) + 1 if versions else 1


def _parse_choice(choices: Mapping[str, Choice], title: object) -> Choice:
    if not isinstance(title, str) or title not in choices:
        raise UserError("That is not one of the choices.", f"Choose one of: {', '.join(choices)}.")
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
