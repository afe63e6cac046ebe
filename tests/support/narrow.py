"""Real architectures of Stable Diffusion with narrow layers and random weights, saved by diffusers itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

KINDS = ("sd1", "sd2", "sd2 v", "sdxl")


def save_photos(folder: Path, count: int) -> Path:
    """A folder with photos of nothing much: for tests in which what is learned is not the question."""
    folder.mkdir(exist_ok=True)
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 255, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).resize((256, 256)).save(folder / f"{i}.png")
    return folder


def save_narrow(kind: str, folder: Path, seed: int = 0) -> Path:
    """A pipeline folder of that kind: UNet blocks as in the real configs, a tenth as wide, text widths as they are."""
    from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
    from diffusers import UNet2DConditionModel as UNet

    torch.manual_seed(seed)
    vae = AutoencoderKL(
        block_out_channels=(16, 16, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=8,
        sample_size=64,
        force_upcast=kind == "sdxl",
    )
    scheduler = DDPMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        steps_offset=1,
        prediction_type="v_prediction" if kind == "sd2 v" else "epsilon",
    )
    common = {"sample_size": 8, "layers_per_block": 1, "norm_num_groups": 16}
    if kind == "sdxl":
        unet = UNet(
            **common,
            block_out_channels=(32, 32, 64),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 1, 2),
            attention_head_dim=(2, 4, 8),
            cross_attention_dim=2048,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=1280 + 6 * 8,
            use_linear_projection=True,
        )
        first, second = _text(768, layers=3), _text(1280, layers=3, projection=1280)
        pipe = StableDiffusionXLPipeline(
            vae=vae,
            text_encoder=first,
            text_encoder_2=second,
            tokenizer=_tokenizer(),
            tokenizer_2=_tokenizer(),
            unet=unet,
            scheduler=scheduler,
        )
    else:
        width = 768 if kind == "sd1" else 1024
        unet = UNet(
            **common,
            block_out_channels=(32, 64),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=width,
            attention_head_dim=8,
            use_linear_projection=kind != "sd1",
        )
        pipe = StableDiffusionPipeline(
            vae=vae,
            text_encoder=_text(width, layers=2),
            tokenizer=_tokenizer(),
            unet=unet,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipe.save_pretrained(folder)
    return folder


def _tokenizer():
    from transformers import CLIPTokenizer

    from sdpersonal.models.loading import built_in_folder

    return CLIPTokenizer.from_pretrained(built_in_folder() / "tokenizer")


def _text(width: int, layers: int, projection: int | None = None):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = _tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        projection_dim=projection or 512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return CLIPTextModelWithProjection(config) if projection else CLIPTextModel(config)
