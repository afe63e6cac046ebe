"""Write what ships: safetensors in fp16, in the folders where diffusers and transformers look."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

from . import clip

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, SchedulerMixin, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer


def convert_to_fp16(folder: Path) -> None:
    """Every safetensors file of a folder to fp16, in place."""
    for path in Path(folder).rglob("*.safetensors"):
        tensors = {k: v.half() if v.is_floating_point() else v for k, v in load_file(path).items()}
        save_file(tensors, path, metadata={"format": "pt"})


def replace_folder(part: Path, folder: Path) -> None:
    """Put a finished folder in the place of an old one: whoever reads sees the old or the new, never half."""
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def empty_folder(folder: Path) -> Path:
    """An empty folder to write `folder` in."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    return part


def save_clip(model: CLIPModel, words_folder: Path, folder: Path) -> None:
    """The whole CLIP with its tokenizer and picture preparation, as a transformers folder."""
    part = empty_folder(folder)
    model.to(torch.float32).save_pretrained(part)
    convert_to_fp16(part)
    clip.processor().save_pretrained(part)
    for file in words_folder.iterdir():
        shutil.copy(file, part)
    replace_folder(part, folder)


def make_pipeline(
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    words: CLIPTokenizer,
    scheduler: SchedulerMixin,
) -> StableDiffusionPipeline:
    """The parts as the pipeline that users load."""
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=words, unet=unet, scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def save_weights(pipe: StableDiffusionPipeline, words_folder: Path, judge_folder: Path, folder: Path) -> None:
    """The folder that ships: the pipeline in fp16, and the judge beside it."""
    part = empty_folder(folder)
    pipe.save_pretrained(part, safe_serialization=True)
    for file in words_folder.iterdir():
        shutil.copy(file, part / "tokenizer")
    convert_to_fp16(part)
    for _ in range(5):
        try:
            shutil.copytree(judge_folder, part / "judge", dirs_exist_ok=True)
            break
        except (FileNotFoundError, shutil.Error):  # the judge was being replaced by its own, still running training
            time.sleep(1)
    replace_folder(part, folder)
