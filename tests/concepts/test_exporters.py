"""Exports: loaded by diffusers and PEFT themselves, read back without loss, private, whole, and told in words."""

import dataclasses
import getpass
import io
import json
import re
import socket
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load

from sdpersonal.cli.main import main
from sdpersonal.concepts.concept import Concept, Lora, LoraLayer
from sdpersonal.concepts.concept_file import concept_to_bytes
from sdpersonal.concepts.exporters import FORMATS, export
from sdpersonal.concepts.exporters.paths import module_path
from sdpersonal.concepts.exporters.torch_save import torch_save_bytes
from sdpersonal.concepts.importers import read_any
from sdpersonal.concepts.importers.read_folders import read_folder
from sdpersonal.concepts.library import Library
from sdpersonal.errors import UserError
from sdpersonal.models import load_base
from sdpersonal.prompts import Token
from support import teaching
from support.samples import card, concept, vectors

PROMPT = ("a photo of ", " on the beach")


def put(made, folder: Path) -> Path:
    for name, data in made.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def the_file(made, end: str) -> bytes:
    (data,) = [data for name, data in made.files.items() if name.endswith(end)]
    return data


# --- diffusers and PEFT -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=teaching.BASES)
def model(request, tmp_path_factory):
    """(kind, folder)"""
    folder = tmp_path_factory.mktemp(request.param) / "model"
    teaching.make_pipeline(request.param).save_pretrained(folder)
    return request.param, folder


@pytest.fixture
def stock(model):
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(model[1], safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load_words(pipe, folder: Path, base: str) -> None:
    """As the README of the export says."""
    if base == "sdxl":
        for name, end in (("learned_embeds", ""), ("learned_embeds_2", "_2")):
            encoder, tokenizer = getattr(pipe, f"text_encoder{end}"), getattr(pipe, f"tokenizer{end}")
            pipe.load_textual_inversion(
                folder, weight_name=f"{name}.safetensors", text_encoder=encoder, tokenizer=tokenizer
            )
    else:
        pipe.load_textual_inversion(folder, weight_name="learned_embeds.safetensors")


def answers(base, pipe, prompt: str, pieces, mix):
    """The base's and the pipeline's text states and predictions for one prompt."""
    kind = base.kind
    shape = (1, *base.latent_shape(16 * base.vae_scale_factor, 16 * base.vae_scale_factor))
    noisy, t = torch.randn(shape, generator=torch.Generator().manual_seed(0)), torch.tensor([500])
    with base.exclusive(), base.adapters.active(mix):
        condition = base.encode_captions([pieces])
        ours = base.predict(noisy, t, condition)
    with torch.no_grad():
        encoded = pipe.encode_prompt(prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
        added = None
        if kind == "sdxl":
            added = {"text_embeds": encoded[2], "time_ids": condition.added_cond_kwargs["time_ids"]}
        reference = pipe.unet(noisy, t, encoded[0], added_cond_kwargs=added).sample
    return (condition.prompt_embeds, ours), (encoded[0], reference)


@pytest.mark.parametrize("even", [True, False])
def test_exported_concepts_predict_the_same_in_diffusers(model, stock, tmp_path, even):
    kind, folder = model
    original = teaching.full_concept(kind, even=even)
    made = export(original, "diffusers")
    put(made, tmp_path)
    load_words(stock, tmp_path, kind)
    stock.load_lora_weights(tmp_path, weight_name="pytorch_lora_weights.safetensors")
    base = load_base(str(folder), device="cpu")
    rows = {key: torch.from_numpy(value) for key, value in original.vectors.items()}
    pieces = [PROMPT[0], rows, PROMPT[1]]
    (states, ours), (their_states, reference) = answers(
        base, stock, made.trigger_word.join(PROMPT), pieces, [(original.lora, 1.0)]
    )
    torch.testing.assert_close(states, their_states, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours, reference, atol=1e-4, rtol=1e-4)
    (_, bare), _ = answers(base, stock, PROMPT[0], pieces, [])
    assert (ours - bare).abs().max() > 1e-2


def test_diffusers_loads_exactly_the_exported_vectors_and_weights(model, stock, tmp_path):
    kind, _ = model
    original = teaching.full_concept(kind)
    put(export(original, "diffusers"), tmp_path)
    load_words(stock, tmp_path, kind)
    for key, end in zip(original.vectors, ("", "_2"), strict=False):
        tokenizer, encoder = getattr(stock, f"tokenizer{end}"), getattr(stock, f"text_encoder{end}")
        ids = tokenizer.convert_tokens_to_ids(["<me/toy-duck>", "<me/toy-duck>_1", "<me/toy-duck>_2"])
        assert torch.equal(encoder.get_input_embeddings().weight[ids], torch.from_numpy(original.vectors[key]))
    stock.load_lora_weights(tmp_path, weight_name="pytorch_lora_weights.safetensors")
    config = stock.unet.peft_config["default_0"]
    assert config.rank_pattern and config.alpha_pattern
    count = 0
    for name, layer in original.lora.layers.items():
        component, path = module_path(name)
        model_ = getattr(stock, component)
        path = path if hasattr(model_, "text_model") else path.removeprefix("text_model.")
        reference = model_.get_submodule(path)
        assert torch.equal(reference.lora_A["default_0"].weight, torch.from_numpy(layer.down)), name
        assert torch.equal(reference.lora_B["default_0"].weight, torch.from_numpy(layer.up)), name
        assert reference.scaling["default_0"] == layer.alpha / layer.rank, name
        count += 1
    assert count == len(original.lora.layers) > 50


def test_sd_concepts_library_exports_load_in_diffusers(model, stock, tmp_path):
    kind, _ = model
    original = teaching.full_concept(kind, "vectors")
    if kind == "sdxl":
        with pytest.raises(UserError, match="does not support SDXL"):
            export(original, "sd-concepts-library")
        return
    put(export(original, "sd-concepts-library"), tmp_path)
    stock.load_textual_inversion(str(tmp_path))
    ids = stock.tokenizer.convert_tokens_to_ids(["<me/toy-duck>", "<me/toy-duck>_1", "<me/toy-duck>_2"])
    rows = stock.text_encoder.get_input_embeddings().weight[ids]
    assert torch.equal(rows, torch.from_numpy(original.vectors["clip_l"]))


def test_exports_for_the_built_in_base_load_in_diffusers(tiny, tmp_path):
    from diffusers import DiffusionPipeline

    from sdpersonal.models.loading import built_in_folder

    original = concept("<me/duck>", card=card(), vectors={"clip_l": 0.02 * vectors()}, lora=None)
    made = export(original, "diffusers")
    put(made, tmp_path)
    pipe = DiffusionPipeline.from_pretrained(built_in_folder())
    load_words(pipe, tmp_path, "tiny")
    (states, ours), (their_states, reference) = answers(
        tiny,
        pipe,
        made.trigger_word.join(PROMPT),
        [PROMPT[0], {"clip_l": torch.from_numpy(original.vectors["clip_l"])}, PROMPT[1]],
        [],
    )
    torch.testing.assert_close(states, their_states, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours, reference, atol=1e-4, rtol=1e-4)
    assert any("no other program has" in note for note in made.notes)


@pytest.mark.parametrize("base", teaching.BASES)
def test_every_published_layer_has_its_diffusers_path(base):
    parts = teaching.models(base, teaching.original.FULL)
    places = teaching.adapters(base, parts)
    modules = places.layers()
    for name in places.layer_names("all", text_encoder=True):
        component, path = module_path(name)
        model = parts[component]
        path = path if hasattr(model, "text_model") else path.removeprefix("text_model.")
        assert model.get_submodule(path) is modules[name], name


@pytest.mark.parametrize("name", ["lora_unet_joint_blocks_0_x", "lora_unet_", "lora_te3_text_model", "lora_unet_a__b"])
def test_layers_of_other_architectures_are_refused(name):
    with pytest.raises(UserError, match="in no supported Stable Diffusion"):
        module_path(name)


# --- torch's file without torch ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(768,), (1, 768), (3, 1024)])
def test_torch_save_bytes_are_loaded_by_torch(shape):
    rows = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    data = torch_save_bytes("<me/duck>", rows)
    assert data == torch_save_bytes("<me/duck>", rows)
    for careful in (True, False):
        loaded = torch.load(io.BytesIO(data), weights_only=careful, map_location="cpu")
        assert list(loaded) == ["<me/duck>"] and torch.equal(loaded["<me/duck>"], torch.from_numpy(rows))
    names = zipfile.ZipFile(io.BytesIO(data)).namelist()  # A1111's checker lets no other member pass
    assert names == ["archive/data.pkl", "archive/data/0", "archive/version"]


def test_sd_concepts_library_notebooks_can_load_a_vector(tmp_path):
    original = concept(card=card(base="sd1"), vectors={"clip_l": vectors(0, 1, 768)}, lora=None)
    put(export(original, "sd-concepts-library"), tmp_path)
    table = torch.zeros(5, 768)
    loaded = torch.load(tmp_path / "learned_embeds.bin", map_location="cpu")  # as stable_conceptualizer_inference does
    (word,) = loaded
    table[2] = loaded[word]
    assert word == (tmp_path / "token_identifier.txt").read_text() == "<me/duck>"
    assert torch.equal(table[2:3], torch.from_numpy(original.vectors["clip_l"]))
    assert (tmp_path / "type_of_concept.txt").read_text() == "object"


# --- out and in again -------------------------------------------------------------------------------------------------


def same_vectors(actual: Concept, original: Concept) -> None:
    assert actual.vectors.keys() == original.vectors.keys()
    assert all(actual.vectors[key].tobytes() == original.vectors[key].tobytes() for key in original.vectors)


def same_lora(actual: Lora, original: Lora) -> None:
    assert actual.layers.keys() == original.layers.keys()
    for name, layer in original.layers.items():
        reference = actual.layers[name]
        assert reference.alpha == layer.alpha and reference.down.dtype == layer.down.dtype, name
        assert np.array_equal(reference.down, layer.down) and np.array_equal(reference.up, layer.up), name


@pytest.mark.parametrize("base", teaching.BASES)
@pytest.mark.parametrize("format", ["native", "a1111", "comfyui", "invokeai", "kohya"])
def test_native_files_in_other_formats_keep_every_weight_and_card(base, format):
    original = teaching.full_concept(base, dtype=np.float16)
    vectors_seen = lora_seen = False
    for name, data in export(original, format).files.items():
        if name == "README.md":
            continue
        imported = read_any(data, name)
        assert imported.card == original.card.model_copy(update={"token": "<me/toy-duck>"}), name
        if imported.vectors:
            vectors_seen = True
            same_vectors(imported, original)
        if imported.lora:
            lora_seen = True
            same_lora(imported.lora, original.lora)
    assert vectors_seen and lora_seen


@pytest.mark.parametrize("base", ["sd1", "sd2"])
@pytest.mark.parametrize("format", ["diffusers", "sd-concepts-library"])
def test_exported_embeddings_are_imported_under_their_token(base, format):
    original = teaching.full_concept(base, "vectors")
    made = export(original, format)
    imported = read_any(the_file(made, ".safetensors" if format == "diffusers" else ".bin"), "x")
    same_vectors(imported, original)
    assert imported.token == Token("me", "toy-duck")


@pytest.mark.parametrize("base", teaching.BASES)
def test_a_diffusers_export_is_imported_without_loss(base, tmp_path):
    original = teaching.full_concept(base, dtype=np.float16)
    imported = read_folder(put(export(original, "diffusers"), tmp_path))
    same_vectors(imported, original)
    same_lora(imported.lora, original.lora)
    assert imported.token == Token("me", "toy-duck") and imported.card.base == base
    assert imported.card.title == original.card.title and imported.card.license == original.card.license


def test_an_sd_concepts_library_export_is_imported_with_its_kind(tmp_path):
    original = teaching.full_concept("sd2", "vectors")
    original = dataclasses.replace(original, card=original.card.model_copy(update={"kind": "style"}))
    imported = read_folder(put(export(original, "sd-concepts-library"), tmp_path))
    same_vectors(imported, original)
    assert imported.token == Token("me", "toy-duck") and imported.card.kind == "style"


@pytest.mark.parametrize("base", teaching.BASES)
def test_onetrainer_exports_are_imported_without_loss(base):
    original = teaching.full_concept(base)
    made = export(original, "onetrainer")
    word = read_any(made.files["embedding/me-toy-duck.safetensors"], "me-toy-duck.safetensors")
    same_vectors(word, original)
    there = load(made.files["lora/me-toy-duck.safetensors"])
    assert {len(item) for name, item in there.items() if name.endswith("lora_down.weight")} == {3}  # even ranks
    back = read_any(made.files["lora/me-toy-duck.safetensors"], "x").lora
    remaining = {name for name in original.lora.layers if base != "sdxl" or name.startswith("lora_unet_")}
    assert back.layers.keys() == remaining
    for name, layer in back.layers.items():
        same_lora(Lora({name: layer}), Lora({name: original.lora.layers[name]}))
        whole = LoraLayer(
            there[f"{name}.lora_down.weight"], there[f"{name}.lora_up.weight"], float(there[f"{name}.alpha"])
        )
        np.testing.assert_allclose(teaching.change(whole), teaching.change(layer), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_concept_gives_the_same_bytes(format):
    original = teaching.full_concept("sd1")
    assert export(original, format) == export(original, format)


# --- what is said -----------------------------------------------------------------------------------------------------

TYPED = {
    "native": ("<me/toy-duck>", "<me/toy-duck>", "<me/toy-duck>"),
    "diffusers": ("<me/toy-duck>", "sks duck", "<me/toy-duck>"),
    "a1111": ("me-toy-duck", "sks duck <lora:me-toy-duck:1>", "me-toy-duck <lora:me-toy-duck:1>"),
    "comfyui": ("embedding:me-toy-duck", "sks duck", "embedding:me-toy-duck"),
    "invokeai": ("<me-toy-duck>", "sks duck", "<me-toy-duck>"),
    "kohya": ("me-toy-duck", "sks duck", "me-toy-duck"),
    "onetrainer": ("<me/toy-duck>", "sks duck", "<me/toy-duck>"),
    "sd-concepts-library": ("<me/toy-duck>", None, "<me/toy-duck>"),
}


@pytest.mark.parametrize("format", FORMATS)
def test_the_readme_contains_the_prompt_text_of_each_format(format):
    for holds, typed in zip(("vectors", "lora", "both"), TYPED[format], strict=True):
        original = teaching.full_concept("sd1", holds)
        original = dataclasses.replace(original, card=original.card.model_copy(update={"trigger_words": ("sks duck",)}))
        if typed is None:
            with pytest.raises(UserError, match="has no vectors"):
                export(original, format)
            continue
        made = export(original, format)
        assert made.prompt_text == typed
        readme = made.files["README.md"].decode()
        assert f"`{typed}`" in readme and f"a photo of {typed}" in readme
        assert all(f"`{name}`" in readme for name in made.destinations) and "CC" in readme
        assert made.destinations.keys() | {"README.md"} == made.files.keys()
        assert all(re.fullmatch(r"[A-Za-z0-9_./-]+", name) for name in made.files)


def test_a_lora_without_trigger_words_needs_no_prompt_text():
    made = export(teaching.full_concept("sd1", "lora"), "comfyui")
    assert made.prompt_text == "" and "Nothing has to be typed" in made.files["README.md"].decode()
    assert "a photo of a duck" in made.files["README.md"].decode()
    assert export(teaching.full_concept("sd1", "lora"), "a1111").prompt_text == "<lora:me-toy-duck:1>"


def test_export_notes_name_what_is_left_out():
    notes = " ".join(export(teaching.full_concept("sd1"), "sd-concepts-library").notes)
    assert "LoRA is left out" in notes and "3 vectors" in notes
    full = concept(card=card(method="dreambooth-full", trigger_words=("sks duck",)), vectors={})
    assert "trained on the whole model" in " ".join(export(full, "a1111").notes)
    assert "built-in model" in " ".join(export(full, "a1111").notes)
    assert "cuts a longer prompt" in " ".join(export(teaching.full_concept("sd1"), "invokeai").notes)


def test_hostile_card_text_is_escaped_in_the_readme():
    evil = "![x](http://evil.example) <script>alert(1)</script> `a` | [b](c) " + '"; rm -rf ~ #'
    words = ("```", "'; touch PWNED; echo '", '") or __import__("os") #')
    for word in words:
        original = concept(
            card=card(title=evil[:100], description=evil, author=evil[:100], license=evil[:100], trigger_words=(word,)),
            vectors={},
        )
        for format in FORMATS:
            if format == "sd-concepts-library":
                continue
            text = export(original, format).files["README.md"].decode()
            outside = re.sub(r"(`{3,}).*?\n\1", "", text, flags=re.S)
            assert not re.search(r"(?<!\\)<script|(?<!\\)!\[|(?<!\\)\]\(", outside), format
        shell = re.search(r"```+sh\n(.*?)\n```", export(original, "kohya").files["README.md"].decode(), re.S)[1]
        command = shell.replace("python gen_img.py", "printf '%s|'")
        output = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True).stdout
        assert f"a photo of {word}|" in output and not Path("PWNED").exists()
    front = (
        export(
            concept(card=card(license=evil[:100], base="sd1"), vectors={"clip_l": vectors(width=768)}, lora=None),
            "sd-concepts-library",
        )
        .files["README.md"]
        .decode()
    )
    assert front.startswith("---\n") and front.count("\n---\n") == 1


# --- privacy ----------------------------------------------------------------------------------------------------------


def spoken(data: bytes, depth: int = 0) -> bytes:
    """Everything readable in a file: its bytes, and those of pictures in base64 and of members of archives."""
    import base64

    result = data
    for match in re.findall(rb"base64,([A-Za-z0-9+/=]+)", data):
        result += base64.b64decode(match)
    if data.startswith(b"PK"):
        archive = zipfile.ZipFile(io.BytesIO(data))
        result += b"".join(archive.read(name) for name in archive.namelist())
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    return result


def with_exif() -> bytes:
    """A WebP thumbnail with what a camera writes."""
    picture, out = Image.radial_gradient("L").convert("RGB"), io.BytesIO()
    exif = Image.Exif()
    exif[0x010F], exif[0x9286], exif[0x8825] = "SecretCamera", "SecretComment", {1: "N", 2: (52.0, 31.0, 0.0)}
    picture.save(out, "WEBP", exif=exif, xmp=b"<x>SecretXmp</x>")
    return out.getvalue()


@pytest.mark.parametrize("format", FORMATS)
def test_exports_contain_no_private_data(format, monkeypatch):
    monkeypatch.setenv("USER", "secretuser")
    original = dataclasses.replace(teaching.full_concept("sd1"), thumbnail=with_exif())
    assert b"SecretCamera" in spoken(concept_to_bytes(original))  # the canary would be seen
    private = [b"Secret", b"secretuser", b"EXIF", b"Exif", getpass.getuser().encode(), socket.gethostname().encode()]
    private += [
        str(Path.home()).encode(),
        str(Path.cwd()).encode(),
        tempfile.gettempdir().encode(),
        b"/home/",
        b"+00:00",
    ]
    for name, data in export(original, format).files.items():
        text = spoken(data)
        for word in filter(None, private):
            if len(word) > 3:
                assert word not in text, (name, word)
        times = set(re.findall(rb"20\d\d-\d\d-\d\d[T ]\d\d:\d\d:[0-9.]+\S?", text))
        assert times <= {b"2026-01-31T12:00:00Z"}, name


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def library():
    library = Library("concepts")
    library.add(concept("<me/duck>", card=card(base="sd1"), vectors={"clip_l": vectors(width=768)}))
    return library


@pytest.mark.parametrize("format", FORMATS)
def test_the_export_command_writes_a_new_folder(format, library, capsys):
    assert main(["concepts", "export", "<me/duck>", "--format", format]) == 0
    folder = Path(f"me-duck-{format}")
    out = capsys.readouterr().out
    made = export(library.get(Token.parse("<me/duck>")), format)
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == made.files.keys()
    assert all((folder / name).read_bytes() == data for name, data in made.files.items())
    assert f"Type: {made.prompt_text}" in out and all(name in out for name in made.destinations)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert main(["concepts", "export", "<me/duck>", "--format", format]) == 2
    assert "is there already.\nGive a folder that is not: --to FOLDER." in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_export_command_accepts_a_folder_and_prints_json(library, capsys):
    argv = ["concepts", "export", "me/duck-v1", "--format", "a1111", "--to", "deep/er/out", "--json"]
    assert main(argv) == 0
    output = json.loads(capsys.readouterr().out)
    assert output["folder"] == "deep/er/out" and output["type"] == "me-duck <lora:me-duck:1>"
    assert Path("deep/er/out", next(iter(output["files"]))).is_file()


def test_missing_and_damaged_concepts_are_refused(library, capsys):
    assert main(["concepts", "export", "<me/duk>"]) == 2
    assert "Did you mean <me/duck>?" in capsys.readouterr().err
    path = Path("concepts/me/duck-v1.safetensors")
    path.write_bytes(path.read_bytes()[:-7])
    assert main(["concepts", "export", "<me/duck>"]) == 2
    assert "duck-v1.safetensors is refused: it ends early." in capsys.readouterr().err
    assert not Path("me-duck-native").exists()


def test_a_refused_export_leaves_no_files(capsys):
    Library("concepts").add(concept("<me/duck>", vectors={}))
    assert main(["concepts", "export", "<me/duck>", "--format", "sd-concepts-library"]) == 2
    assert "has no vectors, and that library has no LoRAs.\nChoose --format kohya." in capsys.readouterr().err
    assert not list(Path().glob("me-duck*")) and not list(Path().glob(".*sdpersonal-tmp"))


@pytest.mark.parametrize("name", ["con", "nul", "com1"])
def test_names_reserved_by_windows_are_refused(name, capsys):
    assert main(["concepts", "export", f"<me/{name}>"]) == 2
    assert "Windows keeps for devices" in capsys.readouterr().err


def test_an_export_on_a_full_disk_leaves_no_files(library, monkeypatch, capsys):
    import errno
    import os

    real, left = os.write, [20_000]

    def write(handle, data):
        if len(data) > left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        left[0] -= len(data)
        return real(handle, data)

    monkeypatch.setattr(os, "write", write)
    assert main(["concepts", "export", "<me/duck>", "--format", "kohya"]) == 3
    output = capsys.readouterr().err
    monkeypatch.undo()
    assert "not enough space in" in output and "Nothing was changed" in output and output.count("\n") <= 2
    assert not list(Path().glob("*kohya*")) and not list(Path().glob(".*sdpersonal-tmp"))


def test_exporting_does_not_import_torch(library):
    code = (
        "import sys; from sdpersonal.cli.main import main\n"
        "for format in ('diffusers', 'sd-concepts-library', 'a1111'):\n"
        "    assert main(['concepts', 'export', '<me/duck>', '--format', format]) == 0\n"
        "print('heavy', *{'torch', 'diffusers', 'transformers', 'gradio'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.splitlines()[-1].split() == ["heavy"], done.stderr
