"""`concepts import`: many at once, and what happened to each."""

import importlib
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sdpersonal.cli.main import main
from sdpersonal.concepts.exporters import export
from sdpersonal.concepts.importers import hub_repositories
from sdpersonal.concepts.importers.hub_repositories import Repository, parse_repository
from sdpersonal.concepts.importing import find_sources
from sdpersonal.concepts.library import Library
from sdpersonal.prompts import Token
from support import foreign, pictures_with
from support.foreign import a1111, rows, safetensors_bytes, torch_saved
from support.hostile import Evil
from support.samples import concept


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "from others"
    place.mkdir()
    (place / "duck.pt").write_bytes(torch_saved(a1111(rows(2))))
    (place / "evil[red].bin").write_bytes(torch_saved({"<a>": Evil()}))
    (place / "picture.png").write_bytes(pictures_with.with_chunk(a1111(rows(1), "Goose"), Image.new("RGB", (8, 8))))
    (place / "long.safetensors").write_bytes(safetensors_bytes({"emb_params": rows(1) * 1e5}))
    return place


def run(*argv):
    return main(["concepts", "import", *map(str, argv), "--library", "shelf"])


def test_a_refused_file_does_not_stop_the_import_of_the_others(folder, capsys):
    assert run(folder, "nowhere.pt") == 2
    out = capsys.readouterr().out
    assert "3 of 5 are in shelf." in out and "evil[red].bin" in out and "asks to run os.mkdir; refused." in out
    assert "of norm up to" in " ".join(out.split())
    tokens = [str(entry.token) for entry in Library("shelf").entries()]
    assert tokens == ["<imported/duck-v1>", "<imported/goose-v1>", "<imported/long-v1>"]
    (folder / "evil[red].bin").unlink()
    assert run(folder, "--json") == 0
    output = json.loads(capsys.readouterr().out)
    assert sorted(output["imported"]) == tokens and {item["done"] for item in output["files"]} == {"here already"}


def test_json_output_lists_the_result_of_each_file(folder, capsys):
    assert run(folder / "duck.pt", folder / "evil[red].bin", "--json") == 2
    good, bad = json.loads(capsys.readouterr().out)["files"]
    assert good["done"] == "imported" and good["token"] == "<imported/duck-v1>" and good["problem"] is None
    assert bad["done"] == "refused" and bad["token"] is None and "os.mkdir" in bad["problem"] and bad["fix"]


def test_the_as_option_names_a_single_concept(folder, capsys):
    assert run(folder, "--as", "<me/x>") == 2
    assert "--as names one concept" in capsys.readouterr().err
    assert run(folder / "duck.pt", "--as", "<me/x>") == 0
    (folder / "duck.pt").write_bytes(torch_saved(a1111(rows(2, seed=5))))
    assert run(folder / "duck.pt", "--as", "<me/x>") == 2
    assert "--replace" in capsys.readouterr().err
    assert run(folder / "duck.pt", "--as", "<me/x>", "--replace") == 0
    assert [str(entry.token) for entry in Library("shelf").entries()] == ["<me/x-v1>"]


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
def test_repository_ids_and_urls_are_parsed(text, expected):
    assert parse_repository(text) == expected


@pytest.mark.tries_network
def test_an_unreachable_hub_is_reported_within_seconds(capsys, monkeypatch):
    importlib.import_module("huggingface_hub")  # takes seconds on a busy machine, once
    for offline in ("0", "1"):
        monkeypatch.setenv("HF_HUB_OFFLINE", offline)
        began = time.monotonic()
        assert run("sd-concepts-library/cat-toy") == 2
        assert time.monotonic() - began < 5
        assert "The Hub cannot be reached" in capsys.readouterr().err


def test_only_concept_files_of_a_repository_are_fetched():
    sizes = {
        "learned_embeds.safetensors": 4000,
        "learned_embeds.bin": 4000,
        "concept_images/0.jpeg": 9,
        "README.md": 9,
    }
    assert hub_repositories._files_to_fetch(Repository("a/b"), sizes) == [
        "learned_embeds.safetensors",
        "README.md",
    ]
    assert hub_repositories._files_to_fetch(Repository("a/b", "x.pt"), {"x.pt": 9, "y.pt": 9}) == ["x.pt"]
    for sizes, message in (
        ({"model_index.json": 9, "unet/x.safetensors": 9}, "whole model"),
        ({"README.md": 9}, "holds no embedding"),
        ({"x.safetensors": 10**10}, "larger than 4 GB"),
        ({f"{n}.safetensors": 3 * 10**8 for n in range(20)}, "Name the one"),
    ):
        with pytest.raises(hub_repositories.UserError, match=message):
            hub_repositories._files_to_fetch(Repository("a/b"), sizes)


@pytest.mark.thorough
@pytest.mark.slow
def test_a_thousand_files_are_imported_within_a_minute(tmp_path, capsys):
    for number in range(1000):
        vectors = torch.full((4, 768), number / 1e5)
        data = torch_saved({f"<cat-{number}>": vectors}) if number % 2 else safetensors_bytes({"emb_params": vectors})
        (tmp_path / f"cat-{number}{'.bin' if number % 2 else '.safetensors'}").write_bytes(data)
    began = time.process_time()
    assert run(tmp_path) == 0
    assert time.process_time() - began < 60
    assert "1000 of 1000" in capsys.readouterr().out and len(Library("shelf").entries()) == 1000
    assert Library("shelf").find(Token.parse("<imported/cat-999>")).vectors == 4


# --- folders of many, and several of one name -------------------------------------------------------------------------


def put(place, **content):
    """Write files by their paths in a folder; returns the folder."""
    for name, data in content.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return place


def emb(seed=0, count=1):
    return safetensors_bytes({"emb_params": rows(count, seed=seed)})


def learned(word="<toy>", seed=0):
    return safetensors_bytes({word: rows(1, seed=seed)})


def lora():
    return foreign.diffusers_lora(every=40)


def listed(library="shelf"):
    return {str(entry.token): (entry.vectors, entry.lora_rank) for entry in Library(library).entries()}


THREE = {f"{name}.safetensors": emb(number) for number, name in enumerate(("alpha", "beta", "gamma"))}
OF_THREE = {f"<imported/{name}-v1>": (1, 0) for name in ("alpha", "beta", "gamma")}
AMONG = {
    "alone": ({}, {}),
    "a text": ({"token_identifier.txt": "<toy>"}, {}),
    "both texts": ({"token_identifier.txt": "<toy>", "type_of_concept.txt": "style", "README.md": "# x"}, {}),
    "learned_embeds": ({"learned_embeds.safetensors": learned()}, {"<imported/toy-v1>": (1, 0)}),
    "learned_embeds and its text": (
        {"learned_embeds.bin": torch_saved({"*": rows(1, seed=3)[0]}), "token_identifier.txt": "<my-toy>"},
        {"<imported/my-toy-v1>": (1, 0)},
    ),
    "both encoders'": (
        {
            "learned_embeds.safetensors": learned(),
            "learned_embeds_2.safetensors": safetensors_bytes({"<toy>": rows(1, 1280)}),
        },
        {"<imported/toy-v1>": (1, 0)},
    ),
    "steps": (
        {f"learned_embeds-steps-{n}.safetensors": learned(seed=n) for n in (500, 1000)},
        {"<imported/toy-v1>": (1, 0)},
    ),
    "a LoRA": ({"pytorch_lora_weights.safetensors": lora()}, {"<imported/many-v1>": (0, 2)}),
    "a LoRA and its words": (
        {"pytorch_lora_weights.safetensors": lora(), "learned_embeds.safetensors": learned()},
        {"<imported/toy-v1>": (1, 2)},
    ),
    "a LoRA and its _emb": (
        {"pytorch_lora_weights.safetensors": lora(), "many_emb.safetensors": safetensors_bytes({"clip_l": rows(1)})},
        {"<imported/many-v1>": (1, 2)},
    ),
    "a pair of one name": (
        {"duck.safetensors": lora(), "duck_emb.safetensors": safetensors_bytes({"clip_l": rows(1)})},
        {"<imported/duck-v1>": (1, 2)},
    ),
    "capitals": ({"Delta.SAFETENSORS": emb(9), "EPS.PT": torch_saved(a1111(rows(1)))},
                 {"<imported/delta-v1>": (1, 0), "<imported/eps-v1>": (1, 0)}),
    "previews": (
        {"alpha.preview.png": b"x", "alpha.png": b"x", "alpha.civitai.info": "{}", "alpha.json": "{}", "beta.txt": "x",
         "gamma.jpg": b"x", "alpha.yaml": "x: 1"},
        {},
    ),
    "the same as a pickle": ({"alpha.pt": torch_saved(a1111(rows(1))), "beta.bin": torch_saved({"<a>": Evil()})}, {}),
    "folders": (
        {"deep/er/duck.safetensors": emb(7), "repo/learned_embeds.safetensors": learned("<other>", 8),
         "repo/token_identifier.txt": "<other>", "repo/concept_images/0.jpeg": b"x"},
        {"<imported/duck-v1>": (1, 0), "<imported/other-v1>": (1, 0)},
    ),
    "states of a training": (
        {"learned_embeds.safetensors": learned(), "checkpoint-5/model.safetensors": b"x", "checkpoint-5/o.bin": b""},
        {"<imported/toy-v1>": (1, 0)},
    ),
    "kohya's output": (
        {"toy-000001.safetensors": emb(11), "toy-000002.safetensors": emb(12), "toy.safetensors": emb(13)},
        {f"<imported/{name}-v1>": (1, 0) for name in ("toy-000001", "toy-000002", "toy")},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", AMONG)
def test_every_embedding_in_a_folder_is_imported_beside_other_files(case, tmp_path, capsys):
    more, expected = AMONG[case]
    assert run(put(tmp_path / "many", **THREE, **more)) == 0
    capsys.readouterr()
    assert listed() == OF_THREE | expected
    assert run(tmp_path / "many") == 0 and listed() == OF_THREE | expected


BROKEN = {
    "learned_embeds.safetensors": b"broken",
    "pytorch_lora_weights.safetensors": b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n",
    "alpha.bin": torch_saved({"<a>": Evil()}),
    "zeta.safetensors.crdownload": b"half",
    "adapter/adapter_config.json": b"{",
    "base/model_index.json": b"{}",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_does_not_stop_the_import_of_a_folder(name, tmp_path, capsys):
    assert (
        run(put(tmp_path / "many", **{k: v for k, v in THREE.items() if k[:5] != name[:5]}, **{name: BROKEN[name]}))
        == 2
    )
    left = {token: what for token, what in OF_THREE.items() if not (name == "alpha.bin" and "alpha" in token)}
    out = capsys.readouterr().out
    assert listed() == left and out.count("refused") >= 1 and len(os.listdir()) == 1


def test_generic_files_of_different_bases_are_imported_separately(tmp_path, capsys):
    files = {
        "pytorch_lora_weights.safetensors": lora(),
        "learned_embeds.safetensors": safetensors_bytes({"<toy>": rows(1, 1024)}),
    }
    assert run(put(tmp_path / "many", **THREE, **files)) == 0  # the LoRA, which has no name of its own, by its folder
    assert listed() == OF_THREE | {"<imported/toy-v1>": (1, 0), "<imported/many-v1>": (0, 2)}


def test_the_hub_cache_is_imported_under_its_repository_name(tmp_path, capsys):
    blobs = put(tmp_path / "models--Some-One--cat_toy", **{"blobs/abc": torch_saved({"*": rows(1)[0]})})
    snapshot = blobs / "snapshots" / ("0123456789" * 4)
    snapshot.mkdir(parents=True)
    (snapshot / "learned_embeds.bin").symlink_to("../../blobs/abc")
    for number, given in enumerate((tmp_path, blobs, snapshot)):
        assert main(["concepts", "import", str(given), "--library", f"shelf{number}"]) == 0
        assert listed(f"shelf{number}") == {"<some-one/cat-toy-v1>": (1, 0)}


def test_a_folder_without_concepts_is_refused_with_a_message(tmp_path, capsys):
    for number, files in enumerate(({}, {"a.txt": "x", "b.png": b"x"}, {"deep/er/c.json": "{}"})):
        (tmp_path / f"f{number}").mkdir()
        assert run(put(tmp_path / f"f{number}", **files)) == 2
        assert "holds no embedding or LoRA" in capsys.readouterr().err


def test_unfinished_downloads_are_refused(tmp_path, capsys):
    put(tmp_path, **{"duck.safetensors": emb(), "duck.safetensors.aria2": b"\0\1" + bytes(20)})
    assert run(tmp_path / "duck.safetensors") == 2 and "has not finished" in capsys.readouterr().err
    for end in (".part", ".crdownload", ".aria2"):
        assert run(put(tmp_path / end, **{f"a.safetensors{end}": emb()})) == 2
        assert "has not finished" in capsys.readouterr().err


def test_broken_links_are_refused_with_a_message(tmp_path, capsys):
    (tmp_path / "a.safetensors").symlink_to("../.git/annex/objects/x/SHA256E-s9--a.safetensors")
    (tmp_path / "b.safetensors").symlink_to("nowhere")
    put(tmp_path, **{"c.safetensors": emb()})
    assert run(tmp_path) == 2 and listed() == {"<imported/c-v1>": (1, 0)}
    out = " ".join(capsys.readouterr().out.split())
    assert "git annex get" in out and "link to a file that is not there" in out


PINS = {"one.bin": torch_saved({"<pin>": rows(1)[0]}), "two.bin": torch_saved({"<pin>": rows(1, seed=1)[0]})}
SNAPSHOTS = {
    "kohya": ["{}-000001.safetensors", "{}-000010.safetensors", "{}.safetensors"],
    "kohya's steps": ["{}-step00000500.safetensors", "{}-step00001500.safetensors", "{}.safetensors"],
    "ai-toolkit": ["{}_000000500.safetensors", "{}_000001500.safetensors", "{}.safetensors"],
    "A1111": ["{}-500.pt", "{}-1000.pt", "{}-10000.pt"],
    "OneTrainer": [f"{{}}2026-01-01_10-00-00-save-{n}-1-0.safetensors" for n in (90, 100, 1000)],
    "diffusers": [f"learned_embeds-steps-{n}.bin" for n in (90, 1000)] + ["learned_embeds.bin"],
    "OneTrainer without a prefix": [f"2026-01-01_10-00-00-save-{n}-1-0.safetensors" for n in (90, 100, 1000)],
    "diffusers' checkpoints": [f"checkpoint-{n}/learned_embeds.bin" for n in (90, 1000)] + ["learned_embeds.bin"],
    "diffusers' checkpoints alone": [f"checkpoint-{n}/learned_embeds.bin" for n in (90, 100, 1000)],
    "diffusers' steps alone": [f"learned_embeds-steps-{n}.bin" for n in (90, 100, 1000)],
}


def snapshots(kind):
    names = [name.format("toy-" if kind == "OneTrainer" else "toy") for name in SNAPSHOTS[kind]]
    for seed, name in enumerate(names):
        vectors = rows(1, seed=seed)
        content = torch_saved({"<toy>": vectors}) if name.endswith(".bin") else torch_saved(a1111(vectors, name[:-3]))
        yield name, safetensors_bytes({"emb_params": vectors}) if name.endswith(".safetensors") else content


def test_the_duplicates_option_handles_files_with_the_same_token(tmp_path, capsys):
    place = put(tmp_path / "pins", **PINS)
    assert run(place) == 2 and listed() == {"<imported/pin-v1>": (1, 0)}
    assert "--duplicates versions" in " ".join(capsys.readouterr().out.split())
    assert main(["concepts", "import", str(place), "--library", "a", "--duplicates", "versions"]) == 0
    assert listed("a") == {"<imported/pin-v1>": (1, 0), "<imported/pin-v2>": (1, 0)}
    assert main(["concepts", "import", str(place), "--library", "a", "--duplicates", "versions"]) == 0
    assert len(listed("a")) == 2  # nothing is taken in twice
    assert main(["concepts", "import", str(place), "--library", "b", "--duplicates", "filenames"]) == 0
    assert listed("b") == {"<imported/one-v1>": (1, 0), "<imported/two-v1>": (1, 0)}
    assert run(place / "two.bin", "--duplicates", "filenames") == 0  # what is in the library counts as well
    assert listed() == {"<imported/pin-v1>": (1, 0), "<imported/two-v1>": (1, 0)}
    assert run(place / "one.bin", place / "two.bin", "--as", "<me/x>", "--duplicates", "versions") == 0
    assert {"<me/x-v1>", "<me/x-v2>"} <= listed().keys()


@pytest.mark.parametrize("kind", SNAPSHOTS)
def test_training_snapshots_become_versions_in_training_order(kind, tmp_path, capsys):
    content = dict(snapshots(kind))
    assert run(put(tmp_path / "toy", **content), "--duplicates", "versions") == 0
    assert listed().keys() == {"<imported/toy-v1>", "<imported/toy-v2>", "<imported/toy-v3>"}
    for seed in range(3):
        loaded = Library("shelf").get(Token.parse(f"<imported/toy-v{seed + 1}>")).vectors["clip_l"]
        assert np.array_equal(loaded, rows(1, seed=seed).numpy()), (kind, seed)
    assert main(["concepts", "import", str(tmp_path / "toy"), "--library", "b", "--duplicates", "filenames"]) == 0
    assert len({token.partition("-v")[0] for token in listed("b")}) == 3, listed("b")


def test_the_last_checkpoint_is_imported_where_only_checkpoints_exist(tmp_path, capsys):
    states = {f"checkpoint-{n}/{name}": b"x" for n in (90, 1000) for name in ("optimizer.bin", "scheduler.bin")}
    loras = {f"checkpoint-{n}/pytorch_lora_weights.safetensors": lora() for n in (90, 1000)}
    assert run(put(tmp_path / "duck", **states, **loras)) == 0
    assert listed() == {"<imported/duck-v1>": (0, 2)}
    assert "checkpoint-1000" in str(find_sources(str(tmp_path / "duck")))


def test_equal_file_names_are_prefixed_with_their_folder_name(tmp_path, capsys):
    place = put(tmp_path, **{f"{name}/one.safetensors": emb(seed) for seed, name in enumerate(("cats", "dogs"))})
    assert run(place / "cats" / "one.safetensors") == 0
    assert run(place / "dogs" / "one.safetensors", "--duplicates", "filenames") == 0
    assert listed().keys() == {"<imported/one-v1>", "<imported/dogs-one-v1>"}
    for _ in range(2):
        assert main(["concepts", "import", str(place), "--library", "a", "--duplicates", "filenames"]) == 0
        assert listed("a").keys() == {"<imported/cats-one-v1>", "<imported/dogs-one-v1>"}


def test_numbered_files_are_not_training_snapshots(tmp_path, capsys):
    place = put(tmp_path / "cats", **{f"cat-{number}.safetensors": emb(number) for number in (1, 2, 50)})
    assert run(place, "--duplicates", "versions") == 0
    assert listed().keys() == {f"<imported/cat-{number}-v1>" for number in (1, 2, 50)}


def test_parts_given_by_relative_and_absolute_paths_are_joined(tmp_path, monkeypatch, capsys):
    made = export(concept(), "a1111").files
    put(tmp_path, **{name: data for name, data in made.items() if name.endswith(".safetensors")})
    monkeypatch.chdir(tmp_path)
    first, second = sorted(Path().rglob("*.safetensors"))
    put(tmp_path, **{"token_identifier.txt": "<not-this>"})
    assert run(first, second.absolute(), "--as", "<you/x>") == 0
    assert Library("shelf").get(Token.parse("<you/x>")).identity == concept().identity
