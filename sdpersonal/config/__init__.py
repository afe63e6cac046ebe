"""Settings of training and generation: one frozen class per command, from which tyro builds its command line.

Values are validated here, once, with the same messages for a Python call, a command line and the web page.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin

import tyro
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from ..errors import FieldError, UserError
from ..prompts import MAX_PROMPT, Token, has_alternatives, parse, printable
from .scheduler_names import named
from .text_checks import Problem, encoding_problem, path_problem, plain_spaces, text_problem

ConceptKind = Literal["object", "style", "person"]


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

    def __init__(self, **values: Any):
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise to_user_error(error, type(self)) from None

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
    kind = inner.__origin__ if inner else field.annotation
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


_KINDS = {int: "a whole number", float: "a number", str: "text", bool: "yes or no", Path: "a path"}


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


def _check_whole_number(value: Any) -> Any:
    value = _check_number(value)
    if isinstance(value, float):
        if not (math.isfinite(value) and value.is_integer()):
            raise PydanticCustomError("number", "not a whole number")
        return int(value)
    return value


def _as_validator(check):
    """Make a validator of a function that raises UserError, keeping its message and hint."""

    def validate(value: Any) -> Any:
        try:
            return check(value)
        except UserError as error:
            raise PydanticCustomError("personal", "refused", {"problem": error.message, "fix": error.hint}) from None

    return BeforeValidator(validate)


def _check_new_token(value: Any) -> Any:
    if isinstance(value, Token):
        value = str(value)
    if not isinstance(value, str):
        raise UserError("token must be text like <me/my-cat>.")
    token = Token.parse(value)
    if token.owner is None:
        raise UserError(f"{token} has no owner.", f"Call it <me/{token.name}>.")
    if token.version is not None:
        raise UserError(
            f"{token} has a version; the library counts versions itself.", f"Call it {token.unversioned()}."
        )
    return str(token)


def _words(value: Any) -> Any:
    return plain_spaces(value) if isinstance(value, str) else value


def _check_token(value: Any) -> Any:
    if value is None:
        return None
    if not isinstance(value, str):
        raise UserError("A token must be text like <me/my-cat>.")
    return str(Token.parse(value))


def _check_prompt(value: Any) -> Any:
    if not isinstance(value, str):
        raise UserError("A prompt must be text.")
    if len(value) > MAX_PROMPT or not has_alternatives(value):
        parse(value)
    return value


def _check_resolution(value: Any) -> Any:
    value = _check_whole_number(value) if value is not None else None
    if value is not None and (value % 64 or not 64 <= value <= 2048):
        raise UserError(f"resolution must be a multiple of 64 from 64 to 2,048, got {value:,}.", "For example 512.")
    return value


def _check_size(value: Any) -> Any:
    if value is None:
        return None
    match = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", value) if isinstance(value, str) else None
    if not match or any(int(side) % 8 or not 64 <= int(side) <= 2048 for side in match.groups()):
        raise UserError(
            f"size must be WIDTHxHEIGHT, multiples of 8 from 64 to 2048, got {printable(repr(value), 40)}.",
            "For example 512x512.",
        )
    return value


def _scheduler(value: Any) -> Any:
    """Return the canonical scheduler name; None, and the empty text of a form, mean the model's own."""
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise UserError(f"scheduler must be text, got {printable(repr(value), 60)}.", "For example 'DPM++ 2M Karras'.")
    return named(value).name


MAX_CLIP_SKIP = 12  # A1111's limit: the layers of Stable Diffusion 1.x's text encoder
Number = BeforeValidator(_check_number)
WholeNumber = BeforeValidator(_check_whole_number)
PromptText = Annotated[str, _as_validator(_check_prompt), AnyText()]
SEEDS = 2**64  # as many as ComfyUI and torch have; seeds wrap around
Seed = Annotated[int, WholeNumber, Field(ge=0, le=SEEDS - 1)]
TokenText = Annotated[str, _as_validator(_check_token)]
Words = BeforeValidator(_words)


class TrainingSettings(SettingsBase):
    """Settings that both trainers share."""

    photos: Path
    """Folder with 3 to 30 photos of one thing."""
    token: Annotated[str, _as_validator(_check_new_token)]
    """Token that you will write in prompts, for example '<me/my-cat>'."""
    kind: ConceptKind = "object"
    """What the photos share: one object, one person, or one style."""
    consent: Literal["yes", "no", "unknown"] = "unknown"
    """Whether the person shown agrees; recorded on the card. A person's concept goes to the Hub only with a yes."""
    base: str | None = None
    """Model to train: tiny, sd15, sd21, sdxl, a Hub id, folder or file. Default: sd15 with a CUDA card, else tiny."""
    revision: str | None = None
    """Branch, tag or commit of a model from the Hub."""
    vae: Path | None = None
    """Folder or file of a VAE to use instead of the model's own."""
    resolution: Annotated[int | None, _as_validator(_check_resolution)] = None
    """Side in pixels of the training images. Default: the model's own."""
    steps: Annotated[int, WholeNumber, Field(ge=1, le=100_000)] | None = None
    """Maximum number of optimizer steps. Default: depends on the method, the model and the number of photos."""
    lr: Annotated[float, Number, Field(gt=0, le=1e9)] | None = None
    """Learning rate. Default: depends on the method and the model."""
    batch: Annotated[int, WholeNumber, Field(ge=1, le=64)] | None = None
    """Batch size per device. Default: depends on the model."""
    accumulate: Annotated[int, WholeNumber, Field(ge=1, le=64)] = 1
    """Gradient accumulation steps."""
    optimizer: Literal["adamw", "adamw8bit", "prodigy"] = "adamw"
    """adamw8bit needs a quarter of the memory for its moments; prodigy finds its own learning rate."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate schedule."""
    snr_gamma: Annotated[float, Number, Field(gt=0, le=1000)] | None = None
    """Gamma of min-SNR weighting (Hang et al. 2023), 5 in the paper. Default: all noise levels weigh the same."""
    noise_offset: Annotated[float, Number, Field(ge=0, le=1)] = 0.0
    """Noise added to whole channels, so that the model learns dark and bright images; 0.05 to 0.1 are usual."""
    checkpointing: Annotated[int, WholeNumber, Field(ge=0, le=100)] = 0
    """Gradient checkpointing of every n-th UNet block; 1 takes the least memory, 0 (off) the least time."""
    seed: Seed = 0
    """Random seed; the same seed trains the same concept."""
    crop: Literal["center", "subject"] = "center"
    """Where to crop a photo to a square."""
    flip: bool = False
    """Also train on mirrored photos; not for text or faces."""
    library: Path = Path("concepts")
    """Folder of your concepts."""
    run: Path | None = None
    """Folder for checkpoints, progress and sample images of this run. Default: runs/OWNER-NAME-METHOD."""
    resume: bool = False
    """Resume from the newest checkpoint in the run folder."""
    save_every: Annotated[int, WholeNumber, Field(ge=1, le=100_000)] = 100
    """Steps between checkpoints."""
    samples: bool = True
    """Generate samples: at milestones, to score and keep the best, and a grid and a thumbnail at the end."""
    early_stop: bool = True
    """Stop when the loss has converged (DVAR); --no-early-stop runs all steps."""
    report_to: Literal["tensorboard", "wandb"] | None = None
    """Also log the loss and the learning rates to this tracker."""


class TextualInversionSettings(TrainingSettings):
    """Textual inversion: train only the embeddings of a token. Small files; the model stays unchanged."""

    init: Annotated[str, Field(max_length=100), Words] | None = None
    """Words whose embeddings to start from, for example 'toy duck'. Default: the kind."""
    vectors: Annotated[int, WholeNumber, Field(ge=1, le=32)] | None = None
    """Embedding vectors of the token; more remember more and mix worse. Default: 4 (tiny: 8)."""


class DreamboothSettings(TrainingSettings):
    """DreamBooth: train the UNet too. Closest likeness."""

    class_noun: Annotated[str, tyro.conf.arg(name="class"), Field(min_length=1, max_length=100), Words]
    """Class noun of the subject, for example 'toy duck' or 'watercolor'."""
    method: Literal["lora", "pivotal", "full"] = "lora"
    """lora: small and quick; pivotal: the embeddings first, then a LoRA; full: all weights, saved as a model folder."""
    rank: Annotated[int, WholeNumber, Field(ge=1, le=128)] = 16
    """LoRA rank; a larger one remembers more and makes larger files."""
    targets: Literal["attention", "transformer", "all"] | None = None
    """Layers with a LoRA: attention, whole transformer blocks, or convolutions too. Default: depends on the model."""
    text_encoder: bool = False
    """Train the text encoder too: closer likeness, worse mixing."""
    prior: str = "none"
    """Prior preservation, to keep the class as the model knows it: predicted, drawn, or a folder of class images."""
    prior_weight: Annotated[float, Number, Field(gt=0, le=10)] = 1.0
    """Weight of the prior preservation loss, 1 in the paper."""
    class_pictures: Annotated[int, WholeNumber, Field(ge=1, le=10_000)] = 50
    """Class images to generate for --prior drawn; reused for every concept of the class."""


class GenerateRequest(SettingsBase):
    """A request for images. Image i depends only on seed + i (or, for variations of a seed, on near_seed + i)."""

    prompt: PromptText
    """Prompt in English with concept tokens: 'a photo of <me/duck> on the beach'."""
    negative: PromptText = ""
    """Negative prompt: what the image should not show."""
    n: Annotated[int, WholeNumber, Field(ge=1, le=100)] = 4
    """Number of images."""
    every: bool = False
    """Generate all combinations of the prompt's alternatives, n times each, instead of a random one per image."""
    seed: Seed = 0
    """Seed of the first image; the same seed gives the same image."""
    steps: Annotated[int, WholeNumber, Field(ge=1, le=150)] | None = None
    """Denoising steps. Default: 25 (with --fast: 6)."""
    guidance: Annotated[float, Number, Field(ge=1, le=30)] | None = None
    """Guidance scale; 1 turns guidance off. Default: depends on the model (7.5, SDXL 5, tiny 3)."""
    rescale: Annotated[float, Number, Field(ge=0, le=1)] | None = None
    """Guidance rescale: how much of guidance's excess contrast to remove. Default: depends on the model (mostly 0)."""
    size: Annotated[str | None, _as_validator(_check_size)] = None
    """WIDTHxHEIGHT in pixels. Default: the model's own, or the start image's."""
    near: Annotated[float, Number, Field(gt=0, le=1)] | None = None
    """Variation strength: how far each image is from the seed's; 0.1 is close, 1 is another image."""
    near_seed: Seed = 1
    """Variation seed."""
    start: Path | None = None
    """Image to start from (img2img)."""
    mask: Path | None = None
    """Mask image, white where the start image is to be generated anew (inpainting)."""
    change: Annotated[float, Number, Field(gt=0, le=1)] = 0.6
    """Denoising strength: how much of the start image, or of the first pass, may change."""
    enlarge: Annotated[float, Number, Field(ge=1, le=4)] = 1.0
    """Upscale factor of a second pass (hires fix)."""
    fast: Annotated[str | None, _as_validator(_check_token)] = None
    """Token of an LCM or TCD LoRA in your library, with which a few steps are enough."""
    scheduler: Annotated[str | None, _as_validator(_scheduler)] = None
    """Scheduler, named as in A1111, ComfyUI or diffusers: 'Euler a'. Default: DPM++ 2M Karras (tiny: DDIM)."""
    clip_skip: Annotated[int, WholeNumber, Field(ge=1, le=MAX_CLIP_SKIP)] = 1
    """Text encoder layer to use, counted from the last as in A1111; 1 skips none, many anime models want 2."""

    def __init__(self, **values: Any):
        super().__init__(**values)
        if self.mask and not self.start:
            raise UserError("--mask says what to change in a start picture.", "Give it with --start.")
        if self.start and self.enlarge > 1:
            raise UserError("--enlarge is for pictures that begin from noise.", "Ask for a larger --size.")
        self._check_steps()
        check_total_work(self, self.n)

    def _check_steps(self) -> None:
        """Check the limit of LCM and TCD: they distil the 50 steps of another scheduler and cannot take more."""
        few = named(self.scheduler).max_steps if self.scheduler else 50 if self.fast else None
        if few and self.denoising_steps > few:
            raise FieldError(
                "steps",
                f"steps must be at most {few} with {self.scheduler or '--fast'}, got {self.denoising_steps}.",
                "Such schedulers need 4 to 8.",
            )

    @property
    def denoising_steps(self) -> int:
        return self.steps or (DEFAULT_FAST_STEPS if self.fast else DEFAULT_STEPS)

    @property
    def width_height(self) -> tuple[int, int] | None:
        """Return (width, height), or None for the model's own."""
        if self.size is None:
            return None
        width, height = self.size.split("x")
        return int(width), int(height)


DEFAULT_STEPS = 25  # for DPM++ 2M Karras: more steps change little (Lu et al. 2022, arXiv 2211.01095, figure 1)
DEFAULT_FAST_STEPS = 6  # for LCM or TCD, which are distilled to 4 to 8 steps (Luo et al. 2023, arXiv 2311.05556)
MAX_IMAGES = 1000  # of one request for all combinations
MAX_WORK = 100 * 50 * 1024 * 1024  # images x steps x pixels: some hours on a fast GPU


def check_total_work(request: GenerateRequest, num_images: int) -> None:
    """Raise UserError for too much work in total: numbers within their limits can still add up to a week."""
    width, height = request.width_height or (512, 512)
    work = num_images * request.denoising_steps * width * height * request.enlarge**2
    if work > MAX_WORK:
        raise UserError(
            f"{num_images} pictures of {width * request.enlarge:g}x{height * request.enlarge:g} in "
            f"{request.denoising_steps} steps are {work / MAX_WORK:.0f} times more than I take at once.",
            "Ask for fewer, smaller, or with fewer steps.",
        )
