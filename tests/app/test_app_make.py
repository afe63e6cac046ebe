"""Making a concept through the app: a real server, a real browser, a real training. The last test ends the server."""

import json
import signal
import time
from pathlib import Path

import psutil
import pytest
from test_service_training import FORM

from sdpersonal.concepts.library import Library
from support import browser as browsers
from support.serving import Server

BEAR = Path(__file__).parents[2] / "examples" / "photos" / "teddy-bear"
SLOW = 120  # seconds, on a machine with other work

needs_browser = pytest.mark.skipif(bool(browsers.missing()), reason=browsers.missing())
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    place = tmp_path_factory.mktemp("make")
    try:
        with Server(place) as running:
            yield running
    finally:
        for run in (place / "runs").glob("*/process.json"):
            pid = json.loads(run.read_text())["pid"]
            if psutil.pid_exists(pid) and "sdpersonal" in " ".join(psutil.Process(pid).cmdline()):
                psutil.Process(pid).kill()


@pytest.fixture
def window(tmp_path):
    with browsers.browser(tmp_path / "profile") as opened:
        yield opened


def value(window, selector):
    return window.run("return document.querySelector(arguments[0])?.value ?? ''", selector)


def says(window, selector, words, seconds=SLOW):
    window.wait(f"(document.querySelector('{selector} textarea')?.value ?? '').includes({json.dumps(words)})", seconds)


OPEN = """(() => {
    const named = each => each.textContent.trim() == 'Train';  // on a phone it is in a menu
    [...document.querySelectorAll('button')].filter(named).forEach(each => each.click());
    return document.querySelector('#train-start, #run-title')?.offsetParent;
})()"""


def make_tab(window, server):
    window.open(server.url)
    window.wait(OPEN, SLOW)


def drop(window, paths):
    element = window.call("element", using="css selector", value="#photos-drop input[type=file]")[browsers.ELEMENT]
    window.call(f"element/{element}/value", text="\n".join(map(str, paths)))


@needs_browser
def test_an_empty_library_says_what_to_do_next(server, window):
    window.resize(390, 844)  # a phone
    window.open(server.url)
    window.wait("(document.querySelector('#no-concepts textarea')?.value ?? '').includes('No concepts yet')")
    assert window.run("return document.documentElement.scrollWidth") <= 390


ORDER = ("kind", "noun", "owner", "name", "agrees", "method", "crop", "flip", "early_stop", "text_encoder", "prior")
ORDER += ("steps", "lr", "rank", "resolution", "seed")
FILLED = [FORM[name] for name in ORDER]


def ask(server, handler, values, session="page"):
    """Call a handler as a page does; its last message, or the status where it was refused."""
    body = {"data": values, "fn_index": server.handler(handler)["id"], "session_hash": session}
    joined = server.http.post("/gradio_api/queue/join", json=body)
    return server.ending(session) if joined.status_code == 200 else str(joined.status_code)


def test_called_by_hand_with_anything_a_handler_answers_in_words(server):
    """No path is read, no run of nobody is touched, nothing is started, and the log shows no traceback of ours."""
    (server.place / "canary.txt").write_text("CANARY")
    paths = ["/etc/passwd", "canary.txt", "../canary.txt", str(server.place / "concepts")]
    answers = [
        ask(server, "on_drop", [[{"path": path, "meta": {"_type": "gradio.FileData"}}], *FILLED]) for path in paths
    ]
    for name in ("on_start", "on_clear", "on_advice"):
        answers += [
            ask(server, name, values) for values in (FILLED, [None] * 16, [[]] * 16, ["x; touch PWNED"] * 16, [])
        ]
    for chosen in (None, -1, 99, "0", [0], 10**30):
        answers += [ask(server, "on_turn", [chosen, *FILLED]), ask(server, "on_caption", [chosen, "{} x", *FILLED])]
    answers += [ask(server, name, []) for name in ("on_ask", "on_discard", "on_resume", "on_another")]
    assert "CANARY" not in "".join(answers) and "root:" not in "".join(answers) and "Traceback" not in "".join(answers)
    assert "There are no photos yet" in answers[len(paths)]
    assert not list(server.place.rglob("PWNED")) and not list((server.place / "runs").glob("*"))
    assert (server.place / "canary.txt").exists()


@needs_browser
def test_cancelled_on_a_phone_after_being_asked_once_more(server, window):
    window.resize(390, 844)
    make_tab(window, server)
    window.wait("document.querySelector('#sample-photos-0')?.offsetParent")
    window.click("#sample-photos-0")
    window.wait("document.querySelectorAll('#photos img').length == 5", SLOW)
    window.type("#train-noun textarea, #train-noun input", "bear")
    window.type("#train-name textarea, #train-name input", "bear")
    says(window, "#train-plan", "At most 320 steps")
    assert window.run("return document.documentElement.scrollWidth") <= 390
    window.click("#train-start")
    says(window, "#run-title", "<me/bear>")
    window.click("#run-cancel")
    window.wait("document.querySelector('#run-yes')?.offsetParent", SLOW)
    window.click("#run-yes")
    says(window, "#train-note", "copies of your photos were deleted")
    assert window.run("return document.documentElement.scrollWidth") <= 390
    assert not list((server.place / "runs").glob("me-bear-*"))


@needs_browser
def test_a_person_makes_a_concept(server, window, tmp_path):
    """Photos, a name, start; reload in the middle; stop and keep; its first prompt stands in the Generate tab."""
    make_tab(window, server)
    window.wait("document.querySelector('#train-start')?.offsetParent")
    (tmp_path / "<img src=x onerror=alert(1)>.gif").write_bytes(b"GIF89a")
    drop(window, [*sorted(BEAR.iterdir()), *tmp_path.glob("*.gif")])
    window.wait("document.querySelectorAll('#photos img').length == 5", SLOW)
    says(window, "#photos-review", "is a GIF")
    window.click("#photos .thumbnail-item")
    window.wait("document.querySelector('#photo-leave-out')?.offsetParent", SLOW)
    says(window, "#photo-caption", "{}")
    window.click("#photo-leave-out")
    says(window, "#photos-review", "1 left out")
    window.type("#train-noun textarea, #train-noun input", "bear")
    window.type("#train-name textarea, #train-name input", "My Bear")
    says(window, "#train-name-note", "Call it <me/my-bear>")
    window.run(
        "const box = document.querySelector('#train-name textarea, #train-name input');"
        "box.value = ''; box.dispatchEvent(new Event('input'))"
    )
    window.type("#train-name textarea, #train-name input", "bear")
    says(window, "#train-plan", "on 4 photos of bear")
    window.click("#train-start")
    says(window, "#run-text", "Step ")

    make_tab(window, server)  # as after a reload
    says(window, "#run-title", "Training <me/bear>")
    says(window, "#run-text", "Step ")
    (run,) = (server.place / "runs").glob("me-bear-*")
    assert len([path for path in (run / "photos").iterdir() if path.suffix != ".txt"]) == 4
    window.click("#run-keep")
    says(window, "#run-title", "<me/bear-v1> is ready")
    window.wait("document.querySelectorAll('#run-samples img').length == 2", SLOW)
    assert not (run / "photos").exists() and len(Library(server.place / "concepts").entries()) == 1
    window.run("HTMLAnchorElement.prototype.click = function () { window.asked = this.href; }")
    window.click("#run-report")
    link = window.wait("window.asked")
    report = server.http.get(link.removeprefix(server.url))
    assert "&lt;me/bear" in report.text and report.headers["Content-Disposition"].startswith("attachment")
    window.click("#run-try-0")
    window.wait("document.querySelector('#prompt textarea')?.value == 'a photo of <me/bear>'")
    window.wait("document.querySelector('#generate')?.offsetParent")
    assert window.run("return document.querySelectorAll('img[src=x]').length") == 0
    outside = [address for address in window.requests() if not address.startswith((server.url, "data:", "blob:"))]
    assert outside == []


def test_the_end_of_the_app_ends_the_training_with_a_checkpoint(server):
    """Started over HTTP, as a page does; SIGTERM to the app reaches it."""
    assert "photo 05" in ask(server, "on_sample", FILLED)
    assert "Preparing to train" in ask(server, "on_start", FILLED)
    assert "You are already training" in ask(server, "on_start", FILLED, "another page")
    run = max((server.place / "runs").glob("me-bear-*"), key=lambda run: run.stat().st_mtime)
    trainer, progress = psutil.Process(json.loads((run / "process.json").read_text())["pid"]), run / "progress.jsonl"
    until = time.monotonic() + SLOW
    while not (progress.exists() and progress.read_text().count("\n") > 2) and time.monotonic() < until:
        time.sleep(0.1)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(SLOW) == 0
    assert not trainer.is_running() and list(run.glob("step-*/manifest.json"))
    assert "it is saved" in (run / "errors.txt").read_text()
    assert not list(server.place.glob("sdpersonal-*"))  # neither what was shown nor the photos that were dropped
