"""A run of on_card.py: its device, its clock, and the report, which is written line by line as results come."""

from __future__ import annotations

import gc
import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.steps.geometry import build
from sdpersonal.models import StableDiffusion

_SMALL = {"sd15": "narrow", "sdxl": "narrow-sdxl"}  # in place of the real geometries in a dry run
_REAL_SIZES = {"sd15": 512, "sdxl": 1024}
_DRY_SIZE = 64


@dataclass
class Session:
    """dry: narrow models on the CPU, two steps of everything. seconds: the time budget of the whole run."""

    out: Path
    seconds: float
    dry: bool = False
    started_at: float = field(default_factory=time.monotonic)
    results: dict[str, object] = field(default_factory=dict)
    rows: list[tuple[str, ...]] = field(default_factory=list)  # of the table at the end

    def __post_init__(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        for name in ("profiles.txt", "programs.txt"):  # of an earlier run; `append` adds to them
            (self.out / name).unlink(missing_ok=True)
        self._file = (self.out / "on_card.txt").open("w", encoding="utf-8")

    @property
    def device(self) -> str:
        return "cpu" if self.dry else "cuda"

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.dry else torch.bfloat16

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started_at

    @property
    def left(self) -> float:
        return self.seconds - self.elapsed

    def say(self, line: str) -> None:
        """Print a line at once, to stdout and to the report."""
        for one_line in line.splitlines():
            stamped = f"[{self.elapsed:6.1f}] {one_line}"
            print(stamped, flush=True)
            print(stamped, file=self._file, flush=True)

    def store(self, name: str, value: object) -> None:
        """Put a result into the JSON file at once."""
        self.results[name] = value
        (self.out / "on_card.json").write_text(json.dumps(self.results, indent=1, default=str))

    def append(self, file_name: str, title: str, text: str) -> None:
        """Add a long text to a file of the folder: few files are easier to carry away than many."""
        with (self.out / file_name).open("a", encoding="utf-8") as file:
            file.write(f"=== {title}\n{text.rstrip()}\n\n")

    def row(self, *cells: str) -> None:
        """Say a row of the final table; it is repeated there."""
        self.rows.append(cells)
        self.say("  ".join(cells))
        self.store("table", self.rows)

    def check(self, name: str, passed: bool, detail: str) -> None:
        self.row("pass" if passed else "FAIL", name, detail)

    def guarded(self, name: str, needed: float, work: Callable[[Session], None]) -> None:
        """Do a part's work, unless there are fewer than `needed` seconds; its exception is one block of the report."""
        if self.left < needed and not self.dry:
            self.row("skip", name, f"{self.left:.0f} s are left, about {needed:.0f} are needed")
            return
        before = self.elapsed
        self.say(f"=== {name}")
        try:
            work(self)
        except Exception as error:
            self.row("FAIL", name, f"{type(error).__name__}: {error}"[:300].replace("\n", " "))
            self.say(traceback.format_exc(limit=-12))
            traceback.clear_frames(error.__traceback__)  # else its tensors stay on the card
        free_memory(self)
        self.store(f"seconds of {name}", round(self.elapsed - before, 1))
        self.say(f"=== {name}: {self.elapsed - before:.1f} s")

    def write_table(self) -> None:
        self.say("")
        widths = [max(len(row[i]) for row in self.rows if len(row) > i) for i in range(max(map(len, self.rows)))]
        for row in self.rows:
            self.say("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)) + " |")

    def geometry(self, kind: str) -> str:
        """The geometry that stands for "sd15" or "sdxl": itself, or a narrow one in a dry run."""
        return _SMALL.get(kind, kind) if self.dry else kind

    def side(self, kind: str) -> int:
        """Pixels of the images of that base."""
        return _DRY_SIZE if self.dry else _REAL_SIZES[kind]

    def base(self, kind: str) -> StableDiffusion:
        """A base with random weights, made on the device, in the precision of a card."""
        torch.manual_seed(0)
        return cast(build(self.geometry(kind), self.device), self.dtype)

    def steps(self, count: int) -> int:
        return 2 if self.dry else count


def cast(base: StableDiffusion, dtype: torch.dtype) -> StableDiffusion:
    """Give a base the precisions that load_base gives it: an autoencoder that asks for fp32 keeps it."""
    for name, model in base.modules().items():
        if name != "vae" or not (base.kind == "sdxl" and base.vae.config["force_upcast"]):
            _cast_weights(model, dtype)
    return base


def _cast_weights(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """As `model.to(dtype)` does, about which diffusers may warn."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)


def free_memory(session: Session) -> None:
    """Release what no longer is in use; in a dry run there is room enough, and collecting takes half a second."""
    if session.dry:
        return
    gc.collect()  # modules refer to each other in cycles
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
