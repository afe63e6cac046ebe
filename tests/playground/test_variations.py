"""Variations of a favourite: only what is asked is changed, and the sheet shows the favourite first."""

from datetime import date
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdpersonal.cli.main import main
from sdpersonal.concepts.library import Library
from sdpersonal.config import GenerateRequest, VariationSettings
from sdpersonal.display.image_grid import captioned_grid, differing_words
from sdpersonal.errors import Interrupted, UserError
from sdpersonal.generation import Generator
from sdpersonal.image_metadata import read_recipe
from sdpersonal.outputs import Outputs
from sdpersonal.playground.variations import (
    RecipeThenLibrary,
    caption,
    favourite_request,
    generate_variations,
    variation_requests,
    vary_from_image,
    vary_seed,
    vary_strength,
    vary_words,
)
from sdpersonal.prompts import Token
from support.samples import embedding

SMALL = {"steps": 4, "size": "64x64"}
PROMPT = "a photo of <me/duck:0.9> on the beach"
FAVOURITE = GenerateRequest(prompt=PROMPT, seed=2, num_images=1, **SMALL)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    library = Library(tmp_path_factory.mktemp("library"))
    library.add(embedding("<me/duck>", 1))
    return library


@pytest.fixture(scope="module")
def generator(tiny, library):
    return Generator(tiny, library)


@pytest.fixture(scope="module")
def favourite(generator, tmp_path_factory):
    """A picture with its recipe, as a file."""
    (image,) = generator.generate(FAVOURITE)
    path = tmp_path_factory.mktemp("favourite") / "00001-abcdef12.png"
    path.write_bytes(image.to_png())
    return path


@pytest.fixture
def outputs(tmp_path):
    return Outputs(tmp_path / "outputs", today=lambda: date(2026, 1, 31))


def changed(request: GenerateRequest) -> dict:
    """What is not as in the favourite."""
    return {
        name: value
        for name, value in request.model_dump().items()
        if value != getattr(FAVOURITE, name) and name != "num_images"
    }


# --- what is asked ----------------------------------------------------------------------------------------------------


def test_variation_requests_change_only_the_given_fields():
    (request,) = vary_seed(FAVOURITE, 0.3, 5, seed=9)
    assert changed(request) == {"variation_strength": 0.3, "variation_seed": 9} and request.num_images == 5
    below = [item.prompt for item in vary_strength(FAVOURITE, "<me/duck>", "-2..0")]
    assert below == [f"a photo of <me/duck:{strength}> on the beach" for strength in (-2, -1, 0)]
    result = vary_strength(FAVOURITE, "<me/duck>", "0.5, 0.75, ..., 1.25")
    prompts = [f"a photo of <me/duck:{strength}> on the beach" for strength in ("0.5", "0.75", "1", "1.25")]
    assert [changed(item) for item in result] == [{"prompt": prompt} for prompt in prompts]
    result = vary_words(FAVOURITE, "the beach", "snow|a {red|blue} hill")
    assert [item.prompt for item in result] == [PROMPT.replace("the beach", w) for w in ("snow", "a {red|blue} hill")]
    (request,) = vary_from_image(FAVOURITE, Path("a.png"), 0.4, 3)
    assert changed(request) == {"init_image": Path("a.png"), "strength": 0.4, "seed": 3} and request.num_images == 3
    last = GenerateRequest(prompt="x", seed=2**64 - 1)
    assert vary_from_image(last, Path("a.png"))[0].seed == 0  # after the last comes the first


def test_variations_keep_the_compose_setting():
    mixed = FAVOURITE.model_copy(update={"compose": False})
    others = VariationSettings(
        variation_strength=0.2, concept_strength=["<duck>=1"], words=["beach=snow"], img2img=True
    )
    result = variation_requests(mixed, Path("a.png"), others)
    assert len(result) == 4 and not any(item.compose for item in result)
    assert all(item.compose for item in variation_requests(FAVOURITE, Path("a.png"), others))


def test_variations_keep_their_order_and_default_to_seed_variations():
    result = variation_requests(
        FAVOURITE,
        Path("a.png"),
        VariationSettings(
            variation_strength=0.2,
            num_images=3,
            concept_strength=["<duck>=1, 2", "<me/duck> = 0"],
            words=["beach=snow|<me/sky>"],
            img2img=True,
        ),
    )
    assert [item.num_images for item in result] == [3, 1, 1, 1, 1, 1, 3]
    others = [f"a photo of <me/duck:{strength}> on the beach" for strength in (1, 2, 0)]
    others += [PROMPT.replace("beach", word) for word in ("snow", "<me/sky>")]
    assert [item.prompt for item in result] == [PROMPT, *others, PROMPT]
    (request,) = variation_requests(FAVOURITE, Path("a.png"), VariationSettings())
    assert changed(request) == {"variation_strength": 0.15} and request.num_images == 8
    result = variation_requests(FAVOURITE, Path("a.png"), VariationSettings(img2img=True))
    assert [item.init_image for item in result] == [Path("a.png")]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"concept_strength": ["<me/duck>"]}, "does not say what to change"),
        ({"concept_strength": ["=1"]}, "does not say what to change"),
        ({"concept_strength": ["<me/fox>=1"]}, "There is no <me/fox> in the prompt of this image"),
        ({"concept_strength": ["<me/duck>=-6"]}, "must be a number from -5 to 5"),
        ({"concept_strength": ["<me/duck>=much"]}, "not a list of numbers"),
        ({"concept_strength": ["duck duck=1"]}, "is not a concept's token"),
        ({"words": ["sea=snow"]}, "There is no sea in the prompt of this image"),
        ({"words": ["beach=<me"]}, None),
        ({"words": ["beach=<m e>"]}, "is not a concept's token"),
        ({"variation_strength": 2.0}, "variation_strength must be a number above 0, up to 1"),
        ({"img2img": True, "strength": 0.0}, "strength must be a number above 0, up to 1"),
    ],
)
def test_invalid_variations_are_refused_with_a_message(asked, said):
    if said is None:
        assert len(variation_requests(FAVOURITE, Path("a.png"), VariationSettings(**asked))) == 1
        return
    with pytest.raises(UserError, match=said) as output:
        variation_requests(FAVOURITE, Path("a.png"), VariationSettings(**asked))
    assert len(str(output.value).splitlines()) <= 2


def test_a_seed_variation_cannot_be_varied_by_a_third_seed():
    sister = FAVOURITE.model_copy(update={"variation_strength": 0.1})
    with pytest.raises(UserError, match="itself a variation of another one, of seed 2"):
        vary_seed(sister)
    assert vary_strength(sister, "<me/duck>", "1")[0].variation_strength == 0.1
    assert vary_from_image(sister, Path("a.png"))[0].variation_strength is None


# --- what is drawn ----------------------------------------------------------------------------------------------------


def test_a_lower_variation_strength_gives_closer_images(generator, favourite):
    original = np.asarray(Image.open(favourite).convert("RGB"), np.float64)

    def apart(weight):
        (request,) = vary_seed(FAVOURITE, weight, 3)
        result = [np.asarray(generated.image, np.float64) for generated in generator.generate(request)]
        assert len({image.tobytes() for image in result}) == 3
        return np.mean([np.abs(image - original).mean() for image in result])

    distances = [apart(weight) for weight in (0.02, 0.15, 1.0)]
    assert 0 < distances[0] < 0.5 * distances[1] < 0.5 * distances[2]


def test_variations_are_saved_with_a_grid_that_starts_with_the_favourite(generator, favourite, outputs):
    image = Image.open(favourite).convert("RGB")
    settings = VariationSettings(words=["beach=snow"], concept_strength=["<me/duck>=0, 1"], img2img=True, num_images=2)
    calls = variation_requests(FAVOURITE, favourite, settings)
    output = []
    recorded = generate_variations(
        (FAVOURITE, image), calls, generator, outputs, progress=lambda done, total: output.append((done, total))
    )
    saved, page = recorded.images, recorded.grid
    assert (
        len(saved) == len(recorded.hidden) == 5
        and page.name == "00001-variations.png"
        and page.parent == saved[0].parent
    )
    recipes = [read_recipe(path.read_bytes()) for path in saved]
    assert [item.prompt for item in recipes[:3]] == [item.prompt for item in calls[:3]]
    assert all(item.init_image and item.strength == 0.5 for item in recipes[3:]) and not recipes[0].init_image
    assert output[-1][0] == output[-1][1]
    sheet = np.asarray(Image.open(page).convert("RGB"), np.int16)
    head = 192 // 6
    first = sheet[head + 6 : head + 6 + 192, 6 : 6 + 192]
    assert np.abs(first - np.asarray(image.resize((192, 192), Image.Resampling.LANCZOS), np.int16)).mean() < 0.01


def test_interrupted_variations_save_their_finished_images(generator, favourite, outputs):
    image, calls = Image.open(favourite).convert("RGB"), vary_strength(FAVOURITE, "<me/duck>", "0, 1")
    output = []
    with pytest.raises(Interrupted):
        generate_variations(
            (FAVOURITE, image),
            calls,
            generator,
            outputs,
            private=True,
            progress=lambda done, total: output.append(done),
            cancelled=lambda: len(output) > 5,
        )
    (day,) = outputs.folder.iterdir()
    (path,) = day.glob("0000?-????????.png")
    assert (day / "00001-variations.png").exists()
    with pytest.raises(UserError, match="holds no recipe"):
        read_recipe(path.read_bytes())


def test_captions_show_the_changed_value(generator):
    def said(request):
        (image,) = generator.generate(request)
        return caption(FAVOURITE, request, image.recipe)

    assert said(vary_strength(FAVOURITE, "<me/duck>", "0.5")[0]) == "<me/duck:0.5>"
    assert said(vary_words(FAVOURITE, "the beach", "a green hill")[0]) == "a green hill"
    assert said(vary_seed(FAVOURITE, 0.2, 1, seed=6)[0]) == "variation 0.2, seed 6"
    (image,) = generator.generate(FAVOURITE)
    from_image = FAVOURITE.model_copy(update={"init_image": Path("one.png")})
    assert caption(FAVOURITE, from_image, image.recipe) == f"img2img, seed {image.recipe.seed}"


def test_a_captioned_grid_contains_all_images():
    for count in (1, 2, 5, 9, 26):
        images = [(Image.new("RGB", (16, 16), (8 * i + 1, 0, 99)), "a long caption " * i) for i in range(count)]
        page = np.asarray(captioned_grid(images, tile_size=32))
        assert {tuple(pixel) for pixel in page.reshape(-1, 3)} >= {(8 * i + 1, 0, 99) for i in range(count)}


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["a cat on grass", "a dog on grass"], ["cat", "dog"]),
        (["a cat on grass", "a big cat on grass"], ["", "big"]),
        (["a cat", "a cat cat"], ["", "cat"]),
        (["a cat", "a cat"], ["", ""]),
        (["a cat at sea, old", "a cat in space, old"], ["at sea", "in space"]),
        (["one alone"], [""]),
        (["in snow", "on sand", "at sea"], ["in snow", "on sand", "at sea"]),
    ],
)
def test_differing_words_returns_whole_words(texts, expected):
    assert differing_words(texts) == expected


def test_a_grid_without_captions_has_no_caption_space():
    images = [Image.new("RGB", (32, 32))] * 2
    bare, named = (captioned_grid([(item, text) for item in images], tile_size=32) for text in ("", "seed 1"))
    assert bare.width == named.width and bare.height < named.height
    assert bare.height == 32 + 2 * 6  # the picture, and a gap on both sides


# --- where concepts come from -----------------------------------------------------------------------------------------


def test_variations_use_the_concept_version_of_the_favourite(favourite, tmp_path):
    """Though the library has a newer version since; what a variation adds is the library's newest."""
    recipe = read_recipe(favourite.read_bytes())
    library = Library(tmp_path)
    old, new = embedding("<me/duck>", 1), embedding("<me/duck>", 2)
    with pytest.raises(UserError, match="<me/duck-v1>"):
        RecipeThenLibrary(recipe, library)
    library.add(old)
    library.add(new)
    library.add(embedding("<me/sky>", 3))
    result = RecipeThenLibrary(recipe, library)
    assert library.get(Token.parse("<me/duck>")).identity == new.identity
    assert result.get(Token.parse("<me/duck>")).identity == old.identity
    assert result.get(Token.parse("<me/sky>")).token.version == 1


def test_img2img_results_can_only_be_varied_by_img2img(generator, favourite):
    (image, *_) = generator.generate(vary_from_image(FAVOURITE, favourite, num_images=1)[0])
    with pytest.raises(UserError, match="was made from an init image"):
        favourite_request(image.recipe, VariationSettings())
    assert favourite_request(image.recipe, VariationSettings(img2img=True)).prompt == PROMPT


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_vary_command_generates_variations(favourite, library, tmp_path, capsys):
    command = ["vary", "--near", "0.1", "-n", "2", "--strength", "<me/duck>=0", "--words", "beach=snow", str(favourite)]
    assert main([*command, "--library", str(library.folder), "--out", str(tmp_path)]) == 0
    message = capsys.readouterr().out.splitlines()
    assert message[-1].endswith("00001-variations.png") and len(message) == 1 + 4 + 1
    recipes = [read_recipe(Path(line).read_bytes()) for line in message[1:-1]]
    assert [item.variation_strength for item in recipes] == [0.1, 0.1, None, None]
    assert [item.variation_seed for item in recipes[:2]] == [1, 2] and {item.seed for item in recipes} == {2}
    assert (tmp_path / "index.html").exists()


def test_the_vary_command_accepts_images_of_other_programs(tmp_path, capsys):
    text = (
        "a red ball\nNegative prompt: blue\nSteps: 2, Sampler: DDIM, CFG scale: 3, Seed: 5, Size: 64x64, Model: other"
    )
    info = PngInfo()
    info.add_text("parameters", text)
    Image.new("RGB", (64, 64)).save(tmp_path / "theirs.png", pnginfo=info)
    command = ["vary", str(tmp_path / "theirs.png"), "--base", "tiny", "--words", "ball=cube|cone"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    message = capsys.readouterr().out
    assert "It was generated with the model other." in message
    result = [read_recipe(path.read_bytes()) for path in sorted((tmp_path / "out").glob("*/0000?-????????.png"))]
    assert [(item.prompt, item.negative, item.seed, item.steps) for item in result] == [
        ("a red cube", "blue", 5, 2),
        ("a red cone", "blue", 5, 2),
    ]


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [("a cat AND a dog", "AND in capitals"), ("<lora:x:1>", "Nothing but LoRAs"), ("a " * 1500, "characters")],
)
@pytest.mark.parametrize("options", [[], ["--start"], ["--near", "0.1"]])
def test_the_vary_command_refuses_unsupported_prompts(prompt, reason, options, tmp_path, capsys):
    info = PngInfo()
    info.add_text("parameters", f"{prompt}\nSteps: 2, Sampler: DDIM, CFG scale: 3, Seed: 5, Size: 64x64")
    Image.new("RGB", (64, 64)).save(tmp_path / "theirs.png", pnginfo=info)
    command = ["vary", str(tmp_path / "theirs.png"), "--base", "tiny", "--out", str(tmp_path / "out"), *options]
    assert main(command) == 2
    assert reason in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--strength", "<me/fox>=1"], "There is no <me/fox>"), (["--base", "tiny", "--library", "none"], "<me/duck-v1>")],
)
def test_the_vary_command_refuses_invalid_options_before_loading(favourite, options, said, capsys):
    assert main(["vary", str(favourite), *options]) == 2
    caught = capsys.readouterr()
    assert said in caught.err and "Traceback" not in caught.err and caught.out == ""


def test_the_vary_command_refuses_images_without_a_recipe(tmp_path, capsys):
    Image.new("RGB", (64, 64)).save(tmp_path / "plain.png")
    assert main(["vary", str(tmp_path / "plain.png")]) == 2
    assert main(["vary", str(tmp_path / "nothing.png")]) == 2
    err = capsys.readouterr().err
    assert "plain.png holds no recipe" in err and "nothing.png" in err and "Traceback" not in err
