"""The order of work: art, tokenizer, CLIP, autoencoder, second judge, UNet; then figures and the model card."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from transformers import CLIPModel

from . import art, autoencoder, captions, clip, export, judge, sheets, tokenizer, unet
from . import world as worlds
from .presets import Preset


@dataclass(frozen=True)
class Workshop:
    """The folder of all state, with what the stages take from each other."""

    work: Path
    preset: Preset
    device: str

    @cached_property
    def wide(self):
        """The world that the CLIP, the autoencoder and the second judge see."""
        return worlds.world(self.work, "wide", self.preset.clip_looks)

    @cached_property
    def world(self):
        """The world that the UNet learns."""
        return worlds.world(self.work, self.preset.world, self.preset.looks)

    @cached_property
    def words(self):
        return tokenizer.load(self.work / "tokenizer")

    @cached_property
    def clip(self):
        return CLIPModel.from_pretrained(self.judge_folder, dtype=torch.float32).eval()

    @cached_property
    def vae(self):
        return AutoencoderKL.from_pretrained(self.work / "autoencoder" / "model").eval().requires_grad_(False)

    @property
    def judge_folder(self):
        return self.work / "export" / "judge"

    @property
    def weights_folder(self):
        return self.work / "export" / "weights"


def run_art(shop):
    art.fetch(shop.work / "art")


def run_tokenizer(shop):
    if not (shop.work / "tokenizer" / "vocab.json").exists():
        tokenizer.train(shop.wide, shop.work / "tokenizer")


def run_clip(shop):
    save = lambda model: export.judge(model, shop.work / "tokenizer", shop.judge_folder)  # noqa: E731
    p, folder = shop.preset, shop.work / "clip"
    if not (folder / "done").exists():
        clip.train(shop.wide, shop.words, p.clip, folder, shop.device, p.bf16, p.snapshot_minutes, save)


def run_autoencoder(shop):
    p, folder = shop.preset, shop.work / "autoencoder"
    if not (folder / "model").exists():
        model = autoencoder.train(shop.wide, p.autoencoder, folder, shop.device, p.bf16, p.snapshot_minutes)
        model.cpu().save_pretrained(folder / "model")


def run_second_judge(shop):
    folder = shop.work / "second-judge"
    if not (folder / "done").exists():
        judge.train(shop.world, shop.preset.judge, folder, shop.device, shop.preset.bf16)


def run_unet(shop):
    folder = shop.work / "unet"
    if (folder / "done").exists() and shop.weights_folder.exists():
        return
    tower = clip.text_tower(shop.clip).requires_grad_(False)

    def snapshot(model):
        """What there is so far, as the folder that would ship, and a sheet to look at."""
        model = model.cpu()
        pipe = export.pipeline(model, shop.vae.cpu(), tower.cpu(), shop.words, unet.scheduler())
        export.weights(pipe, shop.work / "tokenizer", shop.judge_folder, shop.weights_folder)
        sample_sheet(pipe, shop.world, shop.work / "look" / "newest.png")
        shop.vae.to(shop.device), tower.to(shop.device)

    unet.train(shop.world, shop.words, tower, shop.vae, shop.preset, folder, shop.device, snapshot)


@torch.no_grad()
def sample_sheet(pipe, world, path, count=24):
    """Pictures of things spread over the world, each look and place in turn -> a PNG."""
    looks = [look for look in world.looks]
    places = list(captions.PLACES)
    prompts = []
    for i in range(count):
        thing = captions.with_article(world.names[i * len(world.names) // count])
        behind = (
            captions.PLACES[places[i % 12]][0] if i % 2 else f"on a {list(captions.COLOURS)[i // 2 % 12]} background"
        )
        prompts.append(f"{captions.LOOKS[looks[i % len(looks)]][0].format(thing)} {behind}")
    generator = [torch.Generator().manual_seed(i) for i in range(count)]
    pictures = pipe(
        prompts, num_inference_steps=20, guidance_scale=unet.GUIDANCE, generator=generator, output_type="pt"
    ).images
    sheets.sheet(pictures * 2 - 1, prompts, path)


RUN = {
    "art": run_art,
    "tokenizer": run_tokenizer,
    "clip": run_clip,
    "autoencoder": run_autoencoder,
    "second-judge": run_second_judge,
    "unet": run_unet,
}
ORDER = tuple(RUN)


def run(stage, shop):
    """Run one stage by name."""
    RUN[stage](shop)
