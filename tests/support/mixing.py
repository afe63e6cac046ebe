"""Concepts that change a lot, and the predictions of diffusers' own models with their LoRAs added to the weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sdpersonal.concepts.card import Card
from sdpersonal.concepts.concept import Concept, Lora, LoraLayer
from sdpersonal.generation.prompt_resolution import ResolvedPrompt
from sdpersonal.models import StableDiffusion
from sdpersonal.prompts import Token, parse

Mix = Sequence[tuple[Lora, float]]
KINDS = {"fox": "object", "cat": "object", "bob": "person", "ink": "style", "wash": "style"}


class Shelf(dict):
    """Concepts by name, whatever their owner."""

    def get(self, token: Token) -> Concept:
        return self[token.name]


def resolved(text: str) -> ResolvedPrompt:
    """Return a prompt with concepts of all kinds, called by their names."""
    concepts = {}
    for number, (name, kind) in enumerate(KINDS.items()):
        rows = np.full((1, 192), number, np.float32)
        concepts[name] = Concept(Token("me", name), Card(base="tiny", kind=kind), {"clip_l": rows})
    prompt = parse(text)
    return ResolvedPrompt(prompt, {mention.token: concepts[mention.token.name] for mention in prompt.mentions})


def random_lora(base: StableDiffusion, seed: int, size: float = 0.3, text_encoder: bool = False) -> Lora:
    """A LoRA of rank 2 in every layer that can be trained."""
    rng, layers = np.random.default_rng(seed), {}
    for name in base.adapters.layer_names("all", text_encoder=text_encoder):
        weight = base.adapters.layers()[name].weight
        up = (len(weight), 2, *(1 for _ in weight.shape[2:]))
        down = rng.normal(size=(2, *weight.shape[1:])).astype(np.float32) / weight[0].numel() ** 0.5
        layers[name] = LoraLayer(down, size * rng.normal(size=up).astype(np.float32), 2.0)
    return Lora(layers)


def shelf_of(base: StableDiffusion, rows: int = 0, **lora) -> Shelf:
    """Concepts of all kinds. rows: number of vectors; 0: each is called by its name as a trigger word."""
    shelf = Shelf()
    for seed, (name, kind) in enumerate(KINDS.items()):
        rng = np.random.default_rng(seed)
        vectors = {key: rng.normal(size=(rows, w)).astype(np.float32) * 0.05 for key, w in base.widths.items()}
        card = Card(base=base.kind, kind=kind, trigger_words=() if rows else (name,))
        shelf[name] = Concept(Token("me", name), card, vectors if rows else {}, random_lora(base, seed, **lora))
    return shelf


class DensePipeline:
    """A pipeline folder as diffusers loads it, one prompt at a time, with LoRAs added to the weights meanwhile."""

    def __init__(self, folder: Path, base: StableDiffusion):
        from diffusers import DiffusionPipeline

        self._pipe = DiffusionPipeline.from_pretrained(folder)
        self._encoded: dict = {}
        self._is_xl = base.kind == "sdxl"
        names = {module: name for name, module in base.adapters.layers().items()}
        models = {"unet": "unet", "clip_l": "text_encoder", "clip_g": "text_encoder_2"}
        self._layers = {  # by the names that LoRAs have for them
            names[module]: getattr(self._pipe, models[key]).get_submodule(path)
            for key in models.keys() & base.modules().keys()
            for path, module in base.modules()[key].named_modules()
            if module in names
        }

    @property
    def scheduler(self):
        return self._pipe.scheduler

    def predict(self, text: str, mix: Mix, latents: Tensor, t: Tensor, size: int) -> Tensor:
        """Return the UNet's output for latents (1, C, h, w), without guidance. size: of the image's sides, for SDXL."""
        pipe, added, key = self._pipe, {}, (text, *((id(lora), strength) for lora, strength in mix))
        with torch.no_grad(), self._added(mix):
            if key not in self._encoded:
                options = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
                self._encoded[key] = pipe.encode_prompt(text, **options)
            encoded = self._encoded[key]
            if self._is_xl:
                sizes = torch.tensor([[size, size, 0, 0, size, size]]).float()
                added = {"text_embeds": encoded[2], "time_ids": sizes}
            return pipe.unet(latents, t, encoded[0], added_cond_kwargs=added).sample

    @contextmanager
    def _added(self, mix: Mix) -> Iterator[None]:
        bare = {}
        for lora, strength in mix:
            for name, part in lora.layers.items():
                weight = self._layers[name].weight
                bare.setdefault(name, weight.data)
                up, down = (torch.tensor(x).flatten(1) for x in (part.up, part.down))
                weight.data = weight.data + strength * part.alpha / part.rank * (up @ down).view_as(weight)
        try:
            yield
        finally:
            for name, weight in bare.items():
                self._layers[name].weight.data = weight
