"""The Library and the Models tab in the running app: a real browser, and whatever a client may send."""

import json
import shutil
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

from conftest import ROOT
from sdpersonal.concepts.concept import Concept
from sdpersonal.concepts.concept_file import concept_to_bytes
from sdpersonal.concepts.library import Library
from sdpersonal.models.loading import built_in_folder
from sdpersonal.prompts import Token
from support import browser as browsers
from support.samples import card, concept, vectors
from support.serving import Server
from support.stock import small_library

T = Token.parse
needs_browser = pytest.mark.skipif(bool(browsers.missing()), reason=browsers.missing())
pytestmark = pytest.mark.slow
MARKUP = '<img src=x onerror="window.alerted=1">${window.alerted=2}{{constructor}}<script>window.alerted=3</script>'
MINE = ("on_select", "on_show", "on_save", "on_rename", "on_drop", "on_make", "on_choices", "on_compare", "on_check")
MINE += ("on_ask", "on_delete", "on_undo", "on_restore", "on_empty", "on_load", "on_yes", "on_refresh")


def marked() -> Concept:
    """Markup in every field that a stranger can fill."""
    texts = ("title", "description", "class_noun", "author", "license", "base_name", "consent_note")
    fields = {name: MARKUP[:100] for name in texts} | {"method": MARKUP[:50], "trigger_words": (MARKUP[:100],)}
    return Concept(T("<a/evil>"), card(**fields, prompts=(MARKUP,), recipe={"lr": MARKUP}), {"clip_l": vectors(5)})


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    place = tmp_path_factory.mktemp("app")
    library = small_library(place / "concepts")
    library.add(marked())
    for number in range(500):
        library.add(concept(f"<many/thing-{number}>", seed=number % 7))
    (place / "canary.txt").write_text("CANARY")
    shutil.copytree(built_in_folder(), place / "bases" / "mine")
    with Server(place, "--bases", str(place / "bases")) as running:
        yield running


@pytest.fixture
def library(server) -> Library:
    return Library(server.place / "concepts")


@pytest.fixture(scope="module")
def window(server, tmp_path_factory):
    with browsers.browser(tmp_path_factory.mktemp("profile")) as opened:
        opened.open(server.url)
        opened.wait("document.querySelectorAll('button[role=tab]').length > 3")
        yield opened


def tab(window, name: str) -> None:
    button = f"[...document.querySelectorAll('button[role=tab]')].find(b => b.innerText.trim() == '{name}')"
    window.wait(f"!!{button}")  # after a phone's width the tabs unfold one by one
    window.run(f"{button}.click()")


def unfold(window, box: str) -> None:
    window.run(f"document.querySelector('#{box} button').click()")


def look_for(window, words: str, tile: str) -> None:
    """Search, and click the tile."""
    window.run("const e = document.querySelector('#tiles-search textarea, #tiles-search input'); e.value = ''")
    window.type("#tiles-search textarea, #tiles-search input", words)
    element = f"[...document.querySelectorAll('#tiles .thumbnail-item')].find(e => e.innerText.trim() == '{tile}')"
    window.wait(f"document.querySelectorAll('#tiles .thumbnail-item').length < 9 && {element}")
    window.run(f"{element}.click()")
    window.wait(f"(document.querySelector('#card code')?.innerText ?? '').startsWith('{tile[:-1]}')")


def says(selector: str, start: str) -> str:
    return f"(document.querySelector('{selector} textarea')?.value ?? '').startsWith('{start}')"


def _there(path):
    """Once it is downloaded."""
    until = time.monotonic() + 30
    while not path.exists():
        if time.monotonic() > until:
            raise TimeoutError(f"no {path.name}")
        time.sleep(0.1)
    return path


@needs_browser
def test_five_hundred_are_shown_a_page_at_a_time(server, window):
    tab(window, "Library")
    window.wait("document.querySelectorAll('#tiles .thumbnail-item').length == 48")
    window.wait("document.querySelector('#tiles-note textarea').value.startsWith('504 concepts. The first 48')")
    window.click("#tiles-more")
    window.wait("document.querySelectorAll('#tiles .thumbnail-item').length == 192", seconds=60)


@needs_browser
def test_import_edit_export_delete_and_undo(server, window, library, tmp_path):
    (tmp_path / "goose.safetensors").write_bytes(concept_to_bytes(concept("<new/goose>", seed=77)))
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    tab(window, "Library")
    unfold(window, "import-box")
    window.wait("document.querySelector('#import-drop input[type=file]')")
    dropped = "\n".join(str(tmp_path / name) for name in ("goose.safetensors", "broken.safetensors"))
    window.type("#import-drop input[type=file]", dropped)
    window.wait(says("#import-message", "1 of 2"))
    window.wait("document.querySelector('#card code')?.innerText == '<new/goose-v1>'")  # its card is open
    assert "Not imported" in window.text("#import-results") and "sdpersonal" not in window.text("#import-results")
    assert library.get(T("<new/goose>")).identity == concept(seed=77).identity
    assert not [path for path in server.place.rglob("goose.safetensors") if "concepts" not in str(path)]

    unfold(window, "edit-box")
    window.wait("document.querySelector('#card-title input, #card-title textarea')")
    window.type("#card-title input, #card-title textarea", " from the pond")
    window.wait("document.querySelector('#card-title input, #card-title textarea').value.endsWith('pond')")
    window.click("#card-save")
    window.wait(says("#card-saved", "Saved"))
    title = library.find(T("<new/goose>")).card.title
    assert title.endswith("from the pond")
    window.wait(f"document.querySelector('#card h3').innerText == {json.dumps(title)}")

    unfold(window, "export-box")
    window.wait("document.querySelector('#export-go')")
    window.click("#export-go")
    window.wait("document.querySelector('#export-download')?.innerText.includes('new-goose.safetensors')")
    behaviour = {"behavior": "allow", "downloadPath": str(tmp_path)}
    window.call("goog/cdp/execute", cmd="Browser.setDownloadBehavior", params=behaviour)
    window.click("#export-download")
    out = _there(tmp_path / "new-goose.safetensors")
    ours = library.get(T("<new/goose>")).vectors["clip_l"]
    assert any(np.array_equal(array, ours) for array in load_file(out).values())

    before = library.find(T("<new/goose>")).path.read_bytes()
    window.click("#delete")
    window.wait("document.querySelector('#delete-go')?.offsetParent")
    window.click("#delete-go")
    window.wait(says("#delete-message", "Deleted: <new/goose-v1>"))
    assert not (library.folder / "new").exists()
    window.click("#delete-undo")
    window.wait(says("#delete-message", "Restored: <new/goose-v1>"))
    assert library.find(T("<new/goose>")).path.read_bytes() == before
    window.wait("document.querySelector('#card code')?.innerText == '<new/goose-v1>'")

    window.click("#card-use")
    window.wait("document.querySelector('#prompt textarea').value.includes('<new/goose>')")


@needs_browser
def test_a_strangers_words_stay_text(server, window):
    window.run("window.alert = () => { window.alerted = true }")
    tab(window, "Library")
    look_for(window, "a/evil", "<a/evil>")
    window.wait("document.querySelector('#card h3').innerText.includes('<img src=x')")
    unfold(window, "compare-box")
    window.wait("document.querySelector('#compare-first input')?.value == '<a/evil-v1>'")
    window.run("document.querySelector('#card-use').scrollIntoView()")
    window.click("#card-prompts input")
    window.wait("document.querySelector('[role=option]')")
    assert window.run("return [window.alerted ?? 0, document.querySelectorAll('img[src=x]').length]") == [0, 0]
    outside = [address for address in window.requests() if not address.startswith((server.url, "data:", "blob:"))]
    assert outside == []


@needs_browser
def test_on_a_phone_nothing_is_wider_than_it(window):
    try:
        for name in ("Library", "Models"):
            window.resize(1280, 900)  # where no tab is folded away
            tab(window, name)
            window.resize(390, 844)
            window.wait(
                f"document.querySelector('{'#tiles' if name == 'Library' else '#models-table table'}')?.offsetParent"
            )
            assert window.run("return document.documentElement.scrollWidth") <= 390
    finally:
        window.resize(1280, 900)


@needs_browser
def test_another_base_is_loaded(window):
    tab(window, "Models")
    window.wait("(document.querySelector('#models-table')?.innerText ?? '').includes('mine')")
    assert "GB to download" in window.text("#models-table") and "tiny" in window.text("#model-facts")
    for name, asks in (("sd15", True), ("mine", False)):
        window.run("document.querySelector('#model-name input').select()")
        window.type("#model-name input", f"{name}\ue007")  # Enter
        window.click("#model-load")
        if asks:
            window.wait("(document.querySelector('#model-question textarea')?.value ?? '').includes('Download 2.8 GB')")
            window.click("#model-no")
            window.wait(says("#model-message", "Nothing was downloaded"))
    window.wait(says("#model-message", "Loaded. Model: "), seconds=60)
    window.wait("document.querySelector('#model-line textarea').value.includes('mine')")
    window.wait("document.querySelector('#model-facts').innerText.includes('mine')")


SENT = ["null", *(pytest.param(value, marks=pytest.mark.thorough) for value in ('"/etc/passwd"', "NaN", '[["x"], 3]'))]
SENT += ['{"path": "/etc/passwd"}']


@pytest.mark.parametrize("value", SENT)
def test_whatever_is_sent_ends_in_an_answer(server, library, value):
    before = {entry.token: entry.path.read_bytes() for entry in library.entries() if entry.token.owner != "many"}
    names = {dependency["api_name"]: dependency for dependency in server.config()["dependencies"]}
    for name, dependency in names.items():
        if name.rstrip("_0123456789") not in MINE:
            continue
        for count in {len(dependency["inputs"]), *([0, 1] if value == "null" else [])}:
            data, session = ", ".join([value] * count), f"h{time.monotonic_ns()}"
            event = '{"index": 99, "value": {"caption": "../x"}}'
            body = (
                f'{{"data": [{data}], "event_data": {event}, "fn_index": {dependency["id"]}, '
                f'"session_hash": "{session}"}}'
            )
            joined = server.http.post(
                "/gradio_api/queue/join", content=body, headers={"Content-Type": "application/json"}
            )
            answer = json.dumps(server.last(session)) if joined.status_code == 200 else joined.text
            assert not any(bad in answer for bad in ("Traceback", "CANARY", str(ROOT), "root:")), (name, answer)
    assert {e.token: e.path.read_bytes() for e in library.entries() if e.token.owner != "many"} == before
    assert "CANARY" not in server.http.get("/gradio_api/file=canary.txt").text
