"""Masks: what is white is generated anew, and nothing else; whatever kind of transparency a program writes."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from sdpersonal.config import GenerateRequest
from sdpersonal.errors import UserError
from sdpersonal.generation.img2img import load_init_image, mask_note

SIZE = (160, 128)  # (width, height)
WHITE = np.zeros(SIZE[::-1], bool)
WHITE[32:96, :80] = True
SHAPE = Image.fromarray(WHITE)  # mode "1"


def rgba(colour, shape=SHAPE):
    """Strokes of a colour on a transparent layer."""
    image = Image.new("RGBA", SIZE, (*colour, 255))
    image.putalpha(shape.convert("L"))
    return image


def saved(image, kind, **options):
    out = io.BytesIO()
    (pillow_heif.from_pillow(image) if kind == "HEIF" else image).save(
        out, **({} if kind == "HEIF" else {"format": kind}), **options
    )
    return out.getvalue()


def png(samples, depth, colour_type, transparent=None, palette=None):
    """A PNG written by hand. samples: (H, W) or (H, W, C) as they are stored."""
    height, width = samples.shape[:2]

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    if depth >= 8:
        rows = [row.astype(">u2" if depth == 16 else "u1").tobytes() for row in samples]
    else:
        bits = np.unpackbits(samples[..., None].astype(np.uint8), axis=-1)[..., 8 - depth :].reshape(height, -1)
        rows = [row.tobytes() for row in np.packbits(bits, axis=-1)]
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)),
            chunk(b"PLTE", palette) if palette else b"",
            chunk(b"tRNS", transparent) if transparent else b"",
            chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))),
            chunk(b"IEND", b""),
        ]
    )


def two(white, clear, dtype=np.uint16):
    """Samples that are `white` in the strokes and `clear` elsewhere."""
    return np.where(WHITE, np.array(white, dtype), np.array(clear, dtype))


def palette_with_alpha():
    image = Image.fromarray(WHITE.astype(np.uint8))
    image = image.convert("P")
    image.putpalette([255, 255, 255] * 2)
    return saved(image, "PNG", transparency=bytes([0, 255]))


LAYER = rgba((255, 255, 255))
KINDS = {
    "opaque grey": lambda: saved(SHAPE.convert("L"), "PNG"),
    "opaque 1 bit": lambda: saved(SHAPE, "PNG"),
    "opaque colour": lambda: saved(SHAPE.convert("RGB"), "PNG"),
    "JPEG": lambda: saved(SHAPE.convert("L"), "JPEG", quality=95),
    "RGBA, white below": lambda: saved(LAYER, "PNG"),
    "RGBA, black and white, all opaque": lambda: saved(SHAPE.convert("RGBA"), "PNG"),
    "LA": lambda: saved(LAYER.convert("LA"), "PNG"),
    "WebP": lambda: saved(LAYER, "WEBP", lossless=True, exact=True),
    "WebP, lossy": lambda: saved(LAYER, "WEBP", quality=95),
    "HEIC": lambda: saved(LAYER, "HEIF", quality=95),
    "palette with alpha": palette_with_alpha,
    "palette of two": lambda: png(two(1, 0), 1, 3, b"\0", bytes([255] * 6)),
    "1 bit grey": lambda: png(two(1, 0), 1, 0, struct.pack(">H", 0)),
    "2 bit grey, light grey is clear": lambda: png(two(3, 2), 2, 0, struct.pack(">H", 2)),
    "4 bit grey, light grey is clear": lambda: png(two(15, 9), 4, 0, struct.pack(">H", 9)),
    "8 bit grey, nearly white is clear": lambda: png(two(255, 254), 8, 0, struct.pack(">H", 254)),
    "16 bit grey, nearly white is clear": lambda: png(two(65535, 65534), 16, 0, struct.pack(">H", 65534)),
    "16 bit colour, nearly white is clear": lambda: png(
        np.stack([two(65535, 65535)] * 2 + [two(65535, 65534)], -1), 16, 2, struct.pack(">HHH", 65535, 65535, 65534)
    ),
    "16 bit LA": lambda: png(np.stack([two(65535, 65535), two(65535, 0)], -1), 16, 4),
    "16 bit RGBA": lambda: png(np.stack([two(65535, 65535)] * 3 + [two(65535, 0)], -1), 16, 6),
}  # fmt: skip


@pytest.fixture
def start(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "start.png")
    return pixels


def changed(tmp_path, data):
    """Where a picture that is another everywhere shows through, (H, W) bool; and the mask's note."""
    (tmp_path / "mask.png").write_bytes(data)
    request = GenerateRequest(
        prompt="x", init_image=tmp_path / "start.png", mask=tmp_path / "mask.png", size="{}x{}".format(*SIZE)
    )
    source = load_init_image(request, None)
    was = np.asarray(source.image).astype(int)
    made = np.asarray(source.composite(Image.fromarray((255 - was).astype(np.uint8)))).astype(int)
    return (np.abs(made - was).max(-1) > 0), mask_note(request)


@pytest.mark.parametrize("kind", KINDS)
def test_only_white_areas_of_a_mask_are_regenerated(start, tmp_path, kind):
    regenerated, note = changed(tmp_path, KINDS[kind]())
    lossy = kind in ("JPEG", "WebP, lossy", "HEIC")
    edge = np.zeros_like(WHITE)
    edge[30:98, :82] = True
    edge[34:94, :78] = False
    assert not note
    assert not (regenerated & ~WHITE & ~(edge if lossy else False)).any()
    assert regenerated[36:92, 2:76].mean() > 0.99  # a pixel of 127 or 128 hardly changes when it is turned over


@pytest.mark.parametrize(
    "image",
    [
        Image.new("RGBA", SIZE, (0, 0, 0, 0)),
        Image.new("RGBA", SIZE, (255, 255, 255, 0)),
        Image.new("L", SIZE, 0),
        rgba((0, 0, 0)),  # strokes of black: black is what stays
        Image.new("LA", SIZE, (255, 100)),  # less than half there
    ],
    ids=["clear", "clear white", "black", "black strokes", "faint"],
)
def test_a_mask_without_white_changes_nothing_and_gives_a_note(start, tmp_path, image):
    regenerated, note = changed(tmp_path, saved(image, "PNG"))
    assert not regenerated.any() and "mask.png has nothing white" in note


def test_a_mask_of_another_size_is_stretched(start, tmp_path):
    half = Image.fromarray(WHITE).convert("L").resize((80, 64), Image.Resampling.NEAREST)
    regenerated, note = changed(tmp_path, saved(half, "PNG"))
    assert not note and not (regenerated & ~WHITE).sum() > 2 * (64 + 80) and regenerated[36:92, 2:76].mean() > 0.99
    square = Image.fromarray(WHITE).convert("L").resize((128, 128), Image.Resampling.NEAREST)
    regenerated, note = changed(tmp_path, saved(square, "PNG"))
    assert "is 128x128 and the init image 160x128: the mask is stretched to it" in note
    assert regenerated[36:92, 2:76].mean() > 0.99 and not regenerated[:, 84:].any()


def test_an_init_image_and_its_mask_are_cropped_together(tmp_path):
    """The middle 160 of 320 columns: of the right half of the mask their right half is left."""
    Image.new("RGB", (320, 128), "red").save(tmp_path / "start.png")
    mask = Image.new("L", (320, 128), 0)
    mask.paste(255, (160, 0, 320, 128))
    mask.save(tmp_path / "mask.png")
    request = GenerateRequest(prompt="x", init_image=tmp_path / "start.png", mask=tmp_path / "mask.png", size="160x128")
    white = np.asarray(load_init_image(request, None).mask) > 0
    assert not white[:, :80].any() and white[:, 80:].all()


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "BMP"])
def test_unsupported_mask_formats_are_refused_with_a_message(start, tmp_path, kind):
    with pytest.raises(UserError, match=rf"mask.png is a {kind}.*export it as PNG"):
        changed(tmp_path, saved(SHAPE.convert("L"), kind))
    with pytest.raises(UserError, match="nowhere"):
        mask_note(GenerateRequest(prompt="x", init_image=tmp_path / "start.png", mask=Path("nowhere.png")))


# --- photos: white where they are transparent, and nowhere else -----------------------------------------------------

PHOTO = (256, 256)
DEEP = np.random.default_rng(1).integers(0, 65536, (*PHOTO, 3), dtype=np.uint16)
DEEP[:40, :40] = 1234


def flat(samples, transparent, depth):
    """The answer out of the raw samples: their high byte, and white where all channels are the transparent colour."""
    displayed = (samples >> 8 if depth == 16 else samples * (255 // (2**depth - 1))).astype(np.uint8)
    displayed = np.repeat(displayed[..., None], 3, -1) if samples.ndim == 2 else displayed
    clear = samples == transparent if samples.ndim == 2 else (samples == transparent).all(-1)
    return np.where(clear[..., None], np.uint8(255), displayed)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_grey_becomes_white_at_every_bit_depth(depth):
    from sdpersonal.photos.decode import decode

    samples = (DEEP[..., 0] >> (16 - depth)).astype(np.uint16)
    transparent = int(samples[0, 0])
    samples[50:60, 50:60] = transparent ^ 1  # the nearest other: with 16 bits of the same high byte
    data = png(samples, depth, 0, struct.pack(">H", transparent))
    assert np.array_equal(decode(data, 256)[0], flat(samples, transparent, depth))


@pytest.mark.parametrize("depth", [8, 16])
def test_a_transparent_colour_becomes_white(depth):
    from sdpersonal.photos.decode import decode

    samples = DEEP >> (16 - depth)
    transparent = samples[0, 0].copy()
    samples[50:60, 50:60] = transparent ^ [0, 0, 1]
    samples[60:70, 50:60] = transparent ^ [1, 0, 0]
    data = png(samples, depth, 2, struct.pack(">HHH", *transparent.tolist()))
    assert np.array_equal(decode(data, 256)[0], flat(samples, transparent, depth))


def test_opaque_16_bit_images_keep_their_high_byte():
    from sdpersonal.photos.decode import decode

    for channels, colour_type in ((0, 0), (3, 2)):
        samples = DEEP if channels else DEEP[..., 0]
        assert np.array_equal(decode(png(samples, 16, colour_type), 256)[0], flat(samples, -1, 16))
