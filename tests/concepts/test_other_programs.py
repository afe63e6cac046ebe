"""Exports in other programs' own hands. Each program's loaders run, from a checkout that an environment variable names;
what they then hold is compared with what was exported. Third-party packages that they import and that are not here
stand in (tests/peers/stand_in.py); put them on PYTHONPATH to have them for real.

    SDPERSONAL_KOHYA=sd-scripts SDPERSONAL_COMFYUI=ComfyUI SDPERSONAL_A1111=stable-diffusion-webui \\
    SDPERSONAL_INVOKEAI=InvokeAI SDPERSONAL_ONETRAINER=OneTrainer pytest tests/concepts/test_other_programs.py
"""

import dataclasses
import importlib.util
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.numpy import load_file

from sdpersonal.concepts.exporters import export
from sdpersonal.concepts.importers import lora_file, lora_keys, read_any
from sdpersonal.concepts.importers.read_folders import read_path
from support import original, teaching

PEERS = Path(__file__).parents[1] / "peers"
PUBLISHED_SIZES = {"kohya", "comfyui"}  # their models come in one width
BASES = teaching.BASES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def checkout(program: str) -> str:
    variable = f"SDPERSONAL_{program.upper()}"
    folder = os.environ.get(variable)
    if not folder or not Path(folder).is_dir():
        pytest.skip(f"no checkout of {program}: set {variable} to its folder")
    return folder


def a_concept(base: str, program: str):
    parts, every = None, 1
    if program in PUBLISHED_SIZES:
        parts, every = teaching.models(base, original.FULL), 3
    return teaching.full_concept(base, parts=parts, every=every)


def loaded(program: str, base: str, files: dict[str, Path], tmp_path: Path):
    """(what the program holds, what its script told)"""
    out = tmp_path / "held.safetensors"
    command = [sys.executable, PEERS / f"{program}.py", checkout(program), base, out, files["embedding"], files["lora"]]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"HOME": str(tmp_path)}
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    facts = {}
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            facts |= json.loads(line)
    return load_file(out), facts


def written(original, format: str, folder: Path) -> dict[str, Path]:
    """The export's files on disk: which is the embedding, which the LoRA."""
    result = {}
    for name, data in export(original, format).files.items():
        path = folder / format / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        if path.suffix == ".safetensors":
            both = format == "native"
            result |= {"lora": path} if both or "lora" in name.lower() else {"embedding": path}
            result |= {"embedding": path} if both else {}
    return result


def check(original, loaded, layers=None) -> None:
    for key, rows in original.vectors.items():
        assert loaded[f"rows/{key}"].tobytes() == rows.tobytes(), key  # bit for bit
    probes = {name.removeprefix("probe/"): value for name, value in loaded.items() if name.startswith("probe/")}
    assert probes.keys() == (layers or original.lora.layers.keys())
    for name in probes:
        layer = original.lora.layers[name]
        matrix = teaching.change(layer)
        probe = np.cos(np.arange(matrix.shape[1]) * 0.7) + 0.1
        np.testing.assert_allclose(probes[name], matrix @ probe, atol=2e-4, rtol=1e-3, err_msg=name)


def _named(alias: str, base: str) -> str:
    part = lora_keys.parse_diffusers_key(f"{alias}.lora_up.weight").layer
    return lora_file.layer_name(part, base)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("program", ["a1111", "comfyui", "invokeai", "kohya", "onetrainer"])
def test_other_programs_load_exactly_the_exported_concept(program, base, tmp_path):
    checkout(program)
    original = a_concept(base, program)
    stored, facts = loaded(program, base, written(original, program, tmp_path), tmp_path)
    layers = {name for name in original.lora.layers if base != "sdxl" or name.startswith("lora_unet_")}
    check(original, stored, layers if program == "onetrainer" else None)
    if program == "a1111":
        assert facts["name"] == facts["alias"] == "me-toy-duck" and facts["at"] == 3 and facts["bundled"] == []
        assert facts["version"] == base.upper()
    if program == "comfyui":
        for layer, aliases in facts["aliases"].items():  # ComfyUI's own names, as files here have them
            assert {_named(alias, base) for alias in aliases} == {layer}, (layer, aliases)
    if program == "invokeai":
        assert facts["word"] == facts["lora"] == facts["expected"]
        assert facts["named"] == [export(original, "invokeai").trigger_word] and facts["file"] == "me-toy-duck"
    if program == "kohya":
        assert facts["missing"] == [] and all(key.startswith("bundle_emb.me-toy-duck.") for key in facts["unexpected"])
        for name, whole in (("words.safetensors", "vectors"), ("words.pt", "vectors"), ("lora.safetensors", "lora")):
            path = tmp_path / f"their-{name}"
            apart = dataclasses.replace(original, **({"lora": None} if whole == "vectors" else {"vectors": {}}))
            back = read_path(path)  # what its writers made of the same
            assert back.identity == apart.identity and str(back.token) == f"<imported/{path.stem}>"
    if program == "onetrainer":
        assert facts["strangers"] == []
        made = export(original, "onetrainer")
        assert "rank to 3 and layer filter to attentions,resnets,samplers" in " ".join(made.install)
        assert ("text encoder's layers are left out" in " ".join(made.notes)) == (base == "sdxl")


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("program", ["a1111", "comfyui", "kohya"])
@pytest.mark.parametrize("holds", ["apart", "together"])
def test_other_programs_load_the_native_file(program, base, holds, tmp_path):
    """One with vectors and one with a LoRA; or both in one, which A1111 and ComfyUI take for the two."""
    checkout(program)
    original = a_concept(base, program)
    first = written(original, "native", tmp_path / "both")
    if holds == "apart" or program == "kohya":
        if holds == "together":
            pytest.skip("kohya's scripts read words from files of their own")
        words = written(dataclasses.replace(original, lora=None), "native", tmp_path / "words")
        lora = written(dataclasses.replace(original, vectors={}), "native", tmp_path / "lora")
        stored, _ = loaded(program, base, {"embedding": words["embedding"], "lora": lora["lora"]}, tmp_path)
    elif program == "comfyui":
        stored, _ = loaded(program, base, first, tmp_path)
    else:
        words = written(original, "a1111", tmp_path / "words")
        stored, facts = loaded(program, base, {"embedding": words["embedding"], "lora": first["lora"]}, tmp_path)
        assert facts["bundled"] == ["me-toy-duck"]
        for key, rows in original.vectors.items():
            assert stored.pop(f"rows/bundled_{key}").tobytes() == rows.tobytes()
    check(original, stored)


@pytest.mark.parametrize("where", ["chunk", "pixels"])
def test_embedding_images_made_by_a1111_are_imported(where):
    path = Path(checkout("a1111")) / "modules" / "textual_inversion" / "image_embedding.py"
    spec = importlib.util.spec_from_file_location("a1111_image_embedding", path)
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    vectors = torch.randn(4, 768, generator=torch.Generator().manual_seed(2))
    content = {"string_to_token": {"*": 265}, "string_to_param": {"*": vectors}, "name": "Toy_Duck", "step": 400}
    picture, text = Image.linear_gradient("L").resize((512, 512)).convert("RGB"), PngInfo()
    if where == "chunk":
        text.add_text("sd-ti-embedding", reference.embedding_to_b64(content))
    else:
        picture = reference.insert_image_data_embed(picture, content)
    out = io.BytesIO()
    picture.save(out, "PNG", pnginfo=text)
    imported = read_any(out.getvalue(), "picture.png")
    assert str(imported.token) == "<imported/toy-duck>" and imported.card.steps == 400
    np.testing.assert_array_equal(imported.vectors["clip_l"], vectors.numpy())
