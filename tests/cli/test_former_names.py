"""Names of the version before: flags, Python keywords, recipes, endless series and settings of runs are read. What is
compared with was written by that version (commit 92be132)."""

import json
from pathlib import Path

import pytest

from sdpersonal.cli.commands import COMMANDS
from sdpersonal.cli.main import main
from sdpersonal.cli.parsing import parse_settings
from sdpersonal.config import DreamboothSettings, GenerateRequest
from sdpersonal.config.base import FORMER_FIELDS
from sdpersonal.errors import UserError
from sdpersonal.image_metadata import Recipe
from sdpersonal.playground.endless_series import EndlessProgress
from sdpersonal.playground.xyz_grid import Axis
from sdpersonal.training.checkpoint import check_same_run

A, B = "a" * 64, "b" * 64
RECIPE = f"""{{"sdpersonal": "0.1.0", "prompt": "a cat", "template": "", "negative": "", "seed": 5, "near": 0.25,
"near_seed": 9, "steps": 4, "guidance": 3.0, "rescale": 0.0, "size": "64x64", "enlarge": 1.0, "change": 0.4,
"start": "{A}", "mask": "", "sampler": "DDIM", "scheduler": "", "clip_skip": 1, "fast": "", "hidden": false,
"base": {{"name": "tiny", "kind": "tiny", "sha256": "{B}"}}, "concepts": [], "batch": 2, "place": 1}}"""
FORMER = {"near": 0.2, "near_seed": 9, "change": 0.4, "enlarge": 2.0, "n": 3, "every": True}
PRESENT = {"variation_strength": 0.2, "variation_seed": 9, "strength": 0.4, "hires_scale": 2.0}
PRESENT |= {"num_images": 3, "all_combinations": True}


def parse(name, *argv):
    return parse_settings(COMMANDS[name][1], argv, f"sdpersonal {name}")


def test_former_keywords_set_the_present_fields():
    assert GenerateRequest(prompt="x", **FORMER) == GenerateRequest(prompt="x", **PRESENT)
    assert GenerateRequest(prompt="x", start=Path("a.png")).init_image == Path("a.png")
    with pytest.raises(UserError, match=r"^num_images is given twice"):
        GenerateRequest(prompt="x", n=3, num_images=3)
    with pytest.raises(UserError, match=r"^strength must be a number above 0, up to 1, got 2"):
        GenerateRequest(prompt="x", change=2)


@pytest.mark.parametrize("dash", ["-", "_"])
def test_former_flags_set_the_present_fields(dash):
    former = ["--near", "0.2", f"--near{dash}seed=9", "--change=0.4", "--enlarge", "2", "--n", "3", "--every"]
    present = ["--variation-strength", "0.2", "--variation-seed=9", "--strength=0.4", "--hires-scale", "2"]
    present += ["--num-images", "3", "--all-combinations"]
    assert parse("generate", "x", *former) == parse("generate", "x", *present)
    assert not parse("generate", "x", *present, f"--no{dash}every").all_combinations
    assert parse("generate", "x", "-n", "2", "--start", "a.png").init_image == Path("a.png")
    assert [parse("generate", "x", *n).num_images for n in (["-n3"], ["-n=3"], ["-n", "3"])] == [3, 3, 3]
    assert parse("redo", "a.png", "--start", "b.png").init_image == Path("b.png")
    assert parse("hub push", "<me/a>", "me/a", "--pictures", "a.png").images == (Path("a.png"),)


def test_former_vary_flags_keep_their_former_meaning():
    former = ["--near", "0.1", "--near-seed", "4", "-n", "2", "--words", "a=b", "--start", "--change", "0.3"]
    former += ["--strength", "<me/duck>=0.6,0.8", "--strength=<me/ink>=1"]
    present = [
        "--variation-strength",
        "0.1",
        "--variation-seed",
        "4",
        "--num-images",
        "2",
        "--words",
        "a=b",
        "--img2img",
    ]
    present += ["--strength", "0.3", "--concept-strength", "<me/duck>=0.6,0.8", "--concept-strength=<me/ink>=1"]
    assert parse("vary", "a.png", *former) == parse("vary", "a.png", *present)


def test_error_messages_name_the_present_flag(capsys):
    assert main(["generate", "x", "--change", "2"]) == 2
    assert "--strength must be a number above 0, up to 1, got 2" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_no_former_name(name, capsys):
    with pytest.raises(SystemExit):
        main([*name.split(), "--help"])
    flags = {word.strip(",.;:") for word in capsys.readouterr().out.split() if word.startswith("--")}
    assert not flags & {f"--{former.replace('_', '-')}" for former in FORMER_FIELDS}


def test_former_recipes_are_read():
    recipe = Recipe(**json.loads(RECIPE))
    assert (recipe.variation_strength, recipe.variation_seed, recipe.strength) == (0.25, 9, 0.4)
    assert recipe.init_image == "a" * 64 and recipe.hires_scale == 1.0
    batch = recipe.batch_request(Path("a.png"))
    assert (batch.num_images, batch.variation_seed, batch.init_image) == (2, 8, Path("a.png"))
    again = json.loads(recipe.to_json())
    assert Recipe(**again) == recipe and not again.keys() & FORMER_FIELDS.keys()


def test_former_endless_series_keep_their_folder(tmp_path):
    request = GenerateRequest(prompt="a {cat|dog}", seed=3, **{k: v for k, v in PRESENT.items() if k != "num_images"})
    assert EndlessProgress(tmp_path, request, "0" * 64).folder.name == "endless-472adbd5"
    assert EndlessProgress(tmp_path, GenerateRequest(prompt="a {cat|dog}"), "0" * 64).folder.name == "endless-a7484d26"


def test_former_axis_names_are_read():
    assert Axis.parse("change: 0.5").kind == "strength" and Axis.parse("enlarge: 2").kind == "hires_scale"
    assert Axis.parse("near-seeds: 1..3").kind == "variation_seed"
    assert Axis.parse("strength <me/duck>: 0.5").kind == "concept_strength"


def test_former_run_settings_are_read():
    saved = {"photos": "p", "token": "<me/a>", "class_noun": "dog", "prior": "drawn", "class_pictures": 7}
    settings = DreamboothSettings(**saved)
    assert (settings.prior, settings.num_class_images) == ("generated", 7)
    argv = ["--photos", "p", "--token", "<me/a>", "--class", "dog", "--prior", "drawn", "--class-pictures", "7"]
    assert parse("train dreambooth", *argv) == settings
    check_same_run(settings.model_dump(mode="json"), settings.model_dump(mode="json") | {"prior": "drawn"})
    former = {k: v for k, v in settings.model_dump(mode="json").items() if k != "num_class_images"}
    check_same_run(settings.model_dump(mode="json"), former | {"class_pictures": 7, "prior": "drawn"})
    with pytest.raises(UserError, match="num_class_images was 8, is 7"):
        check_same_run(settings.model_dump(mode="json"), former | {"class_pictures": 8})
