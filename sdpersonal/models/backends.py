"""Configure how torch computes on a CUDA card: the precision of the models, and the settings of torch's libraries.

What is left as torch has it: the choice of attention kernels, which torch makes by card, dtype and shape (cuDNN's first
on Hopper), and `cudnn.benchmark`, which is off: on an H200 it made no convolution of Stable Diffusion 1.5 faster by
more than 2 %, and timing them took ten seconds of a run.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


def compute_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype of frozen models: on CUDA bf16 from compute capability 8.0 (Ampere), else fp16; on a CPU fp32.

    Older cards have no bf16: neither torch's memory-efficient attention nor cuDNN's convolutions take it there, and
    what takes their place holds whole attention matrices and unfolded images. Both take fp16 on every card.
    """
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor from the CPU to a device without waiting for what that still computes: torch keeps the pinned
    memory meanwhile."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def configure_cuda() -> None:
    """Set up torch for a CUDA card, before its first use in this process. What the user set is kept."""
    _use_expandable_segments()
    _allow_tf32()


@contextmanager
def full_fp32() -> Iterator[None]:
    """Compute products of fp32 matrices without TF32 inside the block: for decompositions, which square the error."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision  # can be read and set back whichever way it was set
    matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def _use_expandable_segments() -> None:
    """Have the allocator grow its segments: sizes change with each request, and fragments would waste a small card.

    torch reads the variable when it first allocates on a card. Only its builds for Linux support it.
    """
    if sys.platform == "linux" and not any(name in os.environ for name in _ALLOCATOR_VARIABLES):
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"


def _allow_tf32() -> None:
    """Compute products of fp32 matrices in TF32, as cuDNN computes fp32 convolutions by default.

    The models run in half precision; what remains is SDXL's autoencoder. torch has two ways to say so, and after the
    newer one, `fp32_precision`, every reader of the older raises RuntimeError: torch's own compiler is one. After the
    older one both can be read.
    """
    matmul = torch.backends.cuda.matmul
    if matmul.fp32_precision == "none":  # not chosen by the user
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some releases of torch call it deprecated
            matmul.allow_tf32 = True
