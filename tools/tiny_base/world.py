"""What the base knows: names, looks, and what is kept out of all training."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from . import art, filters

HERE = Path(__file__).parent
GROUPS = {"Smileys & Emotion", "Animals & Nature", "Food & Drink", "Travel & Places", "Activities", "Objects"}
FACES = {"Smileys & Emotion"}  # only the core's faces: the rest are too like each other at 128 px


def _read_lines(file: str) -> list[str]:
    lines = (line.split("#")[0].strip() for line in (HERE / file).read_text("utf-8").splitlines())
    return [line for line in lines if line]


def kept_out() -> tuple[list[str], list[str]]:
    """(emoji names, looks) that no training may see."""
    lines = _read_lines("kept_out.txt")
    looks = [line.split(" ", 1)[1] for line in lines if line.startswith("look ")]
    return [line for line in lines if not line.startswith("look ")], looks


def core_names() -> dict[str, str]:
    """{emoji name: name in captions} of the small world."""
    pairs = (line.removesuffix(" *").split(" = ") for line in _read_lines("core_names.txt"))
    return {pair[0]: pair[-1].lower() for pair in pairs}


def starred_positions() -> tuple[int, ...]:
    """Positions in the core of the names that are drawn most often where time is short."""
    return tuple(i for i, line in enumerate(_read_lines("core_names.txt")) if line.endswith(" *"))


def wide_names(folder: Path) -> dict[str, str]:
    """{emoji name: name in captions} of the wide world: the core and all else that the three looks share."""
    names = core_names()
    out = set(kept_out()[0])
    dropped = re.compile("|".join(f"(?:{line})" for line in _read_lines("dropped_names.txt")))
    for name, (_, _, group) in art.emoji_table(folder).items():
        if group not in GROUPS - FACES or name in names or name in out or dropped.fullmatch(name):
            continue
        if all(art.draw(folder, look, name, 8) is not None for look in art.LOOKS):
            names[name] = name.lower()
    return names


@dataclass(frozen=True)
class World:
    """Names x looks with their sprites; sprite index = look * len(names) + name.

    Looks that are filters come last, and are those of the first look's sprites.
    """

    emoji: tuple[str, ...]
    names: tuple[str, ...]  # as written in captions
    looks: tuple[str, ...]
    core: int  # the first `core` names are the small world's
    art_folder: Path
    cache: Path
    stars: tuple[int, ...] = ()  # names that a mix with `stars` draws most often

    @cached_property
    def sprites(self) -> np.ndarray:
        """(drawn looks * names, S, S, 4) uint8, premultiplied."""
        drawn = [look for look in self.looks if look not in filters.FILTERS]
        return np.concatenate([art.sprites(self.art_folder, self.cache, look, self.emoji) for look in drawn])

    def index(self, look: int, name: int) -> int:
        """Sprite of a thing in a look; both as numbers."""
        return (0 if self.filter(look) else look) * len(self.names) + name

    def filter(self, look: int) -> str:
        """Name of the filter that a look is; empty for drawn looks."""
        return self.looks[look] if self.looks[look] in filters.FILTERS else ""


def world(work: Path, size: str, looks: Iterable[str]) -> World:
    """The `core` or `wide` world in the given looks; art must have been fetched to work/art."""
    folder, cache = work / "art", work / "sprites"
    names = core_names() if size == "core" else wide_names(folder)
    return World(
        tuple(names), tuple(names.values()), tuple(looks), len(core_names()), folder, cache, starred_positions()
    )


def kept_out_world(work: Path) -> World:
    """The kept-out subjects, in all drawn looks, the kept-out look included."""
    names = kept_out()[0]
    return World(tuple(names), tuple(n.lower() for n in names), art.LOOKS, len(names), work / "art", work / "sprites")
