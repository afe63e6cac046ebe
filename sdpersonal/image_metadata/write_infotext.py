"""Write a recipe as A1111's infotext, which Civitai and most other programs read too.

    a photo of me-duck <lora:me-duck:0.8> on the beach
    Negative prompt: blurry
    Steps: 25, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 1, Size: 512x512, ...

Concepts have the names that our exports give them: `owner-name`. Emphasis has the same syntax in both programs. What
A1111 has no parameter for (the part of sampling in which a concept is active, its ramp, region and guidance, rescaled
guidance) is left out. Block weights are numbers for its LoRA Block Weight extension, `<lora:me-ink:0.8:lbw=1,0,...>`.

Hashes: for a LoRA A1111 writes the first 12 digits of the sha256 over the bytes after a file's header, which Civitai
calls AutoV3; a concept's identity begins with them. Embeddings get the same 12 digits, although A1111 itself would
hash the whole file: that hash changes with every edit of the card. Sources: `create_infotext` and `quote` of
A1111's `modules/processing.py` and `infotext_utils.py`, `networks.py` of its Lora extension; Civitai's
`automatic.metadata.ts`, for its `Hashes`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator

from ..config.scheduler_table import named
from ..config.text_checks import strip_unsafe_characters
from ..errors import UserError
from ..prompts import BlockWeights, Mention, Token
from ..prompts.block_weights import format_block_list
from ..prompts.concept_syntax import parse_concept_ref
from .recipe import Recipe, RecipeConcept

HASH_DIGITS = 12  # of a sha256
SAMPLERS = {  # diffusers' class, if no scheduler was requested -> Sampler, Schedule type
    "DPMSolverMultistep": ("DPM++ 2M", "Karras"),
    "DDIM": ("DDIM", None),
    "LCM": ("LCM", None),
    "TCD": ("TCD", None),
}
_BRACKET = re.compile(r"\\.|<(?=\S)([^<>]*)>", re.DOTALL)
_RESERVED_LABEL = re.compile(r"\b(negative prompt|negative template|template|steps):", re.IGNORECASE)


def format_infotext(recipe: Recipe) -> str:
    """Return the text of a PNG's `parameters`."""
    loras = {concept.token: _lora_tag(concept, recipe.prompt) for concept in recipe.concepts if concept.lora}
    prompt = _translate_prompt(recipe.prompt, recipe.concepts, loras)
    # `loras` still has those that the prompt does not name: the few-step LoRA.
    prompt = " ".join([prompt, *loras.values()]).strip()
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
    if recipe.variation_strength is not None:
        yield "Variation seed", recipe.variation_seed
        yield "Variation seed strength", f"{recipe.variation_strength:g}"
    if recipe.init_image or recipe.hires_scale > 1:
        yield "Denoising strength", f"{recipe.strength:g}"
    yield "Clip skip", recipe.clip_skip if recipe.clip_skip > 1 else None
    yield "Compose", None if recipe.compose or len(recipe.concepts) < 2 else False
    yield "RNG", "CPU"
    if recipe.hires_scale > 1:
        yield "Hires upscale", f"{recipe.hires_scale:g}"
        yield "Hires upscaler", "Lanczos"
    yield "Lora hashes", _format_hashes(concept for concept in recipe.concepts if concept.lora)
    yield "TI hashes", _format_hashes(concept for concept in recipe.concepts if concept.vectors)
    yield "Version", f"sdpersonal {recipe.sdpersonal}"


def _format_hashes(concepts: Iterable[RecipeConcept]) -> str:
    return ", ".join(f"{_slug(concept)}: {concept.sha256[:HASH_DIGITS]}" for concept in concepts)


def _slug(concept: RecipeConcept) -> str:
    return Token.parse(concept.token).slug


def _lora_tag(concept: RecipeConcept, prompt: str) -> str:
    blocks = _block_weights(concept, prompt)
    return f"<lora:{_slug(concept)}:{concept.strength:g}{f':lbw={format_block_list(blocks)}' if blocks else ''}>"


def _block_weights(concept: RecipeConcept, prompt: str) -> BlockWeights | None:
    """Return the block weights of the mention that the recipe's strength is from."""
    token = Token.parse(concept.token)
    mentions = [part for bracket in _BRACKET.finditer(prompt) for part in _parse_bracket(bracket) or ()]
    used = [part.blocks for part in mentions if part.token.matches(token) and part.strength == concept.strength]
    return max(used, key=lambda blocks: (blocks or BlockWeights()).values, default=None)


def _parse_bracket(bracket: re.Match[str]) -> tuple[Mention, ...] | None:
    """Return the concepts in a match of `_BRACKET`; None for an escape, and for brackets that are no reference."""
    try:
        return None if bracket[1] is None else parse_concept_ref(bracket[1]).parts
    except UserError:
        return None


def _translate_prompt(prompt: str, concepts: tuple[RecipeConcept, ...], loras: dict[str, str]) -> str:
    """Translate the prompt to A1111's syntax. loras: tags by token; that of each LoRA named in it is removed."""

    def mention(bracket: re.Match[str]) -> str:
        if bracket[1] is None:
            return bracket[0]  # an escape, which A1111 reads in the same way
        parts = _parse_bracket(bracket)
        if parts is None:
            return bracket[1]
        return " ".join(filter(None, (_mention_text(part, concepts, loras) for part in parts)))

    return _BRACKET.sub(mention, prompt)


def _mention_text(mention: Mention, concepts: tuple[RecipeConcept, ...], loras: dict[str, str]) -> str:
    concept = next((candidate for candidate in concepts if mention.token.matches(Token.parse(candidate.token))), None)
    if concept is None:
        return mention.token.slug
    words = concept.words
    if concept.vectors:
        # A1111 would flip the states of a word with negative weight; vectors beyond their class noun have no syntax.
        weight = max(0.0, mention.strength)
        words = _slug(concept) if weight == 1 else f"({_slug(concept)}:{weight:g})"
    return f"{words} {loras.pop(concept.token, '')}".strip()


def _one_line(text: str) -> str:
    """Remove line ends, and defuse words that would begin a section of an infotext."""
    return _RESERVED_LABEL.sub(r"\1 :", " ".join(str(strip_unsafe_characters(text)).split()))


def _quote(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r'[,:\n"]', text) else text
