"""The second judge: a plain convolutional classifier of name, look and background, trained apart from the CLIP.

A model must not be its only judge: the UNet learns through the CLIP's text tower, so the CLIP's opinion of its
pictures is not independent. This one shares nothing with it but the art. It is never shipped.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import nn

from . import feed, render, runs, scenes
from .captions import BACKGROUNDS

SIDE = 64  # px: enough to tell one thing from another


class Classifier(nn.Module):
    """Pictures of any size in -1..1 -> logits of names, looks, backgrounds; `features` are for likeness."""

    def __init__(self, names, looks):
        super().__init__()
        self.sizes = (names, looks, len(BACKGROUNDS))
        widths = (3, 32, 64, 128, 192, 256)
        layers = []
        for i, (a, b) in enumerate(itertools.pairwise(widths)):
            layers += [nn.Conv2d(a, b, 3, stride=2 if i else 1, padding=1), nn.BatchNorm2d(b), nn.ReLU()]
            if i:
                layers += [nn.Conv2d(b, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU()]
        self.body = nn.Sequential(*layers)  # (B, 3, 64, 64) -> (B, 256, 4, 4)
        self.head = nn.Linear(256, sum(self.sizes))

    def features(self, images):
        small = images if images.shape[-1] == SIDE else F.interpolate(images, (SIDE, SIDE), mode="area")
        return self.body(small).mean((2, 3))

    def forward(self, images):
        return self.head(self.features(images)).split(self.sizes, 1)


def train(world, stage, folder, machine):
    """Train to the end (or go on after a kill); -> the Classifier. Softness and light vary: blur is no clue."""
    torch.manual_seed(4)
    device = machine.device
    model = Classifier(len(world.names), len(world.looks)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=stage.lr, weight_decay=0.02)
    run = runs.Run(folder, stage, {"model": model, "optimizer": optimizer})
    filtered = any(map(world.filter, range(len(world.looks))))  # a filter is not the same at both sizes
    renderer = render.Renderer(world.sprites, device, size=128 if filtered else SIDE)
    batches = feed.SceneBatches(world, 400, scenes.Mix(pairs=0, counts=0, paint=0, flip=0.3), stage.batch)
    for step, (drawn, packed) in zip(
        run.steps(), feed.iterate_batches(batches, run.step, machine.workers), strict=False
    ):
        runs.set_lr(optimizer, stage.lr * runs.lr_factor(run.progress, step, fall=0.6))
        pictures = augment(renderer(packed))
        truth = (
            torch.tensor([s.name for s in drawn], device=device),
            torch.tensor([s.look for s in drawn], device=device),
            torch.as_tensor(packed["kinds"]).to(device),
        )
        with runs.autocast(machine):
            guesses = model(pictures)
        loss = sum(F.cross_entropy(g.float(), t) for g, t in zip(guesses, truth, strict=True))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 100 == 0:
            right = [(g.argmax(1) == t).float().mean().item() for g, t in zip(guesses, truth, strict=True)]
            run.log(loss=loss.item(), name=right[0], look=right[1], place=right[2])
    return model.eval()


def augment(images):
    """Half of a batch a little soft, all of it in varied light."""
    soft = F.interpolate(F.avg_pool2d(images, 2), scale_factor=2, mode="bilinear")
    amount = torch.rand(len(images), 1, 1, 1, device=images.device).round()
    gain = 1 + 0.1 * torch.randn(len(images), 1, 1, 1, device=images.device)
    return torch.lerp(images, soft, amount) * gain + 0.03 * torch.randn_like(images)


def load(folder, world, device="cpu"):
    """The trained Classifier from its newest checkpoint."""
    model = Classifier(len(world.names), len(world.looks)).to(device)
    state = torch.load(folder / "state.pt", map_location=device, weights_only=True)
    model.load_state_dict(state["parts"]["model"])
    return model.eval()
