"""How torch computes on a CUDA card."""

from __future__ import annotations

import torch


def compute_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype of frozen models: on CUDA bf16 from compute capability 8.0 (Ampere), else fp16; on a CPU fp32.

    Older cards have no bf16: neither torch's memory-efficient attention nor cuDNN's convolutions take it there, and
    what takes their place holds whole attention matrices and unfolded images. Both take fp16 on every card.
    """
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
