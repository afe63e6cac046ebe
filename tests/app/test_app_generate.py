"""The Generate tab and the queue in a real browser: what is shown large is what every action uses, nothing is lost."""

import base64
import io
import json
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdpersonal.image_metadata import read_recipe
from support import browser as browsers
from support.axe import violations
from support.samples import concept
from support.serving import WarmServer
from support.stock import small_library

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(browsers.missing()), reason=browsers.missing())]
CONTROL, SHIFT, RELEASE = "\ue009", "\ue008", "\ue000"
ENTER, ESCAPE, UP, RIGHT, DOWN, DELETE = "\ue007", "\ue00c", "\ue013", "\ue014", "\ue015", "\ue017"
STEPS = 3  # images that are quick, and good enough to tell one from another
SELECTED = "document.querySelector('.selected-image').dataset.id"
IDLE = "!document.querySelector('.job-cell') && document.querySelector('.queue-row.idle')"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    place = tmp_path_factory.mktemp("generate")
    library = small_library(place / "concepts")
    library.add(concept("<zz/quick>", vectors={}))  # as an LCM LoRA comes from another program
    library.add(concept("<zz/tree>"))
    with WarmServer(place) as running:
        yield running


class Page:
    """The page in a browser, used as a person does, and the files behind it."""

    def __init__(self, window: browsers.Browser, server: WarmServer):
        self.window, self.server = window, server
        self.run, self.wait = window.run, window.wait

    def open(self) -> None:
        self.window.open(self.server.url)
        self.wait("document.querySelector('#prompt') && document.querySelector('.queue-row')")

    def press(self, name: str, within: str = "body") -> None:
        """Press the visible button, or choose the field, of that name."""
        script = (
            "const part = document.querySelector(arguments[1]) ?? document.createElement('div');"
            "const named = [...part.querySelectorAll('button, summary, label, [role=menuitem]')].filter("
            "  e => e.getClientRects().length"
            "  && (e.getAttribute('aria-label') ?? e.innerText).trim() === arguments[0]);"
            "named[0]?.click(); return named.length"
        )
        until = time.monotonic() + 10
        while not self.run(script, name, within):
            assert time.monotonic() < until, f"no button {name}"
            time.sleep(0.1)

    def put(self, selector: str, value: str) -> None:
        """Replace what a field holds."""
        self.run(
            "const field = document.querySelector(arguments[0]); field.value = arguments[1];"
            "for (const kind of ['input', 'change']) field.dispatchEvent(new Event(kind, {bubbles: true}))",
            selector,
            value,
        )

    def put_labelled(self, label: str, value: str) -> None:
        """Replace what the field under that label holds."""
        field = self.wait(
            f"[...document.querySelectorAll('label')].find(e => e.innerText.trim() == {json.dumps(label)})?.htmlFor",
            10,
        )
        self.put(f"#{field}", value)

    def prompt(self, text: str) -> None:
        self.put("#prompt", text)

    def settings(self, count: int = 1, steps: int = STEPS) -> None:
        self.press(str(count), ".number-of-images")
        self.put_labelled("Steps", str(steps))

    def generate(self, seconds: float = 90) -> list[str]:
        """Press Generate; return the ids of the new images, newest first."""
        before = self.ids()
        self.press_generate()
        return self.finished(before, seconds)

    def press_generate(self) -> None:
        self.run("document.querySelector('.generate-button').click()")

    def finished(self, before: list[str], seconds: float = 90) -> list[str]:
        time.sleep(0.2)
        self.wait(IDLE, seconds)
        new = [image for image in self.ids() if image not in before]
        assert new, self.run(
            "return [...document.querySelectorAll('.toast, .field-error')].map(e => e.innerText).join('|')"
        )
        return new

    def ids(self) -> list[str]:
        return self.run("return [...document.querySelectorAll('.cell[data-id]')].map(cell => cell.dataset.id)")

    def select(self, image: str) -> None:
        self.click_cell(image)
        assert self.shown() == image

    def click_cell(self, image: str) -> None:
        self.run(
            "document.querySelector(`.cell[data-id='${arguments[0]}']`).dispatchEvent("
            " new MouseEvent('click', {bubbles: true, detail: 1}))",  # without detail it is that of the Enter key
            image,
        )

    def shown(self) -> str:
        """Return the id of the image that is shown large; it is the one that is marked in the gallery."""
        large, mark, source = self.run(
            f"await new Promise(done => setTimeout(done, 250)); return [{SELECTED},"
            " document.querySelector('.cell.selected')?.dataset.id,"
            " document.querySelector('.selected-image .stage img')?.src ?? '']"
        )
        assert large == mark and f"/{large}.png" in source, (large, mark, source)
        return large

    def drag(self, kind: str, *places: tuple[float, float]) -> None:
        """Drag over the stage of the boxes; kind: of pointer; places: fractions of the stage."""
        left, top, width, height = self.run(
            "const stage = document.querySelector('.place-stage'); stage.scrollIntoView({block: 'center'});"
            "const area = stage.getBoundingClientRect(); return [area.left, area.top, area.width, area.height]"
        )
        moves = [
            {"type": "pointerMove", "duration": 20, "x": round(left + x * width), "y": round(top + y * height)}
            for x, y in places
        ]
        press, release = {"type": "pointerDown", "button": 0}, {"type": "pointerUp", "button": 0}
        steps = [moves[0], press, *moves[1:], release]
        pointer = {"type": "pointer", "id": kind, "parameters": {"pointerType": kind}, "actions": steps}
        self.window.call("actions", actions=[pointer])

    def prompt_is(self, text: str) -> None:
        try:
            self.wait(f"document.querySelector('#prompt').value === {json.dumps(text)}", 10)
        except TimeoutError:
            assert self.window.text("#prompt") == text

    def file(self, image: str) -> Path:
        return self.server.place / "outputs" / f"{image}.png"

    def recipe(self, image: str):
        return read_recipe(self.file(image).read_bytes())

    def recipes(self, images: list[str]) -> list:
        return [self.recipe(image) for image in images]

    def toast(self, begins: str, seconds: float = 20) -> None:
        self.wait(
            f"[...document.querySelectorAll('.toast')].some(e => e.innerText.trim().startsWith({json.dumps(begins)}))",
            seconds,
        )

    def favourites(self) -> set[str]:
        folder = self.server.place / "outputs" / "favourites"
        return {path.stem for path in folder.glob("*.png")}


@pytest.fixture(scope="module")
def page(server, tmp_path_factory):
    with browsers.browser(tmp_path_factory.mktemp("profile")) as window:
        page = Page(window, server)
        page.open()
        page.wait("document.querySelector('.gallery-empty')?.innerText.includes('Your images will be here')")
        page.press("Advanced: 25 steps, guidance 3, the model's scheduler, new seed each time")
        yield page


@pytest.fixture
def pixels():
    return lambda path: np.asarray(Image.open(path).convert("RGB"), int)


def test_the_prompt_box_completes_tokens_and_marks_unknown_concepts(page):
    window = page.window
    assert page.run("return document.querySelector('#prompt').placeholder").startswith("a photo of <me/")
    page.press_generate()
    page.wait("document.querySelector('.prompt-problem').innerText.startsWith('Write a prompt first')")
    page.run("performance.clearResourceTimings()")
    window.type("#prompt", "a small duck on grass")  # 21 letters
    time.sleep(1)
    assert len([url for url in window.requests() if "/page/" not in url]) <= 5
    assert page.run("return document.querySelector('.prompt-problem').hidden")
    page.prompt("")
    window.type("#prompt", "a photo of <du")
    page.wait("document.querySelector('.completion-option[aria-selected=true]')?.innerText.includes('me/duck')")
    window.type("#prompt", ENTER)
    assert window.text("#prompt") == "a photo of <me/duck>"
    window.type("#prompt", " by <you/ink> and <me/nobody>")
    page.wait("document.querySelector('.prompt-problem').innerText.includes('No concept <me/nobody>')")
    assert page.run("return [...document.querySelectorAll('.prompt-layer .unknown')].map(e => e.innerText)") == [
        "<me/nobody>"
    ]
    page.prompt("<me/duck@0-0.5> <ME/DUCK:+1:at=left> <me/duck:0.7+you/ink:0.3@0.5-1> \\<me/x>")
    assert page.run("return document.querySelectorAll('.prompt-layer .word:not(.unknown)').length") == 3
    assert page.run("return document.querySelectorAll('.prompt-layer .unknown').length") == 0
    page.prompt("a photo of <me/duck> by <you/ink>, sunset")
    page.wait(
        "document.querySelector('.prompt-problem').hidden && document.querySelectorAll('.concept-row').length == 2"
    )
    page.run("document.querySelector('#prompt').setSelectionRange(38, 38)")
    window.type("#prompt", CONTROL + UP)
    assert window.text("#prompt").endswith("(sunset:1.1)")
    # Strengths and places write into the prompt; a style is everywhere.
    page.put(".concept-row:nth-child(2) input[type=range]", "0.5")
    page.wait("document.querySelector('#prompt').value.includes('<you/ink:0.5>')")
    assert page.run("return document.querySelectorAll('.concept-row select').length") == 1
    page.put(".concept-row select", "left")
    page.wait("document.querySelector('#prompt').value.includes('<me/duck:at=left>')")


def test_concepts_prompt_ideas_and_presets_are_inserted_into_the_prompt(page):
    page.prompt("a photo of  on grass")
    page.run("const box = document.querySelector('#prompt'); box.focus(); box.setSelectionRange(11, 11)")
    page.press("Add a concept")
    page.put("dialog input[type=search]", "duck")
    page.run("document.querySelector('dialog .picker-tile').click()")
    page.prompt_is("a photo of <me/duck> on grass")  # at the cursor
    page.press("Prompt ideas")
    page.press("It at other times", "dialog")
    page.wait("document.querySelector('#prompt').value.startsWith('a photo of <me/duck> {at dawn')")
    page.press("Undo", ".toast:last-child")
    assert page.window.text("#prompt") == "a photo of <me/duck> on grass"

    page.press("Presets")
    page.put_labelled("Name of the style", "Soft")
    page.put_labelled("Words to add to the prompt", "soft light")
    page.press("Save", "dialog")
    page.press("Add Soft", "dialog")  # the server has it
    page.wait("document.querySelector('#prompt').value == 'a photo of <me/duck> on grass, soft light'")
    page.press("Presets")
    page.press("Delete Soft", "dialog")
    page.wait("document.querySelector('dialog').innerText.includes('No style yet')")
    page.press("Close", "dialog")


def test_strength_changes_by_slider_can_be_undone_in_the_prompt(page):
    page.prompt("")
    page.window.type("#prompt", "by <you/ink> at dawn")
    for strength in ("0.5", "0.8"):
        page.wait("document.querySelector('.concept-row label')?.innerText.startsWith('you/ink')")
        page.run("document.querySelector('.concept-row input[type=range]').focus()")
        page.put(".concept-row input[type=range]", strength)
        page.prompt_is(f"by <you/ink:{strength}> at dawn")
        assert page.run("return document.activeElement.type") == "range"  # where it was
    for before in ("by <you/ink:0.5> at dawn", "by <you/ink> at dawn"):
        page.window.type("#prompt", CONTROL + "z")
        page.prompt_is(before)
    page.wait("document.querySelector('.concept-row input[type=range]').value === '1'")
    page.window.type("#prompt", CONTROL + "y")
    page.prompt_is("by <you/ink:0.5> at dawn")
    # What is typed while a slider waits for its answer stays, and so does the cursor's place in it.
    page.run("document.querySelector('#prompt').setSelectionRange(2, 2)")
    page.put(".concept-row input[type=range]", "2")
    page.run("document.querySelector('#prompt').focus(); document.execCommand('insertText', false, ' me')")
    page.prompt_is("by me <you/ink:2> at dawn")
    assert page.run("const e = document.activeElement; return [e.id, e.selectionStart]") == ["prompt", 5]


def test_every_action_uses_the_selected_image(page, pixels):
    page.prompt("a photo of <me/duck> on grass")
    page.settings(count=2)
    first = page.generate()
    assert len(first) == 2 and page.shown() in first  # the first one of a job from this tab
    a, b = first
    page.select(b)
    page.press("Favourite", ".selected-image")
    page.wait(f"document.querySelector(\".cell.favourite[data-id='{b}']\")")
    assert page.favourites() == {b.replace("/", "-")}

    page.run("HTMLAnchorElement.prototype.click = function() { window.downloaded = this.href }")
    page.press("Download", ".selected-image")
    page.press("With its recipe")
    url = page.run("return window.downloaded")
    assert page.server.http.get(url).content == page.file(b).read_bytes()
    page.press("Download", ".selected-image")
    page.press("Nothing but pixels")
    plain = page.server.http.get(page.run("return window.downloaded")).content
    assert "sdpersonal" not in Image.open(io.BytesIO(plain)).info
    assert np.array_equal(pixels(io.BytesIO(plain)), pixels(page.file(b)))

    before = page.ids()
    page.press("Variations", ".selected-image")
    page.press("Generate", "dialog")
    near = page.finished(before)
    recipe = page.recipe(b)
    assert {(other.seed, other.variation_strength) for other in page.recipes(near)} == {(recipe.seed, 0.15)}
    shown = page.shown()  # one of the new ones, and from now on all actions use it
    assert len(near) == 4 and shown in near
    page.press("Favourite", ".selected-image")
    page.wait(f"document.querySelector(\".cell.favourite[data-id='{shown}']\")")
    assert page.favourites() == {image.replace("/", "-") for image in (b, shown)}

    before = page.ids()
    page.select(b)
    page.press("Upscale 2×", ".selected-image")
    page.select(a)  # a choice while it works stays
    (large,) = page.finished(before)
    assert page.shown() == a and page.recipe(large).hires_scale == 2 and page.recipe(large).seed == recipe.seed
    assert Image.open(page.file(large)).size == (256, 256)

    before = page.ids()
    page.press("Generate again", ".selected-image")
    (again,) = page.finished(before)
    assert np.abs(pixels(page.file(again)) - pixels(page.file(a))).max() <= 1  # the kernels' rounding

    before = page.ids()
    page.select(a)
    page.press("Change…", ".selected-image")
    page.put_labelled("Words in its prompt", "grass")
    page.put_labelled("Instead of them", "snow|sand")
    page.press("Generate", "dialog")
    changed = page.recipes(page.finished(before))
    assert sorted(other.prompt[-4:] for other in changed) == ["sand", "snow"]
    assert {other.seed for other in changed} == {page.recipe(a).seed}


def test_loading_settings_and_deleting_an_image_can_be_undone(page):
    image = page.ids()[-1]
    page.select(image)
    page.prompt("something else")
    page.press("Use settings", ".selected-image")
    page.toast("Its settings are in the form")
    recipe = page.recipe(image)
    assert page.window.text("#prompt") == recipe.prompt
    assert f"seed {recipe.seed}" in page.window.text(".advanced summary")
    page.press("Undo", ".toast:last-child")
    assert page.window.text("#prompt") == "something else"
    assert "new seed each time" in page.window.text(".advanced summary")

    before = page.ids()
    page.select(before[1])
    page.press("Delete", ".selected-image")
    page.wait(f"!document.querySelector(\".cell[data-id='{before[1]}']\")")
    assert not page.file(before[1]).exists() and page.shown() == before[2]
    page.press("Undo", ".toast:last-child")
    page.wait(f"document.querySelector(\".cell[data-id='{before[1]}']\")")
    assert page.file(before[1]).exists() and page.shown() == before[1] and page.ids() == before


def test_an_init_image_or_a_mask_is_used_until_it_is_removed(page, tmp_path, pixels):
    image = page.ids()[-1]
    page.select(image)
    page.prompt("a house")
    page.settings(count=1)
    page.press("Start from it", ".selected-image")
    page.wait("document.querySelector('.init-chip img')?.naturalWidth > 0")
    assert page.run("return document.querySelector('.init-chip img').src").endswith(f"{image}.jpg")
    (new,) = page.generate()
    assert page.recipe(new).init_image and not page.recipe(new).mask
    page.press("Remove the starting image")
    page.wait("!document.querySelector('.init-chip')")
    (new,) = page.generate()
    assert not page.recipe(new).init_image

    page.select(image)
    page.press("Inpaint", ".selected-image")
    page.wait("document.querySelector('.paint-canvas')")
    page.run(
        "const canvas = document.querySelector('.paint-canvas');"
        "const press = key => canvas.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}));"
        "press(' '); press('ArrowRight')"
    )
    page.press("Use this mask")
    page.wait("document.querySelector('.init-chip')?.innerText.includes('painted part')")
    (new,) = page.generate()
    assert page.recipe(new).init_image and page.recipe(new).mask
    difference = np.abs(pixels(page.file(new)) - pixels(page.file(image))).max(-1)
    assert difference[:16].max() <= 2 and difference[60:68, 60:68].max() > 8  # only the painted middle is new
    page.press("Remove the starting image")

    file = tmp_path / "start.png"
    Image.new("RGB", (192, 128), (200, 40, 40)).save(file)
    page.window.upload(".init input[type=file]", file)
    page.wait("document.querySelector('.init-chip')?.innerText.includes('192 × 128')")
    (new,) = page.generate()
    width, height = Image.open(page.file(new)).size
    assert page.recipe(new).init_image and width > 1.4 * height


def test_a_reload_restores_the_form_and_the_selected_image(page):
    page.wait("document.querySelector('.init-chip')")
    page.prompt("a photo of <me/duck> in Venice")
    page.put_labelled("Negative prompt", "dark")
    page.put_labelled("Guidance", "2.5")
    page.press("8", ".number-of-images")
    image = page.ids()[3]
    page.select(image)
    page.open()
    page.wait("document.querySelectorAll('.cell[data-id]').length > 4")
    page.wait("document.querySelector('.init-chip img').naturalWidth")
    assert page.window.text("#prompt") == "a photo of <me/duck> in Venice" and page.shown() == image
    summary = page.window.text(".advanced summary")
    assert f"{STEPS} steps" in summary and "guidance 2.5" in summary and "negative prompt" in summary
    assert page.run("return document.querySelector('.number-of-images input:checked').value") == "8"
    page.press("Remove the starting image")
    page.put_labelled("Negative prompt", "")


def test_all_controls_are_in_view_and_the_gallery_fills_its_width(page):
    page.select(page.ids()[0])
    bottom, actions, scrolls = page.run(
        "return [document.querySelector('#queue').getBoundingClientRect().top,"
        " [...document.querySelectorAll('#prompt, .generate-button, .selected-image .stage img, .actions .button')]"
        "  .map(e => e.getBoundingClientRect().bottom), document.documentElement.scrollHeight > innerHeight]"
    )
    assert len(actions) >= 13 and max(actions) <= bottom and not scrolls
    width, cells, enlarged = page.run(
        "const grid = document.querySelector('.gallery-grid'), cells = [...grid.querySelectorAll('.cell')];"
        "const top = cells[0].offsetTop, row = cells.filter(cell => cell.offsetTop === top);"
        "const images = [...document.querySelectorAll('.cell img[src]')].filter(e => e.naturalWidth);"
        "return [grid.clientWidth, row.reduce((sum, cell) => sum + cell.offsetWidth, 0),"
        " images.filter(e => getComputedStyle(e).objectFit !== 'scale-down').length]"
    )
    assert cells > 0.9 * width and not enlarged
    large = page.run(
        "const e = document.querySelector('.selected-image .stage img'); return [e.clientWidth, e.naturalWidth]"
    )
    assert large[0] <= 2 * large[1]


def test_the_generate_tab_has_no_accessibility_violations(page):
    """axe's rules, in both themes: the form with all its settings, the gallery, the selected image."""
    for theme in ("light", "dark"):
        page.window.set_theme(theme)
        page.open()
        page.wait("document.querySelector('.selected-facts dd')")
        page.run("document.querySelector('#tab-generate details').open = true")
        assert violations(page.window) == [], theme
    page.window.set_theme("light")


def test_seven_browser_tabs_share_an_event_stream(page):
    """Seven tabs share one stream of events; a stream each would leave the seventh waiting for ever."""
    window, first = page.window, page.window.client.get(f"{page.window.path}/window").json()["value"]
    handles = []
    for _ in range(6):
        handles.append(window.call("window/new", type="tab")["handle"])
        window.call("window", handle=handles[-1])
        page.open()
    page.prompt("a cat")
    page.run("document.querySelector('.generate-button').click()")
    window.call("window", handle=handles[0])
    page.wait("document.querySelector('.job-cell')", 20)  # told by the tab that has the stream
    for handle in handles:
        window.call("window", handle=handle)
        window.client.delete(f"{window.path}/window")
    window.call("window", handle=first)
    page.wait(IDLE, 60)


def test_queued_jobs_can_be_reordered_cancelled_and_skipped(page):
    page.settings(count=1, steps=STEPS)
    before = page.ids()
    page.prompt("a red house")
    page.press_generate()
    page.prompt("a blue cat")
    page.press_generate()
    new = page.finished(before)
    assert sorted(recipe.prompt for recipe in page.recipes(new)) == ["a blue cat", "a red house"]

    page.settings(count=8, steps=150)  # longer than the test
    before = page.ids()
    for number, prompt in enumerate(["one", "two", "three"]):
        page.prompt(prompt)
        page.press_generate()
        if not number:  # the first sign is there at once
            cells = (
                "return new Promise(done => setTimeout(() => done(document.querySelectorAll('.job-cell').length), 60))"
            )
            assert page.run(cells) == 8
        page.wait(f"[...document.querySelectorAll('.job-cell')].length >= {8 + number}")
    page.wait("document.title.includes('%') && document.querySelector('.queue-waiting').innerText == '2 waiting'")
    page.wait("[...document.querySelectorAll('.job-cell img')].some(e => !e.hidden)")  # a preview
    page.run("document.querySelector('.queue-opener').click()")
    titles = "[...document.querySelectorAll('.queue-item-title')].slice(0, 3).map(e => e.innerText).join()"
    page.wait(f"/one.*two.*three/.test({titles})")
    page.press("Earlier: 8 images of “three”")
    page.wait(f"/one.*three.*two/.test({titles})")
    page.press("Cancel: 8 images of “two”")
    page.wait("document.querySelector('.queue-waiting').innerText == '1 waiting'")
    page.press("Skip")
    page.wait("document.querySelector('.queue-title').innerText.includes('three')")
    page.press("Stop all")
    page.wait(IDLE)
    page.wait("document.title == 'sdpersonal'")
    page.run("document.querySelector('.queue-popover').hidePopover()")
    assert page.ids() == before


def test_gallery_images_can_be_searched_selected_and_compared(page):
    page.settings(count=1)
    total = len(page.ids())
    page.put(".gallery-search", "venice nothing")
    page.wait("document.querySelector('.gallery-empty')?.innerText == 'No image matches.'")
    page.put(".gallery-search", "blue cat")
    page.wait("document.querySelectorAll('.cell[data-id]').length == 1")
    page.put(".gallery-search", "")
    page.press("Favourites", ".gallery-tools")
    page.wait("document.querySelectorAll('.cell[data-id]').length == 2")
    # What is started while others are shown is shown with its details once it is there (not in a hidden part).
    page.prompt("a green tree")
    page.press_generate()
    page.wait("document.querySelector('.job-cell')")
    page.wait(f"{IDLE} && document.querySelectorAll('.cell[data-id]').length == {total + 1}")
    page.wait("document.querySelector('.selected-image .facts')?.innerText.includes('a green tree')")
    page.wait("/Seed\\s+\\d+/.test(document.querySelector('.selected-image .facts').innerText)")

    page.press("Select", ".gallery-tools")
    a, b = page.ids()[:2]
    for image in (a, b):
        page.click_cell(image)
    page.press("Compare", ".select-bar")
    page.put("dialog input[type=range]", "20")
    assert "20%" in page.run("return document.querySelector('.compare-over').style.clipPath")
    page.press("Close", "dialog")
    page.run("HTMLAnchorElement.prototype.click = function() { window.downloaded = this.href }")
    page.press("Download", ".select-bar")
    page.press("As a zip file")
    page.wait("window.downloaded?.includes('zip')")
    assert page.server.http.get(page.run("return window.downloaded")).content[:2] == b"PK"
    page.press("Select", ".gallery-tools")

    page.select(a)
    page.run("document.querySelector('.stage-button').click()")
    page.wait("document.querySelector('.lightbox-stage img')")
    for key, shown in ((RIGHT, b), ("f", b)):
        page.window.type(".lightbox", key)
        page.wait(f"document.querySelector('.lightbox-stage').dataset.id == '{shown}'")
    page.wait(f"document.querySelector(\".cell.favourite[data-id='{b}']\")")
    page.window.type(".lightbox", ESCAPE)
    page.wait("!document.querySelector('.lightbox')")
    assert page.shown() == b


def test_pasted_parameters_fill_the_form_and_a_grid_is_generated(page):
    text = "a fox\nNegative prompt: blurry\nSteps: 7, Sampler: Euler a, CFG scale: 4.5, Seed: 123, Size: 128x128"
    paste = (
        "const data = new DataTransfer(); data.setData('text/plain', arguments[0]);"
        "document.querySelector('#prompt').dispatchEvent("
        " new ClipboardEvent('paste', {clipboardData: data, bubbles: true, cancelable: true}))"
    )
    page.prompt("before")
    page.run(paste, text)
    page.wait("document.querySelector('#prompt').value == 'a fox'")
    summary = page.window.text(".advanced summary")
    assert all(part in summary for part in ("7 steps", "guidance 4.5", "Euler a", "seed 123", "negative prompt"))
    page.press("Undo", ".toast:last-child")
    assert page.window.text("#prompt") == "before"
    page.run("document.querySelector('.grid-fields').open = true")
    page.put_labelled("Columns", "Seed")
    page.put_labelled("Values of the columns", "1..2")
    page.settings(count=1)
    before = page.ids()
    page.press("Generate the grid")
    new = page.finished(before)
    assert len(new) == 3  # two images and the sheet
    page.select(new[0])
    assert page.run("return document.querySelector('.actions a').href").endswith(".html")


def test_gallery_keys_dropped_images_and_recent_prompts_work(page, tmp_path):
    first, second = page.ids()[:2]
    page.select(first)
    page.window.type(f".cell[data-id='{first}']", RIGHT)
    assert page.shown() == second
    page.window.type(f".cell[data-id='{second}']", ENTER)
    page.wait("document.querySelector('.lightbox-stage img')")
    page.window.type(".lightbox", ESCAPE)

    drop = (
        "const bytes = Uint8Array.from(atob(arguments[0]), c => c.charCodeAt()), data = new DataTransfer();"
        "data.items.add(new File([bytes], 'old.png', {type: 'image/png'}));"
        "for (const kind of ['dragenter', 'dragover', 'drop']) document.querySelector('.gallery').dispatchEvent("
        " new DragEvent(kind, {dataTransfer: data, bubbles: true, cancelable: true}))"
    )
    image = page.ids()[-1]
    page.prompt("")
    page.run(drop, base64.b64encode(page.file(image).read_bytes()).decode())
    page.press("Use its settings", "dialog")
    page.wait(f"document.querySelector('#prompt').value == {json.dumps(page.recipe(image).prompt)}")
    page.run(drop, base64.b64encode(page.file(image).read_bytes()).decode())
    page.press("Start from it", "dialog")
    page.wait("document.querySelector('.init-chip')?.innerText.includes('old.png')")
    page.press("Remove the starting image")
    page.press("Recent prompts")
    page.press("a blue cat")
    assert page.window.text("#prompt") == "a blue cat"
    page.press("Page menu")
    page.press("Sound when done")
    page.press("Page menu")
    page.wait(
        "[...document.querySelectorAll('[role=menuitemcheckbox][aria-checked=true]')]"
        ".some(e => e.innerText.trim() == 'Sound when done')"
    )


def test_the_fast_lora_field_lists_few_loras_and_searches_the_others(page):
    field = (
        "document.getElementById([...document.querySelectorAll('label')].find(e => e.innerText == 'Fast LoRA').htmlFor)"
    )
    options = f"[...{field}.options].map(e => e.label)"
    assert page.wait(options) == ["None", "<zz/quick>", "Another LoRA…"]
    page.put_labelled("Fast LoRA", "other")
    page.wait("document.querySelectorAll('dialog .picker-tile').length === 2")  # no embeddings, nothing of other models
    page.put("dialog input[type=search]", "tree")
    page.run("document.querySelector('dialog .picker-tile').click()")
    page.wait("document.querySelector('.advanced summary').innerText.includes('fast LoRA <zz/tree>')")
    assert page.wait(options) == ["None", "<zz/quick>", "<zz/tree>"]
    page.put_labelled("Fast LoRA", "")
    page.wait("!document.querySelector('.advanced summary').innerText.includes('fast LoRA')")
    page.put_labelled("Fast LoRA", "other")
    page.wait("document.querySelector('dialog .picker-tile')")
    page.press("Close", "dialog")
    page.wait(f"{field}.value === ''")  # nothing was chosen


def test_boxes_dragged_by_mouse_or_touch_set_regions_in_the_prompt(page):
    page.prompt("a <me/duck>")
    page.wait("document.querySelectorAll('.concept-row').length === 1")
    assert page.run("return document.querySelector('.places').hidden")  # one subject without a place
    page.prompt("a <me/duck> and <me/duck-v1> by <you/ink>")
    page.wait("!document.querySelector('.places').hidden")
    page.press("Draw places")
    page.press("3:2")
    boxes = (
        "return [...document.querySelectorAll('.place-box')].map(e => [e.innerText, e.classList.contains('anywhere')])"
    )
    assert page.run(boxes) == [["me/duck", True], ["me/duck-v1", True]]
    width, height = page.run("const e = document.querySelector('.place-stage'); return [e.clientWidth, e.clientHeight]")
    assert abs(width / height - 1.5) < 0.1
    page.drag("mouse", (0.11, 0.29), (0.3, 0.6), (0.42, 0.98))  # across a dashed box
    page.prompt_is("a <me/duck:box=0.1,0.3,0.4,1> and <me/duck-v1> by <you/ink>")
    page.drag("mouse", (0.2, 0.5), (0.3, 0.3), (0.31, 0.26))  # moves it
    page.prompt_is("a <me/duck:box=0.2,0.05,0.5,0.75> and <me/duck-v1> by <you/ink>")
    page.drag("touch", (0.5, 0.75), (0.4, 0.9), (0.34, 1.2))  # its corner; no further than the image
    page.prompt_is("a <me/duck:box=0.2,0.05,0.35,1> and <me/duck-v1> by <you/ink>")
    page.press("Add the box of me/duck-v1")
    page.prompt_is("a <me/duck:box=0.2,0.05,0.35,1> and <me/duck-v1:at=right> by <you/ink>")
    colours = (
        "return ['.prompt-layer .word', '.place-box'].map(name => [...document.querySelectorAll(name)].slice(0, 2)"
        " .map(e => getComputedStyle(e)[name === '.place-box' ? 'borderTopColor' : 'color']))"
    )
    page.wait("document.querySelectorAll('.place-box:not(.anywhere)').length === 2")
    words, borders = page.run(colours)
    assert words == borders and len(set(words)) == 2
    assert violations(page.window) == []
    page.settings(count=1)
    (image,) = page.generate()
    assert page.recipe(image).prompt == page.window.text("#prompt") and page.recipe(image).compose
    width, height = Image.open(page.file(image)).size
    assert width > height

    page.press("Remove the box of me/duck")
    page.prompt_is("a <me/duck> and <me/duck-v1:at=right> by <you/ink>")
    page.window.type("#prompt", CONTROL + "z")
    page.prompt_is("a <me/duck:box=0.2,0.05,0.35,1> and <me/duck-v1:at=right> by <you/ink>")
    page.wait("document.querySelector('.place-box').style.left === '20%'")
    page.press("Remove the box of me/duck-v1")
    page.prompt_is("a <me/duck:box=0.2,0.05,0.35,1> and <me/duck-v1> by <you/ink>")
    page.wait("document.querySelectorAll('.place-box.anywhere').length === 1")
    page.press("1:1")


def test_boxes_are_moved_by_keyboard(page):
    page.prompt("<me/duck:box=0,0,0.5,0.5> and <me/duck>")  # two mentions of one concept have boxes of their own
    page.wait("document.querySelector('.place-box').style.height === '50%'")
    first, second = ".place-box:nth-child(1)", ".place-box:nth-child(2)"
    page.window.type(first, RIGHT + RIGHT + DOWN)
    page.prompt_is("<me/duck:box=0.1,0.05,0.6,0.55> and <me/duck>")
    page.window.type(first, SHIFT + RIGHT + UP + RELEASE + UP + UP)
    page.prompt_is("<me/duck:box=0.1,0,0.65,0.45> and <me/duck>")
    page.wait("document.querySelector('#announcer').innerText.includes('me/duck, 10–65 % across, 0–45 % down')")
    assert page.run("return document.activeElement.getAttribute('aria-label')") == page.window.text("#announcer")
    page.window.type(second, ENTER)
    page.prompt_is("<me/duck:box=0.1,0,0.65,0.45> and <me/duck:at=right>")
    page.window.type(second, DELETE)
    page.prompt_is("<me/duck:box=0.1,0,0.65,0.45> and <me/duck>")
    page.window.type(second, CONTROL + "z")
    page.prompt_is("<me/duck:box=0.1,0,0.65,0.45> and <me/duck:at=right>")
    page.window.type(first, RIGHT + CONTROL + "z")  # before the prompt has it
    page.wait("document.querySelector('.place-box').style.left === '10%'")
    page.prompt_is("<me/duck:box=0.1,0,0.65,0.45> and <me/duck:at=right>")
    page.prompt("a <me/duck>")
    page.wait("document.querySelector('.places').hidden")


def test_a_phone_shows_generate_at_the_bottom_and_images_in_a_sheet(page):
    page.window.resize(390, 844)
    try:
        page.open()
        page.wait("document.querySelectorAll('.cell[data-id]').length > 4")
        foot, queue, wide = page.run(
            "return [document.querySelector('.generate-button').getBoundingClientRect().bottom,"
            " document.querySelector('.tabs').getBoundingClientRect().top, document.documentElement.scrollWidth]"
        )
        assert 700 < foot <= queue and wide == 390
        image = page.ids()[-1]
        page.click_cell(image)
        page.wait(f"document.querySelector('dialog.sheet .selected-image')?.dataset.id == '{image}'")
        page.press("Start from it", "dialog.sheet")
        page.wait("!document.querySelector('dialog.sheet') && document.querySelector('.init-chip')")
    finally:
        page.window.resize(1280, 900)
