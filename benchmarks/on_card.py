"""Check and measure sdpersonal on a CUDA card, in minutes, in one process: is it right, how fast, does it fit?

python benchmarks/on_card.py --out on-card
python benchmarks/on_card.py --out on-card --parts ceilings,exactness,training --seconds 200
python benchmarks/on_card.py --out dry --dry-run         every part on the CPU with narrow models

Bases have random weights and are made on the card, so nothing is downloaded. A part that fails is reported, and the
next one goes on; a part that the time no longer allows is skipped. Every line is in OUT/on_card.txt at once, every
number in OUT/on_card.json; the table is repeated last.

Besides torch, transformers and accelerate it needs diffusers, pydantic, tyro, pillow-heif and peft; its tests need
pytest with pytest-timeout, and run in several processes where pytest-xdist is.
"""

from __future__ import annotations

import faulthandler
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tyro

HERE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HERE))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from benchmarks.card.session import Session  # noqa: E402

# Name, seconds that a part needs to be worth a start, module and function.
PARTS: dict[str, tuple[float, str, str]] = {
    "ceilings": (5, "ceilings", "measure_ceilings"),
    "exactness": (20, "exactness", "check_exactness"),
    "tests": (30, "runs", "run_tests"),
    "syncs": (15, "generation", "list_all_waits"),
    "training": (20, "training", "train_sd15"),
    "training-xl": (30, "training", "train_sdxl"),
    "generation": (20, "generation", "generate_sd15"),
    "generation-xl": (30, "generation", "generate_sdxl"),
    "switching": (15, "generation", "switch_concepts"),
    "placement": (20, "placement", "check_placement"),
    "runs": (30, "runs", "train_as_a_user"),
    "profiles": (20, "training", "profile_steps"),
    "profiles-generation": (15, "generation", "profile_generation"),
}


@dataclass(frozen=True)
class Settings:
    out: Path = Path("on-card")
    """Folder for the report, profiles and images."""
    seconds: float = 540.0
    """Time budget of all parts."""
    parts: str = ",".join(PARTS)
    """Parts to run, in this order."""
    dry_run: bool = False
    """Run every part on the CPU, with narrow models and two steps."""


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__)
    names = [name.strip() for name in settings.parts.split(",") if name.strip()]
    if unknown := [name for name in names if name not in PARTS]:
        raise SystemExit(f"--parts: there is no {', '.join(unknown)}. Choose from {','.join(PARTS)}.")
    if not settings.dry_run and not _has_cuda():
        raise SystemExit("There is no CUDA card here. --dry-run runs every part on the CPU.")
    _prepare(settings)
    session = Session(settings.out.resolve(), settings.seconds, settings.dry_run)
    for name in names:
        needed, module, function = PARTS[name]
        session.guarded(name, needed, lambda _, m=module, f=function: _part(m, f)(session))
    session.say(f"{session.elapsed:.0f} s in all.")
    session.write_table()
    faulthandler.cancel_dump_traceback_later()


def _prepare(settings: Settings) -> None:
    """Keep libraries quiet; should anything hang, end the process soon after its time, with a traceback."""
    import diffusers
    import transformers

    try:
        from sdpersonal.models.backends import configure_cuda
    except ImportError:
        pass
    else:
        configure_cuda()  # as load_base does before the card's first use; here bases are made without it
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    faulthandler.enable()
    faulthandler.dump_traceback_later(settings.seconds + 30, exit=True)


def _part(module: str, function: str) -> Callable[[Session], None]:
    import importlib

    return getattr(importlib.import_module(f"benchmarks.card.{module}"), function)


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    main()
