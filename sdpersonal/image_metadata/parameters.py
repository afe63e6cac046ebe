"""Hold the metadata of other programs' images, and translate it to fields of a `GenerateRequest`.

Each program's reader turns its metadata into `Parameters`; `foreign_of` turns those into a `Foreign`, in which every
field is valid by itself. LoRAs, embeddings and models are named, never loaded: an image may come from anywhere, and a
name does not identify weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..config import GenerateRequest
from ..config.scheduler_table import find, no_counterpart
from ..errors import UserError, printable
from .prompt_syntax import Network, Syntax, translated

MOST_NOTES = 20  # networks listed in the notes


class Unreadable(Exception):
    """Raised for a program's metadata without a recipe. program: its name; reason: what it has instead, as text."""

    def __init__(self, program: str, reason: str):
        super().__init__(program, reason)
        self.program, self.reason = program, reason


@dataclass(frozen=True)
class Foreign:
    """Another program's recipe.

    fields: fields of a `GenerateRequest`, each valid by itself, without "prompt" if the prompt cannot be used; notes:
    what was left out, a sentence each; text: the metadata as stored in the image; program: its name; networks: the
    LoRAs, embeddings and hypernetworks used; words: the prompt in our syntax, usable or not; refusal: why it is not.
    """

    fields: Mapping[str, Any]
    notes: tuple[str, ...]
    text: str
    program: str = "A1111"
    networks: tuple[Network, ...] = ()
    words: str = ""
    refusal: UserError | None = None

    def request(self, **others: Any) -> GenerateRequest:
        """Return a request for one image, with `others` added or overriding.

        Raises UserError if its prompt cannot be used and `others` has none, and if fields conflict.
        """
        if self.refusal and "prompt" not in others:
            raise self.refusal
        return GenerateRequest(**({"num_images": 1} | dict(self.fields) | others))


@dataclass
class Parameters:
    """One program's metadata in our units, unchecked.

    values: by the names of a `GenerateRequest`'s fields; invalid numbers stay text. sampler, schedule: as
    `scheduler_table.find` takes them. img2img: whether it began from another image, None if not stated.
    """

    program: str
    text: str
    prompt: str = ""
    negative: str = ""
    syntax: Syntax = "a1111"
    values: dict[str, Any] = field(default_factory=dict)
    sampler: str = ""
    schedule: str | None = None
    naming: str = ""
    model: str = ""
    networks: list[Network] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    img2img: bool | None = False


def foreign_of(parameters: Parameters) -> Foreign:
    """Return the fields that pass the checks of a request, and notes on the rest."""
    words, networks = translated(parameters.prompt, parameters.syntax)
    negative, in_negative = translated(parameters.negative, parameters.syntax)
    networks = _distinct([*networks, *in_negative, *parameters.networks])
    notes = [f"Not loaded: {network}." for network in networks[:MOST_NOTES]]
    fields: dict[str, Any] = {}
    refusal = _refusal(words, bool(networks))
    if refusal:
        notes.append(f"Its prompt cannot be used as it is. {' '.join(str(refusal).split())}")
    else:
        fields["prompt"] = words
    for name, value in {"negative": negative, **parameters.values}.items():
        try:
            GenerateRequest(**({"prompt": ""} | {name: value}))
        except UserError as error:
            notes.append(f"Left out: {error.message}")
        else:
            fields[name] = value
    if fields.get("hires_scale", 1.0) == 1.0 and parameters.img2img is False:
        fields.pop("strength", None)
    if "variation_strength" not in fields:
        fields.pop("variation_seed", None)
    notes += _model(parameters) + _scheduler(parameters, fields) + parameters.notes + _beginning(parameters, fields)
    return Foreign(
        fields, tuple(dict.fromkeys(notes)), parameters.text, parameters.program, tuple(networks), words, refusal
    )


def number(value: object) -> int | float | str | None:
    """Parse a number of up to 20 digits; other text is returned, so that the request's check can refuse it by name."""
    if isinstance(value, bool) or value is None or isinstance(value, int | float):
        return value
    text = str(value).strip()[:60]
    if re.fullmatch(r"-?[0-9]{1,20}", text):
        return int(text)
    return float(text) if re.fullmatch(r"-?[0-9]{0,15}\.[0-9]{1,20}|-?[0-9]{1,15}\.", text) else text


def size_of(width: object, height: object) -> str | None:
    """Return WIDTHxHEIGHT, or None if one of them is missing."""
    sides = [number(side) for side in (width, height)]
    whole = [int(side) for side in sides if isinstance(side, int | float) and 0 < side < 100_000]
    return "x".join(map(str, whole)) if len(whole) == 2 else None


def base_name(path: object) -> str:
    """Return the last part of a path of any system, without a weight file's extension."""
    name = re.split(r"[\\/]", str(path))[-1]
    return re.sub(r"\.(safetensors|ckpt|pt|pth|bin|gguf|sft)$", "", name, flags=re.IGNORECASE)


def enlarged(first: str | None, target: tuple[object, object]) -> float | None:
    """Return the factor from `first` to the second pass; one side of the target may be 0. None if unclear."""
    if first is None:
        return None
    ratios = []
    for side, target_side in zip(map(int, first.split("x")), target, strict=True):
        target_side = number(target_side)
        if isinstance(target_side, int | float) and target_side > 0:
            ratios.append(target_side / side)
    if not ratios or max(ratios) - min(ratios) > 0.02 * max(ratios):  # sides are rounded to 8 pixels
        return None
    return round(sum(ratios) / len(ratios), 3)


def _distinct(networks: list[Network]) -> list[Network]:
    """Remove duplicates, preferring a network with a strength to one without."""
    distinct: dict[tuple[str, str], Network] = {}
    for network in networks:
        key = (network.kind, network.name.casefold())
        if key not in distinct or distinct[key].strength is None:
            distinct[key] = network
    return list(distinct.values())


def _refusal(words: str, networks: bool) -> UserError | None:
    if not words:
        content = "Nothing but LoRAs is" if networks else "No words are"
        return UserError(f"{content} in the prompt of this image.", "Write a prompt of your own.")
    try:
        GenerateRequest(prompt=words)
    except UserError as error:
        return error
    return None


def _scheduler(parameters: Parameters, fields: dict[str, Any]) -> list[str]:
    if not parameters.sampler:
        return []
    schedule = f" with the schedule {printable(parameters.schedule, 30)}" if parameters.schedule else ""
    label = f"{printable(parameters.sampler, 40)}{schedule}"
    scheduler = find(parameters.sampler, parameters.schedule, parameters.naming)
    if scheduler is None and (
        match := re.fullmatch(r"[^-]+ - (.+)", parameters.sampler)
    ):  # Krita's: "Default - DPM++ 2M"
        scheduler = find(match[1], parameters.schedule, parameters.naming)
    if scheduler is None:
        reason = no_counterpart(parameters.sampler)
        return [
            f"It was generated with the sampler {label}, which is not available here{f': {reason}' if reason else ''}."
        ]
    try:
        fields["scheduler"] = GenerateRequest(prompt="", scheduler=scheduler.name).scheduler
    except UserError as error:
        return [f"Left out: {error.message}"]
    return [f"Its sampler {label} is not the same here: {scheduler.near}."] if scheduler.near else []


def _model(parameters: Parameters) -> list[str]:
    return [f"It was generated with the model {printable(parameters.model, 60)}."] if parameters.model else []


def _beginning(parameters: Parameters, fields: dict[str, Any]) -> list[str]:
    if parameters.img2img:
        return ["It was generated from another image: give that with --init-image."]
    if parameters.img2img is None and "strength" in fields:
        return [
            f"It says a denoising strength of {fields['strength']:g}: if it is an image-to-image one, "
            "give its initial image with --init-image."
        ]
    return []
