"""Load models: the built-in one, a folder in diffusers layout, a single file, or one from the Hugging Face Hub."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from ...concepts.card import BASE_TITLES
from ...config.base import BaseKind
from ...config.text_checks import check_path
from ...errors import UserError, printable
from ..backends import compute_dtype, configure_cuda
from ..safety_checker import SafetyChecker, find_checker
from .architecture import SCALING_FACTORS
from .diffusers_folder import missing_file, missing_vae_file, read_folder, read_vae_folder
from .hub_cache import HUB_ID, SHORT_NAMES, cached_folder, fetch_folder
from .single_file import read_file, read_vae_file
from .weight_hashes import sha256_of_files
from .weights import PICKLE_SUFFIXES, BaseParts, silence_libraries

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    from ..stable_diffusion import StableDiffusion

__all__ = ["BUILT_IN", "SHORT_NAMES", "built_in_folder", "describe_base", "kind_of", "load_base", "silence_libraries"]

BUILT_IN = "tiny"
_KIND_NAMES = BASE_TITLES | {"tiny": "the built-in model"}
PRECISION_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
_FILE_SUFFIXES = (".safetensors", ".gguf", ".onnx", *PICKLE_SUFFIXES)


def load_base(
    name: str | None = None,
    device: str | torch.device | None = None,
    *,
    revision: str | None = None,
    vae: str | Path | None = None,
    safety: bool = True,
) -> StableDiffusion:
    """Load a Stable Diffusion 1.x, 2.x or XL model.

    On CUDA the frozen model runs in bf16, or in fp16 on cards before Ampere (compute capability 8.0), which have no
    bf16; on a CPU in fp32.

    Args:
        name: "tiny" (built in), "sd15", "sd21", "sdxl", a Hub id, a folder, or a .safetensors checkpoint. None: sd15 if
            there is a CUDA GPU and the model is on this machine, else tiny.
        revision: a branch, tag or commit of a model on the Hub.
        vae: an autoencoder to use instead of its own: a folder, a .safetensors file or a Hub id.
        safety: run the model's safety checker on generated images, if it has one.

    Raises:
        UserError: if there is no such model, or it cannot be used here.
    """
    check_path(name, "base")
    check_path(vae, "vae")
    device = _choose_device(device)
    if device.type == "cuda":
        configure_cuda()
    dtype = compute_dtype(device)
    name = name or default_base(device)
    vae_path = _locate_vae(str(vae)) if vae is not None else None
    with silence_libraries():
        path = _locate(name, revision)
        parts = _read_parts(path, name, dtype, device, with_vae=vae is None)
        if vae_path:
            parts.vae = _replace_vae(parts, vae_path, str(vae), dtype)
    return _build(name, parts, device, find_checker(path, device, safety))


def _build(
    name: str, parts: BaseParts, device: torch.device, checker: tuple[SafetyChecker | None, str]
) -> StableDiffusion:
    """Build the model of these parts on a device. checker: it, and a note about it."""
    from ..sdxl import StableDiffusionXL
    from ..stable_diffusion import StableDiffusion
    from ..text_encoder import TextEncoder

    if parts.vae is None:
        raise TypeError(f"{name} was read without an autoencoder")
    modules: list[nn.Module] = [parts.unet, parts.vae, *(model for _, model in parts.encoders.values())]
    for module in modules:
        module.to(device)
    build: Callable[..., StableDiffusion] = StableDiffusion
    if parts.kind == "sdxl":
        build = partial(StableDiffusionXL, force_zeros_for_empty_prompt=parts.force_zeros_for_empty_prompt)
    return build(
        name=name,
        kind=parts.kind,
        version=parts.version,
        note=parts.note,
        unet=parts.unet,
        vae=parts.vae,
        encoders={key: TextEncoder(tokenizer, model, key) for key, (tokenizer, model) in parts.encoders.items()},
        scheduler=parts.scheduler,
        checker=checker,
    )


def _choose_device(device: str | torch.device | None) -> torch.device:
    """Return the device, CUDA where there is one if None. Raises UserError for one that is not here."""
    has_cuda = torch.cuda.is_available()
    try:
        chosen = torch.device(device or ("cuda" if has_cuda else "cpu"))
    except (RuntimeError, TypeError):
        raise UserError(f"There is no device {printable(str(device))}.", "Use cpu, cuda or cuda:1.") from None
    if chosen.type == "cuda" and (chosen.index or 0) >= (torch.cuda.device_count() if has_cuda else 0):
        raise UserError(f"There is no CUDA device {printable(str(device))} here.", "Use cpu, or leave device out.")
    return chosen


def default_base(device: torch.device) -> str:
    return "sd15" if device.type == "cuda" and cached_folder(SHORT_NAMES["sd15"], None, missing_file) else BUILT_IN


def kind_of(name: str | None) -> BaseKind | None:
    """Return the kind of base that `load_base` would load, or None if its name alone does not determine it."""
    name = name or default_base(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    kinds: dict[str, BaseKind] = {BUILT_IN: "tiny", "sd15": "sd1", "sd21": "sd2", "sdxl": "sdxl"}
    return kinds.get(name)


def describe_base(base: StableDiffusion, requested: str | None, with_safety: bool = False) -> str:
    """Describe the loaded base: kind, size, precision and, if the user did not choose it, why it was chosen.

    with_safety: mention the safety checker too.
    """
    size = f"{base.num_parameters / 1e6:,.0f} million parameters"
    precision = PRECISION_NAMES[base.dtype]
    if base.device.type == "cuda" and base.dtype == torch.float16:
        precision += ", since this card has no bf16"
    line = f"Base: {base.name} on {base.device.type}, {_KIND_NAMES[base.kind]}: {size} in {precision}."
    line = " ".join(filter(None, (line, base.note, base.safety_note if with_safety else "")))
    if requested:
        return line
    if base.name != BUILT_IN:
        return f"{line} It is on this machine, and so is a CUDA card."
    if base.device.type == "cuda":
        return f"{line} Stable Diffusion 1.5 is not on this machine yet; --base sd15 fetches it (3 GB)."
    return f"{line} Without a CUDA card the small built-in model is used; --base takes others."


def built_in_folder() -> Path:
    """Return the folder of the built-in base, which `StableDiffusionPipeline.from_pretrained` loads as well."""
    return Path(str(resources.files("sdpersonal.models") / "tiny" / "weights"))


def _locate(name: str, revision: str | None) -> Path:
    """Return a base's folder or file; fetch it from the Hub if it is not on this machine."""
    path = built_in_folder() if name == BUILT_IN else _local_path(name)
    if path and revision:
        raise UserError(f"--revision is for models of the Hub; {printable(name)} is on this machine.", "Leave it out.")
    return path or _fetch_from_hub(name, revision)


def _read_parts(path: Path, name: str, dtype: torch.dtype, device: torch.device, with_vae: bool) -> BaseParts:
    if path.is_file():
        return read_file(path, name, dtype, device, with_vae)
    return read_folder(path, name, dtype, with_vae)


def _local_path(name: str) -> Path | None:
    """Return the file or folder of that name; None if it can only be on the Hub. Raises UserError for a pickle."""
    try:
        path = Path(name).expanduser()
    except RuntimeError:  # ~name of an unknown user
        raise UserError(f"{printable(name)} begins with the home of a user who is not known here.") from None
    if path.is_dir():
        return path
    if not name.lower().endswith(_FILE_SUFFIXES) and not path.is_file():
        return None
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise UserError(
            f"{printable(name)} is a pickle ({path.suffix}), which can run code and is never opened.",
            "Use its .safetensors copy; most models have one on their page.",
        )
    if not path.is_file():
        raise UserError(f"There is no file {printable(name, 200)}.", "Check the path.")
    if path.suffix.lower() != ".safetensors":
        raise UserError(f"{printable(name)} is not a .safetensors file.", "Use its .safetensors copy.")
    return path


def _fetch_from_hub(name: str, revision: str | None) -> Path:
    hub_id = SHORT_NAMES.get(name, name)
    if not HUB_ID.fullmatch(hub_id):
        raise UserError(
            f"No base called {printable(name)}.",
            "Give --base tiny, sd15, sd21, sdxl, a Hub id, a folder in diffusers layout or a .safetensors file.",
        )
    return fetch_folder(
        hub_id, name, missing_file, revision, "Give --base FOLDER or a .safetensors file, or use --base tiny."
    )


def _locate_vae(name: str) -> Path:
    hint = "Give --vae a folder, a .safetensors file or a Hub id."
    path = _local_path(name)
    if path is None and not HUB_ID.fullmatch(name):
        raise UserError(f"No autoencoder called {printable(name)}.", hint)
    path = path or fetch_folder(name, name, missing_vae_file, hint=hint)
    return path / "vae" if (path / "vae").is_dir() else path


def _replace_vae(parts: BaseParts, path: Path, name: str, dtype: torch.dtype) -> AutoencoderKL:
    """Load another autoencoder, with the same latents, and include its hash in the base's version."""
    if path.is_file():
        resolution = int(parts.unet.config["sample_size"]) * 8
        vae, files = read_vae_file(path, parts.kind, resolution, dtype, name), [path]
    else:
        vae, files = read_vae_folder(path, parts.kind, dtype)
    channels, scale = vae.config["latent_channels"], vae.config["scaling_factor"]
    if channels != parts.unet.config["in_channels"] or SCALING_FACTORS.get(parts.kind, scale) != scale:
        raise UserError(
            f"--vae {printable(name)} has other latents ({channels} channels, scaled by {scale:g}) than "
            f"{printable(_KIND_NAMES[parts.kind])} needs.",
            "Give one that was made for this kind of base.",
        )
    parts.version = hashlib.sha256(f"{parts.version}{sha256_of_files(files)}".encode()).hexdigest()
    return vae
