"""Load a model from one `.safetensors` file in the layout of the original training code, as on Civitai and in A1111.

Nothing else is needed and nothing is downloaded: the architecture follows from the shapes, and CLIP's tokenizer ships
with this package. What the file does not specify is decided as in A1111 (`modules/sd_models_config.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from ...errors import UserError
from ...prompts import printable
from .architecture import (
    Shapes,
    clip_config,
    context_width,
    kind_by_width,
    open_clip_config,
    unet_config,
    vae_config,
    with_prefix_removed,
)
from .ldm_keys import clip_keys, open_clip_keys, unet_keys, vae_keys
from .tokenizer import VOCAB_SIZE, clip_tokenizer
from .unsupported import refuse_unsupported
from .weights import BaseParts, load_weights, open_safetensors, sha256_of_files, vae_dtype

UNET_PREFIX, VAE_PREFIX = "model.diffusion_model.", "first_stage_model."
_CLIP_PREFIXES = (
    "cond_stage_model.transformer.text_model.",
    "cond_stage_model.transformer.",
)  # some merged checkpoints lack the `text_model.` part
_OPEN_CLIP_PREFIXES = ("cond_stage_model.model.", "conditioner.embedders.0.model.")  # the second in SD Turbo
_CLIP_L_PREFIX, _CLIP_G_PREFIX = "conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model."
_SCHEDULER_CONFIG = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "clip_sample": False,
}
_PREDICTION_NOTE = "It does not say what its UNet predicts; its answer to noise says "


def read_file(path: Path, name: str, dtype: torch.dtype, device: torch.device, with_vae: bool = True) -> BaseParts:
    """Read a base from one file. Raises UserError if the file is something else, damaged, or incomplete."""
    from diffusers import DDPMScheduler

    with open_safetensors(path) as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118, it is no dict
        refuse_unsupported(shapes, name)
        if with_vae and not with_prefix_removed(shapes, VAE_PREFIX):
            raise UserError(
                f"{printable(name)} holds no autoencoder (VAE).",
                "Give one beside it: --vae FOLDER or FILE.safetensors.",
            )
        if not any(key.startswith(("cond_stage_model.", "conditioner.")) for key in shapes):
            raise UserError(f"{printable(name)} holds no text encoder.", "Use a whole checkpoint.")
        try:
            kind = _detect_kind(shapes, name)
            prediction = declared_prediction_type(file.metadata() or {}, shapes, path)
            resolution = _native_resolution(kind, prediction, file.metadata() or {})
            unet = _build_unet(file, shapes, kind, resolution, dtype, name).to(device)
            encoders = _build_encoders(file, shapes, kind, dtype, name)
            vae = (
                _build_vae(file, with_prefix_removed(shapes, VAE_PREFIX), VAE_PREFIX, kind, resolution, dtype, name)
                if with_vae
                else None
            )
        except KeyError as error:
            raise UserError(
                f"{printable(name)} is not laid out as Stable Diffusion: {printable(str(error.args[0]))} is missing.",
                "Use another copy.",
            ) from None
    note = ""
    if prediction is None and kind == "sd2":
        prediction = "v_prediction" if predicts_v(unet) else "epsilon"
        note = (
            f"{_PREDICTION_NOTE}{'velocity (v-prediction)' if prediction == 'v_prediction' else 'the noise (epsilon)'}."
        )
        unet.register_to_config(sample_size=_native_resolution(kind, prediction, {}) // 8)
    scheduler = DDPMScheduler.from_config(
        _SCHEDULER_CONFIG | {"prediction_type": prediction or "epsilon"} | _zero_snr_config(shapes)
    )
    return BaseParts(kind, sha256_of_files([path]), unet, vae, encoders, scheduler, note=note)


def read_vae_file(path: Path, kind: str, resolution: int, dtype: torch.dtype, name: str) -> nn.Module:
    """Read an AutoencoderKL from its own file or from a whole checkpoint. Raises UserError."""
    with open_safetensors(path) as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        prefix = VAE_PREFIX if with_prefix_removed(shapes, VAE_PREFIX) else ""
        if f"{prefix}encoder.down.0.block.0.conv1.weight" not in shapes:
            is_diffusers = "encoder.down_blocks.0.resnets.0.conv1.weight" in shapes
            raise UserError(
                f"{printable(name)} is "
                f"{'a part of a diffusers folder' if is_diffusers else 'not an autoencoder of this kind'}.",
                "Give the folder that it lies in." if is_diffusers else "Give --vae an autoencoder (AutoencoderKL).",
            )
        try:
            return _build_vae(file, with_prefix_removed(shapes, prefix), prefix, kind, resolution, dtype, name)
        except KeyError as error:
            raise UserError(f"{printable(name)} lacks {printable(str(error.args[0]))}.", "Use another copy.") from None


@torch.no_grad()
def predicts_v(unet: nn.Module) -> bool:
    """Test whether an SD 2.x UNet predicts the velocity, as A1111 does.

    Latents and text embeddings are constant, 0.5. At the last timestep an epsilon model predicts the latents themselves
    as noise; a v-prediction model predicts the negative of the image.
    """
    x = torch.full((1, unet.config.in_channels, 8, 8), 0.5, device=unet.device, dtype=unet.dtype)
    text = torch.full((1, 2, unet.config.cross_attention_dim), 0.5, device=unet.device, dtype=unet.dtype)
    return float((unet(x, torch.tensor([999], device=unet.device), text).sample - x).float().mean()) < -1


def _detect_kind(shapes: Shapes, name: str) -> str:
    inputs = with_prefix_removed(shapes, UNET_PREFIX)
    channels = inputs["input_blocks.0.0.weight"][1]
    width = context_width(inputs)
    if channels != inputs["out.2.weight"][0]:
        what = {9: "an inpainting model", 8: "an editing model (InstructPix2Pix)", 5: "a depth model"}.get(channels)
        raise UserError(
            f"{printable(name)} is {what or 'not a plain model'}: its UNet reads {channels} channels.",
            "It cannot be taught here; use its plain sister.",
        )
    kind = kind_by_width(width, name)
    if kind != "sdxl" and "label_emb.0.0.weight" in inputs:
        raise UserError(
            f"{printable(name)} reads pictures too (unCLIP); it cannot be taught here.", "Use its plain sister."
        )
    return kind


def declared_prediction_type(metadata: Mapping[str, str], shapes: Shapes, path: Path) -> str | None:
    """Return the prediction type that the file, or a .yaml beside it as for A1111, declares; None if neither does."""
    declared = metadata.get("modelspec.prediction_type", "").lower()
    if (
        declared in ("v", "v_prediction")
        or "v_pred" in shapes
        or metadata.get("modelspec.architecture", "").endswith("-v")
    ):
        return "v_prediction"
    if declared == "epsilon":
        return "epsilon"
    try:
        yaml_text = path.with_suffix(".yaml").read_text(encoding="utf-8", errors="replace")[:100_000]
    except OSError:
        return None
    return "v_prediction" if re.search(r"""^\s*parameterization:\s*["']?v["']?\s*$""", yaml_text, re.M) else "epsilon"


def _native_resolution(kind: str, prediction: str | None, metadata: Mapping[str, str]) -> int:
    """Return the side in pixels of the images that the model was trained on."""
    if match := re.fullmatch(r"(\d{3,4})x\1", metadata.get("modelspec.resolution", "")):
        return int(match[1])
    return {"sd1": 512, "sd2": 768 if prediction == "v_prediction" else 512, "sdxl": 1024}[kind]


def _zero_snr_config(shapes: Shapes) -> dict[str, object]:
    """Return the options for the `ztsnr` marker of fine-tunes with zero terminal SNR (Lin et al., arXiv 2305.08891)."""
    return {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if "ztsnr" in shapes else {}


def _build_unet(file, shapes: Shapes, kind: str, resolution: int, dtype: torch.dtype, name: str) -> nn.Module:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(unet_config(with_prefix_removed(shapes, UNET_PREFIX), kind, resolution))
    load_weights(unet, file, unet_keys(unet, UNET_PREFIX), dtype, name)
    return unet


def _build_vae(
    file, shapes: Shapes, prefix: str, kind: str, resolution: int, dtype: torch.dtype, name: str
) -> nn.Module:
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        vae = AutoencoderKL.from_config(vae_config(shapes, kind, resolution))
    load_weights(vae, file, vae_keys(vae, prefix), vae_dtype(kind, vae.config, dtype), name)
    return vae


def _build_encoders(
    file, shapes: Shapes, kind: str, dtype: torch.dtype, name: str
) -> dict[str, tuple[object, nn.Module]]:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    def text(model, config: dict, places, prefix: str) -> nn.Module:
        if config["vocab_size"] != VOCAB_SIZE:
            raise UserError(
                f"{printable(name)} knows {config['vocab_size']:,} words; CLIP's tokenizer, the one that I have, knows "
                f"{VOCAB_SIZE:,}.",
                "Use another copy.",
            )
        with torch.device("meta"):
            text_model = model(CLIPTextConfig(**config))
        load_weights(text_model, file, places(text_model, prefix), dtype, name)
        return text_model

    if kind == "sdxl":
        clip_l = text(
            CLIPTextModel, clip_config(with_prefix_removed(shapes, _CLIP_L_PREFIX)), clip_keys, _CLIP_L_PREFIX
        )
        config = open_clip_config(with_prefix_removed(shapes, _CLIP_G_PREFIX), all_layers=True)
        clip_g = text(CLIPTextModelWithProjection, config, open_clip_keys, _CLIP_G_PREFIX)
        return {"clip_l": (clip_tokenizer(), clip_l), "clip_g": (clip_tokenizer("!"), clip_g)}
    prefixes = _CLIP_PREFIXES if kind == "sd1" else _OPEN_CLIP_PREFIXES
    first_key = "embeddings.token_embedding.weight" if kind == "sd1" else "token_embedding.weight"
    prefix = next((candidate for candidate in prefixes if candidate + first_key in shapes), prefixes[0])
    if kind == "sd1":
        config, places = clip_config(with_prefix_removed(shapes, prefix)), clip_keys
    else:
        config, places = open_clip_config(with_prefix_removed(shapes, prefix), all_layers=False), open_clip_keys
    return {
        "clip_l": (
            clip_tokenizer("<|endoftext|>" if kind == "sd1" else "!"),
            text(CLIPTextModel, config, places, prefix),
        )
    }
