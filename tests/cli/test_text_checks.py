"""Text from outside, at every door: one sentence with the value's own name, and nothing is done."""

import json
import os
import re
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import get_args

import pytest
from pydantic_core import PydanticUndefined

from conftest import ROOT
from sdpersonal.cli.main import COMMANDS, run_command
from sdpersonal.config import DreamboothSettings, GenerateRequest, TextualInversionSettings, flag_of
from sdpersonal.config.text_checks import check_path, is_blank, plain_spaces
from sdpersonal.errors import FieldError, UserError
from sdpersonal.image_metadata import Recipe

SURROGATE, HALF = "caf\udce9", "a\ud83d"


def walk_types(annotation):
    yield annotation
    for part in get_args(annotation):
        yield from walk_types(part)


PROGRAMS = {name: settings for name, (_, settings) in COMMANDS.items()}
FIELDS = [
    (program, name)
    for program, settings in PROGRAMS.items()
    for name, field in settings.model_fields.items()
    if bool not in set(walk_types(field.annotation))
]
MAY_BE_EMPTY = {"negative", "prompt", "class_noun", "title", "description", "licence", "consent_note", "author"} | {
    "base_name", "method", "trigger_words", "prompts",
}  # fmt: skip


def valid(settings, without):
    """Values for what a settings class needs besides one field."""
    examples = {"token": "<me/a>", "class_noun": "dog", "x": "seed: 1, 2", "as_": "<me/b>", "old": "a", "new": "b"}
    examples |= {"tokens": ["<me/a>", "<me/b>"], "parts": ["<me/a>", "<me/b>"], "files": ["a"], "images": ["a"]}
    examples |= {"jobs": ["a"]}
    needed = {
        name for name, field in settings.model_fields.items() if field.is_required() and name != without
    }  # fmt: skip
    return {name: examples.get(name, "word") for name in needed}


def command_line(settings, name, value):
    words, placed = [], []
    for field, given in (valid(settings, name) | {name: value}).items():
        flag, values = flag_of(settings, field), given if isinstance(given, list) else [given]
        if flag.startswith("--"):
            words += [f"{flag}={values[0]}", *values[1:]]
        else:
            placed.append((list(settings.model_fields).index(field), values))
    return [*(value for _, values in sorted(placed) for value in values), *words]


HOSTILE = {"empty": "", "latin-1": SURROGATE, "long": "y" * 20_000}


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize(("program", "name"), FIELDS, ids="-".join)
def test_every_field_of_every_command_refuses_hostile_text(program, name, value, capsys):
    settings, done = PROGRAMS[program], []
    code = run_command(done.append, settings, command_line(settings, name, value), program)
    message = capsys.readouterr().err
    own = flag_of(settings, name) if name != "report_to" else "--report_to"  # diffusers' flag too, as they spell it
    if not value and name in MAY_BE_EMPTY and not message:
        return
    assert code == 2 and not done, (code, message)
    assert own in message.replace("--report-to", "--report_to") and message.count("\n") <= 2 and len(message) < 700, (
        message
    )
    assert all(c.isprintable() or c == "\n" for c in message), message
    assert os.listdir() == []


@pytest.mark.parametrize(("program", "name"), FIELDS, ids="-".join)
def test_error_messages_in_python_name_the_parameter(program, name):
    settings = PROGRAMS[program]
    for value in (SURROGATE, HALF, *(() if name in ("prompt", "negative") else ("a\x00b", "a\x1b[31mb", "y" * 50_000))):
        shaped = (value,) if tuple in {getattr(kind, "__origin__", kind) for kind in
                                       walk_types(settings.model_fields[name].annotation)} else value  # fmt: skip
        with pytest.raises(FieldError) as caught:
            settings(**(valid(settings, name) | {name: shaped}))
        assert caught.value.field == name


def test_no_setting_defaults_to_an_empty_path():
    for settings in PROGRAMS.values():
        for field in settings.model_fields.values():
            assert field.default is PydanticUndefined or field.default != Path()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("x" * 300, "has a name of 300 bytes in it; 255 are the most"),
        ("日" * 100, "has a name of 300 bytes in it"),
        ("a/" * 3000, "is too long for a path: 6,000 bytes"),
        ("a\nb", "holds the control character U+000A"),
        ("", "is empty"),
    ],
)
def test_too_long_and_invalid_paths_are_refused(value, said):
    with pytest.raises(FieldError, match="^photos " + re.escape(said)):
        TextualInversionSettings(photos=value, token="<me/a>")
    with pytest.raises(FieldError, match="^--photos " + re.escape(said)):
        check_path(value, "--photos")


def test_empty_and_invalid_names_are_refused_in_python_calls():
    from sdpersonal.concepts.library import Library
    from sdpersonal.models import load_base
    from sdpersonal.outputs import Outputs
    from sdpersonal.photos.loading import load_photos

    for value in ("", "  ", SURROGATE, "a\x00b"):
        for call in (load_base, lambda name: load_base("tiny", vae=name), Library, Outputs):
            with pytest.raises(FieldError, match=r"^(base|vae|library|out) (is empty|holds)"):
                call(value)
        with pytest.raises(FieldError, match=r"^photos (is empty|holds)"):
            load_photos(value, 64)
    with pytest.raises(UserError, match="home of a user"):
        load_base("~nobody-is-called-so/model")


def test_too_long_text_is_refused_with_its_length():
    with pytest.raises(UserError, match=r"^class_noun must be text of up to 100 characters, got 512"):
        DreamboothSettings(photos="x", token="<me/a>", class_noun="y" * 512)
    with pytest.raises(UserError, match=r"^init must be text of up to 100 characters, got 101"):
        TextualInversionSettings(photos="x", token="<me/a>", init="y" * 101)


def test_edit_flags_have_the_length_limits_of_the_card(capsys):
    """By the flag, before the library is opened; the limits are those of `Card` itself."""
    from sdpersonal.cli.main import main
    from sdpersonal.concepts.card import Card

    names = {"title": "title", "author": "author", "class": "class_noun", "method": "method", "licence": "license"}
    names |= {"description": "description", "base-name": "base_name", "consent-note": "consent_note"}
    for flag, name in names.items():
        with pytest.raises(UserError, match=r"up to ([\d,]+) characters, got 5,000") as caught:
            Card(base="tiny", **{name: "y" * 5000})
        most = re.search(r"up to ([\d,]+)", str(caught.value))[1]
        assert main(["concepts", "edit", "<me/a>", f"--{flag}", "y" * 5000]) == 2
        assert f"--{flag} must be text of up to {most} characters, got 5,000." in capsys.readouterr().err
    assert main(["concepts", "edit", "<me/a>", "--prompts", *"abcdefghijklmnopqrs"]) == 2
    assert "--prompts must be up to 16, got 19." in capsys.readouterr().err
    assert main(["concepts", "edit", "<me/a>", "--prompts", "y" * 501]) == 2
    assert "--prompts must be text of up to 500 characters, got 501." in capsys.readouterr().err


def test_unicode_spaces_in_the_class_noun_are_normalized():
    made = DreamboothSettings(photos="x", token="<me/a>", class_noun="\ufefftoy\u00a0\u200bduck\u200e\n")
    assert made.class_noun == "toy duck"
    with pytest.raises(UserError, match="class_noun is empty"):
        DreamboothSettings(photos="x", token="<me/a>", class_noun="\u00a0\u3000\u200b")


def test_plain_spaces_agrees_with_the_unicode_categories():
    for code in range(0x110000):
        character = chr(code)
        result = plain_spaces(f"a{character}b")
        category = unicodedata.category(character)
        if character.isspace():
            assert result == "a b", hex(code)
        elif category in ("Cf", "Cc") or character in "\u115f\u1160\u2800\u3164\uffa0":
            assert result == "ab", hex(code)
        else:
            assert result == f"a{character}b", hex(code)


@pytest.mark.parametrize(
    "text", ["👨\u200d👩\u200d👧", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "❤️\u200d🔥", "می\u200cخواهم", "क्\u200dष", "👋🏽 #️⃣ “quoted”"]
)
def test_joined_emoji_and_scripts_are_unchanged(text):
    assert plain_spaces(f"\u200b {text}\u200d ") == text and not is_blank(text)


@pytest.mark.parametrize("flag", ["--resume", "--no-samples", "--flip"])
def test_an_empty_value_after_a_switch_is_refused(flag, capsys):
    for words in ([flag, ""], [f"{flag}="], [flag, " "]):
        assert run_command(print, TextualInversionSettings, ["--photos", "x", "--token", "<me/a>", *words], "x") == 2
        assert f"{flag} takes no value, got an empty one." in capsys.readouterr().err


def test_lone_surrogates_in_recipes_and_requests_are_refused():
    with pytest.raises(UserError, match="not valid Unicode"):
        Recipe(**json.loads(json.dumps({"prompt": HALF, "seed": 1, "steps": 5, "guidance": 3, "size": "64x64"})))
    with pytest.raises(UserError, match=r"^negative is not valid Unicode"):
        GenerateRequest(prompt="a", negative=HALF)


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"])
@pytest.mark.parametrize("value", ["", "two", "1\u00b2", " "])
def test_non_numeric_launcher_variables_are_refused(name, value, monkeypatch, capsys):
    monkeypatch.setenv(name, value)
    done = []
    assert run_command(done.append, TextualInversionSettings, ["--photos", "x", "--token", "<me/a>"], "x") == 2
    message = capsys.readouterr().err
    assert f"variable {name} must be a whole number" in message and message.count("\n") == 2 and not done


def test_error_messages_of_the_page_use_its_labels():
    from sdpersonal.app.backend.error_text import LABELS, describe_error

    scripts = "".join(path.read_text() for path in (ROOT / "sdpersonal" / "app" / "page" / "js").glob("*.js"))
    shown = {name: label for name, label in LABELS.items() if name != "vectors"}  # which the page does not offer
    assert [label for label in shown.values() if f'"{label}"' not in scripts] == []
    for fields, message in (
        ({"num_images": 1000}, "Images must be a whole number from 1 to 100, got 1000."),
        ({"negative": HALF}, "Negative prompt is not valid Unicode"),
        ({"size": "7"}, "Shape must be WIDTHxHEIGHT"),
    ):
        with pytest.raises(UserError) as caught:
            GenerateRequest(**({"prompt": "a"} | fields))
        assert describe_error(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--library", "file"], "is a file, not a folder"),
        (["--out", "file"], "is a file, not a folder"),
        (["--runs", "file"], "is a file, not a folder"),
        (["--bases", "nowhere"], "--bases: there is no folder nowhere"),
        (["--listen", "--password-file", "nothing"], "nothing"),
        (["--port", "80"], "--port must be a whole number from 1,024 to 65,535, got 80"),
        (["--host", "a b"], "--host"),
        (["--proxy", "127.0.0.1"], "Give --password-file FILE too"),
    ],
)
def test_the_app_refuses_invalid_flags_before_loading(flags, said, capsys):
    Path("file").touch()
    assert run_command(*COMMANDS["app"], flags, "app.py") == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") <= 2 and "must be valid" not in err


def test_arguments_that_are_not_utf8_are_refused(root, tmp_path):
    argv = [sys.executable.encode(), b"-m", b"sdpersonal", b"generate", b"a cat", b"--negative", b"caf\xe9"]
    done = subprocess.run(argv, env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True, cwd=tmp_path)
    assert done.returncode == 2 and b"which is not UTF-8" in done.stderr and done.stderr.count(b"\n") == 2
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("words", [[b"a \xff cat"], [b"a", b"--library", b"\xe9"]])
def test_prompts_and_paths_that_are_not_utf8_are_refused(words, capsys):
    from sdpersonal.cli.main import main

    assert main(["generate", *map(os.fsdecode, words), "--base", "tiny"]) == 2
    err = capsys.readouterr().err
    assert "which is not UTF-8" in err and err.count("\n") == 2
    assert os.listdir() == []


def test_output_to_an_ascii_terminal_is_escaped(root, tmp_path):
    """What it cannot show is escaped; the program goes on."""
    environment = os.environ | {"PYTHONPATH": str(root), "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    argv = [sys.executable, "-m", "sdpersonal", "concepts", "list", "--library", "bücher"]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and "b\\xfccher" in done.stdout and not done.stderr


@pytest.mark.parametrize(
    ("command", "missing"),
    [("generate", "PROMPT"), ("concepts rename <me/a>", "NEW"), ("vary", "IMAGE"), ("hub pull", "HUB_ID")],
)
def test_missing_arguments_are_named_in_the_error_message(command, missing, capsys):
    from sdpersonal.cli.main import main

    assert main(command.split()) == 2
    err = capsys.readouterr().err
    assert f" {missing} " in err and err.count("\n") == 2


def test_outputs_favourite_without_images_is_refused(capsys):
    from sdpersonal.cli.main import main

    assert main(["outputs", "favourite"]) == 2
    assert "IMAGES must be one or more, got 0." in capsys.readouterr().err and os.listdir() == []


def test_error_messages_of_the_base_name_the_flag(capsys):
    from sdpersonal.cli.main import main

    for flags, message in (
        (["--clip-skip", "12"], "--clip-skip must be at most "),
        (["--scheduler", "Heun"], "--scheduler 'Heun' cannot be used with this base"),
        (["--scheduler", "DPM2 a", "--steps", "2"], "--steps must be 1 or at least 3 with DPM2 a Uniform"),
    ):
        assert main(["generate", "a cat", "--base", "tiny", "--n", "1", *flags]) == 2
        assert f"error: {message}" in capsys.readouterr().err
