"""A detector of eyes, trained apart from the model: has a face that was generated both of its eyes?

It learns from composed scenes of faces whose eyes were marked by hand, and of the same faces with one or both eyes
erased, so it cannot infer the eyes from the rest of the face. It is never shipped.

python -m tools.tiny_base.eyes --work build/tiny-base
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from . import captions, judge, presets, render, runs, scenes
from .build_context import BuildContext

# Of the faces that look at the viewer: x of the left eye, x of the right eye and y of both, in percent of the sprite.
# The looks 3d and flat have them in the same places.
FACES = {
    "angry face": (35.5, 64, 53.5),
    "bear": (35.5, 64.5, 46),
    "cat": (35.5, 64, 53.5),
    "cow": (35.5, 64, 44.5),
    "crying face": (32, 67.5, 46),
    "dog": (39.5, 60.5, 37.5),
    "frog": (26.5, 73, 23),
    "hamster": (35.5, 64, 58.5),
    "koala": (28.5, 71, 53.5),
    "lion": (35.5, 64.5, 44.5),
    "monkey": (39.5, 60, 41.5),
    "mouse": (35.5, 64, 65.5),
    "panda": (35.5, 64, 46),
    "penguin": (43.5, 56, 19),
    "pig": (34, 66, 45),
    "polar bear": (35.5, 64, 46),
    "poop": (32, 67.5, 58.5),
    "rabbit": (39.5, 60.5, 58.5),
    "raccoon": (35.5, 64.5, 53),
    "tiger": (35.5, 64, 46.5),
    "wolf": (35.5, 64, 47.5),
}
LOOKS = (0, 1)  # 3d and flat
EYE = (0.075, 0.09)  # half width and half height of what is erased, as a share of the sprite's side
LARGE_EYES = {"angry face": 1.3, "crying face": 1.6, "frog": 1.6, "poop": 1.6}  # times that
ERASED = ((), (0,), (1,), (0, 1))  # which eyes: the variants of every sprite
MAP = 64  # cells a side of the detector's map
PRESENT = 0.5  # an eye is where the map is above this
MIX = scenes.Mix(flip=0.0)


class Detector(nn.Module):
    """Images (B, 3, 128, 128) in -1..1 -> logits of an eye's centre in each of 64 x 64 cells."""

    def __init__(self):
        super().__init__()
        layers = [nn.Conv2d(3, 24, 4, stride=2, padding=1), nn.BatchNorm2d(24), nn.ReLU()]
        for dilation in (1, 2, 4, 1):
            layers += [
                nn.Conv2d(24, 24, 3, padding=dilation, dilation=dilation, bias=False),
                nn.BatchNorm2d(24),
                nn.ReLU(),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(24, 1, 3, padding=1))

    def forward(self, images):
        return self.layers(images)[:, 0]


def erase(sprite, name, eyes):
    """Return a sprite (S, S, 4) without these of its eyes, 0 for the left and 1 for the right one.

    An ellipse over the eye gets the colours between those at its left and right ends.
    """
    sprite, side = sprite.copy(), len(sprite)
    scale = LARGE_EYES.get(name, 1.0)
    half_width, half_height = (max(2, round(extent * scale * side)) for extent in EYE)
    for eye in eyes:
        x, y = (round(FACES[name][axis] / 100 * side) for axis in (eye, 2))
        for dy in range(-half_height, half_height + 1):
            reach = round(half_width * (1 - (dy / (half_height + 1)) ** 2) ** 0.5)
            row, left, right = y + dy, max(0, x - reach), min(side - 1, x + reach)
            if 0 <= row < side and right > left:
                share = np.linspace(0, 1, right - left + 1)[:, None]
                sprite[row, left : right + 1] = np.rint((1 - share) * sprite[row, left] + share * sprite[row, right])
    return sprite


class FaceScenes:
    """Scenes of faces with all, some or none of their eyes, and where these are."""

    def __init__(self, world):
        self.world, self.names = world, [name for name in FACES if name in world.names]
        sprites = [
            erase(world.sprites[world.index(look, world.names.index(name))], name, erased)
            for look in LOOKS
            for name in self.names
            for erased in ERASED
        ]
        self._renderer = render.Renderer(np.stack(sprites))

    def draw(self, seed, index, whole=False):
        """Return scene number `index` of a series, and its eyes (n, 2) in -1..1. whole: no eye is erased."""
        rng = scenes.generator(seed, index)
        look, number = int(rng.integers(len(LOOKS))), int(rng.integers(len(self.names)))
        kind = captions.pick(rng, captions.BACKGROUNDS)
        variant = 0 if whole or rng.random() < 0.5 else int(rng.integers(1, len(ERASED)))
        name = self.names[number]
        position = self.world.names.index(name)
        scene = scenes.single_thing_scene(self.world, LOOKS[look], position, kind, seed, index, MIX)
        thing = scene.things[0]
        sprite = (look * len(self.names) + number) * len(ERASED) + variant
        visible = [eye for eye in (0, 1) if eye not in ERASED[variant]]
        eyes = [_place(thing, FACES[name][eye] / 50 - 1, FACES[name][2] / 50 - 1) for eye in visible]
        return replace(scene, things=(replace(thing, sprite=sprite),)), eyes

    def images(self, drawn):
        """Return the images (B, 3, 128, 128) of scenes, in -1..1."""
        return render.render(self._renderer, drawn)


def _place(thing, u, v):
    """Where the point (u, v) of a sprite is in the image; both in -1..1."""
    cos, sin = np.cos(thing.angle), np.sin(thing.angle)
    return 2 * thing.x + thing.size * (cos * u - sin * v), 2 * thing.y + thing.size * (sin * u + cos * v)


def target_map(eyes):
    """Eyes (n, 2) in -1..1 -> what the detector is to find: 1 in an eye's cell, less in the cells around it."""
    cells = (torch.arange(MAP) + 0.5) / MAP * 2 - 1
    out = torch.zeros(MAP, MAP)
    for x, y in eyes:
        distance = (cells[None] - x) ** 2 + (cells[:, None] - y) ** 2
        out = out.maximum(torch.exp(-distance / (2 * (2 / MAP) ** 2)))
    return out


def train(world, stage, folder, machine):
    """Train to the end (or go on after a kill); -> the Detector."""
    torch.manual_seed(5)
    faces, model = FaceScenes(world), Detector()
    optimizer = torch.optim.AdamW(model.parameters(), lr=stage.lr, weight_decay=0.02)
    run = runs.Run(folder, stage, {"model": model, "optimizer": optimizer})
    for step in run.steps():
        runs.set_lr(optimizer, stage.lr * runs.lr_factor(run.progress, step, fall=0.6))
        drawn = [faces.draw(500, step * stage.batch + i) for i in range(stage.batch)]
        images = judge.augment(faces.images([scene for scene, _ in drawn]))
        target = torch.stack([target_map(eyes) for _, eyes in drawn])
        with runs.autocast(machine):
            logits = model(images)
        loss = F.binary_cross_entropy_with_logits(logits.float(), target, pos_weight=torch.tensor(20.0))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 100 == 0:
            run.log(loss=loss.item())
    return model.eval()


def load(folder):
    """The trained Detector from its newest checkpoint."""
    model = Detector()
    model.load_state_dict(torch.load(folder / "state.pt", weights_only=True)["parts"]["model"])
    return model.eval()


@torch.no_grad()
def count(detector, images):
    """Return how many eyes every image shows, (N,): peaks of the map with nothing higher within 5 cells."""
    chances = torch.cat([detector(some).float().sigmoid() for some in images.split(32)])
    peaks = chances == F.max_pool2d(chances[:, None], 11, 1, 5)[:, 0]
    return (peaks & (chances > PRESENT)).flatten(1).sum(1)


def main():
    parser = argparse.ArgumentParser(description="Print how often the detector counts other scenes' eyes right.")
    parser.add_argument("--work", type=Path, default=Path("build/tiny-base"))
    args = parser.parse_args()
    context = BuildContext(args.work, presets.CPU, "cpu")
    detector, faces = load(args.work / "eyes"), FaceScenes(context.world)
    drawn = [faces.draw(501, i) for i in range(400)]
    counts = count(detector, faces.images([scene for scene, _ in drawn]))
    for eyes in range(3):
        some = counts[torch.tensor([len(truth) == eyes for _, truth in drawn])]
        print(f"{eyes} eyes: counted right in {(some == eyes).float().mean():.0%} of {len(some)}")


if __name__ == "__main__":
    main()
