"""The README.md of a concept on the Hub: front matter that the Hub reads, then what a stranger wants to know."""

from __future__ import annotations

import json
from collections.abc import Sequence

from .concept import Concept
from .exporters import diffusers
from .exporters.export import MODELS, Export, sentence
from .exporters.readme import facts, fenced, literal, plain
from .importers.hub_repositories import TAG
from .licences import on_the_hub
from .plain_lora import plain_concept

PICTURES = "pictures.png"
_CONSENT = {
    "yes": "the person shown agrees",
    "no": "the person shown does not agree",
    "unknown": "whether the person shown agrees is not known",
}


def model_card(
    concept: Concept, native: Export, hub_id: str, prompts: Sequence[str] = (), pictures: bool = False
) -> str:
    """Markdown. Whatever the card says is shown as plain text. prompts: those of the grid, if there is one."""
    card = concept.card
    parts = [_front_matter(concept), f"# {plain(card.title or concept.token.name)}"]
    parts += [plain(card.description)] if card.description else []
    parts += [f"![Drawn with it]({PICTURES})"] if pictures else []
    parts += [fenced("\n".join(dict.fromkeys(prompts)))] if prompts else []
    parts.append("\n".join(f"- {name}: {value}" for name, value in [*facts(concept), *_more(concept)] if value))
    parts.append(f"## Use\n\n{fenced(f'sdpersonal concepts pull {hub_id}', 'sh')}")
    if diffusers.is_possible(concept):
        _, lost = plain_concept(concept)
        parts += [f"With diffusers, as a plain LoRA: {lost}"] if lost else []
        parts.append(fenced(_diffusers(concept, native, hub_id), "python"))
    parts += ["\n".join(f"- {literal(note)}" for note in native.notes)] if native.notes else []
    if card.prompts:
        parts.append("Prompts that show it:\n\n" + fenced("\n".join(card.prompts)))
    parts.append(
        "Made with sdpersonal. The files hold weights and these facts; pictures are drawn, no photo is among them."
    )
    return "\n\n".join(parts) + "\n"


def _front_matter(concept: Concept) -> str:
    card = concept.card
    fields: dict[str, object] = dict(on_the_hub(card.license))
    fields["library_name"] = "diffusers" if diffusers.is_possible(concept) else "sdpersonal"
    if model := MODELS.get(card.base):
        fields |= {"base_model": model, "base_model_relation": "adapter", "pipeline_tag": "text-to-image"}
    fields["tags"] = [
        TAG,
        "stable-diffusion",
        *(["textual-inversion"] if concept.vectors else []),
        *(["lora"] if concept.lora else []),
    ]
    lines = [f"{key}: {json.dumps(value)}" for key, value in fields.items()]  # JSON is YAML
    return "\n".join(["---", *lines, "---"])


def _more(concept: Concept) -> list[tuple[str, str]]:
    card = concept.card
    consent = f"{_CONSENT[card.consent]}{': ' + card.consent_note if card.consent_note else ''}"
    made = [card.method, f"{card.steps} steps" if card.steps else "", *(f"{k} {v}" for k, v in card.recipe.items())]
    scores = ", ".join(f"{name} {value:.3g}" for name, value in card.scores.items())
    return [
        ("Consent", plain(consent) if card.kind == "person" else ""),
        ("Made with", plain(", ".join(part for part in made if part))),
        ("Measured", plain(scores)),
        ("Trigger words", plain(", ".join(card.trigger_words))),
    ]


def _diffusers(concept: Concept, native: Export, hub_id: str) -> str:
    made = diffusers.write(concept)
    code = made.python.replace('load_textual_inversion("."', f'load_textual_inversion("{hub_id}"')
    code = code.replace('load_lora_weights("."', f'load_lora_weights("{hub_id}"')
    return code.replace("{prompt}", repr(sentence(concept, made)))
