"""What the page costs: `PYTHONPATH=.:tests python benchmarks/app.py`. A real server and browser, the built-in base.

Paint: from asking for the page to the prompt being there, with 500 concepts in the library. Overhead: from the click to
the last of four pictures, against the same request drawn without the page, in turns. Memory: the server's, over many
requests.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path

import psutil
import tyro
from PIL import Image

from sdpersonal.concepts.concept import Concept
from sdpersonal.concepts.library import Library
from sdpersonal.concepts.thumbnail import make_thumbnail
from sdpersonal.config import GenerateRequest
from sdpersonal.prompts import Token
from support import browser as browsers
from support.samples import card, vectors
from support.serving import Server

FORM = {"prompt": "a cat on the beach", "num_images": 4, "steps": 25, "size": "128x128", "guidance": 3.0}


def seconds_to_prompt(server: Server, window) -> float:
    """Seconds to the prompt of a page that the browser's cache knows already."""
    window.open("about:blank")
    started_at = time.monotonic()
    window.open(server.url)
    window.wait("document.querySelector('#prompt textarea') && document.querySelector('#generate')?.offsetParent", 60)
    return time.monotonic() - started_at


def main(concepts: int = 500, rounds: int = 8, requests: int = 500) -> None:
    """rounds: of overhead; requests: of memory."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _fill_library(Library(folder / "concepts"), concepts)
        with Server(folder) as server:
            _report(server, folder, concepts, rounds, requests)


def _report(server: Server, folder: Path, concepts: int, rounds: int, requests: int) -> None:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # the command line's rule; read when torch is loaded
    from sdpersonal.generation import Generator
    from sdpersonal.models import load_base

    generator = Generator(load_base("tiny"))
    with browsers.browser(folder / "profile") as window:
        paints = [seconds_to_prompt(server, window) for _ in range(4)]
        shown = ", ".join(f"{seconds:.2f}" for seconds in paints)
        print(f"first paint with {concepts} concepts: {shown} s (first: cold)")
        window.type("#prompt textarea", FORM["prompt"])
        window.run("document.querySelector('#settings button').click()")
        pairs = []
        for _ in range(rounds):
            started_at = time.monotonic()
            list(generator.generate(GenerateRequest(**FORM)))
            alone = time.monotonic() - started_at
            pairs.append((alone, _seconds_for_four(window)))
        ratio = statistics.median(page / alone for alone, page in pairs)
        print(f"4 pictures: {statistics.median(page for _, page in pairs):.2f} s from the click, "
              f"{statistics.median(alone for alone, _ in pairs):.2f} s without the page: {ratio:.2f}x")  # fmt: skip
    process = psutil.Process(server.process.pid)
    for number in range(requests + 1):
        if number % max(1, requests // 5) == 0:
            print(f"after {number} requests: {process.memory_info().rss / 1e6:.0f} MB", flush=True)
        server.draw(steps="1", seed=str(number), size='"64x64"')


def _seconds_for_four(window) -> float:
    window.run("window.begun = performance.now(); document.querySelector('#generate').click()")
    window.wait("document.querySelector('#status textarea').value.startsWith('Generating')", 60)
    window.wait("document.querySelector('#status textarea').value.startsWith('4 images') && performance.now()", 120)
    return window.run("return performance.now() - window.begun") / 1000


def _fill_library(library: Library, count: int) -> None:
    for number in range(count):
        tile = make_thumbnail(Image.new("RGB", (256, 256), ((7 * number) % 256, (31 * number) % 256, 90)))
        token = Token(f"owner{number % 9}", f"thing-{number}")
        library.add(Concept(token, card(), {"clip_l": 0.02 * vectors(number)}, None, tile))


if __name__ == "__main__":
    tyro.cli(main)
