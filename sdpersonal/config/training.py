"""Define the settings of training: one frozen class per method, from which tyro builds the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from ..errors import UserError
from ..prompts import Token
from .base import (
    FORMER_PRIORS,
    ConceptKind,
    CropMode,
    Number,
    Seed,
    SettingsBase,
    TokenText,
    WholeNumber,
    Words,
    as_validator,
    check_whole_number,
    raise_for_pydantic,
)
from .sample_prompts import check_sample_prompts

MAX_TOGETHER = 64  # runs in one batch: their latents and optimizer states are small, their activations are not
IDENTIFIER = "sks"  # a full DreamBooth's word: three letters that mean nothing to CLIP (Ruiz et al. 2023, section 3.2)


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


def _check_resolution(value: Any) -> Any:
    value = check_whole_number(value) if value is not None else None
    if value is not None and (value % 64 or not 64 <= value <= 2048):
        raise UserError(f"resolution must be a multiple of 64 from 64 to 2,048, got {value:,}.", "For example 512.")
    return value


def _present_prior(value: Any) -> Any:
    return FORMER_PRIORS.get(value, value) if isinstance(value, str) else value


class TrainingSettings(SettingsBase):
    """Settings that both trainers share."""

    photos: Path
    """Folder with 3 to 30 photos of one thing."""
    token: Annotated[str, as_validator(_check_new_token)]
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
    continue_from: TokenText | None = None
    """Token of a finished concept of the library to train further, with the same model and rank."""
    resolution: Annotated[int | None, as_validator(_check_resolution)] = None
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
    crop: CropMode = "center"
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
    sample_prompts: tuple[str, ...] = ()
    """Up to 8 prompts of your own to generate a sample of at each milestone; {} is the subject's place. Not scored."""
    early_stop: bool = True
    """Stop when the loss has converged (DVAR); --no-early-stop runs all steps."""
    report_to: Literal["tensorboard", "wandb"] | None = None
    """Also log the loss and the learning rates to this tracker."""

    @field_validator("sample_prompts", mode="before")
    @classmethod
    def _place_subject(cls, value: Any, info: ValidationInfo) -> Any:
        with raise_for_pydantic():
            return check_sample_prompts(value, info.data.get("token", ""), info.data.get("kind", "object"))


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
    prior: Annotated[str, BeforeValidator(_present_prior)] = "none"
    """Prior preservation, to keep the class as the model knows it: predicted, generated, or a folder of images."""
    prior_weight: Annotated[float, Number, Field(gt=0, le=10)] = 1.0
    """Weight of the prior preservation loss, 1 in the paper."""
    num_class_images: Annotated[int, WholeNumber, Field(ge=1, le=10_000)] = 50
    """Class images to generate for --prior generated; reused for every concept of the class."""


def command_name(settings: TrainingSettings) -> str:
    """Return the name of the settings' command: `sdpersonal train NAME`."""
    return "dreambooth" if isinstance(settings, DreamboothSettings) else "textual-inversion"


def settings_to_json(settings: TrainingSettings) -> dict[str, Any]:
    """Return the settings with the name of their command, as files keep them."""
    return settings.model_dump(mode="json") | {"program": command_name(settings)}


def settings_from_json(saved: dict[str, Any]) -> TrainingSettings:
    """Read what `settings_to_json` returned. Raises UserError if it was edited and is invalid."""
    values = {name: value for name, value in saved.items() if name != "program"}
    settings_class = DreamboothSettings if saved.get("program") == "dreambooth" else TextualInversionSettings
    return settings_class(**values)
