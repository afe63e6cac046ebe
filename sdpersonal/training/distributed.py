"""Run several processes as one: they start equal, average their gradients and agree on decisions."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence

import torch
from accelerate import Accelerator  # type: ignore[import-untyped]  # the package has no type information
from accelerate.utils import broadcast, gather  # type: ignore[import-untyped]  # the same
from torch import Tensor, nn

from .. import storage
from ..errors import UserError
from ..photos.loading import PhotoSet

__all__ = [
    "Accelerator",
    "all_gather",
    "average_gradients",
    "broadcast_decision",
    "broadcast_integers",
    "check_same_start",
    "init_distributed",
]

_BUCKET_SIZE = 1 << 24  # numbers in one message between processes, 64 MB
_SAME_FOLDERS = "Every process needs the same folders; between machines, on a shared disk."


def init_distributed() -> Accelerator:
    """Join the processes that the launcher started, if any. Raises UserError if the main process's port is in use.

    The master weights are fp32 whatever the base model is, so there is no mixed precision here.
    """
    try:
        # Without cpu=True, processes without a GPU would not find each other.
        return Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="no")
    except RuntimeError as error:
        if "EADDRINUSE" not in str(error):
            raise
        port = os.environ.get("MASTER_PORT", "")
        raise UserError(
            f"Port {port} is in use, perhaps by another run.",
            "Start with: accelerate launch --main_process_port 0",
        ) from None


def check_same_start(accelerator: Accelerator, photos: PhotoSet, identity: dict[str, object], start: int) -> None:
    """Raise UserError, in every process, unless all have the same photos, settings and start step."""
    if accelerator.num_processes == 1:
        return
    settings = storage.sha256(json.dumps(identity, sort_keys=True).encode())
    summary = [len(photos.photos), int(photos.identity[:12], 16), int(settings[:12], 16), start]
    summaries = all_gather(accelerator, torch.tensor(summary, device=accelerator.device)).tolist()
    for rank, other in enumerate(summaries):
        if other[0] != summaries[0][0]:
            raise UserError(f"Rank {rank} sees {other[0]} photos, rank 0 sees {summaries[0][0]}.", _SAME_FOLDERS)
        if other[1] != summaries[0][1]:
            raise UserError(f"Rank {rank} sees other photos than rank 0.", _SAME_FOLDERS)
        if other[2] != summaries[0][2]:
            raise UserError(f"Rank {rank} was started with other settings than rank 0.", "Give all the same.")
        if other[3] != summaries[0][3]:
            raise UserError(
                f"Rank {rank} would go on from step {other[3]}, rank 0 from {summaries[0][3]}.", _SAME_FOLDERS
            )


def broadcast_decision(accelerator: Accelerator, decision: bool) -> bool:
    """Return the main process's decision in every process."""
    if accelerator.num_processes == 1:
        return decision
    return bool(broadcast_integers(accelerator, [decision])[0])


def broadcast_integers(accelerator: Accelerator, values: Sequence[int]) -> list[int]:
    """Return the main process's integers in every process; all give as many."""
    return broadcast(torch.tensor(values, device=accelerator.device)).tolist()


def all_gather(accelerator: Accelerator, tensor: Tensor) -> Tensor:
    """Return the tensors of all W processes, (W, ...)."""
    return tensor[None] if accelerator.num_processes == 1 else gather(tensor[None])


def average_gradients(accelerator: Accelerator, parameters: Iterable[nn.Parameter]) -> None:
    """Replace the gradients by their mean over the processes.

    A parameter without a gradient here has none in any process: a method decides that by the step alone.
    """
    if accelerator.num_processes == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    for bucket in _buckets(gradients):
        total = accelerator.reduce(torch.cat([tensor.flatten() for tensor in bucket]), reduction="sum")
        for tensor, part in zip(bucket, total.split([tensor.numel() for tensor in bucket]), strict=True):
            tensor.copy_(part.view_as(tensor))
    torch._foreach_div_(gradients, accelerator.num_processes)


def _buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """Group tensors into messages: a LoRA fits one, a UNet needs several, since each message is a copy."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and size + tensor.numel() > _BUCKET_SIZE:
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    if bucket:
        yield bucket
