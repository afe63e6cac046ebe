"""Run one side of the benchmark: read commands as lines of JSON, and answer each with one.

python -m benchmarks.images.side {sdpersonal,diffusers} BASE CONCEPTS DEVICE

{"do": "generate", "mix": ["one", 0], "n": 8, "steps": 25, "size": 128}
{"do": "switch", "mix": ["two", 3], "size": 128, "from": "files"}     until the first step could begin
{"do": "first", "path": "a.npy", "mix": ["one", 0], "steps": 25, "size": 128}
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

STARTED_AT = time.perf_counter(), time.process_time()

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks.images.concepts import ConceptMix  # noqa: E402


def set_strengths(pipe: Any, strengths: Mapping[str, float]) -> None:
    """Do as `set_adapters`, which fails where a UNet's blocks have different numbers of layers (diffusers 0.42)."""
    names = list(strengths)
    if isinstance(pipe.unet.config.layers_per_block, int):
        pipe.set_adapters(names, list(strengths.values()))
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    for model in (pipe.unet, pipe.text_encoder):
        for layer in (module for module in model.modules() if isinstance(module, BaseTunerLayer)):
            layer.set_adapter(names)
            for name in names:
                layer.set_scale(name, strengths[name])


class FirstStepReached(Exception):
    """The first step could begin."""


class Clock:
    """Measures (wall, processor) seconds since `reset`, in all and of the UNet's calls."""

    def __init__(self, unet: torch.nn.Module, texts: list[torch.nn.Module]):
        self.stops = False
        self.reset()
        for text in texts:
            text.register_forward_pre_hook(lambda *_: self._mark_ready())
        unet.register_forward_pre_hook(lambda *_: self._begin_step())
        unet.register_forward_hook(lambda *_: self._end_step())

    def reset(self) -> None:
        self.steps, self.unet, self.ready, self.started_at = 0, [0.0, 0.0], None, now()

    def since(self) -> list[float]:
        return [b - a for a, b in zip(self.started_at, now(), strict=True)]

    def _mark_ready(self) -> None:
        self.ready = self.ready or self.since()

    def _begin_step(self) -> None:
        self._mark_ready()
        if self.stops:
            raise FirstStepReached
        self._step = now()

    def _end_step(self) -> None:
        self.steps += 1
        self.unet = [total + b - a for total, a, b in zip(self.unet, self._step, now(), strict=True)]


def now() -> tuple[float, float]:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


class SdpersonalSide:
    """This project's generator."""

    def __init__(self, base: str, concepts: Path, device: str):
        from sdpersonal.concepts.library import Library
        from sdpersonal.generation import Generator
        from sdpersonal.models import load_base

        self._base = load_base(base, device)
        self._generator = Generator(self._base, Library(concepts / "library"))
        self.clock = Clock(self._base.unet, [encoder.model for encoder in self._base.encoders.values()])

    def load(self, mix: ConceptMix, from_files: bool) -> None:
        """Nothing to do: a prompt names its concepts."""

    def generate(self, mix: ConceptMix, n: int, steps: int, size: int) -> list[np.ndarray]:
        from sdpersonal.config import GenerateRequest

        fields = {"num_images": n, "steps": steps, "size": f"{size}x{size}", "compose": False}  # as diffusers mixes
        request = GenerateRequest(prompt=mix.our_prompt, **fields)
        return [np.asarray(result.image) for result in self._generator.generate(request)]


class DiffusersSide:
    """Their pipeline as documented, with our scheduler, guidance and seeds."""

    def __init__(self, base: str, concepts: Path, device: str):
        from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

        from sdpersonal.models.loading import BUILT_IN, built_in_folder
        from sdpersonal.models.schedulers import make_scheduler

        folder = built_in_folder() if base == BUILT_IN else Path(base)
        xl = (folder / "text_encoder_2").is_dir()
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self._pipe = (StableDiffusionXLPipeline if xl else StableDiffusionPipeline).from_pretrained(
            folder, dtype=dtype, local_files_only=True
        )
        self._pipe.set_progress_bar_config(disable=True)
        self._pipe.to(device)
        self._pipe.scheduler = make_scheduler(self._pipe.scheduler.config)
        self._guidance = 3.0 if base == BUILT_IN else 5.0 if xl else 7.5
        self._concepts, self._xl, self._loaded = concepts, xl, set()
        texts = [self._pipe.text_encoder, *([self._pipe.text_encoder_2] if xl else [])]
        self.clock = Clock(self._pipe.unet, texts)

    def load(self, mix: ConceptMix, from_files: bool) -> None:
        """Load the concepts of the mix. from_files: unload all others first."""
        if from_files and self._loaded:
            self._pipe.unload_lora_weights()
            if any(name.startswith("word") for name in self._loaded):
                self._pipe.unload_textual_inversion()
                if self._xl:
                    self._pipe.unload_textual_inversion(
                        text_encoder=self._pipe.text_encoder_2, tokenizer=self._pipe.tokenizer_2
                    )
            self._loaded.clear()
        for name in {*mix.loras, *filter(None, [mix.word])} - self._loaded:
            self._load(name)
        set_strengths(self._pipe, dict(zip(mix.loras, (0.7, 0.4), strict=False)))

    def _load(self, name: str) -> None:
        folder, token = self._concepts / name, f"<bench/{name}>"
        if name.startswith("lora"):
            self._pipe.load_lora_weights(folder, adapter_name=name)
        else:
            self._pipe.load_textual_inversion(folder / "learned_embeds.safetensors", token=token)
            if self._xl:
                more = {"text_encoder": self._pipe.text_encoder_2, "tokenizer": self._pipe.tokenizer_2}
                self._pipe.load_textual_inversion(folder / "learned_embeds_2.safetensors", token=token, **more)
        self._loaded.add(name)

    def generate(self, mix: ConceptMix, n: int, steps: int, size: int) -> list[np.ndarray]:
        seeds = [torch.Generator("cpu").manual_seed(seed) for seed in range(n)]
        images = self._pipe(
            mix.prompt,
            num_images_per_prompt=n,
            num_inference_steps=steps,
            guidance_scale=self._guidance,
            height=size,
            width=size,
            generator=seeds,
        ).images
        return [np.asarray(result) for result in images]


def main() -> None:
    side_name, base, concepts, device = sys.argv[1:]
    output = sys.stdout
    sys.stdout = sys.stderr  # libraries print to stdout
    side = (SdpersonalSide if side_name == "sdpersonal" else DiffusersSide)(base, Path(concepts), device)
    loaded = [b - a for a, b in zip(STARTED_AT, now(), strict=True)]
    print(json.dumps({"loaded": loaded, "torch": torch.__version__}), file=output, flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        print(json.dumps(_answer(side, command) | _memory()), file=output, flush=True)


def _answer(side: SdpersonalSide | DiffusersSide, command: dict) -> dict:
    mix, size = ConceptMix.of(*command["mix"]), command["size"]
    clock, switches = side.clock, command["do"] == "switch"
    if command["do"] == "generate":  # its time does not include loading
        side.load(mix, from_files=False)
    clock.stops = switches
    clock.reset()
    if switches or command["do"] == "first":
        side.load(mix, from_files=command.get("from", "files") == "files")
    try:
        images = side.generate(mix, command.get("n", 1), command.get("steps", 2), size)
    except FirstStepReached:
        return {"step": clock.since(), "ready": clock.ready}
    taken = clock.since()
    if "path" in command:
        np.save(command["path"], images)
    since_start = [b - a for a, b in zip(STARTED_AT, now(), strict=True)]
    return {"seconds": taken, "unet": clock.unet, "steps": clock.steps, "since_start": since_start}


def _memory() -> dict:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << (0 if sys.platform == "darwin" else 10)
    return {"peak": peak, "cuda": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None}


if __name__ == "__main__":
    main()
