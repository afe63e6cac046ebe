"""Compare this project's Generator with diffusers' own pipeline: images, switching concepts, first image, memory.

python benchmarks/generation.py
python benchmarks/generation.py --cases tiny:128:25 sd15:256:3 --rounds 2

Each side is a process of its own; the two take turns, on one model with the same concepts (an embedding and a LoRA;
two LoRAs), scheduler, guidance, sizes and seeds, and generate the same images, which is checked. On one CPU thread
processor time is reported, which other work on the machine hardly changes, else the clock's. Bases of full size have
random weights and are made once, in --work, as are the concepts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import tyro

HERE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HERE))

SIDES = ("diffusers", "sdpersonal")
KINDS = {"one": "an embedding and a LoRA", "two": "two LoRAs"}
STEPS = 25  # of a usual image; where fewer are measured, the time of such an image is computed


@dataclass(frozen=True)
class Case:
    base: str
    size: int
    steps: int

    @classmethod
    def parse(cls, text: str) -> Case:
        """BASE:SIDE:STEPS. Raises ValueError."""
        base, size, steps = text.split(":")
        return cls(base, int(size), int(steps))

    def __str__(self) -> str:
        return f"{self.base} {self.size} px"


ON_CPU = (Case("tiny", 128, 25), Case("sd15", 256, 3))
ON_CUDA = (Case("sd15", 512, 25), Case("sdxl", 1024, 25))


@dataclass(frozen=True)
class Settings:
    cases: tuple[str, ...] = ()
    """BASE:SIDE:STEPS of tiny, narrow, sd15, sdxl. Default: what suits the device."""
    images: tuple[int, ...] = ()
    """Images of a request. Default: 1 and 8; on CUDA 1, 4 and 8."""
    rounds: int = 3
    """Times that each side generates each request."""
    switches: int = 4
    """Times that each side switches to a new mix."""
    threads: int = 1
    """Of each process, on the CPU."""
    work: Path = Path(tempfile.gettempdir()) / "sdpersonal-benchmark"
    """Where bases with random weights are kept: 4.3 GB for sd15, 14 GB for sdxl."""
    out: Path = Path("generation.json")
    """Figures, as JSON."""


class SideProcess:
    """A process that generates images on command."""

    def __init__(self, name: str, base: Path | str, concepts: Path, device: str, threads: int):
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        environment |= {"PYTHONPATH": str(HERE), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        environment.setdefault("GOMP_SPINCOUNT", "1000")  # this project's rule, for both sides
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115, closed with the process
        line = [sys.executable, "-m", "benchmarks.images.side", name, str(base), str(concepts), device]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors}
        self._process = subprocess.Popen(line, env=environment, text=True, **pipes)
        self.hello = self._answer()

    def ask(self, **command) -> dict:
        load = os.getloadavg()[0]
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self._answer() | {"load": load}

    def _answer(self) -> dict:
        if line := self._process.stdout.readline():
            return json.loads(line)
        self._process.wait()
        self.errors.seek(0)
        raise SystemExit(self.errors.read()[-3000:])

    def __enter__(self) -> SideProcess:
        return self

    def __exit__(self, *_) -> None:
        self._process.stdin.close()
        self._process.wait()
        self.errors.close()


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__)
    cuda = _has_cuda()
    cases = [Case.parse(text) for text in settings.cases] or (ON_CUDA if cuda else ON_CPU)
    report = {"machine": _describe_machine(cuda, settings), "cases": []}
    for case in cases:
        report["cases"].append(_measure(case, cuda, settings))
        settings.out.write_text(json.dumps(report, indent=1))  # after each: the next may take an hour
    print(markdown_table(report))


def _measure(case: Case, cuda: bool, settings: Settings) -> dict:
    base, concepts = _make_base(case.base, settings), _make_concepts(case.base, settings)
    numbers = settings.images or ((1, 4, 8) if cuda else (1, 8))
    device = "cuda" if cuda else "cpu"
    common = {"size": case.size, "steps": case.steps}
    generations, switches, first, loaded = [], [], [], {}
    for side_name in SIDES:
        with SideProcess(side_name, base, concepts, device, settings.threads) as side:
            first.append({"who": side_name} | side.ask(do="first", mix=["one", 0], **common))
    with (
        SideProcess(SIDES[0], base, concepts, device, settings.threads) as diffusers_side,
        SideProcess(SIDES[1], base, concepts, device, settings.threads) as sdpersonal_side,
    ):
        sides = dict(zip(SIDES, (diffusers_side, sdpersonal_side), strict=True))
        same = _compare(sides, common)
        for round_number in range(settings.switches):
            for kind in KINDS:
                for source in ("files", "loaded"):
                    for side_name, side in sides.items():
                        # From files: a mix that was never used; loaded: the one before the last.
                        mix = [kind, 1 + round_number if source == "files" else round_number % 2]
                        if source == "loaded":
                            for i in (1 - round_number % 2, round_number % 2, 1 - round_number % 2):
                                side.ask(do="switch", mix=[kind, i], size=case.size, **{"from": "loaded"})
                        measured = side.ask(do="switch", mix=mix, size=case.size, **{"from": source})
                        switches.append({"who": side_name, "mix": kind, "from": source} | measured)
        for _ in range(settings.rounds):
            for kind in KINDS:
                for side in sides.values():  # so that no measurement is the first with its mix
                    side.ask(do="generate", mix=[kind, 0], n=1, size=case.size, steps=1)
                for n in numbers:
                    for side_name, side in sides.items():
                        measured = {"who": side_name, "mix": kind, "n": n} | side.ask(
                            do="generate", mix=[kind, 0], n=n, **common
                        )
                        generations.append(measured)
                        _log(f"{case}, {KINDS[kind]}, {n}: {side_name} {measured['seconds'][1]:.2f} s")
        loaded = {side_name: side.hello["loaded"] for side_name, side in sides.items()}
    return {
        "case": str(case),
        "steps": case.steps,
        "clock": _clock(cuda, settings),
        "same": same,
        "draws": generations,
    } | {
        "switches": switches,
        "first": first,
        "loaded": loaded,
    }


def _compare(sides: dict[str, SideProcess], common: dict) -> float:
    """Return the mean difference of both images, of 255; both do the same work only if it is almost 0."""
    with tempfile.TemporaryDirectory() as folder:
        images = []
        for side_name, side in sides.items():
            path = f"{folder}/{side_name}.npy"
            side.ask(do="first", path=path, mix=["one", 0], n=2, **common)
            images.append(np.load(path).astype(float))
    return float(np.abs(images[0] - images[1]).mean())


def markdown_table(report: dict) -> str:
    """Format the medians as a Markdown table."""
    lines = [f"{report['machine']}", "", "| | diffusers | here | |", "| --- | --- | --- | --- |"]
    for case in report["cases"]:
        for label, of in _summarise(case).items():
            diffusers_side, sdpersonal_side = (of[side_name] for side_name in SIDES)
            unit, form = (" GB", "{:.2f}") if "memory" in label else (" s", "{:.3g}")
            ratio = f"{diffusers_side / sdpersonal_side:.2f}x"
            lines.append(
                f"| {label} | {form.format(diffusers_side)}{unit} | {form.format(sdpersonal_side)}{unit} | {ratio} |"
            )
    return "\n".join(lines)


def _summarise(case: dict) -> dict[str, dict[str, float]]:
    """Return {label: {side: seconds of an image, or GB}}."""
    clock, name, medians = case["clock"], case["case"], {}
    for kind, description in KINDS.items():
        for n in sorted({result["n"] for result in case["draws"]}):
            selected = [result for result in case["draws"] if result["mix"] == kind and result["n"] == n]
            of = {
                side_name: median(
                    _seconds_per_image(result, clock, case["steps"])
                    for result in selected
                    if result["who"] == side_name
                )
                for side_name in SIDES
            }
            medians[f"{name}: {description}, {n} at once, an image in {STEPS} steps"] = of
    for kind, description in KINDS.items():
        for source, source_text in (("files", "from files"), ("loaded", "loaded before")):
            selected = [result for result in case["switches"] if result["mix"] == kind and result["from"] == source]
            for part, until in (("ready", "in place"), ("step", "first step")):
                of = {
                    side_name: median(result[part][clock] for result in selected if result["who"] == side_name)
                    for side_name in SIDES
                }
                medians[f"{name}: switch to {description} {source_text}, until {until}"] = of
    medians[f"{name}: from the start to the first image ({case['steps']} steps)"] = {
        result["who"]: result["since_start"][clock] for result in case["first"]
    }
    peak = {
        side_name: max(result["cuda"] or result["peak"] for result in case["draws"] if result["who"] == side_name) / 1e9
        for side_name in SIDES
    }
    return medians | {f"{name}: memory at most": peak}


def _seconds_per_image(result: dict, clock: int, steps: int) -> float:
    """Return the seconds of one of n images in STEPS steps: the UNet's, scaled to so many steps, and the rest."""
    total, unet = result["seconds"][clock], result["unet"][clock]
    return (total - unet + unet * STEPS / steps) / result["n"]


def _clock(cuda: bool, settings: Settings) -> int:
    """Return the index in (wall, processor)."""
    return 0 if cuda or settings.threads > 1 else 1


def _make_base(kind: str, settings: Settings) -> Path | str:
    if kind == "tiny":
        return kind
    folder = settings.work.resolve() / kind
    if not folder.exists():
        _log(f"Making {folder}, once.")
        _run("from benchmarks.steps.geometry import save", f"save({kind!r}, Path({str(folder)!r}))")
    return folder


def _make_concepts(kind: str, settings: Settings) -> Path:
    count = settings.switches + 2
    folder = settings.work.resolve() / f"concepts-{kind}-{count}"
    if not folder.exists():
        _run(
            "from benchmarks.images.concepts import make_concepts",
            f"make_concepts({kind!r}, Path({str(folder)!r}), {count})",
        )
    return folder


def _run(*lines: str) -> None:
    """Run Python code in its own process, which frees its memory at the end."""
    code = "\n".join(("from pathlib import Path", *lines))
    subprocess.run([sys.executable, "-c", code], cwd=HERE, env=os.environ | {"PYTHONPATH": str(HERE)}, check=True)


def _describe_machine(cuda: bool, settings: Settings) -> str:
    import diffusers
    import torch

    name = torch.cuda.get_device_name() if cuda else f"{os.cpu_count()} CPU cores, {settings.threads} threads each side"
    load = os.getloadavg()[0]
    day = time.strftime("%Y-%m-%d")
    return f"{name}, torch {torch.__version__}, diffusers {diffusers.__version__}, load {load:.1f}, {day}"


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
