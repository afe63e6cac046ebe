"""A training script under the clock, in a process of its own, the script unchanged:

python -m benchmarks.steps.clock RESULT WARMUP STEPS DTYPE SCRIPT [ARGUMENTS ...]

Marks the end of every optimiser step; after WARMUP + STEPS of them writes RESULT and ends the process, so nothing of
what a script saves at its end is measured. DTYPE "bf16-base" casts the frozen base of this project's trainer, whose
rule is fp32 on a CPU; "as-is" leaves all to the script.
"""

from __future__ import annotations

import json
import os
import resource
import runpy
import sys
import time
from itertools import pairwise
from pathlib import Path

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

STAND_IN = Path(__file__).parents[1] / "stand_in"


class Clock:
    """Seconds and memory of the steps after the first `warmup`."""

    def __init__(self, result: Path, warmup: int, steps: int):
        self._result, self._warmup, self._steps = result, warmup, steps
        self._wall: list[float] = []
        self._cpu: list[float] = []
        self._peak_before = self._libraries = peak_memory()

    def tick(self, *_) -> None:
        self._wall.append(time.perf_counter())
        self._cpu.append(time.process_time())
        if len(self._wall) == self._warmup:
            self._peak_before = max(self._peak_before, peak_memory())
            reset_peak_memory()
        if len(self._wall) == self._warmup + self._steps:
            self._end()

    def _end(self) -> None:
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.synchronize()
        while_stepping = peak_memory()
        measured = {
            "wall": differences(self._wall[self._warmup - 1 :]),
            "cpu": differences(self._cpu[self._warmup - 1 :]),
            "peak_while_stepping": while_stepping,
            "peak": max(while_stepping, self._peak_before),
            "libraries": self._libraries,
            "cuda_peak": torch.cuda.max_memory_allocated() if cuda else None,
            "threads": torch.get_num_threads(),
        }
        self._result.write_text(json.dumps(measured))
        sys.stdout.flush()
        os._exit(0)


def differences(times: list[float]) -> list[float]:
    return [late - early for early, late in pairwise(times)]


def peak_memory() -> int:
    """Bytes of memory this process has had at most, since the last reset where the kernel knows of one."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << (0 if sys.platform == "darwin" else 10)


def reset_peak_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def is_torchvision_missing() -> bool:
    """Whether it is missing. What transformers and diffusers find of it they look up here, before a stand-in is put."""
    import diffusers.utils.import_utils as of_diffusers
    import transformers.utils.import_utils as of_transformers

    return not (of_diffusers.is_torchvision_available() or of_transformers.is_torchvision_available())


def cast_frozen_base() -> None:
    """UNet and text encoders of this project's bases in bf16; the autoencoder, which runs before the steps, stays."""
    from sdpersonal.models.stable_diffusion import StableDiffusion

    plain = StableDiffusion.__init__

    def cast(self, **parts) -> None:
        plain(self, **parts)
        for name, model in self.modules().items():
            if name != "vae":
                model.to(torch.bfloat16)

    StableDiffusion.__init__ = cast


def main() -> None:
    result, warmup, steps, dtype, script, *arguments = sys.argv[1:]
    if is_torchvision_missing():
        sys.path.append(str(STAND_IN))
    if dtype == "bf16-base":
        cast_frozen_base()
    register_optimizer_step_post_hook(Clock(Path(result), int(warmup), int(steps)).tick)
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")
    raise SystemExit(f"{script} ended before {warmup} + {steps} steps.")


if __name__ == "__main__":
    main()
