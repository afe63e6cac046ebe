"""Compare K concepts trained in one batch with the same runs one after the other, on the built-in model.

python benchmarks/joint_training.py
python benchmarks/joint_training.py --method lora --counts 4 8 --batch 1 --steps 60

Each way is a process of its own with one thread, and the two take turns; processor time. "A step" is what a step of
one concept takes, without loading, photos and dry run; the whole includes them. Peak memory is the process's. Without
sample images and early stopping: these cost the same in both.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

import tyro

HERE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HERE))

WAYS = ("one after the other", "in one batch")


@dataclass(frozen=True)
class Settings:
    counts: tuple[int, ...] = (1, 4, 8)
    """Numbers of concepts."""
    method: Literal["textual-inversion", "lora"] = "textual-inversion"
    steps: int = 40
    batch: int = 4
    """Photos in a step of each concept."""
    rounds: int = 3
    photos: Path = HERE / "examples" / "photos"
    """Folder of folders of photos, which the concepts use in turn."""


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__)
    print(f"load {os.getloadavg()[0]:.1f}, {time.strftime('%Y-%m-%d')}")
    print(
        "| concepts | way | s a step and concept | s a concept, whole | peak memory |\n| --- | --- | --- | --- | --- |"
    )
    for count in settings.counts:
        measured: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(settings.rounds):
            for way in WAYS:
                measured[way].append(_run(way, count, settings))
        for way in WAYS:
            step, whole, peak = ([figures[key] for figures in measured[way]] for key in ("step", "whole", "peak"))
            print(
                f"| {count} | {way} | {median(step):.3f} ({min(step):.3f} to {max(step):.3f}) "
                f"| {median(whole):.1f} | {median(peak):.2f} GB |",
                flush=True,
            )


def _run(way: str, count: int, settings: Settings) -> dict[str, float]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
    environment |= {"HF_HUB_OFFLINE": "1"}
    environment.setdefault("GOMP_SPINCOUNT", "1000")  # as the command line sets it
    arguments = [way, str(count), str(settings.steps), str(settings.batch), str(settings.photos), settings.method]
    line = [sys.executable, __file__, "--measure", *arguments]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def _measure(way: str, count: int, steps: int, batch: int, photos: Path, method: str) -> dict[str, float]:
    """Train in this process; return the seconds of a step and of a concept, and GB at the peak."""
    from sdpersonal.config import DreamboothSettings, TextualInversionSettings
    from sdpersonal.training import train
    from sdpersonal.training.joint import train_together

    folders = sorted(folder for folder in photos.iterdir() if folder.is_dir())
    marks: dict[int, list[float]] = {}

    def mark(run: int) -> None:
        marks.setdefault(run, []).append(time.process_time())

    settings, own = (DreamboothSettings, {"class_noun": "toy"}) if method == "lora" else (TextualInversionSettings, {})
    with tempfile.TemporaryDirectory() as work:
        runs = [
            settings(
                **own,
                photos=folders[i % len(folders)],
                token=f"<bench/thing{i}>",
                base="tiny",
                steps=steps,
                batch=batch,
                seed=i,
                samples=False,
                early_stop=False,
                library=Path(work) / "concepts",
                run=Path(work) / str(i),
            )
            for i in range(count)
        ]
        start = time.process_time()
        if way == WAYS[1]:
            train_together(runs, lambda line: None, lambda run, progress: mark(run))
        else:
            for i, run in enumerate(runs):
                train(run, lambda line: None, lambda progress, i=i: mark(i))
        whole = (time.process_time() - start) / count
    if way == WAYS[1]:
        first, last = (pick(times[index] for times in marks.values()) for pick, index in ((max, 0), (min, -1)))
        step = (last - first) / (steps - 1) / count
    else:
        step = median((times[-1] - times[0]) / (steps - 1) for times in marks.values())
    return {"step": step, "whole": whole, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        way, count, steps, batch, photos, method = sys.argv[2:]
        print(json.dumps(_measure(way, int(count), int(steps), int(batch), Path(photos), method)))
    else:
        main()
