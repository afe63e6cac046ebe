"""Load a model in diffusers layout: a folder with one component in each subfolder.

`model_index.json` is read to recognise the kind of model, never to choose code: known classes are loaded by name, so an
untrusted folder cannot run anything.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ... import storage
from ...config.base import BaseKind
from ...errors import UserError, printable
from .architecture import KINDS_BY_WIDTH, TINY_BY_WIDTH, kind_by_width
from .weight_hashes import sha256_of_files
from .weights import BaseParts, check_complete, vae_dtype

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from transformers import CLIPTextModel, PreTrainedTokenizerBase

WEIGHT_STEMS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
    "safety_checker": "model",  # not required by any pipeline
}
PIPELINES = {
    "StableDiffusionPipeline": ("unet", "vae", "text_encoder"),
    "StableDiffusionXLPipeline": ("unet", "vae", "text_encoder", "text_encoder_2"),
}
VARIANTS = ("", ".fp16")  # full precision first
_UNSUPPORTED = {  # keyed by a part of the pipeline's name
    "StableDiffusion3": "Stable Diffusion 3",
    "Flux": "FLUX",
    "XLImg2Img": "the refiner of SDXL, which only finishes images",
    "Inpaint": "an inpainting model",
    "Depth2Img": "a depth model",
    "Pix2Pix": "an editing model",
    "Upscale": "an upscaler",
}


_MAX_CONFIG_BYTES = 64 << 20  # of a JSON file: the index of many weights has a few


def read_folder(folder: Path, name: str, dtype: torch.dtype, with_vae: bool = True) -> BaseParts:
    """Read a base from a folder. Raises UserError if a part is missing, damaged, or of another kind."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    index = _read_index(folder)
    parts = _pipeline_parts(index, folder, name)
    files = {part: require_weights(folder, part) for part in parts if with_vae or part != "vae"}
    check_complete(path for _, paths in files.values() for path in paths)
    with translate_load_errors(folder, "base"):
        kind = base_kind(read_config(folder / "unet" / "config.json"), name)
        _check_schedule(read_config(folder / "scheduler" / "scheduler_config.json"), name)
        unet = load_strictly(UNet2DConditionModel, folder / "unet", files["unet"][0], dtype, low_cpu_mem_usage=True)
        encoders: dict[str, tuple[PreTrainedTokenizerBase, CLIPTextModel]] = {}
        for key, suffix, model in (("clip_l", "", CLIPTextModel), ("clip_g", "_2", CLIPTextModelWithProjection)):
            if f"text_encoder{suffix}" in parts:
                text = load_strictly(model, folder / f"text_encoder{suffix}", files[f"text_encoder{suffix}"][0], dtype)
                tokenizer = CLIPTokenizer.from_pretrained(folder / f"tokenizer{suffix}", local_files_only=True)
                encoders[key] = (tokenizer, text)
        scheduler = DDPMScheduler.from_pretrained(folder / "scheduler", local_files_only=True)
    vae = read_vae_folder(folder / "vae", kind, dtype)[0] if with_vae else None
    version = sha256_of_files(files["unet"][1])
    return BaseParts(
        kind, version, unet, vae, encoders, scheduler, bool(index.get("force_zeros_for_empty_prompt", True))
    )


def read_vae_folder(folder: Path, kind: str, dtype: torch.dtype) -> tuple[AutoencoderKL, list[Path]]:
    """Read an AutoencoderKL from its own folder; return it and the files of its weights. Raises UserError."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    variant, paths = require_weights(folder.parent, folder.name)
    check_complete(paths)
    with translate_load_errors(folder, "autoencoder"):
        config = read_config(folder / "config.json")
        if config.get("_class_name", "AutoencoderKL") != "AutoencoderKL" or config.get("latents_mean") is not None:
            raise ValueError(f"it is a {config.get('_class_name')} of an unsupported kind")
        vae = load_strictly(AutoencoderKL, folder, variant, vae_dtype(kind, config, dtype), low_cpu_mem_usage=True)
    return vae, paths


def missing_file(folder: Path) -> str | None:
    """Return the first file that a base in this folder lacks; None if it is complete."""
    try:
        index = read_config(folder / "model_index.json")
        parts = PIPELINES.get(str(index.get("_class_name")), ())
    except (OSError, ValueError, RecursionError):
        return "model_index.json"
    for part in parts:
        if not find_weights(folder, part):
            return f"{part}/{WEIGHT_STEMS[part]}.safetensors"
    return None


def missing_vae_file(folder: Path) -> str | None:
    """Return the file that the folder of an autoencoder, or of a base with one, lacks; None if it is complete."""
    return (
        None
        if find_weights(folder.parent, folder.name) or find_weights(folder, "vae")
        else f"{WEIGHT_STEMS['vae']}.safetensors"
    )


def require_weights(folder: Path, part: str) -> tuple[str, list[Path]]:
    """Return the variant of a part's weights ("" or ".fp16") and their files. Raises UserError if there are none."""
    if weights := find_weights(folder, part):
        return weights
    stem = WEIGHT_STEMS.get(part, WEIGHT_STEMS["vae"])
    pickled = any((folder / part).glob("*.bin"))
    reason = "is there only as a pickle (.bin), which can run code" if pickled else "is missing"
    raise UserError(
        f"{part}/{stem}.safetensors {reason} in {printable(str(folder), 200)}.",
        "Use a copy with safetensors." if pickled else "Fetch or copy it again; it is not all there.",
    )


def base_kind(unet: Mapping[str, object], name: str) -> BaseKind:
    """Return the kind of base from its UNet's configuration. Raises UserError if it cannot be trained on."""
    channels, width = unet.get("in_channels", 4), unet.get("cross_attention_dim", 1280)
    if channels != unet.get("out_channels", 4):
        raise UserError(
            f"--base {printable(name)} is an inpainting or depth model ({channels} channels).",
            "Use the text-to-image model that it was made from.",
        )
    if width == 1280 and unet.get("addition_embed_type"):
        raise UserError(f"--base {printable(name)} is {_UNSUPPORTED['XLImg2Img']}.", "Use --base sdxl.")
    return kind_by_width(width, name, KINDS_BY_WIDTH | TINY_BY_WIDTH)


def _read_index(folder: Path) -> dict:
    path = folder / "model_index.json"
    try:
        index = read_config(path)
    except FileNotFoundError:
        description = (
            "a LoRA's folder"
            if (folder / "pytorch_lora_weights.safetensors").exists()
            else "not a model in diffusers layout"
        )
        raise UserError(
            f"{printable(str(folder), 200)} is {description}: it has no model_index.json.",
            "Give the folder that holds that file.",
        ) from None
    except (ValueError, OSError, RecursionError):
        raise UserError(f"{printable(str(path), 200)} cannot be read.", "Fetch the model again.") from None
    return index


def _pipeline_parts(index: dict, folder: Path, name: str) -> tuple[str, ...]:
    pipeline = str(index.get("_class_name", ""))
    if pipeline == "StableDiffusionXLPipeline" and not (folder / "text_encoder").is_dir():
        pipeline = "StableDiffusionXLImg2ImgPipeline"  # the refiner, which names the base's pipeline
    if pipeline in PIPELINES:
        return PIPELINES[pipeline]
    description = next((text for part, text in _UNSUPPORTED.items() if part in pipeline), None)
    kind = f"{description} ({printable(pipeline)})" if description else f"a {printable(pipeline)}"
    raise UserError(
        f"--base {printable(name)} is {kind}; sdpersonal works with Stable Diffusion 1.x, 2.x and XL.",
        "Try --base sd15, sd21, sdxl or tiny.",
    )


def find_weights(folder: Path, part: str) -> tuple[str, list[Path]] | None:
    """Return the variant of a part's weights and their files, as `require_weights`; None if there are none."""
    part_folder, stem = folder / part, WEIGHT_STEMS.get(part, WEIGHT_STEMS["vae"])
    for variant in VARIANTS:
        single_file = part_folder / f"{stem}{variant}.safetensors"
        if single_file.exists():
            return variant, [single_file]
        shards = _shard_paths(part_folder / f"{stem}.safetensors.index{variant}.json")
        if shards and all(shard.exists() for shard in shards):
            return variant, shards
    return None


def _shard_paths(index: Path) -> list[Path]:
    try:
        return sorted({index.parent / Path(name).name for name in read_config(index)["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []


def read_config(path: Path) -> dict:
    """Read a JSON object. Raises OSError, ValueError, RecursionError."""
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    try:
        config = json.loads(storage.read_bytes(path, _MAX_CONFIG_BYTES).decode())
    except UserError as error:  # it is no file, or too large
        raise ValueError(error.message) from None
    if not isinstance(config, dict):
        raise ValueError(f"{path.name} is not a configuration")
    return config


def _check_schedule(config: Mapping[str, object], name: str) -> None:
    scheduler, prediction = str(config.get("_class_name", "")), config.get("prediction_type", "epsilon")
    if scheduler.startswith(("EDM", "Flow")) or prediction not in ("epsilon", "v_prediction"):
        raise UserError(
            f"--base {printable(name)} was trained in an unsupported way ({printable(scheduler)}, "
            f"{printable(str(prediction))}).",
            "Use another base.",
        )


@contextmanager
def translate_load_errors(folder: Path, part: str, hint: str = "Fetch or copy it again.") -> Iterator[None]:
    """Raise UserError in place of what the libraries raise for files that cannot be read."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:
        message = printable((str(error).splitlines() or [type(error).__name__])[0], 120)
        raise UserError(f"The {part} {printable(str(folder), 200)} cannot be read: {message}", hint) from None


def load_strictly(model: Any, folder: Path, variant: str, dtype: torch.dtype, **options: Any) -> Any:
    """Load a model of a class of diffusers or transformers, whose `from_pretrained` have no common type.

    Raises ValueError for missing weights, which both libraries only warn of and initialise randomly.
    """
    options |= {"local_files_only": True, "use_safetensors": True, "dtype": dtype, "output_loading_info": True}
    loaded, info = model.from_pretrained(folder, variant=variant.removeprefix(".") or None, **options)
    missing = [*info.get("missing_keys", ()), *(mismatch[0] for mismatch in info.get("mismatched_keys", ()))]
    if missing:
        raise ValueError(f"{folder.name} lacks {len(missing)} weights, such as {missing[0]}")
    return loaded
