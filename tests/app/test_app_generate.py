"""The Generate tab in a real browser, from the first word to the picture drawn again from its own file."""

import json

import numpy as np
import pytest
from PIL import Image

from sdpersonal.image_metadata import read_recipe
from support import browser as browsers
from support.serving import Server
from support.stock import small_library

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(browsers.missing()), reason=browsers.missing())]
CONTROL, ENTER = "\ue009", "\ue007"
FIVE = 5  # steps: pictures that are quick, and good enough to tell one from another


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    place = tmp_path_factory.mktemp("generate")
    small_library(place / "concepts")
    with Server(place) as running:
        yield running


@pytest.fixture
def window(server, tmp_path):
    with browsers.browser(tmp_path / "profile") as opened:
        opened.open(server.url)
        opened.wait("document.querySelectorAll('#concepts .thumbnail-item').length == 2")
        opened.run("document.querySelector('#settings button').click()")
        opened.wait("document.querySelector('#random-seed input')")
        yield opened


def put(window, label, value):
    """A number into the field of that label, as a person does."""
    window.run(
        "const field = [...document.querySelectorAll('#settings label, #settings .block')]"
        ".find(each => each.innerText.trim().startsWith(arguments[0])).closest('.block')"
        ".querySelector('input[type=number], textarea, input');"
        "field.value = arguments[1]; field.dispatchEvent(new Event('input', {bubbles: true}));"
        "field.dispatchEvent(new Event('change', {bubbles: true}));"
        "field.dispatchEvent(new Event('blur', {bubbles: true}))",
        label,
        value,
    )


def status(window, begins, seconds=90):
    window.wait(f"document.querySelector('#status textarea').value.startsWith({json.dumps(begins)})", seconds)


def kept(server):
    return sorted((server.place / "outputs").rglob("2*/*.png"), key=lambda path: path.stat().st_mtime_ns)


def test_from_the_first_word_to_the_picture_drawn_again(server, window):
    window.type("#prompt textarea", "a photo of <du")
    window.wait("!document.querySelector('#completion').hidden")
    window.type("#prompt textarea", ENTER)
    window.wait("document.querySelector('#prompt textarea').value == 'a photo of <me/duck>'")
    window.type("#prompt textarea", " by <you/ink> and <me/nobody>")
    window.wait("(document.querySelector('#prompt-note textarea')?.value ?? '').includes('No concept <me/nobody>')")
    window.wait("document.querySelector('#strengths').innerText.includes('<you/ink>')")
    window.run(
        "const box = document.querySelector('#prompt textarea'); box.value = 'a photo of <me/duck> by <you/ink:0.5>';"
        "box.dispatchEvent(new Event('input', {bubbles: true}))"
    )
    window.wait("!document.querySelector('#prompt-note textarea')")
    put(window, "Images", "2")
    put(window, "Steps", str(FIVE))
    window.type("#prompt textarea", CONTROL + ENTER)
    status(window, "2 images in")
    first = kept(server)[-2]
    recipe = read_recipe(first.read_bytes())
    assert recipe.prompt == "a photo of <me/duck> by <you/ink:0.5>" and recipe.steps == FIVE and recipe.seed != 0

    window.click("#images .thumbnail-item")
    window.wait("(document.querySelector('#recipe textarea')?.value ?? '').includes('<you/ink-v1> 0.5')")
    window.click("#star")
    status(window, "Added to your favourites")
    assert len(list((server.place / "outputs" / "favourites").glob("*.png"))) == 1

    window.click("#variations")
    status(window, "4 images in")
    near = [read_recipe(path.read_bytes()) for path in kept(server)[-4:]]
    assert {(variation.seed, variation.variation_strength) for variation in near} == {(recipe.seed, 0.15)}

    before = len(kept(server))
    window.upload("#settings input[type=file]", first)
    status(window, "Its settings are in the form")
    window.click("#generate")
    window.wait("document.querySelector('#status textarea').value.startsWith('1 image in')", 60)
    assert len(kept(server)) == before + 1
    again, once = (np.asarray(Image.open(path), int) for path in (kept(server)[-1], first))
    assert np.abs(again - once).max() <= 1  # the first was drawn beside another: the kernels' rounding


def test_a_place_is_chosen_and_where_concepts_are_is_shown(server, window):
    window.type("#prompt textarea", "a <me/duck> by <you/ink>")
    window.wait("document.querySelector('#region-0 input')?.value == 'auto'")
    assert not window.run("return !!document.querySelector('#region-1')?.offsetParent")  # a style is everywhere
    window.click("#region-0 input")
    window.wait("document.querySelectorAll('#region-0 [role=option]').length == 10")
    window.run(
        "[...document.querySelectorAll('#region-0 [role=option]')].find(each => each.innerText.trim().endsWith('left'))"
        ".dispatchEvent(new MouseEvent('mousedown', {bubbles: true}))"
    )
    window.wait("document.querySelector('#prompt textarea').value == 'a <me/duck:at=left> by <you/ink>'")
    put(window, "Images", "1")
    put(window, "Steps", str(FIVE))
    window.click("#generate")
    status(window, "1 image in")
    assert all(concept.presence for concept in read_recipe(kept(server)[-1].read_bytes()).concepts)
    window.click("#images .thumbnail-item")
    window.wait("document.querySelector('#show-areas input')")
    window.run("document.querySelector('#show-areas input').click()")
    window.wait("document.querySelector('#areas img')?.naturalWidth == 512")
    window.run("document.querySelector('#show-areas input').click()")
    window.wait("!document.querySelector('#areas img')")


def test_a_start_picture_a_sheet_and_history(server, window, tmp_path):
    picture = tmp_path / "start.png"
    Image.new("RGB", (128, 128), (200, 40, 40)).save(picture)
    window.type("#prompt textarea", "a cat on grass")
    put(window, "Images", "1")
    put(window, "Steps", str(FIVE))
    window.run("document.querySelector('#init-image-box button').click()")
    # The editor's file input is there before its canvas; its buttons come when the canvas can take an image.
    window.wait("document.querySelector('#init-image [aria-label*=lear]')")
    window.upload("#init-image input[type=file]", picture)
    window.wait("!document.querySelector('#init-image .empty')")
    window.click("#generate")
    status(window, "1 image in")
    assert read_recipe(kept(server)[-1].read_bytes()).init_image

    window.run("document.querySelector('#grid-box button').click()")
    window.wait("document.querySelector('#generate-grid')")
    window.run("document.querySelector('#init-image [aria-label*=lear]').click()")
    window.run("document.querySelector('#generate-grid').click()")
    status(window, "A grid of 4 images")
    assert list((server.place / "outputs").rglob("*-sheet.html"))

    window.wait("[...document.querySelectorAll('[role=tab]')].some(tab => tab.innerText == 'History')")
    window.run("[...document.querySelectorAll('[role=tab]')].find(tab => tab.innerText == 'History').click()")
    window.wait("document.querySelectorAll('#history .thumbnail-item').length > 4")


def test_it_fits_a_phone_and_asks_nobody_else(server, window):
    window.resize(390, 844)
    window.run("document.querySelectorAll('.label-wrap').forEach(each => each.click())")
    window.wait("document.querySelector('#generate-grid')")
    assert window.run("return document.documentElement.scrollWidth") <= 390
    unlabelled = window.run(
        "return [...document.querySelectorAll('input:not([type=file]), textarea, select')].filter(each =>"
        "each.offsetParent && !each.closest('label') && !each.getAttribute('aria-label') && !each.labels?.length"
        "&& !each.getAttribute('aria-labelledby')).map(each => each.outerHTML.slice(0, 120))"
    )
    assert unlabelled == []
    assert [address for address in window.requests() if not address.startswith((server.url, "data:", "blob:"))] == []
