"""Estimate the memory that a model needs for generation and training, and whether this machine has it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # psutil ships no types
import torch

from .... import storage
from ....config.base import BaseKind
from ....display.units import GB
from ....models.offload import DECODE_ACTIVATIONS, STEP_ACTIVATIONS, TILE_SIZE, MemoryNeed
from ....training.presets import preset

_UNET_CHANNELS, _VAE_CHANNELS = 320, 128  # Stable Diffusion's first channels
_USABLE_SHARE = 0.9  # of the free memory
_TRAINED_BYTES = 16  # of a weight that trains: itself, gradient and two moments in fp32
_STEP_OVERHEAD = {"cpu": 0.6, "cuda": 0.5}  # GB: libraries, kernels' workspaces (docs/performance.md)
# What a step stores for its backward pass, relative to a LoRA's: counted tensor by tensor for SD 1.5.
_STORED_SHARES = {"lora": 1.0, "pivotal": 1.0, "textual-inversion": 0.86, "full": 1.16}


@dataclass(frozen=True)
class Hardware:
    """This machine's resources, in bytes. gpu_name: "" without a GPU; memory: free on the GPU, else in RAM;
    total_memory: of the same; disk: free where the Hub cache is."""

    gpu_name: str
    memory: int
    total_memory: int
    disk: int

    @classmethod
    def detect(cls) -> Hardware:
        from huggingface_hub.constants import HF_HUB_CACHE

        disk = storage.free_bytes(Path(HF_HUB_CACHE))
        if torch.cuda.is_available():
            free, total = torch.cuda.mem_get_info()
            return cls(torch.cuda.get_device_name(), free, total, disk)
        memory = psutil.virtual_memory()
        return cls("", memory.available, memory.total, disk)

    def describe(self) -> str:
        """Describe the machine in one line."""
        place = self.gpu_name or "no CUDA GPU, so everything runs on the CPU"
        return (
            f"This machine: {place}; {self.memory / GB:.1f} of {self.total_memory / GB:.1f} GB of memory free, "
            f"{self.disk / GB:.0f} GB of disk free."
        )


@dataclass(frozen=True)
class ModelSize:
    """A model's published size: millions of weights of each part; side: image side in pixels.

    stored: GB in bf16 that a LoRA's step stores of an image of that side for its backward pass, without checkpointing.
    """

    text: float
    unet: float
    vae: float
    side: int
    kind: BaseKind = "sd1"
    stored: float = 0.0
    exact_vae: bool = False  # SDXL's VAE runs in fp32

    def generation_memory(self, number: int) -> MemoryNeed:
        """Return the memory needed to generate one image with weights of `number` bytes each."""
        latents, pixels, exact = (self.side // 8) ** 2, self.side**2, 4 if self.exact_vae else number
        return MemoryNeed(
            text=int(self.text * 1e6 * number),
            unet=int(self.unet * 1e6 * number),
            vae=int(self.vae * 1e6 * exact),
            step=int(2 * STEP_ACTIVATIONS * _UNET_CHANNELS * latents * number),
            decoding=int(DECODE_ACTIVATIONS * _VAE_CHANNELS * exact * pixels),
            tile=int(DECODE_ACTIVATIONS * _VAE_CHANNELS * exact * min(pixels, TILE_SIZE**2)),
        )

    def training_memory(self, number: int, method: str, images: int, side: int | None = None) -> float:
        """Return the GB that a training step takes with frozen weights of `number` bytes, 4 on a CPU.

        method: "lora", "pivotal", "textual-inversion" or "full" (of the UNet); images: in a step, with those of prior
        preservation; side: of the images in pixels, None for the model's own.
        """
        on_card = number < 4
        frozen = self.text + self.unet + (0 if on_card else self.vae)  # on a card the autoencoder waits beside it
        weights = frozen * number
        if method == "full":
            weights += self.unet * (_TRAINED_BYTES if on_card else _TRAINED_BYTES - 4)  # a card computes with a copy
        stored = self.stored * images * number / 2 * ((side or self.side) / self.side) ** 2
        return weights / 1e3 + stored * _STORED_SHARES[method] + _STEP_OVERHEAD["cuda" if on_card else "cpu"]


MODEL_SIZES = {
    "sd15": ModelSize(text=123.1, unet=859.5, vae=83.7, side=512, kind="sd1", stored=0.8),
    "sd21": ModelSize(text=340.4, unet=865.9, vae=83.7, side=768, kind="sd2", stored=1.8),
    "sdxl": ModelSize(text=817.7, unet=2567.5, vae=83.7, side=1024, kind="sdxl", stored=5.6, exact_vae=True),
}
_BUILT_IN_SIZE = ModelSize(text=2.3, unet=8.8, vae=2.6, side=128, kind="tiny", stored=0.014)
SIZES_BY_KIND = {size.kind: size for size in (_BUILT_IN_SIZE, *MODEL_SIZES.values())}


def check_fit(size: ModelSize, machine: Hardware) -> tuple[bool, str]:
    """Return whether the machine can generate with a model of that size, and a sentence on the memory it takes."""
    need = size.generation_memory(2 if machine.gpu_name else 4)
    usable, peak = machine.memory * _USABLE_SHARE, need.peak("all", False, 1)
    comparison = f"Generating takes {peak / GB:.1f} GB of {machine.memory / GB:.1f} GB free"
    if peak <= usable:
        return True, f"{comparison}: it fits." + ("" if machine.gpu_name else " Without a GPU an image takes minutes.")
    offloaded_peak = need.peak("sequential", True, 1)
    if machine.gpu_name and offloaded_peak <= usable:
        return True, f"{comparison}; with offloading {offloaded_peak / GB:.1f} GB: it fits, a little slower."
    return False, f"{comparison}: too little memory."


def training_memory_text(size: ModelSize, machine: Hardware) -> str:
    """Describe the memory that training a LoRA takes; the Train tab does it for each method."""
    images = preset("dreambooth-lora", size.kind).batch
    needed = size.training_memory(2 if machine.gpu_name else 4, "lora", images)
    return f"Training a LoRA takes about {needed:.1f} GB{', and hours on a CPU' if not machine.gpu_name else ''}."
