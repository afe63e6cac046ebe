"""Separate a prompt's styles from what they are applied to, so that each style is guided by itself.

With u the prediction for the negative prompt, e_s for the prompt without its styles, and e_k for that with style k,
each with the LoRAs of its own prompt only:

    p = u + g (e_s - u) + sum_k w_k (e_k - e_s)

It extends classifier-free guidance (Ho and Salimans 2022) as InstructPix2Pix does for its image (Brooks et al. 2023,
arXiv 2211.09800, eq. 3), instead of adding both LoRAs into one prediction, where the subject's outweighs the style. Of
the result the colours and a part of the texture are taken, the shapes are those of u + g (e_s - u): `style_transfer`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Iterator
from dataclasses import dataclass, replace

from ..prompts import Break, ConceptRef, Prompt, Text, format_prompt
from .prompt_resolution import ResolvedPrompt, is_active_at

STYLE_SCALE = 2.0  # default guidance scale of a style
_LEADING_WORDS = re.compile(
    r"[\s,;:.-]*(?:\b(?:(?:drawn|painted|made|rendered|done|shown|seen|printed)\s+)?"
    r"(?:in(?:\s+(?:the|an?))?(?:\s+style(?:\s+of)?)?|(?:the\s+)?style\s+of|by|as(?:\s+an?)?|with|using|after|like))?\s*\Z",
    re.IGNORECASE,
)
_TRAILING_WORDS = re.compile(r"\A\s*(?:(?:art\s+)?style|look|version)\b", re.IGNORECASE)


@dataclass(frozen=True)
class StylePrompt:
    """The prompt with one style only; scale: the style's own guidance scale."""

    prompt: ResolvedPrompt
    reference: ConceptRef
    scale: float

    def scale_at(self, progress: float) -> float:
        """Return the scale at a progress of the sampling: 0 outside the reference's window."""
        return self.scale if is_active_at(self.reference, progress) else 0.0


def split_styles(
    resolved: ResolvedPrompt, automatic: bool = True, subject: int | None = None
) -> tuple[ResolvedPrompt, tuple[StylePrompt, ...]]:
    """Return the prompt without the styles that have guidance of their own, and the prompts with one of them each.

    A prompt without such styles is returned unchanged. A style that is named repeatedly is one style.

    Args:
        automatic: whether a style beside another concept has guidance of its own by default.
        subject: index of a reference that has none.
    """
    references = resolved.references
    identities = [tuple(resolved.concepts[part.token].identity for part in ref.parts) for ref in references]
    automatic = automatic and len(set(identities)) > 1
    scales = {i: _scale(resolved, ref, automatic) for i, ref in enumerate(references) if i != subject}
    guided = {i for i, scale in scales.items() if scale}
    mentions: dict[Hashable, list[int]] = {}  # of each style, by index
    for i in sorted(guided):
        mentions.setdefault((identities[i], references[i].start, references[i].end), []).append(i)
    styles = tuple(
        StylePrompt(_without(resolved, guided.difference(same)), references[same[0]], max(scales[i] for i in same))
        for same in mentions.values()
    )
    return _without(resolved, guided), styles


def _scale(resolved: ResolvedPrompt, reference: ConceptRef, automatic: bool) -> float:
    """Return a reference's own guidance scale; 0 if it has none."""
    if reference.guidance is not None:
        return reference.guidance
    kinds = {resolved.concepts[part.token].card.kind for part in reference.parts}
    return STYLE_SCALE if automatic and kinds == {"style"} else 0.0


def _without(resolved: ResolvedPrompt, removed: Collection[int]) -> ResolvedPrompt:
    """Return the prompt without these references, by index, and without the words that connect them to it."""
    if not removed:
        return resolved
    prompt = Prompt("", tuple(_remaining_pieces(resolved.prompt, removed)))
    prompt = replace(prompt, text=format_prompt(prompt))
    return ResolvedPrompt(prompt, {mention.token: resolved.concepts[mention.token] for mention in prompt.mentions})


def _remaining_pieces(prompt: Prompt, removed: Collection[int]) -> Iterator[Text | ConceptRef | Break]:
    pieces = list(prompt.pieces)
    positions = [i for i, piece in enumerate(pieces) if isinstance(piece, ConceptRef)]
    gone = {positions[index] for index in removed}
    is_begun = False
    for i, piece in enumerate(pieces):
        if i in gone:
            continue
        if isinstance(piece, Text):
            text = piece.text
            if i + 1 in gone:
                text = _LEADING_WORDS.sub("", text)
            if i - 1 in gone:
                text = _TRAILING_WORDS.sub("", text)
                text = text if is_begun else text.lstrip(" ,;:.-")
            piece = replace(piece, text=text)
            if not text.strip():
                continue
        is_begun = True
        yield piece
