"""Reading weights: safetensors only, checked before anything is built, each tensor at its place or named as missing."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ...errors import UserError
from ...prompts import printable
from .ldm_keys import CheckpointKey

# diffusers imports bitsandbytes where it is installed, and it then tells of 4-bit kernels that nobody here uses.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

PICKLE_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")


@dataclass
class BaseParts:
    """What a base is made of, as read from wherever it lay."""

    kind: str  # "tiny", "sd1", "sd2" or "sdxl"
    version: str  # sha256, 64 hexadecimal digits
    unet: nn.Module
    vae: nn.Module | None
    encoders: dict[str, tuple[object, nn.Module]]  # key: tokenizer and text model
    scheduler: object
    zero_empty: bool = True
    note: str = ""  # what the user should know of how it was read


def vae_dtype(kind: str, config: Mapping[str, object], dtype: torch.dtype) -> torch.dtype:
    """SDXL's own autoencoder reaches numbers that fp16 has not and shows bands in bf16; it says so in its config."""
    return torch.float32 if kind == "sdxl" and config.get("force_upcast", True) else dtype


@contextmanager
def open_safetensors(path: Path) -> Iterator:
    """A safetensors file, memory-mapped. Raises UserError where it is none, or ends early."""
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
    """Raises UserError for the first of these files that is cut short or no safetensors file; reads headers."""
    for path in paths:
        with open_safetensors(path):
            pass


def load_weights(model: nn.Module, file, places: Mapping[str, CheckpointKey], dtype: torch.dtype, name: str) -> None:
    """Give a model on the meta device its weights from an open file. Raises UserError where they do not fit."""
    held = set(file.keys())
    missing = sorted({place.key for place in places.values()} - held)
    if missing:
        raise UserError(
            f"{printable(name)} lacks {len(missing)} of the weights it should have; the first is "
            f"{printable(missing[0])}.",
            "It is cut down, or of an architecture that I do not know. Use another copy.",
        )
    tensors = {}
    for key, shape in ((key, value.shape) for key, value in model.state_dict().items()):
        tensor = _read_tensor(file, places[key])
        if [n for n in tensor.shape if n != 1] != [n for n in shape if n != 1]:
            found, wanted = tuple(tensor.shape), tuple(shape)
            raise UserError(
                f"{printable(name)}: {printable(places[key].key)} has the shape {found} where {wanted} belongs.",
                "Use another copy.",
            )
        tensors[key] = tensor.reshape(shape).to(dtype).contiguous()  # a 1x1 convolution may stand for a linear layer
    model.load_state_dict(tensors, assign=True)
    for module in model.modules():
        if "position_ids" in module._buffers:  # CLIP's, which no file need hold
            module.position_ids = torch.arange(module.position_ids.shape[-1])[None]


def sha256_of_files(paths: Iterable[Path]) -> str:
    """sha256 over the files' bytes; of one file, what `sha256sum` and A1111's model hash say."""
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 24):
                total.update(block)
    return total.hexdigest()


def _read_tensor(file, place: CheckpointKey) -> Tensor:
    if place.qkv_index is None:
        tensor = file.get_tensor(place.key)
        return tensor.T if place.is_transposed else tensor
    joint = file.get_slice(place.key)
    rows = joint.get_shape()[0] // 3
    return joint[place.qkv_index * rows : (place.qkv_index + 1) * rows]


def _describe_damage(path: Path, said: str) -> str:
    with path.open("rb") as file:
        start = file.read(9)
    if not start:
        return "is empty"
    if start[8:] == b"{" and ("not fully covered" in said or "header length" in said.lower()):
        return "is cut short: it was not fetched or copied to its end"
    return "is not a safetensors file that can be read"


class silence_libraries:
    """transformers and diffusers draw progress bars and notes of their own while loading; ours is the only voice."""

    def __enter__(self):
        from diffusers.utils import logging as diffusers_log
        from transformers.utils import logging as transformers_log

        self._logs = (diffusers_log, transformers_log)
        self._levels = [log.get_verbosity() for log in self._logs]
        for log in self._logs:
            log.set_verbosity(logging.ERROR)
            log.disable_progress_bar()

    def __exit__(self, *_):
        for log, level in zip(self._logs, self._levels, strict=True):
            log.set_verbosity(level)
            log.enable_progress_bar()
