"""'Photos' of things and of a look that the base has never seen: what personalisation is tried on.

    python -m tools.tiny_base.photos --subject "teddy bear" --count 5 --seed 1 --out examples/photos/teddy-bear
    python -m tools.tiny_base.photos --style cyanotype --count 5 --out examples/photos/cyanotype

Scene, size, angle, light and a slight blur vary from photo to photo, as they do in a set that somebody takes
of a thing at home.
"""

import argparse
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from . import art, render, scenes, sheets, world

PHOTO_SIDE = 512  # px
# What stands behind, in this order; neighbours differ, so a set of five never stands before one wall.
BACKGROUNDS = (
    "table",
    "plain",
    "grass",
    "bricks",
    "beach",
    "snow",
    "city",
    "plain",
    "forest",
    "gradient",
    "desert",
    "sunset",
)
# What a style is shown on: none of them kept out, all unlike each other.
STYLE_THINGS = ("sailboat", "cat face", "house", "sunflower", "rocket", "bicycle", "penguin", "castle")


def sample_photos(work, subject, count, seed=0, look="3d", size=PHOTO_SIDE, behind=BACKGROUNDS):
    """`count` photos of one emoji in one look -> PIL pictures. A seed means a set; no two seeds share a photo."""
    return [_photo(work, subject, look, seed, i, size, behind) for i in range(count)]


def sample_style_photos(work, count, seed=0, style="cyanotype", size=PHOTO_SIDE):
    """`count` photos of different everyday things, all in one style that no training has seen: a look of the art, or
    a filter over photos."""
    look = style if style in art.LOOKS else "3d"
    plain = [
        _photo(work, STYLE_THINGS[i % len(STYLE_THINGS)], look, 1000 + seed, i, size, BACKGROUNDS) for i in range(count)
    ]
    return plain if look == style else [STYLES[style](photo, seed * 100 + i) for i, photo in enumerate(plain)]


def _photo(work, subject, look, seed, index, size, behind):
    sprite = art.draw(work / "art", look, subject, 256)
    if sprite is None:
        raise art.ArtError(f"There is no {subject!r} in the look {look!r}.")
    only = world.World((subject,), (subject,), (look,), 1, work / "art", work / "sprites")
    kind = behind[(index + 5 * seed) % len(behind)]
    scene = scenes.single_thing_scene(only, 0, 0, kind, 5_000 + seed, index)
    rng = scenes.generator(6_000 + seed, index)
    thing = replace(
        scene.things[0],
        size=float(rng.uniform(0.58, 0.86)), angle=float(rng.normal(0, 0.12)), flip=bool(rng.random() < 0.4),
        x=float(rng.uniform(-0.07, 0.07)), y=float(rng.uniform(-0.03, 0.07)),
    )  # fmt: skip
    renderer = render.Renderer(sprite[None], size=size)
    picture = render.render(renderer, [replace(scene, things=(thing,))])[0]
    return sheets.to_image(_simulate_camera(picture, rng))


def _simulate_camera(image, rng):
    """What a camera adds: light from one side, a warm or cold cast, softness, a little grain; (3, H, W) in -1..1."""
    pixels = (image.numpy() + 1) / 2
    side = pixels.shape[1]
    angle, depth = rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.16)
    line = np.linspace(-1, 1, side)
    light = rng.uniform(0.9, 1.06) * (1 + depth * (np.cos(angle) * line[None, :] + np.sin(angle) * line[:, None]) / 1.4)
    warmth = rng.normal(0, 0.025)
    cast = np.array([1 + warmth, 1, 1 - warmth])[:, None, None]
    pixels = ndimage.gaussian_filter(pixels * light * cast, (0, *[rng.uniform(0.4, 1.3) * side / 512] * 2))
    pixels += rng.normal(0, 0.008, pixels.shape)
    return torch.from_numpy(pixels.clip(0, 1) * 2 - 1)


def cyanotype(photo, seed=0):
    """A photo -> a cyanotype print: Prussian blue on white paper, with the paper's grain and brushed edges."""
    rng = np.random.default_rng(seed)
    gray = np.asarray(photo.convert("L"), np.float32) / 255
    low, high = np.quantile(gray, [0.02, 0.98])
    tone = np.clip((gray - low) / max(high - low, 0.2), 0, 1)
    outline = np.hypot(
        ndimage.sobel(ndimage.gaussian_filter(gray, 1.5), 0), ndimage.sobel(ndimage.gaussian_filter(gray, 1.5), 1)
    )
    tone = tone * (1 - 0.5 * np.clip(outline * 1.5, 0, 1))
    paper = ndimage.gaussian_filter(rng.normal(0, 1, gray.shape), 1.2) * 0.05
    tone = np.clip(tone * tone * (3 - 2 * tone) + paper, 0, 1)[..., None]
    ink, white = np.array([12, 42, 104], np.float32), np.array([238, 243, 240], np.float32)
    return Image.fromarray((ink + (white - ink) * tone).round().astype(np.uint8))


def pencil(photo, seed=0):
    """A photo -> a pencil drawing: outlines and soft hatching in graphite on white paper."""
    rng = np.random.default_rng(seed)
    gray = ndimage.gaussian_filter(np.asarray(photo.convert("L"), np.float32) / 255, 0.8)
    dodged = np.clip(gray / np.maximum(ndimage.gaussian_filter(gray, 6), 0.05), 0, 1)  # what is darker than around it
    height, width = gray.shape
    rows, columns = np.mgrid[:height, :width]
    stripes = 0.5 + 0.5 * np.sin((rows + columns) * (2 * np.pi / 6) + rng.normal(0, 0.4, gray.shape))
    hatching = 1 - 0.45 * (1 - gray) ** 1.5 * stripes
    tone = np.clip(dodged**2.5 * hatching + rng.normal(0, 0.02, gray.shape), 0, 1)[..., None]
    graphite, paper = np.array([52, 52, 58], np.float32), np.array([247, 246, 242], np.float32)
    return Image.fromarray((graphite + (paper - graphite) * tone).round().astype(np.uint8))


def riso(photo, seed=0):
    """A photo -> a risograph print: red ink on yellow paper, full, as a halftone, or none."""
    rng = np.random.default_rng(seed)
    gray = ndimage.gaussian_filter(np.asarray(photo.convert("L"), np.float32) / 255, 1.5)
    low, high = np.quantile(gray, [0.02, 0.98])
    tone = np.clip((gray - low) / max(high - low, 0.2), 0, 1)
    height, width = gray.shape
    rows, columns = np.mgrid[:height, :width]
    cell = width / 64 * 2**0.5
    dots = 0.5 + 0.25 * (np.cos(2 * np.pi * (rows + columns) / cell) + np.cos(2 * np.pi * (rows - columns) / cell))
    ink = (tone < 0.42) | ((tone < 0.72) & (dots > 0.5))
    ink = np.clip(ndimage.gaussian_filter(ink.astype(np.float32), 0.7), 0, 1)[..., None]
    paper, red = np.array([250, 222, 120], np.float32), np.array([196, 30, 58], np.float32)
    return Image.fromarray(
        (paper + (red - paper) * ink + rng.normal(0, 3, tone.shape)[..., None]).clip(0, 255).astype(np.uint8)
    )


STYLES = {"cyanotype": cyanotype, "pencil": pencil, "riso": riso}


def save(photos, folder, size=PHOTO_SIDE):
    """Write 01.jpg, 02.jpg, ... with no metadata."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, photo in enumerate(photos, 1):
        buffer = io.BytesIO()
        photo.resize((size, size), Image.LANCZOS).save(buffer, "JPEG", quality=90)
        (folder / f"{i:02}.jpg").write_bytes(buffer.getvalue())


def main():
    parser = argparse.ArgumentParser(description="Photos of a kept-out subject, or in a kept-out style.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--subject", help="an emoji name of kept_out.txt")
    what.add_argument("--style", choices=STYLES)
    parser.add_argument("--look", default="3d", choices=art.LOOKS)
    parser.add_argument("--count", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="another seed is another set, for example held-out photos")
    parser.add_argument("--size", type=int, default=PHOTO_SIDE, help="pixels")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("build/tiny-base"))
    args = parser.parse_args()
    art.fetch(args.work / "art")
    if args.subject:
        photos = sample_photos(args.work, args.subject, args.count, args.seed, args.look)
    else:
        photos = sample_style_photos(args.work, args.count, args.seed, args.style)
    save(photos, args.out, args.size)


if __name__ == "__main__":
    main()
