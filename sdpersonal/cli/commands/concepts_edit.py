"""Run the commands for a concept's card and its versions: edit, history."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import tyro
from pydantic import Field

from ...concepts.library import Entry, Library
from ...config import ConceptKind, MayBeEmpty, TokenText
from ...errors import UserError, printable
from ...prompts import Token
from ..terminal import print_json, report_done, say
from .concepts_list import ListArgs

# Texts of a card, as long as `Card` allows; an empty one removes the fact.
Text50 = Annotated[str, MayBeEmpty(), Field(max_length=50)]
Text100 = Annotated[str, MayBeEmpty(), Field(max_length=100)]
Text200 = Annotated[str, MayBeEmpty(), Field(max_length=200)]
Text500 = Annotated[str, MayBeEmpty(), Field(max_length=500)]
Text2000 = Annotated[str, MayBeEmpty(), Field(max_length=2000)]
_TEXTS, _PAIRS = tyro.conf.arg(metavar="TEXT ..."), tyro.conf.arg(metavar="NAME=VALUE ...")


class EditArgs(ListArgs):
    """Edit a concept's card: its embeddings, weights and version stay unchanged. An empty text removes a fact."""

    token: Annotated[TokenText, tyro.conf.Positional, tyro.conf.arg(metavar="TOKEN")]
    """For example '<me/duck>'."""
    title: Text100 | None = None
    """Title, one line."""
    description: Text2000 | None = None
    """Description in a few sentences."""
    kind: ConceptKind | None = None
    """Kind of concept: one object, one person, or one style."""
    class_noun: Annotated[Text100 | None, tyro.conf.arg(name="class")] = None
    """Class noun of the subject."""
    licence: Annotated[Text100 | None, tyro.conf.arg(aliases=["--license"])] = None
    """Licence, by its SPDX name: CC-BY-4.0, MIT, creativeml-openrail-m."""
    consent: Literal["yes", "no", "unknown"] | None = None
    """Whether the person shown agrees."""
    consent_note: Text500 | None = None
    """What the person agreed to, and when."""
    author: Text100 | None = None
    """Author of the concept."""
    base_name: Text200 | None = None
    """Model that it was trained on."""
    method: Text50 | None = None
    """Training method: textual inversion, LoRA, ..."""
    steps: int | None = None
    """Number of optimizer steps it was trained for."""
    trigger_words: Annotated[Annotated[tuple[Text100, ...], Field(max_length=16)] | None, _TEXTS] = None
    """Words that the token stands for if the concept has no embeddings."""
    prompts: Annotated[Annotated[tuple[Text500, ...], Field(max_length=16)] | None, _TEXTS] = None
    """Example prompts; they replace those on the card."""
    recipe: Annotated[tuple[str, ...], _PAIRS] = ()
    """Further training settings, like lr=0.001 seed=3; `lr=` removes one."""
    scores: Annotated[tuple[str, ...], _PAIRS] = ()
    """Measured scores, like likeness=0.66."""


class HistoryArgs(ListArgs):
    """Show all versions of a concept."""

    token: Annotated[TokenText, tyro.conf.Positional, tyro.conf.arg(metavar="TOKEN")]
    """For example '<me/duck>'."""


def edit_concept(settings: EditArgs) -> int:
    facts = settings.model_dump(exclude={"token", "json_", "library", "licence", "recipe", "scores"}, exclude_none=True)
    if settings.licence is not None:
        facts["license"] = settings.licence
    for name in ("recipe", "scores"):
        if pairs := getattr(settings, name):
            facts[name] = dict(_parse_pair(text, name) for text in pairs)
    if not facts:
        raise UserError("Nothing to change.", "For example --title 'My duck' --licence CC-BY-4.0.")
    token = Library(settings.library).edit(Token.parse(settings.token), facts)
    return report_done(settings.json_, [token], "edited")


def show_history(settings: HistoryArgs) -> int:
    entries = Library(settings.library).history(Token.parse(settings.token))
    if settings.json_:
        print_json([entry.as_json() for entry in entries])
    else:
        say("\n".join(f"{entry.token}  {_version_line(entry)}" for entry in entries))
    return 0


def _version_line(entry: Entry) -> str:
    if entry.damaged or entry.card is None:
        return f"damaged: {entry.damaged}"
    card = entry.card
    made = " ".join(part for part in (card.method, f"{card.steps} steps" if card.steps else "") if part)
    scores = "  ".join(f"{name} {value:.2f}" for name, value in card.scores.items())
    what = f"{(entry.identity or '')[:8]}  {card.base:5} {entry.contents:26}"
    return f"{card.created}  {what} {made}  {scores}  {card.title}".rstrip()


def _parse_pair(text: str, flag: str) -> tuple[str, object]:
    """Parse `lr=0.001` into ("lr", 0.001); a value that is no number, true or false is text."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise UserError(f"{printable(text)} is not NAME=VALUE.", f"For example --{flag} likeness=0.66.")
    try:
        number = json.loads(value)
    except ValueError:
        return name, value
    return name, number if isinstance(number, int | float) else value


COMMANDS = {
    "concepts edit": (edit_concept, EditArgs),
    "concepts history": (show_history, HistoryArgs),
}
