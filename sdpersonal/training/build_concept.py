"""Build the Concept from a trained method."""

from __future__ import annotations

from pathlib import Path

from ..concepts.card import Card, Scalar
from ..concepts.concept import Concept
from ..config import DreamboothSettings, TrainingSettings
from ..errors import Diverged
from ..models import StableDiffusion
from ..prompts import Token
from .methods.factory import subject_noun
from .methods.protocol import Method
from .methods.token_embedding import max_embedding_norm
from .presets import Preset
from .prompt_templates import SAMPLE_PROMPTS
from .validation import Validation

MAX_NORM_RATIO = 50.0  # an embedding with a norm so far above the vocabulary's has diverged


def build_concept(
    settings: TrainingSettings,
    base: StableDiffusion,
    method: Method,
    resolved: Preset,
    best: Validation,
    figures: dict[str, float],
) -> Concept:
    """Build the concept with its card. best: the validation of its step; figures: the method's own, for the card."""
    token = Token.parse(settings.token)
    vectors = {key: embeddings.detach().float().cpu().numpy().copy() for key, embeddings in method.embeddings.items()}
    card = Card(
        kind=settings.kind,
        class_noun=subject_noun(settings)[:100],  # --init may be many words; a card's noun is short
        base=base.kind,
        base_name=Path(base.name).name,
        method=method.name,
        steps=best.step,
        consent=settings.consent if settings.kind == "person" else "unknown",
        prompts=tuple(prompt.format(token) for prompt in SAMPLE_PROMPTS[settings.kind]),
        trigger_words=(method.trigger,) if method.trigger else (),
        recipe={**_recipe(settings, base, resolved), **figures},
        scores=best.scores.to_dict() if best.scores else {},
    )
    return Concept(token, card, vectors, method.lora())


def _recipe(settings: TrainingSettings, base: StableDiffusion, resolved: Preset) -> dict[str, Scalar]:
    """Return how the concept was trained, for its card."""
    recipe: dict[str, Scalar] = {
        "seed": settings.seed,
        "lr": resolved.lr,
        "batch": resolved.batch,
        "base_sha256": base.version,
        "prediction_type": base.schedule.prediction_type,
        "resolution": settings.resolution or base.resolution,
    }
    if settings.continue_from is not None:
        recipe["continue_from"] = settings.continue_from
    if isinstance(settings, DreamboothSettings):
        recipe["targets"] = resolved.targets
    if (rank := getattr(settings, "rank", None)) is not None:
        recipe["rank"] = rank
    if isinstance(settings, DreamboothSettings):
        recipe["prior"] = _prior_kind(settings.prior)
    return recipe


def _prior_kind(prior: str) -> str:
    return prior if prior in ("none", "predicted", "generated") else "photos"  # the folder's name is not published


def check_embeddings(base: StableDiffusion, method: Method, rate: float) -> None:
    """Raise Diverged if the token's embeddings diverged. rate: the learning rate to propose then."""
    for name, embeddings in method.trainable_parameters().items():
        if name.startswith("rows."):
            ratio = float(embeddings.detach().norm(dim=1).max()) / max_embedding_norm(
                base.encoders[name.removeprefix("rows.")]
            )
            if not ratio < MAX_NORM_RATIO:
                raise Diverged(
                    f"The token's embeddings diverged: their norm is {ratio:.0f} times a word's. No concept was made.",
                    f"Try --lr {rate:g}, with another --run folder.",
                )
