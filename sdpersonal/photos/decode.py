"""Decode a photo's bytes into pixels: upright, sRGB, opaque and scaled, and nothing else of the file.

JPEG, PNG, WebP and HEIC are recognised by content, never by name, and each is opened by its own reader: no other
decoder of Pillow ever sees the bytes. The result is a new array: no EXIF, GPS, XMP, IPTC, thumbnail or profile.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin
from pillow_heif import HeifImageFile

from ..image_metadata.image_text import exif_orientation
from ..storage import file_types

FORMATS = "JPEG, PNG, WebP, HEIC"
MAX_MEGAPIXELS = 50  # that are decoded
MAX_JPEG, MAX_PROGRESSIVE_JPEG = 200, 100  # megapixels: above 50 they are decoded at half their size or less
MIN_SIDE = 256  # pixels; smaller photos have too little detail to train on
MAX_RATIO = 4  # long side / short side; beyond it a square crop shows a fraction of the image

PngImagePlugin.MAX_TEXT_MEMORY = 8 << 20  # characters of a PNG's texts; Pillow would inflate a small file to 64 MB
_MAX_METADATA = 32 << 20  # bytes of a JPEG's segments before the pixels: the time to join them grows with the square


class _JpegReader(JpegImagePlugin.JpegImageFile):
    """A JPEG whose Exif is not parsed on opening: entries that overlap would be copied one by one, into gigabytes."""

    def _read_dpi_from_exif(self) -> None:
        pass


_READERS = {
    "JPEG": _JpegReader,
    "PNG": PngImagePlugin.PngImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
    "HEIC": HeifImageFile,
}
# The first bytes of other files found in folders of photos, and what to report for them.
_EXPORT_HINT = "export it as PNG or JPEG"
UNPACK_HINT = "unpack it and give the folder"
_UNSUPPORTED = (
    (b"GIF8", "a GIF", _EXPORT_HINT),
    (b"II*\0", "a TIFF or a camera's raw file", _EXPORT_HINT),
    (b"MM\0*", "a TIFF or a camera's raw file", _EXPORT_HINT),
    (b"8BPS", "a Photoshop file", _EXPORT_HINT),
    (b"%!PS", "an EPS or PostScript file", _EXPORT_HINT),
    (b"\xc5\xd0\xd3\xc6", "an EPS or PostScript file", _EXPORT_HINT),
    (b"SIMPLE  =", "a FITS file", _EXPORT_HINT),
    (b"BM", "a BMP", _EXPORT_HINT),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 file", _EXPORT_HINT),
    (b"\0\0\0\x0cJXL ", "a JPEG XL file", _EXPORT_HINT),
    (b"\xff\x0a", "a JPEG XL file", _EXPORT_HINT),
    (b"%PDF", "a PDF", _EXPORT_HINT),
    (b"PK\x03\x04", "a zip archive", UNPACK_HINT),
    (b"\x1f\x8b", "a gzip archive", UNPACK_HINT),
    (b"BZh", "a bzip2 archive", UNPACK_HINT),
    (b"\xfd7zXZ", "an xz archive", UNPACK_HINT),
    (b"7z\xbc\xaf", "a 7z archive", UNPACK_HINT),
    (b"Rar!", "a RAR archive", UNPACK_HINT),
)
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_AVERAGEABLE = {"1": "L", "La": "LA", "P": "RGB", "PA": "RGBA", "RGBa": "RGBA"}
_PROFILE_SPACES = {  # ICC colour space -> the mode to convert from, and the modes of images that such a profile fits
    "RGB": ("RGB", ("RGB", "RGBA", "L", "LA")),
    "GRAY": ("L", ("L", "LA")),
    "CMYK": ("CMYK", ("CMYK",)),
}
_TRANSPOSES = {  # EXIF orientation -> what undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


class UnusablePhoto(Exception):
    """The reason why a file cannot be used as a photo: the rest of a sentence that starts with its name."""


def decode(
    data: bytes, size: int, min_side: int = MIN_SIDE, background: str = "white"
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Decode the image in `data`, and return it with notes for the user.

    Returns uint8 (H, W, 3), sRGB, upright, min(H, W) == size, the aspect ratio kept to a pixel; and the notes.
    min_side: minimum of its shorter side in pixels; background: the colour of transparent images.
    A JPEG above 50 megapixels is decoded at half its size or less, and enlarged if `size` is larger than that.
    Raises UnusablePhoto. At 50 megapixels a WebP needs 0.8 GB temporarily, the others up to 0.5 GB.
    """
    kind = detect_format(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's warnings about odd metadata, none of which is kept
        try:
            return _decode(kind, data, size, min_side, background)
        except UnusablePhoto:
            raise
        except Exception as error:  # decoders of untrusted bytes raise anything
            raise UnusablePhoto(_damage_text(kind, data, error)) from None


def shorter_side(data: bytes) -> int:
    """Return the shorter side, in pixels before scaling, of an image that `decode` could read."""
    return min(_stored_size(data))


def largest_decoded_side(data: bytes) -> int:
    """Return the shorter side of the largest image that `decode` should be asked for: its own, but of 50 megapixels."""
    width, height = _stored_size(data)
    return max(1, int(min(width, height) * min(1.0, math.sqrt(MAX_MEGAPIXELS * 1e6 / (width * height)))))


def _stored_size(data: bytes) -> tuple[int, int]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _open(detect_format(data), data).size


def open_unread(data: bytes, formats: Sequence[str]) -> Image.Image:
    """Open an image of one of these formats, of which only the size is read so far. Raises UnusablePhoto."""
    kind = detect_format(data)
    if kind not in formats:
        raise UnusablePhoto(f"is in a format that cannot be used here, {kind}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _open(kind, data)
        except UnusablePhoto:
            raise
        except Exception as error:
            raise UnusablePhoto(_damage_text(kind, data, error)) from None


def _open(kind: str, data: bytes) -> ImageFile.ImageFile:
    if kind == "JPEG":
        _check_segments(data)
    return _READERS[kind](io.BytesIO(data))


def _check_segments(data: bytes) -> None:
    """Raise UnusablePhoto if a JPEG has too much before its pixels."""
    position = 2
    while position <= _MAX_METADATA:
        head = data[position : position + 4]
        if len(head) < 4 or head[0] != 0xFF or head[1] == 0xDA:  # damaged, or the pixels begin
            return
        position += 1 if head[1] == 0xFF else 2 + int.from_bytes(head[2:], "big")  # 0xFF: fill bytes
    raise UnusablePhoto(f"has more than {_MAX_METADATA >> 20} MB of metadata; save it again without")


def detect_format(data: bytes) -> str:
    """Detect which of the four formats this is, by its first bytes. Raises UnusablePhoto, with the kind if known."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(file_types.PNG_SIGNATURE):
        return "PNG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WebP"
    if data[4:8] == b"ftyp" and data[8:12] in _HEIC_BRANDS and b"avif" not in data[8:40]:
        return "HEIC"
    raise UnusablePhoto(f"is {_describe_unsupported(data)}")


def _describe_unsupported(data: bytes) -> str:
    for start, kind, remedy in _UNSUPPORTED:
        if data.startswith(start):
            return f"{kind}; {remedy}"
    if data[4:8] == b"ftyp":
        return f"an AVIF; {_EXPORT_HINT}" if b"avi" in data[8:40] else "a video; use images"
    if data[257:262] == b"ustar":
        return f"a tar archive; {UNPACK_HINT}"
    text = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "a web page; save the image itself"
    if b"<svg" in text:
        return f"an SVG; {_EXPORT_HINT}"
    file_type = file_types.recognise(data[: file_types.LOOKED_AT], len(data))
    if data and file_type.group == "placeholder":  # a pointer of Git-LFS and the like, or an unfinished download
        return f"{file_type.what}; {file_type.hint[0].lower()}{file_type.hint[1:].removesuffix('.')}"
    return f"not an image in a supported format ({FORMATS})"


def _decode(kind: str, data: bytes, size: int, min_side: int, background: str) -> tuple[np.ndarray, tuple[str, ...]]:
    image = _open(kind, data)
    _check_size(*image.size, min_side, _megapixel_limit(image))
    notes = _notes(image, kind, size)
    # Scale first, so that all further steps work on the small image and cost next to nothing.
    small = _apply_orientation(_scale(image, data, size, min_side), image)
    small, colour_notes = _to_srgb(small, image.info.get("icc_profile"))
    return np.array(_flatten(small, background)), notes + colour_notes


def _megapixel_limit(image: Image.Image) -> int:
    if not isinstance(image, JpegImagePlugin.JpegImageFile):
        return MAX_MEGAPIXELS
    return MAX_PROGRESSIVE_JPEG if "progressive" in image.info else MAX_JPEG  # libjpeg keeps a progressive one whole


def _check_size(width: int, height: int, min_side: int, limit: int = MAX_MEGAPIXELS) -> None:
    short, long = sorted((width, height))
    megapixels = short * long / 1e6
    if megapixels > limit:
        raise UnusablePhoto(f"is {width}x{height} ({megapixels:.0f} megapixels); up to {limit} are allowed: resize it")
    if short < min_side:
        raise UnusablePhoto(f"is {width}x{height}; the shorter side must have at least {min_side} pixels")
    if long > MAX_RATIO * short:
        raise UnusablePhoto(
            f"is {width}x{height}; the longer side may be at most {MAX_RATIO} times the shorter: crop it"
        )


def _notes(image: Image.Image, kind: str, size: int) -> tuple[str, ...]:
    notes = []
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        notes.append(f"main image of {frames} in the file" if kind == "HEIC" else "first frame of an animation")
    if min(image.size) < size:
        notes.append(f"enlarged from {image.width}x{image.height}")
    return tuple(notes)


def _scale(image: Image.Image, data: bytes, size: int, min_side: int) -> Image.Image:
    """Decode the image and scale its shorter side to `size`, in a mode with or without alpha."""
    width, height = (round(side * size / min(image.size)) for side in image.size)
    box = None
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        # libjpeg decodes at 1/2, 1/4 or 1/8 in less time and memory. Twice the final size is enough for Lanczos.
        least = 2 if image.width * image.height > MAX_MEGAPIXELS * 1e6 else 1
        wanted = min(2 * width, image.width // least), min(2 * height, image.height // least)
        _, box = image.draft(None, wanted) or (None, None)
    packing = image.tile[0].args if isinstance(image, PngImagePlugin.PngImageFile) and image.tile else None
    image.load()
    if box is None:
        _check_size(*image.size, min_side)  # a HEIC may be larger than its header says
    # Pillow weights colours by alpha here, so colours of transparent pixels do not bleed into the edges.
    return _to_averageable_mode(image, packing, data).resize((width, height), Image.Resampling.LANCZOS, box)


def _to_averageable_mode(image: Image.Image, packing: object, data: bytes) -> Image.Image:
    """Convert to a mode whose values can be averaged. packing: of a PNG, how Pillow unpacks its samples."""
    opaque = _opaque_where_one_colour_is_not(image, packing, data) if packing else None
    if image.mode.startswith("I"):  # 16 bits: the high byte, which is also what Pillow takes of 16-bit colour
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if opaque is not None:
        image = image.copy()
        image.info.pop("transparency", None)
        image.putalpha(Image.fromarray(np.where(opaque, np.uint8(255), np.uint8(0))))
    mode = "RGBA" if "transparency" in image.info else _AVERAGEABLE.get(image.mode, image.mode)
    return image if mode == image.mode else image.convert(mode)


_SMALL_DEPTHS = {"L;2": 85, "L;4": 17}  # Pillow's factors for samples of 2 and 4 bits


def _opaque_where_one_colour_is_not(image: Image.Image, packing: object, data: bytes) -> np.ndarray | None:
    """Return (H, W) bool for a PNG whose tRNS chunk names one transparent colour not in 8 bits; None for all others.

    Pillow compares that colour with pixels that it has reduced to 8 bits, or scaled up from 2 or 4. The PNG
    specification (section 11.3.2.1) compares the samples as stored.
    """
    colour = image.info.get("transparency")
    if isinstance(colour, int):
        if image.mode.startswith("I"):
            return np.asarray(image) != colour
        if packing in _SMALL_DEPTHS:
            return np.asarray(image) != colour * _SMALL_DEPTHS[packing]
    if isinstance(colour, tuple) and packing == "RGB;16B":
        reopened = PngImagePlugin.PngImageFile(io.BytesIO(data))
        reopened.tile = [
            tile._replace(args="RGB;16L") for tile in reopened.tile
        ]  # takes the other one of the two bytes
        bands = zip(image.split(), reopened.split(), colour, strict=True)
        return np.logical_or.reduce(
            [(np.asarray(high) != value >> 8) | (np.asarray(low) != value & 255) for high, low, value in bands]
        )
    return None


def _apply_orientation(small: Image.Image, source: Image.Image) -> Image.Image:
    orientation = _orientation(source.info)
    return small.transpose(_TRANSPOSES[orientation]) if orientation in _TRANSPOSES else small


def _orientation(info: Mapping[str | tuple[int, int], Any]) -> int | None:
    """Return the orientation by Exif, else by XMP, as Pillow's `getexif` finds it, without reading any other entry."""
    exif, xmp = info.get("exif"), info.get("XML:com.adobe.xmp") or info.get("xmp")
    if exif is None and "Raw profile type exif" in info:
        try:
            exif = bytes.fromhex("".join(info["Raw profile type exif"].split("\n")[3:]))
        except ValueError:  # broken Exif in an intact image
            return None
    orientation = exif_orientation(exif) if exif else None
    if orientation is None and xmp:
        match = _XMP_ORIENTATION.search(xmp.encode() if isinstance(xmp, str) else xmp)
        orientation = int(match[1]) if match else None
    return orientation


def _to_srgb(image: Image.Image, icc: bytes | None) -> tuple[Image.Image, tuple[str, ...]]:
    if not icc:
        return image, ()
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        mode, fitting = _PROFILE_SPACES[profile.profile.xcolor_space.strip()]
        if image.mode not in fitting:
            raise ValueError(f"a {mode} profile on a {image.mode} image")
        srgb = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image.convert(mode), profile, srgb, outputMode="RGB")
    except (OSError, ValueError, KeyError, TypeError, ImageCms.PyCMSError):
        return image, ("broken colour profile, taken as sRGB",)
    if converted is None:  # only with inPlace
        return image, ()
    if "A" in image.getbands():
        converted.putalpha(image.getchannel("A"))
    return converted, ()


def _flatten(image: Image.Image, background: str) -> Image.Image:
    """Convert to RGB, with a colour behind transparent pixels."""
    if "A" not in image.getbands():
        return image.convert("RGB")
    canvas = Image.new("RGB", image.size, background)
    canvas.paste(image.convert("RGB"), mask=image.getchannel("A"))
    return canvas


def _damage_text(kind: str, data: bytes, error: Exception) -> str:
    complete = {
        "JPEG": data.rstrip(b"\0").endswith(b"\xff\xd9"),
        "PNG": b"IEND" in data[-64:],
        "WebP": len(data) >= 8 + int.from_bytes(data[4:8], "little"),
        "HEIC": "end of file" not in str(error).lower(),
    }
    return "is damaged and cannot be decoded" if complete[kind] else "ends early (damaged download?)"
