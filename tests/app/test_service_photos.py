"""The photos of a page before a training: copied, stripped, looked at, turned, left out, delivered."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sdpersonal.app.backend.train.train_page import TrainPage

from sdpersonal import storage
from sdpersonal.app.backend import Workspace
from sdpersonal.app.backend.library.import_export import import_uploads
from sdpersonal.app.backend.train import uploads
from sdpersonal.app.backend.train.photo_files import MAX_UPLOADS, sample_sets
from sdpersonal.app.backend.train.photo_review import apply_advice, review_photos
from sdpersonal.app.backend.train.uploads import PhotoUploads, UploadsByPage
from sdpersonal.concepts.library import Library
from sdpersonal.errors import DiskFull, UserError
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
def workspace(tmp_path):
    (tmp_path / "shown").mkdir()
    return Workspace(Library(tmp_path / "concepts"), tmp_path / "outputs", tmp_path / "runs", tmp_path / "shown")


@pytest.fixture
def bear(photo_uploads):
    photo_uploads.add(sorted(BEAR.iterdir()))
    return photo_uploads


def everything(folder):
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_what_is_kept_of_a_photo_is_its_pixels_and_no_more(photo_uploads, tmp_path):
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "SECRET camera", 6
    exif.get_ifd(0x8825)[2] = (52.0, 31.0, 12.0)
    source = picture(tmp_path / "at my SECRET place.jpg", exif=exif, quality=95)
    assert photo_uploads.add([source]) == []
    assert b"SECRET" not in everything(photo_uploads.folder)
    assert [path.name for path in (photo_uploads.folder / "used").iterdir()] == ["photo 01"]
    with Image.open(photo_uploads.path(0)) as photo:
        assert photo.size == (280, 320) and not photo.getexif()  # upright


def test_captions_come_along_by_name_and_can_be_changed(bear, tmp_path):
    assert [snap.name for snap in bear.uploads] == [f"photo {n:02d}" for n in range(1, 6)]
    first = (BEAR / "01.txt").read_text().strip()
    assert bear.captions(0) == first
    bear.set_caption(1, "{} at home\n\n{} on a chair")
    bear.set_caption(2, "")
    for wrong, reason in (
        ("no place for it", "needs {} once"),
        ("{} and {}", "has {} 2 times in line 1"),
        ("{} " + "x" * 20_000, "has 20,003 characters in line 1"),
        ("{} \x1b[31m", "control character U+001B"),
        ("{} \ud83d", "not valid Unicode"),
    ):
        with pytest.raises(UserError, match=re.escape(reason)):
            bear.set_caption(1, wrong)
    bear.set_caption(1, "{}\u00a0at\u200b home")
    assert bear.captions(1) == "{} at home"
    bear.set_caption(1, "{} at home\n\n{} on a chair")
    for wrong in (None, 5, ["{}"]):
        bear.set_caption(3, wrong)
    bear.copy_to(tmp_path / "photos")
    captions = {photo.name: photo.captions for photo in load_photos(tmp_path / "photos", 128).photos}
    assert captions["photo 01"] == tuple(first.splitlines())
    assert captions["photo 02"] == ("{} at home", "{} on a chair")
    assert captions["photo 03"] == captions["photo 04"] == ()


def test_files_that_are_no_photos_are_told_and_the_rest_is_used(photo_uploads, tmp_path):
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


def test_too_much_at_once_is_refused_before_anything_is_read(photo_uploads, tmp_path, monkeypatch):
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


def test_a_photo_is_turned_and_left_out_and_comes_back(bear):
    before = np.asarray(Image.open(bear.path(0)))
    bear.rotate(0, 1)
    assert np.array_equal(np.asarray(Image.open(bear.path(0))), np.rot90(before))
    bear.rotate(0, 3)
    assert np.array_equal(np.asarray(Image.open(bear.path(0))), before)
    bear.use(0, False)
    assert len(bear.used_photos().photos) == 4 and [photo.name for photo in bear.left_out().photos] == ["photo 01"]
    bear.use(0, True)
    assert bear.left_out() is None and bear.used_photos().photos[0].captions
    for number in (-1, 5, 1.0, True, None, "0", [0]):
        for act in (lambda n: bear.rotate(n, 1), lambda n: bear.use(n, False), bear.captions):
            with pytest.raises(UserError, match="does not exist any more"):
                act(number)
    bear.clear()
    assert bear.used_photos() is None and bear.left_out() is None and bear.uploads == []


def test_a_look_has_a_tile_for_each_photo_whatever_was_done(bear, workspace):
    review = review_photos(bear, workspace, "page", "object", "bear", "center")
    assert review.count == 5 and not review.has_advice and "no problems found" in review.summary
    bear.use(2, False)
    bear.rotate(0, 1)
    review = review_photos(bear, workspace, "page", "object", "bear", "subject")
    assert len(review.tiles) == 5 and review.count == 4
    assert review.tiles[2][1] == "03: left out" and "01" in review.tiles[0][1]
    pale = [np.asarray(Image.open(path)).mean() for path, _ in review.tiles]
    assert pale[2] > 180
    assert all(Path(path).is_relative_to(workspace.session_dir("page")) for path, _ in review.tiles)
    for _ in range(3):
        review_photos(bear, workspace, "page", "object", "bear", "center")
    assert len(list(workspace.session_dir("page").iterdir())) == 2  # what is shown, and what was just before
    for number in range(5):
        bear.use(number, False)
    assert review_photos(bear, workspace, "page", "object", "bear", "center").summary.startswith(
        "No photo is used. 5 left out"
    )


def test_the_doctors_advice_is_followed_by_a_click(bear, workspace, tmp_path):
    """A dark photo and a second one of the same are left out; one on its side is turned upright again."""
    dark = Image.open(BEAR / "02.jpg").point(lambda level: level * 0.04)
    dark.save(tmp_path / "dark.png")
    again = Image.open(BEAR / "03.jpg")
    again.crop((6, 6, again.width, again.height)).save(tmp_path / "again.png")
    bear.add([tmp_path / "dark.png", tmp_path / "again.png"])
    review = review_photos(bear, workspace, "page", "object", "bear", "center")
    assert review.has_advice and "too dark" in review.summary and "nearly the same" in review.summary
    marks = [caption for _, caption in review.tiles]
    assert [mark for mark in marks if "dark" in mark] == ["07: like another, dark"]
    assert sum("like another" in mark for mark in marks) == 4
    apply_advice(bear, "object", "bear", "center")
    review = review_photos(bear, workspace, "page", "object", "bear", "center")
    assert (
        review.count == 5 and not review.has_advice and [snap.used for snap in bear.uploads] == [True] * 5 + [False] * 2
    )
    apply_advice(bear, "object", "bear", "center")  # nothing more to do
    assert review_photos(bear, workspace, "page", "object", "bear", "center").count == 5


@pytest.mark.parametrize("clockwise", [True, False])
def test_what_lies_on_its_side_is_turned_to_where_it_was(photo_uploads, workspace, tmp_path, clockwise):
    upright = bad.in_one_place(seed=0)
    photo_uploads.add(sorted(bad.save_all(bad.with_one_turned(upright, 2, clockwise), tmp_path / "photos").iterdir()))
    assert "on its side?" in review_photos(photo_uploads, workspace, "page", "object", "", "center").tiles[2][1]
    apply_advice(photo_uploads, "object", "", "center")
    now = np.asarray(Image.open(photo_uploads.path(2)).resize((64, 64)), np.float32)
    then = np.asarray(upright[2].convert("RGB").resize((64, 64)), np.float32)
    assert np.abs(now - then).mean() < 8 < np.abs(now - np.rot90(then, 2)).mean()


def test_trays_are_of_one_page_and_go_with_it(monkeypatch):
    monkeypatch.setattr(uploads, "MAX_PAGES", 50)
    trays = UploadsByPage()
    tray, other = trays.get("mine", 128), trays.get("other", 128)
    assert tray.folder != other.folder and tray.folder.stat().st_mode & 0o777 == 0o700
    tray.add([BEAR / "01.jpg"])
    assert other.uploads == [] and trays.get("mine", 512).uploads and trays.get("mine", 512).side == 512
    for n in range(60):  # a client that calls itself by ever new names
        trays.get(f"page {n}", 128)
    assert len(list(trays._uploads_by_page)) <= uploads.MAX_PAGES and trays.get("mine", 128) is tray
    other = trays.get("other", 128)
    trays.close_session("mine")
    assert not tray.folder.exists() and other.folder.exists()
    trays.close()
    assert not other.folder.exists() and trays._uploads_by_page == {}


class Studio:
    class base:
        resolution, kind, device, name = 128, "tiny", "cpu", "tiny"


def test_paths_from_a_page_are_files_of_uploads(workspace, tmp_path):
    """Not folders, links, what all pages share, or what another page shows."""
    train_page = TrainPage(workspace, Studio())
    try:
        shown = picture(workspace.session_dir("other") / "result.png")
        tile = picture(storage.make_folder(workspace.served_dir / "tiles") / "tile.png")
        folder = storage.make_folder(workspace.served_dir / "upload-x" / "sum")
        (folder / "link.png").symlink_to(tile)
        (folder / "outside.png").symlink_to(picture(tmp_path / "private.png"))
        refused = [shown, shown.parent, tile, tile.parent, folder, folder / "link.png", folder / ".." / ".." / "tiles"]
        refused += [folder / ".." / ".." / "tiles" / "tile.png", folder / "outside.png", folder / "gone.png"]
        for path in map(str, refused):
            refusal = train_page.add_photos("page", [path])
            assert re.match("That is not an uploaded file|The uploaded file is gone|.* is not inside", refusal), path
            with pytest.raises(UserError):
                import_uploads(workspace, "page", [path])
        for path in (None, 7, {"path": str(shown)}, b"x", "result.png"):
            with pytest.raises(UserError, match="not"):
                workspace.uploaded_file(path)
        assert shown.exists() and tile.exists() and folder.is_dir() and (tmp_path / "private.png").exists()
        for name in ("link.png", "outside.png"):
            (folder / name).unlink()
        assert train_page.add_photos("page", [str(picture(folder / "mine.png"))]) == ""
        assert not folder.parent.exists() and workspace.served_dir.is_dir()
    finally:
        train_page.close()


def test_only_uploads_are_taken_and_they_are_gone_afterwards(workspace, tmp_path):
    train_page = TrainPage(workspace, Studio())
    try:
        outside = picture(tmp_path / "private.png")
        for place in (str(outside), "/etc/passwd", "../private.png", "", "x\0y", str(workspace.served_dir)):
            assert "not inside" in train_page.add_photos("page", [place])
        assert outside.exists() and train_page.uploads_by_page.get("page", 128).uploads == []
        sent = picture(workspace.served_dir / "a.png")
        (workspace.served_dir / "evil.gif").write_bytes(b"GIF89a")
        assert "a GIF" in train_page.add_photos("page", [str(sent), str(workspace.served_dir / "evil.gif")])
        assert (
            not list(workspace.served_dir.glob("*.*")) and len(train_page.uploads_by_page.get("page", 128).uploads) == 1
        )
        assert train_page.add_photos("page", None) == "" == train_page.add_photos("page", [])
        form = {"kind": "nonsense", "noun": None, "crop": "yes"}
        assert train_page.review_photos("page", form).count == 1
        assert "does not exist any more" in train_page.rotate_photo("page", 7, 1)
        assert train_page.select_photo("page", None).name == "" == train_page.select_photo("page", -9).name
    finally:
        train_page.close()


def test_the_sample_photos_are_there():
    assert len(sample_sets()) == 2
