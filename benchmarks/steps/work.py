"""How much work a step is, and how fast this machine does such work.

python -m benchmarks.steps.work RESULT BASE METHOD SIDE BATCH RANK VECTORS
python -m benchmarks.steps.work RESULT roof

Work is counted on the meta device: floating-point operations (2 for a multiply and add) of this project's own step,
and of encoding its photos, which the scripts do in every step. They are the same step otherwise, so both are given the
same sum.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sdpersonal.models import StableDiffusion
from sdpersonal.training.loss_inputs import LossInputs
from sdpersonal.training.objective import batch_loss

from .geometry import build


def count_flops(kind: str, method: str, side: int, batch: int, rank: int, vectors: int) -> dict[str, dict[str, float]]:
    """{"step": FLOPs by class of operation, "encode": of the photos}, "weights": bytes of the base in fp32."""
    base = build(kind, "meta")
    if method == "full":
        base.unet.requires_grad_(True)
    elif method == "lora":
        base.adapters.add_trainable("attention", rank, torch.Generator())
    with FlopCounterMode(display=False) as step:
        _loss(base, side, batch, vectors, trains_embeddings=method != "full").backward()
    with FlopCounterMode(display=False) as encoding:
        base.encode(np.zeros((batch, side, side, 3), np.uint8))
    return {
        "step": _flops_by_class(step),
        "encode": _flops_by_class(encoding),
        "weights": {"fp32": 4.0 * base.num_parameters},
    }


def _loss(base: StableDiffusion, side: int, batch: int, vectors: int, trains_embeddings: bool) -> torch.Tensor:
    """Every sample with a caption of its own, as the scripts encode them; ours does less where captions are equal."""
    embeddings = {key: torch.zeros(vectors, width, device="meta") for key, width in base.widths.items()}
    for embedding in embeddings.values():
        embedding.requires_grad_(trains_embeddings)
    latents = torch.zeros(batch, *base.latent_shape(side, side), device="meta")
    numbers = torch.zeros(batch, dtype=torch.long, device="meta")
    tokens = torch.zeros(batch, len(base.encoders), 2, 77, dtype=torch.long, device="meta")
    time_ids = torch.zeros(batch, 6, device="meta")
    inputs = LossInputs(latents, latents, numbers, time_ids, tokens, numbers)
    return batch_loss(base, embeddings, inputs, None).mean()


def _flops_by_class(counter: FlopCounterMode) -> dict[str, float]:
    """Convolutions and matrix products; attention is the latter."""
    sums: Counter[str] = Counter()
    for operation, count in counter.get_flop_counts()["Global"].items():
        sums["convolution" if "convolution" in str(operation) else "matmul"] += count
    return dict(sums)


def measure_peak_flops(seconds: float = 3.0) -> dict[str, dict[str, float]]:
    """FLOP/s of this device by precision and class of operation, the best of what fits in some seconds each."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    side = 8192 if device == "cuda" else 1024
    rates: dict[str, dict[str, float]] = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        x = torch.randn(4, 320, 64, 64, device=device, dtype=dtype)
        conv = nn.Conv2d(320, 320, 3, padding=1, device=device, dtype=dtype).requires_grad_(False)
        rates[name] = {
            "matmul": 2 * side**3 / _min_seconds(lambda a=a, b=b: a @ b, seconds),
            "convolution": 2 * 9 * 320**2 * 4 * 64**2 / _min_seconds(lambda conv=conv, x=x: conv(x), seconds),
        }
    return rates


def _min_seconds(run, seconds: float) -> float:
    """Of one run: the processor's seconds where that is one thread, which other work hardly changes."""
    clock = time.process_time if _is_single_threaded() else time.perf_counter
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        started_at = clock()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        best = min(best, clock() - started_at)
    return best


def _is_single_threaded() -> bool:
    return torch.get_num_threads() == 1 and not torch.cuda.is_available()


def main() -> None:
    result, first, *rest = sys.argv[1:]
    if first == "roof":
        result_data = measure_peak_flops()
    else:
        method, *numbers = rest
        result_data = count_flops(first, method, *map(int, numbers))
    Path(result).write_text(json.dumps(result_data))


if __name__ == "__main__":
    main()
