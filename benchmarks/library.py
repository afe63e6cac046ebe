"""Measure a library of many concepts: `python benchmarks/library.py --concepts 10000`.

Each figure is of a fresh process, start and imports counted separately. Nothing of it is cached but the disk's pages.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import tyro
from PIL import Image

from sdpersonal.concepts.card import Card
from sdpersonal.concepts.concept import Concept
from sdpersonal.concepts.concept_file import concept_to_bytes
from sdpersonal.concepts.thumbnail import make_thumbnail
from sdpersonal.prompts import Token

MEASURE = """
import json, sys, time
began = time.perf_counter()
from sdpersonal.concepts.library import Library
from sdpersonal.prompts import Token
loaded, cpu = time.perf_counter(), time.process_time()
library = Library(sys.argv[1])
{work}
done, cpu = time.perf_counter(), time.process_time() - cpu
heavy = sorted({{'torch', 'diffusers', 'transformers', 'gradio', 'PIL'}} & sys.modules.keys())
peak = int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024
print(json.dumps({{"imports": loaded - began, "work": done - loaded, "cpu": cpu, "peak_mb": peak, "heavy": heavy}}))
"""
MEASURED_CODE = {
    "list": "assert len(library.entries()) == int(sys.argv[2])",
    "get, owner and name": "library.get(Token.parse('<owner7/thing-67>'))",
    "get, name alone": "library.get(Token.parse('<thing-67>'))",
    "find": "library.find(Token.parse('<owner7/thing-67>'))",
    "a name that is not there": "\ntry: library.get(Token.parse('<thign-67>'))\nexcept Exception: pass",
    "verify": "assert library.verify() == []",
}


@dataclasses.dataclass
class Settings:
    """What to measure."""

    concepts: int = 10_000
    owners: int = 20
    rounds: int = 3
    """Runs of each measurement; the fastest is reported."""
    folder: Path | None = None
    """Fill this folder and keep it, or measure the one that is there."""


def fill_library(folder: Path, settings: Settings) -> None:
    """Concepts of one vector with a card and a thumbnail of 256 pixels, as training leaves them."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).resize((256, 256))
    thumbnail = make_thumbnail(noise)
    recipe = {"lr": 0.001, "seed": 1, "batch": 4, "rank": 16, "resolution": 512, "base_sha256": "0" * 64}
    for n in range(settings.concepts):
        owner = f"owner{n % settings.owners}"
        token = Token(owner, f"thing-{n}", 1)
        card = Card(
            base="sd1",
            title=f"Thing {n}",
            description="A thing that was photographed on a table. " * 5,
            class_noun="thing",
            method="textual inversion",
            steps=500,
            recipe=recipe,
            scores={"likeness": n / settings.concepts, "fidelity": 0.9},
            prompts=(f"a photo of {token}", f"{token} on the beach", f"{token} in the snow"),
        )
        embeddings = rng.normal(size=(1, 768)).astype(np.float32)
        owner_folder = folder / owner
        owner_folder.mkdir(parents=True, exist_ok=True)
        concept = Concept(token, card, {"clip_l": embeddings}, None, thumbnail)
        (owner_folder / f"{token.name}-v1.safetensors").write_bytes(concept_to_bytes(concept))


def main(settings: Settings) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = settings.folder or Path(temporary) / "concepts"
        if not folder.exists():
            fill_library(folder, settings)
        size = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
        print(f"{settings.concepts} concepts of {size / settings.concepts / 1e3:.1f} kB")
        for name, work in MEASURED_CODE.items():
            argv = [sys.executable, "-c", MEASURE.format(work=work), str(folder), str(settings.concepts)]
            runs = [
                json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)
                for _ in range(settings.rounds)
            ]
            work_ms, cpu_ms, imports_ms = (1e3 * min(run[key] for run in runs) for key in ("work", "cpu", "imports"))
            peak, heavy = min(run["peak_mb"] for run in runs), runs[0]["heavy"]
            print(
                f"{name:26} {work_ms:8.1f} ms ({cpu_ms:.1f} of the processor), imports {imports_ms:.0f} ms, "
                f"peak {peak:.0f} MB {heavy or ''}",
                flush=True,
            )


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
