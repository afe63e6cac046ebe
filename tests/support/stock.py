"""A small library for tests of pages and commands."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from sdpersonal.concepts.concept import Concept
from sdpersonal.concepts.library import Library
from sdpersonal.concepts.thumbnail import make_thumbnail
from sdpersonal.prompts import Token
from support.samples import card, vectors


def small_library(folder: Path) -> Library:
    """<me/duck> in two versions and <you/ink> without a thumbnail, for the built-in base; <me/photo> for another."""
    library = Library(folder)
    red = make_thumbnail(Image.new("RGB", (64, 64), "red"))
    library.add(Concept(Token("me", "duck"), card(), {"clip_l": 0.02 * vectors(0)}, None, red))
    library.add(Concept(Token("me", "duck"), card(), {"clip_l": 0.02 * vectors(1)}, None, red))
    library.add(Concept(Token("you", "ink"), card(kind="style"), {"clip_l": 0.02 * vectors(2)}))
    library.add(Concept(Token("me", "photo"), card(base="sd1"), {"clip_l": 0.02 * vectors(3, width=768)}, None, red))
    return library
