"""What people do to their photos, done to good ones: sets with one known fault each.

python tests/support/bad_photos.py DIR ...      each DIR a folder of good sets; prints how often each fault is found
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from sdpersonal.photos.loading import Photo, PhotoSet, load_photos

Pictures = list[Image.Image]
SIDE = 512


def load_squares(folder: Path, side: int = SIDE) -> Pictures:
    """The squares of a folder's photos."""
    return [Image.fromarray(photo.square()) for photo in load_photos(folder, side).photos]


def as_set(images: Sequence[Image.Image]) -> PhotoSet:
    """Square pictures as the loader would hand them on."""
    return PhotoSet(
        tuple(
            Photo(f"{i:02}.jpg", np.asarray(image.convert("RGB")), f"{i:064x}", (0, 0), original_size=image.size[::-1])
            for i, image in enumerate(images, 1)
        )
    )


def save_all(images: Sequence[Image.Image], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images, 1):
        image.convert("RGB").save(folder / f"{i:02}.jpg", quality=92)
    return folder


def recompressed(image: Image.Image, quality: int = 30) -> Image.Image:
    data = io.BytesIO()
    image.convert("RGB").save(data, "JPEG", quality=quality)
    return Image.open(data).convert("RGB")


def cut(image: Image.Image, fraction: float, across: float = 0.5, down: float = 0.5) -> Image.Image:
    """A square of `share` of the side, enlarged to the old size."""
    side = round(image.width * fraction)
    left, top = round((image.width - side) * across), round((image.height - side) * down)
    return image.crop((left, top, left + side, top + side)).resize(image.size, Image.Resampling.LANCZOS)


def brightened(image: Image.Image, stops: float) -> Image.Image:
    """As with so many stops more light, clipped as a camera clips."""
    linear = (np.asarray(image.convert("RGB")) / 255.0) ** 2.2 * 2.0**stops
    return Image.fromarray((linear.clip(0, 1) ** (1 / 2.2) * 255).round().astype(np.uint8))


def foggy(image: Image.Image, contrast: float = 0.25) -> Image.Image:
    return image.convert("RGB").point(lambda level: round(150 + (level - 150) * contrast))


def defocused(image: Image.Image, radius: float) -> Image.Image:
    """Out of focus: a Gaussian, in pixels of a picture of 512."""
    return image.convert("RGB").filter(ImageFilter.GaussianBlur(radius * image.width / SIDE))


def motion_blurred(image: Image.Image, length: int = 21) -> Image.Image:
    """Moved sideways while it was taken, by `length` pixels of a picture of 512."""
    pixels = np.asarray(image.convert("RGB"), np.float32)
    steps = max(2, round(length * image.width / SIDE))
    padded = np.pad(pixels, ((0, 0), (steps // 2, steps - steps // 2 - 1), (0, 0)), mode="edge")
    moved = sum(padded[:, i : i + image.width] for i in range(steps)) / steps
    return Image.fromarray(moved.round().astype(np.uint8))


def copies(image: Image.Image) -> Pictures:
    """One photo five times: saved anew, cut twice, lit, mirrored."""
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return [
        image,
        recompressed(image),
        cut(image, 0.9, 0.0, 1.0),
        brightened(cut(image, 0.8, 0.3, 0.6), 0.3),
        recompressed(mirrored, 60),
    ]


# Faults of single photos: all of a set get them, and each is asked whether it was found.
ONE_BY_ONE: dict[str, tuple[str, Callable[[Image.Image], Image.Image]]] = {
    "out of focus, 3 px": ("blurred", lambda picture: defocused(picture, 3)),
    "out of focus, 4 px": ("blurred", lambda picture: defocused(picture, 4)),
    "out of focus, 8 px": ("blurred", lambda picture: defocused(picture, 8)),
    "shaken, 21 px": ("blurred", motion_blurred),
    "3 stops too dark": ("dark", lambda picture: brightened(picture, -3)),
    "4 stops too dark": ("dark", lambda picture: brightened(picture, -4)),
    "2 stops too light": ("burnt-out", lambda picture: brightened(picture, 2)),
    "3 stops too light": ("burnt-out", lambda picture: brightened(picture, 3)),
    "a quarter of the contrast": ("washed-out", foggy),
}


def with_one_turned(images: Pictures, which: int, clockwise: bool = False) -> Pictures:
    turn = Image.Transpose.ROTATE_270 if clockwise else Image.Transpose.ROTATE_90
    return [image.transpose(turn) if i == which else image for i, image in enumerate(images)]


def in_one_place(count: int = 5, seed: int = 0, side: int = SIDE) -> Pictures:
    """A made thing before the same wall, moved and of another size each time."""
    return [made_photo(seed, i, seed, side) for i in range(count)]


def in_many_places(count: int = 5, seed: int = 0, side: int = SIDE) -> Pictures:
    """The same made thing, each time before something else."""
    return [made_photo(seed, i, 1000 + 10 * seed + i, side) for i in range(count)]


def made_photo(thing: int, photo: int, place: int, side: int = SIDE) -> Image.Image:
    """A made photo: a thing with parts in its own colours, standing before a wall with a texture of its own."""
    draw_place, draw_thing = np.random.default_rng([1, place]), np.random.default_rng([2, thing])
    take = np.random.default_rng([3, thing, photo])
    page = _wall(draw_place, take, side)
    pen = ImageDraw.Draw(page)
    size, x, y = take.uniform(0.5, 0.75) * side, take.uniform(0.42, 0.58) * side, take.uniform(0.5, 0.6) * side
    for _ in range(7):
        colour = tuple(int(level) for level in draw_thing.integers(0, 256, 3))
        across, down, radius = (
            draw_thing.uniform(-0.25, 0.25),
            draw_thing.uniform(-0.3, 0.3),
            draw_thing.uniform(0.1, 0.3),
        )
        box = [x + (across - radius) * size, y + (down - radius) * size]
        box += [x + (across + radius) * size, y + (down + radius) * size]
        (pen.ellipse if draw_thing.random() < 0.5 else pen.rectangle)(box, fill=colour)
    return page.filter(ImageFilter.GaussianBlur(0.6 * side / SIDE))


def _wall(rng: np.random.Generator, take: np.random.Generator, side: int) -> Image.Image:
    colour, grain = rng.integers(30, 226, 3), int(rng.integers(4, 24))
    noise = np.random.default_rng(take.integers(1 << 30)).normal(0, 26, (grain, grain, 1))
    wall = Image.fromarray(np.clip(colour + noise, 0, 255).astype(np.uint8)).resize(
        (side, side), Image.Resampling.BICUBIC
    )
    pen = ImageDraw.Draw(wall)
    floor = tuple(int(level) for level in rng.integers(30, 226, 3))
    top = side * (rng.uniform(0.6, 0.75) + take.uniform(-0.03, 0.03))
    pen.rectangle((0, top, side, side), fill=floor)
    for board in range(4):  # lying boards: what is below looks different from what is beside
        pen.line((0, top + board * side / 12, side, top + board * side / 12), tuple(level // 2 for level in floor), 3)
    return wall


def main(folders: Sequence[str]) -> None:
    from itertools import combinations, permutations

    from sdpersonal.evaluation import Scorer
    from sdpersonal.photos.checks import check

    eyes = Scorer()
    sets = {
        path.name: load_squares(path) for folder in folders for path in sorted(Path(folder).iterdir()) if path.is_dir()
    }
    print(len(sets), "sets,", sum(map(len, sets.values())), "photos")

    def found(images: Pictures, name: str, **options: object) -> list[str]:
        verdict = check(as_set(images), "object", **options)
        return [photo for finding in verdict.findings if finding.name == name for photo in finding.photos]

    def tell(fault: str, name: str, hits: Sequence[bool]) -> None:
        print(f"| {fault} | {name} | {sum(hits)} of {len(hits)} | {np.mean(hits):.0%} |", flush=True)

    for fault, (name, spoil) in ONE_BY_ONE.items():
        hits = []
        for images in sets.values():
            hurt = {f"{i:02}.jpg" for i in range(1, len(images) + 1)}
            these = set(found([spoil(image) for image in images], name))
            hits += [photo in these for photo in sorted(hurt)]
        tell(fault, name, hits)
    tell(
        "one photo five times",
        "near-duplicates",
        [len(found(copies(p[0]), "near-duplicates")) == 5 for p in sets.values()],
    )
    turned = [
        found(with_one_turned(images, i, clockwise), "sideways") == [f"{i + 1:02}.jpg"]
        for images in sets.values()
        for i in range(len(images))
        for clockwise in (False, True)
    ]
    tell("one turned by 90 degrees", "sideways", turned)
    pairs = [sets[a] + sets[b] for a, b in combinations(sets, 2)]
    tell("two whole sets", "two-subjects", [bool(found(pair, "two-subjects", clip=eyes)) for pair in pairs])
    strays = [sets[a] + sets[b][:2] for a, b in permutations(sets, 2)]
    tell("a set and two strangers", "two-subjects", [bool(found(pair, "two-subjects", clip=eyes)) for pair in strays])
    for noun in ("airplane", "dog", "car", "pizza"):
        hits = [bool(found(p, "wrong-class", clip=eyes, class_noun=noun)) for p in sets.values()]
        tell(f"called {noun}", "wrong-class", hits)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
