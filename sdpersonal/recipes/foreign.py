"""What another program's picture says, as far as it means the same here.

The text is A1111's (`infotext`), which most programs write. Its LoRAs, embeddings and model are named, never loaded: a
picture comes from anywhere, and names are not weights.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..config import Request
from ..errors import PersonalError
from ..prompts import Token, show
from .infotext import SAMPLERS

_FACT = re.compile(r'\s*(\w[\w \-/]*+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')  # as A1111 reads it
_NETWORK = re.compile(r"<(lora|lyco|lycoris|hypernet):([^<>:]*)(?::([^<>]*))?>", re.IGNORECASE)
_OURS_ALONE = re.compile(r"\\.|[{}]|__(?=[^\W_])|<(?=\S)([^<>]*)>", re.DOTALL)  # signs that are text to A1111
_MOST_NOTES = 20  # networks named
_MEANS = {  # our field -> theirs
    "steps": "Steps",
    "guidance": "CFG scale",
    "seed": "Seed",
    "size": "Size",
    "near_seed": "Variation seed",
    "near": "Variation seed strength",
    "enlarge": "Hires upscale",
    "change": "Denoising strength",
}
_OURS = {sampler for sampler, _ in SAMPLERS.values()}


@dataclass(frozen=True)
class Foreign:
    """Fields of a `Request`, each of which holds by itself; notes on what was left out, a sentence each; its text."""

    fields: Mapping[str, Any]
    notes: tuple[str, ...]
    text: str

    def request(self, **others: Any) -> Request:
        """One picture of it, `others` said besides or instead. Raises PersonalError where they do not go together."""
        return Request(**({"n": 1} | dict(self.fields) | others))


def foreign(text: str) -> Foreign | None:
    """What A1111's text says; None where the text is nothing of that kind."""
    prompt, negative, facts = _parts(text)
    if "Steps" not in facts:
        return None
    notes: list[str] = []
    fields: dict[str, Any] = {}
    said = {"prompt": _in_our_words(prompt, notes), "negative": _in_our_words(negative, [])}
    said |= {ours: _number(facts[theirs]) for ours, theirs in _MEANS.items() if theirs in facts}
    if not said.get("near", 1):  # "Variation seed strength: 0" is none
        del said["near"]
    for name, value in said.items():
        try:
            Request(**({"prompt": ""} | {name: value}))
        except PersonalError as error:
            notes.append(f"Left out: {error.problem}")
        else:
            fields[name] = value
    fields.setdefault("prompt", "")
    return Foreign(fields, tuple(notes + _remarks(facts)), text)


def _parts(text: str) -> tuple[str, str, dict[str, str]]:
    """Prompt, negative prompt and the facts of the last line."""
    *lines, last = text.strip().split("\n")
    facts = _facts(last)
    if len(facts) < 3:  # A1111's rule
        lines, facts = [*lines, last], {}
    lines = [line.strip() for line in lines]
    cut = next((i for i, line in enumerate(lines) if line.startswith("Negative prompt:")), len(lines))
    negative = "\n".join(lines[cut:]).removeprefix("Negative prompt:")
    return "\n".join(lines[:cut]).strip(), negative.strip(), facts


def _facts(line: str) -> dict[str, str]:
    """`key: value` by key. One walk along the line: where nothing fits, on behind the next comma."""
    found: dict[str, str] = {}
    at = 0
    while at < len(line):
        if fact := _FACT.match(line, at):
            found.setdefault(fact[1].strip(), _unquoted(fact[2].strip()))
            at = max(fact.end(), at + 1)
        else:
            comma = line.find(",", at)
            at = comma + 1 if comma >= 0 else len(line)
    return found


def _unquoted(value: str) -> str:
    if len(value) < 2 or value[0] != '"':
        return value
    try:
        return str(json.loads(value))
    except ValueError:
        return value


def _number(text: str) -> int | float | str:
    """A number as it is written; else the text, for the request's own check to refuse."""
    if re.fullmatch(r"-?[0-9]{1,15}", text):
        return int(text)
    return float(text) if re.fullmatch(r"-?[0-9]{0,15}\.[0-9]{1,15}", text) else text


def _in_our_words(prompt: str, notes: list[str]) -> str:
    """The prompt without what loads weights, and with what only we would read as more than text escaped."""
    for kind, name, strength in _NETWORK.findall(prompt)[:_MOST_NOTES]:
        weight = f" ({show(strength, 20)})" if strength else ""
        called = "hypernetwork" if kind.lower() == "hypernet" else "LoRA"
        notes.append(f"Not loaded: the {called} {show(name, 60)}{weight}.")
    return _OURS_ALONE.sub(_escaped, " ".join(_NETWORK.sub("", prompt).split()))


def _escaped(sign: re.Match[str]) -> str:
    if sign[0].startswith("\\"):
        return sign[0]
    if sign[1] is None:
        return "".join(f"\\{letter}" for letter in sign[0])
    try:
        Token.parse(sign[1])  # `<cat-toy>`, as embeddings are often called: the library may have it
    except PersonalError:
        return f"\\{sign[0]}"
    return sign[0]


def _remarks(facts: Mapping[str, str]) -> list[str]:
    notes = []
    words = [each.partition(":")[0].strip() for each in facts.get("TI hashes", "").split(",")]
    notes += [f"Not loaded: the embedding {show(word, 60)}." for word in words if word][:_MOST_NOTES]
    if model := facts.get("Model") or facts.get("Model hash"):
        notes.append(f"It was drawn with the model {show(model, 60)}.")
    if (sampler := facts.get("Sampler", "")) and sampler.removesuffix(" Karras") not in _OURS:
        notes.append(f"It was drawn by the sampler {show(sampler, 40)}, which I do not have.")
    if facts.get("RNG", "GPU") != "CPU":
        notes.append("Its noise was drawn on a graphics card: the same seed begins from other noise here.")
    if "Denoising strength" in facts and "Hires upscale" not in facts:
        notes.append("It began from another picture: give that with --start.")
    if facts.get("Clip skip", "1") != "1":
        notes.append(f"It skipped layers of the text encoder (Clip skip {show(facts['Clip skip'], 10)}); I do not.")
    return notes
