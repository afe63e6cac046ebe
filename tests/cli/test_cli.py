"""The command line: exit codes, JSON that programs can lean on, and no traceback for a user's mistake."""

import json
import os
import runpy
import socket
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from conftest import ROOT
from sdpersonal.cli.commands import COMMANDS, GROUPS
from sdpersonal.cli.commands.generate import GenerateArgs, request_of
from sdpersonal.cli.main import main
from sdpersonal.cli.parsing import parse_settings
from sdpersonal.concepts.concept_file import concept_to_bytes
from sdpersonal.concepts.library import Library
from sdpersonal.prompts import Token
from support.samples import concept, embedding


@pytest.fixture
def library(tmp_path):
    library = Library(tmp_path / "concepts")
    library.add(concept("<me/duck>"))
    library.add(embedding("<you/ink>", seed=1))
    return library


def run(library, *argv):
    return main([*argv, "--library", str(library.folder)])


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    output = capsys.readouterr().out
    assert all(name in output for name in COMMANDS)
    assert main(["concept", "lst"]) == 2
    assert "concept lst is not a command" in capsys.readouterr().err


@pytest.mark.parametrize("group", GROUPS)
def test_every_group_has_help(group, capsys):
    for argv in ([group, "--help"], [group, "-h"]):
        assert main(argv) == 0
        shown = capsys.readouterr().out
        assert [line.split()[1] for line in shown.splitlines() if line.startswith(f"  {group} ")] == [
            name.split()[1] for name in COMMANDS if name.startswith(f"{group} ")
        ]


def test_version_option_prints_the_package_version(capsys):
    from importlib.metadata import version

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"sdpersonal {version('sdpersonal')}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_lines_show_at_most_one_default_and_no_none(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")  # a flag and all of its help on one line
    with pytest.raises(SystemExit):
        main([*name.split(), "--help"])
    for line in capsys.readouterr().out.splitlines():
        assert line.lower().count("default:") <= 1 and "{None" not in line and "None}" not in line, line
        assert "(default: False)" not in line


@pytest.mark.parametrize(
    ("argv", "meant"),
    [
        (["concpts", "list"], "sdpersonal concepts list"),
        (["concepts", "lst"], "sdpersonal concepts list"),
        (["list"], "sdpersonal concepts list"),
        (["generat", "a duck"], "sdpersonal generate"),
        (["generate", "a duck", "--sed", "3"], "--seed"),
        (["concepts", "list", "--libary=x"], "--library"),
        (["train", "dreambooth", "--stps", "3"], "--steps"),
    ],
)
def test_a_misspelt_command_or_flag_gets_a_suggestion(argv, meant, capsys):
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert f"Did you mean {meant}? " in err and err.count("\n") == 2


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["generate", "a duck", "--scheduler"], "--scheduler needs a value."),
        (["generate", "a duck", "--negative", "-x"], "A value that begins with a dash is written --negative=-x"),
        (["generate", "a", "duck"], "'duck' is a word too many."),
        (["generate", "a duck", "--grid=yes"], "--grid takes no value, got yes."),
        (["train", "dreambooth", "--photos", "x"], "--token and --class are missing."),
        (["generate", "--", "-x", "a"], "'a' is a word too many."),
    ],
)
def test_missing_and_extra_arguments_are_refused_with_a_message(argv, said, capsys):
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert said in err and err.startswith("error: ") and err.count("\n") <= 2


def test_the_last_switch_wins_in_either_spelling():
    def parse(*words):
        return parse_settings(GenerateArgs, ["a duck", *words], "sdpersonal generate")

    assert parse("--grid").grid and parse("--no-grid", "--grid").grid
    assert not parse("--no-grid").grid and not parse("--grid", "--no-grid").grid
    assert parse("--no-safety-checker", "--safety_checker").safety_checker
    assert not parse("--safety-checker", "--no_safety_checker").safety_checker
    assert parse().compose and not request_of(parse("--no-compose")).compose


def test_former_commands_still_work(library, tmp_path, capsys):
    assert run(library, "concepts", "push", "<me/duck>", "me/duck", "--dry-run") == 0
    assert "Nothing was sent" in capsys.readouterr().out
    for argv in (["outputs"], ["outputs", "page"]):
        assert main([*argv, "--out", str(tmp_path)]) == 2
        assert "No images in" in capsys.readouterr().err
    assert main(["--help"]) == 0
    assert "concepts push" not in capsys.readouterr().out


def test_the_app_without_gradio_shows_the_install_command(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["app"]) == 2
    assert capsys.readouterr().err == (
        "error: The app needs gradio and psutil.\nInstall with pip install 'sdpersonal[app]'.\n"
    )


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_completion_script_lists_every_command(shell, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["completion", shell])
    script = capsys.readouterr().out
    assert not caught.value.code and script.count("\n") > 50
    assert all(word in script for name in COMMANDS for word in name.split()) and "--guidance" in script


def test_bash_completes_a_command(tmp_path):
    (tmp_path / "script").write_text(_completion("bash"))
    complete = "COMP_WORDS=(sdpersonal concepts exp); COMP_CWORD=2; _tyro_sdpersonal; echo ${COMPREPLY[@]}"
    done = subprocess.run(["bash", "-c", f"source ./script; {complete}"], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == ["export"], done.stderr


def _completion(shell):
    argv = [sys.executable, "-m", "sdpersonal", "completion", shell]
    return subprocess.run(argv, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True).stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*name.split(), "--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert f"sdpersonal {name}" in shown
    assert "(default: None)" not in shown and "(default: )" not in shown and "(default: '')" not in shown


def test_concepts_list_prints_one_line_per_concept(library, capsys):
    assert run(library, "concepts", "list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["<me/duck-v1>", "<you/ink-v1>"]
    assert "2 vectors + LoRA rank 4" in lines[0]


def test_list_and_show_print_the_same_json_with_fixed_keys(library, capsys):
    assert run(library, "concepts", "list", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert run(library, "concepts", "show", "duck", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == listed[0]
    keys = "token title description kind class_noun base base_name method steps created author license consent"
    keys += " consent_note trigger_words prompts recipe scores vectors lora_rank size identity path damaged"
    assert set(shown) == set(keys.split())


def test_an_empty_library_lists_no_concepts(tmp_path, capsys):
    assert main(["concepts", "list", "--library", str(tmp_path / "none")]) == 0
    assert "No concepts in" in capsys.readouterr().out
    assert main(["concepts", "list", "--json", "--library", str(tmp_path / "none")]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_commands_import_rename_and_remove_concepts(library, tmp_path, capsys):
    file = tmp_path / "cat.safetensors"
    file.write_bytes(concept_to_bytes(embedding("<me/cat>", seed=5)))
    assert run(library, "concepts", "import", str(file)) == 0
    assert capsys.readouterr().out == "imported: <me/cat-v1>\n"
    assert run(library, "concepts", "import", str(file), "--as", "<me/kitty>", "--json") == 0
    assert json.loads(capsys.readouterr().out)["imported"] == ["<me/kitty-v1>"]
    assert run(library, "concepts", "rename", "<me/kitty>", "<me/puss>", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"renamed": ["<me/puss-v1>"]}
    assert run(library, "concepts", "remove", "<me/puss>") == 0
    assert [str(entry.token) for entry in library.entries()] == ["<me/cat-v1>", "<me/duck-v1>", "<you/ink-v1>"]


def test_verify_exits_with_1_and_names_the_damaged_concept(library, capsys):
    assert run(library, "concepts", "verify") == 0
    path = library.entries()[0].path
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    capsys.readouterr()
    assert run(library, "concepts", "verify", "--json") == 1
    (problem,) = json.loads(capsys.readouterr().out)
    assert problem["token"] == "<me/duck-v1>" and "sha256" in problem["problem"]
    assert path.exists()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["concepts", "show", "<me/dcuk>"], "Did you mean <me/duck>?"),
        (["concepts", "remove", "../../etc"], "is not a concept's token"),
        (["concepts", "rename", "duck", "<../x>"], "is not a concept's token"),
        (["concepts", "import", "nowhere.safetensors"], "nowhere.safetensors"),
        (["concepts", "import", "a", "b", "--as", "<me/x>"], "--as names one concept"),
        (["concepts", "import"], "FILES must be one or more, got 0"),
        (["generate", "<me/dcuk> on grass", "--base", "tiny"], "Did you mean <me/duck>?"),
        (["generate", "a <b c>"], "is not a concept's token"),
        (["generate", "duck", "--steps", "0"], "steps must be a whole number from 1 to 150, got 0."),
        (["generate", "duck", "--guidance", "nan"], "guidance must be a number from 1 to 30, got nan."),
        (["generate", "duck", "--base", "nowhere"], "No base called nowhere"),
        (["generate", "duck", "--base", "tiny", "--clip-skip", "9"], "--clip-skip must be at most 4 for this base"),
        (
            ["train", "dreambooth", "--photos", "nowhere", "--token", "<me/a>", "--class", "cat", "--base", "tiny"],
            "There is no folder nowhere",
        ),
    ],
)
def test_invalid_arguments_exit_with_2_and_a_short_error_message(library, capsys, argv, said):
    assert run(library, *argv) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") <= 2 and "Traceback" not in err
    assert not os.path.exists("outputs") and not os.path.exists("runs")


def test_generate_writes_images_and_a_grid(tmp_path, capsys):
    argv = ["generate", "a duck", "--base", "tiny", "--n", "2", "--steps", "1", "--size", "64x64", "--grid"]
    assert main([*argv, "--out", str(tmp_path / "out"), "--library", str(tmp_path / "none")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Base: tiny on cpu") and len(lines) == 4
    assert sorted(path.name for path in (tmp_path / "out").rglob("*.png")) == sorted(
        os.path.basename(line) for line in lines[1:]
    )


def test_a_private_grid_has_no_captions(tmp_path, capsys):
    """The chosen words and the seeds are what --private leaves out of each picture."""
    argv = ["generate", "{duck|cat}", "--base", "tiny", "--n", "9", "--steps", "1", "--size", "64x64", "--grid"]
    sizes = []
    for flags in ([], ["--private"]):
        assert main([*argv, *flags, "--out", str(tmp_path / "out"), "--library", str(tmp_path / "none")]) == 0
        with Image.open(capsys.readouterr().out.splitlines()[-1]) as grid:
            assert not grid.info
            sizes.append(grid.size)
    (width, height), (bare_width, bare) = sizes
    assert width == bare_width == 3 * (256 + 6) + 6  # three rows of three
    assert bare == 3 * (256 + 2 * 6) < height


def test_a_closed_output_pipe_causes_no_traceback(library, root):
    script = f"{sys.executable} -m sdpersonal concepts show duck --library {library.folder} | head -c 1"
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True)
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr


@pytest.mark.parametrize("script", ["train_dreambooth.py", "train_textual_inversion.py"])
def test_the_training_scripts_run_the_train_commands(script, root, monkeypatch, capsys):
    argv = [str(root / script), "--photos", "nowhere", "--token", "<me/a>", "--base", "tiny"]
    monkeypatch.setattr(sys, "argv", argv + (["--class", "cat"] if "dreambooth" in script else []))
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(argv[0], run_name="__main__")
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert "There is no folder nowhere" in error and "Traceback" not in error


@pytest.mark.parametrize("name", ["train dreambooth", "train textual-inversion"])
def test_training_help_mentions_the_diffusers_flags(name, capsys):
    with pytest.raises(SystemExit):
        main([*name.split(), "--help"])
    output = " ".join(capsys.readouterr().out.split())
    assert "diffusers' training scripts are understood" in output
    assert "docs/from-diffusers.md" in output and "--concepts-list" in output


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--instance_data_dir", "dog", "--base", "tiny"], "--instance_prompt is missing"),
        (["--instance_data_dir=", "--instance_prompt", "a photo of sks dog"], "shell variable"),
        (["--concepts_list", "nowhere.json"], "nowhere.json"),
    ],
)
def test_mistakes_in_diffusers_flags_give_a_short_error_message(argv, said, capsys):
    assert main(["train", "dreambooth", *argv]) == 2
    err = capsys.readouterr().err
    assert said in err and err.startswith("error: ") and err.count("\n") <= 2


def test_only_the_main_process_prints_the_translation_notes(monkeypatch, capsys):
    argv = ["train", "dreambooth", "--instance_data_dir", "nowhere", "--base", "tiny", "--push_to_hub"]
    argv += ["--instance_prompt", "a photo of sks dog"]
    assert main(argv) == 2
    assert "note: --push_to_hub" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "1")
    assert main(argv) == 2
    assert "note:" not in capsys.readouterr().err


def _training(root, place, batch):
    argv = [
        sys.executable,
        str(root / "train_textual_inversion.py"),
        "--token",
        "<me/a>",
        "--base",
        "tiny",
        "--no-samples",
    ]
    argv += [
        "--photos",
        str(root / "examples/photos/teddy-bear"),
        "--steps",
        "3",
        "--batch",
        str(batch),
        "--vectors",
        "2",
    ]
    return [*argv, "--library", str(place / "concepts"), "--run", str(place / "run")]


@pytest.mark.thorough
@pytest.mark.slow
def test_two_processes_train_like_one_with_twice_the_batch_size(tmp_path, root):
    """Started as a launcher starts them. (accelerate launch itself starts several on a CPU only through MPI.)"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            _training(root, tmp_path / "two", 1),
            env=common | meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [rank.communicate(timeout=200)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert "3 steps of 2 photos" in outputs[0] and outputs[1] == ""  # two processes, one voice
    subprocess.run(_training(root, tmp_path / "one", 2), env=common, check=True, capture_output=True)
    vectors = [Library(tmp_path / name / "concepts").get(Token("me", "a")).vectors["clip_l"] for name in ("two", "one")]
    np.testing.assert_allclose(*vectors, atol=1e-5)


@pytest.mark.slow
def test_the_scripts_run_under_accelerate_launch(tmp_path, root):
    argv = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    argv += [str(root / "train_dreambooth.py"), "--photos", str(root / "examples/photos/teddy-bear"), "--class", "bear"]
    argv += ["--token", "<me/a>", "--base", "tiny", "--steps", "2", "--no-samples", "--rank", "2", "--run", "there"]
    done = subprocess.run(argv, env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [str(entry.token) for entry in Library("concepts").entries()] == ["<me/a-v1>"]
