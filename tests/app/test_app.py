"""The app, as a real server on the loopback with real clients: a plain HTTP one, and a browser where there is one."""

import concurrent.futures
import http.client
import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from conftest import ROOT
from sdpersonal.app.backend.generation_service import MAX_JOBS
from sdpersonal.app.server.login import MAX_FAILED_LOGINS
from sdpersonal.app.server.middleware import SECURITY_HEADERS
from sdpersonal.app.server.uploads import MAX_UPLOAD
from support import browser as browsers
from support.serving import HOSTILE, Server
from support.stock import small_library


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    place = tmp_path_factory.mktemp("app")
    small_library(place / "concepts")
    (place / "canary.txt").write_text("CANARY")
    with Server(place, **HOSTILE) as running:
        yield running


@pytest.mark.slow
def test_the_page_answers(server):
    page = server.http.get("/")
    assert page.status_code == 200 and "sdpersonal" in page.text
    log = server.log.read_text()
    assert log.startswith("Model: tiny") and server.url in log


@pytest.mark.slow
def test_a_drawing_through_the_queue(server):
    done = server.draw()
    assert done["success"]
    status, *_ = done["output"]["data"]
    assert "1 image in" in str(status)
    (saved_image,) = (server.place / "outputs").rglob("*.png")
    with Image.open(saved_image) as image:
        recipe = json.loads(image.text["sdpersonal"])
    assert recipe["prompt"] == "a cat on grass" and recipe["size"] == "128x128"


@pytest.mark.slow
@pytest.mark.parametrize(
    "form",
    [
        {"seed": "NaN"},
        {"steps": "NaN"},
        {"guidance": "NaN"},
        {"num_images": "NaN"},
        {"seed": "null"},
        {"seed": "1e999"},
        {"prompt": "null"},
        {"size": '"9x9"'},
        {"steps": "2.5"},
    ],
)
def test_bad_numbers_are_refused_in_words(server, form):
    answer = server.draw(**form)
    if "refused" in answer:
        assert answer["refused"] == 422  # no JSON at all
    else:
        reason = "Seed is empty." if form == {"seed": "null"} else "must be"
        assert reason in json.dumps(answer["output"]) and "Traceback" not in json.dumps(answer)
    assert "Traceback" not in server.log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("form", [{"steps": "51000"}, {"steps": '"x"'}, {"num_images": "[1]"}, {"prompt": "{}"}])
def test_wrong_types_end_in_an_answer(server, form):
    answer = server.draw(**form)
    assert "Traceback" not in json.dumps(answer) and str(ROOT) not in json.dumps(answer)
    assert server.draw()["success"]


@pytest.mark.slow
@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "0.0.0.0", ""])
def test_only_this_host_is_answered(server, host):
    assert server.http.get("/", headers={"Host": host}).status_code == 400


@pytest.mark.slow
@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "https://127.0.0.1:{port}", "http://127.0.0.1:1", "http://localhost:{port}"],
)
def test_another_sites_page_can_read_and_change_nothing(server, origin):
    headers = {"Origin": origin.format(port=server.port)}
    for path in ("/gradio_api/queue/join", "/gradio_api/upload", "/gradio_api/run/on_generate"):
        sent = server.http.post(path, headers=headers, files={"files": ("a.png", b"x")})
        assert sent.status_code == 403
    answer = server.http.get("/config", headers=headers)
    assert answer.status_code == 403 and "dependencies" not in answer.text


@pytest.mark.slow
def test_nothing_goes_past_the_queue(server):
    for dependency in server.config()["dependencies"]:
        for route in ("run", "api"):
            address = f"/gradio_api/{route}/{dependency['api_name']}"
            assert server.http.post(address, json={"data": [], "fn_index": dependency["id"]}).status_code == 404


@pytest.mark.slow
def test_a_crowd_is_served_in_order_and_the_rest_told_kindly(server):
    """40 clients at once: the line takes some, each gets its own pictures; the others are told; nothing breaks."""
    sessions = [f"crowd{i}" for i in range(40)]
    before = len(list((server.place / "outputs").rglob("*.png")))
    with concurrent.futures.ThreadPoolExecutor(len(sessions)) as pool:
        joined = pool.map(lambda session: server.join(session, num_images="1", steps="8").status_code, sessions)
        assert {*joined} == {200}
        endings = list(pool.map(server.ending, sessions))
    busy = [text for text in endings if "The queue is full" in text]
    drawn = [text for text in endings if "1 image in" in text]
    assert len(busy) + len(drawn) == len(sessions)
    assert busy and len(drawn) >= MAX_JOBS  # who came once the first had left found a place
    assert len(list((server.place / "outputs").rglob("*.png"))) == before + len(drawn)
    rooms = [re.findall(r"sdpersonal-[^/]*/([^/]*)/", text) for text in drawn]
    seen = [room for some in rooms for room in {*some}]
    assert seen and len(seen) == len({*seen})  # nobody is shown another's picture
    assert server.draw()["success"]


@pytest.mark.slow
def test_a_page_that_is_closed_frees_the_device(server):
    session = "leaves"
    assert server.join(session, steps="150", num_images="16").status_code == 200  # a minute of work
    with server.http.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as stream:
        next(line for line in stream.iter_lines() if "process_generating" in line)
    begun = time.monotonic()
    assert server.draw()["success"] and time.monotonic() - begun < 25


@pytest.mark.slow
def test_no_file_is_handed_out(server):
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
        answer = server.http.get(f"/gradio_api/file={place}")
        assert answer.status_code in (400, 403, 404), place
        assert "CANARY" not in answer.text
        text = json.dumps(server.draw(prompt=json.dumps(place), size=json.dumps(place)))
        assert "CANARY" not in text and "is_file" not in text


STRANGE = ["null", '"/etc/passwd"', "-1", "1e308", '[["x"]]', '"./canary.txt"']


@pytest.mark.slow
@pytest.mark.parametrize(
    "value",
    [
        '{"path": "/etc/passwd"}',
        *(pytest.param(text, marks=pytest.mark.thorough) for text in STRANGE),
    ],
)
def test_every_handler_answers_anything(server, value):
    """As a stranger who has read the page's configuration would call them: wrong types, paths in every field."""
    sessions = []
    for handler in server.config()["dependencies"]:
        for count in {len(handler["inputs"]), len(handler["inputs"]) + 1}:
            session = f"h{time.monotonic_ns()}"
            data = ", ".join([value] * count)
            body = f'{{"data": [{data}], "fn_index": {handler["id"]}, "session_hash": "{session}"}}'
            sent = server.post("/gradio_api/queue/join", body)
            assert sent.status_code in (200, 400, 422), sent.text
            assert "Traceback" not in sent.text and "CANARY" not in sent.text
            if sent.status_code == 200 and handler["inputs"]:
                sessions.append(session)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for answer in pool.map(server.ending, sessions):
            assert not re.search(r"CANARY|root:x:0|Traceback|site-packages", answer), answer
    assert server.draw()["success"]


@pytest.mark.slow
def test_a_body_without_end_or_bottom_is_refused(server):
    assert server.post("/gradio_api/queue/join", '{"data": ["' + "x" * 10_000_000 + '"]}').status_code == 413
    deep = "[" * 10_000 + "]" * 10_000
    assert server.post("/gradio_api/queue/join", f'{{"data": {deep}, "fn_index": 0}}').status_code in (400, 422, 500)
    assert server.draw()["success"]


def announced(server, length):
    """The status of an upload that says how long it is and has sent nothing yet."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.putrequest("POST", "/gradio_api/upload")
    connection.putheader("Content-Type", "multipart/form-data; boundary=b")
    connection.putheader("Content-Length", str(length))
    connection.endheaders()
    return connection.getresponse().status


@pytest.mark.slow
def test_uploads_have_limits_and_stay_in_their_place(server):
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
def test_the_environment_opens_nothing(server):
    config = server.config()
    assert not config.get("root", "").endswith("/elsewhere") and not config.get("is_space")
    assert server.http.get("/gradio_api/mcp/").status_code in (404, 405)
    assert server.http.get("/monitoring/summary").status_code in (403, 404)
    listening = Path("/proc/net/tcp")
    if listening.exists():
        addresses = [line.split()[1] for line in listening.read_text().splitlines()[1:] if line.split()[3] == "0A"]
        assert {place.partition(":")[0] for place in addresses if place.endswith(f":{server.port:04X}")} == {"0100007F"}


@pytest.mark.slow
def test_a_taken_port_is_a_sentence(server, tmp_path):
    second = subprocess.run(
        [sys.executable, ROOT / "app.py", "--base", "tiny", "--port", str(server.port)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert second.returncode == 2
    assert f"Port {server.port} is taken" in second.stderr and "Traceback" not in second.stderr


PUBLIC = {"/", "/theme.css", "/gradio_api/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt", "/login/x"}
PUBLIC |= {"/login", "/login/", "/svelte/x", "/static/x", "/assets/x"}


def routes() -> list[tuple[str, str]]:
    """Method and path of each route that Gradio and FastAPI have, as they stand in Gradio's source."""
    source = (Path(importlib.util.find_spec("gradio").origin).parent / "routes.py").read_text()
    found = re.findall(r'@(app|router)\.(get|post|head)\(\s*f?"([^"]+)"', source)
    paths = [(method.upper(), "/gradio_api" * (where == "router") + path) for where, method, path in found]
    assert len(paths) > 70
    named = [(method, re.sub(r"\{[^}]*int[^}]*\}|\{[^}]*\}", "x", path)) for method, path in paths]
    return [*named, *(("GET", path) for path in ("/openapi.json", "/docs", "/redoc", "/gradio_api/mcp/"))]


def heartbeats(server, count):
    """The first bytes of the answers to many at once, and the seconds that another request took meanwhile."""
    request = f"GET /gradio_api/heartbeat/x{{}} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n\r\n"
    beats = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(count)]
    for number, beat in enumerate(beats):
        beat.sendall(request.format(number).encode())
    begun = time.monotonic()
    assert server.http.get("/robots.txt").status_code == 200
    seconds = time.monotonic() - begun
    answers = {beat.recv(12) for beat in beats}
    for beat in beats:
        beat.close()
    return answers, seconds


@pytest.mark.slow
def test_others_come_in_with_a_password_and_see_their_own(tmp_path):
    """--listen: nothing without logging in, guesses are slowed, each user has pictures of their own, and what was shown
    goes when the app ends."""
    passwords = tmp_path / "passwords"
    passwords.write_text("ann:correct horse\nbob:battery staple\n")
    passwords.chmod(0o600)
    with Server(tmp_path, "--listen", "--password-file", str(passwords)) as running:
        for method, path in [*routes(), ("GET", "/gradio_api/queue/data?session_hash=x")]:
            answer = running.http.request(
                method if path not in PUBLIC else "GET", path
            )  # a POST is an attempt to log in
            assert (answer.status_code == 401) != (path in PUBLIC), (method, path, answer)
            assert SECURITY_HEADERS.items() <= {name: answer.headers.get(name) for name in SECURITY_HEADERS}.items()
        assert running.post("/gradio_api/queue/join", '{"data": [], "session_hash": "x"}').status_code == 401
        answers, seconds = heartbeats(running, 300)
        assert answers == {b"HTTP/1.1 401"} and seconds < 0.5
        assert running.log_in("ann", "correct horse") == 200
        assert all("SameSite=Lax" in cookie for cookie in running.last_cookies)
        assert "1 image in" in json.dumps(running.draw())
        running.join("anns", "on_search", Search='""')
        assert running.http.get("/openapi.json").status_code == 404 == running.http.get("/gradio_api/token").status_code
        (picture,) = (tmp_path / "outputs" / "ann").rglob("*.png")
        assert running.log_in("bob", "battery staple") == 200
        for path in ("/gradio_api/heartbeat/anns", "/gradio_api/queue/data?session_hash=anns"):
            assert running.http.get(path).status_code == 403
        history = running.ask("on_search", Search='""')
        assert "No images found" in history and picture.stem not in history
        guesses = [running.log_in("ann", f"guess {i}") for i in range(50)]
        assert guesses == [400] * MAX_FAILED_LOGINS + [429] * (50 - MAX_FAILED_LOGINS)
        assert running.http.get("/config", headers={"Host": "evil.example"}).status_code == 400
        assert [path.stat().st_mode & 0o777 for path in tmp_path.glob("sdpersonal-*")] == [0o700]
    assert running.process.returncode == 0 and list(tmp_path.glob("sdpersonal-*")) == [] and picture.exists()


@pytest.mark.slow
@pytest.mark.parametrize("flags", [["--listen"], ["--listen", "--password-file", "nothing"], ["--port", "80"]])
def test_a_door_that_cannot_be_opened_is_a_sentence(tmp_path, flags):
    command = [sys.executable, ROOT / "app.py", "--base", "tiny", *flags]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "Traceback" not in done.stderr and len(done.stderr.splitlines()) <= 3


# --- a real browser ---------------------------------------------------------------------------------------------------

needs_browser = pytest.mark.skipif(bool(browsers.missing()), reason=browsers.missing())


@pytest.fixture
def window(tmp_path):
    with browsers.browser(tmp_path / "profile") as opened:
        yield opened


def _shown(selector: str) -> str:
    return f"document.querySelectorAll('{selector}').length"


@needs_browser
@pytest.mark.slow
def test_a_person_draws_with_a_concept(server, window):
    window.open(server.url)
    window.wait(_shown("#concepts .thumbnail-item") + " == 2")
    assert "Model: tiny" in window.text("#model-line textarea")
    window.type("#prompt textarea", "a photo of")
    window.click("#concepts .thumbnail-item")
    window.wait("document.querySelector('#prompt textarea').value == 'a photo of <me/duck>'")
    window.click("#concepts .thumbnail-item")  # the same one again
    window.wait("document.querySelector('#prompt textarea').value == 'a photo of <me/duck> <me/duck>'")
    window.click("#generate")
    window.wait(_shown("#images img") + " >= 4", seconds=120)
    window.wait("document.querySelector('#status textarea').value.startsWith('4 images')")
    window.click("#images .thumbnail-item")
    window.wait("(document.querySelector('#recipe textarea')?.value ?? '').includes('Concepts: <me/duck')")
    assert [address for address in window.requests() if not address.startswith((server.url, "data:", "blob:"))] == []


@needs_browser
@pytest.mark.slow
def test_markup_in_a_prompt_stays_text(server, window):
    window.open(server.url)
    window.wait(_shown("#prompt textarea"))
    window.run("window.alert = () => { window.alerted = true }")
    window.type("#prompt textarea", '<img src=x onerror="alert(1)"> <script>alert(2)</script>')
    window.click("#generate")
    window.wait("document.querySelector('#status textarea').value.includes('is not a concept')")
    assert window.run("return [window.alerted ?? false, document.querySelectorAll('img[src=x]').length]") == [False, 0]
