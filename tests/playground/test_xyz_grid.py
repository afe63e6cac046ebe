"""Sheets: what their axes say, which requests they become, the picture in each place, and the page."""

import errno
import hashlib
import itertools
import json
import os
import re
import shlex
from dataclasses import replace
from datetime import date
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from conftest import ROOT
from sdpersonal.cli.main import COMMANDS, main
from sdpersonal.cli.parsing import parse_settings
from sdpersonal.concepts.library import Library
from sdpersonal.config import GenerateRequest
from sdpersonal.display.image_grid import labelled_grid as labelled
from sdpersonal.errors import Interrupted, UserError
from sdpersonal.generation import GeneratedImage, Generator
from sdpersonal.image_metadata import Recipe, RecipeBase, read_recipe
from sdpersonal.outputs import Outputs
from sdpersonal.playground.xyz_grid import Axis, CheckpointConcepts, XyzGridRequest, generate_cells, generate_grid
from sdpersonal.playground.xyz_grid.generate_cells import plan_batches
from sdpersonal.playground.xyz_grid.prompt_edits import replace_concept, replace_words, set_strength, set_window
from sdpersonal.playground.xyz_grid.ranges import parse_numbers
from sdpersonal.prompts import ConceptRef, Token, Wildcards, all_prompts, parse
from support.browser import browser, missing
from support.crash import NO_ROOM, REFUSED, calls_made, fail_at
from support.samples import embedding

DUCK = Token("me", "duck")
SMALL = {"steps": 2, "size": "64x64"}


def a_sheet(prompt="a photo of <me/duck>", x="seed: 1..2", **fields) -> XyzGridRequest:
    return XyzGridRequest(prompt=prompt, x=x, **(SMALL | fields))


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    library = Library(tmp_path_factory.mktemp("library"))
    library.add(embedding("<me/duck>", 1))
    library.add(embedding("<me/cat>", 2))
    return library


@pytest.fixture(scope="module")
def generator(tiny, library):
    return Generator(tiny, library)


def outputs_in(folder: Path) -> Outputs:
    return Outputs(folder, today=lambda: date(2026, 1, 31))


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("1, 2, 5", (1, 2, 5)),
        ("1..4", (1, 2, 3, 4)),
        ("4..1", (4, 3, 2, 1)),
        ("0..1 by 0.25", (0, 0.25, 0.5, 0.75, 1)),
        ("0..1 by 0.1", tuple(i / 10 for i in range(11))),
        ("0, 0.25, ..., 1", (0, 0.25, 0.5, 0.75, 1)),
        ("1, 3, …, 9", (1, 3, 5, 7, 9)),
        ("3, 2, ..., 0, 10..12", (3, 2, 1, 0, 10, 11, 12)),
        ("1..2 by 0.4", (1, 1.4, 1.8)),
        ("0, 0.4, ..., 1", (0, 0.4, 0.8, 1)),
        (" .5 , +2, -1.50", (0.5, 2, -1.5)),
        ("4294967295", (4294967295,)),
    ],
)
def test_number_lists_and_ranges_are_parsed(text, wanted):
    assert parse_numbers(text) == wanted and all(
        isinstance(item, int) == (item % 1 == 0) for item in parse_numbers(text)
    )


@given(st.integers(-50, 50), st.integers(0, 60), st.integers(1, 400))
def test_ranges_match_exact_fractions(first, count, step):
    """In hundredths, which floats cannot add up."""
    last = first + count * step
    result = parse_numbers(f"{first / 100:.2f}..{last / 100:.2f} by {step / 100:.2f}")
    assert result == tuple(float(Fraction(first + i * step, 100)) for i in range(count + 1))


NO_LISTS = ["", "a", "1,,2", "1..", "..", "1...3", "0..1 by 0", "0..1 by -1", "1; 2", "1.", "nan", "inf", "1e3"]
NO_LISTS += ["...", "1, ..., 5", "1, 2, ...", "1, 1, ..., 3", "1, 2, ..., a", "0..1e9", "1..1000", "0..1 by 0.0001"]


@pytest.mark.parametrize("text", [*NO_LISTS, "1" * 21, ", ".join("1" * 101)])
def test_invalid_number_lists_are_refused(text):
    with pytest.raises(UserError) as output:
        parse_numbers(text)
    assert len(str(output.value).splitlines()) <= 2


# --- prompts with one thing changed -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "target", "words", "wanted"),
    [
        ("a {} on {}", "{}", "cat", "a cat on cat"),
        ("a cat in a category", "cat", "dog", "a dog in a category"),
        ("a duck by <me/duck>", "duck", "dog", "a dog by <me/duck>"),
        ("a photo of <me/duck:0.5>", "<me/duck:0.5>", "a dog", "a photo of a dog"),
        ("a {samurai|cowboy} here", "{samurai|cowboy}", r"\1 \g<0>", r"a \1 \g<0> here"),
        ("on the beach, beach", "the beach", "snow", "on snow, beach"),
        ("very very red", "very", "", "  red"),
        ("plain", "cat", "dog", "plain"),
    ],
)
def test_replace_words_replaces_only_whole_words(prompt, target, words, wanted):
    assert replace_words(prompt, target, words) == wanted


TOKENS = ["me/duck", "duck", "me/duck-v2", "ME/Duck", "me/cat", "you/duck"]
MEANT = {"me/duck", "duck", "me/duck-v2", "ME/Duck"}
parts = st.tuples(st.sampled_from(TOKENS), st.sampled_from(["", ":0.3", ":1.5", ":-2", ":+1", ":-1e+0"]))
options = st.sampled_from(["", ":at=left", ":in=+0.5:guidance=2", ":lbw=OUTS:ramp=0-1", ":box=0,0,1,1e-1"])
brackets = st.builds(
    lambda part, options, window: f"<{part[0]}{part[1]}{options}{window}>",
    parts,
    options,
    st.sampled_from(["", "@0-0.6", "@0.4-1"]),
)
blends = st.sampled_from(
    [
        "<me/duck+me/cat>",
        "<me/cat:0.3+me/duck:0.7@0-0.5>",
        "<me/duck:1+me/cat:0.2+you/owl:0.1>",
        "<me/duck:ramp=0-1+me/cat:at=left>",
        "<me/cat:0.3:in=+1e-1+me/duck:0.7:guidance=2@0-0.5>",
    ]
)
prompts = st.lists(brackets | blends | st.sampled_from(["a photo", "(in snow:1.2)", "a < b", r"\<me/duck"]), min_size=1)


@given(prompts, st.sampled_from([0, 0.25, 1, 2]))
def test_set_strength_changes_only_the_given_concept(pieces, strength):
    """The prompt's own reader is the judge."""
    prompt = ", ".join(pieces)
    before, after = (parse(text) for text in (prompt, set_strength(prompt, DUCK, strength)))
    assert len(before.mentions) == len(after.mentions)
    for old, new in zip(before.mentions, after.mentions, strict=True):
        meant = str(old.token)[1:-1] in MEANT
        assert new.strength == pytest.approx(strength if meant else old.strength, rel=1e-5)
        assert replace(new, strength=old.strength) == old
    for old, new in zip(before.pieces, after.pieces, strict=True):
        assert old == new or replace(new, parts=old.parts) == old


@given(prompts)
def test_set_window_changes_only_the_given_concept(pieces):
    prompt = ", ".join(pieces)
    before, after = (parse(text).pieces for text in (prompt, set_window(prompt, DUCK, "0.1-0.7")))
    for old, new in zip(before, after, strict=True):
        if isinstance(old, ConceptRef) and any(str(part.token)[1:-1] in MEANT for part in old.parts):
            assert new == replace(old, start=0.1, end=0.7)
        else:
            assert new == old


@given(prompts)
def test_replace_concept_keeps_strength_and_window(pieces):
    prompt = ", ".join(pieces)
    before, after = (parse(text).pieces for text in (prompt, replace_concept(prompt, DUCK, "<you/fox>")))
    for old, new in zip(before, after, strict=True):
        if isinstance(old, ConceptRef):
            fox, is_meant = Token("you", "fox"), [str(part.token)[1:-1] in MEANT for part in old.parts]
            parts = [
                replace(part, token=fox) if meant else part for part, meant in zip(old.parts, is_meant, strict=True)
            ]
            assert new == replace(old, parts=tuple(parts))
        else:
            assert new == old


def test_concepts_of_an_axis_accept_commas_in_their_options():
    axis = Axis.parse("concept <me/duck>: <me/cat:box=0,0,0.5,1>, a toy duck, <me/fox:lbw=1,0,0,0,0,0,0,0,0,0,0,0>")
    prompts = [axis.apply({"prompt": "<me/duck:0.8:at=left>"}, value)["prompt"] for value in axis.values]
    assert prompts == [
        "<me/cat:0.8:box=0,0,0.5,1>",
        "a toy duck",
        "<me/fox:0.8:at=left:lbw=1,0,0,0,0,0,0,0,0,0,0,0>",
    ]


def test_replace_concept_prefers_the_new_concepts_own_strength():
    assert replace_concept("<me/duck:0.5@0-1>", DUCK, "<me/cat:0.9>") == "<me/cat:0.9@0-1>"
    assert replace_concept("(<me/duck:0.5@0-1>:1.2)", DUCK, "a toy duck") == "(a toy duck:1.2)"


@pytest.mark.parametrize(
    ("edit", "prompt", "expected"),
    [
        (lambda p: set_strength(p, DUCK, 0.5), "<me/duck:at=left>", "<me/duck:0.5:at=left>"),
        (lambda p: set_strength(p, DUCK, 0.5), "<me/duck:1:in=0.2@0-1>", "<me/duck:0.5:in=0.2@0-1>"),
        (
            lambda p: set_strength(p, DUCK, 1),
            "<me/duck:ramp=0-1+me/cat:at=left>",
            "<me/duck:1:ramp=0-1+me/cat:0.5:at=left>",
        ),
        (lambda p: set_strength(p, DUCK, 1), "<me/duck:{0.2|0.7}:at=left>", "<me/duck:1:at=left>"),
        (lambda p: set_strength(p, DUCK, 1), "<me/duck:0.2:at={top|left}>", "<me/duck:1:at={top|left}>"),
        (lambda p: set_window(p, DUCK, "0-0.5"), "<me/duck:0.8:at=left:in=0>", "<me/duck:0.8:at=left:in=0@0-0.5>"),
        (lambda p: replace_concept(p, DUCK, "<me/fox>"), "<me/duck:0.8:at=left@0-1>", "<me/fox:0.8:at=left@0-1>"),
        (
            lambda p: replace_concept(p, DUCK, "<me/fox:box=0,0,1,1:out=0>"),
            "<me/duck:0.8:at=left:lbw=OUTS:ramp=0-1>",
            "<me/fox:0.8:ramp=0-1:box=0,0,1,1:out=0>",
        ),
        (
            lambda p: replace_concept(p, DUCK, "<me/fox+me/cat>"),
            "<me/duck:at=left:in=0>",
            "<me/fox:at=left:in=0+me/cat:in=0>",
        ),
        (lambda p: replace_words(p, "left", "right"), "left of <me/duck:at=left>", "right of <me/duck:at=left>"),
    ],
)
def test_prompt_edits_keep_the_options(edit, prompt, expected):
    assert edit(prompt) == expected
    assert all(map(parse, all_prompts(expected, Wildcards(None))))


# --- axes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind", "target", "values", "first_label"),
    [
        ("seed: 1..3", "seed", "", (1, 2, 3), "seed 1"),
        ("seeds: 18446744073709551615", "seed", "", (2**64 - 1,), "seed 18446744073709551615"),
        ("variation-seed: 1", "variation_seed", "", (1,), "variation seed 1"),
        ("near-seed: 1", "variation_seed", "", (1,), "variation seed 1"),
        ("change: 0.5", "strength", "", (0.5,), "strength 0.5"),
        ("guidance: 1, 3, ..., 7", "guidance", "", (1, 3, 5, 7), "guidance 1"),
        ("steps: 4", "steps", "", (4,), "steps 4"),
        ("size: 64x64, 128x64", "size", "", ("64x64", "128x64"), "size 64x64"),
        ("negative: a cat, red|", "negative", "", ("a cat, red", ""), "negative a cat, red"),
        ("fast: none, <me/lcm>", "fast", "", (None, "<me/lcm>"), "fast none"),
        ("prompts: a {b|c}: 1|<d>", "prompt", "", ("a {b|c}: 1", "<d>"), "a {b|c}: 1"),
        ("words: samurai|cowboy|", "words", "{}", ("samurai", "cowboy", ""), "samurai"),
        ("words {2::a|b}: x|y", "words", "{2::a|b}", ("x", "y"), "x"),
        ("words {2::a|b {c|d}}", "words", "{2::a|b {c|d}}", ("a", "b c", "b d"), "a"),
        ("word beach: |snow", "words", "beach", ("", "snow"), "(nothing)"),
        ("strength <me/duck>: 0..1 by .5", "concept_strength", "<me/duck>", (0, 0.5, 1), "<me/duck:0>"),
        ("strength <me/duck>: -2..2", "concept_strength", "<me/duck>", (-2, -1, 0, 1, 2), "<me/duck:-2>"),
        ("strength <duck>: \u22121, -.5, ..., .5", "concept_strength", "<duck>", (-1, -0.5, 0, 0.5), "<duck:-1>"),
        ("window <duck>: 0-1, 0.4 - 1", "window", "<duck>", ("0-1", "0.4-1"), "<duck@0-1>"),
        ("concept <me/duck>: <me/cat>, a toy", "concept", "<me/duck>", ("<me/cat>", "a toy"), "<me/cat>"),
        ("Concept <me/duck>: a, b|c", "concept", "<me/duck>", ("a, b", "c"), "a, b"),
    ],
)
def test_axes_are_parsed(text, kind, target, values, first_label):
    axis = Axis.parse(text)
    assert (axis.kind, axis.target, axis.values) == (kind, target, values)
    assert axis.label(values[0]) == first_label


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"x": "seed"}, "does not say what to change"),
        ({"x": ""}, "x is empty"),
        ({"x": "colour: red"}, "A grid cannot change colour"),
        ({"x": "n: 1..3"}, "A grid cannot change n"),
        ({"x": "start: a.png"}, "A grid cannot change start"),
        ({"x": "seed <me/duck>: 1"}, "seed is followed by a colon"),
        ({"x": "window: 0-1"}, "window needs the concept"),
        ({"x": "strength: 1, 2"}, "strength must be a number above 0, up to 1"),
        ({"x": "strength <Me/Düc>: 1"}, "is not a concept's token"),
        ({"x": "strength <me/fox>: 1"}, "There is no <me/fox> in the prompt"),
        ({"x": "strength <me/duck>: 1, 6"}, "must be a number from -5 to 5"),
        ({"x": "strength <me/duck>: -5.5, 1"}, "must be a number from -5 to 5"),
        ({"x": "window <me/duck>: 0.5"}, "not a part of the sampling"),
        ({"x": "window <me/duck>: 0.5-0.2"}, "the smaller first"),
        ({"x": "words: a|b"}, "There is no {} in the prompt"),
        ({"x": "words cats: a|b"}, "There is no cats in the prompt"),
        ({"prompt": "a {} on {}", "x": "words: a|b", "y": "words: c|d"}, "Two axes change words {}"),
        ({"x": "seed: 1, 2", "y": "seeds: 3"}, "Two axes change seed"),
        ({"prompt": "a {}"}, "no axis fills it"),
        ({"x": "seed: 1.5"}, "seed must be a whole number"),
        ({"x": "seed: -1"}, "seed must be a whole number"),
        ({"x": "seed: 18446744073709551616"}, "seed must be a whole number"),
        ({"x": "steps: 0..3"}, "steps must be a whole number from 1 to 150"),
        ({"x": "size: 63x64"}, "size must be WIDTHxHEIGHT"),
        ({"x": "fast: no token"}, "is not a concept's token"),
        ({"x": "prompt: a|b <"}, None),
        ({"x": "prompt: a|<b"}, None),
        ({"x": "seed: 1..60", "y": "guidance: 1..20"}, "1,200 images; up to 1000 are allowed"),
        ({"x": "seed: 1..100", "y": "steps: 100, 150", "size": "2048x2048"}, "times the work that is allowed at once"),
        ({"x": "checkpoint: runs/nothing"}, "holds no checkpoint"),
        ({"x": "seed: 1..2", "num_images": 3}, "num_images is not a setting"),
        ({"prompt": "x" * 2001}, "prompt must be"),
        ({"x": "words photo: " + "y" * 2000}, "the limit is 2,000"),
        ({"x": "\x1b[31m]: 1"}, "holds the control character U+001B"),
    ],
)
def test_an_invalid_grid_is_refused_with_a_short_message(fields, said):
    if said is None:
        assert len(a_sheet(**fields).cells) == 2
        return
    with pytest.raises(UserError, match=re.escape(said)) as output:
        a_sheet(**fields)
    assert len(str(output.value).splitlines()) <= 2 and "\x1b" not in str(output.value)


def test_cells_are_all_combinations_in_z_y_x_order():
    result = a_sheet(
        "{} of <me/duck> {where}",
        "words: a photo|art",
        y="strength <me/duck>: 0, 0.5, 1",
        z="words {where}: on a hill|in space",
        guidance=2.0,
    )
    assert result.shape == (2, 3, 2) and len(result.cells) == 12
    expected = itertools.product(("on a hill", "in space"), ("0", "0.5", "1"), ("a photo", "art"))
    prompts = [f"{what} of <me/duck:{strength}> {where}" for where, strength, what in expected]
    assert [cell.request.prompt for cell in result.cells] == prompts
    places = [(x, y, z) for z, y, x in itertools.product(range(2), range(3), range(2))]
    assert [(cell.x, cell.y, cell.z) for cell in result.cells] == places
    assert {(x.request.num_images, x.request.guidance, x.request.steps) for x in result.cells} == {(1, 2.0, 2)}
    assert result.labels("x") == ["a photo", "art"] and result.labels("z") == ["on a hill", "in space"]


def test_a_grid_compares_composition_and_plain_mixing():
    grid = XyzGridRequest(prompt="<duck> {}", x="compose: yes, no", y="words: a|b", compose=False)
    assert [cell.request.compose for cell in grid.cells] == [True, False] * 2
    assert grid.labels("x") == ["compose yes", "compose no"]
    grid = XyzGridRequest(prompt="<duck>", x="seed: 1..2", compose=False)
    assert not any(cell.request.compose for cell in grid.cells)
    with pytest.raises(UserError, match="compose must be"):
        XyzGridRequest(prompt="a", x="compose: yes, perhaps")


def test_axes_apply_in_a_fixed_order_on_any_side():
    """Whichever side they are on: whole prompts first, then words, then what stands in them, then other concepts."""
    sides = ["strength <me/duck>: 0.5", "concept <me/duck>: <me/cat>, <me/fox>", "prompt: a <me/duck>|art"]
    for order in itertools.permutations(sides):
        result = XyzGridRequest(prompt="nothing", **dict(zip("xyz", order, strict=True)))
        assert {cell.request.prompt for cell in result.cells} == {"a <me/cat:0.5>", "a <me/fox:0.5>", "art"}
    with pytest.raises(UserError, match="no axis fills it"):
        a_sheet(x="prompt: a|b {}")


# --- drawing ----------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=20), st.sampled_from([None, 0.1]))
def test_consecutive_seeds_share_one_batch_request(seeds, near):
    kind = "seed" if near is None else "near-seed"
    cells = a_sheet(x=f"{kind}: {', '.join(map(str, seeds))}", y="words photo: photo|map|photo", near=near).cells
    result = plan_batches(cells)
    recorded = []
    for batch in result:
        assert batch.request.num_images == len(batch.cells)
        for i, shown_by in enumerate(batch.cells):
            count = {"seed": i} if near is None else {"variation_seed": i}
            for cell in shown_by:
                moved = {name: getattr(batch.request, name) + i for name in count}
                assert cell.request == batch.request.model_copy(update=moved | {"num_images": 1})
                recorded.append(cell)
    assert sorted(recorded, key=lambda c: (c.y, c.x)) == list(cells)
    runs = sum(seed - 1 not in seeds for seed in set(seeds))
    assert len(result) == 2 * runs  # photo stands there twice, and is drawn once


def test_each_cell_shows_the_image_of_its_request(generator):
    result = a_sheet("a {photo|map} of <me/duck> {}", "seed: 3, 4, 9", y="words: |in snow", guidance=2.0)
    displayed = {(cell.x, cell.y): image for cells, image in generate_cells(generator, result.cells) for cell in cells}
    assert len(displayed) == 6
    for cell in result.cells:
        (alone,) = generator.generate(cell.request)
        image = displayed[cell.x, cell.y]
        assert image.recipe.request() == alone.recipe.request() and image.recipe.template == alone.recipe.template
        apart = np.abs(np.asarray(image.image, np.int16) - np.asarray(alone.image, np.int16))
        assert apart.max() <= 1  # another batch


def test_progress_counts_pixel_steps_up_to_the_total(generator):
    output = []
    result = a_sheet(x="steps: 1, 3", y="seed: 1, 2")
    list(generate_cells(generator, result.cells, lambda done, total: output.append((done, total))))
    pixels = 64 * 64
    assert output[0] == (2 * pixels, 8 * pixels) and output[-1] == (8 * pixels, 8 * pixels)
    assert [done for done, _ in output] == sorted(done for done, _ in output)


# --- what is kept -----------------------------------------------------------------------------------------------------

HOSTILE = r"\</span>\<script>window.PWNED=1\</script>\"\'>\<img src=x onerror=window.PWNED=1>"


def content(folder: Path) -> dict[str, bytes]:
    result = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in result.items() if not Path(name).name.startswith(".")}


@pytest.fixture(scope="module")
def drawn(generator, tmp_path_factory):
    """A sheet of 2 x 2 x 2 with a hostile word in it, and its folder."""
    words = HOSTILE + "|\u202e\\{\\{ 7*7 \\}\\} it"
    result = a_sheet("a photo of <me/duck> {}", y=f"words: {words}", z="strength <me/duck>: 0.5, 1")
    folder = tmp_path_factory.mktemp("drawn")
    return result, folder, generate_grid(result, generator, outputs_in(folder))


def test_two_runs_save_the_same_images_grids_and_page(drawn, generator, tmp_path):
    result, folder, saved = drawn
    names = set(content(folder))
    assert (
        len(saved.images) == 8
        and len([name for name in names if re.search(r"/0000[1-8]-[0-9a-f]{8}\.png$", name)]) == 8
    )
    assert {path.name for path in (*saved.grids, saved.page)} == {
        "00001-sheet.png",
        "00001-sheet-2.png",
        "00001-sheet.html",
    }
    assert len(names) == 11
    generate_grid(result, generator, outputs_in(tmp_path))
    assert content(tmp_path) == content(folder)


def test_every_saved_image_has_its_recipe(drawn):
    result, folder, _ = drawn
    recipes = [read_recipe(data) for name, data in content(folder).items() if "-sheet" not in name]
    assert all(isinstance(recipe, Recipe) for recipe in recipes)
    expected = {(cell.request.prompt, cell.request.seed) for cell in result.cells}
    assert {(recipe.prompt, recipe.seed) for recipe in recipes} == expected


def test_the_labelled_grid_shows_each_image_in_its_cell(drawn):
    result, folder, saved = drawn
    by_request = {}
    for name, data in content(folder).items():
        if "-sheet" not in name:
            recipe = read_recipe(data)
            by_request[recipe.prompt, recipe.seed] = np.asarray(Image.open(folder / name).convert("RGB"))
    for z, path in enumerate(saved.grids):
        page = np.asarray(Image.open(path).convert("RGB").copy(), np.int16)
        tile = 96  # the least: 64 pixels would leave no room for labels
        for cell in (cell for cell in result.cells if cell.z == z):
            image = Image.fromarray(by_request[cell.request.prompt, cell.request.seed]).resize((tile, tile), 1)
            left = page.shape[1] - (2 - cell.x) * (tile + 6)
            top = page.shape[0] - (2 - cell.y) * (tile + 6)
            there = page[top : top + tile, left : left + tile]
            assert np.abs(there - np.asarray(image, np.int16)).mean() < 0.01


def test_an_interrupted_grid_saves_its_finished_images(generator, tmp_path):
    steps = []
    with pytest.raises(Interrupted, match="2 of 4 images are in the grid"):
        generate_grid(
            a_sheet(y="words photo: photo|map"),
            generator,
            outputs_in(tmp_path),
            progress=lambda done, total: steps.append(done),
            cancelled=lambda: len(steps) == 3,
        )
    day = tmp_path / "2026-01-31"
    assert len(list(day.glob("0000?-????????.png"))) == 2
    page = (day / "00001-sheet.html").read_text()
    assert page.count("<img ") - 1 == 2 and page.count('class="empty"') == 2 and "2 not drawn" in page
    assert (day / "00001-sheet.png").exists()


def test_a_grid_stopped_before_its_first_image_saves_nothing(generator, tmp_path):
    with pytest.raises(Interrupted):
        generate_grid(a_sheet(), generator, outputs_in(tmp_path), cancelled=lambda: True)
    with pytest.raises(UserError, match="<me/owl>"):
        generate_grid(a_sheet("<me/owl>"), generator, outputs_in(tmp_path))
    assert content(tmp_path) == {}


def test_a_private_grid_saves_no_recipe(generator, tmp_path):
    generate_grid(a_sheet("a secret", x="seed: 7"), generator, outputs_in(tmp_path), private=True)
    for name, data in content(tmp_path).items():
        if name.endswith("-sheet.html"):
            assert b"<dt>Prompt" not in data and b"<dt>File" in data
        elif "-sheet" not in name:
            with pytest.raises(UserError, match="holds no recipe"):
                read_recipe(data)


class Painter:
    """Paints in no time what the request alone decides: here the question is what is on the disk."""

    def generate(self, request, progress, cancelled):
        digest = hashlib.sha256(request.model_dump_json().encode()).digest()
        facts = {"steps": 2, "guidance": 1.0, "size": "64x64", "sampler": "DDIM", "sdpersonal": "0"}
        recipe = Recipe(
            **facts, prompt=request.prompt, seed=1, base=RecipeBase(name="tiny", kind="tiny", sha256="0" * 64)
        )
        yield GeneratedImage(Image.frombytes("RGB", (4, 2), digest[:24]), recipe)


def test_a_full_disk_leaves_no_partial_image(tmp_path):
    """Full at the n-th thing that is done to the disk, for every third n."""
    result = a_sheet("a {}", x="words: cat|dog|owl")
    full = tmp_path / "whole"
    calls = calls_made(lambda: generate_grid(result, Painter(), outputs_in(full)))
    assert calls > 20
    for n in range(1, calls + 1, 3):
        folder = tmp_path / str(n)
        ended = fail_at(n, errno.ENOSPC, lambda folder=folder: generate_grid(result, Painter(), outputs_in(folder)))
        assert ended in (NO_ROOM, REFUSED)  # refused: kept, but a loss of power may undo it
        for name, data in content(folder).items():
            assert data == (full / name).read_bytes() or "-sheet" in name  # a sheet may have empty places


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_data(self, data):
        self.words.append(data.strip())


def test_text_on_the_grid_page_is_escaped(drawn):
    _, folder, saved = drawn
    read = Page(saved.page.read_text())
    known = {"html", "meta", "title", "style", "header", "h1", "ul", "li", "p", "span", "label", "input", "section"}
    known |= {
        "h2",
        "table",
        "thead",
        "tbody",
        "tr",
        "td",
        "th",
        "button",
        "img",
        "dl",
        "dt",
        "dd",
        "dialog",
        "div",
        "script",
    }
    assert set(read.tags) <= known and read.tags.count("script") == 1 and read.tags.count("section") == 2
    assert not [item for item in read.attributes if item[1].startswith("on") or item[1] in ("href", "action", "style")]
    sources = [value for _, name, value in read.attributes if name == "src"]
    assert len(sources) == 8 and all(value.startswith("data:image/webp;base64,") for value in sources)
    assert "<me/duck:0.5>" in read.words and "seed 1" in read.words
    assert not [secret for secret in (str(folder), str(Path.home()), os.getcwd()) if secret in saved.page.read_text()]


def test_small_images_are_embedded_losslessly_in_the_page(drawn):
    import base64
    import io

    _, folder, saved = drawn
    embedded = re.findall(r'src="data:image/webp;base64,([^"]+)"', saved.page.read_text())
    displayed = {
        np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).tobytes() for data in embedded
    }
    kept_pixels = {
        np.asarray(Image.open(path).convert("RGB")).tobytes() for path in folder.glob("*/0000?-????????.png")
    }
    assert displayed == kept_pixels


@pytest.mark.slow
def test_the_grid_page_works_in_a_browser(drawn, tmp_path):
    if missing():
        pytest.skip(missing())
    result, _, saved = drawn
    with browser(tmp_path) as window:
        window.open(saved.page.as_uri())
        assert window.run("return window.PWNED ?? null") is None
        assert [url for url in window.requests() if not url.startswith("data:")] == []
        assert window.run("return [...document.images].filter(i => i.naturalWidth == 64).length") == 8
        window.run("document.querySelectorAll('td > button')[5].click()")
        assert window.run("return document.getElementById('view').open") is True
        assert window.run("return document.getElementById('large').naturalWidth") == 64
        cell = result.cells[5]
        output = window.text("#facts")
        assert cell.request.prompt in output and f"Seed\n{cell.request.seed}" in output and "embedding" not in output
        labels = [result.labels("x")[cell.x], result.labels("y")[cell.y], result.labels("z")[cell.z]]
        assert window.text("#where") == ", ".join(labels)
        window.click("#after")
        assert result.cells[6].request.prompt in window.text("#facts")
        window.click("#close")
        assert window.run("return document.getElementById('view').open") is False
        window.resize(700, 500)
        window.run("document.documentElement.style.setProperty('--tile', '400px'); scrollTo(300, 400)")
        assert window.run("return document.querySelector('thead th').getBoundingClientRect().top") == 0
        assert window.run("return document.querySelector('tbody th').getBoundingClientRect().left") == 0


# --- labels -----------------------------------------------------------------------------------------------------------


def test_long_labels_are_wrapped_and_truncated():
    square = Image.new("RGB", (64, 64), (200, 30, 30))
    plain = labelled([[square] * 2] * 2, ["a", "b"], ["c", "d"], 96)
    long = labelled(
        [[square] * 2] * 2, ["a" * 500, "b c " * 200], ["<me/a-very-long-name-of-it:0.25@0-1>", "e"], 96, "t " * 300
    )
    assert long.width == plain.width and long.height > plain.height
    tiles = np.asarray(long)[-2 * 102 :, -2 * 102 :]
    assert np.array_equal(tiles, np.asarray(plain)[-2 * 102 :, -2 * 102 :])  # no letter runs into a picture
    assert (np.asarray(long)[:, :6] == 255).all() and (np.asarray(long)[:, -6:] == 255).all()


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_sheet_command_generates_a_grid_and_prints_its_path(library, tmp_path, capsys):
    command = ["sheet", "a photo of <me/duck>", "--x", "seed: 1..2", "--y", "strength <me/duck>: 0, 1"]
    command += ["--base", "tiny", "--steps", "2", "--size", "64x64", "--library", str(library.folder)]
    assert main([*command, "--out", str(tmp_path)]) == 0
    message = capsys.readouterr().out.splitlines()
    assert message[-2].endswith("00001-sheet.png") and message[-1].endswith("00001-sheet.html")
    assert Path(message[-1]).exists() and len(list(tmp_path.glob("*/0000?-????????.png"))) == 4
    assert "a photo of" in (tmp_path / "index.html").read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--x", "colour: red"], "A grid cannot change"), (["--x", "seed: 1", "--n", "2"], "--n")],
)
def test_the_sheet_command_refuses_invalid_options(options, said, capsys):
    try:
        code = main(["sheet", "a cat", *options])
    except SystemExit as end:
        code = end.code
    err = capsys.readouterr().err
    assert code == 2 and said in err and "Traceback" not in err


def test_every_cell_request_is_a_valid_generate_request(library):
    for cell in a_sheet(y="window <me/duck>: 0-1, 0.4-1", z="concept <me/duck>: <me/cat>, duck").cells:
        assert GenerateRequest(**json.loads(cell.request.model_dump_json())) == cell.request


# --- checkpoints of a run ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def a_run(tiny, root, tmp_path_factory):
    """Runs of four steps without pictures, by method: what is asked is which numbers stand where."""
    from sdpersonal.config import DreamboothSettings, TextualInversionSettings
    from sdpersonal.training import run, train

    def taught(method):
        place = tmp_path_factory.mktemp(method)
        common = {"photos": root / "examples" / "photos" / "teddy-bear", "token": "<me/teddy>", "base": "tiny"}
        common |= {"steps": 4, "batch": 1, "resolution": 64, "save_every": 2, "samples": False, "early_stop": False}
        common |= {"library": place / "concepts", "run": place / "run", "lr": 0.02}
        if method == "inversion":
            settings = TextualInversionSettings(**common, init="bear", vectors=2)
        else:
            settings = DreamboothSettings(**common, class_noun="bear", rank=2, method=method)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run, "load_base", lambda *_, **__: tiny)
            train(settings, log=lambda line: None)
        return place

    return taught


@pytest.mark.parametrize("method", ["inversion", pytest.param("lora", marks=pytest.mark.thorough)])
def test_the_last_checkpoint_equals_the_trained_concept(a_run, tiny, method):
    place = a_run(method)
    result = XyzGridRequest(prompt="a <me/teddy:0.5> here", x=f"checkpoint: {place / 'run'}", **SMALL)
    assert [cell.request.prompt for cell in result.cells] == [f"a <me/teddy-step-{n}:0.5> here" for n in (2, 4)]
    assert result.labels("x") == ["step 2", "step 4"]
    library = Library(place / "concepts")
    left = library.get(Token.parse("<me/teddy>"))
    concepts = CheckpointConcepts(library, result.runs[0], tiny)
    first, last = (concepts.get(Token.parse(f"<me/teddy-step-{n}>")) for n in (2, 4))
    assert last.identity == left.identity != first.identity
    assert last.card.class_noun == left.card.class_noun and last.card.base == left.card.base
    assert concepts.get(Token.parse("<me/teddy>")).identity == left.identity
    images = [image for _, image in generate_cells(Generator(tiny, concepts), result.cells)]
    assert [image.recipe.concepts[0].sha256 for image in images] == [first.identity, last.identity]
    request = GenerateRequest(prompt="a <me/teddy:0.5> here", num_images=1, **SMALL)
    (as_left,) = Generator(tiny, library).generate(request)
    assert images[1].image.tobytes() == as_left.image.tobytes() != images[0].image.tobytes()
    if method == "inversion":
        _check_what_is_wrong_with_runs(place / "run", tiny)


def _check_what_is_wrong_with_runs(folder, tiny):
    def told(change):
        manifest = folder / "step-000004" / "manifest.json"
        before = manifest.read_text()
        manifest.write_text(json.dumps(change(json.loads(before))))
        try:
            result = XyzGridRequest(prompt="<me/teddy>", x=f"checkpoint: {folder}")
            CheckpointConcepts(Library(folder), result.runs[0], tiny)
        except UserError as error:
            return str(error)
        finally:
            manifest.write_text(before)

    assert "another base" in told(lambda facts: facts | {"run": facts["run"] | {"base": "other"}})
    assert "whole model" in told(lambda facts: facts | {"run": facts["run"] | {"method": "dreambooth-full"}})
    for damage in ({"sha256": {"state.safetensors": "0" * 64}}, {"sha256": {"../x": "0"}}, {"run": []}, {"sha256": 3}):
        assert "step-000004 is damaged" in told(lambda facts, damage=damage: facts | damage)
    with pytest.raises(UserError, match="There is no <me/teddy> in the prompt"):
        XyzGridRequest(prompt="a cat", x=f"checkpoint: {folder}")


# --- what the documentation says --------------------------------------------------------------------------------------


def documented() -> list[list[str]]:
    text = (ROOT / "docs" / "playing.md").read_text()
    return [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("    sdpersonal ")]


@pytest.mark.parametrize("command", documented(), ids=" ".join)
def test_documented_commands_are_parsed(command):
    _, settings = COMMANDS[command[0]]
    assert parse_settings(settings, command[1:], "sdpersonal")


def test_documented_axes_are_parsed():
    text = (ROOT / "docs" / "playing.md").read_text()
    axes = [cell.replace("\\|", "|") for cell in re.findall(r"^\| `([^`]+:?[^`]*)` \|", text, re.MULTILINE)]
    axes = [text for text in axes if not text.startswith(("--", "checkpoint"))]
    assert len(axes) >= 9 and all(Axis.parse(text).values for text in axes)


PIECES = ["seed", "words", "strength", "window", "concept", "checkpoint", "size", "fast", "near", "prompt", "<me/duck>"]
PIECES += [
    ":",
    ": ",
    " ",
    "|",
    ",",
    "..",
    "...",
    "0-1",
    "1",
    "0.5",
    "9" * 15,
    "{}",
    "{",
    "}",
    "<",
    ">",
    "{a|b}",
    "\0",
    "/",
]
PIECES += [
    "\u202e",
    "e5",
    "-",
    "by",
    "\\",
    "(",
    ")",
    "__x__",
    "${",
    "2$$",
    "::",
    "@",
    "+",
    "a",
    "photo",
    "\ud800",
    "\n",
]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join) | st.text(max_size=20))
def test_any_axis_text_is_parsed_or_refused(text):
    for fields in ({"x": text}, {"x": "seed: 1", "y": text, "prompt": "a <me/duck:0.5+me/cat:0.2@0-1> {} {a|b}"}):
        try:
            result = a_sheet(**fields)
        except UserError as error:
            lines = str(error).split("\n")
            assert len(lines) <= 2 and all(line.isprintable() for line in lines)
        else:
            assert len(result.cells) == np.prod(result.shape) == len({(c.x, c.y, c.z) for c in result.cells})
            assert all(label.isprintable() for side in "xyz" for label in result.labels(side))
