"""A worker that generates: every image is that of its request alone, whoever asks, whatever fails beside it."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from sdpersonal.concepts.library import Library
from sdpersonal.config import GenerateRequest
from sdpersonal.errors import Interrupted, OutOfMemory, UserError
from sdpersonal.fleet.concept_cache import ConceptCache
from sdpersonal.fleet.generation_worker import GenerationOptions, GenerationWorker
from sdpersonal.fleet.image_task import ImageTask, PinnedConcept, TaskMaker
from sdpersonal.fleet.store import LocalStore, StoreError
from sdpersonal.generation import Generator, previews
from sdpersonal.prompts import Token
from support.mixing import shelf_of

SESSION = "0123456789abcdef"


@pytest.fixture
def store(tmp_path):
    store = LocalStore(tmp_path / "fleet")
    store.write_json("fleet.json", {"id": "x"})
    return store


@pytest.fixture
def libraries(tiny, tmp_path):
    """Two owners, each with another <me/duck> and <me/ink>."""
    shelf, made = shelf_of(tiny, rows=2), []
    for owner, names in (("anna", ("fox", "ink")), ("ben", ("cat", "wash"))):
        library = Library(tmp_path / owner)
        for name, concept in zip(("duck", "ink"), names, strict=True):
            library.add(replace(shelf[concept], token=Token("me", name)))
        made.append(library)
    return made


@pytest.fixture
def worker(store, tiny):
    worker = GenerationWorker(GenerationOptions(store.uri, "x", base="tiny", patience=0))
    worker._loaded = Generator(tiny)
    return worker


def request(prompt="a photo of <me/duck>", **fields):
    return GenerateRequest(**({"prompt": prompt, "num_images": 1, "steps": 1, "size": "64x64"} | fields))


def tasks_of(store, *pairs, **options):
    maker = TaskMaker(store, SESSION, **options)
    return [task for asked, library in pairs for task in maker.tasks(asked, library.find)]


def pixels(image):
    return np.asarray(image.image).astype(int)


def recipe(image):
    return image.recipe.model_copy(update={"batch": 1, "place": 0, "template": ""})


def check_equal(images, expected):
    for ours, alone in zip(images, expected, strict=True):
        assert np.abs(pixels(ours) - pixels(alone)).max() <= 1 and recipe(ours) == recipe(alone)


def test_a_chunk_of_two_owners_uses_the_concepts_of_each_owner(worker, store, libraries, tiny, monkeypatch):
    monkeypatch.setattr(previews, "_FIRST_AFTER", -1)
    monkeypatch.setattr(previews, "_TIME_SHARE", 1e9)
    prompts = ["a <me/duck>", "a tree, <ink:0.5>"]
    pairs = [(request(prompt, seed=n), libraries[n % 2]) for prompt in prompts for n in range(2)]
    tasks, shown, done = tasks_of(store, *pairs), [], []
    tasks = [ImageTask.from_json(json.loads(json.dumps(task.as_json()))) for task in tasks]  # as it reaches a worker
    results = list(worker.generate(tasks, lambda *n: done.append(n), preview=lambda indices, _: shown.extend(indices)))
    images = {result.index: result.image for result in results}
    check_equal(
        [images[n] for n in range(len(pairs))],
        [next(Generator(tiny, library).generate(asked)) for asked, library in pairs],
    )
    assert set(shown) == set(range(len(pairs))) and done[-1][0] == done[-1][1]
    assert images[0].recipe.concepts[0].sha256 != images[1].recipe.concepts[0].sha256
    assert worker.concepts.misses == 4  # each concept was read once


def test_a_request_is_split_into_tasks_with_alternatives_and_seeds(worker, store, libraries, tiny, tmp_path):
    (tmp_path / "wildcards").mkdir()
    (tmp_path / "wildcards" / "place.txt").write_text("in a park\non a \\{table\\}\n")
    asked = request("a <me/duck:{0.5|1}> __place__", negative="{snow|rain}", num_images=3, seed=2**64 - 1)
    tasks = tasks_of(store, (asked, libraries[0]), wildcards=tmp_path / "wildcards")
    images = [result.image for result in worker.generate(tasks)]
    alone = list(Generator(tiny, libraries[0], tmp_path / "wildcards").generate(asked))
    check_equal(images, alone)
    assert [image.recipe.template for image in images] == [image.recipe.template for image in alone]
    assert [task.number for task in tasks] == [0, 1, 2]
    both = request("a {red|blue} ball", all_combinations=True, num_images=2, variation_strength=0.1)
    check_equal(
        [result.image for result in worker.generate(tasks_of(store, (both, libraries[0])))],
        list(Generator(tiny).generate(both)),
    )


def test_an_init_image_is_stored_by_content_and_removed(worker, store, libraries, tiny, tmp_path):
    Image.radial_gradient("L").save(tmp_path / "start.png")
    asked = request(init_image=tmp_path / "start.png", mask=tmp_path / "start.png", strength=1.0)
    tasks = tasks_of(store, (asked, libraries[0]))
    assert str(tmp_path) not in json.dumps(tasks[0].as_json())
    alone = list(Generator(tiny, libraries[0]).generate(asked))
    check_equal([result.image for result in worker.generate(tasks)], alone)
    assert list(worker._folder.iterdir()) == []
    store.remove(TaskMaker(store, SESSION).inputs())
    [result] = worker.generate(tasks)
    assert "is not in the storage any more" in result.error.message


def test_later_library_changes_do_not_affect_a_task(worker, store, libraries, tiny):
    [task] = tasks_of(store, (request(), libraries[0]))
    alone = next(Generator(tiny, libraries[0]).generate(request()))
    libraries[0].add(replace(libraries[1].get("<me/duck>"), token=Token("me", "duck")))  # a newer version
    libraries[0].edit("<me/duck-v1>", {"class_noun": "goose"})
    libraries[0].remove("<me/duck-v1>")
    check_equal([result.image for result in worker.generate([task])], [alone])
    [newer] = tasks_of(store, (request(), libraries[0]))
    assert newer.identity("tiny") != task.identity("tiny") == ImageTask.from_json(task.as_json()).identity("tiny")
    assert len({task.identity("tiny"), task.identity("sdxl"), replace(task, number=1).identity("tiny")}) == 3


def test_invalid_requests_are_refused_before_generation(store, libraries):
    for asked, message in (
        (request("<me/goose>"), "No concept"),
        (request("__nothing__"), "nothing"),
        (request(fast="<me/goose>"), "No concept"),
        (request(init_image="nowhere.png"), "nowhere.png"),
    ):
        with pytest.raises(UserError, match=message):
            tasks_of(store, (asked, libraries[0]))
    with pytest.raises(UserError, match="was made for the base tiny"):
        tasks_of(store, (request(), libraries[0]), kind="sdxl")


def test_a_request_with_an_error_does_not_fail_the_others(worker, store, libraries, tiny):
    good = [(request(seed=n), libraries[n]) for n in range(2)]
    tasks = tasks_of(store, good[0], (request(clip_skip=12), libraries[0]), good[1], (request("<ink>"), libraries[1]))
    store.remove(tasks[3].concepts["<ink>"].key)
    results = {result.index: result for result in worker.generate(tasks)}
    check_equal(
        [results[0].image, results[2].image], [next(Generator(tiny, library).generate(r)) for r, library in good]
    )
    assert "clip_skip must be at most" in results[1].error.message and results[1].image is None
    assert "is not in the storage any more" in results[3].error.message


def test_an_out_of_memory_batch_is_repeated_image_by_image(worker, store, libraries, monkeypatch):
    batches, generate = [], Generator._generate_batch

    def small(self, jobs, *args):
        batches.append(len(jobs))
        if len(jobs) > 1 or jobs[0].seed == 1:
            raise OutOfMemory("Out of memory while generating.")
        return generate(self, jobs, *args)

    monkeypatch.setattr(Generator, "_generate_batch", small)
    tasks = tasks_of(store, *((request(seed=n), libraries[0]) for n in range(3)))
    results = {result.index: result for result in worker.generate(tasks)}
    assert batches == [3, 1, 1, 1] and results[0].image and results[2].image
    assert results[1].error.message == "Out of memory while generating."


def test_cancellation_and_storage_errors_end_the_whole_chunk(worker, store, libraries, monkeypatch):
    tasks = tasks_of(store, (request(), libraries[0]))
    with pytest.raises(Interrupted):
        list(worker.generate(tasks, cancelled=lambda: True))

    def fail(self, key):
        raise StoreError("The storage failed: 503.")

    monkeypatch.setattr(LocalStore, "read", fail)
    [other] = tasks_of(store, (request(), libraries[1]))
    with pytest.raises(StoreError):
        list(worker.generate([other]))


def test_the_concept_cache_drops_the_least_recently_used_concept(store, libraries):
    tasks = tasks_of(store, *((request(f"<me/{name}>"), library) for library in libraries for name in ("duck", "ink")))
    pinned = [next(iter(task.concepts.values())) for task in tasks]
    size = len(store.read(pinned[0].key))
    cache = ConceptCache(store, max_bytes=3 * size + size // 2)
    for concept in (*pinned[:3], pinned[0], pinned[3]):
        assert cache.get(concept).identity == concept.identity
    assert cache.misses == 4 and cache.num_bytes <= 3.5 * size
    cache.get(pinned[0])
    assert cache.misses == 4
    cache.get(pinned[1])
    assert cache.misses == 5


def test_damaged_and_replaced_concepts_are_refused(store, libraries):
    tasks = tasks_of(store, *((request(), library) for library in libraries))
    first, second = (task.concepts["<me/duck>"] for task in tasks)
    data = store.read(first.key)
    store.write(first.key, store.read(second.key))
    with pytest.raises(UserError, match="is another one in the storage"):
        ConceptCache(store).get(first)
    store.write(first.key, data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(UserError, match="damaged"):
        ConceptCache(store).get(first)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content.pop("request"),
        lambda content: content.update(concepts=["x"]),
        lambda content: content.update(concepts={"<me/duck>": "../../etc/passwd"}),
        lambda content: content["request"].update(init_image="/etc/passwd"),
        lambda content: content["request"].update(steps=-1),
    ],
)
def test_damaged_tasks_are_refused(store, libraries, damage):
    [task] = tasks_of(store, (request(), libraries[0]))
    content = task.as_json()
    damage(content)
    with pytest.raises(UserError):
        ImageTask.from_json(content)


def test_prepare_reports_a_missing_storage_or_base(store, tmp_path):
    assert GenerationWorker(GenerationOptions(store.uri, "x", base="tiny")).prepare().base[0] == "tiny"
    assert "does not see the storage" in GenerationWorker(GenerationOptions(str(tmp_path / "a"), "x")).prepare().problem
    info = GenerationWorker(GenerationOptions(store.uri, "x", base=str(tmp_path / "no-model"))).prepare()
    assert "no-model" in info.problem and PinnedConcept("a", "b").key == "concepts/a-b.safetensors"
