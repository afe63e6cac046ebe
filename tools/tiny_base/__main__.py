"""Make the built-in base: `python -m tools.tiny_base`.

Stages run in order; each one that is done is passed over, and one that was killed goes on from its last checkpoint.
"""

import argparse
import os
from pathlib import Path

import torch

from . import presets, stages, worker_group
from .build_context import BuildContext


def main():
    parser = argparse.ArgumentParser(prog="python -m tools.tiny_base", description=__doc__)
    parser.add_argument(
        "--work", type=Path, default=Path("build/tiny-base"), help="folder for all state and the result"
    )
    parser.add_argument(
        "--preset", choices=["auto", *presets.PRESETS], default="auto", help="auto: cuda where there is a card"
    )
    parser.add_argument("--stage", choices=stages.ORDER, help="only this one")
    parser.add_argument("--threads", type=int, help="CPU threads; one process a core is best on a busy machine")
    parser.add_argument("--minutes", type=float, help="with --stage, its time instead of the preset's")
    args = parser.parse_args()
    if args.minutes and not args.stage:
        parser.error("--minutes goes with --stage")
    if args.threads:
        torch.set_num_threads(args.threads)
    name, preset = presets.choose(args.preset)
    if args.minutes:
        preset = presets.with_minutes(preset, args.stage, args.minutes)
    device = "cuda" if torch.cuda.is_available() and name != "cpu" else "cpu"
    for stage in [args.stage] if args.stage else stages.ORDER:
        print(f"== {stage} ({name} preset, {device})", flush=True)
        if stage == "unet" and device == "cpu" and "RANK" not in os.environ and (cores := os.cpu_count()) > 1:
            status = worker_group.spawn_workers(min(cores, 8), ["--stage", "unet"])
            if status:
                raise SystemExit(status)
        else:
            stages.run(stage, BuildContext(args.work, preset, device))


if __name__ == "__main__":
    main()
