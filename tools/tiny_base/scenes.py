"""A scene: which things, where, how large, before what. Drawn from (seed, index) alone; pixels come later.

Lengths are in units of the picture's side, (0, 0) is its middle, y points down, angles in radians.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from . import captions, filters
from .captions import BACKGROUNDS, COLOURS, pick
from .world import World


@dataclass(frozen=True)
class Mix:
    """How often each kind of scene is drawn."""

    places: float = 0.40  # the rest of the backgrounds is plain, but for
    patterns: float = 0.12
    pairs: float = 0.08  # two different things
    counts: float = 0.06  # two or three of one
    sizes: float = 0.10  # one thing, small or large, and said so
    sides: float = 0.03
    paint: float = 0.05  # one thing in a single colour: "a blue cat"
    flip: float = 0.5
    wander: float = 0.04  # sigma of the place of a single thing
    tilt: float = 0.08  # sigma of its angle
    core: float = 0.0  # this share of the things is drawn from the small world's names
    stars: float = 0.0  # this share is of the world's starred names, in its first look
    first_look: float = 0.0  # this share is in the first look, the rest in any
    look_shares: tuple[float, ...] = ()  # of the rest, how much is in each of the world's looks; () for even shares
    trios: float = 0.0  # three different things
    pair_kinds: tuple[str, ...] = tuple(captions.PAIRS)
    pair_sizes: float = 0.0  # this share of the pairs has a small or a large thing, and says so


@dataclass(frozen=True)
class Thing:
    """One sprite as it stands in a scene."""

    sprite: int
    x: float
    y: float
    size: float
    angle: float = 0.0
    flip: bool = False
    paint: tuple | None = None  # RGB 0..1


@dataclass(frozen=True)
class Background:
    """What is behind: a kind, up to two colours (RGB 0..1) and four numbers that places and patterns use freely."""

    kind: str
    first: tuple
    second: tuple
    knobs: tuple  # 4 numbers in 0..1
    words: tuple = ()  # names of the colours


@dataclass(frozen=True)
class Scene:
    """A picture that is not drawn yet, with its caption and what judges ask about it."""

    things: tuple[Thing, ...]
    background: Background
    caption: str
    name: int
    look: int
    single: bool  # one thing in its own colours: fit for "what is it?"
    filter: str = ""  # of filters.FILTERS: its look, where no artist drew it
    others: tuple[int, ...] = ()  # names of its second and third thing, where they are not the first's


MAX_THINGS = 3
Packed = dict[str, np.ndarray]  # what `pack` returns
TRIANGLE = ((-0.25, -0.2), (0.25, -0.2), (0, 0.24))


def generator(seed: int, index: int) -> np.random.Generator:
    """Chance of one scene: a function of (seed, index)."""
    return np.random.Generator(np.random.Philox(key=[seed, index]))


def _colour(rng: np.random.Generator, word: str) -> tuple[float, ...]:
    rgb = (np.array(COLOURS[word]) + rng.normal(0, 4, 3)) / 255
    return tuple(np.clip(rgb, 0, 1).tolist())


def draw_background(rng: np.random.Generator, mix: Mix) -> Background:
    """A background with its colours."""
    u = rng.random()
    if u < mix.places:
        kind = pick(rng, tuple(captions.PLACES))
    elif u < mix.places + mix.patterns:
        kind = pick(rng, tuple(captions.PATTERNS))
    else:
        kind = "plain"
    words = rng.choice(list(COLOURS), 2, replace=False)
    first, second = (_colour(rng, word) for word in words)
    return Background(kind, first, second, tuple(rng.random(4).tolist()), tuple(words.tolist()))


def _thing(rng: np.random.Generator, mix: Mix, sprite: int, x: float, y: float, size: float) -> Thing:
    angle = rng.normal(0, mix.tilt) if rng.random() < 0.5 else 0.0
    return Thing(sprite, x, y, size, angle, bool(rng.random() < mix.flip))


def draw_scene(world: World, seed: int, index: int, mix: Mix, background: Background | None = None) -> Scene:
    """The scene number `index` of the endless series `seed`; before the given background, or one of its own."""
    rng = generator(seed, index)
    look, name = _draw_look(rng, world, mix), _draw_name(rng, world, mix)
    if mix.stars and rng.random() < mix.stars:
        look, name = 0, pick(rng, world.stars)
    sprite, noun = world.index(look, name), world.names[name]
    background = background or draw_background(rng, mix)
    behind = captions.background_words(rng, background.kind, background.words)
    wander = lambda: float(np.clip(rng.normal(0, mix.wander), -0.12, 0.12))  # noqa: E731
    single, others = True, ()
    u = rng.random() - mix.pairs - mix.trios
    if u < 0:
        others = _draw_others(rng, world, mix, name, 1 if u < -mix.trios else 2)
        sprites = [sprite, *(world.index(look, other) for other in others)]
        arrange = _pair if len(others) == 1 else _trio
        things, words = arrange(rng, mix, wander, sprites, [noun, *(world.names[other] for other in others)])
        single = False
    elif (u := u - mix.counts) < 0:
        things, words = _several(rng, mix, wander, sprite, noun)
    else:
        size, x, adjective, side = rng.uniform(0.64, 0.8), wander(), "", "{}"
        if (u := u - mix.sizes) < 0:
            kind = pick(rng, ("small", "large"))
            size = rng.uniform(0.32, 0.42) if kind == "small" else rng.uniform(0.9, 1.0)
            adjective = pick(rng, captions.SIZES[kind]) + " "
        elif (u := u - mix.sides) < 0:
            kind = pick(rng, ("left", "right"))
            size, x, side = (
                rng.uniform(0.4, 0.5),
                (-0.24 if kind == "left" else 0.24) + wander() / 2,
                captions.SIDES[kind],
            )
        thing = _thing(rng, mix, sprite, x, wander(), size)
        if (u := u - mix.paint) < 0 and not adjective and side == "{}":
            word = pick(rng, tuple(COLOURS)[:12])
            thing, adjective, single = replace(thing, paint=_colour(rng, word)), word + " ", False
        things, words = (thing,), side.format(captions.with_article(adjective + noun))
    caption = captions.sentence(rng, world.looks[look], words, behind)
    return Scene(things, background, caption, name, look, single, world.filter(look), others)


def _draw_look(rng: np.random.Generator, world: World, mix: Mix) -> int:
    if mix.first_look and rng.random() < mix.first_look:
        return 0
    return int(rng.choice(len(world.looks), p=mix.look_shares) if mix.look_shares else rng.integers(len(world.looks)))


def _draw_name(rng: np.random.Generator, world: World, mix: Mix) -> int:
    return int(rng.integers(world.core if rng.random() < mix.core else len(world.names)))


def _draw_others(rng: np.random.Generator, world: World, mix: Mix, name: int, count: int) -> tuple[int, ...]:
    """Names of other things beside `name`, all different."""
    others = []
    while len(others) < count:
        starred = mix.stars and rng.random() < mix.stars
        other = pick(rng, world.stars) if starred else _draw_name(rng, world, mix)
        if other not in (name, *others) or len(world.names) <= count:
            others.append(other)
    return tuple(others)


def _pair(
    rng: np.random.Generator, mix: Mix, wander: Callable[[], float], sprites: Sequence[int], nouns: Sequence[str]
) -> tuple[tuple[Thing, ...], str]:
    """Two things that touch or nearly do: side by side on one ground, or one above the other; and their words."""
    kind = pick(rng, mix.pair_kinds)
    sizes, words = [rng.uniform(0.42, 0.5) for _ in nouns], list(nouns)
    if rng.random() < mix.pair_sizes:
        which, size = int(rng.integers(2)), pick(rng, ("small", "large"))
        ranges = ((0.26, 0.32), (0.5, 0.58)) if size == "small" else ((0.56, 0.64), (0.3, 0.36))
        sizes[which], sizes[1 - which] = (rng.uniform(*limits) for limits in ranges)
        words[which] = f"{pick(rng, captions.SIZES[size])} {nouns[which]}"
    along = np.array([-sizes[1], sizes[0]]) / 2  # from the middle of both
    if kind in ("right", "below"):
        along = -along
    if kind in ("above", "below"):
        spots = [(0.0, float(y)) for y in along]
    else:
        ground = max(sizes) / 2
        spots = [(float(x), ground - size / 2) for x, size in zip(along, sizes, strict=True)]
    things = tuple(
        _thing(rng, mix, sprite, x + wander() / 2, y + wander() / 2, size)
        for sprite, (x, y), size in zip(sprites, spots, sizes, strict=True)
    )
    return things, pick(rng, captions.PAIRS[kind]).format(*map(captions.with_article, words))


def _trio(
    rng: np.random.Generator, mix: Mix, wander: Callable[[], float], sprites: Sequence[int], nouns: Sequence[str]
) -> tuple[tuple[Thing, ...], str]:
    """Three things, two above one; and their words."""
    size = rng.uniform(0.4, 0.46)
    things = tuple(
        _thing(rng, mix, sprite, x + wander() / 2, y + wander() / 2, size)
        for sprite, (x, y) in zip(sprites, TRIANGLE, strict=True)
    )
    return things, captions.TRIO.format(*map(captions.with_article, nouns))


def _several(
    rng: np.random.Generator, mix: Mix, wander: Callable[[], float], sprite: int, noun: str
) -> tuple[tuple[Thing, ...], str]:
    count = int(rng.integers(2, 4))
    spots = ((-0.25, 0), (0.25, 0)) if count == 2 else TRIANGLE
    size = rng.uniform(0.4, 0.46)
    things = tuple(_thing(rng, mix, sprite, x + wander() / 2, y + wander() / 2, size) for x, y in spots)
    return things, f"{captions.COUNTS[count]} {captions.plural(noun)}"


def single_thing_scene(
    world: World,
    look: int,
    name: int,
    background_kind: str,
    seed: int,
    index: int,
    mix: Mix | None = None,
    colour: str | None = None,
) -> Scene:
    """One thing of a given name and look before a given background: for judges, photos and sheets."""
    rng = generator(seed, index)
    mix = mix or Mix()
    background = replace(draw_background(rng, mix), kind=background_kind)
    if colour:
        background = replace(background, first=_colour(rng, colour), words=(colour, background.words[1]))
    size, x, y = rng.uniform(0.64, 0.8), rng.normal(0, mix.wander), rng.normal(0, mix.wander)
    thing = _thing(rng, mix, world.index(look, name), float(x), float(y), float(size))
    behind = captions.background_words(rng, background_kind, background.words)
    form = captions.LOOKS.get(world.looks[look], captions.LOOKS[None])[0]
    words = form.format(captions.with_article(world.names[name]))
    return Scene((thing,), background, f"{words} {behind}", name, look, True, world.filter(look))


def pack(scenes: Sequence[Scene]) -> Packed:
    """Scenes -> plain arrays for the renderer, so that worker processes can draw and the device can paint."""
    count = len(scenes)
    things = np.zeros(
        (count, MAX_THINGS, 11), np.float32
    )  # sprite, x, y, size, angle, flip, has paint, paint RGB, there
    backs = np.zeros((count, 10), np.float32)  # first RGB, second RGB, 4 knobs
    kinds, looks = np.zeros(count, np.int64), np.zeros(count, np.int64)
    for i, scene in enumerate(scenes):
        for j, t in enumerate(scene.things):
            things[i, j] = (
                t.sprite,
                t.x,
                t.y,
                t.size,
                t.angle,
                t.flip,
                t.paint is not None,
                *(t.paint or (0, 0, 0)),
                1,
            )
        b = scene.background
        backs[i] = (*b.first, *b.second, *b.knobs)
        kinds[i] = BACKGROUNDS.index(b.kind)
        looks[i] = filters.number(scene.filter)
    return {"things": things, "backs": backs, "kinds": kinds, "filters": looks}
