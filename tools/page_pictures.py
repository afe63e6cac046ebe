"""Take the pictures of the app's page for docs/: `PYTHONPATH=.:tests python -m tools.page_pictures FOLDER`.

FOLDER is a work folder with `concepts`, `outputs` and `runs` that show the app in use; it is copied first. Of each
state of the page there is a picture of 1280x900 pixels, and a sheet with 1920x1080, 1280x900 and 390x844 pixels, in the
light and in the dark theme.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import tyro
from PIL import Image

from support import browser as browsers
from support.axe import violations
from support.serving import Server

SIZES = ((1920, 1080), (1280, 900), (390, 844))
THEMES = ("light", "dark")
QUALITY = 82  # of WebP
GAP = 24  # pixels between the pictures of a sheet
PICTURES = Path(__file__).parents[1] / "docs" / "pictures" / "app"
Window = browsers.Browser
LOADED = (  # every image in view
    "[...document.images].filter(image => image.checkVisibility() && image.getBoundingClientRect().top < innerHeight)"
    ".every(image => image.complete)"
)


def press(window: Window, text: str, where: str = "body") -> None:
    """Click the first button or link below `where` whose text or name begins with `text`, and that is seen."""
    window.run(
        "const [text, where] = arguments;"
        "const kinds = ['button', 'a', 'summary', 'label'].map(kind => `${where} ${kind}`).join();"
        "const found = [...document.querySelectorAll(kinds)].find("
        "e => (e.getAttribute('aria-label') || e.textContent).trim().startsWith(text) && e.offsetParent);"
        "if (!found) throw new Error(`no button ${text}`); found.scrollIntoView({block: 'nearest'}); found.click()",
        text,
        where,
    )
    time.sleep(0.8)


def _select_image(window: Window) -> None:
    if window.run("return innerWidth > 1100"):
        window.run("document.querySelectorAll('.gallery-grid .cell[data-id]')[2]"
                   "?.dispatchEvent(new MouseEvent('click', {bubbles: true, detail: 1}))")  # fmt: skip
        time.sleep(1)


def _prompt(
    window: Window, text: str = "a photo of <me/teddy-bear> in the snow in the style of <me/cyanotype:0.8>"
) -> None:
    window.run(
        "const field = document.querySelector('#prompt'); field.value = arguments[0];"
        "field.dispatchEvent(new Event('input', {bubbles: true}))",
        text,
    )
    time.sleep(1.5)


def _places(window: Window) -> None:
    _prompt(window, "a photo of <me/teddy-bear> and <me/fox:box=0.5,0.35,1,1> on the beach")
    window.wait("document.querySelector('.places')?.checkVisibility()")
    press(window, "Draw places", ".places")


def _under_way(window: Window) -> None:
    _prompt(window)
    window.run("document.querySelector('.generate-button').click()")
    window.wait("document.querySelector('.job-cell img:not([hidden])')", 60)
    window.run("document.querySelector('.generate-button').click()")
    time.sleep(0.4)


def _two_selected(window: Window) -> None:
    press(window, "Select", ".gallery-tools")
    window.run(
        "[...document.querySelectorAll('.gallery-grid .cell[data-id]')].slice(0, 2).forEach(cell => cell.click())"
    )
    time.sleep(0.5)


def _lightbox(window: Window) -> None:
    window.run("document.querySelectorAll('.gallery-grid .cell[data-id]')[3]"
               ".dispatchEvent(new MouseEvent('dblclick', {bubbles: true}))")  # fmt: skip
    time.sleep(1)


def _nothing(window: Window) -> None:
    pass


# name: (address, what brings the state about)
STATES: dict[str, tuple[str, Callable[[Window], object]]] = {
    "training": ("train/{running}", _nothing),  # first: it ends
    "generate": ("generate", lambda window: (_prompt(window), _select_image(window))),
    "generate-under-way": ("generate", _under_way),
    "generate-advanced": ("generate", lambda window: press(window, "Advanced", "#tab-generate")),
    "generate-places": ("generate", _places),
    "generate-select": ("generate", _two_selected),
    "generate-compare": ("generate", lambda window: (_two_selected(window), press(window, "Compare", "#tab-generate"))),
    "generate-lightbox": ("generate", _lightbox),
    "generate-concepts": ("generate", lambda window: press(window, "Add a concept", "#tab-generate")),
    "queue": ("generate", lambda window: (_under_way(window), press(window, "Queue", "#queue"))),
    "library": ("library", _nothing),
    "library-import": ("library", lambda window: press(window, "Import", "#tab-library")),
    "library-export": ("library/me/teddy-bear", lambda window: press(window, "Export", "#tab-library")),
    "models": ("models", _nothing),
    "train": ("train/draft/{draft}", _nothing),
    "train-captions": ("train/draft/{draft}", lambda window: press(window, "Captions", "#tab-train")),
    "train-crop": ("train/draft/{draft}", lambda window: press(window, "Edit photo", "#tab-train")),
    "training-done": ("train/{done}", _nothing),
    "training-failed": ("train/{failed}", _nothing),
}


def main(
    folder: Annotated[Path, tyro.conf.Positional], states: str = "", out: Path = PICTURES, check: bool = True
) -> None:
    """states: names, separated by commas; none: all. check: also report what axe finds in each."""
    chosen = {name: STATES[name] for name in (states.split(",") if states else STATES)}
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary) / "work"
        shutil.copytree(folder, place)
        (out / "sheets").mkdir(parents=True, exist_ok=True)
        with Server(place) as server, browsers.browser(Path(temporary) / "profile") as window:
            if "training" in chosen:
                _resume_stopped(server)
            ids = _ids(server)
            for name, (address, act) in chosen.items():
                if all(ids.get(part) for part in ("draft", "running", "done", "failed") if f"{{{part}}}" in address):
                    rows = _take(window, f"{server.url}/#{address.format(**ids)}", act, check)
                    rows[0][1].save(out / f"{name}.webp", quality=QUALITY, method=6)
                    _join(rows).save(out / "sheets" / f"{name}.webp", quality=QUALITY, method=6)
                    print(name, flush=True)
                else:
                    print(f"{name}: the folder has no such training", flush=True)


def _resume_stopped(server: Server) -> None:
    """Let a training that was stopped go on, to be seen under way; wait for it to train."""
    for training in server.http.get("/app/trainings").json()["trainings"]:
        if training["state"] == "stopped":
            server.http.post(f"/app/trainings/{training['id']}/command", json={"command": "resume"}).raise_for_status()
            time.sleep(40)


def _ids(server: Server) -> dict[str, str]:
    """Return the id of a draft with photos, and of a training in each state."""
    drafts = server.http.get("/app/drafts").json()["drafts"]
    trainings = server.http.get("/app/trainings").json()["trainings"]
    ids = {"draft": next((draft["id"] for draft in drafts if draft["photos"]), "")}
    names = {"running": ("training", "starting", "stopped"), "done": ("done",), "failed": ("failed",)}
    for name, states in names.items():
        ids[name] = next((training["id"] for training in trainings if training["state"] in states), "")
    return ids


def _take(window: Window, address: str, act: Callable[[Window], object], check: bool) -> list[list[Image.Image]]:
    """Return the pictures of one state: a row for each theme, with the sizes in their order."""
    rows = []
    for theme in THEMES:
        window.set_theme(theme)
        row = []
        for width, height in SIZES:
            window.resize(width, height)
            window.open("about:blank")
            window.open(address)
            window.wait("document.querySelector('main > .tab:not([hidden])')?.childElementCount", 30)
            time.sleep(1.5)
            act(window)
            with suppress(TimeoutError):  # of images that are scrolled out of view, which load lazily
                window.wait(LOADED, 2)
            row.append(_screenshot(window))
            for problem in violations(window) if check and width != SIZES[0][0] else []:
                print(f"  axe, {theme}, {width}x{height}: {problem[:300]}", flush=True)
            window.run(
                "fetch('/app/jobs/stop', {method: 'POST', headers: {'Content-Type': 'application/json'}, body: '{}'})"
            )
        rows.append(row)
    return rows


def _screenshot(window: Window) -> Image.Image:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page.png"
        window.screenshot(path)
        return Image.open(path).convert("RGB")


def _join(rows: list[list[Image.Image]]) -> Image.Image:
    width = sum(image.width for image in rows[0]) + GAP * (len(rows[0]) + 1)
    height = sum(max(image.height for image in row) + GAP for row in rows) + GAP
    sheet, top = Image.new("RGB", (width, height), (120, 130, 140)), GAP
    for row in rows:
        left = GAP
        for image in row:
            sheet.paste(image, (left, top))
            left += image.width + GAP
        top += max(image.height for image in row) + GAP
    return sheet.resize((sheet.width * 5 // 8, sheet.height * 5 // 8), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    tyro.cli(main)
