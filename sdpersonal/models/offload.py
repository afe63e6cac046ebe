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

Mode = Literal["all", "waiting", "turns"]
"""All on the card; text encoders and autoencoder wait beside it while they have nothing to do; the UNet does too."""

STEP = 27  # numbers kept in a step, at its widest, for each of the UNet's first channels at each place of the latents
DECODING = 6.1  # the same in decoding, for each of the autoencoder's first channels at each pixel
TILE = 512  # pixels, a side
_SPARE = 0.1  # of a card's free memory: what is cut into pieces, and the kernels' own
_KERNELS = 400 << 20  # bytes: cuBLAS's and cuDNN's workspaces
_SMALL = 8 << 20  # bytes a picture takes in a step; below, a tenth of a step's time is spent whatever the batch


@dataclass(frozen=True)
class Need:
    """What drawing takes, in bytes. text, unet, vae: weights; step: of one picture in a step, with guidance; decoding,
    tile: of one picture in the autoencoder, whole and in tiles."""

    text: int
    unet: int
    vae: int
    step: int
    decoding: int
    tile: int

    def peak(self, mode: Mode, tiled: bool, pictures: int) -> int:
        steps, decoding = pictures * self.step, self.tile if tiled else self.decoding
        if mode == "all":
            return self.text + self.unet + self.vae + max(steps, decoding)
        if mode == "waiting":
            return self.unet + max(self.text, steps, self.vae + decoding)
        return max(self.text, self.unet + steps, self.vae + decoding)


@dataclass(frozen=True)
class Placement:
    """tiled: pictures are decoded in tiles, which shows faintly where they meet; at_once: pictures in one batch."""

    mode: Mode
    tiled: bool
    at_once: int


def choose(free: int, need: Need, most: int) -> Placement:
    """The quickest way to draw with `free` bytes, at most `most` pictures at once; the thriftiest where none fits.

    Moving what waits costs a fraction of a second a batch, less than halving it; moving the UNet costs more. Tiles are
    the last resort, since they alone change what a picture looks like.
    """
    room = free * (1 - _SPARE) - _KERNELS
    for modes, tiled in ((("all", "waiting"), False), (("turns",), False), (("turns",), True)):
        for pictures in sizes(most):
            for mode in modes:
                if need.peak(mode, tiled, pictures) <= room:
                    return Placement(mode, tiled, pictures)
    return Placement("turns", True, 1)


def sizes(most: int) -> list[int]:
    """Batches to try: `most`, and halves of it down to one."""
    return [most] if most <= 1 else [most, *sizes(most // 2)]


class Stages:
    """Which of a base's models are on its device; `bring` is called before each is used."""

    def __init__(self, text: nn.Module, unet: nn.Module, vae: nn.Module, device: torch.device):
        self.device = device
        self._models: Mapping[str, nn.Module] = {"text": text, "unet": unet, "vae": vae}
        self._here = set(self._models)
        self._mode: Mode = "all"

    def settle(self, placement: Placement) -> None:
        """From now on so. Use it with the device to oneself."""
        self._mode = placement.mode
        vae = self._models["vae"]
        if placement.tiled:
            vae.tile_sample_min_size = TILE
            vae.tile_latent_min_size = TILE >> (len(vae.config.block_out_channels) - 1)
        vae.use_tiling = placement.tiled
        for name in sorted(self._models, key=self._stays):  # those that leave first
            self._move(name, here=self._stays(name))

    def bring(self, stage: str) -> None:
        """Have the models of a stage, "text", "unet" or "vae", on the device; those that need not be there leave."""
        if self._mode == "all":
            return
        for name in self._models:
            if name != stage and not self._stays(name):
                self._move(name, here=False)
        self._move(stage, here=True)

    def held(self) -> int:
        """Bytes of weights that are on the device now."""
        return sum(bytes_of(self._models[name]) for name in self._here)

    def _stays(self, name: str) -> bool:
        return self._mode == "all" or (self._mode == "waiting" and name == "unet")

    def _move(self, name: str, here: bool) -> None:
        if here != (name in self._here):
            self._models[name].to(self.device if here else "cpu")
            self._here ^= {name}


def settle(base: StableDiffusion, size: tuple[int, int], most: int, beside: int = 0) -> int:
    """Place a base's models for pictures of (width, height): how many to draw at once, `most` if they fit.

    beside: bytes that concepts take on the device while they act. Use it with the device to oneself. On a CPU `most`,
    or twice as many small ones.
    """
    if base.device.type != "cuda":
        return most if step_bytes(base, size) > _SMALL else 2 * most
    placement = choose(_free(base) - beside, need(base, size), most)
    base.stages.settle(placement)
    return placement.at_once


def need(base: StableDiffusion, size: tuple[int, int]) -> Need:
    """What drawing one picture of (width, height) takes."""
    decoded = DECODING * base.vae.config.block_out_channels[0] * base.vae.dtype.itemsize
    return Need(
        text=sum(bytes_of(encoder.model) for encoder in base.encoders.values()),
        unet=bytes_of(base.unet),
        vae=bytes_of(base.vae),
        step=step_bytes(base, size),
        decoding=int(decoded * size[0] * size[1]),
        tile=int(decoded * min(size[0] * size[1], TILE**2)),
    )


def step_bytes(base: StableDiffusion, size: tuple[int, int]) -> int:
    """What one picture takes in a step beside the weights."""
    _, h, w = base.latent_shape(*size)
    return 2 * STEP * base.unet.config.block_out_channels[0] * h * w * base.dtype.itemsize


def bytes_of(model: nn.Module) -> int:
    return sum(one.numel() * one.element_size() for one in (*model.parameters(), *model.buffers()))


def _free(base: StableDiffusion) -> int:
    """Bytes of the card that drawing can have: what nobody has, what torch keeps for itself, and the base's own."""
    free, _ = torch.cuda.mem_get_info(base.device)
    kept = torch.cuda.memory_reserved(base.device) - torch.cuda.memory_allocated(base.device)
    return free + kept + base.stages.held()
