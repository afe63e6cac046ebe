"""Where a base's models are while pictures are drawn: all on the card, or some of them only for their own stage.

What a stage takes beside the models was counted tensor by tensor (tests/models/test_placement.py counts again).
Attention is not cut into slices: torch's kernels never hold the whole matrix. On a CPU nothing is moved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

if TYPE_CHECKING:
    from .stable_diffusion import StableDiffusion

OffloadMode = Literal["all", "waiting", "turns"]
"""All on the card; text encoders and autoencoder wait beside it while they have nothing to do; the UNet does too."""

STEP_ACTIVATIONS = (
    27  # numbers kept in a step, at its widest, for each of the UNet's first channels at each place of the latents
)
DECODE_ACTIVATIONS = 6.1  # the same in decoding, for each of the autoencoder's first channels at each pixel
TILE_SIZE = 512  # pixels, a side
_SPARE_SHARE = 0.1  # of a card's free memory: what is cut into pieces, and the kernels' own
_KERNEL_BYTES = 400 << 20  # bytes: cuBLAS's and cuDNN's workspaces
_SMALL_STEP_BYTES = (
    8 << 20
)  # bytes a picture takes in a step; below, a tenth of a step's time is spent whatever the batch


@dataclass(frozen=True)
class MemoryNeed:
    """What drawing takes, in bytes. text, unet, vae: weights; step: of one picture in a step, with guidance; decoding,
    tile: of one picture in the autoencoder, whole and in tiles."""

    text: int
    unet: int
    vae: int
    step: int
    decoding: int
    tile: int

    def peak(self, mode: OffloadMode, tiled: bool, pictures: int) -> int:
        steps, decoding = pictures * self.step, self.tile if tiled else self.decoding
        if mode == "all":
            return self.text + self.unet + self.vae + max(steps, decoding)
        if mode == "waiting":
            return self.unet + max(self.text, steps, self.vae + decoding)
        return max(self.text, self.unet + steps, self.vae + decoding)


@dataclass(frozen=True)
class OffloadPlan:
    """tiled: pictures are decoded in tiles, which shows faintly where they meet; at_once: pictures in one batch."""

    mode: OffloadMode
    tiled: bool
    at_once: int


def choose_plan(free: int, need: MemoryNeed, most: int) -> OffloadPlan:
    """The quickest way to draw with `free` bytes, at most `most` pictures at once; the thriftiest where none fits.

    Moving what waits costs a fraction of a second a batch, less than halving it; moving the UNet costs more. Tiles are
    the last resort, since they alone change what a picture looks like.
    """
    room = free * (1 - _SPARE_SHARE) - _KERNEL_BYTES
    for modes, tiled in ((("all", "waiting"), False), (("turns",), False), (("turns",), True)):
        for pictures in batch_sizes(most):
            for mode in modes:
                if need.peak(mode, tiled, pictures) <= room:
                    return OffloadPlan(mode, tiled, pictures)
    return OffloadPlan("turns", True, 1)


def batch_sizes(most: int) -> list[int]:
    """Batches to try: `most`, and halves of it down to one."""
    return [most] if most <= 1 else [most, *batch_sizes(most // 2)]


class Offloader:
    """Which of a base's models are on its device; `bring` is called before each is used."""

    def __init__(self, text: nn.Module, unet: nn.Module, vae: nn.Module, device: torch.device):
        self.device = device
        self._models: Mapping[str, nn.Module] = {"text": text, "unet": unet, "vae": vae}
        self._on_device = set(self._models)
        self._mode: OffloadMode = "all"

    def apply_plan(self, placement: OffloadPlan) -> None:
        """From now on so. Use it with the device to oneself."""
        self._mode = placement.mode
        vae = self._models["vae"]
        if placement.tiled:
            vae.tile_sample_min_size = TILE_SIZE
            vae.tile_latent_min_size = TILE_SIZE >> (len(vae.config.block_out_channels) - 1)
        vae.use_tiling = placement.tiled
        for name in sorted(self._models, key=self._is_resident):  # those that leave first
            self._move(name, here=self._is_resident(name))

    def to_device(self, stage: str) -> None:
        """Have the models of a stage, "text", "unet" or "vae", on the device; those that need not be there leave."""
        if self._mode == "all":
            return
        for name in self._models:
            if name != stage and not self._is_resident(name):
                self._move(name, here=False)
        self._move(stage, here=True)

    def held(self) -> int:
        """Bytes of weights that are on the device now."""
        return sum(weight_bytes(self._models[name]) for name in self._on_device)

    def _is_resident(self, name: str) -> bool:
        return self._mode == "all" or (self._mode == "waiting" and name == "unet")

    def _move(self, name: str, here: bool) -> None:
        if here != (name in self._on_device):
            self._models[name].to(self.device if here else "cpu")
            self._on_device ^= {name}


def plan_offload(base: StableDiffusion, size: tuple[int, int], most: int, beside: int = 0) -> int:
    """Place a base's models for pictures of (width, height): how many to draw at once, `most` if they fit.

    beside: bytes that concepts take on the device while they act. Use it with the device to oneself. On a CPU `most`,
    or twice as many small ones.
    """
    if base.device.type != "cuda":
        return most if bytes_per_step(base, size) > _SMALL_STEP_BYTES else 2 * most
    placement = choose_plan(_available_bytes(base) - beside, memory_need(base, size), most)
    base.offloader.apply_plan(placement)
    return placement.at_once


def memory_need(base: StableDiffusion, size: tuple[int, int]) -> MemoryNeed:
    """What drawing one picture of (width, height) takes."""
    decoded = DECODE_ACTIVATIONS * base.vae.config.block_out_channels[0] * base.vae.dtype.itemsize
    return MemoryNeed(
        text=sum(weight_bytes(encoder.model) for encoder in base.encoders.values()),
        unet=weight_bytes(base.unet),
        vae=weight_bytes(base.vae),
        step=bytes_per_step(base, size),
        decoding=int(decoded * size[0] * size[1]),
        tile=int(decoded * min(size[0] * size[1], TILE_SIZE**2)),
    )


def bytes_per_step(base: StableDiffusion, size: tuple[int, int]) -> int:
    """What one picture takes in a step beside the weights."""
    _, h, w = base.latent_shape(*size)
    return 2 * STEP_ACTIVATIONS * base.unet.config.block_out_channels[0] * h * w * base.dtype.itemsize


def weight_bytes(model: nn.Module) -> int:
    return sum(one.numel() * one.element_size() for one in (*model.parameters(), *model.buffers()))


def _available_bytes(base: StableDiffusion) -> int:
    """Bytes of the card that drawing can have: what nobody has, what torch keeps for itself, and the base's own."""
    free, _ = torch.cuda.mem_get_info(base.device)
    kept = torch.cuda.memory_reserved(base.device) - torch.cuda.memory_allocated(base.device)
    return free + kept + base.offloader.held()
