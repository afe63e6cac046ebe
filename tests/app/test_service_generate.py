"""What the Generate tab asks for, without the page: prompts looked at, pictures picked, begun from, found again."""

import io
import math
import struct
import zlib
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdpersonal.app.backend import GenerationService, Workspace
from sdpersonal.app.backend.error_text import LABELS, value_or_error
from sdpersonal.app.backend.generate import generate_form, history, image_actions
from sdpersonal.app.backend.generate.generate_form import save_init_image
from sdpersonal.app.backend.generate.jobs import AXES, NO_AXIS, axis_text, generate_job, grid_job
from sdpersonal.app.backend.generate.prompt import (
    MAX_STRENGTHS,
    PROMPT_PRESETS,
    REGION_CHOICES,
    PromptCheck,
    change_region,
    change_strength,
    check_prompt,
    fill_preset,
    subject_regions,
)
from sdpersonal.app.ui.generate.generate_form import GenerateForm
from sdpersonal.config import GenerateRequest
from sdpersonal.errors import UserError
from sdpersonal.generation import Generator
from sdpersonal.image_metadata import Recipe, png_with_recipe, read_recipe
from sdpersonal.prompts import parse
from support.stock import small_library

FORM = {"prompt": "a <me/duck> on grass", "num_images": 1, "steps": 2, "seed": 7}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    place = tmp_path_factory.mktemp("workspace")
    return Workspace(small_library(place / "concepts"), place / "outputs", place / "runs", place / "shown")


@pytest.fixture(scope="module")
def service(tiny, workspace):
    return GenerationService(lambda name: Generator(tiny, workspace.library), workspace)


@pytest.fixture(scope="module")
def drawn(service):
    """A picture that was drawn on a page."""
    return list(service.submit(lambda: generate_job(FORM), "page"))[-1].results[0]


def ended(service, work):
    return list(service.submit(work, "page"))[-1]


def test_where_concepts_are_is_drawn_for_two_or_more(service, workspace, drawn):
    assert not image_actions.has_areas(drawn.saved) and "Attention" not in image_actions.recipe_text(drawn.saved)
    form = FORM | {"prompt": "a <me/duck> by <you/ink>"}
    both = ended(service, lambda: generate_job(form)).results[0]
    assert image_actions.has_areas(both.saved)
    text = image_actions.recipe_text(both.saved)
    assert "\nAttention: <me/duck-v" in text and "; <you/ink-v" in text and " across, " in text
    overlay = image_actions.draw_areas(workspace, "page", both)
    assert overlay.parent == workspace.session_dir("page") and Image.open(overlay).size == (512, 512)
    assert not Image.open(overlay).info  # no recipe
    with pytest.raises(UserError, match="not known"):
        image_actions.draw_areas(workspace, "page", drawn)
    with pytest.raises(UserError, match="No image is selected"):
        image_actions.draw_areas(workspace, "page", None)


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
def test_a_prompt_says_its_strengths(workspace, prompt, strengths):
    assert check_prompt(prompt, workspace, "tiny") == PromptCheck("", strengths)


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
def test_a_prompt_says_what_is_wrong_before_anything_is_drawn(workspace, prompt, words):
    assert words in check_prompt(prompt, workspace, "tiny").note


def test_many_concepts_have_as_many_sliders_as_there_are(workspace):
    prompt = " ".join(f"<me/thing-{i}>" for i in range(9))
    assert len(check_prompt(prompt, workspace, "tiny").strengths) == MAX_STRENGTHS


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
def test_a_slider_changes_the_prompt(strength, wanted):
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
def test_subjects_say_where_they_are_to_be(workspace, prompt, regions):
    tokens = [token for token, _ in check_prompt(prompt, workspace, "tiny").strengths]
    assert subject_regions(prompt, tokens, workspace.library) == regions
    assert all(region in (None, *REGION_CHOICES) for region in regions)


@pytest.mark.parametrize(
    "prompt, name, wanted",
    [
        ("a <me/duck> here", "left", "a <me/duck:at=left> here"),
        ("<me/duck:0.8:box=0,0,1,0.2:ramp=0-1@0.2-1>", "top-left", "<me/duck:0.8:ramp=0-1:at=top-left@0.2-1>"),
        ("<me/duck:at=left+you/ink>", "right", "<me/duck+you/ink:at=right>"),
        ("<duck:at=left> and <you/ink>", "auto", "<duck> and <you/ink>"),
        ("<me/duck:at={left|right}> {a|b}", "bottom", "<me/duck:at=bottom> {a|b}"),
        ("<me/duck:at=left>", "box", "<me/duck:at=left>"),
        ("<me/duck:at=left>", "behind", "<me/duck:at=left>"),
        ("<me/duck:at=left>", None, "<me/duck:at=left>"),
        (r"a \<me/duck> <you/ink>", "left", r"a \<me/duck> <you/ink>"),
    ],
)
def test_a_place_that_is_chosen_is_written_in_the_prompt(prompt, name, wanted):
    assert change_region(prompt, "<me/duck>", name) == wanted
    assert change_region(prompt, "no token", name) == change_region(prompt, "<me/cat>", name) == prompt
    parse(wanted.replace("{a|b}", ""))


def test_ready_prompts_get_a_fitting_concept(workspace):
    for kind, prompts in PROMPT_PRESETS.items():
        for title in prompts:
            words = fill_preset(title, "", workspace.library, "tiny")
            assert ("<you/ink>" if kind == "style" else "<me/duck>") in words and "{}" not in words
            GenerateRequest(prompt=words)  # it can be read, alternatives and all
    with pytest.raises(UserError, match="no such prompt preset"):
        fill_preset("Nothing", "", workspace.library, "tiny")
    with pytest.raises(UserError, match="There is no object"):
        fill_preset("It in many places", "", workspace.library, "sdxl")


# --- one picture ------------------------------------------------------------------------------------------------------


def test_its_settings_draw_the_same_picture(service, drawn):
    fields = dict(image_actions.read_settings(drawn.saved).fields)
    again = ended(service, lambda: generate_job(fields)).results[0]
    assert again.saved.read_bytes() == drawn.saved.read_bytes() and again.saved != drawn.saved


def test_the_form_gets_the_words_of_a_prompt_that_cannot_be_used(service, tmp_path):
    info = PngInfo()
    text = "a cat AND a dog\nSteps: 4, Sampler: Euler a, CFG scale: 7, Seed: 18446744073709551615, Size: 64x64"
    info.add_text("parameters", text)
    Image.new("RGB", (64, 64)).save(tmp_path / "theirs.png", pnginfo=info)
    foreign = image_actions.read_settings(tmp_path / "theirs.png")
    assert foreign.fields["prompt"] == "a cat AND a dog" and foreign.fields["seed"] == 2**64 - 1
    assert "AND in capitals" in image_actions.settings_note(
        foreign
    ) and "same picture" not in image_actions.settings_note(foreign)
    view = ended(service, lambda: generate_job(dict(foreign.fields) | {"num_images": 1}))
    assert "AND in capitals" in view.message and not view.results


@pytest.fixture
def form():
    with gr.Blocks(analytics_enabled=False):
        laid_out = GenerateForm(gr.Textbox(label="Prompt"))
        laid_out.settings(SimpleNamespace(guidance=7.5, rescale=0.0, resolution=512, schedulers=("Euler a",)))
        laid_out.init_image()
    return laid_out


def test_the_form_keeps_all_digits_of_a_seed(form):
    """JavaScript's numbers would lose them above 2**53, so they are text on the page."""
    seed = form.components["seed"]
    assert seed.preprocess("18446744073709551615") == "18446744073709551615"
    updates = dict(zip(form.components, form.updates({"seed": 2**64 - 1}), strict=True))
    assert updates["seed"]["value"] == "18446744073709551615"
    values = {part: "" for part in form.inputs} | {seed: "18446744073709551615"}
    assert form.read(values, SimpleNamespace(workspace=None), "page")["seed"] == 2**64 - 1


def test_a_form_as_it_opens_is_a_request(form):
    """Nothing is filled in but a prompt; a field that is left empty is the base's own, or named."""
    values = {part: part.value for part in form.inputs} | {form.components["prompt"]: "a cat"}
    fields = form.read(values, SimpleNamespace(workspace=None), "page")
    request = GenerateRequest(**fields)
    assert request.scheduler is None and request.fast is None and request.clip_skip == 1 and request.seed == 0
    empty = form.read(values | {form.components["seed"]: " "}, SimpleNamespace(workspace=None), "page")
    assert value_or_error(lambda: GenerateRequest(**empty))[1] == "Seed is empty."


def test_its_labels_are_those_in_messages(form):
    named = {name: part.label for name, part in form.components.items()}
    assert named == {name: LABELS[name] for name in named}


def test_settings_of_a_picture_leave_nothing_of_the_one_before(form, drawn, tmp_path):
    info = PngInfo()
    info.add_text("parameters", "a cat\nSteps: 4, Sampler: Euler a, Seed: 5, Size: 64x64")
    Image.new("RGB", (64, 64)).save(tmp_path / "theirs.png", pnginfo=info)
    for picture, scheduler in ((drawn.saved, ""), (tmp_path / "theirs.png", "Euler a")):
        fields = dict(image_actions.read_settings(picture).fields)
        updates = dict(zip(form.components, form.updates(fields), strict=True))
        expected = {"scheduler": scheduler, "fast": "", "clip_skip": 1, "negative": "", "hires_scale": 1.0}
        expected["compose"] = True
        assert {name: updates[name]["value"] for name in expected} == expected
    former = read_recipe(drawn.saved.read_bytes()).model_copy(update={"compose": False})
    (tmp_path / "former.png").write_bytes(png_with_recipe(Image.new("RGB", (64, 64)), former))
    assert image_actions.read_settings(tmp_path / "former.png").fields["compose"] is False


def test_it_is_a_favourite_or_not(workspace, drawn):
    outputs = workspace.user_outputs(None)
    assert not image_actions.is_favourite(outputs, drawn)
    assert "Added to your favourites" in image_actions.toggle_favourite(outputs, drawn) and image_actions.is_favourite(
        outputs, drawn
    )
    assert "Removed from your favourites" in image_actions.toggle_favourite(
        outputs, drawn
    ) and not image_actions.is_favourite(outputs, drawn)


def test_it_is_taken_along_with_its_recipe_or_without(workspace, drawn):
    whole, private = (image_actions.make_download(workspace, "page", drawn, private) for private in (False, True))
    assert isinstance(read_recipe(whole.read_bytes()), Recipe)
    with Image.open(private) as image, Image.open(whole) as same:
        assert image.info == {} and np.array_equal(np.asarray(image), np.asarray(same))
    assert {whole.parent, private.parent} == {workspace.session_dir("page")}


def test_variations_are_near_it(service, workspace, drawn):
    view = ended(service, lambda: image_actions.variation_job(workspace, drawn, 0.2, 2))
    recipes = [read_recipe(result.saved.read_bytes()) for result in view.results]
    assert [(recipe.seed, recipe.variation_strength, recipe.variation_seed) for recipe in recipes] == [
        (7, 0.2, 1),
        (7, 0.2, 2),
    ]


def test_one_thing_in_it_is_changed(service, workspace, drawn):
    stronger = ended(service, lambda: image_actions.change_job(workspace, drawn, "<me/duck>=0.5,0.8"))
    words = ended(service, lambda: image_actions.change_job(workspace, drawn, "grass=snow|sand"))
    prompts = [read_recipe(result.saved.read_bytes()).prompt for result in (*stronger.results, *words.results)]
    assert prompts == [f"a <me/duck:{strength}> on grass" for strength in (0.5, 0.8)] + [
        f"a <me/duck> on {ground}" for ground in ("snow", "sand")
    ]


def test_it_is_drawn_larger(service, workspace, drawn):
    (large,) = ended(service, lambda: image_actions.hires_job(workspace, drawn, 2.0)).results
    with Image.open(large.saved) as image:
        assert image.size == (256, 256)


@pytest.mark.parametrize("change", ["", "snow", "=", "nothing=snow", "<me/cat>=0.5", None])
def test_a_change_of_nothing_is_told(service, workspace, drawn, change):
    view = ended(service, lambda: image_actions.change_job(workspace, drawn, change))
    assert not view.results and view.message and "failure" not in view.message


@pytest.mark.parametrize("share", [math.nan, 0, 7, "x", []])
def test_a_bad_share_is_told(service, workspace, drawn, share):
    view = ended(service, lambda: image_actions.variation_job(workspace, drawn, share))
    assert not view.results and "variation_strength must be" in view.message


def test_nothing_chosen_is_told(service, workspace):
    for work in (
        image_actions.variation_job,
        lambda workspace, none: image_actions.change_job(workspace, none, "a=b"),
        image_actions.hires_job,
    ):
        arguments = (workspace, None, 2.0) if work is image_actions.hires_job else (workspace, None)
        assert "Click one first" in ended(service, lambda work=work, given=arguments: work(*given)).message


@pytest.mark.parametrize("image", [None, 3, "/etc/passwd", "/nothing/there.png"])
def test_what_is_no_picture_has_no_settings(image):
    with pytest.raises(UserError):
        image_actions.read_settings(image)


# --- to begin from ----------------------------------------------------------------------------------------------------


def test_a_painted_part_becomes_a_mask(workspace):
    picture, layer = Image.new("RGBA", (80, 64), (9, 99, 9, 255)), Image.new("RGBA", (80, 64))
    layer.paste((0, 255, 255, 255), (10, 20, 30, 40))
    paths = save_init_image(workspace, "page", {"background": picture, "layers": [layer], "composite": None})
    with Image.open(paths["mask"]) as mask, Image.open(paths["init_image"]) as start:
        white = np.asarray(mask)[..., 0] == 255
        assert start.mode == "RGB" and white.sum() == 400 and white[20:40, 10:30].all()


@pytest.mark.parametrize("editor", [None, {}, {"background": None, "layers": []}, "x", {"background": "/etc/passwd"}])
def test_an_empty_editor_is_nothing_to_begin_from(workspace, editor):
    assert save_init_image(workspace, "page", editor) == {}


def test_unpainted_layers_are_no_mask_and_a_huge_picture_is_told(workspace):
    picture = Image.new("RGBA", (80, 64), (9, 99, 9, 255))
    assert [*save_init_image(workspace, "page", {"background": picture, "layers": [Image.new("RGBA", (80, 64))]})] == [
        "init_image"
    ]
    with pytest.raises(UserError, match="at most 4096"):
        save_init_image(workspace, "page", {"background": Image.new("L", (9000, 8))})


def uploaded(workspace, name, data):
    path = workspace.served_dir / f"upload-{name}" / "sum" / name
    path.parent.mkdir(parents=True)
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


def test_an_uploaded_picture_is_read_once_and_goes(workspace):
    picture, layer = Image.new("RGBA", (80, 64), (9, 99, 9, 128)), Image.new("RGBA", (80, 64))
    layer.paste((0, 255, 255, 255), (10, 20, 30, 40))
    names = {
        "background": as_png(picture),
        "layer": as_png(layer),
        "other": as_png(layer.resize((8, 8))),
        "whole": b"x",
    }
    background, *rest = (uploaded(workspace, name, data) for name, data in names.items())
    editor = {"background": background, "layers": rest[:2], "composite": rest[2]}
    paths = save_init_image(workspace, "page", editor)
    with Image.open(paths["mask"]) as mask, Image.open(paths["init_image"]) as start:
        assert (np.asarray(mask)[..., 0] == 255).sum() == 400
        white = Image.alpha_composite(Image.new("RGBA", (80, 64), "white"), picture)
        assert np.array_equal(np.asarray(start), np.asarray(white.convert("RGB")))
    assert not [path for path in (background, *rest) if path.exists()] and paths["mask"].exists()
    again = save_init_image(
        workspace, "page", {"background": paths["init_image"], "layers": []}
    )  # an image of the page
    assert again == {"init_image": paths["init_image"]} and again["init_image"].exists()


def test_a_page_keeps_the_newest_init_images_only(workspace):
    for red in range(9):
        editor = {"background": Image.new("RGB", (64, 64), (red, 0, 0))}
        newest = save_init_image(workspace, "page", editor)["init_image"]
    assert newest.exists() and len(list(workspace.session_dir("page").glob("start-*"))) == 4


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
def test_a_picture_is_refused_before_it_is_decoded(workspace, data, words):
    path = uploaded(workspace, "x", data)
    with pytest.raises(UserError, match=words):
        save_init_image(workspace, "page", {"background": path, "layers": []})
    assert not path.exists()


def test_only_layers_that_can_be_a_mask_are_decoded(workspace, monkeypatch):
    opened = []
    monkeypatch.setattr(generate_form, "_painted", lambda layer: opened.append(layer) or np.zeros((64, 80), bool))
    layers = [uploaded(workspace, f"layer{n}", as_png(Image.new("RGBA", (80, 64)))) for n in range(50)]
    layers[0].write_bytes(png_head(13300, 13300))
    background = uploaded(workspace, "background", as_png(Image.new("RGB", (80, 64))))
    assert [*save_init_image(workspace, "page", {"background": background, "layers": layers})] == ["init_image"]
    assert len(opened) == 1 and not [path for path in layers if path.exists()]


def test_a_part_is_drawn_anew(service, workspace, drawn):
    with Image.open(drawn.saved) as image:
        picture, layer = image.convert("RGBA"), Image.new("RGBA", image.size)
    layer.paste((0, 255, 255, 255), (64, 0, 128, 128))
    begun = save_init_image(workspace, "page", {"background": picture, "layers": [layer]})
    (result,) = ended(service, lambda: generate_job(FORM | begun | {"strength": 1.0, "seed": 8, "steps": 4})).results
    with Image.open(result.saved) as new:
        difference = np.abs(np.asarray(new, int) - np.asarray(picture.convert("RGB"), int)).max(-1)
    assert difference[:, :48].max() == 0 and difference[:, 80:].max() > 20


# --- sheets -----------------------------------------------------------------------------------------------------------


def test_every_side_of_a_sheet_has_an_example_that_works(workspace):
    for kind, (_, example) in AXES.items():
        prompt = "a <me/duck> by <me/ink> {}" if "{}" in kind else "a <me/duck> by <me/ink>"
        assert callable(grid_job(FORM | {"prompt": prompt}, kind, example, NO_AXIS, ""))


@pytest.mark.parametrize(
    "kind, values",
    [
        ("checkpoint", "/etc"),
        ("Seed", "checkpoint: /etc"),
        ("Seed", None),
        (None, "1..4"),
        ("Strength of a concept", "1"),
        (3, "1"),
    ],
)
def test_what_no_sheet_can_change_is_told(kind, values):
    with pytest.raises(UserError):
        grid_job(FORM, kind, values, NO_AXIS, "")


def test_an_axis_is_one_line_of_a_sheet():
    assert axis_text("Seed", "1..4") == "seed: 1..4"
    assert axis_text("Strength of a concept", "<me/duck>: 0..1 by 0.25") == "strength <me/duck>: 0..1 by 0.25"
    assert axis_text(NO_AXIS, "1") is None


def test_a_sheet_is_drawn_and_its_pictures_are_kept(service, workspace):
    view = ended(service, lambda: grid_job(FORM, "Seed", "1..2", "Steps", "1, 2"))
    assert "4 images" in view.message and len(view.results) == 1
    with Image.open(view.results[0].served) as image:
        assert image.width > 200


# --- what was drawn before --------------------------------------------------------------------------------------------


def test_history_finds_by_words_and_by_page(tiny, tmp_path):
    library = small_library(tmp_path / "concepts")
    workspace = Workspace(library, tmp_path / "outputs", tmp_path / "runs", tmp_path / "shown")
    service = GenerationService(lambda name: Generator(tiny, library), workspace)
    outputs = workspace.user_outputs(None)
    for prompt in ("a cat on grass", "a dog in the snow"):
        ended(service, lambda prompt=prompt: generate_job(FORM | {"prompt": prompt}))
    plain = io.BytesIO()
    Image.new("RGB", (8, 8)).save(plain, "PNG")
    for _ in range(history.PAGE_SIZE):
        outputs.save(plain.getvalue())
    first, last = (history.find_images(workspace, "page", None, number=number) for number in (0, 99))
    assert first.total == history.PAGE_SIZE + 2 and first.note == f"1 to {history.PAGE_SIZE} of {history.PAGE_SIZE + 2}"
    assert last.number == 1 and [image.caption for image in last.results] == [outputs.days()[0]] * 2
    (dog,) = history.find_images(workspace, "page", None, "SNOW dog").results
    assert read_recipe(dog.saved.read_bytes()).prompt == "a dog in the snow"
    assert history.publish_image(workspace, "page", dog).served.read_bytes() == dog.saved.read_bytes()
    assert history.find_images(workspace, "page", None, "horse").note == "No images found."
    outputs.add_favourite(dog.saved)
    (star,) = history.find_images(workspace, "page", None, starred=True).results
    assert image_actions.is_favourite(outputs, star)


def test_nobody_sees_anothers_pictures(service, workspace):
    list(service.submit(lambda: generate_job(FORM), "anns", "ann"))
    assert history.find_images(workspace, "p", "ann").total == 1
    assert history.find_images(workspace, "p", "bob").total == 0
    assert all("ann" not in str(image.saved) for image in history.find_images(workspace, "p", None).results)
    for name in ("../ann", "", "A", "a/b", "x" * 40):
        if name:
            with pytest.raises(UserError):
                workspace.user_outputs(name)
