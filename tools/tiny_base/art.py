"""The art: openly licensed emoji fetched from npm, rasterised once into one array of sprites a look.

A sprite is a square RGBA picture (uint8, colours premultiplied by alpha), cropped to what is drawn
and padded to a square, so that "size 0.7" means the same for every thing.
"""

import hashlib
import io
import json
import re
import subprocess
import tarfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

SPRITE = 160  # px; drawn at 35 to 125 px in a 128-px scene


@dataclass(frozen=True)
class Package:
    """One npm package, pinned to the bytes that were used."""

    name: str
    version: str
    sha256: str
    licence: str
    source: str

    @property
    def file(self):
        return f"{self.name.strip('@').replace('/', '-')}-{self.version}.tgz"


PACKAGES = {
    "3d": Package(
        "@lobehub/fluent-emoji-3d",
        "1.1.0",
        "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
        "MIT",
        "Fluent Emoji 3D, Microsoft Corporation",
    ),
    "flat": Package(
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
        "MIT",
        "Fluent Emoji flat, Microsoft Corporation",
    ),
    "cartoon": Package(
        "@iconify-json/noto",
        "1.2.9",
        "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
        "Apache-2.0",
        "Noto Emoji, Google LLC",
    ),
    "twemoji": Package(
        "@iconify-json/twemoji",
        "1.2.5",
        "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
        "CC-BY-4.0",
        "Twemoji, Twitter, Inc and other contributors",
    ),
    "names": Package(
        "unicode-emoji-json",
        "0.9.0",
        "ae7efacb55533385bf8767d613dbd36c71226669759d95919a6e9059f5e4c401",
        "MIT",
        "unicode-emoji-json, Mu-An Chiou",
    ),
}
LOOKS = ("3d", "flat", "cartoon", "twemoji")  # the looks that are drawn by people; others are made by filters


class ArtError(RuntimeError):
    """The art cannot be had, or is not what was pinned."""


def fetch(folder):
    """Download every package that `folder` lacks; check all against their pinned hashes."""
    folder.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES.values():
        path = folder / package.file
        if not path.exists():
            spec = f"{package.name}@{package.version}"
            done = subprocess.run(["npm", "pack", spec, "--silent"], cwd=folder, capture_output=True, text=True)
            if done.returncode or not path.exists():
                raise ArtError(
                    f"npm pack {spec} failed: {done.stderr.strip() or 'no file'}. Is npm installed and online?"
                )
        if hashlib.sha256(path.read_bytes()).hexdigest() != package.sha256:
            raise ArtError(f"{path} is not the file that was pinned. Delete it and run again.")


def _member(folder, package, name):
    with tarfile.open(folder / PACKAGES[package].file) as tar:
        return tar.extractfile(f"package/{name}").read()


@lru_cache(maxsize=1)
def emoji_table(folder):
    """{emoji name: (slug, code points, group)} of all emoji that Unicode names."""
    table = json.loads(_member(folder, "names", "data-by-emoji.json"))
    return {
        row["name"]: (row["slug"].replace("_", "-"), [f"{ord(c):x}" for c in char], row["group"])
        for char, row in table.items()
    }


@lru_cache(maxsize=4)
def _icons(folder, look):
    data = json.loads(_member(folder, look, "icons.json"))
    return (
        data["icons"],
        data.get("aliases", {}),
        data.get("height", 16),
        json.loads(_member(folder, look, "chars.json")),
    )


def _svg(folder, look, name, pixels):
    """One icon of an iconify package -> RGBA picture, or None where the package lacks it."""
    import resvg_py

    icons, aliases, unit, chars = _icons(folder, look)
    slug, codes, _ = emoji_table(folder)[name]
    plain = "-".join(c for c in codes if c != "fe0f")
    key = next((k for k in (slug, chars.get("-".join(codes)), chars.get(plain)) if k in icons or k in aliases), None)
    if key is None:
        return None
    icon = icons[aliases[key]["parent"]] if key in aliases else icons[key]
    width, height = icon.get("width", unit), icon.get("height", unit)
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width} {height}" width="{pixels}" height="{pixels}">{icon["body"]}</svg>'
    )
    return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=pixels, height=pixels))))


@lru_cache(maxsize=1)
def _renders(folder):
    """{code points: webp bytes} of the 3D package, read in one pass: a .tgz has no index."""
    with tarfile.open(folder / PACKAGES["3d"].file) as tar:
        return {
            re.sub(r"-fe0f", "", Path(m.name).stem): tar.extractfile(m).read()
            for m in tar
            if m.name.endswith(".webp") and not re.search(r"1f3f[b-f]|1f1[ef]", m.name)
        }


def draw(folder, look, name, pixels=SPRITE):
    """One thing in one look -> (pixels, pixels, 4) uint8, premultiplied; None where the look lacks it."""
    if look == "3d":
        codes = "-".join(c for c in emoji_table(folder)[name][1] if c != "fe0f")
        data = _renders(folder).get(codes)
        picture = Image.open(io.BytesIO(data)) if data else None
    else:
        picture = _svg(folder, look, name, 2 * pixels)
    return None if picture is None else _square(picture.convert("RGBA"), pixels)


def _square(image, pixels):
    """Crop to what is drawn, pad to a square, resize with premultiplied colours (no dark fringe)."""
    box = image.getchannel("A").point(lambda a: 255 * (a > 8)).getbbox()
    image = image.crop(box)
    side = max(image.size)
    square = Image.new("RGBA", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    rgba = np.asarray(square, np.float32) / 255
    rgba[..., :3] *= rgba[..., 3:]
    planes = [Image.fromarray(rgba[..., i]).resize((pixels, pixels), Image.LANCZOS) for i in range(4)]
    return (np.clip(np.stack([np.asarray(p) for p in planes], -1), 0, 1) * 255 + 0.5).astype(np.uint8)


def sprites(folder, cache, look, names):
    """All `names` in one look -> (N, S, S, 4) uint8; drawn once, then read from `cache`."""
    key = hashlib.sha256("\n".join([look, str(SPRITE), *names]).encode()).hexdigest()[:12]
    path = cache / f"sprites-{look}-{key}.npy"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.npy")
        np.save(part, np.stack([draw(folder, look, name) for name in names]))
        part.replace(path)
    return np.load(path)
