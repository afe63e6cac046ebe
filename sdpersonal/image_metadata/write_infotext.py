"""A recipe as A1111 writes it into its pictures, which Civitai and most other programs read too.

    a photo of me-duck <lora:me-duck:0.8> on the beach
    Negative prompt: blurry
    Steps: 25, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 1, Size: 512x512, ...

Concepts have the names that our exports give them: `owner-name`. Emphasis is spelled alike in both programs. What A1111
has no word for (the part of the sampling in which a concept acts, rescaled guidance) is left out.

Hashes: of a LoRA A1111 writes the first 12 digits of the sha256 over the bytes after a file's header, which Civitai
knows as AutoV3; a concept's identity begins with them. The same 12 stand for an embedding, of which A1111 itself would
write the sum over the whole file: that changes with every word on the card. Sources: `create_infotext` and `quote` of
A1111's `modules/processing.py` and `infotext_utils.py`, `networks.py` of its Lora extension; Civitai's
`automatic.metadata.ts`, for its `Hashes`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator

from ..concepts.card import strip_unsafe_characters
from ..config.scheduler_names import named
from ..errors import UserError
from ..prompts import Mention, Token
from ..prompts.concept_syntax import parse_concept_ref
from .recipe import Recipe, RecipeConcept

HASH_DIGITS = 12  # of a sha256
SAMPLERS = {  # diffusers' class, where no scheduler was asked for -> Sampler, Schedule type
    "DPMSolverMultistep": ("DPM++ 2M", "Karras"),
    "DDIM": ("DDIM", None),
    "LCM": ("LCM", None),
    "TCD": ("TCD", None),
}
_BRACKET = re.compile(r"\\.|<(?=\S)([^<>]*)>", re.DOTALL)
_RESERVED_LABEL = re.compile(r"\b(negative prompt|negative template|template|steps):", re.IGNORECASE)


def format_infotext(recipe: Recipe) -> str:
    """The text of a PNG's `parameters`."""
    loras = {concept.token: concept for concept in recipe.concepts if concept.lora}
    prompt = _translate_prompt(recipe.prompt, recipe.concepts, loras)
    prompt = " ".join(
        [prompt, *map(_lora_tag, loras.values())]
    ).strip()  # those that the prompt does not name: the fast one
    lines = [_one_line(prompt)]
    if negative := _one_line(_translate_prompt(recipe.negative, recipe.concepts, {})):
        lines.append(f"Negative prompt: {negative}")
    lines.append(", ".join(f"{key}: {_quote(value)}" for key, value in _parameters(recipe) if value not in (None, "")))
    text = "\n".join(lines).strip()
    embeddings = {
        f"embed:{_slug(concept)}": concept.sha256[:HASH_DIGITS] for concept in recipe.concepts if concept.vectors
    }
    return f"{text}, Hashes: {json.dumps(embeddings)}" if embeddings else text


def _parameters(recipe: Recipe) -> Iterator[tuple[str, object]]:
    sampler, schedule = SAMPLERS.get(recipe.sampler, (recipe.sampler, None))
    if recipe.scheduler:
        scheduler = named(recipe.scheduler)
        sampler, schedule = scheduler.sampler, scheduler.schedule
    yield "Steps", recipe.steps
    yield "Sampler", sampler
    yield "Schedule type", schedule
    yield "CFG scale", f"{recipe.guidance:g}"
    yield "Seed", recipe.seed
    yield "Size", recipe.size
    yield "Model hash", recipe.base.sha256[:10]
    yield "Model", recipe.base.name
    if recipe.near is not None:
        yield "Variation seed", recipe.near_seed
        yield "Variation seed strength", f"{recipe.near:g}"
    if recipe.start or recipe.enlarge > 1:
        yield "Denoising strength", f"{recipe.change:g}"
    yield "Clip skip", recipe.clip_skip if recipe.clip_skip > 1 else None
    yield "RNG", "CPU"
    if recipe.enlarge > 1:
        yield "Hires upscale", f"{recipe.enlarge:g}"
        yield "Hires upscaler", "Lanczos"
    yield "Lora hashes", _format_hashes(concept for concept in recipe.concepts if concept.lora)
    yield "TI hashes", _format_hashes(concept for concept in recipe.concepts if concept.vectors)
    yield "Version", f"sdpersonal {recipe.sdpersonal}"


def _format_hashes(concepts: Iterable[RecipeConcept]) -> str:
    return ", ".join(f"{_slug(concept)}: {concept.sha256[:HASH_DIGITS]}" for concept in concepts)


def _slug(concept: RecipeConcept) -> str:
    return Token.parse(concept.token).slug


def _lora_tag(concept: RecipeConcept) -> str:
    return f"<lora:{_slug(concept)}:{concept.strength:g}>"


def _translate_prompt(prompt: str, concepts: tuple[RecipeConcept, ...], loras: dict[str, RecipeConcept]) -> str:
    """The prompt in their words. Each LoRA that stands in it is taken out of `loras`."""

    def mention(bracket: re.Match[str]) -> str:
        if bracket[1] is None:
            return bracket[0]  # an escape, which means there what it means here
        try:
            parts = parse_concept_ref(bracket[1]).parts
        except UserError:
            return bracket[1]
        return " ".join(filter(None, (_mention_text(part, concepts, loras) for part in parts)))

    return _BRACKET.sub(mention, prompt)


def _mention_text(mention: Mention, concepts: tuple[RecipeConcept, ...], loras: dict[str, RecipeConcept]) -> str:
    concept = next((candidate for candidate in concepts if mention.token.matches(Token.parse(candidate.token))), None)
    if concept is None:
        return mention.token.slug
    words = concept.words
    if concept.vectors:
        # A word that counts less than nothing would turn the states over there; vectors beyond their noun have no word.
        weight = max(0.0, mention.strength)
        words = _slug(concept) if weight == 1 else f"({_slug(concept)}:{weight:g})"
    lora = loras.pop(concept.token, None)
    return f"{words} {_lora_tag(lora)}".strip() if lora else words


def _one_line(text: str) -> str:
    """Without line ends, and without words that begin a part of such a text."""
    return _RESERVED_LABEL.sub(r"\1 :", " ".join(strip_unsafe_characters(text).split()))


def _quote(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r'[,:\n"]', text) else text
