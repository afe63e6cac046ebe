"""Define the recipe: everything that one image was generated from, with all weights identified by sha256.

Fields that a `GenerateRequest` has too are checked by `GenerateRequest`, so limits and messages are the same. A recipe
may come from a stranger's image, so nothing that it names is ever opened.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, SerializerFunctionWrapHandler, StrictBool, model_serializer

from ..config import SEEDS, GenerateRequest, Number, SettingsBase, WholeNumber
from ..config.base import BaseKind
from ..config.text_checks import STRIP_UNSAFE
from ..errors import UserError, printable
from ..prompts import MAX_PROMPT, Token

if TYPE_CHECKING:
    from PIL import Image

MAX_BATCH = 64


def _check_sha256(value: object) -> str:
    if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value):
        return value
    raise UserError(f"A sha256 must be 64 hexadecimal digits, got {printable(repr(value), 60)}.")


def _check_optional_sha256(value: object) -> str:
    return "" if value == "" else _check_sha256(value)


def _check_template(value: object) -> str:
    """Check the user's own text, which may have any content up to `MAX_PROMPT` characters."""
    if isinstance(value, str) and len(value) <= MAX_PROMPT:
        return value
    raise UserError(f"template must be text of up to {MAX_PROMPT:,} characters, got {printable(repr(value), 60)}.")


ShortText = Annotated[str, Field(strict=True, max_length=200), STRIP_UNSAFE]
Sha256 = Annotated[str, BeforeValidator(_check_sha256)]
Fraction = Annotated[float, Number, Field(ge=0, le=1)]


class RecipePart(SettingsBase):
    """Base class of a recipe's parts: fields added by a later version are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)
    only_valid_unicode = True

    def __init__(self, /, **values: Any):  # foreign JSON may even have a key "self"
        present = self.with_present_names(values)
        super().__init__(**{name: value for name, value in present.items() if name in type(self).model_fields})


class RecipeBase(RecipePart):
    """The base model: its display name (never a path), its kind, and `StableDiffusion.version`."""

    name: ShortText
    kind: BaseKind
    sha256: Sha256


class Presence(RecipePart):
    """Where one of several concepts is in the image, by the attention that its token got.

    share: its part of the attention to all concepts; box: left, top, right and bottom of the area where it has more
    than half its maximum, as fractions of the image; overlap: the part of this area that lies in those of other
    subjects; heat: the attention in 8 x 8 cells, row by row, as digits from 0 to f, its maximum.
    """

    share: Fraction
    box: tuple[Fraction, Fraction, Fraction, Fraction]
    overlap: Fraction
    heat: Annotated[str, Field(strict=True, pattern=r"^([0-9a-f]{64})?$")] = ""

    def __init__(self, /, **values: Any):
        super().__init__(**values)
        left, top, right, bottom = self.box
        if left >= right or top >= bottom:
            raise UserError(f"box must be left, top, right and bottom, the smaller first, got {self.box}.")


class RecipeConcept(RecipePart):
    """One concept by its full token: its identity, its strength, and which of its parts were active.

    words: the text that replaced the token in the prompt if the concept has no vectors (its trigger words); hub: the
    Hub repository that it came from, "" if unknown; presence: where it is in the image, if that was measured.
    """

    token: Annotated[str, Field(strict=True, max_length=150), STRIP_UNSAFE]
    sha256: Sha256
    strength: Annotated[float, Number, Field(ge=-100, le=100)] = 1.0
    vectors: StrictBool = False
    lora: StrictBool = False
    words: Annotated[str, Field(strict=True, max_length=2000), STRIP_UNSAFE] = ""
    hub: ShortText = ""
    presence: Presence | None = None

    def __init__(self, /, **values: Any):
        super().__init__(**values)
        Token.parse(self.token)

    @model_serializer(mode="wrap")
    def _without_missing_presence(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = serialize(self)
        return fields if self.presence else {name: fields[name] for name in fields if name != "presence"}


class Recipe(RecipePart):
    """The recipe of one image. Raises UserError for a wrong value, with the message of a `GenerateRequest`.

    sdpersonal: the version that generated it; prompt: the final prompt, alternatives chosen; template: the prompt with
    alternatives, "" if there were none; seed, variation_seed: of this image, not of the batch; size: WIDTHxHEIGHT of
    the first pass; init_image, mask: `pixels_sha256` of those images, "" if not given; sampler: the diffusers class
    without "Scheduler"; scheduler: the requested name, "" for the base's default; clip_skip: as in a request; compose:
    as in a request, but False if it is absent, since versions without it mixed all concepts in one prediction; fast:
    token of the few-step LoRA, "" without one; hidden: whether the safety checker flagged the image, which is then
    plain grey; batch, place: the number of images generated together and the index of this one from 0, because the
    kernels' rounding depends on both. Recipes of former versions have former names of fields (`FORMER_FIELDS`).
    """

    sdpersonal: Annotated[str, Field(strict=True, max_length=40), STRIP_UNSAFE]
    prompt: str
    template: Annotated[str, BeforeValidator(_check_template)] = ""
    negative: str = ""
    seed: int
    variation_strength: float | None = None
    variation_seed: int = 1
    steps: int
    guidance: float
    rescale: float = 0.0
    size: str
    hires_scale: float = 1.0
    strength: float = 0.6
    init_image: Annotated[str, BeforeValidator(_check_optional_sha256)] = ""
    mask: Annotated[str, BeforeValidator(_check_optional_sha256)] = ""
    sampler: Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9]{1,64}$")]
    scheduler: str = ""
    clip_skip: int = 1
    compose: bool = False
    fast: str = ""
    hidden: StrictBool = False
    base: RecipeBase
    concepts: Annotated[tuple[RecipeConcept, ...], Field(max_length=64)] = ()
    batch: Annotated[int, WholeNumber, Field(ge=1, le=MAX_BATCH)] = 1
    place: Annotated[int, WholeNumber, Field(ge=0, le=MAX_BATCH - 1)] = 0

    def __init__(self, /, **values: Any):
        values = self.with_present_names(values)
        if missing := [name for name in ("steps", "guidance", "size") if values.get(name) is None]:
            raise UserError(f"{missing[0]} is needed.")  # a request may leave them to the base's defaults
        request = _to_request(values, init_image=Path() if values.get("init_image") else None)
        shared = {name: getattr(request, name) for name in _REQUEST_FIELDS & values.keys()}
        super().__init__(**(values | shared | {"fast": request.fast or "", "scheduler": request.scheduler or ""}))
        if self.mask and not self.init_image:
            raise UserError("The recipe has a mask and no initial image.")
        if self.place >= self.batch:
            raise UserError(f"place must be below batch, {self.batch}, got {self.place}.")

    def request(self, init_image: Path | None = None, mask: Path | None = None) -> GenerateRequest:
        """Return a request that generates this image again. init_image, mask: files of the images that it hashes."""
        return _to_request(self.model_dump(), init_image, mask)

    def batch_request(self, init_image: Path | None = None, mask: Path | None = None) -> GenerateRequest:
        """Return a request for the whole batch: its image at index `place` is bit-identical on the same device."""
        seed_field = "seed" if self.variation_strength is None else "variation_seed"
        first = (getattr(self, seed_field) - self.place) % SEEDS
        return self.request(init_image, mask).model_copy(update={"num_images": self.batch, seed_field: first})

    def to_json(self) -> str:
        """Return one line of ASCII JSON, which any text chunk can hold and no character of a prompt can break."""
        return json.dumps(self.model_dump(), allow_nan=False)


# What a recipe shares with a request: all but the images, of which it has only the hashes.
_REQUEST_FIELDS = Recipe.model_fields.keys() & GenerateRequest.model_fields.keys() - {"init_image", "mask"}


def _to_request(values: dict[str, Any], init_image: Path | None = None, mask: Path | None = None) -> GenerateRequest:
    fields = {name: values[name] for name in _REQUEST_FIELDS & values.keys()}
    for name in fields.keys() & {"fast", "scheduler"}:
        fields[name] = fields[name] or None
    if fields.get("rescale", 0.0) is None:
        raise UserError("rescale must be a number from 0 to 1, got None.")
    return GenerateRequest(**fields, num_images=1, init_image=init_image, mask=mask)


def pixels_sha256(image: Image.Image) -> str:
    """Return the sha256 of an image's size and RGB pixels, which does not depend on the file format."""
    size = f"{image.width}x{image.height}\n".encode()
    return hashlib.sha256(size + image.convert("RGB").tobytes()).hexdigest()


def describe_presence(recipe: Recipe) -> list[str]:
    """Describe where each concept is in the image, one text each, for those that were measured."""
    texts = []
    for concept in recipe.concepts:
        if presence := concept.presence:
            left, top, right, bottom = (f"{side:.0%}" for side in presence.box)
            text = f"{concept.token} {presence.share:.0%}, {left} to {right} across, {top} to {bottom} down"
            texts.append(text + (f", {presence.overlap:.0%} of it in another" if presence.overlap >= 0.005 else ""))
    return texts


def describe_hidden(flags: Collection[bool]) -> str:
    """Describe how many images of a request were hidden (`Recipe.hidden` of each): "" if none."""
    hidden, of = sum(flags), "1 image" if len(flags) == 1 else f"{len(flags)} images"
    return f"The checker hid {hidden} of {of}." if hidden else ""
