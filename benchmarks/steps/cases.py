"""What is measured: a base, a method, a size and a batch; and the command lines of both sides for it.

Equal on both sides: the model, the photos, their number at once, the resolution, LoRA's rank and layers, the number of
rows, the precision, no gradient checkpointing, no pictures, no checkpoint. All else is each side's default.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

RANK, VECTORS = 16, 4
FOREVER = 100_000  # steps asked for; the clock ends the run
SIDES = ("script", "sdpersonal")
METHODS = ("textual-inversion", "lora", "full")


@dataclass(frozen=True)
class Case:
    base: str  # "tiny", "narrow", "sd15", "sdxl"
    method: str
    side: int  # pixels
    batch: int

    def __str__(self) -> str:
        return f"{self.base} {self.method} {self.side} px batch {self.batch}"

    @classmethod
    def parse(cls, text: str) -> Case:
        """BASE:METHOD:SIDE:BATCH. Raises ValueError."""
        base, method, side, batch = text.split(":")
        if method not in METHODS:
            raise ValueError(f"{method!r} is none of {', '.join(METHODS)}")
        return cls(base, method, int(side), int(batch))


ON_CPU = (
    Case("tiny", "textual-inversion", 128, 4),
    Case("tiny", "lora", 128, 4),
    Case("tiny", "full", 128, 4),
    Case("sd15", "textual-inversion", 256, 1),
    Case("sd15", "lora", 256, 1),
)
ON_CUDA = tuple(
    Case(base, method, side, batch)
    for base, side in (("sd15", 512), ("sdxl", 1024))
    for method in ("textual-inversion", "lora")
    for batch in (1, 4)
)


@dataclass(frozen=True)
class Arm:
    """One side in one precision. On a CPU this project's trainer takes no bf16; the clock casts its base."""

    side_name: str
    dtype: str  # "fp32" or "bf16"

    def __str__(self) -> str:
        return f"{self.side_name} {self.dtype}"


def command(case: Case, arm: Arm, scripts: Path, base: Path, photos: Path, out: Path, here: Path) -> list[str]:
    """The script and its arguments. scripts: diffusers' `examples`; base: a folder in diffusers layout; out: a folder
    that does not exist yet; here: this repository."""
    if arm.side_name == "script":
        return _script(case, arm.dtype, scripts, base, photos, out)
    return _ours(case, base, photos, out, here)


def _script(case: Case, dtype: str, scripts: Path, base: Path, photos: Path, out: Path) -> list[str]:
    xl = "_sdxl" if case.base == "sdxl" else ""
    common = {
        "pretrained_model_name_or_path": base,
        "output_dir": out,
        "resolution": case.side,
        "train_batch_size": case.batch,
        "max_train_steps": FOREVER,
        "checkpointing_steps": FOREVER,
        "mixed_precision": "no" if dtype == "fp32" else dtype,
        "seed": 0,
    }
    if case.method == "textual-inversion":
        path = scripts / "textual_inversion" / f"textual_inversion{xl}.py"
        method_flags = {"train_data_dir": photos, "placeholder_token": "<thing>", "initializer_token": "dog"} | {
            "num_vectors": VECTORS,
            "save_steps": FOREVER,
        }
    else:
        name = "train_dreambooth" if case.method == "full" else f"train_dreambooth_lora{xl}"
        path = scripts / "dreambooth" / f"{name}.py"
        method_flags = {"instance_data_dir": photos, "instance_prompt": "a photo of sks dog"}
        method_flags |= {"rank": RANK} if case.method == "lora" else {}
    return [str(path), *(f"--{name}={value}" for name, value in (common | method_flags).items())]


def _ours(case: Case, base: Path, photos: Path, out: Path, here: Path) -> list[str]:
    common = {
        "photos": photos,
        "token": "<me/thing>",
        "base": "tiny" if case.base == "tiny" else base,
        "resolution": case.side,
        "batch": case.batch,
        "steps": FOREVER,
        "save-every": FOREVER,
        "run": out,
        "library": out.with_name("concepts"),
    }
    if case.method == "textual-inversion":
        path, method_flags = "train_textual_inversion.py", {"init": "dog", "vectors": VECTORS}
    else:
        path, method_flags = "train_dreambooth.py", {"class": "dog", "method": case.method}
        method_flags |= {"rank": RANK, "targets": "attention"} if case.method == "lora" else {}
    return [
        str(here / path),
        *(f"--{name}={value}" for name, value in (common | method_flags).items()),
        "--no-samples",
        "--no-early-stop",
    ]


def copy_photos(photos: Path, batch: int, folder: Path) -> Path:
    """As many of these photos as fill whole batches, in a new folder: what is over at the end of an epoch is a smaller
    batch to the scripts."""
    paths = sorted(path for path in photos.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if len(paths) < batch:
        raise SystemExit(f"{photos} holds {len(paths)} photos; a batch of {batch} needs {batch}.")
    folder.mkdir(parents=True)
    for path in paths[: len(paths) // batch * batch]:
        shutil.copy(path, folder)
    return folder
