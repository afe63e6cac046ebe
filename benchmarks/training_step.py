"""This project's training step beside diffusers' own example scripts: seconds, memory, share of the machine's limit.

python benchmarks/training_step.py --scripts ~/diffusers/examples --photos examples/photos/teddy-bear
python benchmarks/training_step.py --scripts ~/diffusers/examples --photos my-dog --cases tiny:lora:128:4 --bf16

Each side runs as a user starts it, in a process of its own, the two in turn for some rounds, on one model with the
same photos at once; the scripts are given by their folder and are not changed. Time is taken between the ends of
optimiser steps: on one CPU thread the processor's, which other work on the machine hardly changes, else the clock's.
Bases of full size have random weights and are made once, in --work.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import tyro
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HERE))

from benchmarks.steps.cases import ON_CPU, ON_CUDA, RANK, SIDES, VECTORS, Arm, Case, command, copy_photos  # noqa: E402
from benchmarks.steps.chart import save_chart  # noqa: E402


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
    steps: int | None = None
    """Steps measured in a run. Default: 5, on CUDA 50."""
    warmup: int | None = None
    """Steps before them, 2 at least: this project rehearses one. Default: 2, on CUDA 10."""
    threads: int = 1
    """Of each process, on the CPU."""
    bf16: bool = False
    """On a CPU also measure this project's step on a frozen base in bf16, beside the script in fp32."""
    peak_tflops: float | None = None
    """Peak rate of the device. Default: measured, for matrix products and convolutions apart."""
    out: Path = Path("training_step.json")
    """Figures, as JSON."""
    chart: Path | None = None
    """Chart of the figures, PNG."""


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__)
    cuda = _has_cuda()
    steps, warmup = (50, 10) if cuda else (5, 2)
    settings = replace(settings, steps=settings.steps or steps, warmup=settings.warmup or warmup)
    cases = [Case.parse(text) for text in settings.cases] or (ON_CUDA if cuda else ON_CPU)
    roof = {} if settings.peak_tflops else _run_module("benchmarks.steps.work", ["roof"], settings)
    bases = {case: _make_base(case.base, settings) for case in cases}
    works = {case: _count_work(case, settings) for case in cases}
    runs: dict[Case, dict[Arm, list[dict]]] = {
        case: {arm: [] for arm in _make_arms(case, cuda, settings)} for case in cases
    }
    report = {"machine": _describe_machine(cuda, settings), "roof": roof}
    for round_index in range(settings.rounds):
        for case in cases:
            for arm, arm_runs in runs[case].items():
                arm_runs.append(_run(case, arm, bases[case], settings))
                seconds = median(arm_runs[-1][_clock(settings)])
                _log(f"round {round_index + 1}, {case}, {arm}: {seconds:.3f} s (load {arm_runs[-1]['load']:.1f})")
        report["cases"] = [_summarise(case, runs[case], works[case], roof, settings) for case in cases]
        settings.out.write_text(json.dumps(report, indent=1))  # after each: the next may take an hour
    _show(report)
    if settings.chart:
        save_chart(report, settings.chart)


def _make_arms(case: Case, cuda: bool, settings: Settings) -> list[Arm]:
    if cuda:
        return [Arm(side_name, "bf16") for side_name in SIDES]
    # With --method full nothing is frozen.
    more = [Arm("sdpersonal", "bf16")] if settings.bf16 and case.method != "full" else []
    return [Arm(side_name, "fp32") for side_name in SIDES] + more


def _clock(settings: Settings) -> str:
    return "wall" if _has_cuda() or settings.threads > 1 else "cpu"


def _run(case: Case, arm: Arm, base: Path, settings: Settings) -> dict:
    """Return {"wall", "cpu": seconds of each step, "peak", ...: bytes}, and the machine's load before."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="training-step-") as folder:
        photos = copy_photos(settings.photos, case.batch, Path(folder) / "photos")
        line = command(case, arm, settings.scripts.resolve(), base, photos, Path(folder) / "run", HERE)
        casts = arm == Arm("sdpersonal", "bf16") and not _has_cuda()
        timing = [str(settings.warmup), str(settings.steps), "bf16-base" if casts else "as-is"]
        return _run_module("benchmarks.steps.clock", [*timing, *line], settings) | {"load": load}


def _run_module(module: str, arguments: list[str], settings: Settings) -> dict:
    """Run a module of this benchmark in its own process; return its result. Raises SystemExit with its errors."""
    threads = str(settings.threads)
    environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"}
    environment |= {"PYTHONPATH": str(HERE), "TOKENIZERS_PARALLELISM": "false"}
    environment.setdefault("GOMP_SPINCOUNT", "1000")  # this project's rule, for both sides
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        line = [sys.executable, "-m", module, str(result), *arguments]
        done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True)
        if not result.exists():
            raise SystemExit(f"{' '.join(line)}\n{done.stderr[-3000:]}")
        return json.loads(result.read_text())


def _make_base(kind: str, settings: Settings) -> Path:
    """Return the base's folder; create it if it is missing."""
    if kind == "tiny":
        return HERE / "sdpersonal" / "models" / "tiny" / "weights"
    folder = settings.work.resolve() / kind
    if not folder.exists():
        _log(f"Making {folder}, once.")
        folder.parent.mkdir(parents=True, exist_ok=True)
        line = [sys.executable, "-m", "benchmarks.steps.geometry", kind, str(folder)]
        done = subprocess.run(line, cwd=HERE, env=os.environ, capture_output=True, text=True)
        if done.returncode:
            shutil.rmtree(folder, ignore_errors=True)
            raise SystemExit(done.stderr[-3000:])
    return folder


def _count_work(case: Case, settings: Settings) -> dict:
    numbers = [case.side, case.batch, RANK, VECTORS]
    return _run_module("benchmarks.steps.work", [case.base, case.method, *map(str, numbers)], settings)


def _summarise(case: Case, runs: dict[Arm, list[dict]], work: dict, roof: dict, settings: Settings) -> dict:
    clock = _clock(settings)
    arms = {}
    for arm, arm_runs in runs.items():
        flops = dict(work["step"])
        if arm.side_name == "script":
            for kind, count in work["encode"].items():
                flops[kind] = flops.get(kind, 0.0) + count
        seconds, total = median(_steps(arm_runs, clock)), sum(flops.values())
        peak = settings.peak_tflops
        least = total / (peak * 1e12) if peak else _min_seconds(flops, roof[arm.dtype])
        arms[str(arm)] = {
            "seconds": seconds,
            "least_seconds": min(_steps(arm_runs, clock)),
            "wall_seconds": median(_steps(arm_runs, "wall")),
            "peak": max(run["peak"] for run in arm_runs),
            "peak_while_stepping": max(run["peak_while_stepping"] for run in arm_runs),
            "libraries": max(run["libraries"] for run in arm_runs),
            "cuda_peak": max((run["cuda_peak"] or 0) for run in arm_runs) or None,
            "gflop": total / 1e9,
            "tflops": total / seconds / 1e12,
            "share": least / seconds,
            "rounds": arm_runs,
        }
    script, *our_runs = runs
    faster = {str(arm): _ratios(runs[script], runs[arm], clock) for arm in our_runs}
    return {"case": str(case), "clock": clock, "weights": work["weights"]["fp32"], "arms": arms, "faster": faster}


def _min_seconds(flops: dict[str, float], rates: dict[str, float]) -> float:
    """Return the seconds if every operation ran at the peak rate of its kind."""
    return sum(count / rates[kind] for kind, count in flops.items())


def _steps(runs: list[dict], clock: str) -> list[float]:
    return [seconds for run in runs for seconds in run[clock]]


def _ratios(script_runs: list[dict], our_runs: list[dict], clock: str) -> list[float]:
    """Return the speed-up by the medians of all steps, its range over rounds, and that by the fastest steps."""
    by_round = [median(a[clock]) / median(b[clock]) for a, b in zip(script_runs, our_runs, strict=True)]
    overall, fastest = (of(_steps(script_runs, clock)) / of(_steps(our_runs, clock)) for of in (median, min))
    return [overall, min(by_round), max(by_round), fastest]


def _show(report: dict) -> None:
    table = Table(title="A training step", caption=report["machine"]["name"])
    left = ("case", "side")
    right = ("s", "fastest", "on the clock", "times faster", "peak GB", "fp32 weights", "TFLOP/s", "of limit")
    for name in left + right:
        table.add_column(name, justify="left" if name in left else "right")
    for case in report["cases"]:
        for name, arm in case["arms"].items():
            faster = case["faster"].get(name)
            times = "{:.2f} ({:.2f} to {:.2f}; {:.2f})".format(*faster) if faster else ""
            peak = arm["cuda_peak"] or arm["peak_while_stepping"]
            table.add_row(
                case["case"],
                name,
                f"{arm['seconds']:.3f}",
                f"{arm['least_seconds']:.3f}",
                f"{arm['wall_seconds']:.3f}",
                times,
                f"{peak / 1e9:.2f}",
                f"{case['weights'] / 1e9:.2f}",
                f"{arm['tflops']:.3f}",
                f"{arm['share']:.0%}",
            )
        table.add_section()
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _describe_machine(cuda: bool, settings: Settings) -> dict:
    import torch

    name = torch.cuda.get_device_name() if cuda else f"{os.cpu_count()} CPU cores, {settings.threads} threads each side"
    return {"name": f"{name}, torch {torch.__version__}", "capability": torch.backends.cpu.get_cpu_capability()}


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
