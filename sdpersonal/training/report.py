"""Write `report.html`: the results of a run on one self-contained page, without any photo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import storage
from ..concepts.card import Card
from ..concepts.concept import Concept
from ..display.html import data_url, render_template
from ..errors import UserError, printable
from ..evaluation import explain_scores, format_scores
from .run_dir import (
    CLASS_NOUN_IMAGE,
    CURVES_FILE,
    REPORT_FILE,
    SAMPLES_FILE,
    VALIDATIONS_FOLDER,
    validation_image,
)
from .validation import Validation, best_validation, out_of_domain

_TEMPLATE = Path(__file__).with_name("report.html")
SELECTION_RULE = "the last of those within a twentieth of the highest score"
_MAX_IMAGE_BYTES = 30_000_000  # of an image


@dataclass(frozen=True)
class RunSummary:
    """A run's summary. photos: lines about them; ending: how it ended; scorer: its name; seconds: in total."""

    photos: Sequence[str]
    ending: str
    scorer: str
    seconds: float


def write_report(run: Path, concept: Concept, validations: Sequence[Validation], summary: RunSummary) -> Path:
    """Write the page from the files in the run folder; return its path. Raises DiskFull."""
    card = concept.card
    scored = [validation for validation in validations if validation.scores]
    best = next((validation for validation in scored if validation.step == card.steps), best_validation(scored))
    scores = best.scores if best else None
    page = render_template(
        _TEMPLATE,
        title=str(concept.token),
        noun=card.class_noun,
        explanation=explain_scores(scores, card.class_noun, card.kind) if scores else ["Its samples were not scored."],
        figures=format_scores(scores) if scores else "",
        samples=_image_data_url(run / SAMPLES_FILE),
        validation_image=_image_data_url(validation_image(run, best.step)) if best else "",
        class_image=_image_data_url(run / VALIDATIONS_FOLDER / CLASS_NOUN_IMAGE),
        best_step=card.steps,
        curves=_image_data_url(run / CURVES_FILE),
        ending=summary.ending,
        validations=[] if out_of_domain(scored) else scored,
        scorer=summary.scorer,
        rule=SELECTION_RULE,
        photos=[printable(line, 500) for line in summary.photos],  # file names are untrusted
        facts=_facts(card, summary.seconds),
    )
    storage.write_text(run / REPORT_FILE, page)
    return run / REPORT_FILE


def _facts(card: Card, seconds: float) -> list[tuple[str, object]]:
    card_facts = [
        ("method", card.method),
        ("base", card.base_name),
        ("kind", card.kind),
        ("class noun", card.class_noun),
    ]
    recipe = [(name.replace("_", " "), value) for name, value in card.recipe.items()]
    return [*card_facts, ("steps", card.steps), *recipe, ("seconds in all", round(seconds)), ("made", card.created)]


def _image_data_url(path: Path) -> str:
    """Return a PNG as a data URL; "" if there is none."""
    try:
        data = storage.read_bytes(path, _MAX_IMAGE_BYTES)
    except UserError:
        return ""
    return data_url(data, "image/png")
