"""The gallery: images by id, listed in parts, found by words, marked, deleted, brought back and taken along."""

import io
import json
import os
import time
import zipfile
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from PIL import Image

from sdpersonal import storage
from sdpersonal.app.backend import Workspace
from sdpersonal.app.backend.generate.gallery import Gallery
from sdpersonal.app.backend.generate.image_files import THUMB_SIDE, ImageFiles
from sdpersonal.concepts.library import Library
from sdpersonal.errors import UserError
from sdpersonal.image_metadata import Recipe, RecipeBase, png_with_recipe, read_recipe
from sdpersonal.outputs import Outputs, OutputsTrash, trash, write_page
from sdpersonal.outputs.facts import CACHE_NAME, load_facts
from sdpersonal.outputs.index import parse_id

DAYS = ("2026-11-26", "2026-11-27", "2026-11-28")


def png(prompt="", seed=0, size=(16, 12)):
    image = Image.new("RGB", size, (seed % 256, seed // 256 % 256, 9))
    recipe = Recipe(
        sdpersonal="1", prompt=prompt, seed=seed, steps=2, guidance=3, size="64x64", sampler="DDIM",
        base=RecipeBase(name="tiny", kind="tiny", sha256="0" * 64), batch=1, place=0,
    )  # fmt: skip
    return png_with_recipe(image, recipe if prompt else None)


@pytest.fixture
def workspace(tmp_path):
    return Workspace(Library(tmp_path / "concepts"), tmp_path / "outputs", tmp_path / "runs", tmp_path / "served")


@pytest.fixture
def gallery(workspace):
    return Gallery(workspace)


@pytest.fixture
def files(gallery):
    return ImageFiles(gallery)


def save(workspace, prompts, day=DAYS[-1], user=None):
    """Save images on one day; return their ids."""
    outputs = Outputs(workspace.user_outputs(user).folder, lambda: datetime.fromisoformat(day).date())
    paths = [outputs.save(png(prompt, seed)) for seed, prompt in enumerate(prompts, 1)]
    return [f"{path.parent.name}/{path.stem}" for path in paths]


def ids(page):
    return [entry["id"] for entry in page.images]


def tree(folder):
    """All images under a folder, by path, with their bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.suffix == ".png"}


# --- ids --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lie",
    [
        None, 3, "", "x", "../etc/passwd", "2026-11-28", "2026-11-28/", "2026-11-28/../../x", "2026-11-28/00001",
        "2026-11-28/00001-ABCDEF12", "2026-11-28/00001-abcdef12.png", "/2026-11-28/00001-abcdef12",
        "2026-11-28/00001-abcdef12\n", "favourites/2026-11-28-00001-abcdef12", ".deleted/00001-abcdef12",
        "2026-11-28/00001-sheet-1234", "２026-11-28/00001-abcdef12", ["2026-11-28/00001-abcdef12"],
    ],
)  # fmt: skip
def test_invalid_image_ids_are_refused(gallery, lie):
    with pytest.raises(UserError):
        gallery.find(None, lie)


def test_a_missing_image_is_reported_as_gone(gallery, workspace):
    save(workspace, ["a cat"])
    with pytest.raises(UserError, match="gone"):
        gallery.find(None, "2026-11-28/00001-00000000")


def test_links_out_of_the_outputs_are_refused(gallery, workspace, tmp_path):
    save(workspace, ["a cat"])
    (tmp_path / "secret.png").write_bytes(png("secret"))
    (workspace.outputs / DAYS[-1] / "00009-00000000.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(UserError):
        gallery.find(None, f"{DAYS[-1]}/00009-00000000")


def test_users_access_only_their_own_images(gallery, files, workspace):
    (image,) = save(workspace, ["ann's cat"], user="ann")
    assert gallery.page("ann").total == 1 and gallery.page("bob").total == gallery.page(None).total == 0
    for user in ("bob", None):
        for act in (
            lambda user=user: gallery.find(user, image),
            lambda user=user: gallery.set_favourite(user, [image], True),
            lambda user=user: gallery.delete(user, [image]),
            lambda user=user: files.png(user, image),
            lambda user=user: files.thumbnail(user, image),
        ):
            with pytest.raises(UserError):
                act()
    name = files.prepare_zip("ann", [image], True)
    with pytest.raises(UserError):
        files.zip("bob", name)
    undo, _ = gallery.delete("ann", [image])
    with pytest.raises(UserError):
        gallery.restore("bob", undo)


# --- the list ---------------------------------------------------------------------------------------------------------


def test_images_are_listed_in_pages_from_the_newest(gallery, workspace):
    all_ids = [image for day in DAYS for image in save(workspace, [f"a cat {i}" for i in range(5)], day)][::-1]
    page, parts = gallery.page(None, limit=4), []
    while page.next_id:
        parts.append(ids(page))
        page = gallery.page(None, start=page.next_id, limit=4)
    assert [*(image for part in parts for image in part), *ids(page)] == all_ids
    assert page.total == 15 and [len(part) for part in parts] == [4, 4, 4]


def test_listing_continues_when_the_next_image_was_deleted(gallery, workspace):
    saved = save(workspace, [f"{i}" for i in range(6)])[::-1]
    page = gallery.page(None, limit=2)
    gallery.delete(None, [page.next_id])
    assert ids(gallery.page(None, start=page.next_id)) == saved[3:]


def test_images_are_searched_by_prompt_words_and_dates(gallery, workspace):
    cat, dog = save(workspace, ["a CAT on grass", "a dog in the snow"])
    (old,) = save(workspace, ["a dog"], DAYS[0])
    assert ids(gallery.page(None, "Dog")) == [dog, old] and ids(gallery.page(None, "snow DOG")) == [dog]
    assert ids(gallery.page(None, "dog 2026-11-26")) == [old] and ids(gallery.page(None, "11-28")) == [dog, cat]
    assert gallery.page(None, "horse").images == [] and gallery.page(None, "dog", limit=1).total == 2


def test_an_entry_contains_all_fields_that_the_page_shows(gallery, workspace):
    before = time.time() - 1
    (image,) = save(workspace, ["a cat"])
    (entry,) = gallery.page(None).images
    assert before < entry.pop("created") < time.time() + 1
    assert entry == {
        "id": image, "url": f"/app/images/{image}.png", "thumb": f"/app/thumbs/{image}.jpg", "page": None,
        "width": 16, "height": 12, "favourite": False, "prompt": "a cat", "kind": "image",
    }  # fmt: skip
    assert gallery.entry_of_file(None, workspace.outputs / f"{image}.png")["id"] == image


def test_a_grid_is_listed_above_its_images_with_their_prompt(gallery, files, workspace):
    first, second = save(workspace, ["a cat", "a cat by night"])
    folder = workspace.outputs / DAYS[-1]
    (folder / "00001-sheet.png").write_bytes(png(size=(900, 300)))
    (folder / "00001-sheet.html").write_text("<h1>grid</h1>")
    page = gallery.page(None)
    assert ids(page) == [second, f"{DAYS[-1]}/00001-sheet", first]
    grid = page.images[1]
    assert (grid["kind"], grid["prompt"], grid["width"]) == ("grid", "a cat", 900)
    assert files.grid_page(None, grid["id"]) == b"<h1>grid</h1>" and grid["page"].endswith("00001-sheet.html")
    assert "?v=" in grid["url"]  # a grid's name does not change with its content
    with pytest.raises(UserError, match="grid"):
        gallery.set_favourite(None, [grid["id"]], True)
    undo, _ = gallery.delete(None, [grid["id"]])
    assert not [path for path in folder.iterdir() if "sheet" in path.name]
    gallery.restore(None, undo)
    assert files.grid_page(None, grid["id"]) == b"<h1>grid</h1>"


def test_favourites_survive_the_removal_of_the_days_folder(gallery, files, workspace):
    one, two = save(workspace, ["a cat", "a dog"], DAYS[0])
    assert gallery.set_favourite(None, [one], True) == [one] == gallery.set_favourite(None, [one], True)
    assert ids(gallery.page(None, favourites=True)) == [one] and ids(gallery.page(None)) == [two, one]
    storage.remove(workspace.outputs / DAYS[0])
    (entry,) = gallery.page(None, favourites=True).images
    assert entry["id"] == one and entry["favourite"] and entry["prompt"] == "a cat"
    assert read_recipe(files.png(None, one)).prompt == "a cat" and ids(gallery.page(None)) == [one]
    assert ids(gallery.page(None, "cat", favourites=True)) == [one]
    gallery.set_favourite(None, [one], False)
    assert gallery.page(None, favourites=True).images == []


def test_2000_images_are_listed_quickly_from_the_cache(gallery, workspace, monkeypatch):
    folder = storage.make_folder(workspace.outputs / DAYS[-1])
    (folder / "00000-00000000.png").write_bytes(png("a cat"))
    assert gallery.page(None, "cat").total == 1
    known = load_facts(folder, ["00000-00000000.png"])["00000-00000000.png"]
    names = [f"{number:05d}-{number:08x}.png" for number in range(2000)]
    for name in names[1:]:
        (folder / name).touch()
    lines = (json.dumps({"v": 2, "name": name, **known, "facts": [["Seed", "1"]] * 8}) for name in names)
    (folder / CACHE_NAME).write_text("\n".join(lines))
    again = Gallery(workspace)
    monkeypatch.setattr("sdpersonal.outputs.facts.read_facts", lambda path: pytest.fail("read again"))
    for one, seconds in ((again, 1.5), (again, 0.3)):  # measured: see below
        started = time.perf_counter()
        page = one.page(None, "cat")
        print(time.perf_counter() - started)
        assert time.perf_counter() - started < seconds and page.total == 2000 and len(page.images) == 100


def test_a_damaged_image_does_not_hide_others(gallery, files, workspace):
    good = save(workspace, ["a cat"])
    (workspace.outputs / DAYS[-1] / "00007-00000000.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    assert ids(gallery.page(None)) == [f"{DAYS[-1]}/00007-00000000", *good]
    with Image.open(io.BytesIO(files.thumbnail(None, f"{DAYS[-1]}/00007-00000000"))) as thumbnail:
        assert thumbnail.size == (THUMB_SIDE, THUMB_SIDE)


# --- files ------------------------------------------------------------------------------------------------------------


def test_thumbnails_are_small_and_made_once(gallery, files, workspace, monkeypatch):
    outputs = workspace.user_outputs(None)
    images = [f"{(path := outputs.save(png(size=size))).parent.name}/{path.stem}" for size in ((600, 900), (20, 10))]
    for image, size in zip(images, ((256, 384), (20, 10)), strict=True):
        data = files.thumbnail(None, image)
        with Image.open(io.BytesIO(data)) as thumbnail:
            assert thumbnail.size == size and thumbnail.format == "JPEG" and not thumbnail.getexif()
        monkeypatch.setattr(files, "_make_thumbnail", lambda image: pytest.fail("made again"))
        assert files.thumbnail(None, image) == data
        monkeypatch.undo()
    assert workspace.user_dir(None) != workspace.user_dir("ann")


def test_an_image_is_downloaded_with_or_without_its_recipe(files, workspace):
    (image,) = save(workspace, ["a cat"])
    whole, plain = files.png(None, image), files.png(None, image, plain=True)
    assert read_recipe(whole).prompt == "a cat"
    with Image.open(io.BytesIO(plain)) as bare, Image.open(io.BytesIO(whole)) as same:
        assert bare.info == {} and np.array_equal(np.asarray(bare), np.asarray(same))


@pytest.mark.parametrize("recipes", [True, False])
def test_several_images_are_downloaded_as_a_zip(files, workspace, gallery, recipes):
    saved = save(workspace, ["a cat", "a dog", "a fox"])
    name = files.prepare_zip(None, saved, recipes)
    gallery.delete(None, [saved[1]])  # meanwhile
    with zipfile.ZipFile(io.BytesIO(b"".join(files.zip(None, name)))) as archive:
        assert archive.testzip() is None and len(archive.namelist()) == 2
        data = archive.read(f"{saved[0].replace('/', '-')}.png")
    with Image.open(io.BytesIO(data)) as image:
        assert bool(image.info) == recipes and image.size == (16, 12)
    assert b"".join(files.zip(None, name))  # a browser may ask twice
    for lie in ("", "x", "../x"):
        with pytest.raises(UserError, match="over"):
            files.zip(None, lie)


# --- deleting ---------------------------------------------------------------------------------------------------------


def test_deleted_images_and_their_favourites_are_restored(gallery, workspace):
    saved = save(workspace, ["a", "b", "c"]) + save(workspace, ["d"], DAYS[0])
    gallery.set_favourite(None, [saved[0], saved[3]], True)
    before, facts = tree(workspace.outputs), gallery.page(None).images
    undo, gone = gallery.delete(None, [saved[0], saved[2], saved[3], "2026-01-01/00001-00000000"])
    assert gone == [saved[0], saved[2], saved[3]] and ids(gallery.page(None)) == [saved[1]]
    assert gallery.page(None, favourites=True).total == 0
    assert write_page(workspace.user_outputs(None))[1] == 1
    assert gallery.restore(None, undo) == 3
    assert tree(workspace.outputs) == before and gallery.page(None).images == facts
    assert list((workspace.outputs / trash.TRASH_FOLDER).iterdir()) == []
    with pytest.raises(UserError, match="not in the trash"):
        gallery.restore(None, undo)


@pytest.mark.parametrize("crash_at", range(5))
def test_a_crash_while_deleting_or_restoring_loses_no_image(gallery, workspace, monkeypatch, crash_at):
    saved = save(workspace, ["a", "b", "c"])
    gallery.set_favourite(None, saved[:2], True)
    before, contents = tree(workspace.outputs), sorted(tree(workspace.outputs).values())
    rename, count = storage.rename, [0]

    def crash(old, new):
        if count[0] == crash_at:
            raise KeyboardInterrupt
        count[0] += 1
        rename(old, new)

    monkeypatch.setattr(storage, "rename", crash)
    with pytest.raises(KeyboardInterrupt):
        gallery.delete(None, saved)
    assert sorted(tree(workspace.outputs).values()) == contents  # each file is in one of the two places
    count[0] = crash_at  # nothing moves, so all stays
    with pytest.raises(KeyboardInterrupt):
        gallery.delete(None, saved)
    monkeypatch.undo()
    if left := ids(gallery.page(None)):
        gallery.delete(None, left)
    deletions = sorted(path.name for path in (workspace.outputs / trash.TRASH_FOLDER).iterdir())
    count[0] = 0
    monkeypatch.setattr(storage, "rename", crash)
    for deletion in deletions:
        try:
            gallery.restore(None, deletion)
        except KeyboardInterrupt:
            monkeypatch.undo()
            gallery.restore(None, deletion)
    assert tree(workspace.outputs) == before


def test_restoring_does_not_overwrite_an_existing_file(gallery, workspace):
    (image,) = save(workspace, ["a cat"])
    undo, _ = gallery.delete(None, [image])
    path = workspace.outputs / f"{image}.png"
    path.write_bytes(b"another")
    assert gallery.restore(None, undo) == 0 and path.read_bytes() == b"another"
    path.unlink()
    assert gallery.restore(None, undo) == 1 and gallery.page(None).images[0]["prompt"] == "a cat"


@pytest.mark.parametrize("name", ["", "..", "../2026-11-28", "20261128T101500Z", "20261128T101500Z-0123456G", "x/y"])
def test_invalid_deletion_names_are_refused(gallery, workspace, name):
    save(workspace, ["a cat"])
    with pytest.raises(UserError):
        gallery.restore(None, name)


def test_foreign_files_in_the_trash_are_not_restored(gallery, workspace, tmp_path):
    (image,) = save(workspace, ["a cat"])
    undo, _ = gallery.delete(None, [image])
    folder = workspace.outputs / trash.TRASH_FOLDER / undo
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "00001-abcdef12.png").write_bytes(b"x")
    (folder / DAYS[-1] / "evil.html").write_text("x")
    (folder / DAYS[-1] / "00002-abcdef12.png").symlink_to(tmp_path)
    assert gallery.restore(None, undo) == 1 and ids(gallery.page(None)) == [image]
    assert (folder / DAYS[-1] / "evil.html").exists() and (folder / "elsewhere" / "00001-abcdef12.png").exists()


def test_old_deletions_are_purged_unless_the_clock_is_wrong(workspace, monkeypatch):
    outputs = workspace.user_outputs(None)
    bin_ = OutputsTrash(outputs)

    class Clock(datetime):
        @classmethod
        def now(cls, zone=None):
            return start + timedelta(days=cls.day)

    start = datetime.now(UTC)
    monkeypatch.setattr(trash, "datetime", Clock)

    def delete(day):
        Clock.day = day
        return bin_.delete([(*parse_id(image),) for image in save(workspace, ["x"], f"{Clock.now():%Y-%m-%d}")])

    first, second = delete(0), delete(20)
    assert (bin_.folder / first).exists() and (bin_.folder / second).exists()
    delete(31)
    assert not (bin_.folder / first).exists() and (bin_.folder / second).exists()
    spare = save(workspace, ["y"] * 3, f"{Clock.now():%Y-%m-%d}")
    for Clock.day, image in ((3000, spare[0]), (3001, spare[1])):  # years after all else: the clock may be wrong
        bin_.delete([parse_id(image)])
        assert (bin_.folder / second).exists()
    Clock.day = 3008
    bin_.delete([parse_id(spare[2])])
    assert not (bin_.folder / second).exists()


def test_a_deletion_dated_in_the_future_gets_the_current_date(gallery, workspace):
    first, second, third = save(workspace, ["x"] * 3, "2026-01-02")
    folder = workspace.outputs / trash.TRASH_FOLDER
    undo, _ = gallery.delete(None, [first])
    (folder / undo).rename(folder / "29990101T101500Z-01234567")
    gallery.delete(None, [second])
    names = [deletion.name for deletion in folder.glob("*-*")]
    assert len(names) == 2 and max(names) < f"{datetime.now(UTC):%Y%m%dT%H%M%S}Z~"
    (folder / "20261399T101500Z-01234567").mkdir()  # no time: somebody else's
    gallery.delete(None, [third])
    with pytest.raises(UserError, match="not in the trash"):
        gallery.restore(None, "20261399T101500Z-01234567")
    assert (folder / "20261399T101500Z-01234567").is_dir()


def test_deleting_follows_no_link_out_of_the_outputs(gallery, workspace, tmp_path):
    (image,) = save(workspace, ["x"])
    storage.make_folder(tmp_path / "elsewhere")
    (workspace.outputs / trash.TRASH_FOLDER).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError):
        gallery.delete(None, [image])
    assert ids(gallery.page(None)) == [image] and not list((tmp_path / "elsewhere").iterdir())


def test_deleting_purges_a_users_old_trash_and_its_cached_prompts(gallery, workspace):
    secrets = {user: save(workspace, ["a secret", "x"], user=user) for user in ("ann", None)}
    assert {user: gallery.page(user, "secret").total for user in secrets} == {"ann": 1, None: 1}
    undos = {user: gallery.delete(user, ids[:1])[0] for user, ids in secrets.items()}
    folders = {user: OutputsTrash(gallery.outputs(user)).folder for user in undos}
    for user, folder in folders.items():
        (folder / undos[user]).rename(folder / "20200101T101500Z-01234567")
        gallery.delete(user, save(workspace, ["used since"], f"{datetime.now(UTC):%Y-%m-%d}", user))
    assert [len(list(folder.iterdir())) for folder in folders.values()] == [1, 1]
    gallery.page(None, limit=1)
    files = [path.read_bytes() for path in workspace.outputs.rglob("*") if path.is_file()]
    assert not any(b"a secret" in data for data in files)


def test_the_facts_cache_keeps_entries_that_were_not_requested(gallery, workspace):
    saved = save(workspace, [f"{i}" for i in range(6)])
    gallery.page(None, "0")
    size = os.path.getsize(workspace.outputs / DAYS[-1] / CACHE_NAME)
    Gallery(workspace).page(None, limit=2)
    assert os.path.getsize(workspace.outputs / DAYS[-1] / CACHE_NAME) == size and len(saved) == 6
