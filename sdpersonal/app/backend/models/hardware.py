"""What a base needs to draw, and whether this machine has it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from .... import storage
from ....models.offload import DECODE_ACTIVATIONS, STEP_ACTIVATIONS, TILE_SIZE, MemoryNeed

GB = 1e9

_UNET_CHANNELS, _VAE_CHANNELS = 320, 128  # Stable Diffusion's first channels
_USABLE_SHARE = 0.9  # of what is free
_TRAINED_AT_256 = 1.2  # GB that a step takes beside the weights in fp32: docs/performance.md


@dataclass(frozen=True)
class Hardware:
    """Bytes. card: the graphics card's name, "" without one; memory: free on the card, else in the machine; disk: free
    where models are kept."""

    card: str
    memory: int
    whole: int
    disk: int

    @classmethod
    def here(cls) -> Hardware:
        from huggingface_hub.constants import HF_HUB_CACHE

        disk = storage.free_bytes(Path(HF_HUB_CACHE))
        if torch.cuda.is_available():
            free, whole = torch.cuda.mem_get_info()
            return cls(torch.cuda.get_device_name(), free, whole, disk)
        memory = psutil.virtual_memory()
        return cls("", memory.available, memory.total, disk)

    def line(self) -> str:
        """In words."""
        place = self.card or "no CUDA card: everything is computed on the CPU"
        return (
            f"This machine: {place}; {self.memory / GB:.1f} of {self.whole / GB:.1f} GB of memory free, "
            f"{self.disk / GB:.0f} GB of disk."
        )


@dataclass(frozen=True)
class ModelSize:
    """A base by its published size. Millions of weights of its parts; side: of its pictures, in pixels."""

    text: float
    unet: float
    vae: float
    side: int
    exact_vae: bool = False  # SDXL's autoencoder runs in fp32

    def need(self, number: int) -> MemoryNeed:
        """What drawing one picture takes with numbers of so many bytes."""
        latents, pixels, exact = (self.side // 8) ** 2, self.side**2, 4 if self.exact_vae else number
        return MemoryNeed(
            text=int(self.text * 1e6 * number),
            unet=int(self.unet * 1e6 * number),
            vae=int(self.vae * 1e6 * exact),
            step=int(2 * STEP_ACTIVATIONS * _UNET_CHANNELS * latents * number),
            decoding=int(DECODE_ACTIVATIONS * _VAE_CHANNELS * exact * pixels),
            tile=int(DECODE_ACTIVATIONS * _VAE_CHANNELS * exact * min(pixels, TILE_SIZE**2)),
        )

    def training_memory(self, number: int) -> float | None:
        """GB that a step of teaching takes, one photo at a time, reckoned from what was measured with Stable Diffusion
        1.5 at 256 pixels; None for a model that nothing was measured with."""
        if self.exact_vae:
            return None
        weights = (self.text + self.unet + self.vae) * number / 1e3
        return weights + _TRAINED_AT_256 * number / 4 * (self.side / 256) ** 2


MODEL_SIZES = {
    "sd15": ModelSize(text=123.1, unet=859.5, vae=83.7, side=512),
    "sd21": ModelSize(text=340.4, unet=865.9, vae=83.7, side=768),
    "sdxl": ModelSize(text=817.7, unet=2567.5, vae=83.7, side=1024, exact_vae=True),
}


def check_fit(size: ModelSize, machine: Hardware) -> tuple[bool, str]:
    """Whether the machine can draw with a base of that size, and how that is, in words."""
    need = size.need(2 if machine.card else 4)
    room, whole = machine.memory * _USABLE_SHARE, need.peak("all", False, 1)
    told = f"Drawing takes {whole / GB:.1f} GB, {machine.memory / GB:.1f} GB free"
    if whole <= room:
        return True, f"{told}: it fits." + ("" if machine.card else " Without a card a picture takes minutes.")
    least = need.peak("turns", True, 1)
    if machine.card and least <= room:
        return True, f"{told}; with its parts in turns {least / GB:.1f} GB: it fits, a little slower."
    return False, f"{told}: too little, with what else runs here."


def training_memory_text(size: ModelSize, machine: Hardware) -> str:
    """What teaching takes, in words."""
    needs = size.training_memory(2 if machine.card else 4)
    if needs is None:
        return "Teaching: not measured yet; a training says at its start whether it fits."
    return f"Teaching takes about {needs:.0f} GB{', and on a CPU hours' if not machine.card else ''}."
