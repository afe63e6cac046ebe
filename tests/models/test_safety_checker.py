"""The safety checker: asks what diffusers' own would hide, shows no black picture, and says what it did."""

import json
import shutil
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sdpersonal.config import GenerateRequest
from sdpersonal.errors import UserError
from sdpersonal.generation import Generator
from sdpersonal.image_metadata import describe_hidden
from sdpersonal.models import describe_base, load_base
from sdpersonal.models.loading import built_in_folder
from sdpersonal.models.loading.hub_cache import files_to_fetch
from support.user_jobs import Jobs

FILE = "safety_checker/model.safetensors"


def save_checker(folder):
    """The real architecture, narrow and random, with thresholds that hide about half of `samples()`: in a copy of the
    built-in base, as the Hub has Stable Diffusion 1.5."""
    from diffusers import StableDiffusionPipeline
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    torch.manual_seed(0)
    narrow = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = CLIPConfig(vision_config=narrow | {"patch_size": 56, "image_size": 224}, projection_dim=24)
    checker = StableDiffusionSafetyChecker(config).eval()
    prepare = CLIPImageProcessor()
    with torch.no_grad():
        checker.concept_embeds.normal_()
        checker.special_care_embeds.normal_()
        pixels = prepare(samples(), return_tensors="pt").pixel_values
        recorded = torch.nn.functional.normalize(checker.visual_projection(checker.vision_model(pixels)[1]))
        for embeds, limits in (
            (checker.concept_embeds, checker.concept_embeds_weights),
            (checker.special_care_embeds, checker.special_care_embeds_weights),
        ):
            limits.copy_((recorded @ torch.nn.functional.normalize(embeds).T).amax(0) + 0.5)
        cosines = recorded @ torch.nn.functional.normalize(checker.concept_embeds).T
        checker.concept_embeds_weights[3] = cosines[:, 3].median() - 1e-4
    pipe = StableDiffusionPipeline.from_pretrained(
        built_in_folder(), safety_checker=checker, feature_extractor=prepare, requires_safety_checker=True
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(folder)
    return pipe


def samples():
    rng = np.random.default_rng(0)
    small = [Image.fromarray(rng.integers(0, 255, (5, 4, 3), np.uint8)) for _ in range(6)]
    return [item.resize((64 + 16 * i, 96)) for i, item in enumerate(small)]


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """A base with a checker, and diffusers' own pipeline of the same files."""
    folder = tmp_path_factory.mktemp("checked") / "base"
    return folder, save_checker(folder)


def theirs(pipe, images):
    """What `run_safety_checker` would have blackened."""
    arrays = [np.asarray(image, np.float32)[None] / 255 for image in images]
    return [pipe.run_safety_checker(array, "cpu", torch.float32)[1][0] for array in arrays]


def test_the_safety_checker_flags_the_same_images_as_diffusers(checked):
    folder, pipe = checked
    ours = load_base(str(folder), "cpu").safety_checker.flag(samples())
    assert ours == theirs(pipe, samples()) and 0 < sum(ours) < len(ours)


def test_the_safety_checker_changes_no_image_and_ignores_batching(checked):
    checker, before = load_base(str(checked[0]), "cpu").safety_checker, samples()
    together = checker.flag(before)
    assert [checker.flag([item])[0] for item in before] == together
    assert all(a.tobytes() == b.tobytes() for a, b in zip(before, samples(), strict=True))


def test_checker_weights_with_names_of_transformers_4_load(checked, tmp_path):
    """Written by transformers 4, where the tower's names had one part more."""
    folder = shutil.copytree(checked[0], tmp_path / "old")
    expected = load_base(str(folder), "cpu").safety_checker.flag(samples())
    part = "vision_model."
    renamed = {
        f"{part}{key}" if key.startswith(part) else key: value for key, value in load_file(folder / FILE).items()
    }
    save_file(renamed, folder / FILE, metadata={"format": "pt"})
    assert load_base(str(folder), "cpu").safety_checker.flag(samples()) == expected


def test_the_safety_checker_is_loaded_at_first_use(checked, tmp_path):
    folder = shutil.copytree(checked[0], tmp_path / "cut")
    (folder / FILE).write_bytes((folder / FILE).read_bytes()[:-100])
    base = load_base(str(folder), "cpu")  # training needs none
    with pytest.raises(UserError, match="cut short"):
        base.safety_checker.load()


def test_a_safety_checker_with_missing_weights_is_refused(checked, tmp_path):
    folder = shutil.copytree(checked[0], tmp_path / "less")
    weights = load_file(folder / FILE)
    del weights["concept_embeds"]
    save_file(weights, folder / FILE, metadata={"format": "pt"})
    with pytest.raises(UserError, match="lacks 1 weights, such as concept_embeds") as caught:
        load_base(str(folder), "cpu").safety_checker.load()
    assert "--no-safety-checker" in caught.value.hint


def test_the_base_description_states_the_status_of_the_safety_checker(checked, tiny, tmp_path):
    folder, _ = checked
    assert describe_base(load_base(str(folder), "cpu"), "x", with_safety=True).endswith("Its safety checker is on.")
    off = load_base(str(folder), "cpu", safety=False)
    assert off.safety_checker is None and describe_base(off, "x", with_safety=True).endswith(
        "Its safety checker is off."
    )
    assert describe_base(tiny, "tiny", with_safety=True).endswith("This model comes without a safety checker.")
    pickled = shutil.copytree(folder, tmp_path / "pickled")
    (pickled / FILE).rename(pickled / "safety_checker" / "pytorch_model.bin")
    line = describe_base(load_base(str(pickled), "cpu"), "x", with_safety=True)
    assert line.endswith("Its safety checker is not on this machine as safetensors: images are not checked.")


def test_the_safety_checker_is_downloaded_but_not_required(checked, tmp_path):
    from sdpersonal.models.loading.diffusers_folder import missing_file

    names = [f"safety_checker/model{end}" for end in (".safetensors", ".fp16.safetensors")]
    names += ["safety_checker/pytorch_model.bin", "safety_checker/config.json"]
    assert set(files_to_fetch(names)) == {names[1], names[3]}
    folder = shutil.copytree(checked[0], tmp_path / "base")
    assert missing_file(folder) is None
    shutil.rmtree(folder / "safety_checker")
    assert missing_file(folder) is None


# --- in a drawing -----------------------------------------------------------------------------------------------------


REQUEST = GenerateRequest(prompt="a duck on the beach", num_images=6, steps=2, size="64x64")


@pytest.fixture(scope="module")
def drawn(checked):
    """Pictures of a base with a checker whose limit is the median of what it finds in them; and those without it."""
    base = load_base(str(checked[0]), "cpu")
    checker, base.safety_checker = base.safety_checker, None
    bare = list(Generator(base).generate(REQUEST))
    model, processor = checker.load()
    limits = model.concept_embeds_weights
    limits.fill_(9.0)
    pixels = processor([item.image for item in bare], return_tensors="pt").pixel_values
    with torch.no_grad():
        recorded = model.visual_projection(model.vision_model(pixels)[1])
        limits[3] = torch.cosine_similarity(recorded, model.concept_embeds[3:4]).median() + 1e-4
    base.safety_checker = checker
    return base, bare, list(Generator(base).generate(REQUEST))


def test_flagged_images_are_grey_and_marked_as_hidden(drawn):
    base, bare, images = drawn
    assert [image.hidden for image in images] == base.safety_checker.flag([item.image for item in bare])
    assert 0 < sum(image.hidden for image in images) < len(images)
    for image, before in zip(images, bare, strict=True):
        assert image.recipe.prompt == REQUEST.prompt and not before.hidden
        if image.hidden:
            assert image.image.getcolors() == [(64 * 64, (128, 128, 128))]
        else:
            assert image.image.tobytes() == before.image.tobytes()


def test_the_file_of_a_hidden_image_records_that_it_is_hidden(drawn):
    hidden = next(image for image in drawn[2] if image.hidden)
    recipe = json.loads(Image.open(BytesIO(hidden.to_png())).text["sdpersonal"])
    assert recipe["hidden"] is True and recipe["seed"] == hidden.seed


def test_a_nan_image_raises_an_error_and_is_not_hidden(drawn, monkeypatch):
    base = drawn[0]
    monkeypatch.setattr(base, "predict", lambda noisy, t, condition: torch.full_like(noisy, float("nan")))
    with pytest.raises(UserError, match="The generated image is NaN"):
        list(Generator(base).generate(REQUEST))


def test_a_damaged_safety_checker_is_refused_before_the_first_step(checked, tmp_path):
    folder = shutil.copytree(checked[0], tmp_path / "cut")
    (folder / FILE).write_bytes((folder / FILE).read_bytes()[:-100])
    steps = []
    with pytest.raises(UserError, match="cut short"):
        list(Generator(load_base(str(folder), "cpu")).generate(REQUEST, progress=lambda *step: steps.append(step)))
    assert steps == []


def test_the_cli_and_the_app_report_the_number_of_hidden_images(drawn, checked, tmp_path, monkeypatch, capsys):
    from sdpersonal import models
    from sdpersonal.app.backend import Workspace
    from sdpersonal.app.backend.generate.jobs import generate_job
    from sdpersonal.cli.main import main
    from sdpersonal.concepts.library import Library

    base, _, images = drawn
    monkeypatch.setattr(models, "load_base", lambda name, safety: base)
    line = f"The checker hid {sum(image.hidden for image in images)} of 6 images."
    assert main(["generate", REQUEST.prompt, "--n=6", "--steps=2", "--size=64x64", "--base=x"]) == 0
    message = capsys.readouterr().out.splitlines()
    assert line in message and message[0].endswith("Its safety checker is on.")
    form = {"prompt": REQUEST.prompt, "num_images": 6, "steps": 2, "size": "64x64"}
    app = Jobs(lambda name: Generator(base), Workspace(Library(tmp_path), tmp_path / "a", tmp_path, tmp_path / "b"))
    assert app.run(generate_job(form))["message"].endswith(line)


def test_the_message_is_empty_without_hidden_images():
    assert describe_hidden([False] * 3) == describe_hidden([]) == ""
    assert describe_hidden([True]) == "The checker hid 1 of 1 image."
