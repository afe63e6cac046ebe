"""A real cluster of Ray generates many people's images while a worker is killed: each is that of its request alone."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from sdpersonal.concepts.library import Library
from sdpersonal.config import GenerateRequest
from sdpersonal.fleet.driver_loop import DriverOptions
from sdpersonal.fleet.generation_run import ImageOptions, ListedRequest, generate_fleet
from sdpersonal.fleet.run import FleetOptions
from sdpersonal.generation import Generator
from sdpersonal.image_metadata import read_recipe
from sdpersonal.outputs import Outputs
from sdpersonal.prompts import Token
from support import fleet
from support.mixing import shelf_of

fleet.require_ray()
psutil = pytest.importorskip("psutil")
OWNERS = {"anna": "fox", "ben": "cat", "cleo": "ink"}
PROMPTS = ("a photo of <me/duck>", "<me/duck:0.6> on grass", "a tree")


class Killer(threading.Thread):
    """Kills one worker at work, once some images are saved."""

    def __init__(self, out):
        super().__init__(daemon=True)
        self._out, self.killed, self.is_over = out, list[int](), False

    def run(self):
        while not self.killed and not self.is_over:
            time.sleep(0.02)
            if len(saved(self._out)) < 6:
                continue
            for process in psutil.Process().children(recursive=True):
                try:
                    if " ".join(process.cmdline()).startswith("ray::GenerationWorker.run"):
                        process.kill()
                        self.killed.append(process.pid)
                        break
                except psutil.Error:
                    continue


def saved(out):
    outputs = Outputs(out)
    return [out / day / name for day in outputs.days() for name in outputs.images(day)]


def survive(count, workers, tiny, tmp_path):
    """Generate that many requests of three owners' <me/duck> and check every image."""
    shelf = shelf_of(tiny, rows=2)
    for owner, name in OWNERS.items():
        Library(tmp_path / owner).add(replace(shelf[name], token=Token("me", "duck")))
    owners = [list(OWNERS)[number % len(OWNERS)] for number in range(count)]
    requests = [
        GenerateRequest(prompt=PROMPTS[number // 3 % 3], seed=number, num_images=1, steps=1, size="64x64")
        for number in range(count)
    ]
    listed = [
        ListedRequest(f"line {n}", n, owner, request, tmp_path / owner)
        for n, (owner, request) in enumerate(zip(owners, requests, strict=True))
    ]
    said, out, began = [], tmp_path / "outputs", time.monotonic()
    with fleet.cluster(workers) as cluster:
        killer = Killer(out)
        killer.start()
        options = FleetOptions(str(tmp_path / "fleet"), cluster.address, driver=DriverOptions(0.5))
        driver, code = generate_fleet(listed, ImageOptions(out, "tiny"), options, said.append)
        killer.is_over = True
    print(f"{count} images, {workers} workers, 1 killed: {time.monotonic() - began:.0f} s", *said, sep="\n", flush=True)
    assert code == 0 and killer.killed and any("Another worker takes it" in line for line in said), said
    assert len(saved(out)) == count == len(driver.images)
    worst = 0
    for request, owner, tracked in zip(requests, owners, driver.requests, strict=True):
        [alone] = Generator(tiny, Library(tmp_path / owner)).generate(request)
        path = driver.images[tracked.images[0]].path
        worst = max(worst, np.abs(np.asarray(Image.open(path)).astype(int) - np.asarray(alone.image)).max())
        recipe = read_recipe(path.read_bytes())
        assert recipe.model_copy(update={"batch": 1, "place": 0}) == alone.recipe
    assert worst <= 1
    print(f"largest difference {worst}")


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_hundred_requests_survive_a_killed_worker(tiny, tmp_path):
    survive(200, 3, tiny, tmp_path)
