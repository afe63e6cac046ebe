"""Drafts of trainings: kept on disk for each user, changed by the page's routes, started."""

import io
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

from sdpersonal import storage
from sdpersonal.app.backend import EventHub, Workspace
from sdpersonal.app.backend.train import draft_folders, photo_review
from sdpersonal.app.backend.train.drafts import MAX_DRAFTS, Drafts
from sdpersonal.app.backend.train.run_files import write_new_run
from sdpersonal.app.backend.train.run_folders import list_runs
from sdpersonal.app.routes import drafts as routes
from sdpersonal.app.routes.requests import USER_KEY, add_error_handlers
from sdpersonal.concepts.library import Library
from sdpersonal.errors import DiskFull, UserError
from sdpersonal.photos.loading import load_photos
from sdpersonal.training.own_prompts import write_own_prompts

BEAR = Path(__file__).parents[2] / "examples" / "photos" / "teddy-bear"


class Generation:
    class base:
        name, kind, device, resolution = "tiny", "tiny", "cpu", 128


class Trainings:
    """Makes the folder of a run as the service of trainings does, and starts nothing."""

    class measured_costs:
        @staticmethod
        def read():
            return {}

    def __init__(self, workspace):
        self.workspace, self.started, self.error = workspace, [], None

    def start(self, settings, uploads, user):
        if self.error:
            raise self.error
        folder = self.workspace.user_runs(user) / f"me-bear-{len(self.started)}"
        write_new_run(folder, settings, uploads, 0.0)
        self.started.append(settings)
        return folder


@pytest.fixture
def workspace(tmp_path):
    (tmp_path / "shown").mkdir()
    return Workspace(Library(tmp_path / "concepts"), tmp_path / "outputs", tmp_path / "runs", tmp_path / "shown")


@pytest.fixture
def trainings(workspace):
    return Trainings(workspace)


@pytest.fixture
def events(monkeypatch):
    """The events that the pages get, as (user, kind, data)."""
    hub, published = EventHub(), []
    monkeypatch.setattr(hub, "publish", lambda user, kind, data, key="": published.append((user, kind, data)))
    monkeypatch.setattr(hub, "is_watched", lambda user: True)
    hub.published = published
    return hub


@pytest.fixture
def drafts(workspace, events, trainings):
    opened = Drafts(workspace, Generation, events, trainings)
    yield opened
    opened.reviewer.wait()


@pytest.fixture
def page(drafts):
    """Return a client of the routes; the user is in the header X-User."""
    server = FastAPI()
    server.include_router(routes.router(type("App", (), {"drafts": drafts})))
    add_error_handlers(server)

    @server.middleware("http")
    async def set_user(request, call_next):
        request.scope[USER_KEY] = request.headers.get("x-user", "")
        return await call_next(request)

    return TestClient(server, raise_server_exceptions=False)


def upload(workspace, source, name=None):
    target = workspace.served_dir / (name or Path(source).name)
    target.write_bytes(Path(source).read_bytes())
    return str(target.resolve())


def add_bear(drafts, user=None):
    """Return the id of a draft with the five photos of the bear."""
    draft = drafts.all(user)[0]["id"]
    drafts.add_photos(user, draft, [upload(drafts.workspace, path) for path in sorted(BEAR.iterdir())])
    return draft


def folder_of(drafts, draft, user=None):
    return drafts.workspace.user_runs(user) / ".drafts" / draft


# --- on disk ----------------------------------------------------------------------------------------------------------


def test_a_draft_survives_a_restart_of_the_app(drafts, workspace, trainings):
    draft = add_bear(drafts)
    drafts.set_form(None, draft, {"noun": "bear", "name": "Ted", "steps": "30", "kind": "person", "consent": True})
    drafts.change_photo(None, draft, "photo 02", used=False)
    drafts.change_photo(None, draft, "photo 03", quarters=1)
    drafts.change_photo(None, draft, "photo 01", crop=[0.25, 0, 0.5])
    drafts.set_captions(None, draft, {"photo 03": "{} in the sun", "photo 04": ""})
    drafts.reviewer.wait()
    before = drafts.all(None)
    again = Drafts(workspace, Generation, EventHub(), trainings)
    again.all(None)
    again.reviewer.wait()
    after = again.all(None)
    assert after[0].pop("plan")["problem"] == before[0].pop("plan")["problem"] == ""  # its lines tell the free memory
    assert after == before
    assert [photo["caption"] for photo in before[0]["photos"]][2:4] == ["{} in the sun", ""]
    assert before[0]["photos"][0]["crop"] == [0.25, 0, 0.5] and before[0]["photos"][0]["own_crop"]
    assert list_runs(workspace.runs) == [] and not workspace.runs.joinpath(".drafts").stat().st_mode & 0o077


def test_a_draft_always_exists_and_the_number_of_drafts_is_limited(drafts, monkeypatch):
    (first,) = drafts.all(None)
    for _ in range(MAX_DRAFTS - 1):
        drafts.create(None)
    with pytest.raises(UserError, match="20 drafts already"):
        drafts.create(None)
    kept = drafts.all(None)[3]["id"]
    drafts.set_form(None, kept, {"noun": "bear"})
    later = time.time() + 2 * 86_400
    monkeypatch.setattr(draft_folders.time, "time", lambda: later)
    left = [draft["id"] for draft in drafts.all(None)]
    assert kept in left and first["id"] not in left and len(left) == 2  # the newest stays, though it is empty
    for draft in left:
        drafts.delete(None, draft)
    (new,) = drafts.all(None)
    assert new["id"] not in left and len(list(folder_of(drafts, "").iterdir())) == 1


@pytest.mark.parametrize("at", range(6))
def test_a_crash_while_photos_are_added_leaves_a_usable_draft(drafts, workspace, trainings, monkeypatch, at):
    """Whatever was written last, what is listed is whole."""
    draft = drafts.all(None)[0]["id"]
    files = [upload(workspace, path) for path in sorted(BEAR.iterdir())[:4]]
    count, write = [0], storage.write_bytes

    def write_or_die(path, *parts):
        count[0] += 1
        if count[0] > at:
            raise KeyboardInterrupt
        write(path, *parts)

    monkeypatch.setattr(storage.atomic, "write_bytes", write_or_die)
    monkeypatch.setattr(storage, "write_bytes", write_or_die)
    with pytest.raises(KeyboardInterrupt):
        drafts.add_photos(None, draft, files)
    monkeypatch.undo()
    again = Drafts(workspace, Generation, EventHub(), trainings)
    (view,) = again.all(None)
    folder = folder_of(drafts, draft) / "photos"
    names = {photo["name"] for photo in view["photos"]}
    assert {path.name.removesuffix(".txt") for path in folder.iterdir()} == names
    for name in names:
        assert Image.open(io.BytesIO(again.photo_jpeg(None, draft, name, thumb=True))).format == "JPEG"
    again.add_photos(None, draft, [upload(workspace, BEAR / "05.jpg")])
    again.reviewer.wait()


def test_a_damaged_draft_file_loses_the_form_but_not_the_photos(drafts, workspace, trainings):
    draft = add_bear(drafts)
    for text in ("", "[]", '{"form": {"noun": 7, "kind": "style", "x": 1}, "created": "now"}', "{" * 1000):
        (folder_of(drafts, draft) / "draft.json").write_text(text)
        again = Drafts(workspace, Generation, EventHub(), trainings)
        (view,) = again.all(None)
        assert len(view["photos"]) == 5 and view["form"]["noun"] == ""
        again.reviewer.wait()


def test_users_see_only_their_own_drafts(drafts, page, workspace):
    mine, hers = add_bear(drafts), add_bear(drafts, "anna")
    assert folder_of(drafts, hers, "anna").is_dir() and not folder_of(drafts, hers).exists()
    for draft, user in ((mine, "anna"), (hers, ""), (hers, "bob")):
        for path, body in (("form", {"values": {}}), ("clear", {}), ("delete", {}), ("start", {}), ("advice", {})):
            answer = page.post(f"/app/drafts/{draft}/{path}", json=body, headers={"x-user": user})
            assert answer.status_code == 400 and "does not exist any more" in answer.json()["error"]
        answer = page.get(f"/app/drafts/{draft}/photos/photo%2001.jpg", headers={"x-user": user})
        assert answer.status_code == 400
    assert page.get(f"/app/drafts/{hers}/photos/photo%2001.jpg", headers={"x-user": "anna"}).status_code == 200
    assert len(page.get("/app/drafts", headers={"x-user": "anna"}).json()["drafts"][0]["photos"]) == 5


def test_hostile_ids_and_values_are_refused(drafts, page, workspace, tmp_path):
    draft = add_bear(drafts)
    storage.make_folder(workspace.runs / "me-other")
    outside = folder_of(drafts, "0" * 16)
    outside.symlink_to(tmp_path)
    for name in (
        "..",
        ".",
        "%2e%2e",
        "x" * 300,
        "0" * 16,
        draft.upper(),
        draft + "%00",
        "me-other",
        "%2e%2e%2fme-other",
    ):
        assert page.post(f"/app/drafts/{name}/clear", json={}).status_code in (400, 404, 405), name
    for name in ("..%2f..%2fdraft.json", "photo%2001.txt", "%00", "photo%2001%00", "photo%2099", "x" * 300):
        assert page.get(f"/app/drafts/{draft}/photos/{name}.jpg").status_code in (400, 404), name
    for path, body in (
        ("photo", {"photo": "photo 01", "crop": [0, 0]}),
        ("photo", {"photo": "photo 01", "crop": [0, 0, "1"] * 2}),
        ("photo", {"photo": "photo 01", "crop": [2, 0, 0.5]}),
        ("photo", {"photo": "photo 01", "crop": [-1, 0, 0.5]}),
        ("photo", {"photo": "photo 01", "quarters": 10**9}),
        ("photo", {"photo": "photo 01", "caption": "no place"}),
        ("photo", {"photo": "photo 01", "path": "/etc/passwd"}),
        ("photo", {"photo": 1}),
        ("photos", {"uploads": ["/etc/passwd"]}),
        ("photos", {"uploads": ["x"] * 10_000}),
        ("photos", {"uploads": "x"}),
        ("captions", {"captions": {str(n): "{}" for n in range(100)}}),
        ("captions", {"captions": {"../x": "{}"}}),
        ("form", {"values": {"photos": "/etc"}}),
        ("form", {"values": {"noun": "x" * 201}}),
        ("form", {"values": {"noun": None}}),
        ("form", {"values": {"flip": "maybe"}}),
        ("form", {"values": {"prior": "/etc/passwd"}}),
        ("form", {"values": {"method": "full"}}),
        ("form", {"values": {"lr": ["1"]}}),
        ("form", {"values": {"steps": "9" * 41}}),
        ("form", {"values": {"sample_prompts": ["x"] * 9}}),
        ("form", {"values": {"sample_prompts": "x"}}),
        ("form", {"values": {str(n): 0 for n in range(60)}}),
        ("samples", {"set": "../../x"}),
        ("samples", {"set": "fox/.."}),
    ):
        answer = page.post(f"/app/drafts/{draft}/{path}", json=body)
        assert answer.status_code in (400, 422) and answer.json()["error"], (path, body)
        assert "Traceback" not in answer.text
    nan = page.post(
        f"/app/drafts/{draft}/photo",
        content='{"photo": "photo 01", "crop": [NaN, 0, 0.5]}',
        headers={"content-type": "application/json"},
    )
    assert nan.status_code in (400, 422)
    for body in (
        {"from_run": "../x"},
        {"from_run": ".drafts"},
        {"from_run": "me-other"},
        {"from_run": "x" * 300},
        {"x": 1},
    ):
        assert page.post("/app/drafts", json=body).status_code in (400, 422)
    assert (tmp_path / "shown").is_dir() and len(drafts.all(None)) == 1


# --- photos -----------------------------------------------------------------------------------------------------------


def test_only_uploaded_files_are_added_and_then_deleted(drafts, workspace, tmp_path):
    draft = drafts.all(None)[0]["id"]
    private = tmp_path / "private.jpg"
    private.write_bytes((BEAR / "01.jpg").read_bytes())
    for place in (str(private), "/etc/passwd", "../private.jpg", "", "x\0y", str(workspace.served_dir)):
        with pytest.raises(UserError, match=r"not inside|not an uploaded file"):
            drafts.add_photos(None, draft, [place])
    folder = storage.make_folder(workspace.served_dir / "upload-x" / "sum")
    (folder / "link.png").symlink_to(private)
    for path in (folder, folder / "link.png", folder / "gone.png", folder / ".." / ".." / ".." / "private.jpg"):
        with pytest.raises(UserError, match=r"not an uploaded file|is gone|is not inside"):
            drafts.add_photos(None, draft, [str(path)])
    (folder / "link.png").unlink()
    assert private.exists() and drafts.all(None)[0]["photos"] == []
    good, evil = upload(workspace, private, "upload-x/sum/a.jpg"), folder / "evil.gif"
    evil.write_bytes(b"GIF89a")
    answer = drafts.add_photos(None, draft, [good, str(evil.resolve())])
    assert "a GIF" in answer["problems"][0] and len(answer["photos"]) == 1
    assert not folder.exists() and workspace.served_dir.is_dir()
    assert drafts.add_photos(None, draft, [])["problems"] == []


def test_a_photo_change_returns_at_once_and_its_review_is_sent_as_an_event(drafts, events, monkeypatch):
    draft = add_bear(drafts)
    drafts.reviewer.wait()
    assert drafts.all(None)[0]["review"] == {"count": 5, "findings": [], "has_advice": False, "checking": False}
    checked, review = threading.Event(), photo_review.review_photos
    monkeypatch.setattr(
        "sdpersonal.app.backend.train.reviewer.review_photos",
        lambda *args: (checked.wait(20), review(*args))[1],
    )
    events.published.clear()
    answer = drafts.change_photo(None, draft, "photo 01", used=False)
    assert answer["review"]["checking"] and answer["review"]["count"] == 4 and not answer["photos"][0]["used"]
    assert drafts.change_photo(None, draft, "photo 02", used=False)["review"]["checking"]
    checked.set()
    drafts.reviewer.wait()
    user, kind, data = events.published[-1]
    assert (user, kind) == (None, "draft") and data["draft"] == drafts.all(None)[0]
    assert data["draft"]["review"]["count"] == 3 and not data["draft"]["review"]["checking"]
    assert not drafts.set_form(None, draft, {"name": "x", "lr": "1"})["review"]["checking"]  # nothing to check in that
    assert not drafts.change_photo(None, draft, "photo 03", caption="{} at home")["review"]["checking"]
    assert drafts.set_form(None, draft, {"noun": "cat"})["review"]["checking"]


def test_applying_the_advice_leaves_out_a_dark_photo(drafts, workspace, tmp_path):
    draft = add_bear(drafts)
    Image.open(BEAR / "02.jpg").point(lambda level: level * 0.04).save(tmp_path / "dark.png")
    answer = drafts.add_photos(None, draft, [upload(workspace, tmp_path / "dark.png")])
    drafts.reviewer.wait()
    (before,) = drafts.all(None)
    assert before["review"]["has_advice"] and "dark" in before["photos"][5]["marks"]
    finding = next(finding for finding in before["review"]["findings"] if finding["name"] == "dark")
    assert set(finding) == {"name", "message", "effect", "fix", "photos"} and finding["photos"] == ["photo 06"]
    answer = drafts.apply_advice(None, draft)
    assert [photo["used"] for photo in answer["photos"]] == [True] * 5 + [False]
    drafts.reviewer.wait()
    assert not drafts.all(None)[0]["review"]["has_advice"]


def test_photos_are_served_as_jpegs_that_browsers_can_cache(drafts, page):
    draft = add_bear(drafts)
    photo = drafts.all(None)[0]["photos"][0]
    whole, thumb = page.get(photo["url"]), page.get(photo["thumb"])
    for answer, side in ((whole, 512), (thumb, 384)):
        assert answer.headers["content-type"] == "image/jpeg" and "immutable" in answer.headers["cache-control"]
        assert Image.open(io.BytesIO(answer.content)).size == (side, side)
    turned = drafts.change_photo(None, draft, "photo 01", quarters=1)["photos"][0]
    assert turned["url"] != photo["url"] and turned["thumb"] != photo["thumb"]
    difference = np.asarray(Image.open(io.BytesIO(page.get(turned["thumb"]).content)), np.float32) - np.rot90(
        np.asarray(Image.open(io.BytesIO(thumb.content)), np.float32)
    )
    assert np.abs(difference).mean() < 4


# --- start ------------------------------------------------------------------------------------------------------------


def test_a_started_draft_becomes_a_run_that_can_be_copied_to_a_draft(drafts, trainings, workspace, page):
    draft = add_bear(drafts, "anna")
    headers = {"x-user": "anna"}
    values = {
        "noun": "bear",
        "name": "My Tëddy",
        "steps": "40",
        "prior": "predicted",
        "method": "pivotal",
        "flip": True,
    }
    drafts.set_form("anna", draft, values | {"sample_prompts": ["{} on the moon", " "]})
    drafts.change_photo("anna", draft, "photo 05", used=False)
    drafts.change_photo("anna", draft, "photo 02", crop=[0.25, 0.125, 0.5])
    run = page.post(f"/app/drafts/{draft}/start", headers=headers).json()["run"]
    (settings,) = trainings.started
    assert settings.token == "<anna/my-teddy>" and settings.class_noun == "bear" and settings.steps == 40
    assert settings.sample_prompts == ("{} on the moon",) and settings.flip
    folder = workspace.user_runs("anna") / run
    photos = load_photos(folder / "photos", 128).photos
    assert [photo.name for photo in photos] == ["photo 01", "photo 02", "photo 03", "photo 04"]
    assert photos[1].own_crop == (0.25, 0.125, 0.5) and photos[0].captions
    assert not folder_of(drafts, draft, "anna").exists()
    assert page.post(f"/app/drafts/{draft}/start", headers=headers).status_code == 400

    copy = page.post("/app/drafts", json={"from_run": run}, headers=headers).json()
    form = copy["form"]
    assert (form["owner"], form["name"], form["noun"], form["steps"]) == ("anna", "my-teddy", "bear", "40")
    assert (form["method"], form["prior"], form["flip"]) == ("pivotal", "predicted", True)
    assert form["sample_prompts"] == ["{} on the moon"]
    assert [photo["own_crop"] for photo in copy["photos"]] == [False, True, False, False]
    assert [photo["caption"] for photo in copy["photos"]] == ["\n".join(photo.captions) for photo in photos]
    write_own_prompts(folder, ["{} at sea"])  # as the page of the training does
    assert drafts.create("anna", run)["form"]["sample_prompts"] == ["{} at sea"]
    storage.remove(folder / "photos")  # as after a training
    assert drafts.create("anna", run)["photos"] == []
    assert page.post("/app/drafts", json={"from_run": run}).status_code == 400  # not of this user


def test_a_draft_that_cannot_start_stays_a_draft(drafts, trainings, page):
    draft = add_bear(drafts)
    for values, field in (
        ({}, "noun"),
        ({"noun": "bear"}, "name"),
        ({"name": "🦆"}, "name"),
        ({"name": "Ted", "owner": "🦆"}, "owner"),
        ({"owner": "", "kind": "person"}, "consent"),
        ({"kind": "object", "lr": "fast"}, "lr"),
        ({"lr": None, "resolution": "100"}, "resolution"),
        ({"resolution": "", "noun": "x" * 150}, "noun"),
    ):
        view = drafts.set_form(None, draft, values)
        answer = page.post(f"/app/drafts/{draft}/start")
        assert answer.status_code == 400 and answer.json()["field"] == field == view["plan"]["field"], values
        assert answer.json()["error"] in view["plan"]["problem"]
    view = drafts.set_form(None, draft, {"noun": "bear"})
    assert view["plan"]["problem"] == "" and "Train <me/ted> for the model tiny on 5 photos" in view["plan"]["lines"][0]
    trainings.error = DiskFull("The disk is nearly full.")
    assert page.post(f"/app/drafts/{draft}/start").json()["error"] == "The disk is nearly full."
    trainings.error = None
    drafts.clear(None, draft)
    answer = page.post(f"/app/drafts/{draft}/start").json()
    assert answer["field"] == "photos" and os.listdir(folder_of(drafts, "")) == [draft]


def test_sample_photos_fill_in_the_form(drafts, page, shelf_of_teddies):
    draft = drafts.all(None)[0]["id"]
    answer = drafts.use_samples(None, draft, "teddy-bear")
    form = answer["form"]
    assert (form["kind"], form["noun"], form["name"]) == ("object", "bear", "teddy 2") and len(answer["photos"]) == 5
    assert answer["name"]["token"] == "<me/teddy-2>" and answer["plan"]["problem"] == ""
    form = drafts.use_samples(None, draft, "cyanotype")["form"]
    assert (form["kind"], form["noun"], form["name"]) == ("style", "cyanotype", "cyanotype")
    assert [photo["name"] for photo in drafts.all(None)[0]["photos"]] == [f"photo 0{n}" for n in range(1, 6)]
    for samples in answer["sample_sets"]:
        assert Image.open(io.BytesIO(page.get(samples["thumb"]).content)).size == (192, 192)
    assert page.get("/app/drafts/samples/..%2ffox.jpg").status_code in (400, 404)


def test_a_removed_photo_is_deleted_and_its_name_is_not_reused(drafts, page):
    draft = add_bear(drafts)
    view = page.post(f"/app/drafts/{draft}/photo", json={"photo": "photo 03", "remove": True}).json()
    assert [photo["name"] for photo in view["photos"]] == ["photo 01", "photo 02", "photo 04", "photo 05"]
    assert not [path for path in folder_of(drafts, draft).rglob("photo 03*")]
    view = drafts.add_photos(None, draft, [upload(drafts.workspace, BEAR / "03.jpg")])
    assert view["photos"][-1]["name"] == "photo 06"  # no name means two photos


def test_a_draft_that_is_deleted_in_another_tab_stays_deleted(drafts):
    draft = add_bear(drafts)
    opened = drafts._get(None, draft)
    drafts.delete(None, draft)
    for act in (
        lambda: opened.photos.add([BEAR / "01.jpg"]),
        lambda: opened.photos.rotate("photo 01", 1),
        lambda: opened.photos.use("photo 01", False),
        lambda: opened.photos.set_captions("photo 01", "{}"),
        lambda: opened.set_form(opened.form),
        lambda: drafts.view(None, opened),
        lambda: drafts.set_form(None, draft, {}),
    ):
        with pytest.raises(UserError):
            act()
    drafts.reviewer.wait()
    assert list(folder_of(drafts, "").iterdir()) == []


@pytest.fixture
def shelf_of_teddies(workspace, monkeypatch):
    """A library with <me/teddy-v1>."""
    from sdpersonal.prompts import Token

    versions = [Token.parse("<me/teddy-v1>")]
    monkeypatch.setattr(
        Library, "versions", lambda self, token: versions if Token.of(token).matches(versions[0]) else []
    )
