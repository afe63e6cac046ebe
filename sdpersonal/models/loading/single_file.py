"""A base in one `.safetensors` file, in the layout of the original training code: what Civitai has and A1111 reads.

Nothing else is needed and nothing is fetched: the architecture is in the shapes, CLIP's tokenizer ships with us. What
the file does not say is decided as A1111 (`modules/sd_models_config.py`) decides it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from ...errors import PersonalError
from ...prompts import show
from .architecture import (
    Shapes,
    clip_config,
    context_width,
    kind_by_width,
    open_clip_config,
    under,
    unet_config,
    vae_config,
)
from .ldm_keys import clip_places, open_clip_places, unet_places, vae_places
from .tokenizer import VOCABULARY, clip_tokenizer
from .unsupported import refuse_strangers
from .weights import Parts, digest, fill, opened, vae_dtype

UNET, VAE = "model.diffusion_model.", "first_stage_model."
_CLIP = (
    "cond_stage_model.transformer.text_model.",
    "cond_stage_model.transformer.",
)  # some merges lost the latter part
_OPEN_CLIP = ("cond_stage_model.model.", "conditioner.embedders.0.model.")  # the second in SD Turbo
_CLIP_L, _CLIP_G = "conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model."
_SCHEDULE = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "clip_sample": False,
}
_OURS_TO_TELL = "It does not say what its UNet predicts; its answer to noise says "


def read_file(path: Path, name: str, dtype: torch.dtype, device: torch.device, with_vae: bool = True) -> Parts:
    """All of a base from one file. Raises PersonalError where it is another thing, damaged, or not all there."""
    from diffusers import DDPMScheduler

    with opened(path) as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118, it is no dict
        refuse_strangers(shapes, name)
        if with_vae and not under(shapes, VAE):
            raise PersonalError(
                f"{show(name)} holds no autoencoder (VAE).", "Give one beside it: --vae FOLDER or FILE.safetensors."
            )
        if not any(key.startswith(("cond_stage_model.", "conditioner.")) for key in shapes):
            raise PersonalError(f"{show(name)} holds no text encoder.", "Use a whole checkpoint.")
        try:
            kind = _kind(shapes, name)
            said = said_prediction(file.metadata() or {}, shapes, path)
            resolution = _resolution(kind, said, file.metadata() or {})
            unet = _unet(file, shapes, kind, resolution, dtype, name).to(device)
            encoders = _encoders(file, shapes, kind, dtype, name)
            vae = _vae(file, under(shapes, VAE), VAE, kind, resolution, dtype, name) if with_vae else None
        except KeyError as error:
            raise PersonalError(
                f"{show(name)} is not laid out as Stable Diffusion: {show(str(error.args[0]))} is missing.",
                "Use another copy.",
            ) from None
    note = ""
    if said is None and kind == "sd2":
        said = "v_prediction" if predicts_velocity(unet) else "epsilon"
        note = f"{_OURS_TO_TELL}{'velocity (v-prediction)' if said == 'v_prediction' else 'the noise (epsilon)'}."
        unet.register_to_config(sample_size=_resolution(kind, said, {}) // 8)
    scheduler = DDPMScheduler.from_config(_SCHEDULE | {"prediction_type": said or "epsilon"} | _terminal(shapes))
    return Parts(kind, digest([path]), unet, vae, encoders, scheduler, note=note)


def read_vae_file(path: Path, kind: str, resolution: int, dtype: torch.dtype, name: str) -> nn.Module:
    """An AutoencoderKL alone, or that of a whole checkpoint. Raises PersonalError."""
    with opened(path) as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        prefix = VAE if under(shapes, VAE) else ""
        if f"{prefix}encoder.down.0.block.0.conv1.weight" not in shapes:
            theirs = "encoder.down_blocks.0.resnets.0.conv1.weight" in shapes
            raise PersonalError(
                f"{show(name)} is {'a part of a diffusers folder' if theirs else 'not an autoencoder of this kind'}.",
                "Give the folder that it lies in." if theirs else "Give --vae an autoencoder (AutoencoderKL).",
            )
        try:
            return _vae(file, under(shapes, prefix), prefix, kind, resolution, dtype, name)
        except KeyError as error:
            raise PersonalError(f"{show(name)} lacks {show(str(error.args[0]))}.", "Use another copy.") from None


@torch.no_grad()
def predicts_velocity(unet: nn.Module) -> bool:
    """A1111's test for SD 2.x: at the last timestep a picture of one half, asked for by a text of one half, is mostly
    noise to a model of the noise, and the opposite of a picture to a model of the velocity."""
    x = torch.full((1, unet.config.in_channels, 8, 8), 0.5, device=unet.device, dtype=unet.dtype)
    text = torch.full((1, 2, unet.config.cross_attention_dim), 0.5, device=unet.device, dtype=unet.dtype)
    return float((unet(x, torch.tensor([999], device=unet.device), text).sample - x).float().mean()) < -1


def _kind(shapes: Shapes, name: str) -> str:
    inputs = under(shapes, UNET)
    channels = inputs["input_blocks.0.0.weight"][1]
    width = context_width(inputs)
    if channels != inputs["out.2.weight"][0]:
        what = {9: "an inpainting model", 8: "an editing model (InstructPix2Pix)", 5: "a depth model"}.get(channels)
        raise PersonalError(
            f"{show(name)} is {what or 'not a plain model'}: its UNet reads {channels} channels.",
            "It cannot be taught here; use its plain sister.",
        )
    kind = kind_by_width(width, name)
    if kind != "sdxl" and "label_emb.0.0.weight" in inputs:
        raise PersonalError(
            f"{show(name)} reads pictures too (unCLIP); it cannot be taught here.", "Use its plain sister."
        )
    return kind


def said_prediction(metadata: Mapping[str, str], shapes: Shapes, path: Path) -> str | None:
    """What the file, or the .yaml that A1111 wants beside it, says that the UNet predicts; None where neither does."""
    said = metadata.get("modelspec.prediction_type", "").lower()
    if said in ("v", "v_prediction") or "v_pred" in shapes or metadata.get("modelspec.architecture", "").endswith("-v"):
        return "v_prediction"
    if said == "epsilon":
        return "epsilon"
    try:
        beside = path.with_suffix(".yaml").read_text(encoding="utf-8", errors="replace")[:100_000]
    except OSError:
        return None
    return "v_prediction" if re.search(r"""^\s*parameterization:\s*["']?v["']?\s*$""", beside, re.M) else "epsilon"


def _resolution(kind: str, prediction: str | None, metadata: Mapping[str, str]) -> int:
    """Side in pixels of the pictures it was trained on."""
    if found := re.fullmatch(r"(\d{3,4})x\1", metadata.get("modelspec.resolution", "")):
        return int(found[1])
    return {"sd1": 512, "sd2": 768 if prediction == "v_prediction" else 512, "sdxl": 1024}[kind]


def _terminal(shapes: Shapes) -> dict[str, object]:
    """A marker that fine-tunes with zero terminal SNR carry (Lin et al. 2023, arXiv 2305.08891)."""
    return {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if "ztsnr" in shapes else {}


def _unet(file, shapes: Shapes, kind: str, resolution: int, dtype: torch.dtype, name: str) -> nn.Module:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(unet_config(under(shapes, UNET), kind, resolution))
    fill(unet, file, unet_places(unet, UNET), dtype, name)
    return unet


def _vae(file, shapes: Shapes, prefix: str, kind: str, resolution: int, dtype: torch.dtype, name: str) -> nn.Module:
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        vae = AutoencoderKL.from_config(vae_config(shapes, kind, resolution))
    fill(vae, file, vae_places(vae, prefix), vae_dtype(kind, vae.config, dtype), name)
    return vae


def _encoders(file, shapes: Shapes, kind: str, dtype: torch.dtype, name: str) -> dict[str, tuple[object, nn.Module]]:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    def text(model, config: dict, places, prefix: str) -> nn.Module:
        if config["vocab_size"] != VOCABULARY:
            raise PersonalError(
                f"{show(name)} knows {config['vocab_size']:,} words; CLIP's tokenizer, the one that I have, knows "
                f"{VOCABULARY:,}.",
                "Use another copy.",
            )
        with torch.device("meta"):
            built = model(CLIPTextConfig(**config))
        fill(built, file, places(built, prefix), dtype, name)
        return built

    if kind == "sdxl":
        clip_l = text(CLIPTextModel, clip_config(under(shapes, _CLIP_L)), clip_places, _CLIP_L)
        config = open_clip_config(under(shapes, _CLIP_G), whole=True)
        clip_g = text(CLIPTextModelWithProjection, config, open_clip_places, _CLIP_G)
        return {"clip_l": (clip_tokenizer(), clip_l), "clip_g": (clip_tokenizer("!"), clip_g)}
    prefixes = _CLIP if kind == "sd1" else _OPEN_CLIP
    first = "embeddings.token_embedding.weight" if kind == "sd1" else "token_embedding.weight"
    prefix = next((one for one in prefixes if one + first in shapes), prefixes[0])
    if kind == "sd1":
        config, places = clip_config(under(shapes, prefix)), clip_places
    else:
        config, places = open_clip_config(under(shapes, prefix), whole=False), open_clip_places
    return {
        "clip_l": (
            clip_tokenizer("<|endoftext|>" if kind == "sd1" else "!"),
            text(CLIPTextModel, config, places, prefix),
        )
    }
