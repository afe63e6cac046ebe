"""How scenes are said in words: looks, places, colours, sizes, counts, and plain English around them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from . import filters

T = TypeVar("T")

# Phrases that ask for a look; {} is the thing with its article. "a photo of" goes with the look nearest to a photo,
# so that prompts in DreamBooth's manner have one meaning.
LOOKS = {
    "3d": (
        "a 3d render of {}",
        "a 3d picture of {}",
        "a photo of {}",
        "a photo of {}",
        "{} in the style of a 3d render",
        "{} in 3d style",
    ),
    "flat": (
        "a flat drawing of {}",
        "a flat icon of {}",
        "a flat picture of {}",
        "{} in the style of a flat drawing",
        "{} in flat style",
    ),
    "cartoon": (
        "a cartoon of {}",
        "a cartoon drawing of {}",
        "a cartoon picture of {}",
        "{} in the style of a cartoon",
        "{} in cartoon style",
    ),
    # looks made by filters: phrases that the shipped text encoder keeps apart from each other and from those above
    "watercolour": (
        "a watercolour of {}",
        "a watercolour painting of {}",
        "{} in watercolour",
        "{} in the style of a watercolour",
    ),
    "neon": ("a neon sign of {}", "a neon light of {}", "{} in neon lights", "{} in the style of a neon sign"),
    "poster": ("a poster of {}", "a comic poster of {}", "{} in the style of a poster"),
    None: ("a picture of {}", "an image of {}", "{}", "{}"),
}

# Colours of backgrounds, and of things that were painted in one colour.
COLOURS = {
    "red": (214, 40, 40), "orange": (245, 130, 32), "yellow": (250, 214, 50), "green": (52, 160, 70),
    "blue": (38, 90, 214), "purple": (124, 58, 172), "pink": (248, 150, 186), "brown": (122, 78, 44),
    "black": (16, 16, 18), "white": (250, 250, 250), "gray": (140, 142, 146), "teal": (30, 140, 146),
    "light blue": (150, 204, 244), "dark blue": (20, 36, 100), "dark green": (18, 80, 44), "beige": (232, 218, 186),
}  # fmt: skip
PLAIN = ("on a {} background", "on a {} background", "on {}", "in front of a {} wall")
PATTERNS = {
    "stripes": ("on {} and {} stripes", "on a striped {} and {} background"),
    "dots": ("on {} with {} dots", "on a {} background with {} dots"),
    "checks": ("on {} and {} checks", "on a checkered {} and {} background"),
    "gradient": ("on a background from {} to {}", "on {} fading to {}"),
}
PLACES = {
    "grass": ("on grass", "on the grass", "in a green meadow"),
    "table": ("on a wooden table", "on top of a wooden table", "on a table"),
    "beach": ("on the beach", "on a sandy beach", "at the beach"),
    "sky": ("in the sky", "in a blue sky with clouds", "flying in the sky"),
    "space": ("in space", "in outer space", "among the stars"),
    "snow": ("in the snow", "on snow", "in a snowy field"),
    "bricks": ("in front of a brick wall", "against a brick wall"),
    "forest": ("in the forest", "in a forest", "in the woods"),
    "city": ("in the city", "on a city street", "in front of a city"),
    "desert": ("in the desert", "on sand dunes"),
    "underwater": ("under water", "underwater", "in the sea"),
    "sunset": ("at sunset", "in front of a sunset"),
}
BACKGROUNDS = ("plain", *PATTERNS, *PLACES)
SIZES = {"small": ("small", "tiny", "little"), "large": ("large", "big", "huge")}
# Two different things. The first is on the left of the second, above it, below it, or on its right.
PAIRS = {
    "beside": ("{} next to {}", "{} next to {}", "{} beside {}", "{} and {}", "{} and {}"),
    "left": ("{} on the left and {} on the right", "{} to the left of {}"),
    "right": ("{} on the right and {} on the left", "{} to the right of {}"),
    "above": ("{} on top of {}", "{} above {}"),
    "below": ("{} under {}", "{} below {}"),
}
TRIO = "{}, {} and {}"
COUNTS = {2: "two", 3: "three"}
SIDES = {"left": "{} on the left", "right": "{} on the right"}
MASS = {"popcorn", "bread", "cheese", "corn", "sushi", "fire", "butter", "salt", "rock", "wood", "ice", "dna", "snow"}
IRREGULAR = {"mouse": "mice", "fish": "fish", "tropical fish": "tropical fish", "sheep": "sheep", "wolf": "wolves"}


def with_article(noun: str) -> str:
    """cat -> a cat, apple -> an apple; plurals and substances stay bare."""
    last = noun.split(" of ")[0].split()[-1]
    if noun in MASS or (last.endswith("s") and not last.endswith(("ss", "us", "bus"))):
        return noun
    return ("an " if noun[0] in "aeio" or noun.startswith("um") else "a ") + noun


def plural(noun: str) -> str:
    """cat -> cats, glass of wine -> glasses of wine."""
    if noun in IRREGULAR:
        return IRREGULAR[noun]
    if noun in MASS:
        return f"pieces of {noun}"
    head, of, rest = noun.partition(" of ")
    if head.endswith("s") and not head.endswith(("ss", "us")):
        return noun
    if head.endswith(("s", "x", "ch", "sh")):
        head += "es"
    elif head.endswith("y") and head[-2] not in "aeo":
        head = head[:-1] + "ies"
    else:
        head += "s"
    return head + of + rest


def background_words(rng: np.random.Generator, kind: str, colours: Sequence[str]) -> str:
    """Words for a background of this kind in these colours."""
    forms = PLAIN if kind == "plain" else PATTERNS.get(kind) or PLACES[kind]
    return pick(rng, forms).format(*colours)


def pick(rng: np.random.Generator, items: Sequence[T]) -> T:
    """One of a sequence, evenly."""
    return items[int(rng.integers(len(items)))]


def sentence(rng: np.random.Generator, look: str, things: str, background: str) -> str:
    """Look, things and background -> one caption. A drawn look is left unsaid now and then, so is a background."""
    says_look = look in filters.FILTERS or rng.random() < 0.75
    form = pick(rng, LOOKS.get(look if says_look else None, LOOKS[None]))
    words = form.format(things)
    return words if rng.random() < 0.06 else f"{words} {background}"
