"""A folder of photos in, a checked training set out; the files are generated here, the answers computed with numpy."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from sdpersonal.errors import UserError
from sdpersonal.image_metadata.image_text import exif_orientation
from sdpersonal.photos import loading
from sdpersonal.photos.decode import UnusablePhoto, decode, largest_decoded_side
from sdpersonal.photos.loading import load_photos
from sdpersonal.photos.smart_crop import find_subject

SIDE = 256  # the smallest that is taken: nothing is scaled at size=SIDE


def smooth(width: int = SIDE, height: int = SIDE, seed: int = 0, channels: int = 3) -> np.ndarray:
    """A picture without sharp edges, different for each seed."""
    few = np.random.default_rng(seed).integers(0, 256, (6, 8, channels), dtype=np.uint8)
    planes = [Image.fromarray(few[..., c]).resize((width, height), Image.Resampling.BICUBIC) for c in range(channels)]
    return np.stack([np.asarray(plane) for plane in planes], axis=-1)


def encoded(pixels: np.ndarray | Image.Image, kind: str, **options) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    out = io.BytesIO()
    if kind == "HEIF":
        pillow_heif.from_pillow(image).save(out, **{"quality": 90, **options})
    else:
        image.save(out, kind, **({"quality": 95} if kind in ("JPEG", "WEBP") else {}) | options)
    return out.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes, **chunks: bytes) -> bytes:
    """A PNG made by hand, for what Pillow cannot write."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    extra = b"".join(chunk(name.encode(), body) for name, body in chunks.items())
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def unusable(data: bytes, size: int = SIDE) -> str:
    with pytest.raises(UnusablePhoto) as reason:
        decode(data, size)
    return str(reason.value)


def close(got: np.ndarray, expected: np.ndarray, mean: float, most: float) -> None:
    difference = np.abs(got.astype(float) - expected)
    assert difference.mean() <= mean and difference.max() <= most, (difference.mean(), difference.max())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one good photo, b.png; tests put others beside it."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "b.png").write_bytes(encoded(smooth(), "PNG"))
    return tmp_path / "photos"


def reasons(folder: Path) -> dict[str, str]:
    return {file.name: file.reason for file in load_photos(folder, SIDE).skipped}


# --- what a good set becomes


def test_four_formats_are_loaded_in_name_order(tmp_path):
    originals = {}
    for seed, (name, kind) in enumerate(
        {"d.jpg": "JPEG", "B.png": "PNG", "a.webp": "WEBP", "c.HEIC": "HEIF", "é.jpeg": "JPEG"}.items()
    ):
        originals[name] = smooth(384, 320, seed)
        (tmp_path / name).write_bytes(encoded(originals[name], kind))
    result = load_photos(tmp_path, 320)
    assert [photo.name for photo in result.photos] == ["B.png", "a.webp", "c.HEIC", "d.jpg", "é.jpeg"]
    for photo in result.photos:
        assert photo.pixels.dtype == np.uint8 and photo.pixels.shape == (320, 384, 3)
        close(photo.pixels, originals[photo.name], mean=2.5, most=25)
        assert photo.sha256 == hashlib.sha256((tmp_path / photo.name).read_bytes()).hexdigest()
        assert photo.crop == (32, 0)
        np.testing.assert_array_equal(photo.square(), photo.pixels[:, 32:352])
        np.testing.assert_array_equal(photo.square((0, 0)), photo.pixels[:, :320])
        assert photo.square().flags.owndata and photo.square().flags.writeable
        with pytest.raises(ValueError):
            photo.square((65, 0))
    assert result.report() == "5 photos"


@pytest.mark.parametrize(("width", "height"), [(1000, 700), (700, 1000), (999, 333), (256, 1024), (512, 512)])
def test_the_shorter_side_is_scaled_to_size_and_the_aspect_is_kept(width, height):
    pixels, notes = decode(encoded(smooth(width, height), "PNG"), 384)
    assert min(pixels.shape[:2]) == 384
    assert abs(pixels.shape[1] / pixels.shape[0] - width / height) < 0.5 * max(width, height) / min(width, height) / 384
    assert notes == ((f"enlarged from {width}x{height}",) if min(width, height) < 384 else ())


def test_loading_photos_changes_no_files(folder):
    (folder / "bad.jpg").write_bytes(b"bad")

    def snapshot():
        return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.parent.rglob("*.*")}

    before = snapshot()
    load_photos(folder, SIDE)
    assert snapshot() == before


def test_identity_depends_on_the_bytes_and_order_of_the_files(tmp_path):
    item, two = encoded(smooth(seed=1), "PNG"), encoded(smooth(seed=2), "PNG")
    sets = {"a": (item, two), "b": (item, two), "c": (two, item), "d": (item,)}
    identities = {}
    for name, contents in sets.items():
        (tmp_path / name).mkdir()
        for i, data in enumerate(contents):
            (tmp_path / name / f"{name}{i}.png").write_bytes(data)
        identities[name] = load_photos(tmp_path / name, SIDE).identity
    assert identities["a"] == identities["b"]
    assert len(set(identities.values())) == 3


def test_importing_photos_loads_no_torch_and_registers_no_heif():
    code = "import sys, PIL.Image, sdpersonal.photos; print('torch' in sys.modules, 'HEIF' in PIL.Image.OPEN)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert out.stdout.split() == ["False", "False"], out.stderr


def test_all_real_photos_are_loaded(shared_photos):
    for subject in ("duck_toy", "red_cartoon", "teapot"):
        result = load_photos(shared_photos / subject, 256, crop="subject")
        assert len(result.photos) == len(list((shared_photos / subject).iterdir()))
        assert not result.skipped and not result.duplicates
        assert all(photo.square().shape == (256, 256, 3) for photo in result.photos)


# --- sizes (P-1, P-9)


def test_a_small_file_with_a_huge_declared_size_is_refused():
    for side, megapixels in ((12000, 144), (20000, 400)):
        message = unusable(png(side, side, 8, 2, b"\0"))
        assert message == f"is {side}x{side} ({megapixels} megapixels); up to 50 are allowed: resize it"


def one_colour_webp(width: int, height: int) -> bytes:
    """Lossless, some forty bytes whatever the size: the size of a small one is overwritten."""
    small = Image.new("RGB", (SIDE, SIDE), (200, 30, 60))
    data = bytearray(encoded(small, "WEBP", lossless=True, quality=0, method=0))  # without transforms
    assert data[12:16] == b"VP8L"
    data[21:25] = struct.pack("<I", (width - 1) | (height - 1) << 14)
    return bytes(data)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to measure a process's peak memory")
def test_the_largest_images_use_less_than_a_gigabyte(tmp_path):
    """In a process of its own, whose peak memory is read at the end."""
    contents = {
        "a.jpg": encoded(Image.new("RGB", (8000, 6200), (200, 30, 60)), "JPEG", progressive=True),
        "b.webp": one_colour_webp(8000, 6200),
        "c.png": encoded(Image.new("RGBA", (7000, 7000), (9, 9, 9, 128)), "PNG", compress_level=1),
        "d.png": encoded(Image.new("1", (9000, 9000)), "PNG"),
        "e.webp": one_colour_webp(16383, 16383),
        "f.png": encoded(Image.new("I;16", (7000, 7000)), "PNG", compress_level=1),
        "g.jpg": encoded(Image.new("L", (16320, 12240), 90), "JPEG", quality=50),
        "h.jpg": encoded(Image.new("RGB", (10200, 10000), (9, 9, 9)), "JPEG", progressive=True, quality=50),
        "i.jpg": encoded(Image.new("RGB", (9800, 10200), (200, 0, 9)), "JPEG", progressive=True, subsampling=0),
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    code = (
        "import sys; from pathlib import Path; from sdpersonal.photos.loading import load_photos\n"
        "print(load_photos(Path(sys.argv[1]), 512).report())\n"
        "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    *report, kilobytes = out.stdout.splitlines()
    assert report[0] == "6 photos, 3 unusable files", out.stderr
    assert "10200x10000 (102 megapixels); up to 100 are allowed" in out.stdout
    assert "9000x9000 (81 megapixels)" in out.stdout and "16383x16383 (268 megapixels)" in out.stdout
    assert int(kilobytes) < 1_000_000


@pytest.mark.parametrize(
    ("width", "height", "reason"),
    [
        (1, 1, "is 1x1; the shorter side must have at least 256 pixels"),
        (64, 64, "is 64x64; the shorter side must have at least 256 pixels"),
        (1, 30000, "is 1x30000; the shorter side must have at least 256 pixels"),
        (40, 4000, "is 40x4000; the shorter side must have at least 256 pixels"),
        (300, 1201, "is 300x1201; the longer side may be at most 4 times the shorter: crop it"),
    ],
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_too_small_and_too_elongated_photos_are_refused(width, height, reason, kind):
    assert unusable(encoded(Image.new("RGB", (width, height)), kind)) == reason


def test_a_jpeg_decoded_at_reduced_size_matches_a_full_decode():
    rng = np.random.default_rng(3)
    image = np.clip(smooth(3001, 2003) + rng.normal(0, 12, (2003, 3001, 3)), 0, 255).astype(np.uint8)
    data = encoded(image, "JPEG")
    got, _ = decode(data, 300)
    full = Image.open(io.BytesIO(data)).convert("RGB").resize(got.shape[1::-1], Image.Resampling.LANCZOS)
    close(got, np.asarray(full), mean=0.7, most=8)


def test_a_jpeg_of_54_megapixels_is_scaled_down():
    image = smooth(9000, 6000)
    data = encoded(image, "JPEG", quality=95)
    for size in (256, 2048):
        got, notes = decode(data, size)
        full = Image.fromarray(image).resize((size * 3 // 2, size), Image.Resampling.LANCZOS)
        assert got.shape == (size, size * 3 // 2, 3) and notes == ()
        close(got, np.asarray(full), mean=1.5, most=10)
    assert largest_decoded_side(data) == 5773  # 5773 x 8660 are 50 megapixels


# --- what is not a photo (P-2, P-3, P-4, P-7)


@pytest.mark.parametrize(
    ("kind", "said"),
    [("GIF", "is a GIF"), ("TIFF", "is a TIFF or a camera's raw file"), ("BMP", "is a BMP"), ("AVIF", "is an AVIF"),
     ("EPS", "is an EPS or PostScript file"), ("PDF", "is a PDF"), ("JPEG2000", "is a JPEG 2000 file")],
)  # fmt: skip
def test_other_image_formats_are_refused_by_name(folder, kind, said):
    options = {"quality": 50} if kind == "AVIF" else {}
    out = io.BytesIO()
    Image.fromarray(smooth()).save(out, kind, **options)
    (folder / "a.jpg").write_bytes(out.getvalue())
    assert reasons(folder) == {"a.jpg": f"{said}; export it as PNG or JPEG"}


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (b"8BPS\0\1", "is a Photoshop file; export it as PNG or JPEG"),
        (b"SIMPLE  =                    T", "is a FITS file; export it as PNG or JPEG"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "is an SVG; export it as PNG or JPEG"),
        (b"<!DOCTYPE html><p>404", "is a web page; save the image itself"),
        (b"PK\x03\x04", "is a zip archive; unpack it and give the folder"),
        (b"\x1f\x8b\x08", "is a gzip archive; unpack it and give the folder"),
        (b"\0" * 257 + b"ustar", "is a tar archive; unpack it and give the folder"),
        (b"\0\0\0\x14ftypqt  ", "is a video; use images"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 99\n",
            "is a Git-LFS pointer: the file itself was not downloaded; run `git lfs pull` where it was "
            "cloned, or fetch the file itself from its page",
        ),
        (
            b"\0" * 4000,
            "is nothing but zeros: a download that has not finished; fetch the file again and let it finish",
        ),
        (b"nonsense", "is not an image in a supported format (JPEG, PNG, WebP, HEIC)"),
        (b"\xff", "is not an image in a supported format (JPEG, PNG, WebP, HEIC)"),
    ],
)
def test_other_files_are_refused_by_their_first_bytes(folder, start, said):
    (folder / "a.jpg").write_bytes(start)
    assert reasons(folder) == {"a.jpg": said}


def test_a_photo_with_the_wrong_extension_is_loaded(folder):
    (folder / "a.gif").write_bytes(encoded(smooth(seed=1), "WEBP"))
    assert [photo.name for photo in load_photos(folder, SIDE).photos] == ["a.gif", "b.png"]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "HEIF"])
@pytest.mark.parametrize("kept", [0.98, 0.5, 0.05])
def test_a_truncated_file_is_reported_and_the_others_are_loaded(folder, kind, kept):
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    data = encoded(noise, kind)
    (folder / "cut.jpg").write_bytes(data[: int(len(data) * kept)])
    result = load_photos(folder, SIDE)
    assert [photo.name for photo in result.photos] == ["b.png"]
    assert [(file.name, file.reason) for file in result.skipped] == [("cut.jpg", "ends early (damaged download?)")]


def test_a_damaged_file_is_reported(folder):
    data = bytearray(encoded(smooth(seed=1), "PNG"))
    data[60:200] = bytes(140)
    (folder / "a.png").write_bytes(data)
    assert reasons(folder) == {"a.png": "is damaged and cannot be decoded"}


def test_files_that_are_not_regular_are_skipped_without_blocking(folder):
    (folder.parent / "outside.png").write_bytes(encoded(smooth(seed=5), "PNG"))
    (folder / "empty.jpg").touch()
    (folder / "cat.jpg").mkdir()
    os.mkfifo(folder / "fifo.jpg")
    for name, target in {
        "zero.jpg": "/dev/zero", "shadow.jpg": "/etc/shadow", "up.jpg": "../outside.png", "gone.jpg": "nothing.jpg",
        "circle.jpg": "circle.jpg", "folder.jpg": ".",
    }.items():  # fmt: skip
        (folder / name).symlink_to(target)
    out, folder_said = (
        "is a link that leads out of the folder",
        "is a folder; only photos in the folder itself are used",
    )
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(folder)  # a socket's path may have 108 bytes
        listener.bind("socket.jpg")
        result = reasons(folder)
    assert result.pop("cat.jpg").startswith(folder_said) and result.pop("folder.jpg").startswith(folder_said)
    assert result == {
        "empty.jpg": "is empty",
        "fifo.jpg": "is not a regular file",
        "socket.jpg": "is not a regular file",
        "zero.jpg": out,
        "shadow.jpg": out,
        "up.jpg": out,
        "gone.jpg": "is a link to a file that is not there",
        "circle.jpg": "is not a regular file",
    }


def test_a_device_is_never_opened(folder, monkeypatch):
    try:
        os.mknod(folder / "null.jpg", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root makes devices")
    opened = []
    real = os.open
    monkeypatch.setattr(loading.os, "open", lambda path, *remaining: opened.append(path) or real(path, *remaining))
    assert reasons(folder) == {"null.jpg": "is not a regular file"}
    assert [Path(path).name for path in opened] == ["b.png"]


def test_links_inside_the_folder_are_followed_and_deduplicated(folder):
    (folder / ".store").mkdir()
    (folder / ".store" / "x").write_bytes(encoded(smooth(seed=7), "PNG"))
    (folder / "a.png").symlink_to(".store/x")
    (folder / "c.png").symlink_to("b.png")
    result = load_photos(folder, SIDE)
    assert [photo.name for photo in result.photos] == ["a.png", "b.png"]
    assert [(file.name, file.reason) for file in result.duplicates] == [
        ("c.png", "is the same photo as b.png; used once")
    ]


def test_a_too_large_file_is_refused_without_reading_it(folder):
    with open(folder / "a.jpg", "wb") as file:
        file.truncate(3_000_000_000)  # sparse: takes no room
    assert reasons(folder) == {"a.jpg": "has 3,000 MB; up to 200 are allowed"}


def test_other_files_beside_photos_are_counted_as_ignored(folder):
    for name in (".DS_Store", "Thumbs.db", "._b.png", "notes.txt", "c.txt", "c.caption", "IMG.AAE", "desktop.ini"):
        (folder / name).write_bytes(b"x")
    result = load_photos(folder, SIDE)
    assert result.ignored == 8 and not result.skipped
    assert result.report() == "1 photo, 8 other files ignored"


# --- how many (P-8)


def test_a_folder_without_usable_photos_is_refused(tmp_path):
    with pytest.raises(UserError) as empty:
        load_photos(tmp_path, SIDE)
    assert empty.value.message == f"There are no photos in {tmp_path} (supported: JPEG, PNG, WebP, HEIC)."
    (tmp_path / "a.gif").write_bytes(b"GIF89a")
    (tmp_path / "b.gif").write_bytes(b"GIF89a")
    with pytest.raises(UserError) as unfit:
        load_photos(tmp_path, SIDE)
    assert unfit.value.hint == "a.gif is a GIF; export it as PNG or JPEG. And 1 more are unusable."


@pytest.mark.parametrize("count", [501, 3000])
def test_too_many_files_are_refused_without_reading_them(tmp_path, count):
    for i in range(count):
        (tmp_path / f"{i}.jpg").touch()
    started = time.process_time()
    with pytest.raises(UserError, match=f"contains {count:,} files; up to 500 photos are allowed"):
        load_photos(tmp_path, SIDE)
    assert time.process_time() - started < 5


def test_five_hundred_photos_are_allowed_and_copies_are_used_once(tmp_path):
    data = encoded(smooth(), "JPEG")
    for i in range(499):
        (tmp_path / f"{i:03}.jpg").write_bytes(data)
    (tmp_path / "other.jpg").write_bytes(encoded(smooth(seed=1), "JPEG"))
    result = load_photos(tmp_path, SIDE)
    assert [photo.name for photo in result.photos] == ["000.jpg", "other.jpg"]
    assert len(result.duplicates) == 498
    lines = result.report().splitlines()
    assert lines[0] == "2 photos, 498 there twice" and lines[21] == "  and 478 more" and len(lines) == 22


def test_photos_with_equal_pixels_are_duplicates(folder):
    (folder / "c.webp").write_bytes(encoded(smooth(), "WEBP", lossless=True))
    (folder / "d.png").write_bytes(encoded(smooth(), "PNG", exif=encoded_exif("somewhere")))
    (folder / "e.png").write_bytes(encoded(smooth(seed=1), "PNG"))
    result = load_photos(folder, SIDE)
    assert [photo.name for photo in result.photos] == ["b.png", "e.png"]
    assert [file.name for file in result.duplicates] == ["c.webp", "d.png"]


# --- upright (P-5)

STORED = {  # EXIF orientation -> how a camera stores an upright picture
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "HEIF"])
def test_photos_are_rotated_upright(orientation, kind):
    upright = smooth(256, 384, seed=4)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(STORED[orientation](upright))
    got, _ = decode(encoded(stored, kind, exif=exif.tobytes()), SIDE)
    assert got.shape == upright.shape
    if kind == "PNG":
        np.testing.assert_array_equal(got, upright)
    close(got, upright, mean=2.5, most=25)


def test_photos_with_broken_exif_are_loaded():
    for exif in (
        b"Exif\0\0garbage",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01" * 90,
    ):
        pixels, _ = decode(encoded(smooth(), "JPEG", exif=exif), SIDE)
        close(pixels, smooth(), mean=2, most=20)


# --- nothing of the file but its pixels (P-6)


def overlapping_exif(entries: int, length: int) -> bytes:
    """An Exif directory whose entries all have the same `length` bytes as their value."""
    entry = b"".join(struct.pack("<HHII", 0xA000 + n, 7, length, 8) for n in range(entries))
    return (
        b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", entries + 1) + struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + entry
    )


def png_with(*texts: bytes) -> bytes:
    """A PNG with these chunks before its pixels."""
    data = encoded(smooth(), "PNG")
    chunks = (text[:4] + text[4:] for text in texts)
    added = b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )
    return data[:33] + added + data[33:]


@pytest.fixture
def peak():
    """What was allocated at most until it is asked, in bytes."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "HEIF"])
def test_overlapping_exif_entries_use_little_memory(kind, peak):
    """Pillow copies every entry: 60 kB of Exif become 200 MB, and 600 kB a gigabyte."""
    data = encoded(smooth(256, 384), kind, exif=overlapping_exif(4500, 50_000))
    tracemalloc.reset_peak()
    pixels, _ = decode(data, SIDE)
    assert peak() < 20_000_000 and pixels.shape == (256, 384, 3)  # it still says how to turn the photo


def test_compressed_text_bombs_are_refused_with_little_memory(peak):
    for kind, head in ((b"zTXt", b"k\0\0"), (b"iTXt", b"k\0\1\0\0\0")):
        text = "\U0001f986".encode() + b"x" * 1_000_000
        data = png_with(*[kind + head + zlib.compress(text)] * 50)
        tracemalloc.reset_peak()
        with pytest.raises(UnusablePhoto):
            decode(data, SIDE)
        assert len(data) < 500_000 and peak() < 50_000_000
    data = png_with(b"iCCPk\0\0" + zlib.compress(bytes(100_000_000)))
    tracemalloc.reset_peak()
    with pytest.raises(UnusablePhoto):
        decode(data, SIDE)
    assert peak() < 50_000_000


def test_a_jpeg_with_too_much_metadata_is_refused_quickly():
    segment = b"\xff\xe1\xff\xffExif\0\0" + bytes(0xFFFF - 8)
    photo = encoded(smooth(), "JPEG")
    began = time.process_time()
    with pytest.raises(UnusablePhoto, match="more than 32 MB of metadata"):
        decode(photo[:2] + segment * 1000 + photo[2:], SIDE)
    assert time.process_time() - began < 1
    assert decode(photo[:2] + segment * 3 + photo[2:], SIDE)[0].shape == decode(photo, SIDE)[0].shape


def encoded_exif(mark: str) -> bytes:
    exif = Image.Exif()
    exif[0x010F] = f"{mark}-maker"
    exif[0x013B] = f"{mark}-artist"
    exif.get_ifd(0x8769)[0xA431] = f"{mark}-serial"
    exif.get_ifd(0x8825).update({1: "N", 2: (48.0, 51.0, 29.5), 27: f"{mark}-gps".encode()})
    return exif.tobytes() + f"{mark}-thumbnail".encode()


def test_no_metadata_remains_in_loaded_photos(tmp_path):
    mark = "PLANTED"
    xmp = f"<x:xmpmeta xmlns:x='adobe:ns:meta/'>{mark}-xmp</x:xmpmeta>".encode()
    profile = matrix_profile(DISPLAY_P3, srgb_curve(), mark=f"{mark}-icc")
    common = {"exif": encoded_exif(mark), "xmp": xmp, "icc_profile": profile}
    jpeg = encoded(smooth(), "JPEG", comment=f"{mark}-comment", **common)
    iptc = b"Photoshop 3.0\0" + f"8BIM{mark}-iptc".encode()
    jpeg = jpeg[:2] + b"\xff\xed" + struct.pack(">H", len(iptc) + 2) + iptc + jpeg[2:] + f"{mark}-trailer".encode()
    (tmp_path / "home-address.jpg").write_bytes(jpeg)
    for seed, kind in enumerate(("PNG", "WEBP", "HEIF"), start=1):
        (tmp_path / f"{seed}.photo").write_bytes(encoded(smooth(seed=seed), kind, **common))
    for what in ["maker", "artist", "serial", "gps", "thumbnail", "xmp", "icc", "comment", "iptc", "trailer"]:
        assert f"{mark}-{what}".encode() in jpeg, what
    result = load_photos(tmp_path, SIDE)
    assert len(result.photos) == 4 and not result.skipped
    for photo in result.photos:
        image = Image.fromarray(photo.pixels)
        assert not image.getexif() and not image.info
        for kind in ("PNG", "JPEG", "WEBP"):
            written = encoded(image, kind)
            assert mark.encode() not in written and b"home-address" not in written and b"Exif" not in written
        others = (photo.name, photo.sha256, photo.crop, photo.notes)
        assert mark not in repr(others) + repr(photo) + result.report()


# --- colours (P-10, P-11)

# Columns: red, green and blue in XYZ (D50), from the public definitions of the three spaces.
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
DISPLAY_P3 = np.array([[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])
ADOBE_RGB = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
ADOBE_GAMMA = 563 / 256


def linear(value: np.ndarray) -> np.ndarray:
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def gamma_encoded(value: np.ndarray) -> np.ndarray:
    value = np.clip(value, 0, 1)
    return np.where(value <= 0.0031308, value * 12.92, 1.055 * value ** (1 / 2.4) - 0.055)


def srgb_curve() -> bytes:
    table = np.round(linear(np.linspace(0, 1, 1024)) * 65535).astype(">u2")
    return b"curv\0\0\0\0" + struct.pack(">I", 1024) + table.tobytes()


def matrix_profile(primaries: np.ndarray, curve: bytes, mark: str = "test") -> bytes:
    """An ICC version 2 display profile."""

    def xyz(values) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(v * 65536)) for v in values)

    text = mark.encode() + b"\0"
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(78),
        b"cprt": b"text\0\0\0\0" + text,
        b"wtpt": xyz((0.9642, 1.0, 0.8249)),
        **{name: xyz(primaries[:, i]) for i, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))},
        **{name: curve for name in (b"rTRC", b"gTRC", b"bTRC")},
    }
    table, body, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    full = struct.pack(">I", len(tags)) + table + body
    d50 = struct.pack(">iii", 63190, 65536, 54061)
    header = struct.pack(">I4sI4s4s4s12s4s", 128 + len(full), b"\0" * 4, 0x02400000, b"mntr", b"RGB ", b"XYZ ",
                         bytes(12), b"acsp")  # fmt: skip
    return (header + bytes(28) + d50).ljust(128, b"\0") + full


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG", "HEIF"])
@pytest.mark.parametrize("space", ["Display P3", "Adobe RGB"])
def test_colour_profiles_are_converted_to_srgb(space, kind):
    image = smooth(seed=6)
    if space == "Display P3":
        primaries, curve, light = DISPLAY_P3, srgb_curve(), linear(image / 255)
    else:
        primaries, curve = ADOBE_RGB, b"curv\0\0\0\0" + struct.pack(">IH", 1, 563)
        light = (image / 255) ** ADOBE_GAMMA
    expected = 255 * gamma_encoded(light @ (np.linalg.inv(SRGB) @ primaries).T)
    assert np.abs(expected - image).mean() > 3  # ignoring the profile would be seen
    options = {"lossless": True} if kind == "WEBP" else {}
    got, notes = decode(encoded(image, kind, icc_profile=matrix_profile(primaries, curve), **options), SIDE)
    assert notes == ()
    if kind in ("PNG", "WEBP"):
        close(got, expected, mean=0.6, most=4)
    else:
        close(got, expected, mean=3, most=60)


def test_transparency_is_preserved_by_profile_conversion():
    image = smooth(channels=4)
    profile = matrix_profile(DISPLAY_P3, srgb_curve())
    got, _ = decode(encoded(image, "PNG", icc_profile=profile), SIDE)
    colour = 255 * gamma_encoded(linear(image[..., :3] / 255) @ (np.linalg.inv(SRGB) @ DISPLAY_P3).T)
    alpha = image[..., 3:] / 255
    close(got, colour * alpha + 255 * (1 - alpha), mean=1, most=4)


@pytest.mark.parametrize("profile", [b"not a profile", bytes(500), matrix_profile(SRGB, b"curv")[:300]])
def test_a_broken_colour_profile_is_treated_as_srgb_with_a_note(folder, profile):
    (folder / "a.png").write_bytes(encoded(smooth(seed=1), "PNG", icc_profile=profile))
    result = load_photos(folder, SIDE)
    np.testing.assert_array_equal(result.photos[0].pixels, smooth(seed=1))
    assert result.photos[0].notes == ("broken colour profile, taken as sRGB",)
    assert "  a.png: broken colour profile, taken as sRGB" in result.report()


def test_a_colour_profile_of_another_mode_is_treated_as_broken():
    cmyk = Image.fromarray(smooth()).convert("CMYK")
    _, notes = decode(encoded(cmyk, "JPEG", icc_profile=matrix_profile(SRGB, srgb_curve())), SIDE)
    assert notes == ("broken colour profile, taken as sRGB",)


def test_grey_photos_with_a_colour_profile_stay_grey():
    grey = smooth()[..., 0]
    got, notes = decode(encoded(grey, "PNG", icc_profile=matrix_profile(SRGB, srgb_curve())), SIDE)
    assert notes == ()
    close(got, grey[..., None], mean=0.5, most=2)


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3 or 1), uint8 (H, W) -> float (H, W, 3)."""
    weight = alpha[..., None] / 255
    return np.broadcast_to(colour * weight + 255 * (1 - weight), (*alpha.shape, 3))


def test_grey_photos_become_equal_rgb_channels():
    grey = smooth()[..., 0]
    np.testing.assert_array_equal(decode(encoded(grey, "PNG"), SIDE)[0], np.stack([grey] * 3, -1))


def test_one_bit_photos_become_black_and_white():
    bits = smooth()[..., 0] > 127
    got, _ = decode(encoded(Image.fromarray(bits), "PNG"), SIDE)
    np.testing.assert_array_equal(got, np.stack([bits * np.uint8(255)] * 3, -1))


def test_sixteen_bit_grey_photos_are_scaled_not_clipped():
    grey = smooth()[..., 0]
    got, _ = decode(encoded(Image.fromarray(grey.astype(np.uint16) * 257), "PNG"), SIDE)
    np.testing.assert_array_equal(got, np.stack([grey] * 3, -1))


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (6, 4), (4, 2)])
def test_sixteen_bit_colour_and_alpha_are_decoded(colour, channels):
    image = smooth(channels=channels)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in image.astype(np.uint16) * 257)
    got, _ = decode(png(SIDE, SIDE, 16, colour, rows), SIDE)
    alpha = image[..., -1] if channels in (2, 4) else np.full((SIDE, SIDE), 255)
    close(got, on_white(image[..., : 1 if channels == 2 else 3], alpha), mean=0.6, most=1)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "HEIF"])
def test_alpha_is_flattened_on_white(kind):
    image = smooth(channels=4, seed=2)
    options = {"WEBP": {"lossless": True, "exact": True}, "HEIF": {"quality": -1, "chroma": 444}}.get(kind, {})
    got, _ = decode(encoded(image, kind, **options), SIDE)
    close(got, on_white(image[..., :3], image[..., 3]), mean=1.2, most=6)


def test_grey_with_alpha_is_flattened_on_white():
    image = smooth(channels=2)
    got, _ = decode(encoded(Image.merge("LA", [Image.fromarray(image[..., i]) for i in range(2)]), "PNG"), SIDE)
    close(got, on_white(image[..., :1], image[..., 1]), mean=0.6, most=1)


def test_transparent_palette_entries_are_flattened_on_white():
    index = smooth()[..., 0] // 32  # 0 to 7
    palette = np.random.default_rng(0).integers(0, 256, (8, 3), dtype=np.uint8)
    alpha = np.array([0, 36, 73, 109, 146, 182, 219, 255], dtype=np.uint8)
    image = Image.fromarray(index).convert("L")
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette(palette.tobytes())
    got, _ = decode(encoded(image, "PNG", transparency=alpha.tobytes()), SIDE)
    close(got, on_white(palette[index], alpha[index]), mean=0.6, most=1)
    opaque, _ = decode(encoded(image, "PNG"), SIDE)
    np.testing.assert_array_equal(opaque, palette[index])


def test_a_transparent_colour_key_becomes_white():
    image = (smooth() // 64 * 64).astype(np.uint8)
    key = tuple(int(v) for v in image[100, 100])
    got, _ = decode(encoded(image, "PNG", transparency=key), SIDE)
    hidden = (image == key).all(-1)
    np.testing.assert_array_equal(got, np.where(hidden[..., None], 255, image))


def test_transparent_black_leaves_no_dark_fringe():
    yy, xx = np.mgrid[:1024, :1024]
    inside = (xx - 512) ** 2 + (yy - 512) ** 2 < 300**2
    image = np.zeros((1024, 1024, 4), dtype=np.uint8)
    image[inside] = (255, 128, 0, 255)
    got, _ = decode(encoded(image, "PNG"), 300)
    flat = Image.fromarray(on_white(image[..., :3], image[..., 3]).astype(np.uint8))
    # Not to a level: Lanczos overshoots beside a hard edge, and where that is cut off depends on when white is put in.
    close(got, np.asarray(flat.resize((300, 300), Image.Resampling.LANCZOS)), mean=0.05, most=30)
    assert got[..., 0].min() >= 253  # red is 255 in the disc and on white; a black fringe would show here


def test_cmyk_photos_are_converted_to_rgb():
    cmyk = smooth(channels=4)
    ink = Image.merge("CMYK", [Image.fromarray(cmyk[..., i]) for i in range(4)])
    got, _ = decode(encoded(ink, "JPEG", quality=100, subsampling=0), SIDE)
    paper = 1 - cmyk / 255
    close(got, 255 * paper[..., :3] * paper[..., 3:], mean=1, most=8)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_the_first_frame_of_an_animation_is_used_with_a_note(folder, kind):
    first, second = (Image.fromarray(smooth(seed=seed)) for seed in (8, 9))
    options = {"lossless": True} if kind == "WEBP" else {}
    (folder / "a").write_bytes(encoded(first, kind, save_all=True, append_images=[second], **options))
    result = load_photos(folder, SIDE)
    np.testing.assert_array_equal(result.photos[0].pixels, np.asarray(first))
    assert "  a: first frame of an animation" in result.report()


def test_the_primary_image_of_a_heic_is_used_with_a_note():
    several = pillow_heif.from_pillow(Image.fromarray(smooth(seed=8)))
    several.add_from_pillow(Image.fromarray(smooth(seed=9)))
    out = io.BytesIO()
    several.save(out, quality=90, primary_index=1)
    got, notes = decode(out.getvalue(), SIDE)
    close(got, smooth(seed=9), mean=2.5, most=25)
    assert notes == ("main image of 2 in the file",)


def test_ten_bit_heic_photos_are_decoded():
    deep = smooth().astype(np.uint16) * 257
    out = io.BytesIO()
    pillow_heif.from_bytes("RGB;16", (SIDE, SIDE), deep.astype("<u2").tobytes()).save(out, quality=90)
    close(decode(out.getvalue(), SIDE)[0], smooth(), mean=2.5, most=25)


# --- names and folders (P-12, P-13, P-15)


def test_hostile_file_names_are_shown_safely(tmp_path):
    names = [b"-rf", b"a\nb.jpg", b"<img src=x onerror=alert(1)>.jpg", "\u202egpj.exe".encode(), b"x" * 251 + b".jpg",
             b"\xff.jpg", b"$(touch x).jpg", b"\x1b[31mred.png"]  # fmt: skip
    for seed, name in enumerate(names):
        (tmp_path / os.fsdecode(name)).write_bytes(encoded(smooth(seed=seed), "PNG") if seed % 2 else b"GIF89a")
    result = load_photos(tmp_path, SIDE)
    assert len(result.photos) == 4 and len(result.skipped) == 4
    displayed = [photo.name for photo in result.photos] + [file.name for file in result.skipped]
    assert all(name.isprintable() and len(name) <= 100 for name in displayed)
    assert {"a\\nb.jpg", "\\udcff.jpg", "\\u202egpj.exe", "\\x1b[31mred.png"} <= set(displayed)
    result.report().encode()  # no lone surrogates
    assert sorted(os.listdir(os.fsencode(tmp_path))) == sorted(names)


def test_photos_are_sorted_by_the_bytes_of_their_names(tmp_path):
    names = [b"\xff.png", b"B.png", b"a.png", "é.png".encode(), b"10.png", b"9.png"]
    for seed, name in enumerate(names):
        (tmp_path / os.fsdecode(name)).write_bytes(encoded(smooth(seed=seed), "PNG"))
    expected = [hashlib.sha256((tmp_path / os.fsdecode(name)).read_bytes()).hexdigest() for name in sorted(names)]
    assert [photo.sha256 for photo in load_photos(tmp_path, SIDE).photos] == expected


def meddle(monkeypatch, change) -> None:
    """Run `change(path)` just before a file is opened, as another program would."""
    real = os.open

    def late(path, *remaining):
        change(Path(path))
        return real(path, *remaining)

    monkeypatch.setattr(loading.os, "open", late)


def test_a_photo_deleted_while_reading_is_reported(folder, monkeypatch):
    (folder / "c.png").write_bytes(encoded(smooth(seed=1), "PNG"))
    meddle(monkeypatch, lambda path: (folder / "c.png").unlink(missing_ok=True))
    assert reasons(folder) == {"c.png": "vanished while it was read"}


def test_a_photo_replaced_while_reading_is_reported(folder, monkeypatch):
    secret = folder.parent / "secret.png"
    secret.write_bytes(encoded(smooth(seed=3), "PNG"))
    for name in ("link.png", "fifo.png", "grows.png"):
        (folder / name).write_bytes(encoded(smooth(seed=1), "PNG"))

    def swap(path):
        if path.name in ("link.png", "fifo.png"):
            path.unlink()
            path.symlink_to(secret) if path.name == "link.png" else os.mkfifo(path)

    meddle(monkeypatch, swap)
    real_fstat = os.fstat

    def fstat(descriptor):
        status = real_fstat(descriptor)
        with open(folder / "grows.png", "ab") as file:
            file.write(b"more")
        return status

    monkeypatch.setattr(loading.os, "fstat", fstat)
    result = reasons(folder)
    assert result["fifo.png"] == "is not a regular file" and result["link.png"].startswith("cannot be read")
    assert result["grows.png"] == "changed while it was read"


def test_invalid_photo_folders_are_refused_with_a_message(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded(smooth(), "JPEG"))
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04rest")
    os.mkfifo(tmp_path / "fifo")
    for path, message in {
        tmp_path / "nothing": f"There is no folder {tmp_path}/nothing.\nGive the folder that holds your photos.",
        tmp_path / "a.jpg": f"{tmp_path}/a.jpg is a file, not a folder.\nGive the folder that holds your photos.",
        tmp_path / "a.zip": f"{tmp_path}/a.zip is a zip archive; unpack it and give the folder.",
        tmp_path / "fifo": f"{tmp_path}/fifo is a file, not a folder.\nGive the folder that holds your photos.",
        tmp_path / ("x" * 300): "has a name of 300 bytes in it",
        Path("a\0b"): "control character U+0000",
    }.items():
        with pytest.raises(UserError) as error:
            load_photos(path, SIDE)
        assert message in str(error.value).replace(str(tmp_path)[:60] + "…", str(tmp_path))


@contextlib.contextmanager
def as_nobody():
    """Root may read anything, so its rights are given up for a moment."""
    was_root = os.geteuid() == 0
    if was_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if was_root:
            os.seteuid(0)


def test_unreadable_photos_and_folders_are_reported():
    with tempfile.TemporaryDirectory() as place:  # tmp_path is closed to others as a whole
        os.chmod(place, 0o755)
        folder = Path(place)
        (folder / "a.png").write_bytes(encoded(smooth(), "PNG"))
        (folder / "b.png").write_bytes(encoded(smooth(seed=1), "PNG"))
        (folder / "b.png").chmod(0)
        (folder / "closed").mkdir(mode=0)
        with as_nobody():
            assert reasons(folder)["b.png"] == "cannot be read: Permission denied"
            with pytest.raises(UserError, match=r"The folder .* cannot be read: Permission denied"):
                load_photos(folder / "closed", SIDE)


# --- the subject


def scene(width: int, height: int, x: int, y: int, radius: int) -> np.ndarray:
    """A disc of a colour of its own before a colourful, noisy background."""
    background = smooth(width, height, seed=11) * 0.35 + np.random.default_rng(1).normal(90, 8, (height, width, 3))
    yy, xx = np.mgrid[:height, :width]
    background[(xx - x) ** 2 + (yy - y) ** 2 < radius**2] = (250, 40, 200)
    return background.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("x", [110, 250, 400, 700, 890])
def test_the_subject_crop_contains_the_subject(x):
    for turned in (False, True):
        image = scene(1000, 400, x, 210, 100)
        if turned:
            image = np.ascontiguousarray(image.transpose(1, 0, 2))
        left, top = find_subject(image)[::-1] if turned else find_subject(image)
        assert top == 0 and 0 <= left <= 600
        assert left <= x - 100 + 12 and left + 400 >= x + 100 - 12


@pytest.mark.parametrize("value", [0, 128, 255])
def test_the_subject_crop_of_a_plain_image_is_centered(value):
    left, top = find_subject(np.full((300, 900, 3), value, dtype=np.uint8))
    assert abs(left - 300) <= 4 and top == 0
    assert find_subject(np.full((300, 300, 3), value, dtype=np.uint8)) == (0, 0)


@pytest.mark.parametrize(("width", "height"), [(257, 256), (256, 257), (1024, 256), (300, 299), (256, 1024)])
def test_the_subject_crop_stays_inside_the_photo(width, height):
    for seed in range(10):
        pixels = smooth(width, height, seed)
        left, top = find_subject(pixels)
        assert 0 <= left <= width - min(width, height) and 0 <= top <= height - min(width, height)


def test_load_photos_crops_to_the_center_or_the_subject(folder):
    (folder / "a.png").write_bytes(encoded(scene(1000, 400, 150, 200, 90), "PNG"))
    centred, result = (load_photos(folder, SIDE, crop=crop).photos[0] for crop in ("center", "subject"))
    assert centred.crop == (192, 0)
    assert result.crop[0] < 60
    magenta = np.abs(result.square().astype(int) - (250, 40, 200)).sum(-1) < 60
    assert magenta.sum() > 0.9 * np.pi * (90 * SIDE / 400) ** 2


# In these photos of real subjects, seen by a person: the subject's left and right edge as shares of the width, and the
# rows of a strip through it. A square in the strip's middle cuts the subject.
STRIPS = {
    "can/03.jpg": (0.55, 0.74, 0.25, 0.60),
    "vase/05.jpg": (0.17, 0.36, 0.45, 0.80),
    "vase/00.jpg": (0.18, 0.39, 0.35, 0.70),
    "cat/02.jpg": (0.07, 0.45, 0.10, 0.55),
    "dog6/00.jpg": (0.03, 0.60, 0.25, 0.80),
}


@pytest.mark.parametrize("name", STRIPS)
def test_the_subject_crop_contains_real_subjects(shared_photos, name):
    left, right, upper, lower = STRIPS[name]
    image = Image.open(shared_photos / name).convert("RGB")
    strip = np.asarray(image)[int(upper * image.height) : int(lower * image.height)]
    side, width = strip.shape[:2]
    start, _ = find_subject(strip)

    def share(begin: float) -> float:
        recorded = min(begin + side, right * width) - max(begin, left * width)
        return recorded / min(side, (right - left) * width)

    assert share(start) >= 0.7 and share(start) > share((width - side) / 2)


def test_exif_that_repeats_its_signature_is_read_in_linear_time():
    began = time.process_time()
    assert exif_orientation(b"Exif\0\0" * 400_000) is None  # 2.4 MB
    assert exif_orientation(b"Exif\0\0" * 2 + b"II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0") == 6
    assert time.process_time() - began < 2
