"""The photos of a page before a training: copied, stripped, looked at, turned, left out, delivered."""

import io
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdpersonal import storage
from sdpersonal.app.backend.train import photo_review, uploads
from sdpersonal.app.backend.train.photo_files import MAX_UPLOADS, SAMPLE_SETS
from sdpersonal.app.backend.train.photo_review import _FIXES, ReviewOptions, SeenPhotos, review_photos
from sdpersonal.app.backend.train.uploads import PhotoUploads
from sdpersonal.errors import DiskFull, FieldError, UserError
from sdpersonal.photos.checks import Finding
from sdpersonal.photos.crops import OwnCrop
from sdpersonal.photos.decode import decode
from sdpersonal.photos.loading import load_photos
from support import bad_photos as bad

BEAR = Path(__file__).parents[2] / "examples" / "photos" / "teddy-bear"


def picture(path, seed=0, size=(320, 280), **saving):
    pixels = np.random.default_rng(seed).integers(0, 255, (9, 10, 3), np.uint8)
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(path, **saving)
    return path


@pytest.fixture
def photo_uploads(tmp_path):
    (tmp_path / "photo_uploads").mkdir()
    return PhotoUploads(tmp_path / "photo_uploads", 128)


@pytest.fixture
def bear(photo_uploads):
    photo_uploads.add(sorted(BEAR.iterdir()))
    return photo_uploads


def everything(folder):
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_uploaded_photos_are_saved_without_metadata(photo_uploads, tmp_path):
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "SECRET camera", 6
    exif.get_ifd(0x8825)[2] = (52.0, 31.0, 12.0)
    source = picture(tmp_path / "at my SECRET place.jpg", exif=exif, quality=95)
    assert photo_uploads.add([source]) == []
    assert b"SECRET" not in everything(photo_uploads.folder)
    assert [path.name for path in (photo_uploads.folder / "photos").iterdir()] == ["photo 01"]
    with Image.open(photo_uploads.path("photo 01")) as photo:
        assert photo.size == (280, 320) and not photo.getexif()  # upright


def test_captions_are_uploaded_with_photos_and_can_be_changed(bear, tmp_path):
    assert [photo.name for photo in bear.photos()] == [f"photo {n:02d}" for n in range(1, 6)]
    first = (BEAR / "01.txt").read_text().strip()
    assert bear.photo("photo 01").captions == first
    bear.set_captions("photo 02", "{} at home\n\n{} on a chair")
    bear.set_captions("photo 03", "")
    for wrong, reason in (
        ("no place for it", "needs {} once"),
        ("{} and {}", "has {} 2 times in line 1"),
        ("{} " + "x" * 20_000, "has 20,003 characters in line 1"),
        ("{} \x1b[31m", "control character U+001B"),
        ("{} \ud83d", "not valid Unicode"),
    ):
        with pytest.raises(UserError, match=re.escape(reason)):
            bear.set_captions("photo 02", wrong)
    bear.set_captions("photo 02", "{}\u00a0at\u200b home")
    assert bear.photo("photo 02").captions == "{} at home"
    bear.set_captions("photo 02", "{} at home\n\n{} on a chair")
    for wrong in (None, 5, ["{}"]):
        bear.set_captions("photo 04", wrong)
    bear.copy_to(tmp_path / "photos")
    captions = {photo.name: photo.captions for photo in load_photos(tmp_path / "photos", 128).photos}
    assert captions["photo 01"] == tuple(first.splitlines())
    assert captions["photo 02"] == ("{} at home", "{} on a chair")
    assert captions["photo 03"] == captions["photo 04"] == ()


def test_unusable_files_are_reported_and_the_photos_are_added(photo_uploads, tmp_path):
    good = picture(tmp_path / "good.png")
    (tmp_path / "page.jpg").write_text("<html>")
    (tmp_path / "cut.jpg").write_bytes(picture(tmp_path / "whole.jpg", 3).read_bytes()[:-3000])
    (tmp_path / "<img src=x onerror=alert(1)>.jpg").write_bytes(b"GIF89a")
    picture(tmp_path / "small.png", size=(100, 100))
    shutil.copy(good, tmp_path / "again.png")
    (tmp_path / ".DS_Store").write_bytes(b"x")
    messages = photo_uploads.add([path for path in tmp_path.iterdir() if path.is_file() and path.name != "whole.jpg"])
    text = "\n".join(messages)
    for words in ("a web page", "ends early", "a GIF", "at least 256", "is the same photo as photo 01"):
        assert words in text
    assert "DS_Store" not in text and len(photo_uploads.uploads) == 1
    many = [(tmp_path / f"{n}.gif") for n in range(20)]
    for path in many:
        path.write_bytes(b"GIF89a")
    messages = photo_uploads.add(many)
    assert len(messages) == 6 and messages[-1] == "And 15 more that cannot be used."


def test_too_many_files_are_refused_before_they_are_read(photo_uploads, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="1,000 files; at most 40"):
        photo_uploads.add([tmp_path / f"{n}.jpg" for n in range(1000)])  # which need not exist
    with pytest.raises(UserError, match="no photos"):
        photo_uploads.add([])
    (tmp_path / "01.txt").write_text("{}")
    with pytest.raises(UserError, match="no photos"):
        photo_uploads.add([tmp_path / "01.txt"])
    for n in range(MAX_UPLOADS):
        photo_uploads.uploads.append(uploads.Upload(f"photo {n}", str(n)))
    with pytest.raises(UserError, match="at most 40"):
        photo_uploads.add([picture(tmp_path / "a.png")])
    photo_uploads.uploads.clear()
    monkeypatch.setattr(storage, "free_bytes", lambda folder: 1000)
    with pytest.raises(DiskFull, match="disk is nearly full"):
        photo_uploads.add([tmp_path / "a.png"])
    assert list(photo_uploads.folder.iterdir()) == []


def test_a_photo_can_be_rotated_left_out_and_used_again(bear):
    path = bear.path("photo 01")
    before, version = np.asarray(Image.open(path)), bear.photo("photo 01").version
    bear.rotate("photo 01", 1)
    assert np.array_equal(np.asarray(Image.open(path)), np.rot90(before))
    assert bear.photo("photo 01").version != version
    bear.rotate("photo 01", 3)
    assert np.array_equal(np.asarray(Image.open(path)), before)
    bear.use("photo 01", False)
    assert [photo.name for photo in bear.photos() if not photo.used] == ["photo 01"]
    bear.use("photo 01", True)
    assert all(photo.used for photo in bear.photos()) and bear.photo("photo 01").captions
    for name in ("photo 06", "photo 1", "", "photo 01.txt", "../photos/photo 01", "photos.json", "photo 01\0", None, 0):
        for act in (
            lambda n: bear.rotate(n, 1),
            lambda n: bear.use(n, False),
            bear.photo,
            lambda n: bear.jpeg(n, True),
        ):
            with pytest.raises(UserError, match="does not exist any more"):
                act(name)
    bear.clear()
    assert bear.photos() == [] and list((bear.folder / "photos").iterdir()) == []
    bear.add([BEAR / "02.jpg"])
    assert [photo.name for photo in bear.photos()] == ["photo 01"]  # counted anew


def test_photos_survive_a_restart_and_a_crash(bear):
    """What the list names is there; of what a crash left half done, nothing is."""
    bear.use("photo 02", False)
    bear.set_crop("photo 03", OwnCrop(0.25, 0.25, 0.5))
    bear.set_captions("photo 04", "{} at home")
    photos = bear.folder / "photos"
    shutil.copy(photos / "photo 01", photos / "photo 06")  # written, but not yet listed
    (photos / "photo 06.txt").write_text("{}")
    (photos / "photo 05").unlink()
    (bear.folder / "thumbs" / next(path.name for path in (bear.folder / "thumbs").iterdir())).unlink()
    again = PhotoUploads(bear.folder, 128)
    assert [(p.name, p.used, p.crop, p.captions) for p in again.photos()] == [
        (p.name, p.used, p.crop, p.captions) for p in map(bear.photo, [f"photo {n:02d}" for n in range(1, 5)])
    ]
    assert not list(photos.glob("photo 06*")) and not list(photos.glob("photo 05*"))
    for photo in again.photos():  # a thumbnail that is missing is made anew
        thumb = Image.open(io.BytesIO(again.jpeg(photo.name, thumb=True)))
        assert thumb.format == "JPEG" and max(thumb.size) == 384 and not thumb.getexif()
        assert Image.open(io.BytesIO(again.jpeg(photo.name, thumb=False))).size == photo.size
    (bear.folder / "photos.json").write_text("damaged")
    assert [p.name for p in PhotoUploads(bear.folder, 128).photos()] == [f"photo {n:02d}" for n in range(1, 5)]


def test_a_manual_crop_is_used_exactly_for_training(photo_uploads, tmp_path):
    photo_uploads.add([picture(tmp_path / "a.png", 1, (900, 600)), picture(tmp_path / "b.png", 2, (600, 900))])
    wide, tall = (np.asarray(Image.open(photo_uploads.path(f"photo 0{n}"))) for n in (1, 2))
    assert wide.shape[:2] == (512, 768) and tall.shape[:2] == (768, 512)
    photo_uploads.set_crop("photo 01", OwnCrop(480 / 768, 100 / 512, 128 / 512))
    photo_uploads.set_crop("photo 02", OwnCrop(0.0, 640 / 768, 128 / 512))
    photo_uploads.copy_to(tmp_path / "run")
    first, second = load_photos(tmp_path / "run", 128, "subject").photos
    assert np.array_equal(first.square(), wide[100:228, 480:608])
    assert np.array_equal(second.square(), tall[640:768, 0:128])
    smaller = load_photos(tmp_path / "run", 64).photos[0]  # the photo at half its size, and the square of that
    half, _ = decode((tmp_path / "run" / "photo 01").read_bytes(), 256)
    assert np.array_equal(smaller.square(), half[50:114, 240:304])
    photo_uploads.rotate("photo 01", 1)
    assert photo_uploads.photo("photo 01").crop is None and photo_uploads.photo("photo 02").crop is not None
    photo_uploads.set_crop("photo 02", None)
    assert photo_uploads.photo("photo 02").crop is None
    for crop in (OwnCrop(0.6, 0, 0.5), OwnCrop(0, 0.8, 0.5), OwnCrop(0, 0, 0.1), OwnCrop(0, 0, 0)):
        with pytest.raises(FieldError, match="The crop has a square"):
            photo_uploads.set_crop("photo 02", crop)


# --- the review -------------------------------------------------------------------------------------------------------


def options(kind="object", noun="bear", crop="center"):
    return ReviewOptions(kind, noun, crop, 128, "tiny")


def test_a_review_contains_the_marks_and_crops_of_photos(bear):
    review = review_photos(bear.photos(), options(), SeenPhotos())
    assert review.count == 5 and review.advice == {} and review.findings == ()
    bear.use("photo 03", False)
    bear.rotate("photo 01", 1)
    bear.set_crop("photo 02", OwnCrop(0.1, 0.2, 0.5))
    review = review_photos(bear.photos(), options(crop="subject"), SeenPhotos())
    assert review.count == 4 and set(review.marks) == {"photo 01", "photo 02", "photo 04", "photo 05"}
    assert review.crops["photo 02"] == (0.1, 0.2, 0.5) and set(review.crops) == {p.name for p in bear.photos()}
    for photo in bear.photos():
        bear.use(photo.name, False)
    assert review_photos(bear.photos(), options(), SeenPhotos()).count == 0


def test_only_a_changed_photo_is_reviewed_again(bear, monkeypatch):
    read, load = [], photo_review.load_photo
    monkeypatch.setattr(photo_review, "load_photo", lambda path, *rest: (read.append(path.name), load(path, *rest))[1])
    seen = SeenPhotos()
    first = review_photos(bear.photos(), options(), seen)
    assert read == [photo.name for photo in bear.photos()]
    for change, changed in (
        (lambda: bear.set_captions("photo 01", "{} at home"), ""),
        (lambda: bear.use("photo 02", False), ""),
        (lambda: bear.use("photo 02", True), ""),
        (lambda: bear.rotate("photo 03", 1), "photo 03"),
        (lambda: bear.set_crop("photo 04", OwnCrop(0.1, 0.1, 0.8)), "photo 04"),
        (lambda: bear.set_crop("photo 04", None), ""),
    ):
        change()
        read.clear()
        again = review_photos(bear.photos(), options(), seen)
        assert read == [] if not changed else read[0] == changed and len(read) < 3  # and one that resembles it
        assert again == review_photos(bear.photos(), options(), SeenPhotos())
    bear.rotate("photo 03", 3)
    assert review_photos(bear.photos(), options(), seen) == first


def test_the_advice_leaves_out_dark_and_duplicate_photos(bear, tmp_path):
    """A dark photo and a second one of the same are left out."""
    dark = Image.open(BEAR / "02.jpg").point(lambda level: level * 0.04)
    dark.save(tmp_path / "dark.png")
    again = Image.open(BEAR / "03.jpg")
    again.crop((6, 6, again.width, again.height)).save(tmp_path / "again.png")
    bear.add([tmp_path / "dark.png", tmp_path / "again.png"])
    review = review_photos(bear.photos(), options(), SeenPhotos())
    messages = " ".join(finding.message for finding in review.findings)
    assert "too dark" in messages and "nearly the same" in messages
    assert [name for name, marks in review.marks.items() if "dark" in marks] == ["photo 07"]
    assert review.marks["photo 07"] == ("like another", "dark")
    assert sum("like another" in marks for marks in review.marks.values()) == 4
    assert review.advice == {"photo 06": 0, "photo 07": 0}
    for name in review.advice:
        bear.use(name, False)
    assert review_photos(bear.photos(), options(), SeenPhotos()).advice == {}


@pytest.mark.parametrize("clockwise", [True, False])
def test_the_advice_rotates_a_sideways_photo_upright(photo_uploads, tmp_path, clockwise):
    upright = bad.in_one_place(seed=0)
    photo_uploads.add(sorted(bad.save_all(bad.with_one_turned(upright, 2, clockwise), tmp_path / "photos").iterdir()))
    review = review_photos(photo_uploads.photos(), options(noun=""), SeenPhotos())
    assert "on its side?" in review.marks["photo 03"]
    photo_uploads.rotate("photo 03", review.advice["photo 03"])
    now = np.asarray(Image.open(photo_uploads.path("photo 03")).resize((64, 64)), np.float32)
    then = np.asarray(upright[2].convert("RGB").resize((64, 64)), np.float32)
    assert np.abs(now - then).mean() < 8 < np.abs(now - np.rot90(then, 2)).mean()


def test_photos_of_different_subjects_are_reported(photo_uploads, shared_photos):
    things = ("backpack", "can", "cat", "clock", "dog", "teapot", "vase")
    photo_uploads.add([sorted((shared_photos / thing).iterdir())[0] for thing in things])
    findings = {
        finding.name for finding in review_photos(photo_uploads.photos(), options(noun="dog"), SeenPhotos()).findings
    }
    assert "two-subjects" in findings


def test_review_hints_name_no_command_line_flags():
    things = [Finding(name, ("photo 01",), "Nothing looks like --class x.", "e", "use --class") for name in _FIXES]
    for finding in things:
        shown = photo_review._for_page(finding, options(noun="bear"))
        assert "--" not in shown.hint and "01.txt" not in shown.hint
        assert "--" not in shown.message or finding.name != "wrong-class"


def test_every_sample_set_has_five_photos():
    for samples in SAMPLE_SETS:
        assert len([path for path in samples.files() if path.suffix == ".jpg"]) == 5
