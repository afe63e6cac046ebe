"""Convert a file's contents to a concept with its token, card and base."""

from __future__ import annotations

import re
import unicodedata
from pathlib import PurePosixPath

import numpy as np

from ...config.base import BaseKind
from ...config.text_checks import strip_unsafe_characters
from ...errors import UserError, printable
from ...prompts import Token, to_token_word
from ..card import Card
from ..concept import EMBEDDING_WIDTHS, Concept, Lora
from .contents import FileContents

MAX_TINY_WIDTH = 512  # no text encoder of Stable Diffusion is this narrow
_BASES: dict[int, BaseKind] = {widths["clip_l"]: base for base, widths in EMBEDDING_WIDTHS.items() if len(widths) == 1}
_MIN_NORM, _MAX_NORM = 0.02, 8.0  # of an embedding: a twentieth and twenty times of a word's in CLIP, about 0.4
_AS_HINT = "Name it: --as '<owner/name>'."

# Names that tools give to any file: no name for a concept.
_GENERIC_NAME = re.compile(
    r"(learned_embeds(_2)?(-steps-\d+)?|pytorch_lora_weights|pytorch_model|adapter_model|diffusion_pytorch_model|"
    r"model|lora|lora_weights?(\.text_encoder)?|embeddings?(_gs-\d+)?|weights|checkpoint(-\d+)?|last|final|output|"
    r"unet|text_encoder(_2)?|step_\d+|file|x)?",
    re.IGNORECASE,
)


def base_from_widths(widths: dict[str, int], name: str) -> BaseKind:
    """Return the base whose text encoders take vectors of these widths. Raises UserError."""
    if widths == EMBEDDING_WIDTHS["sdxl"]:
        return "sdxl"
    if "clip_g" not in widths:
        width = widths.get("clip_l", 0)
        if width in _BASES:
            return _BASES[width]
        if 0 < width <= MAX_TINY_WIDTH:
            return "tiny"
    known = ", ".join(f"{width} ({base})" for width, base in _BASES.items())
    actual = " and ".join(str(width) for width in widths.values())
    raise UserError(f"{printable(name)} has vectors of width {actual}; known are {known}, and 768 with 1280 (sdxl).")


def make_concept(
    content: FileContents,
    base: BaseKind,
    vectors: dict[str, np.ndarray],
    lora: Lora | None,
    token: Token | None,
    name_in_file: str = "",
    title: str = "",
) -> Concept:
    """Build the concept, under `token` or one from the file. Raises UserError.

    name_in_file: what the file itself calls it; title: the card's, if the file has none.
    """
    name_in_file = name_in_file or content.name_in_file
    fields = _card_fields(content, name_in_file, lora) | ({"title": title} if title else {})
    card = Card.model_validate({"base": base, "recipe": _unusual_norm(vectors, base), **fields})
    try:
        return Concept(token or derive_token(content, name_in_file), card, vectors, lora)
    except UserError as error:
        raise UserError(f"{printable(content.name)} is refused. {error.message}", error.hint) from error


def derive_token(content: FileContents, name_in_file: str = "") -> Token:
    """Derive a token from the name in the file, else the file's, its folder's or its title. Raises UserError."""
    titles = (content.fact(key) for key in ("name", "ss_output_name", "modelspec.title"))
    for candidate in (name_in_file, _stem(content), content.folder_name, *titles):
        if candidate and not _GENERIC_NAME.fullmatch(candidate) and (token := _slug_token(candidate, content)):
            return token
    raise UserError(f"{printable(content.name)} contains no name for its concept.", _AS_HINT)


def _stem(content: FileContents) -> str:
    name = PurePosixPath(content.name.replace("\\", "/")).name
    return re.sub(r"\.(safetensors|bin|pt|pti|png|webp|ckpt|pth)$", "", name, flags=re.IGNORECASE)


def token_of_file(name: str, owner: str) -> Token | None:
    """Return the token from the name of a file or folder whose content has none; None for a generic name.

    Raises UserError.
    """
    content = FileContents(name, {}, lambda key: np.empty(0), owner=owner)
    stem = _stem(content)
    return None if _GENERIC_NAME.fullmatch(stem) else _slug_token(stem, content)


def _slug_token(text: str, content: FileContents) -> Token | None:
    """Turn `<Marc_Allante>` into `<imported/marc-allante>`; None where no letter is left. Raises UserError."""
    inner = strip_unsafe_characters(text)[:200].strip().removeprefix("<").removesuffix(">")
    folded = "".join(c for c in unicodedata.normalize("NFKD", inner) if not unicodedata.combining(c)).lower()
    if any(c.isalnum() and not c.isascii() for c in folded):  # a look-alike must not pass for the letter it mimics
        try:
            Token.parse(text)
        except UserError as error:
            raise UserError(
                f"{printable(content.name)} names its concept {printable(text)}. {error.hint}", _AS_HINT
            ) from error
    words = [word for part in folded.split("/") if (word := to_token_word(part))]
    if not words:
        return None
    owner = words[-2] if len(words) > 1 else content.owner
    try:
        return Token.parse(f"<{owner}/{words[-1]}>")
    except UserError as error:
        raise UserError(
            f"{printable(content.name)} names its concept {printable(text)}. {error.message}", _AS_HINT
        ) from error


def _card_fields(content: FileContents, name_in_file: str, lora: Lora | None) -> dict[str, object]:
    """Return card fields from ModelSpec's and kohya's keys. Training captions are no trigger words; ModelSpec's are."""
    titles = (content.fact(key) for key in ("modelspec.title", "ss_output_name", "name"))
    title = next(
        (text for text in (*titles, content.folder_name, _stem(content)) if not _GENERIC_NAME.fullmatch(text)), ""
    )
    triggers = [_clean_text(phrase, 100) for phrase in content.fact("modelspec.trigger_phrase").split(",")]
    if triggers == [_stem(content)]:  # the file's own name, which means nothing to a base
        triggers = []
    fields: dict[str, object] = {
        "title": _clean_text(name_in_file or title, 100),
        "description": _clean_text(content.fact("modelspec.description"), 2000),
        "author": _clean_text(content.fact("modelspec.author"), 100),
        "license": _clean_text(content.fact("modelspec.license"), 100),
        "base_name": _clean_text(
            re.split(r"[/\\]", _first_fact(content, "ss_sd_model_name", "sd_checkpoint_name"))[-1], 200
        ),
        "trigger_words": tuple(phrase for phrase in triggers if phrase)[:16],
        "method": (lora.kinds or "LoRA")[:50] if lora else "textual inversion",
        "steps": _parse_int(_first_fact(content, "ss_steps", "step")),
    }
    if re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z?", date := content.fact("modelspec.date")):
        fields["created"] = f"{date[:19]}Z"
    return fields


def _unusual_norm(vectors: dict[str, np.ndarray], base: str) -> dict[str, float]:
    """Return the largest embedding norm if it is outside the range of words' (too weak, or overpowering)."""
    if base == "tiny" or not vectors:
        return {}
    longest = max(float(np.linalg.norm(embeddings.astype(np.float64), axis=1).max()) for embeddings in vectors.values())
    usual = _MIN_NORM <= longest <= _MAX_NORM
    return {} if usual or not np.isfinite(longest) else {"longest_row": round(longest, 4)}


def _first_fact(content: FileContents, *keys: str) -> str:
    return next((text for key in keys if (text := content.fact(key)) and text != "None"), "")


def _clean_text(text: str, limit: int) -> str:
    return strip_unsafe_characters(text)[:limit].strip()


def _parse_int(text: str) -> int:
    return int(text) if re.fullmatch(r"\d{1,7}", text, re.ASCII) else 0
