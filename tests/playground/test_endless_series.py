"""Pictures without end: a permutation that is one, no picture twice, and killed anywhere it goes on exactly."""

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from conftest import ROOT
from sdpersonal import storage
from sdpersonal.cli.main import main
from sdpersonal.config import GenerateRequest
from sdpersonal.errors import Interrupted, UserError
from sdpersonal.generation import GeneratedImage
from sdpersonal.image_metadata import Recipe, RecipeBase, read_recipe
from sdpersonal.outputs import Outputs
from sdpersonal.playground.endless_series import EndlessProgress, EndlessSeries, generate_endless, permute_index
from sdpersonal.prompts import Wildcards, all_prompts
from support.crash import DIED, DONE, calls_made, die_at, in_child

TEMPLATE = "a {red|2::blue|(green:1.2)} {cat|dog|{big|small} fox} in {1-2$$ and $$rain|fog}"  # 3 x 4 x 4


# --- the permutation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [b"", b"one", b"another"])
def test_the_permutation_is_a_bijection_for_every_small_count(key):
    for count in (*range(1, 70), 255, 256, 257, 1000):
        assert sorted(permute_index(i, count, key) for i in range(count)) == list(range(count))


@given(st.integers(2, 2**200), st.binary(min_size=1, max_size=8), st.data())
def test_the_permutation_stays_in_range_without_collisions(count, key, data):
    sample = data.draw(st.lists(st.integers(0, count - 1), min_size=2, max_size=8, unique=True))
    result = [permute_index(i, count, key) for i in sample]
    assert len(set(result)) == len(sample) and all(0 <= item < count for item in result)


def test_each_key_gives_its_own_random_order():
    count, keys = 48, 300
    places = np.array([[permute_index(i, count, str(key).encode()) for i in range(count)] for key in range(keys)])
    assert len({row.tobytes() for row in places}) == keys
    # Where the first one goes: chi-squared with 47 degrees of freedom is above 90 once in 6,000.
    recorded = np.bincount(places[:, 0], minlength=count)
    assert ((recorded - keys / count) ** 2 / (keys / count)).sum() < 90
    # Neighbours stay neighbours as seldom as chance would have it: 2/48 of the time, give or take.
    assert (np.abs(np.diff(places, axis=1)) == 1).mean() < 0.06


def test_the_permutation_of_a_thousand_bit_count_is_fast():
    count = 2**1000 + 297
    began = time.process_time()
    assert len({permute_index(i, count, b"k") for i in range(200)}) == 200
    assert time.process_time() - began < 2


# --- the series -------------------------------------------------------------------------------------------------------


def test_every_round_has_each_combination_exactly_once():
    series = EndlessSeries(GenerateRequest(prompt=TEMPLATE, seed=2**64 - 10))
    expected = sorted(all_prompts(TEMPLATE, Wildcards(None)))
    calls = [series.request_at(position) for position in range(4 * len(expected))]
    for first in range(0, len(calls), len(expected)):
        assert sorted(request.prompt for request in calls[first : first + len(expected)]) == expected
    assert len({(request.prompt, request.seed) for request in calls}) == len(calls)
    orders = {tuple(request.prompt for request in calls[n : n + len(expected)]) for n in range(0, 192, len(expected))}
    assert len(orders) == 4  # each round in its own
    assert calls[10].seed == 0 and {request.num_images for request in calls} == {1}


def test_combinations_with_equal_prompts_differ_in_their_seed():
    series = EndlessSeries(GenerateRequest(prompt="{a|aa}{aa|a}"))
    assert len({(series.request_at(p).prompt, series.request_at(p).seed) for p in range(40)}) == 40


def test_only_the_variation_seed_counts_up_in_a_variation_series():
    series = EndlessSeries(GenerateRequest(prompt="a cat", seed=7, variation_strength=0.2, variation_seed=3))
    assert [(series.request_at(p).seed, series.request_at(p).variation_seed) for p in range(3)] == [
        (7, 3),
        (7, 4),
        (7, 5),
    ]


def test_the_series_ends_after_the_last_seed():
    series = EndlessSeries(GenerateRequest(prompt="a {cat|dog}"))
    assert series.request_at(2**32 - 1).seed == 2**32 - 1
    with pytest.raises(UserError, match="All seeds"):
        series.request_at(2**32)


def test_wildcard_files_add_combinations(tmp_path):
    (tmp_path / "who.txt").write_text("cat\ndog\n\nowl\n")
    series = EndlessSeries(GenerateRequest(prompt="a {big|small} __who__"), tmp_path)
    assert series.combinations == 6
    assert sorted(series.request_at(p).prompt for p in range(6)) == sorted(
        all_prompts("a {big|small} __who__", Wildcards(tmp_path))
    )
    with pytest.raises(UserError, match="no list"):
        EndlessSeries(GenerateRequest(prompt="a __what__"), tmp_path)


# --- kept, killed, resumed --------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Base:
    version: str = "0" * 64


class Painter:
    """Paints a picture that the request alone decides, in no time: what is tested here is what is on the disk."""

    base = Base()

    def generate(self, request, progress):
        digest = hashlib.sha256(request.model_dump_json().encode()).digest()
        image = Image.frombytes("RGB", (4, 2), digest[:24])
        fields = request.model_dump(include={"prompt", "seed", "variation_strength", "variation_seed"})
        facts = {"steps": 2, "guidance": 1.0, "size": "64x64", "sampler": "DDIM", "sdpersonal": "0"}
        recipe = Recipe(**fields, **facts, base=RecipeBase(name="tiny", kind="tiny", sha256="0" * 64))
        progress(1, 1)
        yield GeneratedImage(image, recipe)


def outputs_in(folder: Path, day: int = 1) -> Outputs:
    return Outputs(folder, today=lambda: date(2026, 1, day))


def drawn(folder: Path, limit: int, day: int = 1, prompt: str = TEMPLATE, **options) -> list[Path]:
    series = EndlessSeries(GenerateRequest(prompt=prompt, seed=5))
    return [path for path, _ in generate_endless(series, Painter(), outputs_in(folder, day), limit, **options)]


def pixels(folder: Path) -> list[bytes]:
    """The content of all pictures, in the order of their numbers."""
    return [path.read_bytes() for path in sorted(folder.glob("2026-*/?????-????????.png"))]


def state(folder: Path) -> dict:
    (path,) = folder.glob("endless-????????/state.json")
    return json.loads(path.read_text())


def test_compose_is_part_of_a_series_and_former_series_resume(tmp_path):
    request = GenerateRequest(prompt=TEMPLATE, seed=5)
    mixed = request.model_copy(update={"compose": False})
    assert not EndlessSeries(mixed).request_at(3).compose and EndlessSeries(request).request_at(3).compose
    # The facts that the first series were known by, which did not have the field.
    names = ("prompt", "negative", "seed", "steps", "guidance", "rescale", "size", "mask", "fast")
    facts = {name: None for name in names} | {"prompt": TEMPLATE, "negative": "", "seed": 5, "base": "tiny"}
    facts |= {"near": None, "near_seed": 1, "start": None, "change": 0.6, "enlarge": 1.0}
    mark = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
    assert EndlessProgress(tmp_path, request, "tiny").folder.name == f"endless-{mark}"
    assert EndlessProgress(tmp_path, mixed, "tiny").folder.name != f"endless-{mark}"


def test_a_resumed_series_equals_an_uninterrupted_one(tmp_path):
    full = drawn(tmp_path / "whole", 12)
    parts = [path for _ in range(4) for path in drawn(tmp_path / "parts", 3)]
    assert len(full) == len(parts) == 12
    assert pixels(tmp_path / "whole") == pixels(tmp_path / "parts")
    assert state(tmp_path / "parts") == state(tmp_path / "whole")
    assert state(tmp_path / "whole") == {"template": TEMPLATE, "seed": 5, "base": "0" * 64, "position": 12}


def test_the_recipe_contains_the_template(tmp_path):
    (path,) = drawn(tmp_path / "a", 1)
    recipe = read_recipe(path.read_bytes())
    assert recipe.template == TEMPLATE and recipe.prompt in all_prompts(TEMPLATE, Wildcards(None))
    (path,) = drawn(tmp_path / "b", 1, prompt="a cat")
    assert read_recipe(path.read_bytes()).template == ""
    (path,) = drawn(tmp_path / "c", 1, private=True)
    with pytest.raises(UserError, match="holds no recipe"):
        read_recipe(path.read_bytes())


@pytest.mark.parametrize("distance", [3, pytest.param(1, marks=pytest.mark.thorough)])
def test_a_killed_series_resumes_to_the_same_images(tmp_path, distance):
    """Dying at the n-th thing that is done to the disk, for every third n, and again on the way on from there."""
    drawn(tmp_path / "whole", 3)
    expected = pixels(tmp_path / "whole")
    calls = calls_made(lambda: drawn(tmp_path / "counted", 3))
    assert calls > 15
    for n in range(1, calls + 1, distance):
        folder = tmp_path / str(n)
        assert die_at(n, lambda folder=folder: drawn(folder, 3)) == DIED
        die_at(n % 7 + 1, lambda folder=folder: drawn(folder, 1, day=2))  # the day after
        done = state(folder)["position"] if list(folder.glob("endless-*/state.json")) else 0
        assert in_child(lambda folder=folder, done=done: drawn(folder, 3 - done, day=3)) == DONE
        assert pixels(folder) == expected, n


def test_two_processes_cannot_run_the_same_series(tmp_path):
    series = EndlessSeries(GenerateRequest(prompt=TEMPLATE, seed=5))
    with storage.lock(EndlessProgress(tmp_path, series.request, "0" * 64).folder):
        assert in_child(lambda: drawn(tmp_path, 1)) == 2  # refused
    assert pixels(tmp_path) == []


def test_different_requests_are_different_series(tmp_path):
    drawn(tmp_path, 2)
    drawn(tmp_path, 3, prompt="a {cat|dog}")
    result = [json.loads(path.read_text())["position"] for path in tmp_path.glob("endless-*/state.json")]
    assert sorted(result) == [2, 3]
    request = GenerateRequest(prompt=TEMPLATE, seed=5)
    others = [request.model_copy(update=change) for change in ({"steps": 3}, {"negative": "x"}, {"seed": 6})]
    folders = {EndlessProgress(tmp_path, item, "0" * 64).folder for item in (request, *others)}
    assert len(folders | {EndlessProgress(tmp_path, request, "1" * 64).folder}) == 5
    assert EndlessProgress(tmp_path, request.model_copy(update={"num_images": 7}), "0" * 64).folder in folders


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "[" * 100_000,
        '{"position": -1}',
        '{"position": true}',
        '{"position": 1.0}',
        '{"position": 1}',
        "x" * 30_000,
    ],
)
def test_a_damaged_state_is_refused_and_no_image_is_generated(tmp_path, text):
    drawn(tmp_path, 1)
    (path,) = tmp_path.glob("endless-*/state.json")
    if text == '{"position": 1}':  # another series' state
        text = json.dumps(state(tmp_path) | {"template": "a cat"})
    path.write_text(text)
    with pytest.raises(UserError, match="is damaged"):
        drawn(tmp_path, 1)
    assert len(pixels(tmp_path)) == 1
    path.unlink()
    assert len(drawn(tmp_path, 1)) == 1 and len(pixels(tmp_path)) == 1  # the first one again: it is there already


def test_cancelling_stops_the_series_between_images(tmp_path):
    done = []
    with pytest.raises(Interrupted, match="Stopped after image 2"):
        series = EndlessSeries(GenerateRequest(prompt=TEMPLATE, seed=5))
        for path, _ in generate_endless(series, Painter(), outputs_in(tmp_path), cancelled=lambda: len(done) == 2):
            done.append(path)
    assert state(tmp_path)["position"] == 2 and len(pixels(tmp_path)) == 2


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=30), st.integers(0, 2**32 - 1))
def test_any_template_has_a_first_request_or_is_refused(template, seed):
    try:
        series = EndlessSeries(GenerateRequest(prompt=template, seed=seed))
        series.request_at(0)
    except UserError:
        pass


# --- the command ------------------------------------------------------------------------------------------------------

COMMAND = ["endless", "a {red|blue} {cat|dog}", "--base", "tiny", "--steps", "1", "--size", "64x64"]


def test_ctrl_c_stops_the_series_after_the_current_image(tmp_path, capsys):
    """The first one only: the signal comes while a picture is being drawn, and that picture is kept."""
    command = [*COMMAND, "--out", str(tmp_path)]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background was told to ignore it

    def press():
        while not list(tmp_path.glob("*/00001-*.png")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    finger = threading.Thread(target=press)
    finger.start()
    assert main(command) == 130
    finger.join()
    caught = capsys.readouterr()
    count = state(tmp_path)["position"]
    assert f"Stopped after image {count}. The same command continues from there." in caught.err
    assert len(list(tmp_path.glob("*/?????-????????.png"))) == count >= 1
    assert (tmp_path / "index.html").exists() and "4 combinations" in caught.out
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.thorough
def test_the_same_command_resumes_after_kill_9(tmp_path):
    command = [sys.executable, "-m", "sdpersonal", *COMMAND, "--out", str(tmp_path / "killed")]
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while len(list((tmp_path / "killed").glob("*/?????-????????.png"))) < 3 and time.monotonic() < until:
        time.sleep(0.005)
    running.kill()
    running.wait()
    count = len(list((tmp_path / "killed").glob("*/?????-????????.png")))
    position = state(tmp_path / "killed")["position"]
    assert count >= 3 and position in (count - 1, count)
    assert main([*COMMAND, "--out", str(tmp_path / "killed"), "--limit", str(count + 2 - position)]) == 0
    assert main([*COMMAND, "--out", str(tmp_path / "whole"), "--limit", str(count + 2)]) == 0
    for folder in ("killed", "whole"):
        assert len(list((tmp_path / folder).glob("*/?????-????????.png"))) == count + 2
    result, expected = (
        [path.name for path in sorted((tmp_path / folder).glob("*/?????-????????.png"))]
        for folder in ("killed", "whole")
    )
    assert result == expected  # a name ends in the content's sum
