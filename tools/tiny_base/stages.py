"""The order of work: art, tokenizer, CLIP, autoencoder, UNet, second judge, figures, card."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from . import art, clip, export, tokenizer
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


def run_art(shop):
    art.fetch(shop.work / "art")


def run_tokenizer(shop):
    if not (shop.work / "tokenizer" / "vocab.json").exists():
        tokenizer.train(shop.wide, shop.work / "tokenizer")


def run_clip(shop):
    save = lambda model: export.judge(model, shop.work / "tokenizer", shop.work / "export" / "judge")  # noqa: E731
    p = shop.preset
    clip.train(shop.wide, shop.words, p.clip, shop.work / "clip", shop.device, p.bf16, p.snapshot_minutes, save)


RUN = {"art": run_art, "tokenizer": run_tokenizer, "clip": run_clip}
ORDER = tuple(RUN)


def run(stage, shop):
    """Run one stage by name."""
    RUN[stage](shop)
