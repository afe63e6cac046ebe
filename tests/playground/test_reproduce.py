"""`sdpersonal redo`: the same bytes again; what is missing is named before anything is loaded."""

import dataclasses
import re
import shlex

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdpersonal import models
from sdpersonal.cli.main import main
from sdpersonal.concepts.concept import Concept, Lora, LoraLayer
from sdpersonal.concepts.library import Library
from sdpersonal.config import GenerateRequest
from sdpersonal.errors import UserError
from sdpersonal.generation import Generator
from sdpersonal.image_metadata import pixels_sha256, png_with_recipe, read_recipe
from sdpersonal.outputs import Outputs
from sdpersonal.playground.reproduce import PinnedConcepts, base_to_load
from sdpersonal.prompts import Token
from support.samples import card, embedding

SMALL = {"steps": 2, "size": "64x64"}


def a_lora(base, seed: int, token: str) -> Concept:
    """A LoRA that changes what is drawn, with vectors."""
    rng = np.random.default_rng(seed)
    layers = {}
    for name, module in base.adapters.layers().items():
        if name.startswith("lora_unet_") and "to_q" in name:
            out, width = module.weight.shape
            layers[name] = LoraLayer(
                rng.normal(size=(2, width)).astype(np.float32), rng.normal(size=(out, 2)).astype(np.float32), 0.4
            )
    rows = rng.normal(size=(2, base.widths["clip_l"])).astype(np.float32) * 0.02
    return Concept(Token.parse(token), card(), {"clip_l": rows}, Lora(layers))


@pytest.fixture(scope="module")
def stock(tiny, tmp_path_factory):
    """A library with two concepts; pictures that were drawn with it, three at once."""
    place = tmp_path_factory.mktemp("stock")
    library = Library(place / "concepts")
    library.add(a_lora(tiny, 1, "<me/duck>"))
    library.add(embedding("<me/ink>", 3))
    request = GenerateRequest(
        prompt="a photo of <duck:0.8> by <me/ink> {in the rain|at night|on the moon|in snow|in autumn}",
        num_images=3,
        seed=11,
        **SMALL,
    )
    images = [image.to_png() for image in Generator(tiny, library).generate(request)]
    return library, images


@pytest.fixture
def place(stock, tmp_path, tiny, monkeypatch):
    """A library of its own, and what runs the command with the base that is loaded already."""
    library = Library(tmp_path / "concepts")
    for entry in stock[0].entries():
        library.add(stock[0].get(entry.token))
    calls = []
    monkeypatch.setattr(models, "load_base", lambda name: calls.append(name) or tiny)

    def redo(data: bytes, *options: str) -> int:
        (tmp_path / "picture.png").write_bytes(data)
        where = ["--library", str(library.folder), "--out", str(tmp_path / "outputs")]
        return main(["redo", str(tmp_path / "picture.png"), *where, *options])

    redo.library, redo.asked, redo.outputs, redo.folder = library, calls, Outputs(tmp_path / "outputs"), tmp_path
    return redo


def kept(redo) -> list[bytes]:
    return [path.read_bytes() for path in sorted(redo.folder.glob("outputs/*/*.png"))]


def other_pixels(data: bytes) -> bytes:
    return png_with_recipe(Image.new("RGB", (64, 64)), read_recipe(data))


# --- the same again ---------------------------------------------------------------------------------------------------


def test_redo_reproduces_every_image_of_a_batch_to_the_byte(stock, place, capsys):
    _, images = stock
    assert len({read_recipe(data).prompt for data in images}) > 1  # alternatives were chosen
    for data in images:
        assert place(data) == 0
        assert capsys.readouterr().out.splitlines()[-1].endswith(": the same, pixel for pixel")
    assert kept(place) == images and place.asked == ["tiny"] * 3
    assert "3 pictures" in (place.folder / "outputs" / "index.html").read_text()


def test_newer_and_renamed_concepts_do_not_change_the_image(stock, place, tiny):
    _, images = stock
    place.library.add(a_lora(tiny, 2, "<me/duck>"))  # <duck> is now another one
    place.library.rename(Token.parse("<me/duck-v1>"), Token.parse("<you/goose>"))
    place.library.rename(Token.parse("<me/ink>"), Token.parse("<me/wash>"))
    assert place(images[0]) == 0 and place(images[2]) == 0
    assert kept(place) == [images[0], images[2]]


def test_redo_reproduces_variations_img2img_and_inpainting(stock, place, tiny):
    start, mask = place.folder / "start.png", place.folder / "mask.png"
    Image.radial_gradient("L").convert("RGB").save(start)
    Image.linear_gradient("L").save(mask)
    noise = {"seed": 5, "variation_strength": 0.2, "variation_seed": 9}
    near = GenerateRequest(prompt="a <me/duck>", num_images=2, **noise, **SMALL)
    images = {"init_image": start, "mask": mask, "strength": 0.7}
    inside = GenerateRequest(prompt="a <me/duck>", num_images=1, seed=5, **images, **SMALL)
    generated = [
        image.to_png() for request in (near, inside) for image in Generator(tiny, place.library).generate(request)
    ]
    for data in generated[:2]:
        assert place(data) == 0
    assert place(generated[2], "--start", str(start), "--mask", str(mask)) == 0
    assert kept(place) == generated


def test_redo_reports_the_share_of_differing_pixels(stock, place, capsys):
    assert place(other_pixels(stock[1][0])) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert re.search(r"differs from the original in \d+\.\d% of its pixels, by at most \d+/255", line)
    small = png_with_recipe(Image.new("RGB", (8, 8)), read_recipe(stock[1][0]))
    assert place(small) == 0 and "generated, but 64x64 where the original is 8x8" in capsys.readouterr().out
    assert place(stock[1][0][:-300]) == 0 and "cannot be read to compare" in capsys.readouterr().out


# --- what is missing --------------------------------------------------------------------------------------------------


def refused(redo, capsys, data: bytes, *options: str) -> str:
    assert redo(data, *options) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err and kept(redo) == []
    return err


def test_redo_names_a_missing_concept(stock, place, capsys):
    data = stock[1][0]
    expected = {item.token: item.sha256[:8] for item in read_recipe(data).concepts}
    for token in expected:
        place.library.remove(Token.parse(token))
    err = refused(place, capsys, data)
    assert f"Its concept <me/duck-v1> ({expected['<me/duck-v1>']}) is not in the library." in err
    assert f"Its concept <me/ink-v1> ({expected['<me/ink-v1>']}) is not in the library." in err
    assert err.count("sdpersonal hub pull OWNER/NAME") == 1 and "--anyway" not in err
    assert place(data, "--anyway") == 2 and place.asked == []  # before the base is loaded
    capsys.readouterr()
    recipe = read_recipe(data)
    known = tuple(item.model_copy(update={"hub": "me/ducks"}) for item in recipe.concepts)
    there = png_with_recipe(Image.new("RGB", (64, 64)), recipe.model_copy(update={"concepts": known}))
    assert "Get it: sdpersonal hub pull me/ducks" in refused(place, capsys, there)


def test_redo_refuses_a_changed_concept_with_the_same_token(stock, place, tiny, capsys):
    place.library.remove(Token.parse("<me/duck>"))
    other = a_lora(tiny, 2, "<me/duck>")
    place.library.add(dataclasses.replace(other, card=card(recipe={"hub": "me/ducks"})))
    recipe = read_recipe(stock[1][0])
    err = refused(place, capsys, stock[1][0])
    assert f"<me/duck-v1> was {recipe.concepts[0].sha256[:8]}; <me/duck-v1> here is {other.identity[:8]}." in err
    assert "sdpersonal hub pull me/ducks" in err and "--anyway" in err and place.asked == []
    assert place(stock[1][0], "--anyway") == 0 and "differs from the original" in capsys.readouterr().out
    (data,) = kept(place)
    assert read_recipe(data).concepts[0].sha256 == other.identity  # its recipe is true


def test_redo_refuses_another_base_without_anyway(stock, place, capsys):
    recipe = read_recipe(stock[1][0])
    base = recipe.base.model_copy(update={"sha256": "0" * 64})
    data = png_with_recipe(Image.new("RGB", (64, 64)), recipe.model_copy(update={"base": base}))
    err = refused(place, capsys, data)
    assert "generated with the base tiny (00000000); tiny (" in err and "--base" in err and "--anyway" in err
    assert place(data, "--anyway") == 0
    assert read_recipe(kept(place)[0]).base == recipe.base


@pytest.mark.parametrize("name", ["/etc/passwd", "../../x", "evil/model", "http://evil.example/x", "-rf", ""])
def test_the_base_name_in_a_recipe_is_never_used_as_a_path(stock, place, name, capsys):
    recipe = read_recipe(stock[1][0])
    base = recipe.base.model_copy(update={"name": name})
    err = refused(place, capsys, png_with_recipe(Image.new("RGB", (64, 64)), recipe.model_copy(update={"base": base})))
    assert "Give --base its folder, file or Hub id." in err and place.asked == []
    with pytest.raises(UserError):
        base_to_load(recipe.model_copy(update={"base": base}))


def test_redo_does_not_read_wildcard_files(stock, place, capsys):
    """A recipe's alternatives are chosen; one that still has some was made by hand."""
    (place.folder / "wildcards").mkdir()
    recipe = read_recipe(stock[1][0]).model_copy(update={"prompt": "a __secret__", "concepts": ()})
    assert "No folder of wildcards was given" in refused(
        place, capsys, png_with_recipe(Image.new("RGB", (64, 64)), recipe)
    )


def test_redo_checks_the_init_image_by_its_pixels(stock, place, capsys):
    right, wrong = place.folder / "right.png", place.folder / "wrong.png"
    Image.radial_gradient("L").convert("RGB").save(right)
    Image.linear_gradient("L").convert("RGB").save(wrong)
    sums = {path: pixels_sha256(Image.open(path)) for path in (right, wrong)}
    recipe = read_recipe(stock[1][0])
    data = png_with_recipe(Image.new("RGB", (64, 64)), recipe.model_copy(update={"init_image": sums[right]}))
    err = refused(place, capsys, data)
    assert f"The image was generated from an init image (pixels {sums[right][:8]})." in err
    assert "--init-image FILE" in err
    err = refused(place, capsys, data, "--init-image", str(wrong))
    digests = sums[wrong][:8], sums[right][:8]
    assert f"--init-image has other pixels ({digests[0]}) than the image was generated from ({digests[1]})" in err
    assert "generated without a mask" in refused(place, capsys, data, "--init-image", str(right), "--mask", str(right))
    assert "generated without an init" in refused(place, capsys, stock[1][0], "--init-image", str(right))
    assert "No such file" in refused(place, capsys, data, "--init-image", str(place.folder / "none.png"))
    assert place.asked == []
    assert place(data, "--init-image", str(right)) == 0 and place(data, "--init-image", str(wrong), "--anyway") == 0


def test_a_prompt_token_missing_from_the_recipe_is_refused(stock):
    recipe = read_recipe(stock[1][0]).model_copy(update={"prompt": "a <me/ink> <duck>"})
    pinned = PinnedConcepts(recipe.model_copy(update={"concepts": recipe.concepts[:1]}), stock[0])
    assert pinned.get(Token.parse("<duck>")).identity == recipe.concepts[0].sha256
    with pytest.raises(UserError, match="does not contain the concept <you/ink>"):
        pinned.get(Token.parse("<you/ink>"))


def test_the_proposed_command_repeats_an_unsupported_prompt(place, capsys, tmp_path):
    info = PngInfo()
    info.add_text(
        "parameters", "a [cat:dog:0.5] in rain\nSteps: 4, Sampler: Euler a, Seed: 12345678901234567890, Size: 64x64"
    )
    Image.new("RGB", (8, 8)).save(tmp_path / "theirs.png", pnginfo=info)
    err = refused(place, capsys, (tmp_path / "theirs.png").read_bytes())
    assert "[cat:dog:0.5] changes words during the sampling" in err and "generate ''" not in err
    line = next(line for line in err.splitlines() if "sdpersonal generate" in line)
    assert line.startswith(
        "Change that in its prompt, then type: sdpersonal generate 'a [cat:dog:0.5] in rain' --num-images 1"
    )
    assert "--seed 12345678901234567890" in line
    empty = PngInfo()
    empty.add_text("parameters", "Negative prompt: x\nSteps: 4, Sampler: Euler a, Seed: 1, Size: 64x64")
    Image.new("RGB", (8, 8)).save(tmp_path / "empty.png", pnginfo=empty)
    err = refused(place, capsys, (tmp_path / "empty.png").read_bytes())
    assert "No words are in the prompt" in err and "generate ''" not in err


@pytest.mark.parametrize(
    ("prompt", "command"),
    [
        ("-n a cat", "generate ' -n a cat' --num-images 1 --negative ' --x' --seed 5"),
        (
            "<lora:x:1>",
            "Type a prompt of your own: sdpersonal generate 'YOUR PROMPT' --num-images 1 --negative ' --x' --seed 5",
        ),
        ("a\u200bcat \u202eon a hill", "generate 'acat on a hill' --num-images 1"),
    ],
)
def test_the_proposed_command_can_be_typed(prompt, command, place, capsys):
    info = PngInfo()
    info.add_itxt("parameters", f"{prompt}\nNegative prompt: --x\nSteps: 4, Seed: 5, Size: 64x64, Sampler: Euler")
    Image.new("RGB", (64, 64)).save("dash.png", pnginfo=info)
    assert main(["redo", "dash.png"]) == 2
    assert command in capsys.readouterr().err


def test_images_of_other_programs_and_without_a_recipe_are_refused(place, capsys, tmp_path):
    text = "a cat's <lora:x:1>\nNegative prompt: b\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 64x64"
    info = PngInfo()
    info.add_text("parameters", text)
    Image.new("RGB", (8, 8)).save(tmp_path / "theirs.png", pnginfo=info)
    err = refused(place, capsys, (tmp_path / "theirs.png").read_bytes())
    assert "was generated by another program" in err and "Not loaded: the LoRA x (1)." in err
    line = next(line for line in err.splitlines() if "sdpersonal generate" in line).partition(": ")[2]
    assert shlex.split(line)[:5] == ["sdpersonal", "generate", "a cat's", "--num-images", "1"]
    assert line.endswith(" --negative b --seed 5 --steps 20 --guidance 7 --size 64x64 --scheduler 'Euler a'")
    assert "holds no recipe" in refused(place, capsys, png_with_recipe(Image.new("RGB", (8, 8)), None))
    assert "holds no recipe" in refused(place, capsys, b"no picture")
    assert main(["redo", str(tmp_path / "none.png")]) == 2 and "No such file" in capsys.readouterr().err
    assert place.asked == []
