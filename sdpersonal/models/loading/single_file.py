"""Load a model from one `.safetensors` file in the layout of the original training code, as on Civitai and in A1111.

Nothing else is needed and nothing is downloaded: the architecture follows from the shapes, and CLIP's tokenizer ships
with this package. What the file does not specify is decided as in A1111 (`modules/sd_models_config.py`).
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from ... import storage
from ...config.base import BaseKind
from ...errors import UserError, printable
from .architecture import (
    CONTEXT_LENGTH,
    Shapes,
    clip_config,
    context_width,
    kind_by_width,
    open_clip_config,
    refuse_unsupported,
    unet_config,
    vae_config,
    with_prefix_removed,
)
from .ldm_keys import CheckpointKey, clip_keys, open_clip_keys, unet_keys, vae_keys
from .weight_hashes import sha256_of_files
from .weights import BaseParts, load_weights, open_safetensors, vae_dtype

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    from safetensors import safe_open
    from transformers import CLIPTextModel, CLIPTokenizer, PreTrainedTokenizerBase

VOCAB_SIZE = 49408
_V_PREDICTION = re.compile(r"""^[^\S\n]*+parameterization:\s*+["']?v["']?[^\S\n]*+$""", re.MULTILINE)
START, END = "<|startoftext|>", "<|endoftext|>"
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


def read_file(path: Path, name: str, dtype: torch.dtype, device: torch.device, with_vae: bool = True) -> BaseParts:
    """Read a base from one file. Raises UserError if the file is something else, damaged, or incomplete."""
    with open_safetensors(path) as file:
        shapes = _shapes(file)
        refuse_unsupported(shapes, name)
        _check_has_all_models(shapes, name, with_vae)
        metadata = file.metadata() or {}
        with _name_missing_key(f"--base {printable(name)} is not laid out as Stable Diffusion: it"):
            kind = _detect_kind(shapes, name)
            prediction = declared_prediction_type(metadata, shapes, path)
            resolution = _native_resolution(kind, prediction, metadata)
            unet = _build_unet(file, shapes, kind, resolution, dtype, name)
            encoders = _build_encoders(file, shapes, kind, dtype, name)
            vae_shapes = with_prefix_removed(shapes, VAE_PREFIX)
            vae = _build_vae(file, vae_shapes, VAE_PREFIX, kind, resolution, dtype, name) if with_vae else None
    note = ""
    if prediction is None and kind == "sd2":
        nn.Module.to(unet, device)
        prediction, note = _measured_prediction_type(unet)
        unet.register_to_config(sample_size=_native_resolution(kind, prediction, {}) // 8)
    scheduler = _build_scheduler(prediction or "epsilon", shapes)
    return BaseParts(kind, sha256_of_files([path]), unet, vae, encoders, scheduler, note=note)


def _shapes(file: safe_open) -> dict[str, tuple[int, ...]]:
    return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118, it is no dict


def _check_has_all_models(shapes: Shapes, name: str, with_vae: bool) -> None:
    if with_vae and not with_prefix_removed(shapes, VAE_PREFIX):
        raise UserError(
            f"--base {printable(name)} has no autoencoder (VAE).",
            "Give one beside it: --vae FOLDER or FILE.safetensors.",
        )
    if not any(key.startswith(("cond_stage_model.", "conditioner.")) for key in shapes):
        raise UserError(f"--base {printable(name)} has no text encoder.", "Use a whole checkpoint.")


@contextmanager
def _name_missing_key(subject: str) -> Iterator[None]:
    """Raise UserError in place of KeyError. subject: the beginning of the sentence."""
    try:
        yield
    except KeyError as error:
        raise UserError(f"{subject} lacks {printable(str(error.args[0]))}.", "Use another copy.") from None


def _measured_prediction_type(unet: UNet2DConditionModel) -> tuple[str, str]:
    """Return what a UNet predicts by its output for noise, and a note for the user."""
    prediction, words = (
        ("v_prediction", "velocity (v-prediction)") if predicts_v(unet) else ("epsilon", "noise (epsilon)")
    )
    return prediction, f"The file does not say what its UNet predicts; its output for noise shows {words}."


def _build_scheduler(prediction: str, shapes: Shapes) -> DDPMScheduler:
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    config = _SCHEDULER_CONFIG | {"prediction_type": prediction} | _zero_snr_config(shapes)
    return cast(DDPMScheduler, DDPMScheduler.from_config(config))


def read_vae_file(path: Path, kind: str, resolution: int, dtype: torch.dtype, name: str) -> AutoencoderKL:
    """Read an AutoencoderKL from its own file or from a whole checkpoint. Raises UserError."""
    with open_safetensors(path) as file:
        shapes = _shapes(file)
        prefix = VAE_PREFIX if with_prefix_removed(shapes, VAE_PREFIX) else ""
        if f"{prefix}encoder.down.0.block.0.conv1.weight" not in shapes:
            if "encoder.down_blocks.0.resnets.0.conv1.weight" in shapes:
                raise UserError(
                    f"--vae {printable(name)} is a part of a diffusers folder.", "Give the folder that contains it."
                )
            raise UserError(f"--vae {printable(name)} is not an autoencoder of this kind.", "Give an AutoencoderKL.")
        with _name_missing_key(f"--vae {printable(name)}"):
            return _build_vae(file, with_prefix_removed(shapes, prefix), prefix, kind, resolution, dtype, name)


@torch.no_grad()
def predicts_v(unet: UNet2DConditionModel) -> bool:
    """Test whether an SD 2.x UNet predicts the velocity, as A1111 does.

    Latents and text embeddings are constant, 0.5. At the last timestep an epsilon model predicts the latents themselves
    as noise; a v-prediction model predicts the negative of the image.
    """
    x = torch.full((1, unet.config["in_channels"], 8, 8), 0.5, device=unet.device, dtype=unet.dtype)
    text = torch.full((1, 2, unet.config["cross_attention_dim"]), 0.5, device=unet.device, dtype=unet.dtype)
    return float((unet(x, torch.tensor([999], device=unet.device), text).sample - x).float().mean()) < -1


def _detect_kind(shapes: Shapes, name: str) -> BaseKind:
    inputs = with_prefix_removed(shapes, UNET_PREFIX)
    channels = inputs["input_blocks.0.0.weight"][1]
    width = context_width(inputs)
    if channels != inputs["out.2.weight"][0]:
        what = {9: "an inpainting model", 8: "an editing model (InstructPix2Pix)", 5: "a depth model"}.get(channels)
        raise UserError(
            f"--base {printable(name)} is {what or 'not a plain model'}: its UNet takes {channels} channels.",
            "Use the text-to-image model that it was made from.",
        )
    kind = kind_by_width(width, name)
    if kind != "sdxl" and "label_emb.0.0.weight" in inputs:
        raise UserError(
            f"--base {printable(name)} takes images too (unCLIP).", "Use the text-to-image model that it was made from."
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
        yaml_text = storage.read_head(path.with_suffix(".yaml"), 100_000)[0].decode("utf-8", "replace")
    except UserError:  # there is none
        return None
    return "v_prediction" if _V_PREDICTION.search(yaml_text) else "epsilon"


def _native_resolution(kind: str, prediction: str | None, metadata: Mapping[str, str]) -> int:
    """Return the side in pixels of the images that the model was trained on."""
    if match := re.fullmatch(r"(\d{3,4})x\1", metadata.get("modelspec.resolution", "")):
        return int(match[1])
    return {"sd1": 512, "sd2": 768 if prediction == "v_prediction" else 512, "sdxl": 1024}[kind]


def _zero_snr_config(shapes: Shapes) -> dict[str, object]:
    """Return the options for the `ztsnr` marker of fine-tunes with zero terminal SNR (Lin et al., arXiv 2305.08891)."""
    return {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if "ztsnr" in shapes else {}


def _build_unet(
    file: safe_open, shapes: Shapes, kind: str, resolution: int, dtype: torch.dtype, name: str
) -> UNet2DConditionModel:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    config = unet_config(with_prefix_removed(shapes, UNET_PREFIX), kind, resolution)
    with torch.device("meta"):
        unet = cast(UNet2DConditionModel, UNet2DConditionModel.from_config(config))
    load_weights(unet, file, unet_keys(unet, UNET_PREFIX), dtype, name)
    return unet


def _build_vae(
    file: safe_open, shapes: Shapes, prefix: str, kind: str, resolution: int, dtype: torch.dtype, name: str
) -> AutoencoderKL:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    with torch.device("meta"):
        vae = cast(AutoencoderKL, AutoencoderKL.from_config(vae_config(shapes, kind, resolution)))
    load_weights(vae, file, vae_keys(vae, prefix), vae_dtype(kind, vae.config, dtype), name)
    return vae


def _build_encoders(
    file: safe_open, shapes: Shapes, kind: str, dtype: torch.dtype, name: str
) -> dict[str, tuple[PreTrainedTokenizerBase, CLIPTextModel]]:
    """Return the tokenizer and text model of each key."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    def build(model: type, prefix: str) -> CLIPTextModel:
        is_clip = prefix in (*_CLIP_PREFIXES, _CLIP_L_PREFIX)
        encoder_shapes = with_prefix_removed(shapes, prefix)
        config = clip_config(encoder_shapes) if is_clip else open_clip_config(encoder_shapes, kind == "sdxl")
        return _build_encoder(file, model, config, clip_keys if is_clip else open_clip_keys, prefix, dtype, name)

    if kind == "sdxl":
        return {
            "clip_l": (clip_tokenizer(), build(CLIPTextModel, _CLIP_L_PREFIX)),
            "clip_g": (clip_tokenizer("!"), build(CLIPTextModelWithProjection, _CLIP_G_PREFIX)),
        }
    prefixes = _CLIP_PREFIXES if kind == "sd1" else _OPEN_CLIP_PREFIXES
    first_key = "embeddings.token_embedding.weight" if kind == "sd1" else "token_embedding.weight"
    prefix = next((candidate for candidate in prefixes if candidate + first_key in shapes), prefixes[0])
    return {"clip_l": (clip_tokenizer(END if kind == "sd1" else "!"), build(CLIPTextModel, prefix))}


def _build_encoder(
    file: safe_open,
    model: type,
    config: dict[str, Any],
    keys: Callable[[nn.Module, str], dict[str, CheckpointKey]],
    prefix: str,
    dtype: torch.dtype,
    name: str,
) -> CLIPTextModel:
    from transformers import CLIPTextConfig

    if config["vocab_size"] != VOCAB_SIZE:
        raise UserError(
            f"--base {printable(name)} has a vocabulary of {config['vocab_size']:,} tokens; CLIP's tokenizer has "
            f"{VOCAB_SIZE:,}.",
            "Use another copy.",
        )
    with torch.device("meta"):
        text_model = model(CLIPTextConfig(**config))
    load_weights(text_model, file, keys(text_model, prefix), dtype, name)
    return text_model


def clip_tokenizer(pad: str = END) -> CLIPTokenizer:
    """Build a CLIPTokenizer equal to that of SD 1.x, for checkpoints, which come without one.

    `clip/merges.txt.gz` holds the 48,894 byte pairs of openai/CLIP's `bpe_simple_vocab_16e6.txt` that its tokenizer
    uses (MIT licence, see NOTICE); the vocabulary follows from them as in that repository's `simple_tokenizer.py`.
    pad: "!" (id 0) for open_clip's models.
    """
    from transformers import CLIPTokenizer

    packed = (resources.files("sdpersonal.models.loading") / "clip" / "merges.txt.gz").read_bytes()
    merges = [tuple(line.split(" ")) for line in gzip.decompress(packed).decode("utf-8").splitlines()]
    letters = _byte_characters()
    words = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges), START, END]
    vocabulary = {word: number for number, word in enumerate(words)}
    # Pairs are taken as well as lines, which the annotation leaves out.
    return CLIPTokenizer(vocab=vocabulary, merges=cast(Any, merges), pad_token=pad, model_max_length=CONTEXT_LENGTH)


def _byte_characters() -> list[str]:
    """Return a printable character for each byte (Radford et al. 2019, GPT-2): itself, or one from 256 on."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in visible]
    return [*map(chr, visible), *(chr(256 + number) for number in range(len(others)))]
