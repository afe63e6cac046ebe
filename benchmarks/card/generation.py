"""Generation and the switching of concepts: diffusers' pipeline and this project, in turns, in one process."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch

from benchmarks.images.concepts import ConceptMix, make_concepts
from sdpersonal.concepts.library import Library
from sdpersonal.config import GenerateRequest
from sdpersonal.generation import Generator
from sdpersonal.models import StableDiffusion

from .clocks import interleaved, peak_memory, profiled, wait, waits
from .session import Session, free_memory
from .training import list_waits, report_waits, use_plain_blocks

STEPS = 25
STRENGTHS = (0.7, 0.4)
OUR_ARMS = ("plain", "graph")
"""The ways in which this project generates, as `use_arm` sets them; the last is how it does by default."""


def use_arm(base: StableDiffusion, arm: str) -> None:
    """Make the base predict in that way."""
    if arm not in OUR_ARMS:
        raise ValueError(f"{arm!r} is none of {', '.join(OUR_ARMS)}")
    base.replayer.enabled = arm == "graph"


class Ours:
    """This project's generator with a library of two LoRAs and more."""

    def __init__(self, base: StableDiffusion, concepts: Path, side: int):
        self.base, self._concepts, self._side = base, concepts, side
        self.generator = Generator(base, Library(concepts / "library"))

    def forget(self) -> None:
        """Read the concepts from their files again."""
        self.generator = Generator(self.base, Library(self._concepts / "library"))

    def generate(self, prompt: str, n: int = 1, steps: int = STEPS) -> list[np.ndarray]:
        fields = {"num_images": n, "steps": steps, "size": f"{self._side}x{self._side}", "compose": False}
        request = GenerateRequest(prompt=prompt, **fields)
        return [np.asarray(result.image) for result in self.generator.generate(request)]


class Theirs:
    """diffusers' pipeline with the same weights, scheduler, guidance, concepts and seeds."""

    def __init__(self, base: StableDiffusion, concepts: Path, side: int, dtype: torch.dtype):
        use_plain_blocks(base.unet)
        self.unet, self._concepts, self._side, self._guidance = base.unet, concepts, side, base.guidance
        self.pipe = base._pipeline()
        self.pipe.vae.to(dtype)  # as from_pretrained(dtype=...) loads it
        self.pipe.set_progress_bar_config(disable=True)

    def load(self, *names: str, strengths: tuple[float, ...] = STRENGTHS) -> None:
        loaded = self.pipe.get_list_adapters().get("unet", [])
        for name in names:
            if name not in loaded:
                self.pipe.load_lora_weights(self._concepts / name, adapter_name=name)
        self.pipe.set_adapters(list(names), list(strengths[: len(names)]))

    def unload(self) -> None:
        self.pipe.unload_lora_weights()

    def generate(self, prompt: str, n: int = 1, steps: int = STEPS) -> list[np.ndarray]:
        images = self.pipe(
            prompt,
            num_images_per_prompt=n,
            num_inference_steps=steps,
            guidance_scale=self._guidance,
            height=self._side,
            width=self._side,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in range(n)],
        ).images
        return [np.asarray(image) for image in images]


def generate_sd15(session: Session) -> None:
    _generate(session, "sd15", (1,) if session.dry else (1, 4))


def generate_sdxl(session: Session) -> None:
    _generate(session, "sdxl", (1,))


def list_all_waits(session: Session) -> None:
    """List the lines at which training and denoising wait for the device."""
    session.guarded("waits of training", 5, lambda _: list_waits(session))
    session.guarded("waits of denoising", 5, lambda _: _list_denoising_waits(session))


def _list_denoising_waits(session: Session) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(session.base("sd15"), _make_concepts(session, "sd15", folder), session.side("sd15"))
        prompt, counted = ConceptMix.of("two", 0).our_prompt, []
        ours.generate(prompt, steps=6)
        for steps in (6, 11):
            counted.append(waits(session, lambda steps=steps: ours.generate(prompt, steps=steps)))
    a_step = Counter(counted[1])
    a_step.subtract(counted[0])
    report_waits(session, "5 denoising steps", {line: count for line, count in a_step.items() if count > 0})
    session.store("waits of a generation", dict(counted[0]))
    session.say(f"A generation of 6 steps waits {sum(counted[0].values())} times:")
    for line, count in counted[0].most_common():
        session.say(f"  {count:3} x {line}")


def _make_concepts(session: Session, kind: str, folder: str) -> Path:
    make_concepts(session.geometry(kind), Path(folder), 3)
    return Path(folder)


def _generate(session: Session, kind: str, batches: tuple[int, ...]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        concepts, side = _make_concepts(session, kind, folder), session.side(kind)
        ours = Ours(session.base(kind), concepts, side)
        theirs = Theirs(session.base(kind), concepts, side, session.dtype)
        mix = ConceptMix.of("two", 0)
        theirs.load(*mix.loras)
        for n in batches:
            _generate_batch(session, f"{kind} {side} px b{n}", ours, theirs, mix, n)
        _decode(session, f"{kind} decode", ours, theirs, side)


def _generate_batch(session: Session, name: str, ours: Ours, theirs: Theirs, mix: ConceptMix, n: int) -> None:
    steps = session.steps(STEPS)

    def own(arm: str, steps: int = steps) -> list[np.ndarray]:
        use_arm(ours.base, arm)
        return ours.generate(mix.our_prompt, n, steps)

    arms: dict[str, Callable[[], object]] = {"diffusers": lambda: theirs.generate(mix.prompt, n, steps)}
    arms |= {arm: lambda arm=arm: own(arm) for arm in OUR_ARMS}
    images, peaks = {}, {}
    for arm, generate in arms.items():
        with peak_memory(session) as peak:
            images[arm] = np.stack(generate()).astype(float)  # warms up as well
            peaks[arm] = peak()
    if not session.dry and not ours.base.replayer.num_graphs:
        session.row("FAIL", name, "no prediction was captured in a graph")
    times = interleaved(session, arms, 1)
    for arm in arms:
        seconds = times[arm].wall / n
        difference = np.abs(images[arm] - images["diffusers"]).mean()
        session.row(
            arm,
            f"{name}, {steps} steps, 2 LoRAs",
            f"{seconds:.3f} s an image, device {times[arm].device / n:.3f}",
            f"{times['diffusers'].wall / n / seconds:.2f}x, differs by {difference:.2f} of 255",
            f"+{peaks[arm] / 1e9:.1f} GB",
        )
        session.store(f"{name} {arm}", {"seconds": seconds, "difference": difference, "bytes": peaks[arm]})


def profile_generation(session: Session) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(session.base("sd15"), _make_concepts(session, "sd15", folder), session.side("sd15"))
        prompt, steps = ConceptMix.of("two", 0).our_prompt, session.steps(10)
        for arm in OUR_ARMS[-1:] if session.dry else OUR_ARMS:
            use_arm(ours.base, arm)
            ours.generate(prompt, steps=steps)
            name = f"sd15 generation, {steps} steps, {arm}"
            profile = profiled(session, lambda: ours.generate(prompt, steps=steps), 1, name)
            numbers = f"{profile['launches']:.0f} launches, {profile['kernels']:.0f} kernels"
            session.row(arm, f"sd15 generation profile, {steps} steps", numbers)
            session.store(f"sd15 generation {arm} profile", profile)


def _decode(session: Session, name: str, ours: Ours, theirs: Theirs, side: int) -> None:
    latents = torch.randn(1, *ours.base.latent_shape(side, side), device=session.device)

    @torch.no_grad()
    def decode_theirs() -> None:
        image = theirs.pipe.vae.decode(latents.to(theirs.pipe.vae.dtype), return_dict=False)[0]
        theirs.pipe.image_processor.postprocess(image, output_type="pil")

    arms = {"diffusers": decode_theirs, "plain": lambda: ours.base.decode(latents)}
    for decode in arms.values():
        decode()
    times = interleaved(session, arms, session.steps(5))
    for arm in arms:
        session.row(arm, name, f"{times[arm].wall * 1e3:.1f} ms, device {times[arm].device * 1e3:.1f} ms")
        session.store(f"{name} {arm}", times[arm].wall)


class _Reached(Exception):
    """The first step could begin."""


def switch_concepts(session: Session) -> None:
    """Time switching until the UNet could begin: from files, kept in memory, another strength; and within sampling."""
    for kind in ("sd15",) if session.dry else ("sd15", "sdxl"):
        session.guarded(f"switching in {kind}", 10, lambda _, kind=kind: _switch(session, kind))
        free_memory(session)


def _switch(session: Session, kind: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        concepts, side = _make_concepts(session, kind, folder), session.side(kind)
        ours = Ours(session.base(kind), concepts, side)
        theirs = Theirs(session.base(kind), concepts, side, session.dtype)
        mixes = [ConceptMix.of("two", i) for i in (0, 1)]
        weaker = mixes[0].our_prompt.replace(":0.7>", ":0.5>")
        rounds = 1 if session.dry else 2 if kind == "sdxl" else 6

        def their_mix(i: int, unload: bool = False, strengths: tuple[float, ...] = STRENGTHS) -> None:
            if unload:
                theirs.unload()
            theirs.load(*mixes[i].loras, strengths=strengths)
            theirs.generate(mixes[i].prompt, steps=2)

        def from_files(i: int) -> None:
            ours.forget()
            ours.generate(mixes[i].our_prompt, steps=2)

        cases = {
            "from files": (from_files, lambda i: their_mix(i, unload=True)),
            "kept": (lambda i: ours.generate(mixes[i].our_prompt, steps=2), their_mix),
            "strength": (
                lambda i: ours.generate([mixes[0].our_prompt, weaker][i], steps=2),
                lambda i: their_mix(0, strengths=STRENGTHS if i else (0.5, 0.4)),
            ),
        }
        for name, (own, other) in cases.items():
            for who, unet, switch in (("plain", ours.base.unet, own), ("diffusers", theirs.unet, other)):
                if not session.dry and (name, who) != ("from files", "diffusers"):  # which is slow each time
                    switch(0), switch(1)
                taken = [_until_first_step(session, unet, switch, i % 2) for i in range(rounds)]
                session.row(who, f"{kind} switch {name}", f"{median(taken) * 1e3:.1f} ms until the first step")
                session.store(f"{kind} switch {name} {who}", median(taken))
        _time_window(session, kind, ours, mixes[0])


def _until_first_step(session: Session, unet: torch.nn.Module, switch: Callable[[int], object], i: int) -> float:
    taken = []

    def stop(*_) -> None:
        wait(session)
        taken.append(time.perf_counter() - started_at)
        raise _Reached

    handle = unet.register_forward_pre_hook(stop)
    wait(session)
    started_at = time.perf_counter()
    try:
        switch(i)
    except _Reached:
        pass
    finally:
        handle.remove()
    if not taken:
        raise RuntimeError("the UNet's forward was not called")
    return taken[0]


def _time_window(session: Session, kind: str, ours: Ours, mix: ConceptMix) -> None:
    """What a change in the middle of the sampling costs: a LoRA that leaves after 40 % of it."""
    prompts = {"without": mix.our_prompt, "with": mix.our_prompt.replace(":0.4>", ":0.4@0-0.4>")}
    steps = session.steps(10)
    for prompt in prompts.values():
        ours.generate(prompt, steps=steps)
    arms = {name: lambda prompt=prompt: ours.generate(prompt, steps=steps) for name, prompt in prompts.items()}
    times = interleaved(session, arms, 1)
    cost = times["with"].wall - times["without"].wall
    session.row("plain", f"{kind} window", f"{cost * 1e3:+.1f} ms for a change within {steps} steps")
    session.store(f"{kind} window", cost)
