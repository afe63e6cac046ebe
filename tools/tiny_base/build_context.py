"""The folder of all state, with what the stages take from each other."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPModel, CLIPTokenizer

from . import tokenizer
from . import world as worlds
from .presets import Preset
from .runs import Machine


@dataclass(frozen=True)
class BuildContext:
    """The folder of all state, with what the stages take from each other."""

    work: Path
    preset: Preset
    device: str

    @property
    def machine(self) -> Machine:
        p = self.preset
        return Machine(self.device, p.bf16, p.workers if self.device != "cpu" else 0, p.snapshot_minutes)

    @cached_property
    def wide(self) -> worlds.World:
        """The world that the CLIP, the autoencoder and the second judge see."""
        return worlds.world(self.work, "wide", self.preset.clip_looks)

    @cached_property
    def world(self) -> worlds.World:
        """The world that the UNet learns."""
        return worlds.world(self.work, self.preset.world, self.preset.looks)

    @cached_property
    def words(self) -> CLIPTokenizer:
        return tokenizer.load(self.work / "tokenizer")

    @cached_property
    def clip(self) -> CLIPModel:
        return CLIPModel.from_pretrained(self.judge_folder, dtype=torch.float32).eval()

    @cached_property
    def vae(self) -> AutoencoderKL:
        return AutoencoderKL.from_pretrained(self.work / "autoencoder" / "model").eval().requires_grad_(False)

    @property
    def start_unet(self) -> UNet2DConditionModel | None:
        """The UNet to go on from; None where it starts from nothing."""
        folder = self.work / "start" / "unet"
        return UNet2DConditionModel.from_pretrained(folder, torch_dtype=torch.float32) if folder.exists() else None

    @property
    def judge_folder(self) -> Path:
        return self.work / "export" / "judge"

    @property
    def weights_folder(self) -> Path:
        return self.work / "export" / "weights"
