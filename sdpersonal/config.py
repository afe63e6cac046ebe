"""What a program can be asked: one frozen class per program, from which its command line is made (tyro).

Values are checked here, once, with the same words for a Python call, a command line and a web page.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import tyro
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from .errors import PersonalError
from .prompts import Token, parse, show

Kind = Literal["object", "style", "person"]


class Settings(BaseModel):
    """Base of every settings class. Building one from bad values raises PersonalError."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def __init__(self, **values: Any):
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise explain(error, type(self)) from None


def explain(error: ValidationError, settings: type[BaseModel]) -> PersonalError:
    """The first thing wrong, as a person would say it: "steps must be a whole number from 1 to 1000, got nan"."""
    fault = error.errors(include_url=False)[0]
    name = str(fault["loc"][0]) if fault["loc"] else settings.__name__
    field = settings.model_fields.get(name)
    if fault["type"] == "personal":
        return PersonalError(fault["ctx"]["problem"], fault["ctx"]["fix"])
    if fault["type"] == "missing":
        return PersonalError(f"{name} is needed.", (field and field.description) or "")
    if field is None:
        return PersonalError(f"{show(name)} is not a setting.", f"I know {', '.join(settings.model_fields)}.")
    return PersonalError(
        f"{name} must be {_expected(field)}, got {show(repr(fault['input']), 60)}.", field.description or ""
    )


def _expected(field: Any) -> str:
    inner = next((arg for arg in get_args(field.annotation) if hasattr(arg, "__metadata__")), None)  # of `X | None`
    kind, marks = (inner.__origin__, inner.__metadata__) if inner else (field.annotation, field.metadata)
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    what = {int: "a whole number", float: "a number", str: "text", bool: "yes or no"}.get(kind, "valid")
    bounds = {}
    for mark in marks:
        for part in getattr(mark, "metadata", [mark]):
            bounds |= {side: getattr(part, side) for side in ("ge", "gt", "le") if hasattr(part, side)}
    if "gt" in bounds:
        return f"{what} above {bounds['gt']:,}, up to {bounds['le']:,}"
    return f"{what} from {bounds['ge']:,} to {bounds['le']:,}" if "ge" in bounds else what


def _number(value: Any) -> Any:
    # True is an int to Python and "7" is one to pydantic; a person who sent either made a mistake.
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    raise PydanticCustomError("number", "not a number")


def _whole(value: Any) -> Any:
    value = _number(value)
    if isinstance(value, float):
        if not (math.isfinite(value) and value.is_integer()):
            raise PydanticCustomError("number", "not a whole number")
        return int(value)
    return value


def _personal(check):
    """A validator out of a function that raises PersonalError, keeping its words."""

    def validate(value: Any) -> Any:
        try:
            return check(value)
        except PersonalError as error:
            raise PydanticCustomError("personal", "refused", {"problem": error.problem, "fix": error.fix}) from None

    return BeforeValidator(validate)


def _new_token(value: Any) -> Any:
    if isinstance(value, Token):
        value = str(value)
    if not isinstance(value, str):
        raise PersonalError("token must be text like <me/my-cat>.")
    token = Token.parse(value)
    if token.owner is None:
        raise PersonalError(f"{token} has no owner.", f"Call it <me/{token.name}>.")
    if token.version is not None:
        raise PersonalError(
            f"{token} has a version; the library counts versions itself.", f"Call it {token.unversioned()}."
        )
    return str(token)


def _prompt(value: Any) -> Any:
    if not isinstance(value, str):
        raise PersonalError("A prompt must be text.")
    parse(value)
    return value


def _size(value: Any) -> Any:
    if value is None:
        return None
    found = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", value) if isinstance(value, str) else None
    if not found or any(int(side) % 8 or not 64 <= int(side) <= 2048 for side in found.groups()):
        raise PersonalError(
            f"size must be WIDTHxHEIGHT, multiples of 8 from 64 to 2048, got {show(repr(value), 40)}.",
            "For example 512x512.",
        )
    return value


Number = BeforeValidator(_number)
Whole = BeforeValidator(_whole)
PromptText = Annotated[str, _personal(_prompt)]


class Training(Settings):
    """What both trainers ask."""

    photos: Path
    """Folder with 3 to 30 photos of one thing."""
    token: Annotated[str, _personal(_new_token)]
    """How you will write it in prompts, for example '<me/my-cat>'."""
    kind: Kind = "object"
    """What the photos share: one object, one person, or one style."""
    base: str | None = None
    """Model to teach: tiny, sd15, sd21, a Hub id or a folder. Default: sd15 on CUDA if it is there, else tiny."""
    steps: Annotated[int, Whole, Field(ge=1, le=100_000)] | None = None
    """Optimiser steps. Default: what suits the method and the base."""
    lr: Annotated[float, Number, Field(gt=0, le=1e9)] | None = None
    """Learning rate. Default: what suits the method and the base."""
    batch: Annotated[int, Whole, Field(ge=1, le=64)] | None = None
    """Photos a step. Default: what suits the base."""
    seed: Annotated[int, Whole, Field(ge=0, le=2**32 - 1)] = 0
    """Same seed, same concept."""
    crop: Literal["center", "subject"] = "center"
    """Which square of a photo to use."""
    flip: bool = False
    """Also learn from mirrored photos; not for text or faces."""
    library: Path = Path("concepts")
    """Folder that keeps your concepts."""
    run: Path | None = None
    """Folder for checkpoints, progress and pictures of this run. Default: runs/OWNER-NAME-METHOD."""
    resume: bool = False
    """Go on from the newest checkpoint in the run folder."""
    save_every: Annotated[int, Whole, Field(ge=1, le=100_000)] = 100
    """Steps between checkpoints."""
    samples: bool = True
    """Draw a sheet of sample pictures at the end, and a thumbnail for the library."""


class InversionSettings(Training):
    """Textual inversion: teach a word by its embedding alone. Small files; the base stays as it is."""

    init: str | None = None
    """Words to start from, for example 'toy duck'. Default: the kind."""
    vectors: Annotated[int, Whole, Field(ge=1, le=32)] = 4
    """Embedding vectors of the token; more remember more and mix worse."""


class DreamboothSettings(Training):
    """DreamBooth with LoRA: teach the picture model too. Closest likeness."""

    class_noun: Annotated[str, tyro.conf.arg(name="class"), Field(min_length=1, max_length=100)]
    """The general noun for it, for example 'toy duck' or 'watercolor'."""
    rank: Annotated[int, Whole, Field(ge=1, le=128)] = 16
    """LoRA rank; larger remembers more and makes larger files."""
    prior: Annotated[float, Number, Field(ge=0, le=10)] = 0.0
    """Weight of keeping the class as the base knows it, 1 in the paper; a step then takes 2.5 times as long."""


class Request(Settings):
    """One request for pictures. Picture i depends on seed + i alone."""

    prompt: PromptText
    """English with concept tokens in it: 'a photo of <me/duck> on the beach'."""
    negative: PromptText = ""
    """What the picture should not be."""
    n: Annotated[int, Whole, Field(ge=1, le=100)] = 4
    """How many pictures."""
    seed: Annotated[int, Whole, Field(ge=0, le=2**32 - 1)] = 0
    """Same seed, same picture."""
    steps: Annotated[int, Whole, Field(ge=1, le=150)] = 25
    """Denoising steps."""
    guidance: Annotated[float, Number, Field(ge=1, le=30)] | None = None
    """How strictly to follow the prompt; 1 is not at all. Default: what suits the base (7.5, tiny 3)."""
    size: Annotated[str | None, _personal(_size)] = None
    """WIDTHxHEIGHT in pixels. Default: the base's own."""

    def __init__(self, **values: Any):
        super().__init__(**values)
        # Each within its limits can still be a week of work together.
        width, height = self.pixels or (512, 512)
        work = self.n * self.steps * width * height
        if work > MAX_WORK:
            raise PersonalError(
                f"{self.n} pictures of {width}x{height} in {self.steps} steps are "
                f"{work / MAX_WORK:.0f} times more than I take at once.",
                "Ask for fewer, smaller, or with fewer steps.",
            )

    @property
    def pixels(self) -> tuple[int, int] | None:
        """(width, height), or None for the base's own."""
        if self.size is None:
            return None
        width, height = self.size.split("x")
        return int(width), int(height)


MAX_WORK = 100 * 50 * 1024 * 1024  # pictures x steps x pixels: some hours on a fast card
