"""Several processes on one training: each goes its own way for some steps, then they average their weights.

This is local SGD (Stich 2019). On a CPU that others use too it beats threads, which wait for each other at every
operation. In a single process everything here does nothing.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

import torch
from torch import distributed

SYNC_EVERY = 20  # steps between averages


class WorkerGroup:
    """The rank of this process and the number of processes, from the environment that torchrun sets."""

    def __init__(self):
        self.rank, self.size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        if self.size > 1 and not distributed.is_initialized():
            distributed.init_process_group("gloo")

    @torch.no_grad()
    def average(self, model: torch.nn.Module) -> None:
        """Give every process's model the mean of their weights."""
        if self.size > 1:
            weights = [p for p in model.parameters()]
            flat = torch.cat([w.flatten() for w in weights])
            distributed.all_reduce(flat)
            flat /= self.size
            for weight, mean in zip(weights, flat.split([w.numel() for w in weights]), strict=True):
                weight.copy_(mean.view_as(weight))

    def largest(self, number: float) -> float:
        """Return the largest of the numbers of all processes."""
        if self.size == 1:
            return number
        value = torch.tensor([number], dtype=torch.float64)
        distributed.all_reduce(value, op=distributed.ReduceOp.MAX)
        return value.item()


def spawn_workers(count: int, more: Sequence[str] = ()) -> int:
    """Run this command again, with `more` arguments, in `count` processes of a thread each; return the exit status."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(count), "--max-restarts", "0"]
    threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    command = ["-m", "tools.tiny_base", *sys.argv[1:], *more]
    workers = subprocess.Popen([*launch, *command], env=os.environ | threads)
    signal.signal(signal.SIGTERM, lambda *_: workers.terminate())  # ending this process ends its workers
    return workers.wait()
