"""`report.html`: what came of a run, on one page that needs nothing else. No photo is in it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from .. import storage
from ..concepts.card import Card
from ..concepts.concept import Concept
from ..errors import PersonalError
from ..evaluation import in_figures, verdict
from ..prompts import show
from .curves import FILE as CURVES
from .sample_sheet import SHEET
from .validation import FOLDER, PLAIN, Trial, best_of, picture_name

FILE = "report.html"
RULE = "the last of those within a twentieth of the highest score"
_LIMIT = 30_000_000  # bytes of a picture


@dataclass(frozen=True)
class Story:
    """photos: what is to be said of them, in lines; course: how the run ended; judge: its name; seconds: in all."""

    photos: Sequence[str]
    course: str
    judge: str
    seconds: float


def write_report(run: Path, concept: Concept, trials: Sequence[Trial], story: Story) -> Path:
    """Write the page from what the run's folder holds, and say where it is. Raises NoRoom."""
    from jinja2 import Environment

    # Autoescape: names of files and nouns are somebody's text.
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        (resources.files(__package__) / FILE).read_text(encoding="utf-8")
    )
    card = concept.card
    judged = [trial for trial in trials if trial.scores]
    best = next((trial for trial in judged if trial.step == card.steps), best_of(judged))
    page = template.render(
        title=str(concept.token),
        noun=card.class_noun,
        verdict=verdict(best.scores, card.class_noun) if judged else ["Nobody judged its pictures."],
        figures=in_figures(best.scores) if judged else "",
        samples=_picture(run / SHEET),
        trial=_picture(run / FOLDER / picture_name(best.step)) if judged else "",
        plain=_picture(run / FOLDER / PLAIN),
        best=card.steps,
        curves=_picture(run / CURVES),
        course=story.course,
        trials=judged,
        judge=story.judge,
        rule=RULE,
        photos=[show(line, 500) for line in story.photos],  # names of files are somebody's
        facts=_facts(card, story.seconds),
    )
    storage.write_text(run / FILE, page)
    return run / FILE


def _facts(card: Card, seconds: float) -> list[tuple[str, object]]:
    known = [("method", card.method), ("base", card.base_name), ("kind", card.kind), ("class noun", card.class_noun)]
    recipe = [(name.replace("_", " "), value) for name, value in card.recipe.items()]
    return [*known, ("steps", card.steps), *recipe, ("seconds in all", round(seconds)), ("made", card.created)]


def _picture(path: Path) -> str:
    """A PNG as a data URL; "" where there is none."""
    try:
        data = storage.read_bytes(path, _LIMIT)
    except PersonalError:
        return ""
    return f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}"
