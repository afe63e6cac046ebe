"""Write the README.md of a concept on the Hub: front matter for the Hub, then what users need to know."""

from __future__ import annotations

from collections.abc import Sequence

from .card import CONSENT_TEXTS
from .concept import Concept
from .exporters import diffusers
from .exporters.export import HUB_MODELS, Export, example_prompt
from .exporters.readme import concept_facts, escape_html, escape_markdown, fenced, front_matter
from .importers.hub_repositories import HUB_TAG
from .licences import hub_licence
from .plain_lora import plain_concept

GRID_FILE = "pictures.png"


def model_card(
    concept: Concept, native: Export, hub_id: str, prompts: Sequence[str] = (), with_images: bool = False
) -> str:
    """Return the Markdown. Text from the card is escaped. prompts: those of the grid's images, if there is a grid."""
    card = concept.card
    parts = [front_matter(_hub_facts(concept)), f"# {escape_markdown(card.title or concept.token.name)}"]
    parts += [escape_markdown(card.description)] if card.description else []
    parts += [f"![Generated with it]({GRID_FILE})"] if with_images else []
    parts += [fenced("\n".join(dict.fromkeys(prompts)))] if prompts else []
    parts.append(
        "\n".join(f"- {name}: {value}" for name, value in [*concept_facts(concept), *_extra_facts(concept)] if value)
    )
    parts.append(f"## Use\n\n{fenced(f'sdpersonal hub pull {hub_id}', 'sh')}")
    if diffusers.is_possible(concept):
        _, note = plain_concept(concept)
        parts += [f"With diffusers, as a plain LoRA: {note}"] if note else []
        parts.append(fenced(_diffusers_usage(concept, native, hub_id), "python"))
    parts += ["\n".join(f"- {escape_html(note)}" for note in native.notes)] if native.notes else []
    if card.prompts:
        parts.append("Prompts that show it:\n\n" + fenced("\n".join(card.prompts)))
    parts.append(
        "Made with sdpersonal. The files hold weights and these facts; the images are generated, none is a photo."
    )
    return "\n\n".join(parts) + "\n"


def _hub_facts(concept: Concept) -> dict[str, object]:
    card = concept.card
    fields: dict[str, object] = dict(hub_licence(card.license))
    fields["library_name"] = "diffusers" if diffusers.is_possible(concept) else "sdpersonal"
    if model := HUB_MODELS.get(card.base):
        fields |= {"base_model": model, "base_model_relation": "adapter", "pipeline_tag": "text-to-image"}
    fields["tags"] = [
        HUB_TAG,
        "stable-diffusion",
        *(["textual-inversion"] if concept.vectors else []),
        *(["lora"] if concept.lora else []),
    ]
    return fields


def _extra_facts(concept: Concept) -> list[tuple[str, str]]:
    card = concept.card
    consent = f"{CONSENT_TEXTS[card.consent]}{': ' + card.consent_note if card.consent_note else ''}"
    training = [card.method, f"{card.steps} steps" if card.steps else "", *(f"{k} {v}" for k, v in card.recipe.items())]
    scores = ", ".join(f"{name} {value:.3g}" for name, value in card.scores.items())
    return [
        ("Consent", escape_markdown(consent) if card.kind == "person" else ""),
        ("Made with", escape_markdown(", ".join(part for part in training if part))),
        ("Measured", escape_markdown(scores)),
        ("Trigger words", escape_markdown(", ".join(card.trigger_words))),
    ]


def _diffusers_usage(concept: Concept, native: Export, hub_id: str) -> str:
    export = diffusers.write(concept)
    code = export.python.replace('load_textual_inversion("."', f'load_textual_inversion("{hub_id}"')
    code = code.replace('load_lora_weights("."', f'load_lora_weights("{hub_id}"')
    return code.replace("{prompt}", repr(example_prompt(concept, export)))
