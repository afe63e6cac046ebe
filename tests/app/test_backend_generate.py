"""What the Generate tab asks for, without the page: prompts, forms, init images, jobs from images, presets."""

import io
import math
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdpersonal.app.backend import Workspace
from sdpersonal.app.backend.generate import image_settings, init_images, presets
from sdpersonal.app.backend.generate.generate_form import (
    aspect_presets,
    form_defaults,
    form_values,
    request_fields,
    save_init_image,
)
from sdpersonal.app.backend.generate.image_files import ImageFiles
from sdpersonal.app.backend.generate.init_images import InitImages
from sdpersonal.app.backend.generate.jobs import AXES, axis_text, generate_job, grid_job
from sdpersonal.app.backend.generate.places import change_region
from sdpersonal.app.backend.generate.prompt import (
    MAX_CONCEPTS,
    PROMPT_PRESETS,
    PromptConcept,
    change_strength,
    check_prompt,
    fill_preset,
    prompt_presets,
)
from sdpersonal.app.backend.generate.submission import JobRequest, plan_job
from sdpersonal.app.backend.library.thumbnails import thumb_url
from sdpersonal.config import GenerateRequest
from sdpersonal.errors import UserError
from sdpersonal.generation import Generator
from sdpersonal.image_metadata import png_with_recipe, read_recipe
from sdpersonal.prompts import Token, parse
from support.stock import small_library
from support.user_jobs import Jobs

FORM = {"prompt": "a <me/duck> on grass", "num_images": 1, "steps": 2, "seed": 7}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    place = tmp_path_factory.mktemp("workspace")
    return Workspace(small_library(place / "concepts"), place / "outputs", place / "runs", place / "shown")


@pytest.fixture(scope="module")
def app(tiny, workspace):
    return Jobs(lambda name: Generator(tiny, workspace.library), workspace)


@pytest.fixture(scope="module")
def generated(app):
    """The id of an image that was generated."""
    return app.run(generate_job(FORM))["images"][0]["id"]


@pytest.fixture(scope="module")
def file(app, generated):
    return app.gallery.find(None, generated).path


def asked(app, kind, image=None, user=None, **options):
    """Ask for a job as a page does; return the last view."""
    return app.run(lambda: plan_job(JobRequest(kind=kind, image=image, **options), app.gallery, user), user)


def recipes(app, view):
    assert view["state"] == "done", view["message"]
    return [read_recipe(app.gallery.find(None, image["id"]).path.read_bytes()) for image in view["images"]]


def test_attention_areas_are_shown_for_two_or_more_concepts(app, generated, file):
    files = ImageFiles(app.gallery)
    assert not image_settings.has_areas(read_recipe(file.read_bytes()))
    view = app.run(generate_job(FORM | {"prompt": "a <me/duck> by <you/ink>"}))
    (recipe,) = recipes(app, view)
    assert image_settings.has_areas(recipe)
    text = image_settings.format_facts(recipe)
    assert "\nAttention: <me/duck-v" in text and "; <you/ink-v" in text and " across, " in text
    with Image.open(io.BytesIO(files.areas(None, view["images"][0]["id"]))) as overlay:
        assert overlay.size == (512, 512) and not overlay.info  # no recipe
    with pytest.raises(UserError, match="not known"):
        files.areas(None, generated)


# --- prompts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prompt, strengths",
    [
        ("a cat", ()),
        ("a <me/duck>", (("<me/duck>", 1.0),)),
        ("a <me/duck:0.7@0-0.6> by <you/ink:1.2>", (("<me/duck>", 0.7), ("<you/ink>", 1.2))),
        ("a {<me/duck:0.4>|<you/ink>}", (("<me/duck>", 0.4), ("<you/ink>", 1.0))),
        ("a <me/duck:-3> by <you/ink:+2@.5-1>", (("<me/duck>", -3.0), ("<you/ink>", 2.0))),
        ("<me/duck+you/ink>", (("<me/duck>", 0.5), ("<you/ink>", 0.5))),
        (r"a \<me/duck> < b", ()),
    ],
)
def test_the_prompt_check_lists_concept_strengths(workspace, prompt, strengths):
    check = check_prompt(prompt, workspace, "tiny")
    assert check.problem == "" and tuple((concept.token, concept.strength) for concept in check.concepts) == strengths


def test_the_prompt_check_lists_known_and_missing_concepts(workspace):
    (duck, ink) = check_prompt("a <me/duck> {<me/duck:0.7:at=left>|by <you/ink@0-0.5>}", workspace, "tiny").concepts
    entry = workspace.library.find(Token.parse("<me/duck>"))
    assert duck == PromptConcept("<me/duck>", "<me/duck:0.7:at=left>", "object", 0.7, "left", thumb_url(entry))
    assert (ink.written, ink.kind, ink.region) == ("<you/ink@0-0.5>", "style", None)
    missing = check_prompt("a <me/duk:2>", workspace, "tiny").concepts
    assert missing == (PromptConcept("<me/duk>", "<me/duk:2>", "", 2.0, None, ""),)


@pytest.mark.parametrize(
    "prompt, words",
    [
        ("a <me/duk>", "Did you mean <me/duck>?"),
        ("a <me/photo>", "another kind of model"),
        ("a <me/duck:9>", "must be a number from -5 to 5"),
        ("a {b", "{"),
        ("a __nothing__", "nothing"),
        (None, "must be text"),
        (7, "must be text"),
        ("a" * 5000, "characters"),
    ],
)
def test_the_prompt_check_reports_problems_before_generation(workspace, prompt, words):
    assert words in check_prompt(prompt, workspace, "tiny").problem


def test_the_prompt_check_lists_only_the_first_concepts(workspace):
    prompt = " ".join(f"<me/thing-{i}>" for i in range(MAX_CONCEPTS + 9))
    assert len(check_prompt(prompt, workspace, "tiny").concepts) == MAX_CONCEPTS


@pytest.mark.parametrize(
    "strength, wanted",
    [
        (0.5, "a <me/duck:0.5>"),
        (9, "a <me/duck:5>"),
        (-1.25, "a <me/duck:-1.25>"),
        (-9, "a <me/duck:-5>"),
        (-0.001, "a <me/duck:0>"),
        (math.nan, "a <me/duck>"),
        ("x", "a <me/duck>"),
        (None, "a <me/duck>"),
    ],
)
def test_a_strength_change_is_written_into_the_prompt(strength, wanted):
    result = change_strength("a <me/duck>", "<me/duck>", strength)
    assert result == wanted or (math.isnan(strength) and "nan" not in result)


@pytest.mark.parametrize(
    "prompt, regions",
    [
        ("a <me/duck> by <you/ink:at=left>", ("auto", None)),
        ("<me/duck:0.5:at=LEFT@0-0.6>", ("left",)),
        ("<me/duck:box=0,0,0.5,1>", ("left",)),  # the same
        ("<me/duck:box=0,0,0.3,1>", ("box",)),
        ("<me/duck> {<me/duck:at=top>|a cat}", ("top",)),
        ("<me/duck+you/ink:at=centre>", ("center", None)),
        ("<me/duck:at={left|right}>", ("right",)),
        ("<me/nobody:at=left>", (None,)),
    ],
)
def test_the_prompt_check_lists_the_regions_of_subjects(workspace, prompt, regions):
    assert tuple(concept.region for concept in check_prompt(prompt, workspace, "tiny").concepts) == regions


@pytest.mark.parametrize(
    "prompt, name, wanted",
    [
        ("a <me/duck> here", "left", "a <me/duck:at=left> here"),
        ("<me/duck:0.8:box=0,0,1,0.2:ramp=0-1@0.2-1>", "top-left", "<me/duck:0.8:ramp=0-1:at=top-left@0.2-1>"),
        ("<me/duck:at=left+you/ink>", "right", "<me/duck+you/ink:at=right>"),
        ("<duck:at=left> and <you/ink>", "auto", "<duck> and <you/ink>"),
        ("<me/duck:at={left|right}> {a|b}", "bottom", "<me/duck:at=bottom> {a|b}"),
        ("a <me/duck:at=top> here", "0.05,.4,0.50,1", "a <me/duck:box=0.05,0.4,0.5,1> here"),
        ("<me/duck:box=0,0,1,0.2@0-0.5>", "0,0,0.5,1", "<me/duck:at=left@0-0.5>"),  # its name
        ("<me/duck:at=left>", "0.5,0,0.2,1", "<me/duck:at=left>"),
        ("<me/duck:at=left>", "0,0,1,1:0.5", "<me/duck:at=left>"),
        ("<me/duck:at=left>", "0,0,nan,1", "<me/duck:at=left>"),
        ("<me/duck:at=left>", "box", "<me/duck:at=left>"),
        ("<me/duck:at=left>", "behind", "<me/duck:at=left>"),
        ("<me/duck:at=left>", None, "<me/duck:at=left>"),
        (r"a \<me/duck> <you/ink>", "left", r"a \<me/duck> <you/ink>"),
    ],
)
def test_a_chosen_region_is_written_into_the_prompt(prompt, name, wanted):
    assert change_region(prompt, "<me/duck>", name) == wanted
    assert change_region(prompt, "no token", name) == change_region(prompt, "<me/cat>", name) == prompt
    parse(wanted.replace("{a|b}", ""))


@pytest.mark.parametrize(
    "prompt, places",
    [
        (
            "a <me/duck> and <me/photo> by <you/ink>",
            [("me/duck", (0, 0, 0.5, 1), False), ("me/photo", (0.5, 0, 1, 1), False)],
        ),
        (
            "a <me/duck> on top of a <me/photo>",
            [("me/duck", (0, 0, 1, 0.5), False), ("me/photo", (0, 0.5, 1, 1), False)],
        ),
        (
            "a <me/duck:at=right> and <me/photo>",
            [("me/duck", (0.5, 0, 1, 1), True), ("me/photo", (0, 0, 0.5, 1), False)],
        ),
        ("<you/ink> <me/duck+me/photo:box=0,0.1,1,1>", [("me/duck+me/photo", (0, 0.1, 1, 1), True)]),
        (
            "<me/duck:at=left> <me/duck:at=right>",
            [("me/duck", (0, 0, 0.5, 1), True), ("me/duck", (0.5, 0, 1, 1), True)],
        ),
        (r"\<me/duck> <me/nobody:at=left> by <you/ink:at=left> {a|b}", []),
        ("<me/duck", []),
    ],
)
def test_the_prompt_check_lists_the_boxes_of_subjects(workspace, prompt, places):
    """The same as where the generator puts them: as given, else side by side or one above the other."""
    listed = check_prompt(prompt, workspace, "tiny").places
    assert [(place.name, place.box, place.is_given) for place in listed] == places


def test_the_prompt_check_marks_subjects_used_in_part_of_the_sampling(workspace):
    places = check_prompt("<me/duck@0-0.5> and <me/duck-v1@0-1>", workspace, "tiny").places
    assert [place.has_window for place in places] == [True, False]


def test_a_region_changes_only_the_chosen_mention(workspace):
    prompt = "<you/ink>, <me/duck:at=left> and <duck:0.5>"
    first, second = check_prompt(prompt, workspace, "tiny").places
    assert (first.number, second.number) == (1, 2)
    moved = change_region(prompt, second.token, "0.6,0,1,1", second.number)
    assert moved == "<you/ink>, <me/duck:at=left> and <duck:0.5:box=0.6,0,1,1>"
    assert change_region(prompt, first.token, "auto", first.number) == "<you/ink>, <me/duck> and <duck:0.5>"
    assert change_region(prompt, second.token, "top", 0) == change_region(prompt, second.token, "top", 9) == prompt


def test_prompt_presets_are_filled_with_a_fitting_concept(workspace):
    offers = prompt_presets()
    assert {offer["title"] for offer in offers} == {title for titles in PROMPT_PRESETS.values() for title in titles}
    for offer in offers:
        words = fill_preset(offer["id"], "", workspace.library, "tiny")
        assert ("<you/ink>" if offer["kind"] == "style" else "<me/duck>") in words and "{}" not in words
        GenerateRequest(prompt=words)  # it can be read, alternatives and all
    with pytest.raises(UserError, match="no such prompt preset"):
        fill_preset("nothing", "", workspace.library, "tiny")
    with pytest.raises(UserError, match="There is no object"):
        fill_preset("object-0", "", workspace.library, "sdxl")


# --- the form ---------------------------------------------------------------------------------------------------------


def fields(app, form, user=None):
    return request_fields({"prompt": "a cat", **form}, app.gallery, user)


def test_the_form_keeps_all_digits_of_a_seed(app):
    """JavaScript's numbers would lose them above 2**53, so they are text on the page."""
    assert form_values({"seed": 2**64 - 1})["seed"] == "18446744073709551615"
    assert fields(app, {"seed": "18446744073709551615"})["seed"] == 2**64 - 1
    assert {type(fields(app, {"seed": None})["seed"]) for _ in range(3)} == {int}
    assert fields(app, {"seed": None}) != fields(app, {"seed": None})


def test_the_default_form_is_a_valid_request(app):
    """Nothing is filled in but a prompt; a field that is left empty is the base's own, or named."""
    form = form_defaults(app.generation.base) | {"prompt": "a cat"}
    request = GenerateRequest(**request_fields(form, app.gallery, None))
    assert request.scheduler is None and request.fast is None and request.clip_skip == 1 and request.size == "128x128"
    for seed in (" ", ""):
        with pytest.raises(UserError, match="seed is empty"):
            fields(app, {"seed": seed})
    for seed in ("-1", "1.5", "x", "9" * 30, True, [1], 1.5):
        with pytest.raises(UserError, match=r"seed must be a .* got"):
            GenerateRequest(**fields(app, {"seed": seed}))


@pytest.mark.parametrize("form", [{"width": 7, "height": 64}, {"width": "x"}, {"height": 128}, {"size": "1x1"}])
def test_an_invalid_size_is_refused_with_a_message(app, form):
    with pytest.raises(UserError, match="size must be"):
        GenerateRequest(**fields(app, form))


@pytest.mark.parametrize("form", [{"init_image": "/etc/passwd"}, {"mask": "/etc/passwd"}, {"mask": {"upload": "/x"}}])
def test_a_form_cannot_name_a_file_path(app, form):
    with pytest.raises(UserError):
        GenerateRequest(**fields(app, form))


@pytest.mark.parametrize("resolution", [128, 512, 768, 1024])
def test_aspect_presets_match_the_area_of_the_model(resolution):
    sizes = [(preset["label"], preset["width"], preset["height"]) for preset in aspect_presets(resolution)]
    assert sizes[0] == ("1:1", resolution, resolution) and len(sizes) == len(set(sizes))
    for label, width, height in sizes:
        across, down = map(int, label.split(":"))
        assert 0.8 < width * height / resolution**2 < 1.2 and 0.8 < width / height / (across / down) < 1.25
        assert width % (8 if resolution == 128 else 64) == height % (8 if resolution == 128 else 64) == 0
        GenerateRequest(prompt="", size=f"{width}x{height}")


# --- settings of images -----------------------------------------------------------------------------------------------


def test_the_settings_of_an_image_generate_it_again(app, file):
    settings = image_settings.read_settings(file)
    assert settings.same and not settings.notes
    form = form_values(settings.fields)
    (path,) = app.images(lambda: generate_job(request_fields(form, app.gallery, None)))
    assert path.read_bytes() == file.read_bytes() and path != file


def test_an_unsupported_foreign_prompt_fills_the_form_with_a_note(app, tmp_path):
    info = PngInfo()
    text = "a cat AND a dog\nSteps: 4, Sampler: Euler a, CFG scale: 7, Seed: 18446744073709551615, Size: 64x64"
    info.add_text("parameters", text)
    Image.new("RGB", (64, 64)).save(tmp_path / "theirs.png", pnginfo=info)
    foreign = image_settings.read_settings(tmp_path / "theirs.png")
    assert foreign == image_settings.read_pasted_settings(text)
    assert foreign.fields["prompt"] == "a cat AND a dog" and foreign.fields["seed"] == 2**64 - 1
    assert "AND in capitals" in " ".join(foreign.notes) and not foreign.same
    view = app.run(lambda: generate_job(dict(foreign.fields) | {"num_images": 1}))
    assert "AND in capitals" in view["message"] and not view["images"]
    values = form_values(foreign.fields)
    assert (values["width"], values["height"], values["seed"]) == (64, 64, "18446744073709551615")


@pytest.mark.parametrize("text", ["", "a cat", "Steps: x", "a\nNegative prompt: b", "{}", "x" * 200_000])
def test_text_without_settings_is_refused(text):
    with pytest.raises(UserError):
        image_settings.read_pasted_settings(text)


def test_settings_of_an_image_replace_all_earlier_settings(file, tmp_path):
    info = PngInfo()
    info.add_text("parameters", "a cat\nSteps: 4, Sampler: Euler a, Seed: 5, Size: 64x64")
    Image.new("RGB", (64, 64)).save(tmp_path / "theirs.png", pnginfo=info)
    for image, scheduler in ((file, ""), (tmp_path / "theirs.png", "Euler a")):
        values = form_values(image_settings.read_settings(image).fields)
        expected = {"scheduler": scheduler, "fast": "", "clip_skip": 1, "negative": "", "hires_scale": 1.0}
        expected["compose"] = True
        assert {name: values[name] for name in expected} == expected
    former = read_recipe(file.read_bytes()).model_copy(update={"compose": False})
    (tmp_path / "former.png").write_bytes(png_with_recipe(Image.new("RGB", (64, 64)), former))
    assert image_settings.read_settings(tmp_path / "former.png").fields["compose"] is False


@pytest.mark.parametrize("image", ["/etc/passwd", "/nothing/there.png", "/dev/zero", "/"])
def test_files_that_are_not_images_have_no_settings(image):
    with pytest.raises(UserError):
        image_settings.read_settings(image)


# --- jobs from an image -----------------------------------------------------------------------------------------------


def test_an_image_is_generated_again_with_the_same_or_other_seeds(app, generated, file):
    view = asked(app, "redo", generated)
    (path,) = (app.gallery.find(None, image["id"]).path for image in view["images"])
    assert path.read_bytes() == file.read_bytes() and view["title"] == "“a <me/duck> on grass” again"
    others = recipes(app, asked(app, "redo", generated, count=2))
    assert len(others) == 2 and 7 not in [recipe.seed for recipe in others]
    assert {recipe.prompt for recipe in others} == {"a <me/duck> on grass"}


def test_an_image_of_a_batch_is_generated_again(app):
    view = app.run(generate_job(FORM | {"num_images": 3, "prompt": "a {cat|dog}"}))
    last = view["images"][2]["id"]
    (again,) = asked(app, "redo", last)["images"]
    files = [app.gallery.find(None, image).path.read_bytes() for image in (last, again["id"])]
    assert files[0] == files[1]


def test_variations_use_the_seed_and_a_variation_strength(app, generated):
    view = asked(app, "variations", generated, strength=0.2, count=2)
    assert [(r.seed, r.variation_strength, r.variation_seed) for r in recipes(app, view)] == [(7, 0.2, 1), (7, 0.2, 2)]
    assert view["title"] == "2 variations of “a <me/duck> on grass”" and view["expected"] == view["count"] == 2
    again = asked(app, "variations", view["images"][0]["id"])
    assert again["state"] == "failed" and "itself a variation" in again["message"] and "--" not in again["message"]


def test_a_change_replaces_a_strength_or_words_of_the_prompt(app, generated):
    stronger = asked(app, "change", generated, change="<me/duck>=0.5,0.8")
    words = asked(app, "change", generated, change="grass=snow|sand")
    prompts = [recipe.prompt for view in (stronger, words) for recipe in recipes(app, view)]
    assert prompts == [f"a <me/duck:{strength}> on grass" for strength in (0.5, 0.8)] + [
        f"a <me/duck> on {ground}" for ground in ("snow", "sand")
    ]


def test_hires_generates_an_image_at_twice_the_size(app, generated):
    view = asked(app, "hires", generated)
    assert (view["images"][0]["width"], view["images"][0]["height"]) == (256, 256)
    assert view["done"] == view["total"] > 0


@pytest.mark.parametrize("change", ["", "snow", "=", "nothing=snow", "<me/cat>=0.5", None])
def test_an_invalid_change_fails_with_a_message(app, generated, change):
    view = asked(app, "change", generated, change=change)
    assert not view["images"] and view["message"] and "Internal" not in view["message"]


@pytest.mark.parametrize("strength", [math.nan, 0, 7])
def test_an_invalid_strength_fails_with_a_message(app, generated, strength):
    view = asked(app, "variations", generated, strength=strength)
    assert not view["images"] and "variation_strength must be" in view["message"]
    assert "must be" in asked(app, "hires", generated, strength=strength)["message"]


@pytest.mark.parametrize("kind", ["variations", "change", "hires", "redo"])
@pytest.mark.parametrize("image, words", [(None, "Click one first"), ("x", "not an image"), ("../x", "not an image")])
def test_jobs_without_a_valid_image_fail_with_a_message(app, kind, image, words):
    assert words in asked(app, kind, image, change="a=b")["message"]


# --- to begin from ----------------------------------------------------------------------------------------------------


def uploaded(workspace, name, data):
    path = workspace.served_dir / f"upload-{name}" / "sum" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def as_png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def png_head(width, height):
    """A PNG of this size without pixels: whoever decodes it finds it damaged."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"")
    chunks = (struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (head, data))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_a_painted_part_becomes_a_mask(app, workspace):
    start = Image.new("RGBA", (80, 64), (9, 99, 9, 128))
    for layer, paint in ((Image.new("RGBA", (80, 64)), (0, 255, 255, 255)), (Image.new("L", (80, 64)), 255)):
        layer.paste(paint, (10, 20, 30, 40))
        uploads = [uploaded(workspace, name, as_png(image)) for name, image in (("start", start), ("layer", layer))]
        form = {"init": {"upload": str(uploads[0])}, "mask": {"upload": str(uploads[1])}}
        paths = fields(app, form | {"width": 512, "height": 512, "hires_scale": 2})
        assert paths["size"] is None and paths["hires_scale"] == 1.0  # the init image has its own size
        with Image.open(paths["mask"]) as mask, Image.open(paths["init_image"]) as image:
            white = np.asarray(mask)[..., 0] == 255
            assert white.sum() == 400 and white[20:40, 10:30].all()
            flat = Image.alpha_composite(Image.new("RGBA", (80, 64), "white"), start)
            assert image.mode == "RGB" and np.array_equal(np.asarray(image), np.asarray(flat.convert("RGB")))
        assert not [path for path in uploads if path.exists()]


def test_a_mask_is_resized_or_refused_if_its_aspect_ratio_differs(app, workspace):
    start = {"upload": str(uploaded(workspace, "start", as_png(Image.new("RGB", (80, 64)))))}
    saved = save_init_image(start, app.gallery, None)
    assert (saved["width"], saved["height"]) == (80, 64)
    half = Image.new("RGBA", (40, 32))
    half.paste((0, 0, 0, 255), (0, 0, 20, 32))
    paths = fields(app, {"init": saved["init"], "mask": {"upload": str(uploaded(workspace, "m", as_png(half)))}})
    with Image.open(paths["mask"]) as mask:
        assert mask.size == (80, 64) and (np.asarray(mask)[:, :40] == 255).all() and not np.asarray(mask)[:, 40:].any()
    square = uploaded(workspace, "square", as_png(Image.new("RGBA", (64, 64), "white")))
    with pytest.raises(UserError, match="mask is 64x64 and the init image 80x64"):
        fields(app, {"init": saved["init"], "mask": {"upload": str(square)}})


def test_an_uploaded_init_image_is_saved_for_its_user_only(app, workspace, generated):
    upload = uploaded(workspace, "start", as_png(Image.new("RGB", (80, 64), (1, 2, 3))))
    saved = save_init_image({"upload": str(upload)}, app.gallery, "ann")
    assert not upload.exists() and saved["url"] == f"/app/init-images/{saved['init']['saved']}.png"
    assert save_init_image(saved["init"], app.gallery, "ann") == saved
    assert fields(app, {"init": saved["init"]}, "ann")["init_image"].is_file()
    for user in ("bob", None):
        with pytest.raises(UserError, match="gone"):
            fields(app, {"init": saved["init"]}, user)
    image = save_init_image({"image": generated}, app.gallery, None)
    assert image["url"] == f"/app/images/{generated}.png" and image["width"] == 128
    with pytest.raises(UserError):
        fields(app, {"init": {"image": generated}}, "ann")


@pytest.mark.parametrize(
    "init",
    [
        "x", {"saved": "../x"}, {"saved": None}, {"saved": "0" * 16}, {"path": "/etc/passwd"}, ["x"], 3,
        {"upload": "/etc/passwd"}, {"upload": None}, {"image": "../../etc/passwd"},
    ],
)  # fmt: skip
def test_invalid_init_images_are_refused(app, init):
    with pytest.raises(UserError):
        fields(app, {"init": init})


def test_an_empty_mask_is_ignored_and_a_mask_needs_an_init_image(app, workspace, generated):
    form = {"init": {"image": generated}}
    for empty in (Image.new("RGBA", (128, 128)), Image.new("RGB", (128, 128))):
        upload = uploaded(workspace, "empty", as_png(empty))
        assert "mask" not in fields(app, form | {"mask": {"upload": str(upload)}}) and not upload.exists()
    with pytest.raises(UserError, match="no init image"):
        fields(app, {"mask": {"saved": "0" * 16}})


def test_only_the_newest_init_images_stay_saved(app, workspace, monkeypatch):
    monkeypatch.setattr(init_images, "MAX_SAVED", 4)
    store = InitImages(workspace, "eve")
    for red in range(9):
        data = as_png(Image.new("RGB", (64, 64), (red, 0, 0)))
        newest = store.path(store.save_image(str(uploaded(workspace, "x", data))))
    assert newest.exists() and len(list(store.folder.glob("*.png"))) == 4


@pytest.mark.parametrize(
    "data, words",
    [
        (png_head(13300, 13300), "13300x13300"),
        (png_head(4097, 16), "4097x16"),
        (png_head(64, 64), "damaged"),
        (b"II*\0" + bytes(100), "a TIFF"),
        (b"GIF89a" + bytes(100), "a GIF"),
        (b"", "not an image"),
    ],
)
def test_unusable_init_images_and_masks_are_refused_and_deleted(app, workspace, generated, data, words):
    for name in ("init", "mask"):
        path = uploaded(workspace, "x", data)
        with pytest.raises(UserError, match=words):
            fields(app, {"init": {"image": generated}, name: {"upload": str(path)}})
        assert not path.exists()


def test_inpainting_changes_only_the_masked_part(app, workspace, generated, file):
    layer = Image.new("RGBA", (128, 128))
    layer.paste((0, 255, 255, 255), (64, 0, 128, 128))
    mask = {"upload": str(uploaded(workspace, "layer", as_png(layer)))}
    form = FORM | {"init": {"image": generated}, "mask": mask, "strength": 1.0, "seed": "8", "steps": 4}
    view = asked(app, "generate", form=form)
    with Image.open(file) as old, Image.open(app.gallery.find(None, view["images"][0]["id"]).path) as new:
        difference = np.abs(np.asarray(new, int) - np.asarray(old, int)).max(-1)
    assert difference[:, :48].max() == 0 and difference[:, 80:].max() > 20
    for kind in ("redo", "variations", "hires"):  # the init image is not in it
        again = asked(app, kind, view["images"][0]["id"])
        assert again["state"] == "failed" and "init image" in again["message"] and "--" not in again["message"]


# --- grids ------------------------------------------------------------------------------------------------------------


def test_the_example_of_every_grid_axis_works(workspace):
    for kind, (_, example) in AXES.items():
        prompt = "a <me/duck> by <me/ink> {}" if "{}" in kind else "a <me/duck> by <me/ink>"
        assert grid_job(FORM | {"prompt": prompt}, kind, example, "", "").expected > 2


@pytest.mark.parametrize(
    "kind, values",
    [
        ("checkpoint", "/etc"),
        ("Seed", "checkpoint: /etc"),
        ("Seed", None),
        (None, "1..4"),
        (3, "1"),
    ],
)
def test_invalid_grid_axes_are_refused(kind, values):
    with pytest.raises(UserError):
        grid_job(FORM, kind, values, "", "")


def test_axis_values_are_written_in_the_grid_syntax():
    assert axis_text("Seed", "1..4") == "seed: 1..4"
    assert axis_text("Strength of a concept", "<me/duck>: 0..1 by 0.25") == "strength <me/duck>: 0..1 by 0.25"
    assert axis_text("Strength of a concept", "0.5, 1", "a <me/duck> and <me/duck:0.5>") == "strength <me/duck>: 0.5, 1"
    for prompt in ("a duck", "<me/duck> and <me/cat>", "<me/duck", None):
        with pytest.raises(UserError, match="start with the concept"):
            axis_text("Strength of a concept", "0.5, 1", prompt)
    assert axis_text("", "1") is None


def test_a_grid_is_generated_and_its_images_are_saved(app):
    view = asked(app, "grid", form=FORM, x="Seed", x_values="1..2", y="Steps", y_values="1, 2")
    assert view["message"].startswith("A grid of 4 images") and view["title"] == "Grid 2 × 2 of “a <me/duck> on grass”"
    assert [image["kind"] for image in view["images"]] == ["image"] * 4 + ["grid"]
    assert view["count"] == view["expected"] == 5 and view["done"] == view["total"] == 2 * (1 + 2)
    grid = view["images"][-1]
    assert grid["width"] > 200 and grid["prompt"] == "a <me/duck> on grass"
    assert b"<!doctype html" in ImageFiles(app.gallery).grid_page(None, grid["id"]).lower()
    assert "grid is not an image" in asked(app, "hires", grid["id"])["message"]


# --- own presets ------------------------------------------------------------------------------------------------------


def test_presets_are_saved_per_user(workspace):
    def add(*preset, user="ann"):
        return presets.add_preset(workspace, user, *preset)

    ink = add(" ink ", "style", {"prompt": ", ink drawing"})
    add("bad hands", "negative", {"negative": "bad hands"})
    add("my form", "form", {"steps": 30, "guidance": 7.5, "compose": True, "scheduler": "", "seed": None})
    listed = presets.list_presets(workspace, "ann")
    assert [(preset["name"], preset["kind"]) for preset in listed] == [
        ("ink", "style"),
        ("bad hands", "negative"),
        ("my form", "form"),
    ]
    assert add("ink", "style", {"prompt": ", watercolour"}) == ink  # in its place
    assert presets.list_presets(workspace, "ann")[0]["values"] == {"prompt": ", watercolour"}
    assert presets.list_presets(workspace, "bob") == presets.list_presets(workspace, None) == []
    presets.delete_preset(workspace, "ann", ink)
    with pytest.raises(UserError, match="gone"):
        presets.delete_preset(workspace, "ann", ink)
    with pytest.raises(UserError, match="gone"):
        presets.delete_preset(workspace, "bob", listed[1]["id"])
    assert len(presets.list_presets(workspace, "ann")) == 2


@pytest.mark.parametrize(
    "preset",
    [
        ("", "style", {"prompt": "x"}), (" ", "style", {"prompt": "x"}), ("x" * 200, "style", {"prompt": "x"}),
        ("x", "style", {"negative": "x"}), ("x", "style", {}), ("x", "evil", {"prompt": "x"}),
        ("x", "form", {"steps": [1]}), ("x", "form", {"steps": math.nan}), ("x", "form", {"prompt": "x" * 10_000}),
        ("x", "form", {f"{i}": 1 for i in range(99)}), ("\ud800", "style", {"prompt": "x"}), ("x", "form", {"a": {}}),
    ],
)  # fmt: skip
def test_invalid_presets_are_refused(workspace, preset):
    with pytest.raises(UserError):
        presets.add_preset(workspace, "eve", *preset)
    assert presets.list_presets(workspace, "eve") == []


def test_presets_are_limited_and_a_damaged_file_is_reported(workspace, monkeypatch):
    monkeypatch.setattr(presets, "MAX_PRESETS", 2)
    for name in "ab":
        presets.add_preset(workspace, "max", name, "style", {"prompt": name})
    with pytest.raises(UserError, match="2 presets already"):
        presets.add_preset(workspace, "max", "c", "style", {"prompt": "c"})
    path = workspace.user_outputs("max").folder / presets.FILE_NAME
    path.write_text('[{"id": "1"}, 3, null]')
    assert presets.list_presets(workspace, "max") == []
    for text in ("{", "{}", "[" * 100_000):
        path.write_text(text)
        with pytest.raises(UserError, match="cannot be read"):
            presets.list_presets(workspace, "max")


def test_an_unknown_concept_is_reported_before_the_job_is_queued(app):
    for kind in ("generate", "endless", "grid"):
        view = asked(app, kind, form=FORM | {"prompt": "a <me/duk> {on|by} <you/ink>"}, x="Seed", x_values="1..2")
        assert view["message"] == "No concept <me/duk>.\nDid you mean <me/duck>?" and "id" not in view


def test_users_see_only_their_own_images(app, workspace):
    app.run(generate_job(FORM), "zoe")
    assert app.gallery.page("zoe").total == 1 and app.gallery.page("yan").total == 0
    assert all("zoe" not in str(app.gallery.find(None, image["id"]).path) for image in app.gallery.page(None).images)
    for name in ("../ann", "A", "a/b", "x" * 40):
        with pytest.raises(UserError):
            workspace.user_outputs(name)
