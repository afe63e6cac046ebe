"""Concepts with random weights, as files for both sides: only their shapes matter."""

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
    """The concepts of an image by name: at most one word and two LoRAs."""

    word: str | None
    loras: tuple[str, ...]

    @classmethod
    def of(cls, kind: str, i: int) -> ConceptMix:
        """Return mix number `i` of a kind: "one" (an embedding and a LoRA) or "two" (LoRAs)."""
        if kind == "one":
            return cls(f"word{i}", (f"lora{i}",))
        return cls(None, (f"lora{i}", f"lora{i + 1}"))

    @property
    def prompt(self) -> str:
        """Return the prompt for diffusers, where LoRAs are not part of it."""
        return PROMPT_TEMPLATE.format(f"<bench/{self.word}>" if self.word else "duck")

    @property
    def our_prompt(self) -> str:
        tokens = "".join(f"<bench/{name}:{strength}>" for name, strength in zip(self.loras, STRENGTHS, strict=False))
        return self.prompt + tokens


def make_concepts(kind: str, folder: Path, count: int) -> None:
    """Write `count` embeddings and LoRAs for a base: to folder/library for us, to folder/NAME for diffusers."""
    from benchmarks.steps.geometry import build

    base, library = build(kind, "meta"), Library(folder / "library")
    for i in range(count):
        for name, concept in ((f"word{i}", _make_embedding(base, kind, i)), (f"lora{i}", _make_lora(base, kind, i))):
            library.add(concept)
            for path, content in export(concept, "diffusers").files.items():
                (folder / name).mkdir(exist_ok=True)
                (folder / name / path).write_bytes(content)


def _make_embedding(base: StableDiffusion, kind: str, i: int) -> Concept:
    rng = np.random.default_rng(i)
    embeddings = {key: rng.normal(0, 0.02, (VECTORS, width)).astype(np.float32) for key, width in base.widths.items()}
    return Concept(Token("bench", f"word{i}"), Card(base=base.kind), embeddings)


def _make_lora(base: StableDiffusion, kind: str, i: int) -> Concept:
    """Build a LoRA of the attention projections, as both sides train by default, of a usual norm."""
    rng, layers, modules = np.random.default_rng(1000 + i), {}, base.adapters.layers()
    for name in base.adapters.layer_names("attention"):
        out, into = modules[name].weight.shape
        down = rng.normal(0, into**-0.5, (RANK, into)).astype(np.float32)
        layers[name] = LoraLayer(down, rng.normal(0, 0.02, (out, RANK)).astype(np.float32), float(RANK))
    return Concept(Token("bench", f"lora{i}"), Card(base=base.kind), {}, Lora(layers))
