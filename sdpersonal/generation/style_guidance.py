"""Separate a prompt's styles from what they are applied to, so that each style is guided by itself.

Let u and e_s be the predictions for the negative prompt and for the prompt without its styles at the latents x, with
the LoRAs of the latter; and u_k and e_k those for the negative prompt and for the prompt with style k at latents x_k of
its own, with the LoRA of that style only:

    p   = u + g (e_s - u)           at x:    x0
    p_k = u_k + 3 (e_k - u_k)       at x_k = x + sqrt(abar_t) (x0_k - x0)
    x0_k = apply_style(x0, x_0 of p_k)
    image = x0 + mean_k w_k / 2 (x0_k - x0)

Both are classifier-free guidance (Ho and Salimans 2022). Adding both LoRAs into one prediction would have the subject's
outweigh the style. Adding w_k (e_k - e_s) to p, as InstructPix2Pix does for its image (Brooks et al. 2023, arXiv
2211.09800, eq. 3), styles the latents that u and e_s are predicted at, and what the style's photos show comes back into
these. Without a guidance scale (g = 1) p is e_s, and p_k is e_k. See `style_paths` and `style_transfer`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, replace

from ..prompts import ConceptRef, Text
from .prompt_resolution import LoraWeight, Piece, ResolvedPrompt, is_active_at
from .style_paths import STYLE_SCALE

_LEADING_WORDS = re.compile(
    r"(?<![\s,;:.-])[\s,;:.-]*+(?:\b(?:(?:drawn|painted|made|rendered|done|shown|seen|printed)\s+)?"
    r"(?:in(?:\s+(?:the|an?))?(?:\s+style(?:\s+of)?)?|(?:the\s+)?style\s+of|by|as(?:\s+an?)?|with|and|using|after|like))?"
    r"\s*\Z",
    re.IGNORECASE,
)
_TRAILING_WORDS = re.compile(
    r"\A\s*(?:(?:art\s+)?(?:style|look|version)\b"
    r"|(?:print|drawing|painting|illustration|sketch|picture|rendering|artwork)(?=\s*(?:[,;:.]|\Z)))",
    re.IGNORECASE,
)
_JOINER = re.compile(r"\s*+,?+\s*+(?:and|&|\+)?+\s*+", re.IGNORECASE)  # between the styles of one list
_PUNCTUATION = " ,;:.-"


@dataclass(frozen=True)
class StylePrompt:
    """The prompt with one style only; scale: the style's own guidance scale."""

    prompt: ResolvedPrompt
    reference: ConceptRef
    scale: float

    def scale_at(self, progress: float) -> float:
        """Return the scale at a progress of the sampling: 0 outside the reference's window."""
        return self.scale if is_active_at(self.reference, progress) else 0.0

    def loras_at(self, progress: float) -> tuple[LoraWeight, ...]:
        """Return the active LoRAs of the style alone: those of other concepts hold on to the look of their photos."""
        own = self.prompt.identity(self.reference)
        return tuple(lora for lora in self.prompt.loras_at(progress) if lora.identity in own)


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
    identities = [resolved.identity(reference) for reference in references]
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
    return STYLE_SCALE if automatic and _is_style(reference, resolved) else 0.0


def leading_words(text: str) -> str:
    """Return the end of a text that belongs to a style after it: " in the style of "."""
    match = _LEADING_WORDS.search(text)
    return match[0] if match else ""


def _without(resolved: ResolvedPrompt, removed: Collection[int]) -> ResolvedPrompt:
    """Return the prompt without these references, by index, and without the words that connect them to it."""
    if not removed:
        return resolved
    pieces = list(resolved.prompt.pieces)
    for index in sorted(removed, reverse=True):
        pieces = _cut(pieces, resolved.positions[index], resolved)
    return resolved.with_pieces(pieces)


def _cut(pieces: Sequence[Piece], position: int, resolved: ResolvedPrompt) -> list[Piece]:
    """Remove a reference. Of a list, "in the style of <me/ink> and <me/wash>", the others stay where they are."""
    before, after = list(pieces[:position]), list(pieces[position + 1 :])
    if len(after) > 1 and _is_joiner(after[0]) and _is_style(after[1], resolved):
        return [*before, *after[1:]]
    if len(before) > 1 and _is_joiner(before[-1]) and isinstance(before[-2], ConceptRef):
        return [*before[:-1], *_begin_after(after)]
    while before and isinstance(piece := before[-1], Text):
        text = _LEADING_WORDS.sub("", piece.text)
        before[-1:] = [replace(piece, text=text)] if text else []
        if text:
            break
    return [*before, *_begin_after(after, is_first=not before)]


def _begin_after(pieces: Sequence[Piece], is_first: bool = False) -> list[Piece]:
    """Return what follows a style, without the words at its beginning that belong to the style."""
    if not pieces or not isinstance(piece := pieces[0], Text):
        return list(pieces)
    text = _TRAILING_WORDS.sub("", piece.text)
    text = text.lstrip(_PUNCTUATION) if is_first else text
    return [*([replace(piece, text=text)] if text.strip() else []), *pieces[1:]]


def _is_joiner(piece: Piece) -> bool:
    return isinstance(piece, Text) and bool(_JOINER.fullmatch(piece.text))


def _is_style(piece: Piece, resolved: ResolvedPrompt) -> bool:
    return isinstance(piece, ConceptRef) and resolved.kinds(piece) == {"style"}
