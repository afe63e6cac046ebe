"""Crops by hand: which square of a photo the trainer sees, and what is said about files that cannot be used."""

import json

import numpy as np
import pytest
from PIL import Image

from sdpersonal.photos.captions import Refused
from sdpersonal.photos.crops import OwnCrop, crop_json, parse_crop
from sdpersonal.photos.decode import decode
from sdpersonal.photos.loading import load_photo, load_photos


def noise(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "photos").mkdir()
    return tmp_path / "photos"


def put(folder, name, pixels, crop=None, **saving):
    Image.fromarray(pixels).save(folder / name, **saving)
    if crop is not None:
        (folder / name).with_suffix(".crop.json").write_text(json.dumps({"crop": crop}))


def test_a_manual_crop_equals_numpy_slicing(folder):
    pixels = noise(640, 480)
    put(folder, "01.png", pixels, [160 / 640, 120 / 480, 256 / 480])
    put(folder, "02.png", pixels[:, ::-1])
    cropped, whole = load_photos(folder, 256).photos
    assert np.array_equal(cropped.square(), pixels[120:376, 160:416])
    assert cropped.own_crop == (0.25, 0.25, 256 / 480) and cropped.original_size == (256, 256) and cropped.notes == ()
    assert whole.own_crop is None and whole.pixels.shape == (256, 341, 3)
    smaller = load_photo(folder / "01.png", 128)  # of the photo at half its size
    half, _ = decode((folder / "01.png").read_bytes(), 240)
    assert np.array_equal(smaller.square(), half[60:188, 80:208])
    larger = load_photo(folder / "01.png", 512)
    expected = Image.fromarray(pixels[120:376, 160:416]).resize((512, 512), Image.Resampling.LANCZOS)
    assert np.array_equal(larger.square(), np.asarray(expected))
    assert "enlarged from its crop of 256x256" in larger.notes


def test_crop_coordinates_refer_to_the_upright_photo(folder):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the stored rows are the photo's columns
    pixels = noise(640, 480)
    put(folder, "01.png", pixels, [0.0, 0.5, 256 / 480], exif=exif)
    upright = np.rot90(pixels, 3)
    assert np.array_equal(load_photo(folder / "01.png", 256, "subject").square(), upright[320:576, 0:256])


@pytest.mark.parametrize(("width", "height"), [(768, 511), (511, 768), (1023, 1022), (301, 1199), (513, 512)])
def test_a_crop_at_the_edge_stays_inside_at_every_resolution(folder, width, height):
    short = min(width, height)
    for number, side in enumerate((0.4, 0.7, 1.0)):
        crop = [(width - side * short) / width, (height - side * short) / height, side]
        put(folder, f"0{number}.png", noise(width, height, number), [round(share, 6) for share in crop])
    for size in (64, 100, 128, 257, 512):
        for photo in load_photos(folder, size).photos:
            assert photo.own_crop and photo.square().shape == (size, size, 3), photo.notes


def test_a_crop_file_changes_the_identity_and_is_not_counted_as_ignored(folder):
    put(folder, "01.png", noise(640, 480))
    plain = load_photos(folder, 128)
    put(folder, "01.png", noise(640, 480), [0, 0, 0.5])
    cropped = load_photos(folder, 128)
    assert plain.identity != cropped.identity and cropped.ignored == 0
    (folder / "02.crop.json").write_text("{}")
    assert load_photos(folder, 128).ignored == 1
    (folder / "01.crop.json").rename(folder / "01.PNG.Crop.json")  # its full name, in any case
    assert load_photos(folder, 128).photos[0].own_crop == (0, 0, 0.5)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        ("{" * 5000, "is not JSON|larger"),
        ("x" * 2000, "is larger"),
        ('{"crop": [NaN, 0, 1]}', "is not JSON"),
        ("[0, 0, 1]", "has no crop of three numbers"),
        ("{}", "has no crop of three numbers"),
        ('{"crop": [0, 0]}', "has no crop of three numbers"),
        ('{"crop": [0, 0, true]}', "has no crop of three numbers"),
        ('{"crop": [0, 0, "1"]}', "has no crop of three numbers"),
        ('{"crop": [0, -0.1, 0.5]}', "has no crop of three numbers"),
        ('{"crop": [0, 0, 1e400]}', "is not JSON|three numbers"),
        ('{"crop": [0.9, 0, 0.5]}', "not inside the photo"),
        ('{"crop": [0, 0.6, 0.5]}', "not inside the photo"),
        ('{"crop": [0, 0, 0.1]}', "a square of 48 pixels; at least 64"),
        ('{"crop": [0, 0, 0]}', "a square of 0 pixels; at least 64"),
    ],
)
def test_an_invalid_crop_is_reported_and_the_photo_is_used(folder, text, reason):
    put(folder, "01.png", noise(640, 480))
    without = load_photos(folder, 128).photos[0]
    (folder / "01.crop.json").write_text(text)
    photo = load_photos(folder, 128, "center").photos[0]
    (note,) = photo.notes
    assert note.startswith("its crop is not used: ") and any(words in note for words in reason.split("|"))
    assert np.array_equal(photo.square(), without.square()) and photo.own_crop is None


def test_the_crop_box_stays_inside_and_its_json_is_read_without_loss():
    rng = np.random.default_rng(0)
    for width, height in ((640, 480), (480, 640), (257, 1028), (300, 300)):
        short = min(width, height)
        for _ in range(200):
            side = rng.uniform(64 / short, 1)
            crop = OwnCrop(rng.uniform(0, 1 - side * short / width), rng.uniform(0, 1 - side * short / height), side)
            crop.check(width, height)
            left, top, pixels = crop.box(width, height)
            assert 0 <= left <= width - pixels and 0 <= top <= height - pixels and abs(pixels - side * short) <= 0.5
            assert parse_crop(crop_json(crop).encode()) == crop
    with pytest.raises(Refused):
        parse_crop(b"\xff\xfe")
