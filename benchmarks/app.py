"""What the page costs: `PYTHONPATH=.:tests python benchmarks/app.py`. A real server and browser, the built-in base.

Paint: from asking for the page to its first paint and to a form that can be used, warm and on a slow line, with 500
concepts and 2,000 images. Idle: requests, and the server's share of a core. Generating: from the click to the first
preview and to the first of four images, against the same request without the page, in turns. Everything computes in one
thread (OMP_NUM_THREADS=1): on a machine of two cores the browser needs the other one.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import tyro
from PIL import Image

from sdpersonal.concepts.concept import Concept
from sdpersonal.concepts.library import Library
from sdpersonal.concepts.thumbnail import make_thumbnail
from sdpersonal.outputs import Outputs
from sdpersonal.prompts import Token
from support import browser as browsers
from support.samples import card, vectors
from support.serving import Server

PROMPT, STEPS = "a cat on the beach", 25
SLOW_LINE = 750_000 / 8, 400  # bytes a second, milliseconds of latency
PAINTED = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
USABLE = "document.querySelector('#prompt') && document.querySelector('.generate-button')?.offsetParent"
IMAGES = "document.querySelectorAll('.gallery-grid .cell[data-id]').length"
PREVIEW = "document.querySelector('.job-cell img:not([hidden])')"


def main(
    concepts: int = 500,
    images: int = 2000,
    rounds: int = 5,
    idle: float = 20.0,
    parts: str = "paint,idle,typing,generate,gallery,photos",
) -> None:
    """parts: of paint, idle, typing, generate, gallery, photos."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _fill_library(Library(folder / "concepts"), concepts)
        _fill_outputs(Outputs(folder / "outputs"), images)
        started = time.monotonic()
        with Server(folder, OMP_NUM_THREADS="1") as server, browsers.browser(folder / "profile") as window:
            print(f"server start: {time.monotonic() - started:.1f} s", flush=True)
            chosen = {
                "paint": lambda: _paint(server, window),
                "idle": lambda: _idle(server, window, idle),
                "typing": lambda: _typing(window),
                "gallery": lambda: _gallery(server, window),
                "photos": lambda: _photos(server, folder),
                "generate": lambda: _generate(server, window, folder, rounds),
            }
            for part in parts.split(","):
                chosen[part]()


def _load(window, url: str) -> tuple[float, float]:
    """Return the seconds to the first paint with content, and until the form can be used."""
    window.open("about:blank")
    started = time.monotonic()
    window.open(url)
    window.wait(USABLE, 60)
    usable = time.monotonic() - started
    return window.wait(PAINTED, 60) / 1000, usable


def _paint(server: Server, window) -> None:
    _load(window, server.url)
    loads = [_load(window, server.url) for _ in range(4)]
    print(f"warm: painted {_shown([a for a, _ in loads])} s, usable {_shown([b for _, b in loads])} s")
    size = window.run("return performance.getEntriesByType('resource').filter(e => !e.name.includes('/app/'))"
                      ".reduce((sum, e) => sum + e.encodedBodySize, 0)")  # fmt: skip
    print(f"scripts and styles: {size / 1000:.0f} kB, compressed")
    window.call("goog/cdp/execute", cmd="Network.clearBrowserCache", params={})
    window.set_network(*SLOW_LINE)
    painted, usable = _load(window, server.url)
    window.set_network(-1, 0)
    print(f"750 kbit/s with 400 ms, nothing cached: painted {painted:.2f} s, usable {usable:.2f} s", flush=True)


def _idle(server: Server, window, seconds: float) -> None:
    _load(window, server.url)
    time.sleep(5)
    before, process = len(window.requests()), psutil.Process(server.process.pid)
    process.cpu_percent()
    time.sleep(seconds)
    share = process.cpu_percent()
    print(f"idle for {seconds:.0f} s: {len(window.requests()) - before} requests, server {share:.2f} % of a core")


def _typing(window) -> None:
    _clear_prompt(window)
    time.sleep(1)
    before = len(window.requests())
    for letter in "a photo of <owner0/thi"[:21]:
        window.type("#prompt", letter)
    time.sleep(2)
    sent = window.requests()[before:]
    thumbnails = sum("/app/concept-thumbs/" in address for address in sent)
    print(
        f"typing 21 letters: {len(sent) - thumbnails} requests, {thumbnails} thumbnails of offered concepts", flush=True
    )


def _generate(server: Server, window, folder: Path, rounds: int) -> None:
    """Time four images with the page and without it, in turns; the process without it computes in one thread too."""
    alone = _Alone(folder)
    _load(window, server.url)
    _clear_prompt(window)
    window.type("#prompt", PROMPT)
    _four_images(window)  # the first of a server loads what later ones have
    alone.first_image()
    rows = [(*_four_images(window), alone.first_image()) for _ in range(rounds)]
    preview, first, last, without = (statistics.median(column) for column in zip(*rows, strict=True))
    print(f"click to first sign {_shown([_first_sign(window)])} s, to first preview {preview:.2f} s")
    ratio = first / without
    print(f"first of 4 images {first:.2f} s, last {last:.2f} s; first without the page {without:.2f} s: {ratio:.2f}x")
    alone.close()


def _four_images(window) -> tuple[float, float, float]:
    """Return the seconds from the click to the first preview, to the first and to the fourth image."""
    script = (
        "const before = new Set([...document.querySelectorAll('.gallery-grid .cell[data-id]')].map(e => e.dataset.id));"
        "window.times = {}; const start = performance.now();"
        "const look = () => { const now = (performance.now() - start) / 1000;"
        f" if ({PREVIEW}) times.preview ??= now;"
        " const fresh = [...document.querySelectorAll('.gallery-grid .cell[data-id]')]"
        ".filter(e => !before.has(e.dataset.id)).length;"
        " if (fresh > 0) times.first ??= now; if (fresh >= 4) times.last ??= now; };"
        "window.watch = new MutationObserver(look);"
        "watch.observe(document.querySelector('.gallery-grid'), {childList: true, subtree: true, attributes: true});"
        "document.querySelector('.generate-button').click()"
    )
    window.run(script)
    window.wait("window.times.last", 120)
    times = window.run("watch.disconnect(); return window.times")
    time.sleep(1)
    return times.get("preview", times["first"]), times["first"], times["last"]


def _first_sign(window) -> float:
    """Return the seconds from a click to the first cell of an image under way."""
    script = (
        "const start = performance.now(); document.querySelector('.generate-button').click();"
        "return new Promise(resolve => { const look = () => document.querySelector('.job-cell')"
        " ? resolve((performance.now() - start) / 1000) : requestAnimationFrame(look); look(); })"
    )
    seconds = window.run(script)
    window.wait("!document.querySelector('.job-cell')", 120)
    return seconds


class _Alone:
    """Another process that generates the same four images without a page."""

    PROGRAM = (
        "import sys, time\n"
        "from sdpersonal.config import GenerateRequest\n"
        "from sdpersonal.generation import Generator\n"
        "from sdpersonal.models import load_base\n"
        "generator = Generator(load_base('tiny'))\n"
        "print('ready', flush=True)\n"
        "for line in sys.stdin:\n"
        "    start, first = time.monotonic(), None\n"
        f"    request = GenerateRequest(prompt={PROMPT!r}, num_images=4, steps={STEPS}, guidance=3.0)\n"
        "    for image in generator.generate(request):\n"
        "        first = first or time.monotonic() - start\n"
        "    print(first, flush=True)\n"
    )

    def __init__(self, folder: Path):
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._read()

    def _read(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def first_image(self) -> float:
        """Return the seconds to the first image, while the four are generated."""
        assert self.process.stdin
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return float(self._read())

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


def _gallery(server: Server, window) -> None:
    """Scroll through all images; a pause is a task of the page's thread that takes more than 50 ms."""
    _load(window, server.url)
    window.run(
        "window.pauses = [];"
        "new PerformanceObserver(list => pauses.push(...list.getEntries().map(e => e.duration)))"
        ".observe({type: 'longtask'})"
    )
    started, count = time.monotonic(), 0
    while time.monotonic() - started < 120:
        window.run("const place = document.querySelector('.gallery'); place.scrollTop = place.scrollHeight")
        time.sleep(0.15)
        seen = window.run(f"return {IMAGES}")
        if seen == count and time.monotonic() - started > 5:
            break
        count = seen
    pauses = window.run("return window.pauses")
    seconds, longest, many = time.monotonic() - started, max(pauses, default=0), sum(pause > 200 for pause in pauses)
    print(f"{count} images scrolled through in {seconds:.1f} s; longest pause {longest:.0f} ms, {many} above 200 ms")
    window.open(f"{server.url}/#library")
    started = time.monotonic()
    window.wait("document.querySelectorAll('#tab-library img').length > 10", 30)
    print(f"library of 500 concepts shown after {time.monotonic() - started:.2f} s", flush=True)


def _photos(server: Server, folder: Path) -> None:
    """Change one of 40 photos."""
    paths = _make_photos(folder / "photos", 40)
    files = [("files", (path.name, path.read_bytes(), "image/jpeg")) for path in paths]
    uploaded = server.http.post("/gradio_api/upload", files=files, timeout=120).json()
    draft = server.http.get("/app/drafts").json()["drafts"][0]
    route = f"/app/drafts/{draft['id']}"
    seconds = _timed(lambda: server.http.post(f"{route}/photos", json={"uploads": uploaded}, timeout=300))
    print(f"40 photos of 1200 x 900 pixels added in {seconds:.1f} s")
    photo = server.http.get("/app/drafts").json()["drafts"][0]["photos"][20]["id"]
    for name, change in (
        ("left out", {"used": False}),
        ("turned", {"quarters": 1}),
        ("captioned", {"caption": "{} here"}),
    ):
        seconds = _timed(
            lambda change=change: server.http.post(
                f"{route}/photo", json={"photo": photo, **change}, timeout=60
            ).raise_for_status()
        )
        print(f"one of 40 photos {name}: {seconds:.2f} s", flush=True)


def _timed(work: Callable[[], object]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


def _make_photos(folder: Path, count: int) -> list[Path]:
    folder.mkdir()
    generator = np.random.default_rng(0)
    paths = [folder / f"{number:02d}.jpg" for number in range(count)]
    for path in paths:
        small = Image.fromarray(generator.integers(0, 256, (9, 12, 3), np.uint8))
        small.resize((1200, 900), Image.Resampling.BICUBIC).save(path, quality=90)
    return paths


def _clear_prompt(window) -> None:
    window.run("const field = document.querySelector('#prompt'); field.value = '';"
               "field.dispatchEvent(new Event('input', {bubbles: true}))")  # fmt: skip


def _shown(values: list[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


def _fill_library(library: Library, count: int) -> None:
    for number in range(count):
        tile = make_thumbnail(Image.new("RGB", (256, 256), ((7 * number) % 256, (31 * number) % 256, 90)))
        token = Token(f"owner{number % 9}", f"thing-{number}")
        library.add(Concept(token, card(), {"clip_l": 0.02 * vectors(number)}, None, tile))


def _fill_outputs(outputs: Outputs, count: int) -> None:
    import io

    generator = np.random.default_rng(1)
    for _ in range(count):
        buffer = io.BytesIO()
        small = Image.fromarray(generator.integers(0, 256, (4, 4, 3), np.uint8))
        small.resize((128, 128), Image.Resampling.BICUBIC).save(buffer, "PNG")
        outputs.save(buffer.getvalue())


if __name__ == "__main__":
    tyro.cli(main)
