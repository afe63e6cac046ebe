"""Build the training method that a run's settings ask for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ... import storage
from ...config import DreamboothSettings, TrainingSettings
from ...errors import UserError
from ...models import SizeConditioning, StableDiffusion
from ...models.loading import kind_of
from ...photos.loading import check_photos, load_photos
from .. import class_images
from ..dataset import CaptionSplitter, LatentDataset, PhotoDataset
from ..distributed import Accelerator
from ..early_stopping import measure_interval
from ..optim import check_available
from ..presets import Preset, preset, scale_steps
from .continuation import find_start, load_start
from .dreambooth_full import DreamboothFull
from .dreambooth_lora import DreamboothLora, LoraTrainingConfig, PivotalTuning
from .prior_preservation import ClassImagePrior, PredictedPrior, PriorLoss
from .protocol import Method
from .textual_inversion import TextualInversion
from .token_embedding import insert_noun

CLASS_PROMPT = "a photo of {}"


def method_name(settings: TrainingSettings) -> str:
    """Return the name in cards, run folders and presets: "textual-inversion", "dreambooth-lora", ..."""
    return f"dreambooth-{settings.method}" if isinstance(settings, DreamboothSettings) else TextualInversion.name


def subject_noun(settings: TrainingSettings) -> str:
    """Return the subject's general noun: the class noun, or the words that its token starts from."""
    return getattr(settings, "class_noun", None) or getattr(settings, "init", None) or settings.kind


def insert_class_noun(settings: TrainingSettings) -> CaptionSplitter:
    """Return a splitter that writes the class noun for the subject."""
    return insert_noun(subject_noun(settings))


def resolve_preset(settings: TrainingSettings, kind: str, photos: int) -> Preset:
    """Return the method's preset for models of this kind and the number of photos, with the user's settings applied."""
    usual = preset(method_name(settings), kind, settings.kind)
    lr_ratio = (settings.lr or usual.lr) / usual.lr
    schedule = scale_steps(usual.steps, photos)
    steps = settings.steps or schedule
    return replace(
        usual,
        steps=steps,
        measure_every=measure_interval(steps, schedule),
        batch=settings.batch or usual.batch,
        lr=usual.lr * lr_ratio,
        embedding_lr=usual.embedding_lr * lr_ratio,
        pivot_lr=usual.pivot_lr * lr_ratio,
        targets=getattr(settings, "targets", None) or usual.targets,
        vectors=getattr(settings, "vectors", None) or usual.vectors,
        snr_gamma=settings.snr_gamma or usual.snr_gamma,
    )


def check_before_loading(settings: TrainingSettings) -> None:
    """Raise UserError for mistakes that show before the base model is loaded, which can take minutes."""
    storage.check_folder(settings.library)
    check_photos(settings.photos)
    check_available(settings.optimizer)
    find_start(settings, kind_of(settings.base))
    if isinstance(settings, DreamboothSettings):
        _check_prior(settings)
        kind = kind_of(settings.base)
        if settings.steps and kind:
            _check_pivot(settings, settings.steps, preset(method_name(settings), kind, settings.kind).pivot_steps)


def _check_prior(settings: DreamboothSettings) -> None:
    if settings.method == "full" and settings.prior == "predicted":
        raise UserError(
            "--prior predicted compares with the unchanged base model, and --method full changes it.",
            "Use --prior generated or a folder of class photos.",
        )
    if settings.prior not in ("none", "predicted", "generated"):
        check_photos(Path(settings.prior))


def _check_pivot(settings: DreamboothSettings, steps: int, pivot: int) -> None:
    if settings.method == "pivotal" and steps <= pivot:
        raise UserError(
            f"--method pivotal trains the embeddings for {pivot} steps before its LoRA; --steps {steps} are too few.",
            f"Give --steps above {pivot}.",
        )


def build_method(
    settings: TrainingSettings,
    base: StableDiffusion,
    preset: Preset,
    accelerator: Accelerator,
    say: Callable[[str], None],
) -> Method:
    """Build the method, ready to train on this base model. Raises UserError if the settings do not suit it."""
    start = load_start(settings, base.kind)
    if not isinstance(settings, DreamboothSettings):
        return TextualInversion(base, subject_noun(settings), preset.vectors, preset, start)
    _check_prior(settings)
    _check_pivot(settings, preset.steps, preset.pivot_steps)
    _check_noun(settings.class_noun, base)
    prior = _build_prior(settings, base, preset, accelerator, say)
    if settings.method == "full":
        return DreamboothFull(
            base, settings.class_noun, settings.rank, settings.text_encoder, preset, prior, settings.prior_weight
        )
    return {"lora": DreamboothLora, "pivotal": PivotalTuning}[settings.method](
        base,
        settings.class_noun,
        LoraTrainingConfig(settings.rank, settings.text_encoder),
        preset,
        settings.seed,
        prior,
        settings.prior_weight,
        start,
    )


def _check_noun(noun: str, base: StableDiffusion) -> None:
    """Raise UserError if the class noun leaves no tokens for a prompt: scripts such as Chinese take one or more
    tokens per character."""
    for encoder in base.encoders.values():
        count, most = len(encoder.ids(noun)), encoder.capacity // 2
        if count > most:
            raise UserError(
                f"--class is {count} tokens long in this model's text encoder; at most {most} are allowed.",
                "Give a shorter --class; an English noun is one or two tokens long.",
            )


def _build_prior(
    settings: DreamboothSettings,
    base: StableDiffusion,
    preset: Preset,
    accelerator: Accelerator,
    say: Callable[[str], None],
) -> PriorLoss | None:
    if settings.prior == "none":
        return None
    if settings.prior == "predicted":
        return PredictedPrior(base, settings.class_noun, preset.snr_gamma, settings.text_encoder)
    side, noun = settings.resolution or base.resolution, settings.class_noun
    if settings.prior == "generated":
        prompt = CLASS_PROMPT.format(noun)
        indices = range(accelerator.process_index, settings.num_class_images, accelerator.num_processes)
        class_images.generate_missing(base, prompt, side, indices, say)
        accelerator.wait_for_everyone()
        latents = class_images.load_latents(base, prompt, side, settings.num_class_images)
        names = [f"class image {number}" for number in range(len(latents))]
        captions = [(CLASS_PROMPT,)] * len(latents)
        size_conditioning = [[SizeConditioning.full(side, side)]] * len(latents)
        dataset = LatentDataset(
            base, latents, size_conditioning, captions, names, settings.seed, purpose="class sample"
        )
    else:
        photos = load_photos(Path(settings.prior), side, settings.crop).photos
        dataset = PhotoDataset(base, photos, (CLASS_PROMPT,), settings.seed, flip=False, purpose="class sample")
    return ClassImagePrior(base, noun, dataset, preset.snr_gamma)
