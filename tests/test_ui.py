"""What the app's page does, without the page: drawing with progress and stop, and the shelf of concepts."""

import json
import math
import re
import threading
import time
from pathlib import Path

import pytest

from sdpersonal.errors import PersonalError
from sdpersonal.library import Library
from sdpersonal.service.drawing import Studio, insert
from sdpersonal.service.house import House
from sdpersonal.service.shelf import shelf
from sdpersonal.service.words import in_words
from stock import stocked

FORM = {"prompt": "a cat on grass", "n": 1, "steps": 2, "seed": 7}


def test_a_shelf_shows_what_the_base_can_draw(tmp_path):
    library = stocked(tmp_path)
    (tmp_path / "me" / "cut-v1.safetensors").write_bytes(b"not a concept")
    found = shelf(library, "tiny")
    assert [token for _, token in found.tiles] == ["<me/duck>", "<you/ink>"]
    assert found.tiles[0][0].getpixel((5, 5))[0] > 200  # the thumbnail's red
    assert "1 more is for another base" in found.note and "1 damaged" in found.note


def test_an_empty_library_is_an_empty_shelf(tmp_path):
    found = shelf(Library(tmp_path / "none"), "tiny")
    assert found.tiles == [] and found.note == ""


@pytest.mark.parametrize(
    "prompt, whole",
    [("", "<me/duck>"), ("a photo of", "a photo of <me/duck>"), ("a photo of \n", "a photo of <me/duck>")],
)
def test_a_word_is_put_in_with_one_space(prompt, whole):
    assert insert(prompt, "<me/duck>") == whole


@pytest.fixture
def studio(tiny, tmp_path):
    from sdpersonal.generation import Generator

    library = Library(tmp_path / "concepts")
    return Studio(Generator(tiny, library), House(library, tmp_path / "keep", tmp_path / "runs", tmp_path / "show"))


def test_a_drawing_tells_how_far_it_is_and_keeps_its_pictures(studio):
    sheets = list(studio.draw(FORM | {"n": 2}, "page"))
    shares = [sheet.done for sheet in sheets]
    assert shares == sorted(shares) and shares[-1] == 1
    assert sheets[-1].message.startswith("2 pictures in ")
    assert [caption for _, caption in sheets[-1].pictures] == ["seed 7", "seed 8"]
    assert [json.loads(recipe)["seed"] for recipe in sheets[-1].recipes] == [7, 8]
    kept = {path.read_bytes() for path in studio.house.outputs.rglob("*.png")}
    assert kept == {Path(path).read_bytes() for path, _ in sheets[-1].pictures} and len(kept) == 2


def test_a_drawing_is_the_one_that_the_command_line_makes(studio):
    from sdpersonal.config import Request

    ((path, _),) = list(studio.draw(FORM, "page"))[-1].pictures
    (drawn,) = studio.generator.draw(Request(**FORM))
    assert Path(path).read_bytes() == drawn.png()


@pytest.mark.parametrize("field", ["seed", "steps", "guidance", "n"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -1, 1e308, "7", True, [1], {}])
def test_bad_numbers_become_words(studio, field, value):
    (sheet,) = studio.draw(FORM | {field: value}, "page")
    assert re.fullmatch(rf"{field} must be a .* got .*\n?.*", sheet.message)


@pytest.mark.parametrize("form", [{"prompt": None}, {"negative": 3}, {"size": "7x7"}, {"prompt": "<<a>"}, {"evil": 1}])
def test_other_bad_values_become_words(studio, form):
    message = list(studio.draw(FORM | form, "page"))[-1].message
    assert re.search("must be|No concept|not a setting", message)


def test_an_unknown_concept_becomes_words(studio):
    assert list(studio.draw(FORM | {"prompt": "a <me/cta>"}, "page"))[-1].message.startswith("No concept <me/cta>")


def test_a_page_that_stops_does_not_stop_another(studio):
    for page, ending in [("one", "Stopped; 0 of 1 "), ("two", "1 picture in ")]:
        sheets = studio.draw(FORM | {"steps": 60 if page == "one" else 2}, page)
        next(sheets), next(sheets)  # it is under way
        studio.stop("one")
        assert list(sheets)[-1].message.startswith(ending)


def test_a_page_that_goes_away_frees_the_device(studio):
    sheets = studio.draw(FORM | {"steps": 150, "n": 16}, "page")
    next(sheets), next(sheets)
    sheets.close()
    assert list(studio.draw(FORM, "other"))[-1].message.startswith("1 picture")


def test_two_pages_take_turns(tmp_path):
    class Counting:
        busy = most = 0

        def draw(self, request, progress, cancelled):
            self.busy += 1
            self.most = max(self.most, self.busy)
            time.sleep(0.05)
            self.busy -= 1
            yield from ()

    studio = Studio(Counting(), House(Library(tmp_path), tmp_path, tmp_path, tmp_path))
    threads = [threading.Thread(target=list, args=[studio.draw(FORM, str(page))]) for page in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert studio.generator.most == 1


def test_a_failure_inside_is_a_number_outside(tmp_path, caplog):
    class Broken:
        def draw(self, request, progress, cancelled):
            raise RuntimeError("/home/me/secret")

    message = list(Studio(Broken(), House(Library(tmp_path), tmp_path, tmp_path, tmp_path)).draw(FORM, "page"))[
        -1
    ].message
    number = re.search(r"failure (\w{8})", message)[1]
    assert "secret" not in message and number in caplog.text and "secret" in caplog.text
    assert in_words(PersonalError("No.", "Try.")) == "No.\nTry."
