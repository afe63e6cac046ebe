"""Batches of scenes for a training, drawn ahead in worker processes where the device is faster than one of them."""

from __future__ import annotations

from collections.abc import Iterator

from torch.utils.data import DataLoader, Dataset

from . import scenes
from .world import World

Batch = tuple[list[scenes.Scene], scenes.Packed]


class SceneBatches(Dataset):
    """Batch number `step` of the endless series `seed`: a function of the step, whoever draws it.

    With `duels`, every second batch stands before one background, so that only the things tell its pictures apart.
    """

    def __init__(self, world: World, seed: int, mix: scenes.Mix, count: int, duels: bool = False):
        self.world, self.seed, self.mix, self.count, self.duels = world, seed, mix, count, duels

    def __getitem__(self, step: int) -> Batch:
        start = step * self.count
        shared = None
        if self.duels and step % 2:
            shared = scenes.draw_background(scenes.generator(self.seed, start), self.mix)
        drawn = [scenes.draw_scene(self.world, self.seed, start + i, self.mix, shared) for i in range(self.count)]
        return drawn, scenes.pack(drawn)


def iterate_batches(batches: SceneBatches, first: int = 0, workers: int = 0) -> Iterator[Batch]:
    """Batches first, first + 1, ... as (scenes, packed scenes)."""
    endless = range(first, 2**40)
    return iter(DataLoader(batches, sampler=endless, batch_size=None, num_workers=workers, collate_fn=lambda b: b))
