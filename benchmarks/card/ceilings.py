"""What the card is, and how fast it multiplies, copies and convolves."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess

import torch
from torch import nn

from .clocks import timed
from .session import Session

_PACKAGES = ("torch", "triton", "diffusers", "transformers", "huggingface_hub", "accelerate", "peft", "numpy", "pillow")
_QUERY = "name,driver_version,memory.total,clocks.max.sm,power.limit"


def measure_ceilings(session: Session) -> None:
    """Store "matmul" and "convolution" FLOP/s and "copy" bytes a second (read and written)."""
    session.say(_describe(session))
    session.store("ceilings", {})
    ceilings: dict[str, float] = {}
    for name, measure in (("matmul", _matmul), ("copy", _copy), ("convolution", _convolutions)):
        ceilings |= measure(session, name)
        session.store("ceilings", ceilings)
    for name, rate in ceilings.items():
        unit = "TB/s" if name == "copy" else "TFLOP/s"
        session.row("", name, f"{rate / 1e12:.4g} {unit}")


def peak_flops(session: Session) -> float:
    """FLOP/s of the bf16 matrix product; 1 PFLOP/s if it was not measured."""
    ceilings = session.results.get("ceilings")
    return ceilings.get("matmul", 1e15) if isinstance(ceilings, dict) else 1e15


def _describe(session: Session) -> str:
    versions = []
    for package in _PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {package}")
    lines = [f"Python {platform.python_version()}, {', '.join(versions)}"]
    if not session.dry:
        query = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader"]
        lines.append(subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.strip())
        lines.append(f"cuDNN {torch.backends.cudnn.version()}, CUDA {torch.version.cuda}")
    session.store("machine", lines)
    return "\n".join(lines)


def _matmul(session: Session, name: str) -> dict[str, float]:
    side = 64 if session.dry else 8192
    a, b = (torch.randn(side, side, device=session.device, dtype=session.dtype) for _ in range(2))
    return {name: 2 * side**3 / _seconds(session, lambda: a @ b)}


def _copy(session: Session, name: str) -> dict[str, float]:
    source = torch.empty(1 << (10 if session.dry else 31), device=session.device, dtype=torch.uint8)
    target = torch.empty_like(source)
    return {name: 2 * source.numel() / _seconds(session, lambda: target.copy_(source))}


def _convolutions(session: Session, name: str) -> dict[str, float]:
    """3x3 convolutions of the shapes of the first and the third level, in both memory formats."""
    rates = {}
    for channels, side in ((32, 8),) if session.dry else ((320, 64), (1280, 16)):
        flops = 2 * 9 * channels**2 * 8 * side**2
        for layout, memory_format in (("NCHW", torch.contiguous_format), ("NHWC", torch.channels_last)):
            x = torch.randn(8, channels, side, side, device=session.device, dtype=session.dtype)
            conv = nn.Conv2d(channels, channels, 3, padding=1, device=session.device, dtype=session.dtype)
            x, conv = x.to(memory_format=memory_format), conv.to(memory_format=memory_format).requires_grad_(False)
            rate = flops / _seconds(session, lambda conv=conv, x=x: conv(x), 50)
            rates[f"{name} {channels}@{side} {layout}"] = rate
    return rates


def _seconds(session: Session, function, count: int = 10) -> float:
    for _ in range(3):
        function()
    return timed(session, function, session.steps(count)).device
