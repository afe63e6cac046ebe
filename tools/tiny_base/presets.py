"""What is trained, how large, how long: a table for a CPU with two cores, one for a CUDA card, one for a trial."""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from sdpersonal.models.loading import built_in_folder

from .scenes import Mix


@dataclass(frozen=True)
class Stage:
    """How long one part trains. It ends at `steps` or `minutes`, whichever comes first."""

    steps: int
    minutes: float
    batch: int
    lr: float


@dataclass(frozen=True)
class Preset:
    """All that differs between machines."""

    world: str  # "core" or "wide": what the UNet learns; the CLIP and the autoencoder always see the wide world
    looks: tuple[str, ...]
    clip: Stage
    clip_images: Stage  # its image tower alone, with the text tower as it is
    autoencoder: Stage
    unet: Stage
    judge: Stage
    pool: int  # captioned latents kept in memory for the UNet
    pool_start: int  # so many before its first step
    refill: int  # so many new ones
    refill_every: int  # every so many steps
    snapshot_minutes: float  # how often a checkpoint and an EMA export are written
    bf16: bool = True
    workers: int = 0  # processes that draw scenes ahead
    prompts: int = 200  # how many the figures are measured on
    mix: Mix = field(default_factory=Mix)
    clip_looks: tuple[str, ...] = ("3d", "flat", "cartoon")
    eyes: Stage = Stage(steps=900, minutes=12, batch=32, lr=2e-3)
    start: Path | None = None  # folder of a base to go on from: only the UNet learns, all else is taken as it is


CPU = Preset(
    world="core",
    looks=("3d", "flat"),
    clip=Stage(steps=6000, minutes=24, batch=64, lr=1.2e-3),
    clip_images=Stage(steps=3000, minutes=60, batch=64, lr=1e-3),
    autoencoder=Stage(steps=6000, minutes=24, batch=12, lr=6e-4),
    unet=Stage(steps=40_000, minutes=95, batch=48, lr=1.5e-3),
    judge=Stage(steps=1500, minutes=8, batch=48, lr=2e-3),
    pool=24_000,
    pool_start=3000,
    refill=32,
    refill_every=10,
    snapshot_minutes=4,
    # views of each sprite are what lacks: no mirror images, few scenes of many things, plain backgrounds,
    # and some of the time for a hundred of the names in one look
    mix=Mix(
        stars=0.3,
        flip=0.0,
        pairs=0.04,
        counts=0.04,
        sizes=0.06,
        sides=0.02,
        paint=0.03,
        places=0.3,
        patterns=0.06,
        wander=0.025,
        tilt=0.05,
    ),
)
CUDA = Preset(
    world="wide",
    looks=("3d", "flat", "cartoon"),
    clip=Stage(steps=3000, minutes=1.5, batch=512, lr=1e-3),
    clip_images=Stage(steps=500, minutes=0.3, batch=512, lr=5e-4),
    autoencoder=Stage(steps=6000, minutes=2, batch=64, lr=8e-4),
    unet=Stage(steps=24_000, minutes=4.5, batch=256, lr=1e-3),
    judge=Stage(steps=1500, minutes=0.4, batch=256, lr=2e-3),
    pool=100_000,
    pool_start=50_000,
    refill=256,
    refill_every=4,
    snapshot_minutes=1,
    workers=max(1, min(14, (os.cpu_count() or 2) - 2)),
)
# More scenes of several things and more looks, for the UNet that ships. Most scenes are still of what it knows.
CONTINUE = replace(
    CPU,
    start=built_in_folder(),
    refill_every=5,
    looks=("3d", "flat", "cartoon", "watercolour", "neon", "poster"),
    unet=Stage(steps=40_000, minutes=105, batch=96, lr=1e-3),
    judge=Stage(steps=2500, minutes=16, batch=48, lr=2e-3),
    mix=replace(
        CPU.mix,
        stars=0.2,
        look_shares=(0.25, 0.25, 0.17, 0.11, 0.11, 0.11),
        pairs=0.3,
        pair_sizes=0.2,
        trios=0.04,
        sides=0.04,
        places=0.35,
    ),
)
_SHORT = Stage(steps=3, minutes=1, batch=4, lr=1e-3)
TRIAL = replace(
    CPU,
    clip=_SHORT,
    clip_images=_SHORT,
    autoencoder=_SHORT,
    unet=_SHORT,
    judge=_SHORT,
    eyes=_SHORT,
    pool=32,
    refill=16,
    pool_start=32,
    prompts=6,
)
PRESETS = {"cpu": CPU, "cuda": CUDA, "continue": CONTINUE, "trial": TRIAL}


def choose(name):
    """A preset by name; "auto" takes the card where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return name, PRESETS[name]


def with_minutes(preset, stage, minutes):
    """The preset with more or less time for one of its trainings; one that was stopped can so be drawn out."""
    part = {"second-judge": "judge"}.get(stage, stage.replace("-", "_"))
    return replace(preset, **{part: replace(getattr(preset, part), minutes=minutes)})
