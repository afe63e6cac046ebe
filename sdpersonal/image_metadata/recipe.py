"""A recipe: all that one picture was drawn from, with every weight named by its sha256.

What a `GenerateRequest` can ask too is checked by `GenerateRequest`, so limits and words are the same. A recipe may
come out of a stranger's picture: nothing that it names is ever opened.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, StrictBool

from ..concepts.card import BaseKind, strip_unsafe_characters
from ..config import SEEDS, GenerateRequest, Number, SettingsBase, WholeNumber
from ..errors import UserError
from ..prompts import MAX_PROMPT, Token, printable

if TYPE_CHECKING:
    from PIL import Image

MAX_BATCH = 64
_REQUEST_FIELDS = {  # fields that a request has too
    *("prompt", "negative", "seed", "steps", "guidance", "rescale", "size", "near", "near_seed", "change", "enlarge"),
    *("fast", "scheduler", "clip_skip"),
}


def _check_sha256(value: object) -> str:
    if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value):
        return value
    raise UserError(f"A sha256 must be 64 hexadecimal digits, got {printable(repr(value), 60)}.")


def _check_optional_sha256(value: object) -> str:
    return "" if value == "" else _check_sha256(value)


def _check_template(value: object) -> str:
    """A person's own text, whatever is in it."""
    if isinstance(value, str) and len(value) <= MAX_PROMPT:
        return value
    raise UserError(f"template must be text of up to {MAX_PROMPT:,} characters, got {printable(repr(value), 60)}.")


def _text_up_to(limit: int) -> type[str]:
    return Annotated[str, Field(strict=True, max_length=limit), BeforeValidator(strip_unsafe_characters)]


Sha256 = Annotated[str, BeforeValidator(_check_sha256)]


class RecipePart(SettingsBase):
    """Base of a recipe's parts: what a later version may have added is passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)
    only_valid_unicode = True

    def __init__(self, /, **values: Any):  # a stranger's JSON may even call a key "self"
        super().__init__(**{name: value for name, value in values.items() if name in type(self).model_fields})


class RecipeBase(RecipePart):
    """The base that drew: its name as a person knows it (never a path), its kind, and `StableDiffusion.version`."""

    name: _text_up_to(200)
    kind: BaseKind
    sha256: Sha256


class RecipeConcept(RecipePart):
    """One concept, by its full token: its identity, the strength it had, and what of it acted.

    words: what the token stood for in the prompt where the concept has no vectors (its trigger words); hub: the
    repository of the Hub that it came from, "" where that is not known.
    """

    token: _text_up_to(150)
    sha256: Sha256
    strength: Annotated[float, Number, Field(ge=-100, le=100)] = 1.0
    vectors: StrictBool = False
    lora: StrictBool = False
    words: _text_up_to(2000) = ""
    hub: _text_up_to(200) = ""

    def __init__(self, /, **values: Any):
        super().__init__(**values)
        Token.parse(self.token)


class Recipe(RecipePart):
    """One picture's recipe. Raises UserError for a wrong value, in the words of a `GenerateRequest`.

    sdpersonal: the version that drew; prompt: as drawn, alternatives chosen; template: the prompt they were chosen
    from, "" where there was none; seed, near_seed: of this very picture; size: WIDTHxHEIGHT of the first pass;
    start, mask: `pixels_sum` of those pictures, "" where there was none; sampler: diffusers' class without
    "Scheduler"; scheduler: the name that was asked for, "" where it was the base's default; clip_skip: as a request's;
    fast: token of the LoRA that made few steps enough, "" without one; hidden: whether the base's safety
    checker flagged the picture, so that it is plain grey; batch, place: how many pictures were drawn together, and
    which of them this was, counted from 0: the kernels' rounding depends on both.
    """

    sdpersonal: _text_up_to(40)
    prompt: str
    template: Annotated[str, BeforeValidator(_check_template)] = ""
    negative: str = ""
    seed: int
    near: float | None = None
    near_seed: int = 1
    steps: int
    guidance: float
    rescale: float = 0.0
    size: str
    enlarge: float = 1.0
    change: float = 0.6
    start: Annotated[str, BeforeValidator(_check_optional_sha256)] = ""
    mask: Annotated[str, BeforeValidator(_check_optional_sha256)] = ""
    sampler: Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9]{1,64}$")]
    scheduler: str = ""
    clip_skip: int = 1
    fast: str = ""
    hidden: StrictBool = False
    base: RecipeBase
    concepts: Annotated[tuple[RecipeConcept, ...], Field(max_length=64)] = ()
    batch: Annotated[int, WholeNumber, Field(ge=1, le=MAX_BATCH)] = 1
    place: Annotated[int, WholeNumber, Field(ge=0, le=MAX_BATCH - 1)] = 0

    def __init__(self, /, **values: Any):
        if missing := [name for name in ("steps", "guidance", "size") if values.get(name) is None]:
            raise UserError(f"{missing[0]} is needed.")  # a request may leave them to the base
        request = _to_request(values, start=Path() if values.get("start") else None)
        shared = {name: getattr(request, name) for name in _REQUEST_FIELDS & values.keys()}
        super().__init__(**(values | shared | {"fast": request.fast or "", "scheduler": request.scheduler or ""}))
        if self.mask and not self.start:
            raise UserError("The recipe has a mask and no start picture.")
        if self.place >= self.batch:
            raise UserError(f"place must be below batch, {self.batch}, got {self.place}.")

    def request(self, start: Path | None = None, mask: Path | None = None) -> GenerateRequest:
        """What draws this picture again. start, mask: files of the pictures whose sums the recipe has."""
        return _to_request(self.model_dump(), start, mask)

    def batch_request(self, start: Path | None = None, mask: Path | None = None) -> GenerateRequest:
        """What draws it as one of as many as then: its number `place` is the same to the bit on the same device."""
        seed_field = "seed" if self.near is None else "near_seed"
        first = (getattr(self, seed_field) - self.place) % SEEDS
        return self.request(start, mask).model_copy(update={"n": self.batch, seed_field: first})

    def to_json(self) -> str:
        """On one line, in ASCII, so that any text chunk holds it and no character of a prompt can break it."""
        return json.dumps(self.model_dump(), allow_nan=False)


def _to_request(values: dict[str, Any], start: Path | None = None, mask: Path | None = None) -> GenerateRequest:
    fields = {name: values[name] for name in _REQUEST_FIELDS & values.keys()}
    for name in fields.keys() & {"fast", "scheduler"}:
        fields[name] = fields[name] or None
    if fields.get("rescale", 0.0) is None:
        raise UserError("rescale must be a number from 0 to 1, got None.")
    return GenerateRequest(**fields, n=1, start=start, mask=mask)


def pixels_sha256(picture: Image.Image) -> str:
    """sha256 over a picture's size and its RGB pixels: the same for any file that shows the same."""
    size = f"{picture.width}x{picture.height}\n".encode()
    return hashlib.sha256(size + picture.convert("RGB").tobytes()).hexdigest()


def describe_hidden(flags: Collection[bool]) -> str:
    """What to say of a request's pictures (`Recipe.hidden` of each): "" where nothing was hidden."""
    hidden, of = sum(flags), "1 picture" if len(flags) == 1 else f"{len(flags)} pictures"
    return f"The checker hid {hidden} of {of}." if hidden else ""
