"""This project's Generator beside diffusers' own pipeline: pictures, switching concepts, first picture, memory.

python benchmarks/generation.py
python benchmarks/generation.py --cases tiny:128:25 sd15:256:3 --rounds 2

Each side is a process of its own; the two take turns, on one model with the same concepts (an embedding and a LoRA;
two LoRAs), sampler, guidance, sizes and seeds, and draw the same pictures, which is checked. On one CPU thread the
processor's time is told, which other work on the machine hardly changes, else the clock's. Bases of full size have
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
STEPS = 25  # of a picture, as people draw it; where fewer are measured, a picture is put together from its parts


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
    pictures: tuple[int, ...] = ()
    """Pictures of a request. Default: 1 and 8; on CUDA 1, 4 and 8."""
    rounds: int = 3
    """Times that each side draws each request."""
    switches: int = 4
    """Times that each side takes up a new mix."""
    threads: int = 1
    """Of each process, on the CPU."""
    work: Path = Path(tempfile.gettempdir()) / "sdpersonal-benchmark"
    """Where bases with random weights are kept: 4.3 GB for sd15, 14 GB for sdxl."""
    out: Path = Path("generation.json")
    """Figures, as JSON."""


class SideProcess:
    """A process that draws on command."""

    def __init__(self, name: str, base: Path | str, concepts: Path, device: str, threads: int):
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        environment |= {"PYTHONPATH": str(HERE), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        environment.setdefault("GOMP_SPINCOUNT", "1000")  # this project's rule, for both sides
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115, closed with the process
        line = [sys.executable, "-m", "benchmarks.pictures.side", name, str(base), str(concepts), device]
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
    numbers = settings.pictures or ((1, 4, 8) if cuda else (1, 8))
    device = "cuda" if cuda else "cpu"
    common = {"size": case.size, "steps": case.steps}
    draws, switches, first, loaded = [], [], [], {}
    for who in SIDES:
        with SideProcess(who, base, concepts, device, settings.threads) as side:
            first.append({"who": who} | side.ask(do="first", mix=["one", 0], **common))
    with (
        SideProcess(SIDES[0], base, concepts, device, settings.threads) as theirs,
        SideProcess(SIDES[1], base, concepts, device, settings.threads) as ours,
    ):
        both = dict(zip(SIDES, (theirs, ours), strict=True))
        same = _compare(both, common)
        for turn in range(settings.switches):
            for kind in KINDS:
                for source in ("files", "loaded"):
                    for who, side in both.items():
                        # From files: a mix that was never drawn; loaded: one that was before the last.
                        mix = [kind, 1 + turn if source == "files" else turn % 2]
                        if source == "loaded":
                            for i in (1 - turn % 2, turn % 2, 1 - turn % 2):
                                side.ask(do="switch", mix=[kind, i], size=case.size, **{"from": "loaded"})
                        answer = side.ask(do="switch", mix=mix, size=case.size, **{"from": source})
                        switches.append({"who": who, "mix": kind, "from": source} | answer)
        for _ in range(settings.rounds):
            for kind in KINDS:
                for side in both.values():  # so that no draw of a round is the first with its mix
                    side.ask(do="draw", mix=[kind, 0], n=1, size=case.size, steps=1)
                for n in numbers:
                    for who, side in both.items():
                        answer = {"who": who, "mix": kind, "n": n} | side.ask(do="draw", mix=[kind, 0], n=n, **common)
                        draws.append(answer)
                        _log(f"{case}, {KINDS[kind]}, {n}: {who} {answer['seconds'][1]:.2f} s")
        loaded = {who: side.hello["loaded"] for who, side in both.items()}
    return {"case": str(case), "steps": case.steps, "clock": _clock(cuda, settings), "same": same, "draws": draws} | {
        "switches": switches,
        "first": first,
        "loaded": loaded,
    }


def _compare(both: dict[str, SideProcess], common: dict) -> float:
    """The mean difference of what both draw, of 255; the same work is done only where it is about nothing."""
    with tempfile.TemporaryDirectory() as place:
        pictures = []
        for who, side in both.items():
            path = f"{place}/{who}.npy"
            side.ask(do="first", path=path, mix=["one", 0], n=2, **common)
            pictures.append(np.load(path).astype(float))
    return float(np.abs(pictures[0] - pictures[1]).mean())


def markdown_table(report: dict) -> str:
    """The figures in Markdown: medians."""
    lines = [f"{report['machine']}", "", "| | diffusers | here | |", "| --- | --- | --- | --- |"]
    for case in report["cases"]:
        for what, of in _summarise(case).items():
            theirs, ours = (of[who] for who in SIDES)
            unit, form = (" GB", "{:.2f}") if "memory" in what else (" s", "{:.3g}")
            ratio = f"{theirs / ours:.2f}x"
            lines.append(f"| {what} | {form.format(theirs)}{unit} | {form.format(ours)}{unit} | {ratio} |")
    return "\n".join(lines)


def _summarise(case: dict) -> dict[str, dict[str, float]]:
    """{what: {side: seconds of a picture, or GB}}."""
    clock, name, found = case["clock"], case["case"], {}
    for kind, words in KINDS.items():
        for n in sorted({one["n"] for one in case["draws"]}):
            own = [one for one in case["draws"] if one["mix"] == kind and one["n"] == n]
            of = {
                who: median(_seconds_per_image(one, clock, case["steps"]) for one in own if one["who"] == who)
                for who in SIDES
            }
            found[f"{name}: {words}, {n} at once, a picture in {STEPS} steps"] = of
    for kind, words in KINDS.items():
        for source, said in (("files", "from files"), ("loaded", "loaded before")):
            own = [one for one in case["switches"] if one["mix"] == kind and one["from"] == source]
            for part, until in (("ready", "in place"), ("step", "first step")):
                of = {who: median(one[part][clock] for one in own if one["who"] == who) for who in SIDES}
                found[f"{name}: switch to {words} {said}, until {until}"] = of
    found[f"{name}: from the start to the first picture ({case['steps']} steps)"] = {
        one["who"]: one["since_start"][clock] for one in case["first"]
    }
    peak = {who: max(one["cuda"] or one["peak"] for one in case["draws"] if one["who"] == who) / 1e9 for who in SIDES}
    return found | {f"{name}: memory at most": peak}


def _seconds_per_image(one: dict, clock: int, steps: int) -> float:
    """Seconds of one of n pictures in STEPS steps: what its steps took in the UNet, and all the rest."""
    whole, unet = one["seconds"][clock], one["unet"][clock]
    return (whole - unet + unet * STEPS / steps) / one["n"]


def _clock(cuda: bool, settings: Settings) -> int:
    """Which of (wall, processor)."""
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
        _run("from benchmarks.pictures.concepts import make", f"make({kind!r}, Path({str(folder)!r}), {count})")
    return folder


def _run(*lines: str) -> None:
    """In a process of its own, which takes its memory with it."""
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
