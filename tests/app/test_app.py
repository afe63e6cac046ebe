"""The app, as a real server on the loopback with real clients: a plain HTTP one, and a browser where there is one."""

import concurrent.futures
import http.client
import importlib.util
import json
import math
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from PIL import Image

from conftest import ROOT
from sdpersonal.app.backend.user_jobs import MAX_WAITING
from sdpersonal.app.server.login import MAX_FAILED_LOGINS
from sdpersonal.app.server.middleware import SECURITY_HEADERS
from sdpersonal.app.server.uploads import MAX_UPLOAD
from support.ranks import start
from support.serving import FORM, HOSTILE, Server
from support.stock import small_library


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    place = tmp_path_factory.mktemp("app")
    small_library(place / "concepts")
    (place / "canary.txt").write_text("CANARY")
    with Server(place, **HOSTILE) as running:
        yield running


@pytest.mark.slow
def test_the_start_page_is_served_and_the_log_names_the_model(server):
    page = server.http.get("/")
    assert page.status_code == 200 and "sdpersonal" in page.text
    log = server.log.read_text()
    assert log.startswith("Model: tiny") and server.url in log


@pytest.mark.slow
def test_a_generated_image_is_saved_with_its_recipe_and_served(server):
    done = server.draw()
    assert done["state"] == "done" and "1 image in" in done["message"]
    (shown,) = done["images"]
    (saved_image,) = (server.place / "outputs").glob("*/*.png")
    with Image.open(saved_image) as image:
        recipe = json.loads(image.text["sdpersonal"])
    assert recipe["prompt"] == "a cat on grass" == shown["prompt"] and recipe["size"] == "128x128"
    assert server.http.get(shown["url"]).content == saved_image.read_bytes()
    assert server.http.get(shown["thumb"]).headers["cache-control"].startswith("private, max-age=")


@pytest.mark.slow
@pytest.mark.parametrize(
    "form",
    [
        {"seed": math.nan},
        {"steps": math.nan},
        {"guidance": math.nan},
        {"num_images": math.nan},
        {"seed": ""},
        {"seed": math.inf},
        {"prompt": None},
        {"width": 9, "height": 9},
        {"steps": 2.5},
        {"steps": "x"},
        {"steps": 51000},
        {"num_images": [1]},
        {"prompt": {}},
        {"init": {"path": "/etc/passwd"}},
        {"init": "/etc/passwd"},
        {"init_image": "/etc/passwd"},
        {"colour": "red"},
    ],
)
def test_invalid_form_values_are_refused_with_a_message(server, form):
    answer = server.draw(**form)
    assert answer.get("refused") in (400, 422) and answer["error"], answer
    assert "Internal error" not in answer["error"] and str(ROOT) not in answer["error"]
    assert "Traceback" not in server.log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "0.0.0.0", ""])
def test_requests_for_other_hosts_are_refused(server, host):
    assert server.http.get("/", headers={"Host": host}).status_code == 400


@pytest.mark.slow
@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "https://127.0.0.1:{port}", "http://127.0.0.1:1", "http://localhost:{port}"],
)
def test_requests_from_other_origins_are_refused(server, origin):
    headers = {"Origin": origin.format(port=server.port)}
    for path in ("/app/jobs", "/gradio_api/queue/join", "/gradio_api/upload", "/gradio_api/call/v2/generate"):
        sent = server.http.post(path, headers=headers, files={"files": ("a.png", b"x")})
        assert sent.status_code == 403
    for path in ("/config", "/app/state", "/app/gallery", "/app/events"):
        answer = server.http.get(path, headers=headers)
        assert answer.status_code == 403 and "dependencies" not in answer.text and "model" not in answer.text


@pytest.mark.slow
def test_gradio_routes_that_bypass_the_queue_do_not_exist(server):
    endpoints = server.get_json("/config")["dependencies"]
    assert len(endpoints) == 7
    for endpoint in endpoints:
        for route in ("run", "api"):
            address = f"/gradio_api/{route}/{endpoint['api_name']}"
            assert server.post_json(address, {"data": [], "fn_index": endpoint["id"]}).status_code == 404


@pytest.mark.slow
def test_queued_jobs_run_in_order_and_jobs_over_the_limit_are_refused(server):
    """Without logins all clients are one user with one line: it takes some, in the order that they came, and tells the
    others; nothing breaks."""
    before = len(list((server.place / "outputs").glob("*/*.png")))
    first = server.submit(steps=40, num_images=4).json()["id"]
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda seed: server.submit(seed=str(seed), steps=1), range(MAX_WAITING + 20)))
    taken = [answer.json()["id"] for answer in answers if answer.status_code == 200]
    assert MAX_WAITING <= len(taken) < MAX_WAITING + 20
    assert {answer.json()["error"] for answer in answers if answer.status_code == 400} == {
        f"You have {MAX_WAITING} jobs waiting already."
    }
    line = [job["id"] for job in server.get_json("/app/jobs")["jobs"] if job["state"] == "waiting"]
    jobs = server.wait_for_jobs([first, *taken])
    served = {job["id"]: job["images"][0]["id"] for job in jobs}  # which are numbered as they are made
    assert [served[job] for job in line] == sorted(served[job] for job in line)
    assert {job["state"] for job in jobs} == {"done"}
    images = [image["id"] for job in jobs for image in job["images"]]
    assert len(images) == len({*images}) == len(taken) + 4  # nobody is shown another's picture
    assert len(list((server.place / "outputs").glob("*/*.png"))) == before + len(images)
    assert server.draw()["state"] == "done"


@pytest.mark.slow
def test_a_cancelled_job_frees_the_device(server):
    job = server.submit(steps=150, num_images=16).json()["id"]  # a minute of work
    until = time.monotonic() + 30
    while server.get_json("/app/jobs")["jobs"][0]["state"] != "running" and time.monotonic() < until:
        time.sleep(0.05)
    begun = time.monotonic()
    assert server.post_json(f"/app/jobs/{job}/cancel").status_code == 200
    assert server.draw()["state"] == "done" and time.monotonic() - begun < 25
    assert server.wait_for_job(job)["state"] == "stopped"


@pytest.mark.slow
def test_files_cannot_be_read_by_path_or_url(server):
    places = [
        "/etc/passwd",
        str(server.place / "canary.txt"),
        "canary.txt",
        "../canary.txt",
        "%2e%2e/canary.txt",
        "/proc/self/environ",
        str(server.place / "concepts/me/duck-v1.safetensors"),
        str(ROOT / ".git/config"),
        str(ROOT / "app.py"),
        "http://127.0.0.1:22",
        "http://169.254.169.254/",
        "C:\\Windows\\win.ini",
        "//etc/passwd",
    ]
    for place in places:
        for address in (f"/gradio_api/file={place}", f"/page/{place}", f"/app/images/{place}", f"/app/thumbs/{place}"):
            answer = server.http.get(address)
            assert answer.status_code in (400, 403, 404, 422), address
            assert not LEAKS.search(answer.text)
        for body in ({"upload": place}, {"path": place}, {"uploads": [place]}):
            assert server.post_json("/app/settings/read", body).status_code == 400
        text = json.dumps(server.draw(prompt=place, init={"image": place}))
        assert not LEAKS.search(text)


LEAKS = re.compile(r"CANARY|root:x:0|Traceback|site-packages|is_file")
STRANGE = [None, "/etc/passwd", -1, 1e308, [["x"]], "./canary.txt", "x" * 5000, math.nan, True, "\ud800", "../../x", {}]
# Not called with anything: they change the model, or the library for the tests to come.
LEFT_OUT = ("/app/models/switch", "/app/concepts/trash/empty")


def page_routes() -> list[tuple[str, str]]:
    """Method and path of the page's routes, as they stand in the source, with x for each parameter."""
    found = []
    for path in sorted((ROOT / "sdpersonal/app/routes").glob("*.py")):
        source = path.read_text()
        prefix = re.search(r'APIRouter\(prefix="([^"]*)"', source)
        routes = re.findall(r'@routes\.(get|post)\(\s*f?"([^"]*)"', source)
        found += [(method.upper(), (prefix[1] if prefix else "") + address) for method, address in routes]
    routes = [(method, re.sub(r"\{[^}]*\}", "x", path)) for method, path in found if path.startswith("/app/")]
    assert len(routes) > 45
    return [(method, path) for method, path in routes if path not in (*LEFT_OUT, "/app/events")]


def strange_bodies(value: object) -> list[object]:
    """Bodies of every shape that a route might take, with a value where it does not belong."""
    names = ["prompt", "token", "tokens", "id", "ids", "image", "form", "values", "uploads", "upload", "text", "name"]
    names += ["kind", "photo", "captions", "crop", "command", "step", "prompts", "undo", "seed", "used", "before"]
    return [value, [value], {name: value for name in names}, *({name: value} for name in names)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "value",
    ["/etc/passwd", *(pytest.param(value, marks=pytest.mark.thorough, id=repr(value)[:20]) for value in STRANGE)],
)
def test_every_route_answers_invalid_values_without_a_server_error(server, value):
    """As a stranger who has read the page's scripts would call them: wrong types, paths in every field."""
    statuses = []
    for method, path in page_routes():
        for body in strange_bodies(value) if method == "POST" else [None]:
            answer = server.post_json(path, body) if method == "POST" else server.http.get(path)
            assert answer.status_code < 500, (path, body, answer.text)
            assert not LEAKS.search(answer.text), (path, body, answer.text)
            statuses.append(answer.status_code)
    assert statuses.count(422) > 50
    for endpoint in server.get_json("/config")["dependencies"]:
        data = [value] * len(endpoint["inputs"])
        called = server.post_json(f"/gradio_api/call/{endpoint['api_name']}", {"data": data})
        assert called.status_code in (200, 400), called.text
        if called.status_code == 200:
            event = called.json()["event_id"]
            answer = server.http.get(f"/gradio_api/call/{endpoint['api_name']}/{event}").text
            assert "event: " in answer and not LEAKS.search(answer)
    assert "Traceback" not in server.log.read_text() and server.draw()["state"] == "done"


@pytest.mark.slow
def test_very_long_and_deeply_nested_bodies_are_refused(server):
    for path in ("/app/jobs", "/gradio_api/queue/join"):
        assert server.post(path, '{"form": ["' + "x" * 10_000_000 + '"]}').status_code == 413
        deep = "[" * 10_000 + "]" * 10_000
        assert server.post(path, f'{{"form": {deep}, "fn_index": 0}}').status_code in (400, 422)
    assert server.draw()["state"] == "done"


def announced(server, length):
    """The status of an upload that says how long it is and has sent nothing yet."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.putrequest("POST", "/gradio_api/upload")
    connection.putheader("Content-Type", "multipart/form-data; boundary=b")
    connection.putheader("Content-Length", str(length))
    connection.endheaders()
    return connection.getresponse().status


@pytest.mark.slow
def test_uploads_are_limited_and_stay_in_their_folder(server):
    assert announced(server, MAX_UPLOAD + 1) == 413
    many = [("files", (f"{i}.png", b"x")) for i in range(1000)]
    assert server.http.post("/gradio_api/upload", files=many).status_code == 413
    for name in ("../../outside.png", "/tmp/outside.png", "", ".."):
        sent = server.http.post("/gradio_api/upload", files={"files": (name, b"outside")})
        assert sent.status_code in (200, 400)
        if sent.status_code == 200:
            (path,) = sent.json()
            assert any(Path(path).resolve().is_relative_to(folder) for folder in server.place.glob("sdpersonal-*"))
    assert not list(server.place.parent.glob("outside*")) and not Path("/tmp/outside.png").exists()


@pytest.mark.slow
def test_environment_variables_do_not_expose_the_server(server):
    config = server.get_json("/config")
    assert not config.get("root", "").endswith("/elsewhere") and not config.get("is_space")
    assert server.http.get("/gradio_api/mcp/").status_code in (404, 405)
    assert server.http.get("/monitoring/summary").status_code in (403, 404)
    listening = Path("/proc/net/tcp")
    if listening.exists():
        addresses = [line.split()[1] for line in listening.read_text().splitlines()[1:] if line.split()[3] == "0A"]
        assert {place.partition(":")[0] for place in addresses if place.endswith(f":{server.port:04X}")} == {"0100007F"}


@pytest.mark.slow
def test_a_port_in_use_is_refused_with_a_message(server, tmp_path):
    second = start(["app", "--base", "tiny", "--port", server.port], tmp_path)
    assert second.wait() == 2
    assert f"Port {server.port} is taken" in second.errors and "Traceback" not in second.errors


PUBLIC = {"/", "/favicon.ico", "/robots.txt", "/login", "/login/"}


def routes() -> list[tuple[str, str]]:
    """Method and path of each route that Gradio and FastAPI have, as they stand in Gradio's source."""
    source = (Path(importlib.util.find_spec("gradio").origin).parent / "routes.py").read_text()
    found = re.findall(r'@(app|router)\.(get|post|head)\(\s*f?"([^"]+)"', source)
    paths = [(method.upper(), "/gradio_api" * (where == "router") + path) for where, method, path in found]
    assert len(paths) > 70
    named = [(method, re.sub(r"\{[^}]*int[^}]*\}|\{[^}]*\}", "x", path)) for method, path in paths]
    return [*named, *(("GET", path) for path in ("/openapi.json", "/docs", "/redoc", "/gradio_api/mcp/"))]


def streams(server, count):
    """The first bytes of the answers to many at once, and the seconds that another request took meanwhile."""
    paths = ("/app/events", "/gradio_api/heartbeat/x{}")
    request = f"GET {{}} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n\r\n"
    opened = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(count)]
    for number, connection in enumerate(opened):
        connection.sendall(request.format(paths[number % 2].format(number)).encode())
    begun = time.monotonic()
    assert server.http.get("/robots.txt").status_code == 200
    seconds = time.monotonic() - begun
    answers = {connection.recv(12) for connection in opened}
    for connection in opened:
        connection.close()
    return answers, seconds


@pytest.mark.slow
def test_users_log_in_with_a_password_and_see_only_their_own_images(tmp_path):
    """--listen: nothing without logging in, guesses are slowed, each user has pictures of their own, and what was shown
    goes when the app ends."""
    passwords = tmp_path / "passwords"
    passwords.write_text("ann:correct horse\nbob:battery staple\n")
    passwords.chmod(0o600)
    with Server(tmp_path, "--listen", "--password-file", str(passwords)) as running:
        for method, path in [*routes(), *page_routes(), ("GET", "/app/events"), ("GET", "/app/x")]:
            answer = running.http.request(
                method if path not in PUBLIC else "GET", path
            )  # a POST is an attempt to log in
            assert (answer.status_code == 401) != (path in PUBLIC), (method, path, answer)
            assert SECURITY_HEADERS.items() <= {name: answer.headers.get(name) for name in SECURITY_HEADERS}.items()
        assert "Log in" in running.http.get("/").text and running.submit().status_code == 401
        answers, seconds = streams(running, 300)
        assert answers == {b"HTTP/1.1 401"} and seconds < 0.5
        assert running.log_in("ann", "correct horse") == 200
        assert all("SameSite=Lax" in cookie for cookie in running.last_cookies)
        done = running.draw()
        assert "1 image in" in done["message"] and "Log in" not in running.http.get("/").text
        assert running.http.get("/openapi.json").status_code == 404 == running.http.get("/gradio_api/token").status_code
        (picture,) = (tmp_path / "outputs" / "ann").glob("*/*.png")
        (entry,) = done["images"]
        anns = dict(running.http.cookies)
        assert running.log_in("ann", "correct horse") == 200
        phone = dict(running.http.cookies)
        assert running.log_in("bob", "battery staple") == 200
        for path in (entry["url"], entry["thumb"], f"/app/gallery/image?id={entry['id']}"):
            assert running.http.get(path).status_code in (400, 404)
        assert running.get_json("/app/gallery")["images"] == [] == running.get_json("/app/jobs")["jobs"]
        assert running.post_json(f"/app/jobs/{done['id']}/cancel").status_code == 400
        assert running.post_json("/app/gallery/delete", {"ids": [entry["id"]]}).status_code in (200, 400)
        assert picture.exists()
        with httpx.Client(base_url=running.url, cookies=anns, trust_env=False) as ann:
            for _ in range(10):
                form = FORM | {"num_images": 8, "steps": 40}
                assert ann.post("/app/jobs", json={"kind": "generate", "form": form}).status_code == 200
            assert "1 image in" in running.draw()["message"]  # users take turns: bob waits for one batch of ann's
            assert [job["state"] for job in ann.get("/app/jobs").json()["jobs"]].count("waiting") > 5
            assert ann.post("/app/jobs/stop").status_code == 200
            assert ann.get("/logout").headers["location"] == running.url
        for cookies, status in [(anns, 401), (phone, 200)]:  # her other device stays logged in
            assert httpx.get(f"{running.url}/app/jobs", cookies=cookies, trust_env=False).status_code == status
        guesses = [running.log_in("ann", f"guess {i}") for i in range(50)]
        assert guesses == [400] * MAX_FAILED_LOGINS + [429] * (50 - MAX_FAILED_LOGINS)
        assert running.http.get("/config", headers={"Host": "evil.example"}).status_code == 400
        assert [path.stat().st_mode & 0o777 for path in tmp_path.glob("sdpersonal-*")] == [0o700]
    assert running.process.returncode == 0 and list(tmp_path.glob("sdpersonal-*")) == [] and picture.exists()


@pytest.mark.slow
def test_unusable_server_flags_are_refused_with_a_message(tmp_path):
    command = [sys.executable, ROOT / "app.py", "--base", "tiny", "--listen"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "Traceback" not in done.stderr and len(done.stderr.splitlines()) <= 3
