"""What the fleet costs: `PYTHONPATH=.:tests python benchmarks/fleet.py`. Eight trainings of the built-in model, as

- list: one plain command, `train textual-inversion --concepts-list`, which loads its modules once;
- each: a plain command for each, which loads them every time;
- fleet N: `fleet train` with N workers of one core.

Seconds are of the wall and of all cores together (of all processes that were started; those that Ray kills are seen
twice a second). On a machine that others use, only the seconds of the cores can be compared.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import tyro

ROOT = Path(__file__).resolve().parents[1]
PHOTOS = ROOT / "sdpersonal" / "photos" / "samples"
SUBJECTS = ("fox", "teddy-bear", "cyanotype")


@dataclass
class Options:
    """trainings, steps: how many, and how long; arms: what is measured; out: a JSON file."""

    trainings: int = 8
    steps: int = 60
    arms: tuple[str, ...] = ("list", "each", "fleet 1", "fleet 2", "fleet 4")
    out: Path | None = None


def concepts_list(folder: Path, count: int) -> Path:
    entries = [{"token": f"<me/c{n}>", "photos": str(PHOTOS / SUBJECTS[n % 3])} for n in range(count)]
    path = folder / "concepts_list.json"
    path.write_text(json.dumps(entries))
    return path


def commands(arm: str, folder: Path, options: Options) -> list[list[str]]:
    """The command lines of an arm, which are run one after the other."""
    start = [sys.executable, "-m", "sdpersonal"]
    training = ["--steps", str(options.steps), "--no-samples", "--base", "tiny"]
    trainer = [*start, "train", "textual-inversion", *training]
    path = concepts_list(folder, options.trainings)
    if arm == "list":
        return [[*trainer, "--concepts-list", str(path)]]
    if arm == "each":
        entries = json.loads(path.read_text())
        return [[*trainer, "--token", entry["token"], "--photos", entry["photos"]] for entry in entries]
    workers = arm.removeprefix("fleet ")
    return [[*start, "fleet", "train", str(path), "--method", "textual-inversion", "--workers", workers, *training]]


def measure(line: list[str], folder: Path) -> tuple[float, float, int]:
    """Run a command; return its seconds, those of the cores, and the most memory of all its processes (sum of PSS)."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    started, cpu, most = time.monotonic(), dict[tuple[int, float], float](), 0
    with open(folder / "log.txt", "ab") as log:
        process = psutil.Popen(line, cwd=folder, env=environment, stdout=log, stderr=log)
        while process.poll() is None:
            memory = 0
            for each in [process, *_children(process)]:
                try:
                    times = each.cpu_times()
                    cpu[each.pid, each.create_time()] = times.user + times.system
                    memory += each.memory_full_info().pss
                except psutil.Error:
                    continue
            most = max(most, memory)
            time.sleep(0.5)
    if process.returncode:
        sys.exit((folder / "log.txt").read_text()[-2000:])
    return time.monotonic() - started, sum(cpu.values()), most


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def main(options: Options) -> None:
    results = {}
    for arm in options.arms:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            measured = [measure(line, folder) for line in commands(arm, folder, options)]
            made = len(list((folder / "concepts").rglob("*.safetensors")))
        assert made == options.trainings, f"{made} concepts of {options.trainings}"
        wall, cpu, memory = sum(m[0] for m in measured), sum(m[1] for m in measured), max(m[2] for m in measured)
        results[arm] = {"wall": round(wall, 1), "cpu": round(cpu, 1), "memory": memory}
        print(f"{arm:8} {wall:7.1f} s, {cpu:7.1f} s of a core, {memory / 1e9:.2f} GB", flush=True)
    if options.out:
        options.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
