"""One check for every door: the same words for a call and a command line."""

import math

import pytest
import tyro

from sdpersonal.cli.main import main
from sdpersonal.config import DreamboothSettings, GenerateRequest, TextualInversionSettings
from sdpersonal.errors import UserError

BAD = [math.nan, math.inf, -math.inf, -1, 1e308, 2.5, "7", True, None, 2**64, [1], {"a": 1}, b"7"]


@pytest.mark.parametrize("field", ["steps", "num_images", "seed"])
@pytest.mark.parametrize("value", BAD, ids=repr)
def test_invalid_whole_numbers_in_a_request_are_refused(field, value):
    if (field, value) == ("steps", None):
        assert GenerateRequest(prompt="a cat", steps=None).denoising_steps == 25
        return
    with pytest.raises(UserError, match=rf"^{field} must be a whole number from \d+ to [\d,]+, got "):
        GenerateRequest(prompt="a cat", **{field: value})


@pytest.mark.parametrize("value", [value for value in BAD if value not in (2.5, None)], ids=repr)
def test_invalid_guidance_is_refused(value):
    with pytest.raises(UserError, match=r"^guidance must be a number from 1 to 30, got "):
        GenerateRequest(prompt="a cat", guidance=value)
    assert GenerateRequest(prompt="a cat", guidance=2.5).guidance == 2.5


@pytest.mark.parametrize(
    "size", ["513x512", "512", "8x8", "4096x64", "-8x64", "64X64", "64x64x64", 512, math.nan, True]
)
def test_invalid_sizes_are_refused(size):
    with pytest.raises(UserError, match="multiples of 8 from 64 to 2048"):
        GenerateRequest(prompt="a cat", size=size)
    assert GenerateRequest(prompt="a cat", size="512x768").width_height == (512, 768)


def test_a_request_with_every_value_at_its_maximum_is_refused():
    with pytest.raises(UserError, match="times the limit of one request"):
        GenerateRequest(prompt="a cat", num_images=100, steps=150, size="2048x2048")


def test_a_whole_float_is_accepted_as_steps():
    assert GenerateRequest(prompt="a cat", steps=25.0).steps == 25  # what JSON from a page brings


def test_unknown_settings_are_refused_by_name():
    with pytest.raises(UserError, match="smpler is not a setting"):
        GenerateRequest(prompt="a cat", smpler="ddim")


def test_a_missing_setting_is_named_in_the_error_message():
    with pytest.raises(UserError, match="photos is needed"):
        TextualInversionSettings(token="<me/cat>")


@pytest.mark.parametrize(
    ("token", "fix"),
    [("dog", "<me/dog>"), ("<me/dog-v2>", "<me/dog>"), ("<Me/My Dog>", "<me/my-dog>"), ("", "shell variable"), (7, "")],
)
def test_an_invalid_token_for_a_new_concept_is_refused_with_a_hint(token, fix):
    with pytest.raises(UserError) as caught:
        DreamboothSettings(photos="x", class_noun="dog", token=token)
    assert fix in caught.value.hint


TRAINING = ["train", "dreambooth", "--photos", "x", "--token", "<me/a>", "--class", "dog"]


@pytest.mark.parametrize(
    "flags",
    [
        ["--steps", "0"],
        ["--steps", "-1"],
        ["--steps", "1000000000"],
        ["--lr", "0"],
        ["--lr", "nan"],
        ["--rank", "0"],
        ["--batch", "0"],
        ["--prior_weight", "inf"],
    ],
    ids=" ".join,
)
def test_the_command_line_and_python_give_the_same_error_message(flags, capsys):
    name, value = flags[0].removeprefix("--"), flags[1]
    assert main([*TRAINING, *flags]) == 2
    output = capsys.readouterr().err
    kind = float if name in ("lr", "prior_weight") else int
    with pytest.raises(UserError) as caught:
        DreamboothSettings(photos="x", token="<me/a>", class_noun="dog", **{name: kind(value)})
    assert output == f"error: --{name.replace('_', '-')} {str(caught.value).removeprefix(f'{name} ')}\n"


@pytest.mark.parametrize("argv", [["--bogus", "1"], ["--base"]], ids=" ".join)
def test_unknown_flags_and_missing_values_exit_with_2(argv, capsys):
    assert main([*TRAINING, *argv]) == 2
    err = capsys.readouterr().err
    assert argv[0] in err and err.count("\n") <= 2 and "Traceback" not in err


def test_the_command_line_gives_the_same_settings_as_python():
    argv = ["--photos", "x", "--token", "<me/a>", "--init", "toy duck", "--vectors", "3", "--kind", "style"]
    typed = tyro.cli(TextualInversionSettings, args=argv)
    assert typed == TextualInversionSettings(photos="x", token="<me/a>", init="toy duck", vectors=3, kind="style")
