"""Offload models during generation: all stay on the GPU, or some are there only for their own stage.

The activations of each stage were counted tensor by tensor (tests/models/test_offload.py counts again), in bf16 and
fp16 alike. Attention is not sliced: torch's kernels never hold the whole matrix. That holds for the dtypes of
`compute_dtype` on every card that torch supports: the flash kernel wants compute capability 8.0, but the
memory-efficient one takes fp16 and fp32 from 5.0 on, at any head width that is a multiple of 8, as Stable Diffusion's
40 to 160 and the autoencoder's 512 are (torch's `sdp_utils.cpp`). On a CPU nothing is moved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import nn

from .cuda_graphs import captured_bytes
from .host_copies import HostCopies

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    from .text_encoder import TextEncoder

OffloadMode = Literal["all", "model", "sequential", "training"]
"""all: all models stay on the GPU; model: text encoders and autoencoder are on the CPU while idle; sequential: the UNet
too; training: only the autoencoder is, since weights that train must not move, nor those that a CUDA graph reads."""

# Peak number of elements in a UNet step, per channel of its first block and latent position.
STEP_ACTIVATIONS = 27
DECODE_ACTIVATIONS = 6.1  # the same in decoding, per channel of the autoencoder's first block and pixel
TILE_SIZE = 512  # pixels per side
_SPARE_SHARE = 0.1  # of the GPU's free memory: fragmentation, and the kernels' own buffers
_KERNEL_BYTES = 400 << 20  # bytes: cuBLAS's and cuDNN's workspaces
# Bytes per image in a step; below this, a tenth of a step's time is overhead whatever the batch size.
_SMALL_STEP_BYTES = 8 << 20


@dataclass(frozen=True)
class MemoryNeed:
    """The memory that generation needs, in bytes.

    text, unet, vae: weights; step: activations of one image in a step, with guidance; decoding, tile: of one image in
    the autoencoder, whole and in tiles.
    """

    text: int
    unet: int
    vae: int
    step: int
    decoding: int
    tile: int

    def peak(self, mode: OffloadMode, tiled: bool, num_images: int) -> int:
        steps, decoding = num_images * self.step, self.tile if tiled else self.decoding
        if mode == "all":
            return self.text + self.unet + self.vae + max(steps, decoding)
        if mode == "model":
            return self.unet + max(self.text, steps, self.vae + decoding)
        if mode == "training":
            return self.text + self.unet + max(steps, self.vae + decoding)
        return max(self.text, self.unet + steps, self.vae + decoding)


@dataclass(frozen=True)
class OffloadPlan:
    """How to fit a generation into memory.

    tiled: images are decoded in tiles, whose seams are faintly visible.
    """

    mode: OffloadMode
    tiled: bool
    batch_size: int


def choose_plan(free: int, memory_need: MemoryNeed, max_batch: int) -> OffloadPlan:
    """Choose the fastest plan that fits into `free` bytes, with at most `max_batch` images per batch.

    If none fits, the plan with the least memory is returned. Moving idle models costs a fraction of a second per batch,
    less than halving the batch; moving the UNet costs more. Tiles are the last resort: only they change the images.
    """
    available = _usable_bytes(free)
    groups: list[tuple[list[OffloadMode], bool]] = [
        (["all", "model"], False),
        (["sequential"], False),
        (["sequential"], True),
    ]
    for modes, tiled in groups:
        for batch_size in batch_sizes(max_batch):
            for mode in modes:
                if memory_need.peak(mode, tiled, batch_size) <= available:
                    return OffloadPlan(mode, tiled, batch_size)
    return OffloadPlan("sequential", True, 1)


def choose_training_plan(free: int, memory_need: MemoryNeed, max_batch: int) -> OffloadPlan:
    """Choose the plan of generation during a training: the text encoders and the UNet stay on the device."""
    for tiled in (False, True):
        for batch_size in batch_sizes(max_batch):
            if memory_need.peak("training", tiled, batch_size) <= _usable_bytes(free):
                return OffloadPlan("training", tiled, batch_size)
    return OffloadPlan("training", True, 1)


def _usable_bytes(free: int) -> float:
    return free * (1 - _SPARE_SHARE) - _KERNEL_BYTES


def batch_sizes(max_batch: int) -> list[int]:
    """List the batch sizes to try: `max_batch`, and halves of it down to one."""
    return [max_batch] if max_batch <= 1 else [max_batch, *batch_sizes(max_batch // 2)]


class Offloader:
    """Keeps track of which of a base's models are on the device; call `to_device` before using one."""

    def __init__(self, text: nn.Module, unet: nn.Module, vae: AutoencoderKL, device: torch.device):
        self.device = device
        self._vae = vae
        self._models: Mapping[str, nn.Module] = {"text": text, "unet": unet, "vae": vae}
        self._copies = {name: HostCopies(model, device) for name, model in self._models.items()}
        self._on_device = set(self._models)
        self._mode: OffloadMode = "all"
        self._tiled = False

    def apply_plan(self, plan: OffloadPlan) -> None:
        """Place the models as planned. Not thread-safe: hold the model lock.

        Other plans may be applied whenever the lock is released, so it is called for every batch: if nothing changes it
        takes microseconds.
        """
        self._mode = plan.mode
        if plan.tiled != self._tiled:
            self._tile(plan.tiled)
        for name in sorted(self._models, key=self._is_resident):  # first those that leave the device
            self._move(name, on_device=self._is_resident(name))

    def to_device(self, stage: str) -> None:
        """Move the model of a stage, "text", "unet" or "vae", to the device, and offload those that are idle."""
        if self._mode == "all":
            return
        for name in self._models:
            if name != stage and not self._is_resident(name):
                self._move(name, on_device=False)
        self._move(stage, on_device=True)

    def bytes_on_device(self) -> int:
        """Return the bytes of weights that are on the device now."""
        return sum(weight_bytes(self._models[name]) for name in self._on_device)

    def _tile(self, tiled: bool) -> None:
        if tiled:
            self._vae.tile_sample_min_size = TILE_SIZE
            self._vae.tile_latent_min_size = TILE_SIZE >> (len(self._vae.config["block_out_channels"]) - 1)
        self._vae.use_tiling = self._tiled = tiled

    def _is_resident(self, name: str) -> bool:
        if self._mode == "training":
            return name != "vae"
        return self._mode == "all" or (self._mode == "model" and name == "unet")

    def _move(self, name: str, on_device: bool) -> None:
        if on_device != (name in self._on_device):
            copies = self._copies[name]
            copies.to_device() if on_device else copies.to_host()
            self._on_device ^= {name}


class OffloadableBase(Protocol):
    """What planning needs of a model, which itself holds an `Offloader`."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    encoders: dict[str, TextEncoder]
    offloader: Offloader

    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]: ...


def plan_offload(base: OffloadableBase, size: tuple[int, int], max_batch: int, lora_bytes: int = 0) -> OffloadPlan:
    """Choose where a base's models are while images of (width, height) are generated. Hold the model lock.

    Args:
        max_batch: the batch size if memory suffices. On a CPU it is not reduced, and doubled for small images.
        lora_bytes: what active concepts take on the device.
    """
    if base.device.type != "cuda":
        return OffloadPlan("all", False, max_batch if bytes_per_step(base, size) > _SMALL_STEP_BYTES else 2 * max_batch)
    return choose_plan(_available_bytes(base) - lora_bytes, memory_need(base, size), max_batch)


def memory_need(base: OffloadableBase, size: tuple[int, int]) -> MemoryNeed:
    """Return the memory needed to generate one image of (width, height)."""
    decoded = DECODE_ACTIVATIONS * base.vae.config["block_out_channels"][0] * base.vae.dtype.itemsize
    return MemoryNeed(
        text=sum(weight_bytes(encoder.model) for encoder in base.encoders.values()),
        unet=weight_bytes(base.unet),
        vae=weight_bytes(base.vae),
        step=bytes_per_step(base, size),
        decoding=int(decoded * size[0] * size[1]),
        tile=int(decoded * min(size[0] * size[1], TILE_SIZE**2)),
    )


def bytes_per_step(base: OffloadableBase, size: tuple[int, int]) -> int:
    """Return the bytes of activations that one image takes in a step."""
    _, h, w = base.latent_shape(*size)
    return 2 * STEP_ACTIVATIONS * base.unet.config["block_out_channels"][0] * h * w * base.dtype.itemsize


def weight_bytes(model: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))


def _available_bytes(base: OffloadableBase) -> int:
    """Return the GPU bytes available to generation: free memory, torch's cache, and the base's own weights."""
    free, _ = torch.cuda.mem_get_info(base.device)
    cached = torch.cuda.memory_reserved(base.device) - torch.cuda.memory_allocated(base.device)
    return free + cached + base.offloader.bytes_on_device()


def place_for_training(base: OffloadableBase, size: tuple[int, int], max_batch: int = 1) -> int:
    """Place a base's models for training steps, and for images of (width, height) between them; return the batch size
    of these. Hold the model lock. On a CPU nothing is moved, and the batch size is `max_batch`."""
    if base.device.type != "cuda":
        return max_batch
    available = _available_bytes(base) - captured_bytes()  # the step's graphs stay
    plan = choose_training_plan(available, memory_need(base, size), max_batch)
    base.offloader.apply_plan(plan)
    base.offloader.to_device("unet")  # the plan may be the one before, in which the autoencoder has worked since
    return plan.batch_size


@contextmanager
def placed_for_encoding(base: OffloadableBase, size: tuple[int, int]) -> Iterator[None]:
    """Place a base's models to encode photos of (width, height) one at a time in the block, and then for training.
    Hold the model lock.

    If memory is short, only the autoencoder is on the device in the block. Encoding takes as much as decoding.
    """
    if base.device.type == "cuda":
        base.offloader.apply_plan(_encoding_plan(base, size))
    yield
    place_for_training(base, size)


def _encoding_plan(base: OffloadableBase, size: tuple[int, int]) -> OffloadPlan:
    if any(weight.requires_grad for weight in base.unet.parameters()):
        return OffloadPlan("training", False, 1)  # it must stay where it trains, which takes more than encoding
    need = memory_need(base, size)
    fits = need.text + need.unet + need.vae + need.decoding <= _usable_bytes(_available_bytes(base))
    return OffloadPlan("all" if fits else "sequential", False, 1)
