"""Validate settings: the base class, the types of fields, and the words in which a bad value is refused.

Values are validated here, once, with the same messages for a Python call, a command line and the web page.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin

import tyro
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from ..errors import FieldError, UserError, printable
from ..prompts import Token
from .text_checks import Problem, encoding_problem, path_problem, plain_spaces, text_problem

ConceptKind = Literal["object", "style", "person"]
CONCEPT_KINDS: tuple[ConceptKind, ...] = get_args(ConceptKind)
BaseKind = Literal["tiny", "sd1", "sd2", "sdxl"]
CropMode = Literal["center", "subject"]  # where photos are cropped to a square
FORMER_FIELDS: Mapping[str, str] = {
    "change": "strength",
    "near": "variation_strength",
    "near_seed": "variation_seed",
    "every": "all_combinations",
    "enlarge": "hires_scale",
    "start": "init_image",
    "n": "num_images",
    "picture": "image",
    "pictures": "images",
    "class_pictures": "num_class_images",
}
"""Former names of settings, which Python calls, command lines and files of the version before still use."""
FORMER_PRIORS = {"drawn": "generated"}  # former values of --prior


class MayBeEmpty:
    """Mark a text field that may be empty, in `Annotated`. All other text fields must not be empty."""


class AnyText:
    """Mark a text field that only has to be valid Unicode, in `Annotated`: it has its own checks for the rest."""


class SettingsBase(BaseModel):
    """Base of every settings class. Building one from bad values raises UserError.

    All text is checked by `_usable_text` before the field's own checks: it is valid Unicode without control
    characters, not longer than its limit, and not empty unless the field is marked MayBeEmpty or its default is "".
    A prompt (AnyText) may contain control characters, since images of other programs do; no tokenizer sees them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    only_valid_unicode: ClassVar[bool] = False  # a subclass that has checks of its own for the rest sets this

    def __init__(self, /, **values: Any):  # a file may have a key "self"
        try:
            super().__init__(**self.with_present_names(values))
        except ValidationError as error:
            raise to_user_error(error, type(self)) from None

    @classmethod
    def present_name(cls, name: str, value: object = None) -> str:
        """Return the present name of a field, given that or its former one.

        value: the field's value, for a class where a former name now means something else."""
        present = FORMER_FIELDS.get(name, name)
        return present if present in cls.model_fields and name not in cls.model_fields else name

    @classmethod
    def with_present_names(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values by the present names of their fields. Raises UserError if one is given by both names."""
        present: dict[str, Any] = {}
        for name, value in values.items():
            new = cls.present_name(name, value)
            if new in present or (new != name and new in values):
                raise FieldError(new, f"{new} is given twice.", f"{name} is its former name; leave it out.")
            present[new] = value
        return present

    @field_validator("*", mode="before")
    @classmethod
    def _usable_text(cls, value: Any, info: ValidationInfo) -> Any:
        for text in value if isinstance(value, list | tuple) else (value,):
            if isinstance(text, str | Path) and (problem := cls._text_problem(info.field_name or "", text)):
                raise PydanticCustomError("text", "refused", {"problem": problem.text, "fix": problem.hint})
        return value

    @classmethod
    def _text_problem(cls, name: str, value: str | Path) -> Problem | None:
        field = cls.model_fields[name]
        if cls.only_valid_unicode or any(isinstance(mark, AnyText) for mark in _marks(field)):
            return encoding_problem(str(value))
        if isinstance(value, Path) or Path in _types(field.annotation):
            return path_problem(str(value))
        may_be_empty = field.default == "" or any(isinstance(mark, MayBeEmpty) for mark in _marks(field))
        return _too_long(field, value) or text_problem(value, may_be_empty)


def to_user_error(error: ValidationError, settings: type[BaseModel]) -> UserError:
    """Describe the first error in plain words: "steps must be a whole number from 1 to 1000, got nan"."""
    fault = error.errors(include_url=False)[0]
    name = str(fault["loc"][0]) if fault["loc"] else settings.__name__
    field = settings.model_fields.get(name)
    if fault["type"] == "personal":
        return FieldError(name, fault["ctx"]["problem"], fault["ctx"]["fix"])
    if fault["type"] == "text":
        return FieldError(name, f"{name} {fault['ctx']['problem']}", fault["ctx"]["fix"])
    if fault["type"] == "missing":
        return FieldError(name, f"{name} is needed.", (field and field.description) or "")
    if field is None:
        return UserError(
            f"{printable(name)} is not a setting.", f"The settings are {', '.join(settings.model_fields)}."
        )
    value, limits = fault["input"], fault.get("ctx", {})
    if fault["type"] == "too_short" and isinstance(value, list | tuple):
        return FieldError(name, f"{name} must be {_COUNTS[limits['min_length']]}, got {len(value)}.", _hint(field))
    if fault["type"] == "too_long" and isinstance(value, list | tuple):
        return FieldError(name, f"{name} must be up to {limits['max_length']}, got {len(value)}.", _hint(field))
    return FieldError(
        name, f"{name} must be {_describe_expected(field)}, got {printable(repr(value), 60)}.", _hint(field)
    )


_COUNTS = {1: "one or more", 2: "two or more"}


def _hint(field: FieldInfo) -> str:
    return field.description or ""


def _too_long(field: FieldInfo, text: str) -> Problem | None:
    """Return a problem if the text is longer than the field's own limit."""
    limit = _bounds(field).get("max_length")
    if limit is None or len(text) <= limit:
        return None
    return Problem(f"must be text of up to {limit:,} characters, got {len(text):,}.", "Shorten it.")


def _types(annotation: Any) -> set[Any]:
    """Return the plain types in an annotation such as `tuple[Path, ...] | None`."""
    if not (parts := get_args(annotation)):
        return {annotation}
    return set().union(*(_types(part) for part in parts if not isinstance(part, str)))


def _marks(field: FieldInfo) -> list[Any]:
    """Return the field's annotations; for `tuple[Annotated[X, ...], ...] | None` those of X too."""
    return [*field.metadata, *_inner_marks(field.annotation)]


def _inner_marks(annotation: Any) -> list[Any]:
    marks = getattr(annotation, "__metadata__", ())
    return [*marks, *(mark for part in get_args(annotation) for mark in _inner_marks(part))]


def _bounds(field: FieldInfo) -> dict[str, Any]:
    names = ("ge", "gt", "le", "max_length")
    parts = [part for mark in _marks(field) for part in getattr(mark, "metadata", [mark])]
    return {name: getattr(part, name) for part in parts for name in names if hasattr(part, name)}


def _describe_expected(field: FieldInfo) -> str:
    inner = next((arg for arg in get_args(field.annotation) if hasattr(arg, "__metadata__")), None)  # of `X | None`
    kind: Any = inner.__origin__ if inner else field.annotation
    if choices := next((part for part in (kind, *get_args(kind)) if get_origin(part) is Literal), None):
        return "one of " + ", ".join(map(str, get_args(choices)))
    kind = next((part for part in get_args(kind) if part is not type(None)), kind) if kind not in _KINDS else kind
    what, bounds = _KINDS.get(kind, "a list" if get_origin(kind) is tuple else "text"), _bounds(field)
    if "gt" in bounds:
        return f"{what} above {_number_text(bounds['gt'])}, up to {_number_text(bounds['le'])}"
    if "ge" in bounds:
        return f"{what} from {_number_text(bounds['ge'])} to {_number_text(bounds['le'])}"
    return f"{what} of up to {bounds['max_length']:,} characters" if "max_length" in bounds and kind is str else what


def _number_text(value: float) -> str:
    return f"{int(value) if value == int(value) else value:,}"


_KINDS: dict[Any, str] = {int: "a whole number", float: "a number", str: "text", bool: "yes or no", Path: "a path"}


def flag_of(settings: type[BaseModel], name: str) -> str:
    """Return a field's name on the command line: --class for class_noun, PHOTOS for a positional one."""
    field = settings.model_fields.get(name)
    marks = _marks(field) if field else []
    if any(mark is tyro.conf.Positional for mark in marks):
        return name.upper()
    flag = next((mark.name for mark in marks if getattr(mark, "name", None) and hasattr(mark, "aliases")), None)
    return f"--{(flag or name).replace('_', '-')}"


def _check_number(value: Any) -> Any:
    # True is an int to Python and "7" is one to pydantic; a user who sent either made a mistake.
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    raise PydanticCustomError("number", "not a number")


def check_whole_number(value: Any) -> Any:
    value = _check_number(value)
    if isinstance(value, float):
        if not (math.isfinite(value) and value.is_integer()):
            raise PydanticCustomError("number", "not a whole number")
        return int(value)
    return value


def as_validator(check: Callable[[Any], Any]) -> BeforeValidator:
    """Make a validator of a function that raises UserError, keeping its message and hint."""

    def validate(value: Any) -> Any:
        with raise_for_pydantic():
            return check(value)

    return BeforeValidator(validate)


@contextmanager
def raise_for_pydantic() -> Iterator[None]:
    """Raise a UserError in a validator so that pydantic passes on its message and hint."""
    try:
        yield
    except UserError as error:
        raise PydanticCustomError("personal", "refused", {"problem": error.message, "fix": error.hint}) from None


def _words(value: Any) -> Any:
    return plain_spaces(value) if isinstance(value, str) else value


def _check_token(value: Any) -> Any:
    if value is None:
        return None
    return str(Token.of(value))


SEEDS = 2**64  # as many as ComfyUI and torch have; seeds wrap around
Number = BeforeValidator(_check_number)
WholeNumber = BeforeValidator(check_whole_number)
Seed = Annotated[int, WholeNumber, Field(ge=0, le=SEEDS - 1)]
TokenText = Annotated[str, as_validator(_check_token)]
Words = BeforeValidator(_words)
