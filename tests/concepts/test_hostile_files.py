"""A stranger's file can be refused or read, soon and in bounds; it can do nothing."""

import json
import os
import time
import warnings
from pathlib import Path

import pytest
import torch

from sdpersonal.concepts.concept_file import concept_to_bytes
from sdpersonal.concepts.importers import read_any
from sdpersonal.concepts.importers.read_folders import read_folder, read_path, read_source
from sdpersonal.concepts.importers.sources import _main_files, find_concepts
from sdpersonal.concepts.library import Library
from sdpersonal.errors import UserError
from sdpersonal.prompts import Token
from support import foreign, hostile
from support.foreign import rows, safetensors_bytes, torch_saved

T = Token.parse


def test_the_canary_detects_executed_code():
    import pickle

    pickle.loads(pickle.dumps(hostile.Evil()))
    assert Path(hostile.CANARY).exists()


# --- folders ----------------------------------------------------------------------------------------------------------


def test_a_broken_file_is_not_replaced_by_the_pickle_beside_it(tmp_path):
    evil = torch_saved({"<a>": hostile.Evil()})
    for safe_name, pickle_name in (
        ("learned_embeds.safetensors", "learned_embeds.bin"),
        ("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin"),
        ("adapter_model.safetensors", "adapter_model.bin"),
    ):
        folder = tmp_path / safe_name
        folder.mkdir()
        (folder / safe_name).write_bytes(b"broken")
        (folder / pickle_name).write_bytes(evil)
        with pytest.raises(UserError, match=safe_name):
            read_folder(folder)
    for name in ("learned_embeds.bin", "lora_weight.pt"):
        folder = tmp_path / f"alone {name}"
        folder.mkdir()
        (folder / name).write_bytes(evil)
        with pytest.raises(UserError, match=r"asks to run os\.mkdir"):
            read_folder(folder)
    assert os.listdir() == []


def test_pipes_links_devices_and_invalid_configurations_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "nowhere.pt").symlink_to("/nowhere")
    (tmp_path / "device.pt").symlink_to("/dev/zero")
    for source in find_concepts(tmp_path):
        with pytest.raises(UserError):
            read_source(source)
    for text in ("[" * 100_000, "{", "[]", '{"peft_type": "LOKR"}', "\xff"):
        folder = tmp_path / "adapter"
        folder.mkdir(exist_ok=True)
        (folder / "adapter_config.json").write_text(text)
        (folder / "adapter_model.safetensors").write_bytes(foreign.diffusers_lora(every=20))
        with pytest.raises(UserError):
            read_folder(folder)


def test_hostile_text_files_are_read_as_plain_text(tmp_path):
    (tmp_path / "learned_embeds.bin").write_bytes(torch_saved({"<a>": rows(1)}))
    (tmp_path / "token_identifier.txt").write_text("../../../etc/passwd")
    (tmp_path / "type_of_concept.txt").write_text("\x1b[31m<script>")
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n### \x1b[31m<img onerror=x> on Stable Diffusion")
    imported = read_folder(tmp_path)
    assert imported.token == T("<etc/passwd>") and imported.card.kind == "object"
    assert imported.card.title == "[31m<img onerror=x>"


# --- names ------------------------------------------------------------------------------------------------------------

NAMES = [
    "../../app",
    "/etc/x",
    "a/b/../..",
    "..",
    ".git",
    "x.",
    "a\x00b",
    "a" * 300,
    "<a>\n<b>",
    "\u202eevil",
    "-",
    "<cat:2>",
    "a\\b",
]


@pytest.mark.parametrize("name", NAMES)
def test_hostile_names_never_lead_outside_the_library(tmp_path, name):
    library = Library(tmp_path / "library")
    for data in (
        safetensors_bytes({"emb_params": rows(1)}, {"modelspec.title": name, "name": name}),
        torch_saved({name or "x": rows(1)}),
    ):
        try:
            token = library.add_imported(read_any(data, f"{name}.safetensors"))
        except UserError as error:
            assert error.hint and str(error).replace("\n", "").isprintable()
        else:
            assert library.find(token).path.resolve().is_relative_to(library.folder.resolve())
    assert {path.name for path in tmp_path.iterdir()} <= {"library"} and os.listdir() == []


@pytest.mark.parametrize("name", ["con", "<NUL>", "имя", "\uff43\uff41\uff54\u0443", "***", ""])
def test_unusable_file_names_are_refused_with_a_hint(name):
    with pytest.raises(UserError, match=r"--as") as caught:
        read_any(safetensors_bytes({"emb_params": rows(1)}), f"{name}.safetensors")
    assert caught.value.hint


# --- other cases ------------------------------------------------------------------------------------------------------


def test_large_files_of_zeros_are_refused_quickly(tmp_path):
    path = tmp_path / "big.safetensors"
    path.touch()
    os.truncate(path, 4_000_000_000)
    began = time.process_time()
    with pytest.raises(UserError, match="nothing but zeros"):
        read_path(path)
    assert time.process_time() - began < 2


def test_a_folder_of_many_generic_names_is_listed_in_linear_time(tmp_path):
    names = {f"lora_weight{number}.pt": tmp_path for number in range(60_000)}
    began = time.process_time()
    assert len(_main_files(tmp_path, names, names)) == 60_000
    assert time.process_time() - began < 2


def test_an_imported_file_is_opened_once(tmp_path, monkeypatch):
    """What was checked is what is used, whoever changes the file meanwhile."""
    path = tmp_path / "duck.safetensors"
    path.write_bytes(safetensors_bytes({"emb_params": rows(1)}))
    opened = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, *how: opened.append(path) or real(path, *how))
    read_path(path)
    assert opened == [path]


def test_different_concepts_never_share_a_token(tmp_path):
    library = Library(tmp_path)
    first, two = torch_saved({"<My-Cat>": rows(1)}), torch_saved({"<my-cat>": rows(1, seed=1)})
    token = library.add_imported(read_any(first, "a"))
    assert library.add_imported(read_any(first, "b")) == token  # the same file twice
    with pytest.raises(UserError, match="is already in the library") as caught:
        library.add_imported(read_any(two, "c"))
    assert "--as" in caught.value.hint and "--replace" in caught.value.hint


@pytest.mark.parametrize(
    ("length", "message"),
    [(0.0, True), (0.019, True), (0.021, False), (0.4, False), (7.9, False), (8.1, True), (1e6, True), (1e30, True)],
)
def test_unusual_vector_lengths_are_recorded_in_the_card(length, message):
    """CLIP's own rows are about 0.4 long. It is the longest that counts: a row of zeros beside it does no harm."""
    vectors = torch.zeros(2, 768)
    vectors[1, 7] = length
    imported = read_any(safetensors_bytes({"emb_params": vectors}), "duck.safetensors")
    assert imported.card.recipe == ({"longest_row": round(float(vectors[1, 7]), 4)} if message else {})
    concept_to_bytes(imported)


@pytest.mark.parametrize("bits", [0x7F800000, 0xFF800000, 0x7FC00000, 0x7FA00000])  # the last: a NaN that signals
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_non_finite_vectors_are_refused_without_warnings(bits, dtype):
    number = bits.to_bytes(4, "little")[2:] if dtype == "BF16" else bits.to_bytes(4, "little")
    if dtype == "F16":
        number = ((bits >> 16 & 0x8000) | 0x7C00 | (bits >> 13 & 0x3FF)).to_bytes(2, "little")
    width = len(number)
    entry = {"dtype": dtype, "shape": [3, 768], "data_offsets": [0, 3 * 768 * width]}
    raw = json.dumps({"emb_params": entry}).encode()
    data = bytearray(len(raw).to_bytes(8, "little") + raw + bytes(3 * 768 * width))
    at = len(data) - 5 * width
    data[at : at + width] = number
    with warnings.catch_warnings(), pytest.raises(UserError, match="row 2 of its vectors holds numbers"):
        warnings.simplefilter("error")
        read_any(bytes(data), "duck.safetensors")
