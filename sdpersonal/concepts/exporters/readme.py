"""Write the README.md of an export, for someone who has never heard of the concept or of this program."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping

from ..card import BASE_TITLES
from ..concept import Concept
from .export import Export, example_prompt


def readme(concept: Concept, export: Export) -> str:
    """Build the README in Markdown. The card's texts are shown as plain text: they may come from anybody."""
    card, prompt = concept.card, example_prompt(concept, export)
    title = escape_markdown(card.title or concept.token.name)
    parts = [f"# {title}, for {export.program}", *([escape_markdown(card.description)] if card.description else [])]
    parts.append("\n".join(f"- {key}: {value}" for key, value in concept_facts(concept) if value))
    files = "\n".join(f"| `{path}` | {export.destinations[path]} |" for path in export.files)
    parts.append(f"## Install\n\n| file | goes to |\n|---|---|\n{files}")
    if export.install:
        parts.append("\n".join(f"{number}. {step}" for number, step in enumerate(map(escape_html, export.install), 1)))
    if export.python:
        parts.append(fenced(export.python.replace("{prompt}", repr(prompt)), "python"))
    if export.terminal:
        parts.append(fenced(export.terminal.replace("{prompt}", shlex.quote(prompt)), "sh"))
    parts.append(f"## Use\n\n{_usage(export)}\n\n{fenced(prompt)}")
    if export.notes:
        parts.append("\n".join(f"- {escape_html(note)}" for note in export.notes))
    parts.append("Made with sdpersonal. Files hold weights and these facts, no photo.")
    return "\n\n".join(parts) + "\n"


def front_matter(fields: Mapping[str, object]) -> str:
    """Build the block at the top of a README from which the Hub reads its facts, one line for each.

    JSON is YAML, and a text from a stranger cannot leave its line. `huggingface_hub.ModelCardData` is not used: it
    writes a text with line breaks on several lines, so that a licence's name can hold a line of dashes.
    """
    return "\n".join(["---", *(f"{key}: {json.dumps(value)}" for key, value in fields.items()), "---"])


def escape_markdown(text: str) -> str:
    """Escape text so that Markdown shows it as it is: it can hold no link, image, code or HTML."""
    return re.sub(r"([\\`*_{}\[\]()<>#+!|~&:@/.-])", r"\\\1", text)


def fenced(text: str, language: str = "") -> str:
    """Build a block of code. Trigger words may come from anybody, and may contain backticks."""
    fence = _backticks(text, 3)
    return f"{fence}{language}\n{text}\n{fence}"


def _inline(text: str) -> str:
    fence = _backticks(text, 1)
    return f"{fence} {text} {fence}" if "`" in text else f"`{text}`"


def _backticks(text: str, least: int) -> str:
    """Return more backticks in a row than the text has, at least `least`."""
    return "`" * max([least, *(len(run) + 1 for run in re.findall("`+", text))])


def escape_html(text: str) -> str:
    """Put tokens in backticks, so that they are not taken for HTML."""
    return re.sub(r"<[^<>\s]+>", lambda match: f"`{match[0]}`", text)


def concept_facts(concept: Concept) -> list[tuple[str, str]]:
    """Return the facts that a recipient wants to know, as (name, Markdown)."""
    card = concept.card
    vector_count = len(next(iter(concept.vectors.values()), ()))
    contents = [f"{vector_count} vector{'s' * (vector_count > 1)}"] if vector_count else []
    if concept.lora and concept.lora.layers:
        contents.append(f"a LoRA of rank {concept.lora.rank} in {_layers(len(concept.lora.layers))}")
    if concept.lora and concept.lora.changes:
        contents.append(f"{concept.lora.kinds} in {_layers(len(concept.lora.changes))}")
    return [
        ("What it is", escape_markdown(f"{card.kind}, {card.class_noun}" if card.class_noun else card.kind)),
        ("Made for", BASE_TITLES[card.base] + (f" ({escape_markdown(card.base_name)})" if card.base_name else "")),
        ("Holds", " and ".join(contents)),
        ("Author", escape_markdown(card.author)),
        ("Licence", escape_markdown(card.license) or "not stated: ask its author before you pass it on"),
        ("Its token in sdpersonal", f"`{concept.token.unversioned()}`"),
    ]


def _layers(count: int) -> str:
    return f"{count} layer{'s' * (count > 1)}"


def _usage(export: Export) -> str:
    if not export.prompt_text:
        return "Nothing has to be typed: the LoRA acts on every prompt while it is loaded. For example:"
    return f"Type {_inline(export.prompt_text)} where the concept belongs in the prompt. For example:"
