"""This project's training step beside diffusers' own example scripts: seconds, memory, share of the machine's limit.

python benchmarks/training_step.py --scripts ~/diffusers/examples --photos examples/photos/teddy-bear
python benchmarks/training_step.py --scripts ~/diffusers/examples --photos my-dog --cases tiny:lora:128:4 --bf16

Each side runs as a user starts it, in a process of its own, the two in turn for some rounds, on one model with the
same photos at once; the scripts are given by their folder and are not changed. Time is taken between the ends of
optimiser steps. Bases of full size have random weights and are made once, in --work.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import tyro
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HERE))

from benchmarks.steps.cases import ON_CPU, ON_CUDA, RANK, SIDES, VECTORS, Arm, Case, command, copy_photos  # noqa: E402
from benchmarks.steps.chart import draw  # noqa: E402


@dataclass(frozen=True)
class Settings:
    scripts: Path
    """The folder `examples` of diffusers."""
    photos: Path
    """Folder with photos of one thing."""
    work: Path = Path(tempfile.gettempdir()) / "sdpersonal-benchmark"
    """Where bases with random weights are kept: 4.3 GB for sd15, 14 GB for sdxl."""
    cases: tuple[str, ...] = ()
    """BASE:METHOD:SIDE:BATCH of tiny, narrow, sd15, sdxl; textual-inversion, lora, full. Default: what suits the
    device."""
    rounds: int = 3
    """Times that each side runs."""
    steps: int = 5
    """Steps measured in a run."""
    warmup: int = 2
    """Steps before them."""
    threads: int = 1
    """Of each process, on the CPU."""
    bf16: bool = False
    """On a CPU also measure both sides in bf16, this project's with only the frozen base in it."""
    peak_tflops: float | None = None
    """What the device does at most. Default: measured, for matrix products and convolutions apart."""
    out: Path = Path("training_step.json")
    """Figures, as JSON."""
    chart: Path | None = None
    """Picture of them, PNG."""


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__)
    cuda = _has_cuda()
    cases = [Case.parse(text) for text in settings.cases] or (ON_CUDA if cuda else ON_CPU)
    dtypes = ("bf16",) if cuda else ("fp32", "bf16") if settings.bf16 else ("fp32",)
    roof = _child("benchmarks.steps.work", ["roof"], settings)
    report = {"machine": _machine(cuda, settings), "roof": roof, "cases": []}
    for case in cases:
        base = _base(case.base, settings)
        work = _work(case, settings)
        # What trains is fp32 in this project; of a whole UNet nothing is frozen.
        arms = [
            Arm(who, dtype) for dtype in dtypes for who in SIDES if cuda or case.method != "full" or dtype == "fp32"
        ]
        runs: dict[Arm, list[dict]] = {arm: [] for arm in arms}
        for turn in range(settings.rounds):
            for arm in arms:
                runs[arm].append(_run(case, arm, base, settings))
                _tell(f"{case}, round {turn + 1}, {arm}: {median(runs[arm][-1]['wall']):.3f} s")
        report["cases"].append(_measured(case, runs, work, roof, settings))
        settings.out.write_text(json.dumps(report, indent=1))  # after each: the next may take an hour
    _show(report)
    if settings.chart:
        draw(report, settings.chart)


def _run(case: Case, arm: Arm, base: Path, settings: Settings) -> dict:
    """{"wall", "cpu": seconds of each step, "peak", ...: bytes}, and the machine's load before."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="training-step-") as place:
        photos = copy_photos(settings.photos, case.batch, Path(place) / "photos")
        line = command(case, arm, settings.scripts.resolve(), base, photos, Path(place) / "run", HERE)
        casts = arm == Arm("sdpersonal", "bf16") and not _has_cuda()
        timing = [str(settings.warmup), str(settings.steps), "bf16-base" if casts else "as-is"]
        return _child("benchmarks.steps.clock", [*timing, *line], settings) | {"load": load}


def _child(module: str, arguments: list[str], settings: Settings) -> dict:
    """What a module of this benchmark measured, in a process of its own. Ends this one with its words if it fails."""
    threads = str(settings.threads)
    environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"}
    environment |= {"PYTHONPATH": str(HERE), "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory() as place:
        result = Path(place) / "result.json"
        line = [sys.executable, "-m", module, str(result), *arguments]
        done = subprocess.run(line, cwd=place, env=environment, capture_output=True, text=True)
        if not result.exists():
            raise SystemExit(f"{' '.join(line)}\n{done.stderr[-3000:]}")
        return json.loads(result.read_text())


def _base(kind: str, settings: Settings) -> Path:
    """The base's folder; made if it has to be."""
    if kind == "tiny":
        return HERE / "sdpersonal" / "bases" / "tiny" / "weights"
    folder = settings.work.resolve() / kind
    if not folder.exists():
        _tell(f"Making {folder}, once.")
        folder.parent.mkdir(parents=True, exist_ok=True)
        line = [sys.executable, "-m", "benchmarks.steps.geometry", kind, str(folder)]
        done = subprocess.run(line, cwd=HERE, env=os.environ, capture_output=True, text=True)
        if done.returncode:
            shutil.rmtree(folder, ignore_errors=True)
            raise SystemExit(done.stderr[-3000:])
    return folder


def _work(case: Case, settings: Settings) -> dict:
    numbers = [case.side, case.batch, RANK, VECTORS]
    return _child("benchmarks.steps.work", [case.base, case.method, *map(str, numbers)], settings)


def _measured(case: Case, runs: dict[Arm, list[dict]], work: dict, roof: dict, settings: Settings) -> dict:
    arms = {}
    for arm, own in runs.items():
        flops = dict(work["step"])
        if arm.who == "script":
            for kind, count in work["encode"].items():
                flops[kind] = flops.get(kind, 0.0) + count
        seconds, total = median(_steps(own, "wall")), sum(flops.values())
        rates = roof[arm.dtype]
        least = total / (settings.peak_tflops * 1e12) if settings.peak_tflops else _least_seconds(flops, rates)
        arms[str(arm)] = {
            "seconds": seconds,
            "cpu_seconds": median(_steps(own, "cpu")),
            "peak": max(run["peak"] for run in own),
            "peak_while_stepping": max(run["peak_while_stepping"] for run in own),
            "libraries": max(run["libraries"] for run in own),
            "cuda_peak": max((run["cuda_peak"] or 0) for run in own) or None,
            "gflop": total / 1e9,
            "tflops": total / seconds / 1e12,
            "share": least / seconds,
            "rounds": own,
        }
    ratios = {
        f"{dtype} {clock}": _ratios(runs[Arm("script", dtype)], runs[Arm("sdpersonal", dtype)], clock)
        for dtype in dict.fromkeys(arm.dtype for arm in runs)
        for clock in ("wall", "cpu")
    }
    return {"case": str(case), "weights": work["weights"]["fp32"], "arms": arms, "ratios": ratios}


def _least_seconds(flops: dict[str, float], rates: dict[str, float]) -> float:
    """If every operation ran as fast as the fastest of its kind here."""
    return sum(count / rates[kind] for kind, count in flops.items())


def _steps(runs: list[dict], clock: str) -> list[float]:
    return [seconds for run in runs for seconds in run[clock]]


def _ratios(theirs: list[dict], ours: list[dict], clock: str) -> list[float]:
    """How many times faster, [of all steps' medians, least of a round, most of a round]."""
    each = [median(a[clock]) / median(b[clock]) for a, b in zip(theirs, ours, strict=True)]
    return [median(_steps(theirs, clock)) / median(_steps(ours, clock)), min(each), max(each)]


def _show(report: dict) -> None:
    table = Table(title="A training step", caption=report["machine"]["name"])
    for name in (
        "case",
        "side",
        "s/step",
        "CPU s/step",
        "times faster (CPU; rounds)",
        "peak GB",
        "TFLOP/s",
        "of limit",
    ):
        table.add_column(name, justify="left" if name in ("case", "side") else "right")
    for case in report["cases"]:
        for name, arm in case["arms"].items():
            who, dtype = name.split()
            wall, cpu = (case["ratios"][f"{dtype} {clock}"] for clock in ("wall", "cpu"))
            faster = f"{wall[0]:.2f} ({cpu[0]:.2f}; {wall[1]:.2f} to {wall[2]:.2f})" if who == "sdpersonal" else ""
            memory = (arm["cuda_peak"] or arm["peak_while_stepping"]) / 1e9
            table.add_row(
                case["case"],
                name,
                f"{arm['seconds']:.3f}",
                f"{arm['cpu_seconds']:.3f}",
                faster,
                f"{memory:.2f}",
                f"{arm['tflops']:.3f}",
                f"{arm['share']:.0%}",
            )
        table.add_section()
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def _machine(cuda: bool, settings: Settings) -> dict:
    import torch

    name = torch.cuda.get_device_name() if cuda else f"{os.cpu_count()} CPU cores, {settings.threads} threads each side"
    return {"name": f"{name}, torch {torch.__version__}", "capability": torch.backends.cpu.get_cpu_capability()}


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
