"""`concepts import`: many at once, and what happened to each."""

import importlib
import json
import time

import pytest
import torch
from PIL import Image

import pictures_with
from foreign import a1111, rows, safe, torch_saved
from hostile import Evil
from sdpersonal.cli import main
from sdpersonal.formats import repositories
from sdpersonal.formats.repositories import Repository, split
from sdpersonal.library import Library
from sdpersonal.prompts import Token


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "from others"
    place.mkdir()
    (place / "duck.pt").write_bytes(torch_saved(a1111(rows(2))))
    (place / "evil[red].bin").write_bytes(torch_saved({"<a>": Evil()}))
    (place / "picture.png").write_bytes(pictures_with.with_chunk(a1111(rows(1), "Goose"), Image.new("RGB", (8, 8))))
    (place / "long.safetensors").write_bytes(safe({"emb_params": rows(1) * 1e5}))
    return place


def run(*argv):
    return main(["concepts", "import", *map(str, argv), "--library", "shelf"])


def test_one_bad_file_does_not_stop_the_others(folder, capsys):
    assert run(folder, "nowhere.pt") == 2
    out = capsys.readouterr().out
    assert "3 of 5 are in shelf." in out and "evil[red].bin" in out and "asks to run os.mkdir; refused." in out
    assert "long, where" in " ".join(out.split())
    tokens = [str(entry.token) for entry in Library("shelf").list()]
    assert tokens == ["<imported/duck-v1>", "<imported/goose-v1>", "<imported/long-v1>"]
    (folder / "evil[red].bin").unlink()
    assert run(folder, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert sorted(told["imported"]) == tokens and {each["done"] for each in told["files"]} == {"here already"}


def test_each_outcome_as_json(folder, capsys):
    assert run(folder / "duck.pt", folder / "evil[red].bin", "--json") == 2
    good, bad = json.loads(capsys.readouterr().out)["files"]
    assert good["done"] == "imported" and good["token"] == "<imported/duck-v1>" and good["problem"] is None
    assert bad["done"] == "refused" and bad["token"] is None and "os.mkdir" in bad["problem"] and bad["fix"]


def test_as_names_one(folder, capsys):
    assert run(folder, "--as", "<me/x>") == 2
    assert "--as names one concept" in capsys.readouterr().err
    assert run(folder / "duck.pt", "--as", "<me/x>") == 0
    (folder / "duck.pt").write_bytes(torch_saved(a1111(rows(2, seed=5))))
    assert run(folder / "duck.pt", "--as", "<me/x>") == 2
    assert "--replace" in capsys.readouterr().err
    assert run(folder / "duck.pt", "--as", "<me/x>", "--replace") == 0
    assert [str(entry.token) for entry in Library("shelf").list()] == ["<me/x-v1>"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sd-concepts-library/cat-toy", Repository("sd-concepts-library/cat-toy")),
        ("https://huggingface.co/a/b", Repository("a/b")),
        ("a/b/c/d.safetensors", Repository("a/b", "c/d.safetensors")),
        ("https://huggingface.co/a/b/resolve/main/d.pt", Repository("a/b", "d.pt")),
        ("duck.pt", None),
        ("a/duck.pt", None),
        ("a/b/../../c.pt", None),
        ("/etc/passwd", None),
        ("../a", None),
        ("", None),
    ],
)
def test_what_names_a_repository(text, expected):
    assert split(text) == expected


@pytest.mark.tries_network
def test_without_the_hub_it_says_so_within_seconds(capsys, monkeypatch):
    importlib.import_module("huggingface_hub")  # takes seconds on a busy machine, once
    for offline in ("0", "1"):
        monkeypatch.setenv("HF_HUB_OFFLINE", offline)
        began = time.monotonic()
        assert run("sd-concepts-library/cat-toy") == 2
        assert time.monotonic() - began < 5
        assert "cannot reach the Hub" in capsys.readouterr().err


def test_of_a_repository_only_what_can_be_a_concept_is_wanted():
    some = {"learned_embeds.safetensors": 4000, "learned_embeds.bin": 4000, "concept_images/0.jpeg": 9, "README.md": 9}
    assert repositories._wanted(Repository("a/b"), some) == ["learned_embeds.safetensors", "README.md"]
    assert repositories._wanted(Repository("a/b", "x.pt"), {"x.pt": 9, "y.pt": 9}) == ["x.pt"]
    for sizes, said in (
        ({"model_index.json": 9, "unet/x.safetensors": 9}, "whole model"),
        ({"README.md": 9}, "holds no embedding"),
        ({"x.safetensors": 10**10}, "larger than 4 GB"),
        ({f"{n}.safetensors": 3 * 10**8 for n in range(20)}, "Name the one"),
    ):
        with pytest.raises(repositories.PersonalError, match=said):
            repositories._wanted(Repository("a/b"), sizes)


@pytest.mark.thorough
@pytest.mark.slow
def test_a_thousand_in_a_minute(tmp_path, capsys):
    for number in range(1000):
        vectors = torch.full((4, 768), number / 1e5)
        data = torch_saved({f"<cat-{number}>": vectors}) if number % 2 else safe({"emb_params": vectors})
        (tmp_path / f"cat-{number}{'.bin' if number % 2 else '.safetensors'}").write_bytes(data)
    began = time.process_time()
    assert run(tmp_path) == 0
    assert time.process_time() - began < 60
    assert "1000 of 1000" in capsys.readouterr().out and len(Library("shelf").list()) == 1000
    assert Library("shelf").find(Token.parse("<imported/cat-999>")).vectors == 4
