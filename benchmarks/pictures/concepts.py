"""Concepts with random weights, as files for both sides: what they look like does not matter, their shapes do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sdpersonal.concepts.card import Card
from sdpersonal.concepts.concept import Concept, Lora, LoraLayer
from sdpersonal.concepts.exporters import export
from sdpersonal.concepts.library import Library
from sdpersonal.prompts import Token

if TYPE_CHECKING:
    from sdpersonal.models import StableDiffusion

RANK, VECTORS = 16, 4
STRENGTHS = (0.7, 0.4)
PROMPT_TEMPLATE = "a photo of a {} on the beach, soft light"


@dataclass(frozen=True)
class ConceptMix:
    """What a picture is drawn with: concepts by name, at most one word and two LoRAs."""

    word: str | None
    loras: tuple[str, ...]

    @classmethod
    def of(cls, kind: str, i: int) -> ConceptMix:
        """kind: "one" (an embedding and a LoRA) or "two" (LoRAs); i: the how manieth of its kind."""
        if kind == "one":
            return cls(f"word{i}", (f"lora{i}",))
        return cls(None, (f"lora{i}", f"lora{i + 1}"))

    @property
    def prompt(self) -> str:
        """As diffusers takes it, whose LoRAs are no words."""
        return PROMPT_TEMPLATE.format(f"<bench/{self.word}>" if self.word else "duck")

    @property
    def our_prompt(self) -> str:
        tokens = "".join(f"<bench/{name}:{strength}>" for name, strength in zip(self.loras, STRENGTHS, strict=False))
        return self.prompt + tokens


def make_concepts(kind: str, place: Path, count: int) -> None:
    """`count` words and LoRAs for a base: place/library for us, place/NAME for diffusers."""
    from benchmarks.steps.geometry import build

    base, library = build(kind, "meta"), Library(place / "library")
    for i in range(count):
        for name, concept in ((f"word{i}", _make_embedding(base, kind, i)), (f"lora{i}", _make_lora(base, kind, i))):
            library.add(concept)
            for path, content in export(concept, "diffusers").files.items():
                (place / name).mkdir(exist_ok=True)
                (place / name / path).write_bytes(content)


def _make_embedding(base: StableDiffusion, kind: str, i: int) -> Concept:
    draw = np.random.default_rng(i)
    rows = {key: draw.normal(0, 0.02, (VECTORS, width)).astype(np.float32) for key, width in base.widths.items()}
    return Concept(Token("bench", f"word{i}"), Card(base=base.kind), rows)


def _make_lora(base: StableDiffusion, kind: str, i: int) -> Concept:
    """Of the attentions' projections, as both sides train it by default; about as large as a learned one."""
    draw, layers, known = np.random.default_rng(1000 + i), {}, base.adapters.layers()
    for name in base.adapters.layer_names("attention"):
        out, into = known[name].weight.shape
        down = draw.normal(0, into**-0.5, (RANK, into)).astype(np.float32)
        layers[name] = LoraLayer(down, draw.normal(0, 0.02, (out, RANK)).astype(np.float32), float(RANK))
    return Concept(Token("bench", f"lora{i}"), Card(base=base.kind), {}, Lora(layers))
