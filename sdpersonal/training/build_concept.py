"""The concept out of a method that was taught."""

from __future__ import annotations

from pathlib import Path

from ..concepts.card import Card
from ..concepts.concept import Concept
from ..config import DreamboothSettings, TrainingSettings
from ..errors import Diverged
from ..models import StableDiffusion
from ..prompts import Token
from .methods.factory import method_name, subject_noun
from .methods.protocol import Method
from .methods.token_embedding import max_embedding_norm
from .presets import Preset, lower_rate, preset
from .prompt_templates import SAMPLE_PROMPTS
from .validation import Validation

MAX_NORM_RATIO = 50.0  # a row so much longer than the vocabulary's was not learned, it ran away


def build_concept(
    settings: TrainingSettings,
    base: StableDiffusion,
    method: Method,
    chosen: Preset,
    best: Validation,
    figures: dict[str, float],
) -> Concept:
    """The concept with its card. best: the trial that it is as good as; figures: what the method says of itself.

    Raises Diverged if its vectors ran away.
    """
    usual = preset(method_name(settings), base.kind, settings.kind)
    _check_embeddings(base, method, lower_rate(chosen.lr, usual.lr))
    token = Token.parse(settings.token)
    vectors = {key: rows.detach().float().cpu().numpy().copy() for key, rows in method.rows.items()}
    card = Card(
        kind=settings.kind,
        class_noun=subject_noun(settings)[:100],  # the words to start from may be many; a card's are few
        base=base.kind,
        base_name=Path(base.name).name,
        method=method.name,
        steps=best.step,
        consent=settings.consent if settings.kind == "person" else "unknown",
        prompts=tuple(one.format(token) for one in SAMPLE_PROMPTS[settings.kind]),
        trigger_words=(method.trigger,) if method.trigger else (),
        recipe={"seed": settings.seed, "lr": chosen.lr, "batch": chosen.batch, "base_sha256": base.version}
        | {"prediction_type": base.schedule.prediction_type, "resolution": settings.resolution or base.resolution}
        | ({"targets": chosen.targets} if isinstance(settings, DreamboothSettings) else {})
        | {key: value for key in ("rank",) if (value := getattr(settings, key, None)) is not None}
        | ({"prior": _prior_kind(settings.prior)} if isinstance(settings, DreamboothSettings) else {})
        | figures,
        scores=best.scores.figures() if best.scores else {},
    )
    return Concept(token, card, vectors, method.lora())


def _prior_kind(prior: str) -> str:
    return prior if prior in ("none", "predicted", "drawn") else "photos"  # a folder's name stays here


def _check_embeddings(base: StableDiffusion, method: Method, rate: float) -> None:
    """Raises Diverged if the token's vectors ran away instead of being learned. rate: the one to propose then."""
    for name, rows in method.trainable_parameters().items():
        if name.startswith("rows."):
            times = float(rows.detach().norm(dim=1).max()) / max_embedding_norm(
                base.encoders[name.removeprefix("rows.")]
            )
            if not times < MAX_NORM_RATIO:
                raise Diverged(
                    f"The token's vectors grew {times:.0f} times as long as a word's. No concept was made.",
                    f"Try --lr {rate:g}.",
                )
