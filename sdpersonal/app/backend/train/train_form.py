"""Read the form of a training: its fields, the settings that it means, and what Start would do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field

from ....concepts.library import Library
from ....config import (
    ConceptKind,
    CropMode,
    DreamboothSettings,
    SettingsBase,
    TextualInversionSettings,
    TrainingSettings,
)
from ....config.base import AnyText, MayBeEmpty
from ....config.sample_prompts import MAX_SAMPLE_PROMPTS
from ....config.text_checks import is_blank
from ....errors import FieldError, UserError, printable
from ....models.model_info import ModelInfo
from ....prompts import Token
from ..error_text import labelled
from .concept_name import DEFAULT_OWNER, make_token, next_version
from .training_cost import cost_key, duration_text, memory_text

Method = Literal["lora", "pivotal", "textual-inversion"]
Prior = Literal["none", "predicted", "generated"]
PRIORS: tuple[str, ...] = get_args(Prior)
_THOUSANDS = re.compile(r"[1-9]\d{0,2}(,\d{3})+")  # thousands separators only: 0,001 must not become 1
_METHOD_EFFECTS = {
    "lora": "a LoRA and the embedding of its token, in a file of a few megabytes",
    "pivotal": "first the embedding of its token, then a LoRA",
    "textual-inversion": "the embedding of its token alone, in a file of a few kilobytes",
}
_PLACEHOLDER_FOLDER = Path("photos")  # until there is a run
_FORM_FIELDS = {"class_noun": "noun", "init": "noun", "token": "name"}  # by the field of the settings
_NUMBERS = ("steps", "lr", "resolution", "seed")


def _to_text(value: object) -> object:
    """Return a number as the text that somebody would type."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return str(value) if isinstance(value, int) else f"{value:.12g}"


def _empty_to_none(value: object) -> object:
    return None if isinstance(value, str) and not value.strip() else _to_text(value)


def _without_blanks(value: object) -> object:
    """Return a list without its blank texts: an empty line of the page's field is no prompt."""
    if not isinstance(value, list | tuple):
        return value
    return [item for item in value if not (isinstance(item, str) and is_blank(item))]


TypedNumber = Annotated[str | None, Field(max_length=40), BeforeValidator(_empty_to_none), AnyText()]
SamplePrompts = Annotated[
    tuple[Annotated[str, Field(max_length=1000)], ...],
    Field(max_length=MAX_SAMPLE_PROMPTS),
    BeforeValidator(_without_blanks),
    AnyText(),
]
ShortText = Annotated[str, Field(max_length=200), MayBeEmpty()]


class TrainForm(SettingsBase):
    """The fields of the form, as the page has them: numbers are typed text, None for the default."""

    kind: ConceptKind = "object"
    noun: ShortText = ""
    owner: ShortText = ""
    name: ShortText = ""
    consent: bool = False
    method: Method = "lora"
    crop: CropMode = "center"
    flip: bool = False
    early_stop: bool = True
    text_encoder: bool = False
    prior: Prior = "none"
    steps: TypedNumber = None
    lr: TypedNumber = None
    rank: TypedNumber = None
    resolution: TypedNumber = None
    seed: TypedNumber = None
    sample_prompts: SamplePrompts = ()
    continue_from: Annotated[str, Field(max_length=200)] | None = None

    def with_values(self, values: Mapping[str, Any]) -> TrainForm:
        """Return the form with these values. Raises FieldError for one that the page cannot have."""
        return TrainForm(**self.model_dump() | dict(values))


@dataclass(frozen=True)
class Plan:
    """What Start would do, or the first problem that is in its way and the form's field that has it."""

    lines: tuple[str, ...] = ()
    problem: str = ""
    field: str | None = None


def form_of_settings(settings: TrainingSettings) -> TrainForm:
    """Return the form that means these settings, as far as it can."""
    token = Token.parse(settings.token)
    values: dict[str, Any] = {
        "kind": settings.kind,
        "owner": token.owner or "",
        "name": token.name,
        "consent": settings.consent == "yes",
        "crop": settings.crop,
        "flip": settings.flip,
        "early_stop": settings.early_stop,
        "sample_prompts": settings.sample_prompts,
        "continue_from": settings.continue_from,
    }
    values |= {name: getattr(settings, name) for name in _NUMBERS}
    if isinstance(settings, DreamboothSettings):
        values |= {"noun": settings.class_noun, "text_encoder": settings.text_encoder, "rank": settings.rank}
        values["method"] = settings.method if settings.method != "full" else "lora"
        values["prior"] = settings.prior if settings.prior in PRIORS else "none"
    elif isinstance(settings, TextualInversionSettings):
        values |= {"method": "textual-inversion", "noun": settings.init or ""}
    return TrainForm(**values)


def parse_settings(form: TrainForm, base: ModelInfo, owner: str = DEFAULT_OWNER) -> TrainingSettings:
    """Build the training settings from the form. owner: if the form has none. Raises FieldError, naming the form's
    field."""
    noun = form.noun.strip()
    if not noun:
        hint = "Say in a word or two what it is, for example 'toy duck', 'woman' or 'watercolour'."
        raise FieldError("noun", "The class noun is empty.", hint)
    if not form.name.strip():
        raise FieldError("name", "The concept name is empty.", "For example: my cat")
    if form.kind == "person" and not form.consent:
        hint = "It is written on the concept's card."
        raise FieldError("consent", "The consent of this person is not ticked.", hint)
    values: dict[str, Any] = {
        "photos": _PLACEHOLDER_FOLDER,
        "token": str(make_token(form.owner, form.name, owner)),
        "kind": form.kind,
        "base": base.name,
        "crop": form.crop,
        "flip": form.flip,
        "early_stop": form.early_stop,
        "consent": "yes" if form.kind == "person" else "unknown",
    }
    values |= {name: typed_number(typed) for name in _NUMBERS if (typed := getattr(form, name)) is not None}
    if form.sample_prompts:
        values["sample_prompts"] = form.sample_prompts
    if form.continue_from:
        values["continue_from"] = form.continue_from
    try:
        return _build(form, noun, values)
    except UserError as error:
        raise _name_field(error) from None


def _build(form: TrainForm, noun: str, values: dict[str, Any]) -> TrainingSettings:
    if form.method == "textual-inversion":
        return TextualInversionSettings(**values, init=noun)
    values |= {"class_noun": noun, "method": form.method, "prior": form.prior, "text_encoder": form.text_encoder}
    if form.rank is not None:
        values["rank"] = typed_number(form.rank)
    return DreamboothSettings(**values)


def _name_field(error: UserError) -> UserError:
    """Return the error with the form's name of its field, worded with the field's label."""
    if not isinstance(error, FieldError):
        return error
    worded = labelled(error)
    return FieldError(_FORM_FIELDS.get(error.field, error.field), worded.message, worded.hint)


def make_plan(
    form: TrainForm,
    photos: int,
    base: ModelInfo,
    library: Library,
    costs: Mapping[str, Any],
    owner: str = DEFAULT_OWNER,
) -> Plan:
    """Summarize what Start would do: the method, the longest time, the memory. costs: as `MeasuredCosts.read`."""
    from ....training.methods.factory import resolve_preset

    if not photos:
        return Plan(problem="Add photos first.", field="photos")
    try:
        settings = parse_settings(form, base, owner)
    except UserError as error:
        return Plan(problem=str(error), field=error.field if isinstance(error, FieldError) else None)
    token = Token.parse(settings.token)
    version = next_version(library.versions(token))
    preset = resolve_preset(settings, base.kind, photos)
    measured = costs.get(cost_key(settings.model_dump(mode="json")))
    return Plan(
        (
            f"Train {token}{f' (version {version})' if version > 1 else ''} for the model {base.name} "
            f"on {photos} photo{'s' if photos > 1 else ''} of "
            f"{'the style ' if settings.kind == 'style' else ''}{printable(form.noun.strip(), 60)}: "
            f"{_METHOD_EFFECTS[form.method]}.",
            f"At most {preset.steps:,} steps, {duration_text(preset.steps, measured, base)}",
            memory_text(measured, base, settings, preset.batch),
        )
    )


def typed_number(typed: str) -> int | float | str:
    """Parse a number field; invalid text is returned unchanged so that validation can name it."""
    text = typed.strip()
    if _THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return typed
