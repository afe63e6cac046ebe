"""Define an axis of a grid: what changes along it, and to which values. It is written in one line:

seed: 1..4                                 guidance: 1, 3, ..., 9          (any number that a request has)
words: samurai|cowboy|saint                in place of {} in the prompt
words beach: snow|space                    in place of a word of it
prompt: a cat|a dog                        whole prompts
strength <me/duck>: 0..1 by 0.25           window <me/ink>: 0-1, 0.4-1
concept <me/duck>: <me/cat>, a toy duck    another concept, or words, in the same place
checkpoint: runs/me-duck-dreambooth-lora   the concept at each checkpoint of a training run
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, get_args

from ...config import GenerateRequest
from ...errors import UserError, printable
from ...prompts import Token, Wildcards, all_prompts
from .checkpoints import CheckpointRun
from .prompt_edits import PLACEHOLDER, mentions_token, replace_concept, replace_words, set_strength, set_window
from .ranges import MAX_VALUES, parse_numbers

_PROMPT_KINDS = (
    "prompt",
    "words",
    "concept_strength",
    "window",
    "checkpoint",
    "concept",
)  # in the order of application
_EXCLUDED = {*_PROMPT_KINDS, "num_images", "all_combinations", "init_image", "mask"}
SETTING_KINDS = tuple(name for name in GenerateRequest.model_fields if name not in _EXCLUDED)
_WINDOW = re.compile(r"[0-9.]+\s*-\s*[0-9.]+")

Fields = dict[str, Any]
"""Fields of a `GenerateRequest`."""


@dataclass(frozen=True)
class Axis:
    """An axis.

    kind: a setting of a request, or one of prompt, words, concept_strength, window, concept, checkpoint; target: the
    word or token that changes, "" if the kind needs none; values: of the setting, or texts; run: of checkpoints.
    """

    kind: str
    target: str
    values: tuple[Any, ...]
    run: CheckpointRun | None = None

    @classmethod
    def parse(cls, text: str) -> Axis:
        """Parse an axis from one line. Raises UserError if it is invalid."""
        head, colon, values = _split_at_colon(text.strip())
        kind, _, target = head.partition(" ")
        if not colon and target.startswith("{"):
            values = "|".join(islice(all_prompts(target, Wildcards(None)), MAX_VALUES + 1))
        elif not colon:
            raise UserError(
                f"{printable(text)} does not say what to change to what.",
                "For example 'seed: 1..4' or 'strength <me/duck>: 0..1 by 0.25'.",
            )
        return cls.from_parts(kind, target.strip(), values.strip())

    @classmethod
    def from_parts(cls, kind: str, target: str, values: str) -> Axis:
        """Build an axis from its parts as written."""
        name = kind.lower().replace("-", "_")
        name = name if name in ("words", "steps") else name.removesuffix("s")
        name = GenerateRequest.present_name("words" if name == "word" else name)
        if name == "strength" and target:  # without a concept it is the denoising strength
            name = "concept_strength"
        if name not in (*_PROMPT_KINDS, *SETTING_KINDS):
            known = ", ".join((*_PROMPT_KINDS, *SETTING_KINDS)).replace("_", "-")
            raise UserError(f"A grid cannot change {printable(kind)}.", f"An axis can be: {known}.")
        parse = _PARSERS.get(name, _parse_setting)
        axis = parse(name, target, values)
        if not 1 <= len(axis.values) <= MAX_VALUES:
            raise UserError(f"{printable(kind)} has {len(axis.values)} values; 1 to {MAX_VALUES} are allowed.")
        return axis

    @property
    def order(self) -> int:
        """Return the order of application: axes that replace the prompt come before those that change parts of it."""
        return _PROMPT_KINDS.index(self.kind) if self.kind in _PROMPT_KINDS else len(_PROMPT_KINDS)

    def apply(self, fields: Fields, value: Any) -> Fields:
        """Return the fields of a request with this axis set to `value`."""
        if self.kind not in _PROMPT_KINDS:
            return fields | {self.kind: value}
        if self.kind == "prompt":
            return fields | {"prompt": value}
        if self.kind == "words":
            return fields | {"prompt": replace_words(fields["prompt"], self.target, value)}
        edits: dict[str, Callable[[str, Token, Any], str]] = {"concept_strength": set_strength, "window": set_window}
        edit = edits.get(self.kind, replace_concept)
        return fields | {"prompt": edit(fields["prompt"], Token.parse(self.target), value)}

    def applies_to(self, fields: Fields) -> bool:
        """Return whether these fields contain what the axis changes."""
        if self.kind == "words":
            return replace_words(fields["prompt"], self.target, "\0") != fields["prompt"]
        return not self.target or mentions_token(fields["prompt"], Token.parse(self.target))

    def label(self, value: Any) -> str:
        """Return the label of a value, with the axis' name, safe to print."""
        if self.kind in ("words", "prompt", "concept"):
            return printable(value, 400) or "(nothing)"
        if self.kind == "checkpoint":
            return f"step {value.removesuffix('>').rpartition('-')[2]}"
        if self.kind in ("concept_strength", "window"):
            mark = "@" if self.kind == "window" else ":"
            number = value if self.kind == "window" else f"{value:g}"
            return f"{self.target[:-1]}{mark}{number}>"
        return f"{self.kind.replace('_', ' ')} {'none' if value is None else value}"


def _split_at_colon(text: str) -> tuple[str, str, str]:
    """Split at the first colon outside brackets. Returns the texts before and after it, and the colon, if any."""
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter in "<{([") - (letter in ">})]")
        if letter == ":" and depth <= 0:
            return text[:i].strip(), ":", text[i + 1 :]
    return text, "", ""


def split_texts(values: str, separator: str = "|") -> tuple[str, ...]:
    """Split at every separator outside brackets; one of the parts may be empty."""
    texts, depth = [""], 0
    for letter in values:
        depth += (letter in "<{([") - (letter in ">})]")
        if letter == separator and depth <= 0:
            texts.append("")
        else:
            texts[-1] += letter
    return tuple(text.strip() for text in texts)


def _parse_prompts(kind: str, target: str, values: str) -> Axis:
    _refuse_target(kind, target)
    return Axis(kind, "", split_texts(values))


def _parse_words(kind: str, target: str, values: str) -> Axis:
    return Axis(kind, target or PLACEHOLDER, split_texts(values))


def _parse_strengths(kind: str, target: str, values: str) -> Axis:
    return Axis(kind, _parse_token(kind, target), parse_numbers(values))


def _parse_windows(kind: str, target: str, values: str) -> Axis:
    windows = [window.strip() for window in values.split(",")]
    if invalid := next((window for window in windows if not _WINDOW.fullmatch(window)), None):
        raise UserError(f"{printable(invalid)} is not a part of the sampling.", "For example 0-1, 0-0.6, 0.4-1.")
    return Axis(kind, _parse_token(kind, target), tuple(re.sub(r"\s", "", window) for window in windows))


def _parse_concepts(kind: str, target: str, values: str) -> Axis:
    concepts = split_texts(values)
    if len(concepts) == 1:
        concepts = split_texts(values, ",")
    return Axis(kind, _parse_token(kind, target), concepts)


def _parse_checkpoints(kind: str, target: str, values: str) -> Axis:
    _refuse_target(kind, target)
    run = CheckpointRun.open(Path(values))
    return Axis(kind, str(run.token), tuple(str(run.token_at(step)) for step in run.steps), run)


def _parse_setting(kind: str, target: str, values: str) -> Axis:
    _refuse_target(kind, target)
    if _is_number(kind):
        return Axis(kind, "", parse_numbers(values))
    if kind == "negative":
        return Axis(kind, "", split_texts(values))
    texts = (text.strip() for text in values.split(","))
    return Axis(kind, "", tuple(None if text == "none" else text for text in texts))


_PARSERS = {
    "prompt": _parse_prompts,
    "words": _parse_words,
    "concept_strength": _parse_strengths,
    "window": _parse_windows,
    "concept": _parse_concepts,
    "checkpoint": _parse_checkpoints,
}


def _is_number(setting: str) -> bool:
    annotation = GenerateRequest.model_fields[setting].annotation
    kinds = {annotation, *get_args(annotation)}
    kinds |= {arg for kind in kinds for arg in get_args(kind)}  # Annotated[int, ...] | None
    return bool(kinds & {int, float})


def _parse_token(kind: str, target: str) -> str:
    if not target:
        raise UserError(f"{kind} needs the concept that it is of.", f"For example '{kind} <me/duck>: ...'.")
    return str(Token.parse(target))


def _refuse_target(kind: str, target: str) -> None:
    if target:
        raise UserError(f"{kind} is followed by a colon, not by {printable(target)}.", f"For example '{kind}: ...'.")
