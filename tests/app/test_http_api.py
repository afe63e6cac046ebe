"""The HTTP API as programs use it, with Gradio's client and with curl, on a real server."""

import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import httpx
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from conftest import ROOT
from support.serving import WarmServer
from support.stock import small_library

GUIDE = (ROOT / "docs/http-api.md").read_text()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """With logins, for ann and bob."""
    place = tmp_path_factory.mktemp("api")
    small_library(place / "concepts")
    (place / "passwords").write_text("ann:correct horse\nbob:battery staple\n")
    (place / "passwords").chmod(0o600)
    with WarmServer(place, "--password-file", str(place / "passwords")) as running:
        yield running


@pytest.fixture
def ann(server, tmp_path):
    return client_of(server, tmp_path, "ann", "correct horse")


@pytest.fixture
def bob(server, tmp_path):
    return client_of(server, tmp_path, "bob", "battery staple")


def client_of(server, folder, *auth):
    options = {"httpx_kwargs": {"trust_env": False}, "analytics_enabled": False, "verbose": False}
    return Client(server.url, auth=auth, download_files=str(folder / auth[0]), **options)


@pytest.fixture
def photos(tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for number, path in enumerate(paths):
        Image.effect_noise((256, 256), 40 + 20 * number).convert("RGB").save(path)
    return paths


def only(**more):
    return {"steps": 2, "width": 128, "height": 128} | more


@pytest.mark.slow
def test_generate_returns_image_files_with_their_seeds(server, ann):
    job = ann.submit("a cat on grass", num_images=2, seed=7, api_name="/generate", **only())
    first, second = job.result()
    assert [first["seed"], second["seed"]] == [7, 8]
    assert len(job.outputs()[0]) == 1  # the first came before the second was there
    for image in (first, second):
        with Image.open(image["image"]) as shown:
            recipe = json.loads(shown.text["sdpersonal"])
            assert shown.size == (128, 128) and recipe["prompt"] == "a cat on grass"
        assert (server.place / "outputs/ann" / f"{image['id']}.png").read_bytes() == Path(image["image"]).read_bytes()
    changed = ann.predict(
        "a dog", init_image=handle_file(first["image"]), strength=0.5, settings={"scheduler": "Euler"}, steps=2,
        api_name="/generate",
    )  # fmt: skip
    assert len(changed) == 1


WRONG = {
    "steps": ({"prompt": "x", "steps": 0}, "steps must be"),
    "size": ({"prompt": "x", "width": 9, "height": 9}, "size must be"),
    "type": ({"prompt": ["x"]}, "prompt"),
    "many": ({"prompt": "x", "num_images": 10**6}, "num_images must be"),
    "no concept": ({"prompt": "<me/gone>"}, "<me/gone>"),
    "unknown": ({"prompt": "x", "settings": {"colour": "red"}}, "colour"),
    "a path": ({"prompt": "x", "settings": {"init_image": "/etc/passwd"}}, "init_image"),
    "no object": ({"prompt": "x", "settings": [1]}, "settings must be"),
    "no file": ({"prompt": "x", "init_image": {"a": 1}}, "init must be an uploaded file"),
}


@pytest.mark.slow
def test_invalid_calls_are_refused_with_a_message(server, ann):
    for name, (values, words) in WRONG.items():
        with pytest.raises(AppError) as refused:
            ann.predict(**values, api_name="/generate")
        assert words in str(refused.value) and "Traceback" not in str(refused.value), name
    for what, call in [("what must be", {"what": "x"}), ("limit must be", {"limit": 10**6})]:
        with pytest.raises(AppError, match=what):
            ann.predict(**call, api_name="/list")
    with pytest.raises(AppError, match="does not exist"):
        ann.predict("nothing", api_name="/progress")
    assert "Traceback" not in server.log.read_text()


@pytest.mark.slow
def test_a_cancelled_job_ends_and_keeps_its_images(ann):
    job = ann.submit("a cat", num_images=40, api_name="/generate", **only(steps=6))
    until = time.monotonic() + 60
    while not job.outputs() and time.monotonic() < until:
        time.sleep(0.1)
    job.cancel()
    while (shown := ann.predict(api_name="/progress")["jobs"][0])["state"] not in ("stopped", "done"):
        assert time.monotonic() < until
        time.sleep(0.1)
    assert shown["state"] == "stopped" and shown["images"]


@pytest.mark.slow
def test_a_training_uses_the_sent_photos_and_captions_and_can_be_cancelled(server, ann, bob, photos):
    files = [handle_file(path) for path in photos]
    captions = ["{} in the snow", "{} asleep", "{}"]
    with pytest.raises(AppError, match="captions must be a list"):
        ann.predict(files, "rex", captions=captions[:2], api_name="/train")
    with pytest.raises(AppError, match="photos must be a list"):
        ann.predict([], "rex", api_name="/train")
    with pytest.raises(AppError, match="Steps must be"):
        ann.predict(files, "rex", settings={"steps": "many"}, class_noun="dog", api_name="/train")
    settings = {"steps": 40, "method": "textual-inversion"}
    training = ann.predict(
        files, "Rex the dog", class_noun="dog", captions=captions, settings=settings, api_name="/train"
    )
    assert training["token"] == "<ann/rex-the-dog>"
    assert ann.predict(training["id"], api_name="/progress")["state"] in ("waiting", "starting", "training")
    assert [entry["id"] for entry in ann.predict("trainings", api_name="/list")] == [training["id"]]
    for client, name in ((bob, "progress"), (bob, "cancel")):
        with pytest.raises(AppError, match="does not exist"):
            client.predict(training["id"], api_name=f"/{name}")
    folder = server.place / "runs/ann" / training["id"]
    assert sorted(path.read_text().strip() for path in folder.rglob("photos/*.txt")) == sorted(captions)
    assert len([path for path in folder.glob("photos/*") if path.suffix != ".txt"]) == 3
    assert not list((server.place / "runs/ann/.drafts").glob("*/*.png"))  # nothing of the refused ones is left
    assert ann.predict(training["id"], api_name="/cancel")["message"]


@pytest.mark.slow
def test_a_concept_is_exported(ann):
    exported = ann.predict("<me/duck>", "a1111", api_name="/export")
    assert exported["steps"] and Path(exported["file"]).read_bytes()[:2] == b"PK"
    tokens = [concept["token"] for concept in ann.predict("concepts", "ME/DUCK", api_name="/list")]
    assert tokens == ["<me/duck>"]


@pytest.mark.slow
def test_users_access_only_their_own_images_and_files(server, ann, bob, tmp_path):
    (image,) = ann.predict("a secret", seed=3, api_name="/generate", **only())
    job = ann.submit("another", num_images=1, api_name="/generate", **only())
    assert not [entry for entry in bob.predict("images", api_name="/list") if entry["id"] == image["id"]]
    assert bob.predict(api_name="/progress")["jobs"] == [] and ann.predict(api_name="/progress")["jobs"]
    job.result()
    files = [*server.place.rglob("served/upload-*/result/*.png")]
    assert files
    for name, password, is_hers in (("ann", "correct horse", True), ("bob", "battery staple", False)):
        server.http.cookies.clear()
        assert server.log_in(name, password) == 200
        for path in files:
            assert server.http.get(f"/gradio_api/file={path}").status_code == (200 if is_hers else 404)
        named = {"prompt": "x", "init_image": {"path": str(files[0])}}
        assert server.post_json("/gradio_api/call/v2/generate", named).status_code == (200 if is_hers else 400)


@pytest.mark.slow
def test_the_api_needs_a_login(server):
    with httpx.Client(base_url=server.url, trust_env=False) as stranger:
        for path in ("/config", "/gradio_api/info", "/gradio_api/call/generate/x", "/gradio_api/file=/etc/passwd"):
            assert stranger.get(path).status_code == 401
        assert stranger.post("/gradio_api/call/v2/generate", json={"prompt": "x"}).status_code == 401


# --- the guide --------------------------------------------------------------------------------------------------------


def block(language):
    return re.search(rf"```{language}\n(.*?)```", GUIDE, re.S)[1]


@pytest.fixture(scope="module")
def open_server(tmp_path_factory):
    place = tmp_path_factory.mktemp("open")
    small_library(place / "concepts")
    with WarmServer(place) as running:
        yield running


@pytest.mark.slow
def test_the_python_example_of_the_guide_works(open_server, photos, capsys, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    code = block("python").replace("http://127.0.0.1:7860", open_server.url)
    code = code.replace('class_noun="dog"', 'class_noun="dog", settings={"steps": 2}')
    values = {"photos": photos}
    exec(compile(code, "docs/http-api.md", "exec"), values)
    values["client"].predict(values["training"]["id"], api_name="/cancel")
    printed = capsys.readouterr().out
    assert printed.splitlines()[-5:] and "<me/duck>" in printed and re.search(r"^7 .*\.png$", printed, re.M)


@pytest.mark.slow
def test_the_curl_example_of_the_guide_works(open_server, tmp_path):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    shutil.copy(next((open_server.place / "concepts").rglob("duck*.safetensors")), tmp_path / "duck.safetensors")
    code = block("sh").replace("http://127.0.0.1:7860", open_server.url)
    done = subprocess.run(["bash", "-ec", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "cat.png") as image:
        assert json.loads(image.text["sdpersonal"])["seed"] == 7
    assert "event: complete" in done.stdout and "<me/rex-v1>" in done.stdout


@pytest.mark.slow
def test_every_endpoint_is_in_the_guide(open_server):
    named = set(open_server.get_json("/gradio_api/info")["named_endpoints"])
    assert named == {f"/{name}" for name in re.findall(r"^\| `(\w+)` \|", GUIDE, re.M)}
