"""`load` and its Pipeline: images as with settings classes, errors in the words of keywords, nothing left behind."""

import dataclasses
import io
import os
import re
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sdpersonal as sp
from sdpersonal import evaluation
from sdpersonal.image_metadata import read_recipe
from sdpersonal.image_metadata.parameters import Foreign
from support import samples
from support.samples import embedding

SMALL = {"steps": 3, "size": "64x64", "quiet": True}
PROMPT = "a photo of <me/duck> on the beach"


@pytest.fixture(scope="module")
def sd(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("concepts")
    sp.Library(folder).add(embedding("<me/duck>", 1))
    return sp.Pipeline(tiny, sp.Library(folder))


@pytest.fixture(scope="module")
def images(sd):
    return sd.generate(PROMPT, num_images=2, seed=7, **SMALL)


def same(image, other) -> bool:
    return bool((np.asarray(image) == np.asarray(other)).all())


# --- load ---


def test_load_opens_the_model_and_the_library(tmp_path):
    sd = sp.load("tiny", library=tmp_path / "concepts", device="cpu")
    assert sd.base.name == "tiny" and sd.base.device.type == "cpu"
    assert sd.library.folder == tmp_path / "concepts" and not (tmp_path / "concepts").exists()
    assert "tiny" in repr(sd) and "cpu" in repr(sd)


@pytest.mark.parametrize("device", ["nothing", "cuda:99", 3.5])
def test_an_unavailable_device_is_refused(device):
    with pytest.raises(sp.UserError, match=re.escape(str(device))):
        sp.load("tiny", device=device)


def test_an_unknown_model_is_refused_with_the_available_models():
    with pytest.raises(sp.UserError, match="tinny") as caught:
        sp.load("tinny")
    assert "sdxl" in caught.value.hint


def test_a_name_in_place_of_a_model_or_library_is_refused(tiny):
    with pytest.raises(sp.UserError, match="tiny") as caught:
        sp.Generator("tiny")
    assert "sdpersonal.load('tiny')" in caught.value.hint
    with pytest.raises(sp.UserError) as caught:
        sp.Generator(tiny, "concepts")
    assert "Library('concepts')" in caught.value.hint


# --- generate ---


def test_the_pipeline_returns_the_images_of_the_generator(sd, images):
    request = sp.GenerateRequest(prompt=PROMPT, seed=7, steps=3, size="64x64").model_copy(update={"num_images": 2})
    expected = list(sp.Generator(sd.base, sd.library).generate(request))
    assert isinstance(images, sp.GeneratedImages) and len(images) == 2
    assert all(
        same(image, other) and image.recipe == other.recipe for image, other in zip(images, expected, strict=True)
    )
    assert [image.seed for image in images] == [7, 8] and images[0].size == (64, 64)


def test_generate_many_gives_the_same_images_as_single_requests(sd):
    requests = [sp.GenerateRequest(prompt=prompt, num_images=1, steps=3, size="64x64") for prompt in (PROMPT, "a cat")]
    requests.append(requests[0].model_copy(update={"num_images": 2, "seed": 3}))
    seen = []
    generated = sd.generate_many(requests, on_progress=seen.append, quiet=True)
    assert [len(of_request) for of_request in generated] == [1, 1, 2] and seen[-1].step == seen[-1].steps == 3
    for request, of_request in zip(requests, generated, strict=True):
        for ours, alone in zip(of_request, sd.generator.generate(request), strict=True):
            assert np.abs(np.asarray(ours).astype(int) - np.asarray(alone)).max() <= 1
            assert ours.recipe.prompt == alone.recipe.prompt and ours.seed == alone.seed
    with pytest.raises(sp.UserError, match=r"^Request 2 of 2: .*me/goose"):
        sd.generate_many([requests[0], sp.GenerateRequest(prompt="<me/goose>")])
    assert sd.generate_many([]) == []


def test_every_keyword_reaches_the_recipe(sd):
    settings = {
        "negative": "blurry",
        "seed": 3,
        "steps": 4,
        "guidance": 2.5,
        "rescale": 0.25,
        "size": "64x128",
        "variation_strength": 0.5,
        "variation_seed": 9,
        "hires_scale": 1.5,
        "strength": 0.75,
        "scheduler": "Euler a",
        "clip_skip": 2,
        "compose": False,
    }
    (image,) = sd.generate("a duck", num_images=1, quiet=True, **settings)
    recipe, request = image.recipe, image.recipe.request()
    values = {name: getattr(recipe, name) for name in settings.keys() & type(recipe).model_fields.keys()}
    assert values == {name: settings[name] for name in values} and len(values) >= 8
    assert image.size == (96, 192)
    fields = [value for name, value in request if value in (0.5, 9, 1.5, 0.75)]
    assert sorted(fields) == [0.5, 0.75, 1.5, 9]


def test_all_combinations_are_generated(sd):
    images = sd.generate("a {red|blue} duck", num_images=1, all_combinations=True, **SMALL)
    assert sorted(image.recipe.prompt for image in images) == ["a blue duck", "a red duck"]


def test_an_init_image_may_be_a_file_or_a_pillow_image(sd, images, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    images[0].image.save(tmp_path / "init.png")
    settings = SMALL | {"num_images": 1, "strength": 0.5}
    (from_file,) = sd.generate("a duck", init_image=tmp_path / "init.png", **settings)
    (from_image,) = sd.generate("a duck", init_image=images[0], **settings)
    assert same(from_file, from_image) and not same(from_file, images[0])
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    (inpainted,) = sd.generate("a duck", init_image=images[0], mask=mask, **settings)
    assert same(inpainted.crop((32, 0, 64, 64)), images[0].crop((32, 0, 64, 64)))
    assert list((tmp_path / "temporary").iterdir()) == []


def test_an_empty_mask_raises_a_warning(sd, images):
    with pytest.warns(UserWarning, match="nothing white") as caught:
        sd.generate("a duck", init_image=images[0], mask=Image.new("L", (64, 64)), num_images=1, **SMALL)
    assert caught[0].filename == __file__


def test_a_concept_is_available_as_soon_as_it_is_added(sd, tmp_path):
    library = sp.Library(tmp_path)
    other = sp.Pipeline(sd.base, library)
    with pytest.raises(sp.UnknownConcept):
        other.generate("<me/duck>", **SMALL)
    library.add(embedding("<me/duck>", 1))
    assert len(other.generate("<me/duck>", num_images=1, **SMALL)) == 1


@pytest.mark.parametrize(
    ("settings", "message", "hint"),
    [
        ({"num_image": 2}, "num_image", "num_images"),
        ({"quality": 2}, "quality", "clip_skip"),
        ({"num_images": 0}, "num_images must be a whole number from 1 to 100, got 0", ""),
        ({"seed": "7"}, "seed must be", ""),
        ({"variation_strength": 2}, "variation_strength must be a number above 0", ""),
        ({"size": "7x7"}, "size must be", "512x512"),
        ({"mask": "mask.png"}, "mask", "init_image"),
        ({"init_image": "nowhere.png"}, "nowhere.png", ""),
        ({"init_image": Image.new("RGB", (64, 64)), "hires_scale": 2.0}, "hires_scale", "size"),
        ({"prompt": "<me/dukc>"}, "<me/dukc>", "<me/duck>"),
        ({"prompt": "a {red"}, "brace", ""),
        ({"prompt": 3}, "text", ""),
    ],
)
def test_error_messages_name_keywords_and_no_flags(sd, settings, message, hint):
    started = []
    with pytest.raises(sp.UserError) as caught:
        sd.generate(**{"prompt": "a duck", "on_progress": started.append} | SMALL | settings)
    assert message in caught.value.message and hint in caught.value.hint and not started
    assert "--" not in str(caught.value)


def test_generate_prints_nothing(sd, capfd):
    sd.generate("a duck", num_images=1, steps=2, size="64x64")
    assert capfd.readouterr() == ("", "")


# --- progress ---


def test_progress_counts_the_steps_of_all_images(sd):
    seen = []
    sd.generate("a duck", num_images=6, on_progress=seen.append, **SMALL)
    assert seen[-1].step == seen[-1].steps == 18 and seen[-1].seconds_left == 0
    assert [progress.step for progress in seen] == sorted(progress.step for progress in seen)
    assert all(progress.seconds_left >= 0 and progress.loss is None for progress in seen) and len(seen) >= 3


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_interrupted_generation_does_not_change_later_images(sd, images, error):
    def stop(progress: sp.Progress) -> None:
        if progress.step > 2:
            raise error

    with pytest.raises(error):
        sd.generate(PROMPT, num_images=2, seed=7, on_progress=stop, **SMALL)
    assert sd.base.lock.acquire(blocking=False)
    sd.base.lock.release()
    assert sd.generate(PROMPT, num_images=2, seed=7, **SMALL) == images


# --- vary, redo, endless, X/Y/Z grids ---


def test_vary_changes_only_the_requested_settings(sd, images):
    varied = sd.vary(
        images[0],
        variation_strength=0.3,
        num_images=2,
        variation_seed=5,
        concept_strengths={"<me/duck>": [0.5]},
        words={"beach": ["snow", "roof"]},
        quiet=True,
    )
    assert [image.recipe.prompt.removeprefix("a photo of ") for image in varied] == [
        *["<me/duck> on the beach"] * 2,
        "<me/duck:0.5> on the beach",
        "<me/duck> on the snow",
        "<me/duck> on the roof",
    ]
    assert {image.seed for image in varied} == {7} and not same(varied[0], images[0])
    assert len(sd.vary(images[0], quiet=True)) == 8


def test_vary_starts_from_the_image_itself_or_its_file(sd, images, tmp_path):
    images[0].save(tmp_path / "duck.png")
    settings = {"from_image": True, "strength": 0.4, "num_images": 1, "quiet": True}
    (from_image,), (other,) = sd.vary(images[0], **settings), sd.vary(tmp_path / "duck.png", **settings)
    assert from_image == other and not same(from_image, images[0])


def test_vary_refuses_an_image_without_a_recipe_and_another_model(sd, images, tmp_path):
    with pytest.raises(sp.UserError, match="no recipe"):
        sd.vary(images[0].image)
    Image.new("RGB", (64, 64)).save(tmp_path / "plain.png")
    with pytest.raises(sp.UserError, match=r"plain\.png"):
        sd.vary(tmp_path / "plain.png")
    recipe = images[0].recipe
    other_base = recipe.base.model_copy(update={"sha256": "0" * 64})
    foreign = sp.GeneratedImage(images[0], recipe.model_copy(update={"base": other_base}))
    with pytest.raises(sp.UserError, match="base") as caught:
        sd.vary(foreign)
    assert "anyway=True" in caught.value.hint
    assert len(sd.vary(foreign, num_images=1, anyway=True, quiet=True)) == 1


def test_redo_gives_the_same_image_from_a_batch(sd, images, tmp_path):
    images[1].save(tmp_path / "duck.png")
    assert sd.redo(images[1], quiet=True) == images[1] == sd.redo(str(tmp_path / "duck.png"), quiet=True)


def test_redo_needs_the_init_image(sd, images):
    (image,) = sd.generate("a duck", init_image=images[0], num_images=1, **SMALL)
    with pytest.raises(sp.UserError) as caught:
        sd.redo(image)
    assert "init_image" in caught.value.hint
    assert sd.redo(image, init_image=images[0], quiet=True) == image


@pytest.fixture(scope="module")
def duo(tiny, tmp_path_factory):
    """Two concepts, the second without a thumbnail, and an image of both."""
    library = sp.Library(tmp_path_factory.mktemp("duo"))
    for token, seed, thumbnail in (("<me/duck>", 1, samples.thumbnail()), ("<me/fox>", 2, None)):
        library.add(samples.concept(token, seed, lora=None, thumbnail=thumbnail))
    sd = sp.Pipeline(tiny, library)
    return sd, sd.generate("<me/duck> and <me/fox>", num_images=1, seed=3, **SMALL | {"size": "128x64"})[0]


def test_likeness_by_region_compares_regions_with_thumbnails(duo, tmp_path):
    sd, image = duo
    likeness = sd.likeness_by_region(image)
    assert list(likeness) == ["<me/duck-v1>", "<me/fox-v1>"] and {tuple(row) for row in likeness.values()} == {
        ("<me/duck-v1>",)
    }
    image.save(tmp_path / "both.png")
    assert sd.likeness_by_region(tmp_path / "both.png") == likeness
    scorer, thumbnail = evaluation.Scorer(), Image.open(io.BytesIO(samples.thumbnail())).convert("RGB")
    assert scorer.likeness([thumbnail], [thumbnail]) == pytest.approx(1, abs=1e-5)
    boxes = {
        "wide": (0.25, 0.25, 0.75, 0.5),
        "corner": (0.9, 0.9, 1, 1),
        "all": (0, 0, 1, 1),
        "dot": (0, 0, 1e-9, 1e-9),
    }
    crops = {"wide": (32, 0, 96, 64), "corner": (115, 51, 128, 64), "all": (32, 0, 96, 64), "dot": (0, 0, 1, 1)}
    likeness = evaluation.likeness_by_region(scorer, image.image, boxes, {"it": thumbnail})
    for name, crop in crops.items():
        assert likeness[name]["it"] == pytest.approx(scorer.likeness([image.image.crop(crop)], [thumbnail]), abs=2e-2)


def test_likeness_by_region_is_refused_without_its_requirements(duo, images, tmp_path, monkeypatch):
    sd, image = duo
    with pytest.raises(sp.UserError, match="is not known"):
        sd.likeness_by_region(images[0])
    with pytest.raises(sp.UserError, match="has no recipe"):
        sd.likeness_by_region(image.image)
    with pytest.raises(sp.UserError, match="<me/duck-v1>"):
        sp.Pipeline(sd.base, sp.Library(tmp_path / "empty")).likeness_by_region(image)
    bare = sp.Library(tmp_path / "bare")
    for concept in (sd.library["<me/duck>"], sd.library["<me/fox>"]):
        bare.add(dataclasses.replace(concept, thumbnail=None))
    with pytest.raises(sp.UserError, match="has a thumbnail"):
        sp.Pipeline(sd.base, bare).likeness_by_region(image)
    monkeypatch.setattr("sdpersonal.evaluation.scorer_for_base", lambda kind: None)
    with pytest.raises(sp.UserError, match="no CLIP"):
        sd.likeness_by_region(image)


def test_endless_repeats_no_image_and_resumes_at_a_given_index(sd):
    template = "a {red|blue|green} <me/duck>"
    settings = {"steps": 2, "size": "64x64"}
    four = list(sd.endless(template, limit=4, **settings))
    assert len({image.recipe.prompt for image in four[:3]}) == 3 and [image.seed for image in four] == [0, 1, 2, 3]
    assert list(sd.endless(template, first=2, limit=2, **settings)) == four[2:]
    assert four[0].recipe.template == template
    unlimited = sd.endless(template, **settings)
    assert next(unlimited) == four[0]
    unlimited.close()


def test_endless_refuses_a_bad_template_before_the_first_image(sd):
    with pytest.raises(sp.UserError):
        sd.endless("a {red")
    with pytest.raises(sp.UnknownConcept):
        sd.endless("a {red|blue} <me/dog>")


def test_an_xyz_grid_has_an_image_in_every_cell(sd, tmp_path):
    seen = []
    grid = sd.xyz_grid(
        "a {} <me/duck>", x="words: red|blue", y="seed: 1..3", z="guidance: 1, 3", on_progress=seen.append, **SMALL
    )
    assert set(grid.cells) == {(x, y, z) for x in range(2) for y in range(3) for z in range(2)}
    assert len(grid.images) == 12 and len(grid.grids) == 2 and seen[-1].step == seen[-1].steps == 36
    image = grid.cells[1, 2, 0]
    assert image.recipe.prompt == "a blue <me/duck>" and image.seed == 3 and image.recipe.guidance == 1
    with Image.open(io.BytesIO(grid._repr_png_())) as shown:
        assert same(shown, grid.grids[0])
    saved = grid.save(tmp_path)
    assert len(saved.images) == 12 and len(saved.grids) == 2 and saved.page.exists()
    assert read_recipe(saved.images[0].read_bytes(), "a").sdpersonal == sp.__version__


def test_equal_cells_of_a_grid_share_an_image(sd):
    grid = sd.xyz_grid("a duck {}", x="words: red|red", **SMALL)
    assert grid.cells[0, 0, 0] is grid.cells[1, 0, 0] and len(grid.images) == 1


def test_an_unknown_axis_is_refused(sd):
    with pytest.raises(sp.UserError, match="weather"):
        sd.xyz_grid("a duck", x="weather: sun|rain")


# --- images ---


def test_a_generated_image_is_a_pillow_image(images):
    image = images[0]
    assert isinstance(image, Image.Image) and image.mode == "RGB" and "seed 7" in repr(image)
    assert type(image.resize((8, 8))) is Image.Image and type(image.image) is Image.Image
    assert same(image.convert("L"), image.image.convert("L"))


def test_a_saved_image_holds_its_recipe(images, tmp_path):
    image = images[0]
    image.save(tmp_path / "a.png")
    assert read_recipe((tmp_path / "a.png").read_bytes(), "a.png") == image.recipe
    assert (tmp_path / "a.png").read_bytes() == image.to_png()
    with Image.open(tmp_path / "a.png") as saved:
        assert same(saved, image)
    for name in ("a.jpg", "a.webp"):
        image.save(str(tmp_path / name), quality=90)
        foreign = read_recipe((tmp_path / name).read_bytes(), name)
        assert (
            isinstance(foreign, Foreign)
            and foreign.fields["seed"] == 7
            and foreign.fields["prompt"].startswith("a photo of")
        )
    image.save(tmp_path / "a.bmp")
    with Image.open(tmp_path / "a.bmp") as saved:
        assert same(saved, image)
    buffer = io.BytesIO()
    image.save(buffer)
    assert buffer.getvalue() == image.to_png()


def test_a_private_image_holds_pixels_only(images, tmp_path):
    for name in ("a.png", "a.jpg"):
        images[0].save(tmp_path / name, private=True)
        with Image.open(tmp_path / name) as saved:
            assert not saved.getexif() and not getattr(saved, "text", None)
        with pytest.raises(sp.UserError):
            read_recipe((tmp_path / name).read_bytes(), name)


@pytest.mark.parametrize("name", ["image", "image.xyz", "nowhere/image.png", "a\0b.png"])
def test_an_unwritable_path_is_refused_and_leaves_no_file(images, tmp_path, name):
    with pytest.raises(sp.UserError):
        images[0].save(f"{tmp_path}/{name}")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_leaves_the_existing_file_unchanged(images, tmp_path):
    (tmp_path / "a.png").write_bytes(b"old")
    with pytest.raises(TypeError):
        images[0].save(tmp_path / "a.png", compress_level="much")
    assert (tmp_path / "a.png").read_bytes() == b"old"


def test_notebooks_show_images_and_lists_of_images(images):
    with Image.open(io.BytesIO(images[0]._repr_png_())) as shown:
        assert same(shown, images[0])
    assert images[0]._repr_jpeg_() is None
    with Image.open(io.BytesIO(images._repr_png_())) as grid:
        assert same(grid, images.grid()) and grid.width > 2 * 64
        assert not same(grid, images.grid(private=True).resize(grid.size))
    assert sp.GeneratedImages()._repr_png_() is None


def test_a_slice_of_generated_images_keeps_its_type(images):
    assert isinstance(images[:1], sp.GeneratedImages) and images[:1] == [images[0]]
    assert images.recipes == [image.recipe for image in images]


def test_a_list_of_images_is_saved_as_by_the_command_line(images, tmp_path):
    paths = images.save(tmp_path / "outputs")
    assert [path.read_bytes() for path in paths] == [image.to_png() for image in images]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d/00001-[0-9a-f]{8}\.png", str(paths[0].relative_to(tmp_path / "outputs")))
    assert (tmp_path / "outputs" / "index.html").exists()
    assert sp.GeneratedImages().save(tmp_path / "empty") == [] and not (tmp_path / "empty").exists()


def test_copies_keep_the_recipe(images):
    import copy
    import pickle

    image = images[0]
    for other in (image.copy(), copy.copy(image), copy.deepcopy(image), pickle.loads(pickle.dumps(image))):
        assert other == image and other.recipe == image.recipe and other is not image
    changed = image.copy()
    changed.putpixel((0, 0), (1, 2, 3))
    assert changed != image and changed.getpixel((0, 0)) == (1, 2, 3)
    assert image != image.image


def test_images_hidden_by_the_safety_checker_raise_a_warning(sd, images, monkeypatch):
    class Checker:
        def load(self):
            pass

        def flag(self, images):
            return [True] * len(images)

    monkeypatch.setattr(sd.base, "safety_checker", Checker())
    with pytest.warns(UserWarning, match="hid 1"):
        (image,) = sd.generate("a duck", num_images=1, **SMALL)
    assert image.hidden


def test_generation_without_hidden_images_raises_no_warning(sd):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        sd.generate("a duck", num_images=1, **SMALL)


def test_paths_may_be_any_path_like_object(sd, images, tmp_path):
    class Elsewhere(os.PathLike):
        def __fspath__(self):
            return str(tmp_path / "a.png")

    images[0].save(Elsewhere())
    assert Path(Elsewhere()).exists() and sd.redo(Elsewhere(), quiet=True) == images[0]
