"""What three tasks cost in the app: `PYTHONPATH=.:tests python benchmarks/app_tasks.py`. A real server and browser.

- first: from five photos to the first image of one's own thing, in an empty folder;
- favourite: find last week's favourite and vary it;
- export: take a concept to ComfyUI.

Every click is made by WebDriver at the middle of an element that a user sees. Choosing files in the system's dialog
counts as two clicks, the button and the dialog's own; typing counts as none, but the click into the field does.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from datetime import date, timedelta
from pathlib import Path

import tyro
from PIL import Image

from sdpersonal.concepts.concept import Concept
from sdpersonal.concepts.library import Library
from sdpersonal.concepts.thumbnail import make_thumbnail
from sdpersonal.outputs import Outputs
from sdpersonal.prompts import Token
from support import browser as browsers
from support.browser import ELEMENT, Browser
from support.samples import card, vectors
from support.serving import Server

PHOTOS = Path(__file__).parents[1] / "sdpersonal/photos/samples/teddy-bear"
MOST_CLICKS = {"first": 12, "favourite": 5, "export": 4}
CELLS = "document.querySelectorAll('.gallery-grid .cell[data-id]').length"
SAVED = 8  # images, four of last week and four of today
FIND = """
const [selector, text] = arguments;
const isMeant = e => e.checkVisibility() && e.innerText.trim().startsWith(text);
return [...document.querySelectorAll(selector)].find(isMeant) ?? null;
"""


class User:
    """Somebody who clicks, with a count of it."""

    def __init__(self, window: Browser):
        self.window, self.clicks, self.waited = window, 0, 0.0
        self.started = time.monotonic()

    def click(self, selector: str, text: str = "") -> None:
        """Click what is seen, once it is there. text: what its words begin with."""
        until = time.monotonic() + 30
        while not (found := self.window.run(FIND, selector, text)):
            if time.monotonic() > until:
                raise TimeoutError(f"nothing to click: {selector} {text!r}")
            time.sleep(0.1)
        self.window.call(f"element/{found[ELEMENT]}/click")
        self.clicks += 1

    def write(self, selector: str, text: str) -> None:
        self.click(selector)
        self.window.type(selector, text)

    def choose_files(self, selector: str, paths: list[Path]) -> None:
        self.window.wait(f"document.querySelector({selector!r})")
        self.window.upload(selector, "\n".join(map(str, paths)))
        self.clicks += 2

    def wait(self, expression: str, seconds: float) -> None:
        started = time.monotonic()
        self.window.wait(expression, seconds)
        self.waited += time.monotonic() - started


def main(tasks: str = "first,favourite,export", training_minutes: float = 30) -> None:
    """tasks: of first, favourite, export. training_minutes: how long the training of the first task may take."""
    steps = {"first": lambda user: _first(user, 60 * training_minutes), "favourite": _favourite, "export": _export}
    for task in tasks.split(","):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            if task != "first":
                _fill_library(folder)
            with Server(folder, OMP_NUM_THREADS="1") as server, browsers.browser(folder / "profile") as window:
                if task == "favourite":
                    _fill_outputs(server, folder)
                window.open(server.url)
                window.wait(
                    "document.querySelector('#loading').hidden && document.querySelector('main .tab:not([hidden])')"
                )
                user = User(window)
                steps[task](user)
                seconds = time.monotonic() - user.started
        clicks = f"{user.clicks} clicks (at most {MOST_CLICKS[task]})"
        print(f"{task}: {clicks}, {seconds:.1f} s, {user.waited:.1f} s of it waiting", flush=True)


def _first(user: User, seconds: float) -> None:
    user.choose_files(".drop-zone input[type=file]", sorted(PHOTOS.glob("*.jpg")))
    user.write("#train-noun", "bear")
    user.write("#train-name", "Ted")
    user.wait("document.querySelectorAll('.photo-tile').length === 5", 60)
    user.click("#train-start")
    user.wait("document.querySelector('#run-generate')", seconds)
    user.click(".try-prompt")
    user.wait(f"{CELLS} > 0", 300)


def _favourite(user: User) -> None:
    user.click(".segment", "Favourites")
    user.wait(f"{CELLS} === 1", 30)
    user.click(".gallery-grid .cell")
    user.click(".selected-image button", "Variations")
    user.click("dialog button", "Generate")
    user.wait(f"{CELLS} > {SAVED}", 300)


def _export(user: User) -> None:
    user.click("nav a", "Library")
    user.click(".concept-tile")
    user.click(".concept-actions button", "Export")
    user.click("dialog button", "ComfyUI")
    user.wait("document.querySelector('.export-result .steps')", 60)


def _fill_library(folder: Path) -> None:
    tile = make_thumbnail(Image.new("RGB", (256, 256), (180, 120, 60)))
    Library(folder / "concepts").add(Concept(Token("me", "duck"), card(), {"clip_l": 0.02 * vectors(1)}, None, tile))


def _fill_outputs(server: Server, folder: Path) -> None:
    """Put four images into last week, one of them a favourite, and four into today."""
    outputs = folder / "outputs"
    for _ in range(2):
        server.draw(num_images=SAVED // 2)
        if not (last_week := outputs / (date.today() - timedelta(days=7)).isoformat()).exists():
            shutil.move(outputs / date.today().isoformat(), last_week)
    Outputs(outputs).add_favourite(sorted(last_week.glob("*.png"))[1])


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    tyro.cli(main)
