"""The driver of a generation: every image once and in the folder, whatever dies; nobody's under another's request."""

import json
import random
import zlib
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from sdpersonal.concepts.library import Library
from sdpersonal.config import GenerateRequest
from sdpersonal.errors import DiskFull, UserError
from sdpersonal.fleet import generation_run
from sdpersonal.fleet.chunks import read_chunk
from sdpersonal.fleet.driver_loop import CRASHED, DriverOptions
from sdpersonal.fleet.generation_driver import ImageQueue, TrackedImage, TrackedRequest
from sdpersonal.fleet.generation_run import ImageOptions, ListedRequest, generate_fleet
from sdpersonal.fleet.generation_worker import GenerationOptions, GenerationWorker
from sdpersonal.fleet.image_task import ImageTask
from sdpersonal.fleet.run import FleetOptions
from sdpersonal.fleet.store import LocalStore, StoreError
from sdpersonal.fleet.worker import Ended
from sdpersonal.generation import Generator
from sdpersonal.generation.image import GeneratedImage
from sdpersonal.image_metadata import Recipe, RecipeBase, read_recipe
from sdpersonal.outputs import Outputs
from sdpersonal.prompts import Token
from support.mixing import shelf_of


class Pool:
    """Workers in this process. play: what becomes of a chunk: None, "die", or "die late", after its first image."""

    def __init__(self, store, generator, play, slots, private=False):
        self._worker = GenerationWorker(GenerationOptions(store.uri, "", base="tiny", patience=0, private=private))
        self._worker._loaded = generator
        self.store, self._play, self._slots = store, play, slots
        self.running, self.chunks = [], []

    def slots(self):
        return self._slots

    def free(self):
        return self._slots - len(self.running)

    def start(self, chunk_id, number):
        self.running.append(chunk_id)

    def wait(self, seconds):
        if not self.running:
            return []
        chunk_id = self.running[0]
        content = (self.store.folder / "chunks" / f"{chunk_id}.json").read_text()
        tasks = read_chunk(json.loads(content))
        self.chunks.append([task.request.prompt for task in tasks.values()])
        act = self._play([task.request.prompt for task in tasks.values()])
        del self.running[0]
        if act == "die":
            return [Ended(chunk_id)]
        if act == "die late":
            [(first, task), *_] = tasks.items()
            [result] = self._worker.generate([task])
            self._worker._write_image(first, result.image)
            return [Ended(chunk_id)]
        return [Ended(chunk_id, self._worker.run(chunk_id, 1))]

    def stop(self):
        self._worker.stop()


class Solid(Generator):
    """Makes an image of one colour for each prompt and seed at once, for tests of what happens to it afterwards."""

    def generate_many(self, requests, progress=None, cancelled=lambda: False, preview=None, sources=None):
        for index, request in enumerate(requests):
            if "mistake" in request.prompt:
                raise UserError("It cannot be made.", "Ask for something else.")
            yield index, solid(self, request)


def solid(generator, request):
    base = RecipeBase(name="tiny", kind="tiny", sha256=generator.base.version)
    settings = {"sdpersonal": "0", "steps": 1, "guidance": 3, "size": "64x64", "sampler": "DDIM"}
    recipe = Recipe(prompt=request.prompt, seed=request.seed, base=base, **settings)
    color = zlib.crc32(f"{request.prompt} {request.seed}".encode()) % 2**24
    return GeneratedImage(Image.new("RGB", (64, 64), f"#{color:06x}"), recipe)


@pytest.fixture
def fleet(tmp_path, tiny, monkeypatch):
    """run(requests, play, ...) -> the driver and the exit code of `generate_fleet`, with workers in this process."""
    store, pools = LocalStore(tmp_path / "fleet"), []

    def run(requests, play=lambda prompts: None, slots=2, generator=Solid, patience=60.0, **options):
        listed = [
            ListedRequest(f"list, line {n}", n, user, request, tmp_path / (library or "library"))
            for n, (request, user, library) in enumerate((*entry, "", "")[:3] for entry in requests)
        ]

        def connect(images, saver, worker, fleet_options, say):
            if len(saver.saved(set(images))) == len(images):
                return nullcontext(generation_run._NoWorkers())
            pools.append(Pool(store, generator(tiny), play, slots, worker.private))
            return nullcontext(pools[-1])

        monkeypatch.setattr(generation_run, "_pool", connect)
        said = []
        settings = ImageOptions(**{"out": tmp_path / "outputs", "base": "tiny"} | options)
        driver_options = DriverOptions(0.01, patience=patience)
        driver, code = generate_fleet(listed, settings, FleetOptions(store.uri, driver=driver_options), said.append)
        driver.said, driver.pool = said, driver._pool
        return driver, code

    run.store, run.pools, run.out = store, pools, tmp_path / "outputs"
    return run


def request(prompt, **fields):
    return GenerateRequest(prompt=prompt, **({"num_images": 1, "steps": 1, "size": "64x64"} | fields))


def saved(out):
    outputs = Outputs(out)
    return [out / day / name for day in outputs.days() for name in outputs.images(day)]


def check_each_once(driver, out):
    """Every image is in the folder once, and is that of its own request."""
    paths = [image.path for image in driver.images.values()]
    assert sorted(paths) == sorted(saved(out)) and len(set(paths)) == len(paths)
    for tracked in driver.images.values():
        recipe = read_recipe(tracked.path.read_bytes())
        assert (recipe.prompt, recipe.seed) == (tracked.task.request.prompt, tracked.task.request.seed)


def test_fleet_images_equal_images_generated_alone(fleet, tiny, tmp_path):
    """Two owners' <me/duck>, two workers that each die once; compared with Generator.generate."""
    shelf = shelf_of(tiny, rows=2)
    for owner, name in (("anna", "fox"), ("ben", "cat")):
        Library(tmp_path / owner).add(replace(shelf[name], token=Token("me", "duck")))
    asked = [(request("a <me/duck>", seed=7), user, user) for user in ("anna", "ben")]
    asked.append((request("a <me/duck:{0.5|0.8}>", num_images=2), "ben", "ben"))
    deaths = ["die late", "die"]
    driver, code = fleet(asked, lambda prompts: deaths.pop(0) if deaths else None, generator=Generator)
    assert code == 0 and not deaths
    check_each_once(driver, fleet.out)
    for (given, _, library), tracked in zip(asked, driver.requests, strict=True):
        alone = list(Generator(tiny, Library(tmp_path / library)).generate(given))
        for image_id, expected in zip(tracked.images, alone, strict=True):
            path = driver.images[image_id].path
            difference = np.asarray(Image.open(path)).astype(int) - np.asarray(expected.image)
            recipe = read_recipe(path.read_bytes())
            assert np.abs(difference).max() <= 1 and recipe.concepts == expected.recipe.concepts
            assert recipe.template == expected.recipe.template


def test_repeating_the_command_generates_only_missing_images(fleet):
    asked = [(request(f"a photo of {n}", num_images=n % 3 + 1),) for n in range(9)]
    driver, code = fleet(asked)
    assert code == 0 and len(driver.images) == 18
    check_each_once(driver, fleet.out)
    assert fleet.store.names("images") == fleet.store.names("chunks") == fleet.store.names("inputs") == []
    again, _ = fleet([*asked, (request("another"),)])
    assert fleet.pools[-1].chunks == [["another"]] and again.exit_code() == 0
    lost = again.images[again.requests[3].images[0]].path
    lost.unlink()
    driver, _ = fleet(asked)
    assert fleet.pools[-1].chunks == [["a photo of 3"]] and len(saved(fleet.out)) == 19
    assert fleet(asked)[1] == 0 and len(fleet.pools) == 3  # no workers were started


def test_an_image_requested_by_several_lines_is_generated_once(fleet):
    driver, _ = fleet([(request("a cat", num_images=2),), (request("a cat"),), (request("a cat", num_images=3),)])
    assert len(saved(fleet.out)) == 3 and [driver.num_done(r) for r in driver.requests] == [2, 1, 3]


def test_different_options_generate_separate_images(fleet):
    for options in ({}, {"private": True}, {"safety": False}, {"out": fleet.out.with_name("elsewhere")}):
        fleet([(request("a cat"),)], **options)
    assert len(saved(fleet.out)) == 3 and len(saved(fleet.out.with_name("elsewhere"))) == 1


def test_a_chunk_of_a_killed_worker_goes_to_another_worker(fleet):
    draw = random.Random(3)
    driver, code = fleet(
        [(request(f"a photo of {n}"),) for n in range(40)],
        lambda prompts: draw.choice([None, None, "die", "die late"]),
        slots=3,
    )
    assert code == 0 and any("Another worker takes it" in line for line in driver.said)
    check_each_once(driver, fleet.out)


def test_a_request_that_kills_its_workers_fails_without_failing_others(fleet):
    asked = [(request(f"a photo of {n}"),) for n in range(5)] + [(request("poison", num_images=3),)]
    driver, code = fleet(asked, lambda prompts: "die" if "poison" in prompts else None)
    assert code == CRASHED and [driver.state_of(r) for r in driver.requests] == ["done"] * 5 + ["failed"]
    assert "ended its worker 3 times" in driver.requests[5].failure.message
    deaths = sum("poison" in prompts for prompts in fleet.pools[0].chunks)
    assert deaths <= 3 + 3 * 3 + 3 and len(saved(fleet.out)) == 5
    driver, code = fleet(asked)  # the cause is gone
    assert code == 0 and len(saved(fleet.out)) == 8


def test_an_invalid_request_fails_with_its_line_number_without_failing_others(fleet):
    asked = [(request("a cat"),), (request("a mistake", num_images=2),), (request("a dog"),)]
    driver, code = fleet(asked)
    assert code == 2 and [driver.state_of(r) for r in driver.requests] == ["done", "failed", "done"]
    assert driver.said.count("Line 1: It cannot be made.") == 1
    page = (fleet.store.folder / "index.html").read_text()
    assert "line 1" in page and "It cannot be made." in page and "a mistake" not in page and "refresh" not in page


def test_a_command_killed_while_saving_saves_no_image_twice(fleet, monkeypatch):
    write = LocalStore.write_json

    def die(self, key, content):
        if key.startswith("saved/"):
            raise SystemError("killed")
        write(self, key, content)

    asked = [(request(f"a photo of {n}"),) for n in range(6)]
    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "write_json", die)
        with pytest.raises(SystemError):
            fleet(asked)
    assert saved(fleet.out) and fleet.store.names("images")
    driver, code = fleet(asked)
    assert code == 0
    check_each_once(driver, fleet.out)
    made = Counter(prompt for pool in fleet.pools for prompts in pool.chunks for prompt in prompts)
    assert set(made.values()) == {1}  # nothing was generated twice either


def test_a_damaged_image_in_the_store_is_generated_again(fleet, monkeypatch):
    write, damaged = GenerationWorker._write_image, []

    def damage(self, image_id, image):
        sha256 = write(self, image_id, image)
        if not damaged:
            damaged.append(image_id)
            fleet.store.write(f"images/{image_id}-{sha256}.png", b"cut")
        return sha256

    monkeypatch.setattr(GenerationWorker, "_write_image", damage)
    driver, code = fleet([(request(f"a photo of {n}"),) for n in range(3)])
    assert code == 0 and damaged
    check_each_once(driver, fleet.out)


def test_a_full_disk_raises_disk_full_and_keeps_the_images_in_the_store(fleet, monkeypatch):
    def full(self, data):
        raise DiskFull("not enough space in outputs.")

    asked = [(request(f"a photo of {n}"),) for n in range(3)]
    with monkeypatch.context() as patch:
        patch.setattr(Outputs, "save", full)
        with pytest.raises(DiskFull, match="not enough space"):
            fleet(asked, patience=0.1)
    assert len(fleet.store.names("images")) == 3
    driver, code = fleet(asked)
    assert code == 0 and fleet.pools[-1].chunks == []
    check_each_once(driver, fleet.out)


def test_failing_storage_calls_are_repeated_without_loss(fleet, monkeypatch):
    draw = random.Random(5)

    def flaky(name):
        real = getattr(LocalStore, name)

        def act(self, key, *args):
            if key.startswith(("chunks", "images", "saved/")) and armed and draw.random() < 0.2:
                raise StoreError("The storage failed: 503.")
            return real(self, key, *args)

        return act

    armed = []
    for name in ("read", "write", "remove"):
        monkeypatch.setattr(LocalStore, name, flaky(name))
    monkeypatch.setattr("sdpersonal.fleet.adder._FIRST_PAUSE", 0.01)
    monkeypatch.setattr("sdpersonal.fleet.adder._LONGEST_PAUSE", 0.01)

    def arm(prompts):
        armed.append(True)

    driver, code = fleet([(request(f"a photo of {n}"),) for n in range(12)], arm)
    armed.clear()
    assert code == 0 and "The storage failed: 503. Trying again." in "\n".join(driver.said)
    check_each_once(driver, fleet.out)


def test_an_interrupted_command_keeps_finished_images(fleet):
    def interrupt(prompts):
        if len(fleet.pools[-1].chunks) == 3:
            raise KeyboardInterrupt

    asked = [(request(f"a photo of {n}"),) for n in range(20)]
    with pytest.raises(KeyboardInterrupt):
        fleet(asked, interrupt, slots=1)
    driver, code = fleet(asked)
    assert code == 0
    check_each_once(driver, fleet.out)
    made = Counter(prompt for pool in fleet.pools for prompts in pool.chunks for prompt in prompts)
    assert sum(count > 1 for count in made.values()) <= 4  # the chunk that was interrupted


def test_an_invalid_list_starts_no_workers(fleet, tmp_path):
    with pytest.raises(UserError, match=r"^list, line 1: No concept <me/goose>"):
        fleet([(request("a cat"),), (request("<me/goose>"),)])
    assert fleet.pools == [] and not fleet.out.exists()


# --- chunks -----------------------------------------------------------------------------------------------------------


def queue_of(*entries):
    queue = ImageQueue()
    for number, (user, size) in enumerate(entries):
        tracked = TrackedRequest(number, user, [])
        task = ImageTask(request(f"{user} {number}", size=size), 0, "", {})
        queue.add(TrackedImage(str(number), task, [tracked]))
    return queue


def taken(queue, size, running=()):
    return [image.task.request.prompt for image in queue.take(size, Counter(running))]


def test_images_of_different_users_are_taken_in_turns():
    queue = queue_of(*[("anna", "64x64")] * 8, ("ben", "64x64"), ("cleo", "64x64"))
    first = taken(queue, 4)
    assert {prompt.split()[0] for prompt in first} == {"anna", "ben", "cleo"} and len(queue) == 6
    queue = queue_of(*[("anna", "64x64")] * 8, ("ben", "128x128"))
    assert taken(queue, 4, ["anna"]) == ["ben 8"]


def test_a_chunk_holds_images_of_equal_size():
    queue = queue_of(("anna", "64x64"), ("anna", "128x128"), ("ben", "64x64"), ("ben", "128x128"))
    assert taken(queue, 4) == ["anna 0", "ben 2"] and taken(queue, 4) == ["anna 1", "ben 3"] and taken(queue, 4) == []


def test_chunks_shrink_so_that_all_workers_stay_busy(fleet):
    fleet([(request(f"a photo of {n}"),) for n in range(10)], slots=4)
    assert [len(prompts) for prompts in fleet.pools[0].chunks] == [3, 2, 2, 1, 1, 1]
