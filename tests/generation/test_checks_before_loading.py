"""What is wrong with a command is said before a model is loaded, since that can take minutes."""

import os
from pathlib import Path

import pytest
from PIL import Image

from sdpersonal.cli.main import main
from sdpersonal.concepts.library import Library
from sdpersonal.training.presets import lower_rate
from support.samples import concept, embedding


class Loaded(Exception):
    """A model was loaded."""


@pytest.fixture(autouse=True)
def loading_fails(monkeypatch):
    def load(*_, **__):
        raise Loaded

    monkeypatch.setattr("sdpersonal.models.load_base", load)
    monkeypatch.setattr("sdpersonal.training.run.load_base", load)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    library = Library(tmp_path / "concepts")
    library.add(concept("<me/duck>"))
    library.add(embedding("<you/ink>", seed=1))
    Image.new("RGB", (160, 128), "red").save("start.png")
    Image.new("RGBA", (160, 128)).save("clear.png")
    Path("file").write_text("x")
    Path("photos").mkdir()
    Path("empty").mkdir()
    Path("broken").mkdir()
    Path("broken/a.jpg").write_text("no picture")
    for name in ("a", "b"):
        Image.new("RGB", (300, 300), "blue" if name == "a" else "red").save(f"photos/{name}.jpg")
    return tmp_path


KIND = embedding("<you/ink>").card.base
OTHER = "sd21" if KIND == "sd1" else "sd15"
DRAW = [
    (["a <me/duvk>"], "<me/duvk>"),
    (["a {cat|<me/gone>}", "--every"], "<me/gone>"),
    (["a cat", "--negative", "<me/gone>"], "<me/gone>"),
    (["a __nowhere__"], "nowhere"),
    (["a cat", "--fast", "<me/gone>"], "<me/gone>"),
    (["a cat", "--fast", "<you/ink>"], "has no LoRA"),
    (["a cat", "--start", "none.png"], "none.png"),
    (["a cat", "--start", "file"], "not an image"),
    (["a cat", "--start", "start.png", "--mask", "none.png"], "none.png"),
    (["a cat", "--start", "start.png", "--mask", "file"], "not an image"),
    (["a cat", "--out", "file"], "is a file, not a folder"),
    (["a cat", "--out", "file/below"], "not a"),
    (["a <you/ink>", "--base", OTHER], "was made for the base"),
]


@pytest.mark.parametrize(("argv", "said"), DRAW, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
@pytest.mark.parametrize("command", ["generate", "endless", "sheet"])
def test_invalid_generation_commands_are_refused_before_loading(place, capsys, command, argv, said):
    if command != "generate" and "--every" in argv:
        argv = [word for word in argv if word != "--every"]
    argv = [command, *argv] if "--base" in argv else [command, *argv, "--base", "tiny"]
    before = sorted(os.listdir())
    if command == "sheet" and "{" in argv[1]:
        argv[1] = "<me/gone>"
    assert main(argv + (["--x", "seed: 1, 2"] if command == "sheet" else [])) == 2
    err = capsys.readouterr().err
    assert said in err and err.startswith("error: ") and err.count("\n") <= 2
    assert sorted(os.listdir()) == before


def test_valid_generation_commands_load_the_model(place, capsys):
    for argv in (["generate", "a <me/duck>"], ["endless", "a {cat|dog}"], ["sheet", "a", "--x", "seed: 1, 2"]):
        with pytest.raises(Loaded):
            main([*argv, "--base", "/some/folder"])
    with pytest.raises(Loaded):
        main(["generate", "a", "--base", "tiny", "--start", "start.png", "--mask", "clear.png"])
    assert "note: clear.png has nothing white" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--method", "pivotal", "--steps", "60"], "--method pivotal trains the embeddings for 60 steps"),
        (
            ["--method", "pivotal", "--steps", "300", "--base", "sd15"],
            "before its LoRA; --steps 300 are too few",
        ),
        (["--method", "full", "--prior", "predicted"], "--prior predicted compares with the unchanged base"),
        (["--prior", "nowhere"], "There is no folder nowhere"),
        (["--photos", "nowhere"], "There is no folder nowhere"),
        (["--photos", "empty"], "There are no photos in empty"),
        (["--photos", "broken"], "There are no photos in broken"),
        (["--prior", "empty"], "There are no photos in empty"),
        (["--prior", "broken"], "There are no photos in broken"),
        (["--lr", "1e10"], "--lr must be a number above 0, up to 1,000,000,000, got"),
        (["--photos", "file"], "is a file, not a folder"),
        (["--resume"], "--resume"),
        (["--library", "file"], "is a file, not a folder"),
        (["--run", "file"], "file"),
        (["--run", "photos/run"], "inside the folder of photos"),
        (["--report-to", "wandb"], "wandb"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_invalid_training_commands_are_refused_before_loading(place, capsys, flags, said):
    common = {"--photos": "photos", "--token": "<me/x>", "--class": "dog", "--base": "tiny"}
    argv = [word for name, value in common.items() if name not in flags for word in (name, value)]
    before = sorted(os.listdir())
    assert main(["train", "dreambooth", *argv, *flags]) == 2
    err = capsys.readouterr().err
    assert said in err and err.startswith("error: ") and err.count("\n") <= 2
    assert sorted(os.listdir()) == before


def test_valid_training_commands_load_the_model(place):
    argv = ["--photos", "photos", "--token", "<me/x>", "--class", "dog"]
    for options in (["--base", "tiny", "--method", "pivotal", "--steps", "61"], ["--base", "/folder", "--steps", "2"]):
        with pytest.raises(Loaded):
            main(["train", "dreambooth", *argv, *options])


@pytest.mark.parametrize(
    ("rate", "usual", "proposed"), [(1e8, 1e-4, 1e-4), (1e-3, 1e-4, 1e-4), (5e-4, 1e-4, 5e-5), (1e-4, 1e-4, 1e-5)]
)
def test_the_proposed_learning_rate_is_at_most_the_default(rate, usual, proposed):
    assert lower_rate(rate, usual) == pytest.approx(proposed)
