"""Hold the card, the facts about a concept. It may come from anybody, so its fields are fixed, short and plain text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ModelWrapValidatorHandler,
    StrictBool,
    StrictFloat,
    StrictInt,
    ValidationError,
    model_validator,
)

from ..config.base import BaseKind, ConceptKind
from ..config.text_checks import STRIP_UNSAFE
from ..errors import UserError, printable
from ..prompts import Token
from ..storage.reading import parse_strict_json
from .strict_safetensors import damaged_file_error

MAX_CARD_BYTES = 200_000  # characters of JSON
MAX_CARD_PROMPT = 500  # characters

Consent = Literal["yes", "no", "unknown"]
BASE_TITLES: dict[BaseKind, str] = {  # names for display
    "tiny": "the built-in model of sdpersonal",
    "sd1": "Stable Diffusion 1.x",
    "sd2": "Stable Diffusion 2.x",
    "sdxl": "Stable Diffusion XL",
}
CONSENT_TEXTS = {
    "yes": "the person shown agrees",
    "no": "the person shown does not agree",
    "unknown": "whether the person shown agrees is not known",
}
BASE_LABELS = {"tiny": "built-in", "sd1": "SD 1.x", "sd2": "SD 2.x", "sdxl": "SDXL"}  # where there is little space


def _check_date(text: str) -> str:
    if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", text):
        raise ValueError("a date must look like 2026-01-31T12:00:00Z")
    return text


def utc_now() -> str:
    """Return the current time, UTC, to the second: 2026-01-31T12:00:00Z."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


Text50 = Annotated[str, Field(max_length=50), STRIP_UNSAFE]  # plain text of at most 50 characters
Text100 = Annotated[str, Field(max_length=100), STRIP_UNSAFE]
Text150 = Annotated[str, Field(max_length=150), STRIP_UNSAFE]
Text200 = Annotated[str, Field(max_length=200), STRIP_UNSAFE]
Text500 = Annotated[str, Field(max_length=500), STRIP_UNSAFE]
Text2000 = Annotated[str, Field(max_length=2000), STRIP_UNSAFE]
Scalar: TypeAlias = StrictBool | StrictInt | Annotated[StrictFloat, Field(allow_inf_nan=False)] | Text500 | None
Key = Annotated[str, Field(pattern=r"^[a-z0-9_]{1,64}$")]


class Card(BaseModel):
    """Facts about a concept. Raises UserError where a field is unknown, of the wrong type or too long.

    token is set by the concept that holds the card; created is UTC, to the second. recipe: how it was trained (seed,
    lr, rank, ...); scores: its evaluation results; consent: whether the person shown agrees to it. license is free text
    in imported files, and SPDX where set here (`edit_card`). Nothing about photos, machine or user belongs here.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    token: Text150 = ""
    title: Text100 = ""
    description: Text2000 = ""
    kind: ConceptKind = "object"
    class_noun: Text100 = ""
    base: BaseKind
    base_name: Text200 = ""
    method: Text50 = ""
    steps: Annotated[StrictInt, Field(ge=0, le=10_000_000)] = 0
    created: Annotated[str, AfterValidator(_check_date)] = Field(default_factory=utc_now)
    author: Text100 = ""
    license: Text100 = ""
    consent: Consent = "unknown"
    consent_note: Text500 = ""
    trigger_words: Annotated[tuple[Text100, ...], Field(max_length=16)] = ()
    prompts: Annotated[tuple[Text500, ...], Field(max_length=16)] = ()
    recipe: Annotated[dict[Key, Scalar], Field(max_length=64)] = {}
    scores: Annotated[dict[Key, FiniteFloat], Field(max_length=64)] = {}

    @model_validator(mode="wrap")
    @classmethod
    def _refuse_with_user_error(cls, fields: object, build: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return build(fields)
        except ValidationError as error:
            raise _field_error(error) from error


def _field_error(error: ValidationError) -> UserError:
    first = error.errors(include_url=False)[0]
    field_name = printable(".".join(str(part) for part in first["loc"]) or "its fields")
    reason = printable(first["msg"])
    if first["type"] == "string_too_long":
        limit = first["ctx"]["max_length"]
        reason = f"it must be text of up to {limit:,} characters, got {len(first['input']):,}"
    return UserError(f"The card's {field_name} is not valid: {reason}.")


EDITABLE_FIELDS = frozenset(Card.model_fields) - {"token", "base", "created"}  # by users; the others are fixed


def edit_card(card: Card, changes: Mapping[str, object]) -> Card:
    """Return the card with changed fields. recipe and scores are merged; an empty text or None there removes a key.

    Raises UserError for a fixed field, a wrong value, or a licence that SPDX does not list.
    """
    from .licences import spdx_name

    if refused := changes.keys() - EDITABLE_FIELDS:
        raise UserError(f"The card's {printable(', '.join(sorted(refused)))} cannot be changed.")
    updates = dict(changes)
    for key in {"recipe", "scores"} & updates.keys():
        merged = getattr(card, key) | _as_mapping(key, updates[key])
        updates[key] = {name: value for name, value in merged.items() if value not in (None, "")}
    if isinstance(licence := updates.get("license"), str):
        updates["license"] = spdx_name(licence.strip())
    return Card.model_validate(card.model_dump() | updates)


def with_token(card: Card, token: Token) -> Card:
    """Return the card with that token, which replaces the former one in its prompts too."""
    updates: dict[str, object] = {"token": str(token)}
    with suppress(UserError):  # a card without a token, or with text that is none
        old = Token.parse(card.token).unversioned()
        if old != (new := token.unversioned()):
            updates["prompts"] = tuple(_with_renamed(prompt, old, new) for prompt in card.prompts)
    return card.model_copy(update=updates)


def _with_renamed(prompt: str, old: Token, new: Token) -> str:
    """Return the prompt with another name for the concept `old`, written with its owner or without; the same prompt if
    it would be too long for a card."""
    owner = f"(?:{old.owner}/)?" if old.owner else ""
    mention = re.compile(rf"(?<=[<+]){owner}{old.name}(?=[>:@+]|-v[0-9])")
    renamed = mention.sub(str(new)[1:-1], prompt)
    return renamed if len(renamed) <= MAX_CARD_PROMPT else prompt


def _as_mapping(key: str, value: object) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise UserError(f"The card's {key} must be a mapping of names to values, not {type(value).__name__}.")
    return value


def parse_card(text: str, name: str) -> Card:
    """Parse the JSON of the card in a file called `name`. Raises UserError."""
    if len(text) > MAX_CARD_BYTES:
        raise damaged_file_error(name, "its card is too long")
    try:
        fields = parse_strict_json(text)
    except ValueError as error:
        raise damaged_file_error(name, f"the card: {error}") from error
    if not isinstance(fields, dict):
        raise damaged_file_error(name, "its card is not a JSON object")
    try:
        return Card.model_validate(fields)
    except UserError as error:
        raise UserError(f"{printable(name)} is refused. {error.message}", error.hint) from error
