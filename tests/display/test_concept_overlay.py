"""Where concepts are, drawn over an image: seen in the pixels."""

import numpy as np
import pytest
from PIL import Image

from sdpersonal.cli.main import main
from sdpersonal.display.concept_overlay import _COLOURS, ConceptArea, draw_concept_areas
from sdpersonal.errors import UserError
from sdpersonal.generation.image import GeneratedImage
from sdpersonal.image_metadata import Recipe

GREY = Image.new("RGB", (600, 400), (120, 120, 120))
LEFT, RIGHT = "f" + "0" * 63, "0" * 63 + "f"
RECIPE = {
    "sdpersonal": "0.1.0",
    "prompt": "<me/duck>",
    "seed": 1,
    "steps": 2,
    "guidance": 3.0,
    "size": "64x64",
    "sampler": "DDIM",
    "base": {"name": "tiny", "kind": "tiny", "sha256": "a" * 64},
}


def pixels(areas, image=GREY):
    return np.asarray(draw_concept_areas(image, areas)).astype(int)


def of_colour(drawn, number):
    """Where exactly this colour is, as (rows, columns)."""
    return np.nonzero((drawn == _COLOURS[number]).all(-1))


def test_each_concept_is_marked_with_its_colour_in_its_area():
    areas = [ConceptArea("<me/duck>", (0.25, 0.5, 0.75, 0.9), LEFT), ConceptArea("<me/fox>", (0, 0, 1, 1), RIGHT)]
    drawn, without = pixels(areas), pixels([ConceptArea(area.label, area.box) for area in areas])
    for number, (y, x) in enumerate(((40, 20), (390, 590))):  # in the hot corners
        tint, towards = drawn[y, x] - without[y, x], np.array(_COLOURS[number]) - without[y, x]
        assert tint @ towards / np.linalg.norm(tint) / np.linalg.norm(towards) > 0.98
    assert np.abs(drawn[150, 300] - without[150, 300]).max() == 0
    rows, columns = of_colour(without, 0)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (200, 359, 150, 449)


def test_a_small_image_is_enlarged_and_a_large_one_is_not():
    assert draw_concept_areas(Image.new("L", (64, 128)), []).size == (256, 512)
    assert draw_concept_areas(GREY, []).size == GREY.size


@pytest.mark.parametrize("box", [(0, 0, 1, 1), (0.9, 0.9, 1, 1), (0, 0.98, 0.1, 1), (0.4, 0.45, 0.42, 0.47)])
def test_all_labels_stay_visible_beside_each_other(box):
    areas = [ConceptArea(f"<me/concept-{number}>", box) for number in range(6)]
    drawn = pixels(areas)
    alone = [len(of_colour(pixels([ConceptArea(area.label, box)]), 0)[0]) for area in areas]
    outline = len(of_colour(pixels([ConceptArea("", box)]), 0)[0])
    for number in range(6):
        assert len(of_colour(drawn, number)[0]) > 0.8 * (alone[number] - outline)


def test_long_and_hostile_labels_are_accepted():
    areas = [ConceptArea("<" + "x" * 500 + ">", (0.5, 0.5, 1, 1)), ConceptArea("\u202e\n<b>\x00", (0, 0, 0.5, 0.5))]
    assert draw_concept_areas(GREY, areas).size == GREY.size


def test_an_image_without_presence_data_has_no_overlay():
    concept = {"token": "<me/duck-v1>", "sha256": "b" * 64}
    with pytest.raises(UserError, match="not known"):
        GeneratedImage(GREY, Recipe(**RECIPE, concepts=[concept])).concept_overlay()
    presence = {"share": 1, "box": [0, 0, 0.5, 0.5], "overlap": 0}
    known = GeneratedImage(GREY, Recipe(**RECIPE, concepts=[concept, concept | {"presence": presence}]))
    assert known.concept_overlay().size == GREY.size and not isinstance(known.concept_overlay(), GeneratedImage)


def test_the_areas_command_saves_the_overlay_and_prints_the_areas(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    presence = {"share": 0.75, "box": [0, 0, 0.5, 0.5], "overlap": 0.25}
    concepts = [{"token": f"<me/{name}-v1>", "sha256": "b" * 64, "presence": presence} for name in ("duck", "fox")]
    known = GeneratedImage(GREY, Recipe(**RECIPE, concepts=concepts))
    known.save("mix.png")
    assert main(["outputs", "areas", "mix.png", "--to", "seen"]) == 0
    with Image.open("seen/mix-areas.png") as image:
        assert np.array_equal(np.asarray(image), np.asarray(known.concept_overlay())) and image.info == {}
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "<me/duck-v1> 75%, 0% to 50% across, 0% to 50% down, 25% of it in another"
    assert said[-1] == "seen/mix-areas.png" and len(said) == 3


def test_the_areas_command_refuses_images_without_presence_data(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    GeneratedImage(GREY, Recipe(**RECIPE)).save("plain.png")
    GREY.save("foreign.png")
    for name, message in (("plain", "not known"), ("foreign", "foreign.png"), ("missing", "missing.png")):
        assert main(["outputs", "areas", f"{name}.png", "--to", "seen"]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "seen").exists()
