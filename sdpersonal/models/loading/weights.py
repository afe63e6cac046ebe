"""Read weights from safetensors files only; files are checked first, and missing tensors are named."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ...config.base import BaseKind
from ...errors import UserError, printable
from .ldm_keys import CheckpointKey

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    from transformers import CLIPTextModel, PreTrainedTokenizerBase

# diffusers imports bitsandbytes if it is installed, and that logs about 4-bit kernels, which are not used here.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

PICKLE_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")


@dataclass
class BaseParts:
    """The components of a base, as read from a folder or a file."""

    kind: BaseKind
    version: str  # sha256, 64 hexadecimal digits
    unet: UNet2DConditionModel
    vae: AutoencoderKL | None  # None if another one is used
    encoders: dict[str, tuple[PreTrainedTokenizerBase, CLIPTextModel]]  # by "clip_l" or "clip_g"
    scheduler: DDPMScheduler
    force_zeros_for_empty_prompt: bool = True
    note: str = ""  # what the user should know about how it was read


def vae_dtype(kind: str, config: Mapping[str, object], dtype: torch.dtype) -> torch.dtype:
    """Return the autoencoder's dtype: fp32 for SDXL unless its config sets `force_upcast` to false, else `dtype`.

    SDXL's own autoencoder overflows in fp16 and shows banding in bf16.
    """
    return torch.float32 if kind == "sdxl" and config.get("force_upcast", True) else dtype


@contextmanager
def open_safetensors(path: Path) -> Iterator[safe_open]:
    """Open a safetensors file, memory-mapped. Raises UserError if it is not one, or is truncated."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except SafetensorError as error:
        raise UserError(
            f"{printable(str(path), 200)} {_describe_damage(path, str(error))}.", "Fetch or copy it again."
        ) from None
    except OSError as error:
        raise UserError(f"{printable(str(path), 200)} cannot be read: {error.strerror or error}.") from None


def check_complete(paths: Iterable[Path]) -> None:
    """Raise UserError for the first file that is truncated or no safetensors file; only headers are read."""
    for path in paths:
        with open_safetensors(path):
            pass


def load_weights(
    model: nn.Module, file: safe_open, keys: Mapping[str, CheckpointKey], dtype: torch.dtype, name: str
) -> None:
    """Load the weights of a model on the meta device from an open file. Raises UserError if they do not fit."""
    available = set(file.keys())
    missing = sorted({key.key for key in keys.values()} - available)
    if missing:
        raise UserError(
            f"{printable(name)} lacks {len(missing)} of the weights it should have; the first is "
            f"{printable(missing[0])}.",
            "It is incomplete or of an unknown architecture. Use another copy.",
        )
    tensors = {}
    for key, shape in ((key, value.shape) for key, value in model.state_dict().items()):
        tensor = _read_tensor(file, keys[key])
        if [size for size in tensor.shape if size != 1] != [size for size in shape if size != 1]:
            actual, expected = tuple(tensor.shape), tuple(shape)
            raise UserError(
                f"{printable(name)}: {printable(keys[key].key)} has the shape {actual} where {expected} belongs.",
                "Use another copy.",
            )
        tensors[key] = tensor.reshape(shape).to(dtype).contiguous()  # a 1x1 convolution may replace a linear layer
    model.load_state_dict(tensors, assign=True)
    for module in model.modules():
        position_ids = module._buffers.get("position_ids")  # CLIP's buffer, which files may omit
        if position_ids is not None:
            module._buffers["position_ids"] = torch.arange(position_ids.shape[-1])[None]


def _read_tensor(file: safe_open, key: CheckpointKey) -> Tensor:
    if key.qkv_index is None:
        tensor = file.get_tensor(key.key)
        return tensor.T if key.is_transposed else tensor
    joint = file.get_slice(key.key)
    size = joint.get_shape()[0] // 3
    return joint[key.qkv_index * size : (key.qkv_index + 1) * size]


def _describe_damage(path: Path, message: str) -> str:
    with path.open("rb") as file:
        start = file.read(9)
    if not start:
        return "is empty"
    if start[8:] == b"{" and ("not fully covered" in message or "header length" in message.lower()):
        return "is cut short: it was not fetched or copied to its end"
    return "is not a safetensors file that can be read"


class silence_libraries:
    """Hide the progress bars and log messages of transformers and diffusers inside a `with` block."""

    def __enter__(self) -> None:
        from diffusers.utils import logging as diffusers_log
        from transformers.utils import logging as transformers_log

        self._logs = (diffusers_log, transformers_log)
        self._levels = [log.get_verbosity() for log in self._logs]
        for log in self._logs:
            log.set_verbosity(logging.ERROR)
            log.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        for log, level in zip(self._logs, self._levels, strict=True):
            log.set_verbosity(level)
            log.enable_progress_bar()
