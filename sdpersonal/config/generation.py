"""Define requests for images and for variations: frozen classes, from which tyro builds the command line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import tyro
from pydantic import Field

from ..errors import FieldError, UserError, printable
from ..prompts import MAX_PROMPT, has_alternatives, parse
from .base import AnyText, Number, Seed, SettingsBase, TokenText, WholeNumber, as_validator
from .scheduler_table import named

DEFAULT_STEPS = 25  # for DPM++ 2M Karras: more steps change little (Lu et al. 2022, arXiv 2211.01095, figure 1)
DEFAULT_FAST_STEPS = 6  # for LCM or TCD, which are distilled to 4 to 8 steps (Luo et al. 2023, arXiv 2311.05556)
MAX_IMAGES = 1000  # of one request for all combinations
MAX_WORK = 100 * 50 * 1024 * 1024  # images x steps x pixels: some hours on a fast GPU
DEFAULT_IMG2IMG_STRENGTH = 0.5  # denoising strength of a variation from the image itself: the composition stays
MAX_CLIP_SKIP = 12  # A1111's limit: the layers of Stable Diffusion 1.x's text encoder


def _check_prompt(value: Any) -> Any:
    if not isinstance(value, str):
        raise UserError("A prompt must be text.")
    if len(value) > MAX_PROMPT or not has_alternatives(value):
        parse(value)
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


PromptText = Annotated[str, as_validator(_check_prompt), AnyText()]


class GenerateRequest(SettingsBase):
    """A request for images. Image i depends only on seed + i (or, for variations of a seed, on variation_seed + i)."""

    prompt: PromptText
    """Prompt in English with concept tokens: 'a photo of <me/duck> on the beach'. Strength and options follow a token:
    <me/ink:0.8>, <me/ink:0.8:in=0.2:ramp=0.2-1>."""
    negative: PromptText = ""
    """Negative prompt: what the image should not show."""
    num_images: Annotated[int, WholeNumber, Field(ge=1, le=100), tyro.conf.arg(aliases=("-n",))] = 4
    """Number of images."""
    all_combinations: bool = False
    """Generate all combinations of the prompt's alternatives, each --num-images times, not a random one per image."""
    seed: Seed = 0
    """Seed of the first image; the same seed gives the same image."""
    steps: Annotated[int, WholeNumber, Field(ge=1, le=150)] | None = None
    """Denoising steps. Default: 25 (with --fast: 6)."""
    guidance: Annotated[float, Number, Field(ge=1, le=30)] | None = None
    """Guidance scale; 1 turns guidance off. Default: depends on the model (7.5, SDXL 5, tiny 3)."""
    rescale: Annotated[float, Number, Field(ge=0, le=1)] | None = None
    """Guidance rescale: how much of guidance's excess contrast to remove. Default: depends on the model (mostly 0)."""
    size: Annotated[str | None, as_validator(_check_size)] = None
    """WIDTHxHEIGHT in pixels. Default: the model's own, or the initial image's."""
    variation_strength: Annotated[float, Number, Field(gt=0, le=1)] | None = None
    """How far each image is from the seed's, towards the variation seed's; 0.1 is close, 1 is another image."""
    variation_seed: Seed = 1
    """Variation seed of the first image, with --variation-strength."""
    init_image: Path | None = None
    """Initial image (img2img)."""
    mask: Path | None = None
    """Mask image, white where the initial image is to be generated anew (inpainting)."""
    strength: Annotated[float, Number, Field(gt=0, le=1)] = 0.6
    """Denoising strength: how much of the initial image, or of the first pass, may change."""
    hires_scale: Annotated[float, Number, Field(ge=1, le=4)] = 1.0
    """Upscale factor of a second pass (hires fix)."""
    fast: TokenText | None = None
    """Token of an LCM or TCD LoRA in your library, with which a few steps are enough."""
    scheduler: Annotated[str | None, as_validator(_scheduler)] = None
    """Scheduler, named as in A1111, ComfyUI or diffusers: 'Euler a'. Default: DPM++ 2M Karras (tiny: DDIM)."""
    clip_skip: Annotated[int, WholeNumber, Field(ge=1, le=MAX_CLIP_SKIP)] = 1
    """Text encoder layer to use, counted from the last as in A1111; 1 skips none, many anime models want 2."""
    compose: bool = True
    """Guide styles by themselves, and generate several subjects apart before joining them; else all concepts are mixed
    in one prediction."""

    def __init__(self, **values: Any):
        super().__init__(**values)
        if self.mask and not self.init_image:
            raise UserError("--mask needs an initial image.", "Give it with --init-image.")
        if self.init_image and self.hires_scale > 1:
            raise UserError("--hires-scale cannot be used with --init-image.", "Use a larger --size instead.")
        self._check_steps()
        check_total_work(self, self.num_images)

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
    def seed_field(self) -> str:
        """The name of the seed that increases from image to image."""
        return "seed" if self.variation_strength is None else "variation_seed"

    @property
    def work_per_image(self) -> float:
        """Steps times pixels of the last pass."""
        width, height = self.width_height or (512, 512)
        return self.denoising_steps * width * height * self.hires_scale**2

    @property
    def width_height(self) -> tuple[int, int] | None:
        """Return (width, height), or None for the model's own."""
        if self.size is None:
            return None
        width, height = self.size.split("x")
        return int(width), int(height)


class VariationSettings(SettingsBase):
    """Which variations of an image to generate: of its noise, of its prompt, and from the image itself."""

    variation_strength: Annotated[float, Number, Field(gt=0, le=1)] | None = None
    """How far from the image: 0.1 is close, 1 is another image. Default: 0.15 if no other variation is given."""
    concept_strength: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Concept at other strengths: '<me/duck>=0.6,0.8,1'. May be given several times."""
    words: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Other words in place of one: 'beach=snow|space'. May be given several times."""
    img2img: bool = False
    """The same prompt, with the image itself as the initial image."""
    strength: Annotated[float, Number, Field(gt=0, le=1)] = DEFAULT_IMG2IMG_STRENGTH
    """Denoising strength of --img2img."""
    num_images: Annotated[Annotated[int, WholeNumber, Field(ge=1, le=100)] | None, tyro.conf.arg(aliases=("-n",))] = (
        None
    )
    """Number of images. Default: 8 for --variation-strength, 4 for --img2img."""
    variation_seed: Seed = 1
    """Variation seed of the first image of --variation-strength."""

    @property
    def has_noise_or_prompt(self) -> bool:
        """Whether a variation of the noise or of the prompt is requested."""
        return self.variation_strength is not None or bool(self.concept_strength or self.words)


def check_total_work(request: GenerateRequest, num_images: int) -> None:
    """Raise UserError for too much work in total: numbers within their limits can still add up to a week."""
    width, height = request.width_height or (512, 512)
    work = num_images * request.work_per_image
    if work > MAX_WORK:
        raise UserError(
            f"{num_images} images of {width * request.hires_scale:g}x{height * request.hires_scale:g} in "
            f"{request.denoising_steps} steps are {work / MAX_WORK:.0f} times the limit of one request.",
            "Ask for fewer, smaller, or with fewer steps.",
        )
