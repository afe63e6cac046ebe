"""A base in diffusers layout: a folder with a model in each subfolder.

`model_index.json` is read to recognise the kind of model, never to choose code: known classes are loaded by name, so a
stranger's folder cannot run anything.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from ...errors import PersonalError
from ...prompts import show
from .architecture import KINDS, TINY, kind_by_width
from .weights import Parts, check_whole, digest, vae_dtype

STEMS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
    "safety_checker": "model",  # not needed by any
}
PIPELINES = {
    "StableDiffusionPipeline": ("unet", "vae", "text_encoder"),
    "StableDiffusionXLPipeline": ("unet", "vae", "text_encoder", "text_encoder_2"),
}
VARIANTS = ("", ".fp16")  # the exact copy first
_NOT_BASES = {  # by a part of the pipeline's name
    "StableDiffusion3": "Stable Diffusion 3",
    "Flux": "FLUX",
    "XLImg2Img": "the refiner of SDXL, which only finishes pictures",
    "Inpaint": "an inpainting model",
    "Depth2Img": "a depth model",
    "Pix2Pix": "an editing model",
    "Upscale": "an upscaler",
}


def read_folder(folder: Path, name: str, dtype: torch.dtype, with_vae: bool = True) -> Parts:
    """All of a base from a folder. Raises PersonalError where a part is missing, damaged, or of another kind."""
    from diffusers import DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    index = _index(folder)
    parts = _recognised(index, folder, name)
    files = {part: weights_of(folder, part) for part in parts if with_vae or part != "vae"}
    check_whole(path for _, paths in files.values() for path in paths)
    with told(folder, "base"):
        kind = kind_of(config_in(folder / "unet" / "config.json"), name)
        _check_schedule(config_in(folder / "scheduler" / "scheduler_config.json"), name)
        unet = loaded(UNet2DConditionModel, folder / "unet", files["unet"][0], dtype, low_cpu_mem_usage=True)
        encoders = {}
        for key, end, model in (("clip_l", "", CLIPTextModel), ("clip_g", "_2", CLIPTextModelWithProjection)):
            if f"text_encoder{end}" in parts:
                text = loaded(model, folder / f"text_encoder{end}", files[f"text_encoder{end}"][0], dtype)
                tokenizer = CLIPTokenizer.from_pretrained(folder / f"tokenizer{end}", local_files_only=True)
                encoders[key] = (tokenizer, text)
        scheduler = DDPMScheduler.from_pretrained(folder / "scheduler", local_files_only=True)
    vae = read_vae_folder(folder / "vae", kind, dtype)[0] if with_vae else None
    version = digest(files["unet"][1])
    return Parts(kind, version, unet, vae, encoders, scheduler, bool(index.get("force_zeros_for_empty_prompt", True)))


def read_vae_folder(folder: Path, kind: str, dtype: torch.dtype) -> tuple[nn.Module, list[Path]]:
    """The AutoencoderKL in a folder of its own, and the files of its weights. Raises PersonalError."""
    from diffusers import AutoencoderKL

    variant, paths = weights_of(folder.parent, folder.name)
    check_whole(paths)
    with told(folder, "autoencoder"):
        config = config_in(folder / "config.json")
        if config.get("_class_name", "AutoencoderKL") != "AutoencoderKL" or config.get("latents_mean") is not None:
            raise ValueError(f"it is a {config.get('_class_name')} of a kind that I do not know")
        vae = loaded(AutoencoderKL, folder, variant, vae_dtype(kind, config, dtype), low_cpu_mem_usage=True)
    return vae, paths


def incomplete(folder: Path) -> str | None:
    """The first file that a base in this folder lacks; None where all are there."""
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        parts = PIPELINES.get(index.get("_class_name"), ())
    except (OSError, ValueError, AttributeError, RecursionError):
        return "model_index.json"
    for part in parts:
        if not find_weights(folder, part):
            return f"{part}/{STEMS[part]}.safetensors"
    return None


def vae_incomplete(folder: Path) -> str | None:
    """The same for a folder that is an autoencoder alone, or a base that holds one."""
    return (
        None
        if find_weights(folder.parent, folder.name) or find_weights(folder, "vae")
        else f"{STEMS['vae']}.safetensors"
    )


def weights_of(folder: Path, part: str) -> tuple[str, list[Path]]:
    """The variant of a part's weights ("" or ".fp16") and their files. Raises PersonalError where there are none."""
    if found := find_weights(folder, part):
        return found
    stem = STEMS.get(part, STEMS["vae"])
    pickled = any((folder / part).glob("*.bin"))
    reason = "is there only as a pickle (.bin), which can run code" if pickled else "is missing"
    raise PersonalError(
        f"{part}/{stem}.safetensors {reason} in {show(str(folder), 200)}.",
        "Use a copy with safetensors." if pickled else "Fetch or copy it again; it is not all there.",
    )


def kind_of(unet: Mapping[str, object], name: str) -> str:
    """The kind of base from its UNet's configuration. Raises PersonalError where it is none that can be taught."""
    channels, width = unet.get("in_channels", 4), unet.get("cross_attention_dim", 1280)
    if channels != unet.get("out_channels", 4):
        raise PersonalError(
            f"{show(name)} is an inpainting or depth model ({channels} channels); it cannot be taught here.",
            "Use its plain sister.",
        )
    if width == 1280 and unet.get("addition_embed_type"):
        raise PersonalError(f"{show(name)} is {_NOT_BASES['XLImg2Img']}.", "Use the base: sdxl.")
    return kind_by_width(width, name, KINDS | TINY)


def _index(folder: Path) -> dict:
    path = folder / "model_index.json"
    try:
        index = config_in(path)
    except FileNotFoundError:
        what = (
            "a LoRA's folder"
            if (folder / "pytorch_lora_weights.safetensors").exists()
            else "not a model in diffusers layout"
        )
        raise PersonalError(
            f"{show(str(folder), 200)} is {what}: it has no model_index.json.", "Give the folder that holds that file."
        ) from None
    except (ValueError, OSError, RecursionError):
        raise PersonalError(f"{show(str(path), 200)} cannot be read.", "Fetch the model again.") from None
    return index


def _recognised(index: dict, folder: Path, name: str) -> tuple[str, ...]:
    pipeline = str(index.get("_class_name", ""))
    if pipeline == "StableDiffusionXLPipeline" and not (folder / "text_encoder").is_dir():
        pipeline = "StableDiffusionXLImg2ImgPipeline"  # the refiner, under another name
    if pipeline in PIPELINES:
        return PIPELINES[pipeline]
    what = next((what for part, what in _NOT_BASES.items() if part in pipeline), None)
    raise PersonalError(
        f"{show(name)} is {f'{what} ({show(pipeline)})' if what else f'a {show(pipeline)}'}; "
        "I work with Stable Diffusion 1.x, 2.x and XL.",
        "Try sd15, sd21, sdxl or tiny.",
    )


def find_weights(folder: Path, part: str) -> tuple[str, list[Path]] | None:
    """The variant of a part's weights and their files, as `weights_of`; None where there are none."""
    place, stem = folder / part, STEMS.get(part, STEMS["vae"])
    for variant in VARIANTS:
        whole = place / f"{stem}{variant}.safetensors"
        if whole.exists():
            return variant, [whole]
        shards = _shards(place / f"{stem}.safetensors.index{variant}.json")
        if shards and all(shard.exists() for shard in shards):
            return variant, shards
    return None


def _shards(index: Path) -> list[Path]:
    try:
        return sorted({index.parent / Path(one).name for one in json.loads(index.read_text())["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []


def config_in(path: Path) -> dict:
    """A JSON object. Raises OSError, ValueError, RecursionError."""
    config = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise ValueError(f"{path.name} is not a configuration")
    return config


def _check_schedule(config: Mapping[str, object], name: str) -> None:
    scheduler, prediction = str(config.get("_class_name", "")), config.get("prediction_type", "epsilon")
    if scheduler.startswith(("EDM", "Flow")) or prediction not in ("epsilon", "v_prediction"):
        raise PersonalError(
            f"{show(name)} was trained in a way that I do not know ({show(scheduler)}, {show(str(prediction))}).",
            "Use another base.",
        )


@contextmanager
def told(folder: Path, what: str, fix: str = "Fetch or copy it again.") -> Iterator[None]:
    """Raises PersonalError in place of what the libraries raise for files that cannot be read."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        said = show((str(error).splitlines() or [type(error).__name__])[0], 120)
        raise PersonalError(f"The {what} {show(str(folder), 200)} cannot be read: {said}", fix) from None


def loaded(model, folder: Path, variant: str, dtype: torch.dtype, **options):
    """Refuses what both libraries only warn of: weights that are missing, and would be random."""
    options |= {"local_files_only": True, "use_safetensors": True, "dtype": dtype, "output_loading_info": True}
    loaded, info = model.from_pretrained(folder, variant=variant.removeprefix(".") or None, **options)
    missing = [*info.get("missing_keys", ()), *(one[0] for one in info.get("mismatched_keys", ()))]
    if missing:
        raise ValueError(f"{folder.name} lacks {len(missing)} weights, such as {missing[0]}")
    return loaded
