"""Write `report.html`: the results of a run on one self-contained page, without any photo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import storage
from ..concepts.card import Card
from ..concepts.concept import Concept
from ..errors import UserError
from ..evaluation import explain_scores, format_scores
from ..html import data_url, render_template
from ..prompts import printable
from .curves import CURVES_FILE as CURVES
from .sample_sheet import SHEET_FILE
from .validation import CLASS_NOUN_FILE, VALIDATIONS_FOLDER, Validation, best_validation, image_name

REPORT_FILE = "report.html"
_TEMPLATE = Path(__file__).with_name("report.html")
SELECTION_RULE = "the last of those within a twentieth of the highest score"
_MAX_IMAGE_BYTES = 30_000_000  # of an image


@dataclass(frozen=True)
class RunSummary:
    """A run's summary. photos: lines about them; course: how it ended; judge: the scorer's name; seconds: in total."""

    photos: Sequence[str]
    ending: str
    scorer: str
    seconds: float


def write_report(run: Path, concept: Concept, validations: Sequence[Validation], story: RunSummary) -> Path:
    """Write the page from the files in the run folder; return its path. Raises DiskFull."""
    card = concept.card
    scored = [validation for validation in validations if validation.scores]
    best = next((validation for validation in scored if validation.step == card.steps), best_validation(scored))
    page = render_template(
        _TEMPLATE,
        title=str(concept.token),
        noun=card.class_noun,
        verdict=explain_scores(best.scores, card.class_noun) if scored else ["Nobody judged its pictures."],
        figures=format_scores(best.scores) if scored else "",
        samples=_image_data_url(run / SHEET_FILE),
        trial=_image_data_url(run / VALIDATIONS_FOLDER / image_name(best.step)) if scored else "",
        plain=_image_data_url(run / VALIDATIONS_FOLDER / CLASS_NOUN_FILE),
        best=card.steps,
        curves=_image_data_url(run / CURVES),
        course=story.ending,
        validations=scored,
        judge=story.scorer,
        rule=SELECTION_RULE,
        photos=[printable(line, 500) for line in story.photos],  # file names are untrusted
        facts=_facts(card, story.seconds),
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
