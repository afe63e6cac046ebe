"""Making a concept through the app: a real server, a real browser, a real training. The last test ends the server."""

import json
import signal
import time
from pathlib import Path

import psutil
import pytest

from conftest import ROOT
from sdpersonal.concepts.library import Library
from sdpersonal.config import DreamboothSettings
from support import browser as browsers
from support.axe import violations
from support.serving import Server

BEAR = Path(__file__).parents[2] / "examples" / "photos" / "teddy-bear"
SLOW = 120  # seconds, on a machine with other work
RIGHT, DOWN = "\ue014", "\ue015"  # keys of WebDriver

PRESS = """
const named = b => b.getAttribute('aria-label') === arguments[0] || b.textContent.trim() === arguments[0];
const place = document.querySelector('dialog') ?? document.querySelector('main');
const button = [...place.querySelectorAll('button')].find(b => named(b) && b.offsetParent);
button?.click();
return Boolean(button);
"""

# Answers to GET arrive half a second after they were made, when events have told of newer things.
LATE_ANSWERS = """
const [path] = arguments, send = window.fetch;
window.fetch = async (address, options) => {
  const answer = await send(address, options);
  if (String(address).includes(path) && !options?.body) await new Promise(resolve => setTimeout(resolve, 500));
  return answer;
};
"""

needs_browser = pytest.mark.skipif(bool(browsers.missing()), reason=browsers.missing())
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    place = tmp_path_factory.mktemp("make")
    try:
        with Server(place, program=ROOT / "tests" / "support" / "rough_app.py") as running:
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


def says(window, selector, words, seconds=SLOW):
    window.wait(
        f"(document.querySelector({json.dumps(selector)})?.innerText ?? '').includes({json.dumps(words)})", seconds
    )


def count(window, selector):
    return window.run("return document.querySelectorAll(arguments[0]).length", selector)


def make_tab(window, server, *path):
    window.open(f"{server.url}/#" + "/".join(("train", *path)))
    window.wait("document.querySelector('#train-start, #run-title')", SLOW)


def choose(window, paths):
    element = window.call("element", using="css selector", value=".draft input[type=file]")[browsers.ELEMENT]
    window.call(f"element/{element}/value", text="\n".join(map(str, paths)))


def press(window, name, seconds=30):
    """Press the button with this name or text, once it is there."""
    until = time.monotonic() + seconds
    while not window.run(PRESS, name):
        assert time.monotonic() < until, f"no button {name}"
        time.sleep(0.1)


def fake_failed_run(place, name, message):
    """A training that failed, as its process left it."""
    run = place / "runs" / name
    (run / "photos").mkdir(parents=True)
    for path in sorted(BEAR.glob("*.jpg")):
        (run / "photos" / path.name).write_bytes(path.read_bytes())
    settings = DreamboothSettings(photos=run / "photos", token="<me/vase>", class_noun="vase", base="tiny", run=run)
    (run / "settings.json").write_text(json.dumps(settings.model_dump(mode="json") | {"program": "dreambooth"}))
    (run / "process.json").write_text(json.dumps({"pid": 2**22 - 1, "born": 1.0, "began": time.time() - 60}))
    (run / "errors.txt").write_text(f"error: {message}\n")
    return run


@needs_browser
def test_the_train_tab_lists_drafts_and_is_accessible_on_a_phone(server, window):
    window.resize(390, 844)
    make_tab(window, server)
    says(window, ".drop-zone", "Teach it something of yours")
    says(window, "#train-problem", "photos")
    assert window.run("return document.documentElement.scrollWidth") <= 390
    assert window.run("return document.querySelector('#train-start').getBoundingClientRect().bottom <= innerHeight")
    assert violations(window) == []

    window.run(LATE_ANSWERS, "/app/drafts")
    drafts = [server.post_json("/app/drafts").json()["id"] for _ in range(2)]
    for draft in drafts:  # more than the strip of trainings has room for
        server.post_json(f"/app/drafts/{draft}/form", {"values": {"noun": "bear"}})
    window.wait("document.querySelectorAll('.train-item').length === 3")
    assert violations(window) == []
    window.run("document.querySelectorAll('.train-item a')[2].click()")
    window.wait(f"location.hash === '#train/draft/{drafts[1]}'")
    for draft in drafts:
        server.post_json(f"/app/drafts/{draft}/delete")


def test_training_routes_refuse_invalid_values_with_a_message(server):
    """No path is read, no run of nobody is touched, nothing is started, and the log shows no traceback of ours."""
    (server.place / "canary.txt").write_text("CANARY")
    draft = server.get_json("/app/drafts")["drafts"][0]["id"]
    paths = ["/etc/passwd", "canary.txt", "../canary.txt", str(server.place / "concepts")]
    answers = [server.post_json(f"/app/drafts/{draft}/photos", {"uploads": [path]}) for path in paths]
    values = [None, -1, [], "0", [0], 10**30, {"a": 1}, "x; touch PWNED", float("nan")]
    for value in values:
        for route in ("photo", "captions", "form", "samples", "start", "advice", "clear"):
            body = {"photo": value, "captions": value, "values": value, "set": value, "crop": value}
            keys = {"photo": ("photo", "crop"), "captions": ("captions",), "form": ("values",), "samples": ("set",)}
            sent = {key: body[key] for key in keys.get(route, ())}
            answers.append(server.post_json(f"/app/drafts/{draft}/{route}", sent))
        for route in ("command", "keep", "prompts"):
            answers.append(server.post_json(f"/app/trainings/none/{route}", {"command": value, "step": value}))
        answers.append(server.post_json("/app/trainings/move", {"id": value, "before": value}))
        answers.append(server.post_json("/app/drafts", {"from_run": value}))
    texts = "".join(answer.text for answer in answers)
    assert not any(word in texts for word in ("CANARY", "root:", "Traceback"))
    assert {answer.status_code for answer in answers} <= {200, 400, 403, 404, 422}
    start = server.post_json(f"/app/drafts/{draft}/start")
    assert start.status_code == 400 and start.json()["error"]
    assert not list(server.place.rglob("PWNED")) and not list((server.place / "runs").glob("me-*"))
    assert (server.place / "canary.txt").exists() and "Traceback" not in server.log.read_text()


@needs_browser
def test_prepared_photos_and_form_fields_survive_a_reload(server, window, tmp_path):
    make_tab(window, server)
    (tmp_path / "<img src=x onerror=alert(1)>.gif").write_bytes(b"GIF89a")
    choose(window, [*sorted(BEAR.glob("*.jpg")), *tmp_path.glob("*.gif")])
    window.wait("document.querySelectorAll('.photo-tile').length == 5", SLOW)
    says(window, ".photo-problems", "is a GIF")
    window.click(".photo-open")
    window.wait(
        "document.querySelector('.crop-box')?.offsetParent && document.querySelector('.crop-frame img').complete"
    )
    window.type(".crop-box", "---" + RIGHT + DOWN)
    window.type(".photo-editor textarea", "on the moon")
    press(window, "Next photo")
    press(window, "Leave out")
    says(window, "#photo-count", "1 left out")
    press(window, "Close")
    window.type("#train-noun", "bear")
    window.type("#train-name", "My Bear")
    says(window, ".token-note", "<me/my-bear>")
    says(window, "#train-plan", "on 4 photos of bear")
    assert violations(window) == []

    make_tab(window, server)  # as after a reload
    says(window, "#photo-count", "5 photos, 1 left out")
    assert window.run("return document.querySelector('#train-name').value") == "My Bear"
    (draft,) = [draft for draft in server.get_json("/app/drafts")["drafts"] if draft["photos"]]
    assert draft["photos"][0]["caption"] == "{} on the moon" and draft["photos"][0]["own_crop"]
    assert draft["photos"][0]["crop"][2] < 0.9 and draft["photos"][0]["crop"][0] > 0
    assert count(window, "img[src=x]") == 0


@needs_browser
def test_a_concept_is_trained_in_the_browser_and_used_in_generate(server, window):
    """Start; reload in the middle; prepare the next one meanwhile; keep a step by eye; its prompt goes to Generate."""
    make_tab(window, server)
    says(window, "#train-plan", "on 4 photos of bear")
    window.click("#train-start")
    says(window, "#run-title", "<me/my-bear>")
    window.wait("document.querySelector('#run-sample')", SLOW)
    make_tab(window, server)  # as after a reload: the running training is shown
    says(window, "#run-title", "<me/my-bear>")
    (run,) = (server.place / "runs").glob("me-my-bear-*")
    photos = [path for path in (run / "photos").iterdir() if path.suffix not in (".txt", ".json")]
    assert len(photos) == 4
    window.click("#run-sample")

    press(window, "Prepare another")
    window.wait("document.querySelector('[data-sample]')?.offsetParent", SLOW)
    window.click("[data-sample=cyanotype]")
    says(window, "#train-start", "Add to the queue")
    says(window, "#train-plan", "style")
    window.click("#train-start")
    says(window, "#run-state", "Waiting")
    press(window, "Cancel")
    press(window, "Cancel the training")
    window.wait("!document.querySelector('[data-state=waiting]')", SLOW)

    make_tab(window, server)
    window.wait("document.querySelector('.timeline-keep')?.offsetParent", SLOW)
    assert violations(window) == []
    window.click(".timeline-image")
    window.wait("document.querySelector('.sample-viewer .viewer-image')?.naturalWidth")
    press(window, "Close")
    window.run("document.querySelector('.timeline-keep').click()")
    says(window, "#run-state", "Done")
    assert not (run / "photos").exists() and len(Library(server.place / "concepts").entries()) == 1
    link = window.wait("[...document.links].find(a => a.textContent === 'Open the report' && a.offsetParent)?.href")
    assert "&lt;me/my-bear" in server.http.get(link.removeprefix(server.url)).text
    window.click("#run-generate")
    window.wait("location.hash === '#generate'")
    window.wait("document.querySelector('#prompt')?.value.includes('<me/my-bear>')", SLOW)
    outside = [address for address in window.requests() if not address.startswith((server.url, "data:", "blob:"))]
    assert outside == []


@needs_browser
def test_a_failed_training_offers_a_restart_with_a_lower_learning_rate(server, window):
    """The button makes the draft with the change and starts it; it is cancelled on a phone, after being asked."""
    window.resize(390, 844)
    failed = fake_failed_run(
        server.place, "me-vase-20260101-000000-0001", "The loss became NaN. Try --lr 0.0001, with another --run."
    )
    make_tab(window, server, failed.name)
    says(window, "#run-text", "The loss became NaN.")
    says(window, "#run-advice", "Lower the learning rate to 0.0001")
    assert "--" not in window.text("#run-text") + window.text("#run-advice")
    press(window, "Lower the learning rate to 0.0001 and start again")
    window.wait(f"location.hash.startsWith('#train/me-vase') && !location.hash.includes('{failed.name}')", SLOW)
    (started,) = [run for run in (server.place / "runs").glob("me-vase-*") if run != failed]
    assert json.loads((started / "settings.json").read_text())["lr"] == 0.0001
    window.wait("document.querySelector('#run-cancel')", SLOW)
    assert window.run("return document.documentElement.scrollWidth") <= 390
    press(window, "Cancel")
    press(window, "Cancel the training")
    window.wait(f"!location.hash.includes('{started.name}')", SLOW)
    assert not started.exists() and failed.exists()


def test_sigterm_to_the_app_ends_the_training_with_a_checkpoint(server):
    """Started over HTTP, as a page does; SIGTERM to the app reaches it."""
    draft = server.post_json("/app/drafts").json()["id"]
    assert len(server.post_json(f"/app/drafts/{draft}/samples", {"set": "teddy-bear"}).json()["photos"]) == 5
    run = server.place / "runs" / server.post_json(f"/app/drafts/{draft}/start").json()["run"]
    progress, until = run / "progress.jsonl", time.monotonic() + SLOW
    while not (progress.exists() and progress.read_text().count("\n") > 2) and time.monotonic() < until:
        time.sleep(0.1)
    trainer = psutil.Process(json.loads((run / "process.json").read_text())["pid"])
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(SLOW) == 0
    trainer.wait(SLOW)  # it finishes its step
    assert list(run.glob("step-*/manifest.json"))
    assert "it is saved" in (run / "errors.txt").read_text()
