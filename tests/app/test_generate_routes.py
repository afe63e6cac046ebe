"""The routes of the Generate tab and the gallery: what they answer, to whom, and what they refuse."""

import io
import zipfile

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

from sdpersonal.app.backend import App, GenerationService, Workspace
from sdpersonal.app.routes import gallery, generate, state
from sdpersonal.app.routes.requests import DOCUMENT_POLICY, USER_KEY, add_error_handlers
from sdpersonal.config import GenerateRequest
from sdpersonal.generation import Generator
from support.stock import small_library

FORM = {"prompt": "a <me/duck>", "num_images": 1, "steps": 1, "seed": "7", "width": 128, "height": 128}


class AsUser:
    """Middleware that takes the user from a header, as the login does from a cookie."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        scope[USER_KEY] = dict(scope.get("headers", ())).get(b"x-user", b"").decode()
        await self.app(scope, receive, send)


@pytest.fixture(scope="module")
def app(tiny, tmp_path_factory):
    place = tmp_path_factory.mktemp("routes")
    workspace = Workspace(small_library(place / "concepts"), place / "outputs", place / "runs", place / "served")
    return App(workspace, GenerationService(lambda name: Generator(tiny, workspace.library), workspace))


@pytest.fixture(scope="module")
def page(app):
    server = FastAPI()
    for module in (state, generate, gallery):
        server.include_router(module.router(app))
    add_error_handlers(server)
    server.add_middleware(AsUser)
    return TestClient(server, raise_server_exceptions=False)


def ended(app, page, body, user=""):
    """Send a job and wait for its end; return its view."""
    answer = page.post("/app/jobs", json=body, headers={"x-user": user})
    assert answer.status_code == 200, answer.text
    while (view := find(page, answer.json()["id"], user))["state"] in ("waiting", "running"):
        pass
    return view


def find(page, job, user=""):
    jobs = page.get("/app/jobs", headers={"x-user": user}).json()["jobs"]
    return next(view for view in jobs if view["id"] == job)


@pytest.fixture(scope="module")
def image(app, page):
    view = ended(app, page, {"kind": "generate", "form": FORM})
    assert view["state"] == "done", view["message"]
    return view["images"][0]


def test_the_default_form_generates_images(app, page):
    answer = page.get("/app/state").json()
    view = ended(app, page, {"kind": "generate", "form": answer["form"] | {"prompt": "a cat", "steps": 1}})
    assert view["state"] == "done" and view["count"] == answer["form"]["num_images"]
    assert {preset["kind"] for preset in answer["prompt_presets"]} == {"object", "person", "style"}
    assert answer["axes"] and answer["aspects"][0] == {"label": "1:1", "width": 128, "height": 128}
    assert set(GenerateRequest.model_fields) - set(answer["form"]) == {
        "size", "variation_strength", "variation_seed", "init_image",
    }  # fmt: skip


def test_an_image_is_cacheable_and_served_with_or_without_its_recipe(page, image):
    whole, plain = page.get(image["url"]), page.get(image["url"], params={"plain": 1, "download": 1})
    assert "immutable" in whole.headers["cache-control"] and whole.headers["content-type"] == "image/png"
    with Image.open(io.BytesIO(whole.content)) as with_recipe, Image.open(io.BytesIO(plain.content)) as bare:
        assert with_recipe.info and not bare.info
    assert plain.headers["content-disposition"] == f'attachment; filename="{image["id"].replace("/", "-")}.png"'
    assert page.get(image["thumb"]).headers["content-type"] == "image/jpeg"


def test_the_details_of_an_image_generate_it_again(app, page, image):
    details = page.get("/app/gallery/image", params={"id": image["id"]}).json()
    assert details["image"] == image and ["Prompt", "a <me/duck>"] in details["facts"] and details["same"]
    assert details["settings"]["seed"] == "7" and details["settings"]["width"] == 128
    again = ended(app, page, {"kind": "generate", "form": details["settings"]})
    assert page.get(again["images"][0]["url"]).content == page.get(image["url"]).content


def test_users_cannot_access_files_or_jobs_of_others(app, page, image):
    view = ended(app, page, {"kind": "generate", "form": FORM | {"seed": "8"}}, "ann")
    (own,) = view["images"]
    for user, status in (("ann", 200), ("bob", 404), ("", 404)):
        for url in (own["url"], own["thumb"]):
            assert page.get(url, headers={"x-user": user}).status_code == status
        found = page.get("/app/gallery/image", params={"id": own["id"]}, headers={"x-user": user}).status_code
        assert found == (200 if status == 200 else 400)
    jobs = page.get("/app/jobs", headers={"x-user": "bob"}).json()["jobs"]
    assert jobs == [] and page.post(f"/app/jobs/{view['id']}/cancel", headers={"x-user": "bob"}).status_code == 400
    assert page.get("/app/gallery", headers={"x-user": "ann"}).json()["total"] == 1


def test_images_can_be_marked_downloaded_deleted_and_restored(page, image):
    ids = [entry["id"] for entry in page.get("/app/gallery", params={"limit": 2}).json()["images"]]
    assert page.post("/app/gallery/favourite", json={"ids": ids[:1], "on": True}).json() == {"ids": ids[:1]}
    assert [e["id"] for e in page.get("/app/gallery", params={"favourites": 1}).json()["images"]] == ids[:1]
    url = page.post("/app/gallery/zip", json={"ids": ids, "recipes": False}).json()["url"]
    with zipfile.ZipFile(io.BytesIO(page.get(url).content)) as archive:
        assert len(archive.namelist()) == 2
    undo = page.post("/app/gallery/delete", json={"ids": ids}).json()
    assert undo["ids"] == ids and page.get(f"/app/images/{ids[0]}.png").status_code == 404
    assert page.post("/app/gallery/restore", json={"undo": undo["undo"]}).json() == {"count": 2}
    assert page.get(f"/app/images/{ids[0]}.png").status_code == 200


def test_a_grid_page_is_served_in_a_sandbox(app, page):
    body = {"kind": "grid", "form": FORM, "x": "Seed", "x_values": "1..2"}
    grid = ended(app, page, body)["images"][-1]
    answer = page.get(grid["page"])
    assert answer.headers["content-security-policy"] == DOCUMENT_POLICY and "sandbox" in DOCUMENT_POLICY
    assert "a &lt;me/duck&gt;" in answer.text


def test_prompts_are_checked_edited_and_filled_from_presets(page):
    check = page.post("/app/prompt/check", json={"prompt": "a <me/duck:0.5> by <you/ink>"}).json()
    assert check["problem"] == "" and [concept["token"] for concept in check["concepts"]] == ["<me/duck>", "<you/ink>"]
    edit = {"prompt": "a <me/duck>", "token": "<me/duck>", "strength": 0.5, "region": "left"}
    assert page.post("/app/prompt/edit", json=edit).json() == {"prompt": "a <me/duck:0.5:at=left>"}
    (place,) = check["places"]
    flags = {"is_given": False, "has_window": False}
    assert place == {"number": 0, "token": "<me/duck>", "name": "me/duck", "box": [0, 0, 1, 1]} | flags
    edit = {"prompt": "<me/duck> <me/duck>", "token": "<me/duck>", "region": "0,0,0.5,0.3", "mention": 1}
    assert page.post("/app/prompt/edit", json=edit).json() == {"prompt": "<me/duck> <me/duck:box=0,0,0.5,0.3>"}
    assert "<me/duck>" in page.post("/app/prompt/preset", json={"id": "object-0", "prompt": ""}).json()["prompt"]


def test_presets_are_saved_and_deleted(page):
    (preset,) = page.post("/app/presets", json={"name": "a", "kind": "style", "values": {"prompt": "b"}}).json()[
        "presets"
    ]
    assert page.get("/app/presets").json() == {"presets": [preset]}
    assert page.post("/app/presets/delete", json={"id": preset["id"]}).json() == {"presets": []}


@pytest.mark.parametrize(
    "path, body, status",
    [
        ("/app/jobs", {"kind": "evil"}, 422),
        ("/app/jobs", {"kind": "generate", "evil": 1}, 422),
        ("/app/jobs", {"kind": "hires", "strength": "x"}, 422),
        ("/app/jobs", {"kind": "variations", "strength": []}, 422),
        ("/app/jobs", {"kind": "generate", "form": {f"{i}": 1 for i in range(999)}}, 422),
        ("/app/jobs", {"kind": "generate", "form": {"prompt": "x" * 100_000}}, 422),
        ("/app/jobs", {"kind": "generate", "form": {"prompt": "a", "steps": 999}}, 400),
        ("/app/jobs", {"kind": "generate", "form": {"init_image": "/etc/passwd"}}, 400),
        ("/app/jobs", {"kind": "generate", "form": {"prompt": "a", "init": {"upload": "/etc/passwd"}}}, 400),
        ("/app/jobs", {"kind": "redo", "image": "../../etc/passwd"}, 400),
        ("/app/jobs", {"kind": "variations"}, 400),
        ("/app/jobs/nothing/cancel", None, 400),
        ("/app/jobs/move", {"id": "x", "before": None}, 400),
        ("/app/gallery/delete", {"ids": []}, 422),
        ("/app/gallery/delete", {"ids": ["x"] * 5000}, 422),
        ("/app/gallery/delete", {"ids": ["../x"]}, 400),
        ("/app/gallery/restore", {"undo": "../x"}, 400),
        ("/app/settings/read", {"upload": "/etc/passwd"}, 400),
        ("/app/settings/read", {}, 400),
        ("/app/settings/read", {"text": "a cat"}, 400),
        ("/app/init-images", {"upload": "/etc/passwd"}, 400),
        ("/app/init-images", {}, 400),
        ("/app/presets", {"name": "x", "kind": "form", "values": {"a": {"b": 1}}}, 400),
    ],
)
def test_invalid_requests_are_refused_with_a_message(page, path, body, status):
    answer = page.post(path, json=body)
    assert answer.status_code == status and set(answer.json()) == {"error", "hint", "field"}
    assert "passwd" not in answer.json()["error"] and "Internal" not in answer.json()["error"]


@pytest.mark.parametrize(
    "path",
    [
        "/app/images/2026-11-28/x.png", "/app/images/2026-11-28/..%2f..%2fx.png", "/app/images/x/00001-abcdef12.png",
        "/app/images/2026-11-28/00001-abcdef12.png?plain=1", "/app/thumbs/2026-11-28/00001-abcdef12.jpg",
        "/app/areas/2026-11-28/00001-abcdef12.png", "/app/grids/2026-11-28/00001-sheet.html",
        "/app/init-images/0123456789abcdef.png", "/app/init-images/..%2fx.png",
    ],
)  # fmt: skip
def test_missing_files_return_404(page, path):
    answer = page.get(path)
    assert answer.status_code == 404 and "passwd" not in answer.text


def test_an_unknown_zip_is_refused(page):
    assert page.get("/app/zips/nothing/images.zip").status_code == 400
