"""Pictures from prompts with concepts in them. A request leaves no trace: the same one gives the same pictures,
whatever ran before."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from . import __version__, files
from .bases import Conditioning, Framing, StableDiffusion
from .concept import Concept
from .config import Request
from .errors import Interrupted, PersonalError
from .prompts import Mention, Prompt, Token, parse
from .sheets import png

PNG_KEY = "sdpersonal"  # of the recipe in a picture's text
AT_ONCE = 4  # pictures in one batch; more saves little time on a CPU and costs memory on a card


class Concepts(Protocol):
    """Where a prompt's tokens lead: a Library, or anything that has `get`."""

    def get(self, token: Token) -> Concept: ...


class NoConcepts:
    """For prompts without tokens."""

    def get(self, token: Token) -> Concept:
        raise PersonalError(f"There is no concept {token} here.", "Open a library that has it.")


@dataclass(frozen=True)
class Picture:
    """One result: an RGB image, the seed that alone made it, and all that is needed to draw it again."""

    image: Image.Image
    seed: int
    recipe: dict[str, object]

    def png(self) -> bytes:
        """The picture as PNG, its recipe in a text chunk as JSON."""
        text = PngInfo()
        text.add_itxt(PNG_KEY, json.dumps(self.recipe, ensure_ascii=False))
        return png(self.image, text)

    def save(self, folder: Path) -> Path:
        """Write the PNG under a number and a hash of its bytes; never over another file. Raises NoRoom."""
        data = self.png()
        with files.lock(folder, wait=10):
            numbers = (path.name.partition("-")[0] for path in folder.glob("*-*.png"))
            number = 1 + max((int(number) for number in numbers if number.isdecimal()), default=0)
            path = folder / f"{number:05d}-{files.sha256(data)[:8]}.png"
            files.write_bytes(path, data)
        return path


@dataclass(frozen=True)
class _Reading:
    """A prompt with its concepts found."""

    prompt: Prompt
    concepts: dict[Token, Concept]  # by the token as written

    def pieces(self) -> list[str | dict[str, Tensor]]:
        """What `condition` takes: a mention is its vectors, or its trigger words, or nothing."""
        return [piece if isinstance(piece, str) else self._piece(piece) for piece in self.prompt.pieces]

    def _piece(self, mention: Mention) -> str | dict[str, Tensor]:
        concept = self.concepts[mention.token]
        if concept.vectors:
            return {key: torch.from_numpy(rows) * mention.strength for key, rows in concept.vectors.items()}
        return " ".join(concept.card.trigger_words)


class Generator:
    """Draws with one base and the concepts of one library."""

    def __init__(self, base: StableDiffusion, concepts: Concepts | None = None):
        self.base = base
        self.concepts = concepts or NoConcepts()

    def draw(
        self,
        request: Request,
        progress: Callable[[int, int], None] = lambda done, total: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Iterator[Picture]:
        """The pictures of a request, in order, as they are ready.

        progress(done, total) counts denoising steps over all of them; when cancelled() is true the next step raises
        Interrupted. Raises PersonalError for an unknown concept, one of another base, or a prompt that is too long.
        """
        prompt, negative = self._read(request.prompt), self._read(request.negative)
        strengths = self._strengths(prompt, negative)
        width, height = request.pixels or (self.base.resolution,) * 2
        seeds = [request.seed + i for i in range(request.n)]
        total = -(-request.n // AT_ONCE) * request.steps
        for first in range(0, request.n, AT_ONCE):

            def advance(step: int, before: int = first // AT_ONCE * request.steps) -> None:
                if cancelled():
                    raise Interrupted("Stopped.")
                progress(before + step, total)

            batch = seeds[first : first + AT_ONCE]
            for seed, image in zip(
                batch, self._draw(request, prompt, negative, batch, (width, height), advance), strict=True
            ):
                yield Picture(image, seed, self._recipe(request, seed, (width, height), strengths))

    def _read(self, text: str) -> _Reading:
        prompt = parse(text)
        return _Reading(prompt, {mention.token: self._concept(mention.token) for mention in prompt.mentions})

    def _concept(self, token: Token) -> Concept:
        concept = self.concepts.get(token)
        if concept.card.base != self.base.kind:
            raise PersonalError(
                f"{concept.token} was made for the base {concept.card.base}; the loaded one is {self.base.kind}.",
                f"Draw with --base {concept.card.base}, or train it again on this one.",
            )
        for key, width in self.base.widths.items():
            rows = concept.vectors.get(key)
            if rows is not None and rows.shape[1] != width:
                raise PersonalError(
                    f"{concept.token} has vectors of width {rows.shape[1]}; the loaded base takes {width}.",
                    "Train it again on this base.",
                )
        if concept.lora:
            self.base.slots.check(concept.lora, str(concept.token))
        return concept

    def _strengths(self, *readings: _Reading) -> dict[str, tuple[Concept, float]]:
        """Each concept once, by its full token, with the greatest strength it is mentioned with."""
        strengths: dict[str, tuple[Concept, float]] = {}
        for reading in readings:
            for mention in reading.prompt.mentions:
                concept = reading.concepts[mention.token]
                _, so_far = strengths.get(str(concept.token), (concept, 0.0))
                strengths[str(concept.token)] = concept, max(so_far, mention.strength)
        return strengths

    def _draw(
        self,
        request: Request,
        prompt: _Reading,
        negative: _Reading,
        seeds: Sequence[int],
        size: tuple[int, int],
        advance: Callable[[int], None],
    ) -> list[Image.Image]:
        base, count = self.base, len(seeds)
        # A LoRA changes both halves of the guidance, so one that is only to be avoided must not be loaded.
        wanted = self._strengths(prompt).values()
        mix = [(concept.lora, strength) for concept, strength in wanted if concept.lora]
        with base.quiet(), base.slots.filled(mix):
            width, height = size
            framings = [Framing.whole(height, width)] * (2 * count)
            condition = base.condition([negative.pieces()] * count + [prompt.pieces()] * count, framings)
            guidance = base.guidance if request.guidance is None else request.guidance
            noise = torch.stack([noise_of(seed, base.latent_shape(*size)) for seed in seeds]).to(base.device)
            pixels = base.decode(denoise(base, condition, noise, request.steps, guidance, advance))
        return [Image.fromarray(one) for one in pixels]

    def _recipe(
        self, request: Request, seed: int, size: tuple[int, int], strengths: dict[str, tuple[Concept, float]]
    ) -> dict[str, object]:
        return {
            "sdpersonal": __version__,
            "prompt": request.prompt,
            "negative": request.negative,
            "seed": seed,
            "steps": request.steps,
            "guidance": self.base.guidance if request.guidance is None else request.guidance,
            "size": "{}x{}".format(*size),
            "sampler": type(self.base.sampler()).__name__.removesuffix("Scheduler"),
            "base": {"name": Path(self.base.name).name, "kind": self.base.kind, "sha256": self.base.version},
            "concepts": [
                {"token": token, "sha256": concept.identity, "strength": strength}
                for token, (concept, strength) in strengths.items()
            ],
        }


def denoise(
    base: StableDiffusion,
    condition: Conditioning,
    noise: Tensor,
    steps: int,
    guidance: float,
    advance: Callable[[int], None],
) -> Tensor:
    """Noise (B, C, h, w) to latents, with classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598, eq. 6).

    condition: 2B rows, the negative prompt's first. advance(i) is called before the i-th step, counted from 1.
    """
    sampler = base.sampler()
    sampler.set_timesteps(steps, device=base.device)
    latents = noise.float() * sampler.init_noise_sigma
    for i, t in enumerate(sampler.timesteps):
        advance(i + 1)
        inputs = sampler.scale_model_input(latents, t)
        times = t.expand(2 * len(noise))
        without, with_prompt = base.predict(torch.cat([inputs, inputs]), times, condition).chunk(2)
        latents = sampler.step(without + guidance * (with_prompt - without), t, latents).prev_sample
    return latents


def noise_of(seed: int, shape: tuple[int, int, int]) -> Tensor:
    """Drawn on the CPU, one generator a picture: a seed means the same picture on any device and in any batch."""
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))
