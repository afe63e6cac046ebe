"""Compare images of different concepts in one batch with images of one concept, and with one request after the other.

python benchmarks/mixed_batch.py
python benchmarks/mixed_batch.py --base FOLDER --size 256 --steps 3 --images 4

All with random LoRAs of rank 16, one for each image: of the attention layers, or of every layer. The ways take turns in
one process on one thread, after a round that is not counted; seconds of the thread's own time, medians of the rounds.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if TYPE_CHECKING:
    from sdpersonal.concepts.concept import Concept
    from sdpersonal.generation import Generator
    from sdpersonal.models import StableDiffusion
    from sdpersonal.models.lora import LoraTargets
    from sdpersonal.prompts import Token

WAYS = ("one concept in one batch", "different concepts in one batch", "different concepts, one after the other")


@dataclass(frozen=True)
class Settings:
    base: str = "tiny"
    """tiny, or a folder of a model."""
    images: int = 8
    steps: int = 25
    size: int = 128
    rounds: int = 5


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch

    from sdpersonal.generation import Generator
    from sdpersonal.models import load_base

    torch.set_num_threads(1)
    base = load_base(settings.base, "cpu")
    print(f"{settings.images} images of {settings.size} px in {settings.steps} steps, load {os.getloadavg()[0]:.1f}")
    targets: LoraTargets
    for targets in ("attention", "all"):
        generator = Generator(base, _Concepts(base, targets, settings.images))
        seconds, difference = _measure(generator, settings)
        print(f"\n| LoRA of {targets} layers | s an image | | largest difference of 255 |\n| --- | --- | --- | --- |")
        slowest = median(seconds[WAYS[2]])
        for way, times in seconds.items():
            spread = f"{min(times) / settings.images:.3f} to {max(times) / settings.images:.3f}"
            ratio = slowest / median(times)
            shown = difference if way == WAYS[1] else ""
            print(f"| {way} | {median(times) / settings.images:.3f} ({spread}) | {ratio:.2f}x | {shown} |")


def _measure(generator: Generator, settings: Settings) -> tuple[dict[str, list[float]], int]:
    """Return the seconds of each way, and the largest difference between the images of the last two."""
    from sdpersonal.config import GenerateRequest

    def request(concept: int, seed: int, count: int = 1) -> GenerateRequest:
        size = f"{settings.size}x{settings.size}"
        prompt = f"a photo of a duck<bench/lora{concept}> on the beach"
        return GenerateRequest(prompt=prompt, seed=seed, num_images=count, steps=settings.steps, size=size)

    requests = [request(i, i) for i in range(settings.images)]
    ways: dict[str, Callable[[], list]] = {
        WAYS[0]: lambda: list(generator.generate(request(0, 0, settings.images))),
        WAYS[1]: lambda: [image for _, image in generator.generate_many(requests)],
        WAYS[2]: lambda: [image for single in requests for image in generator.generate(single)],
    }
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    images: dict[str, list] = {}
    for number in range(settings.rounds + 1):
        for way, generate in ways.items():
            start = time.thread_time()
            images[way] = sorted(generate(), key=lambda image: image.seed)
            if number:
                seconds[way].append(time.thread_time() - start)
    pixels = [np.stack([np.asarray(image.image).astype(int) for image in images[way]]) for way in WAYS[1:]]
    return seconds, int(np.abs(pixels[0] - pixels[1]).max())


class _Concepts(dict[str, "Concept"]):
    """LoRAs with random weights: only their shapes matter."""

    def __init__(self, base: StableDiffusion, targets: LoraTargets, count: int):
        from sdpersonal.concepts.card import Card
        from sdpersonal.concepts.concept import Concept, Lora, LoraLayer
        from sdpersonal.prompts import Token

        rank, layers = 16, base.adapters.layers()
        for i in range(count):
            rng, lora = np.random.default_rng(i), {}
            for name in base.adapters.layer_names(targets):
                weight = layers[name].weight
                down = rng.normal(0, weight[0].numel() ** -0.5, (rank, *weight.shape[1:])).astype(np.float32)
                up = rng.normal(0, 0.02, (len(weight), rank, *(1 for _ in weight.shape[2:]))).astype(np.float32)
                lora[name] = LoraLayer(down, up, float(rank))
            self[f"lora{i}"] = Concept(Token("bench", f"lora{i}"), Card(base=base.kind), {}, Lora(lora))

    def get(self, token: Token) -> Concept:
        return self[token.name]


if __name__ == "__main__":
    main()
