"""Good files of every format, and pictures of every program, spoiled at random: a concept, a recipe or a refusal,
within two seconds and 500 MB."""

import io
import json
import os
import pickle
import random
import resource
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from image_metadata.test_foreign_pictures import SEEDS as PICTURES
from sdpersonal.concepts.concept import Concept
from sdpersonal.concepts.concept_file import concept_to_bytes
from sdpersonal.concepts.exporters import export
from sdpersonal.concepts.importers import read_any
from sdpersonal.errors import UserError
from sdpersonal.image_metadata import Foreign, Recipe, read_recipe
from support import foreign, hostile, pictures_with
from support.foreign import a1111, rinongal, rows, safetensors_bytes, torch_saved
from support.samples import concept, embedding

FEW, MANY = 300, 20_000
WORDS = (b"null", b"[]", b"{}", b"-1", b"1e999", b'"x"', b"true", b'["3", 0]', b'["9", 9]', b"[[[[", b"NaN", b"9" * 30)
SECONDS, BYTES = 2.0, 500_000_000


def exported() -> list[bytes]:
    """Every file of weights that exports write, with what their headers say of the concept."""
    made = [export(concept(), format).files for format in ("a1111", "diffusers", "onetrainer", "kohya")]
    return [data for files in made for name, data in files.items() if name.endswith(".safetensors")]


def others() -> list[bytes]:
    """Good files of kinds that hold no concept: each is refused by its name, spoiled too."""
    plain = [pickle.dumps({"a": [1, 2.5, "b", None]}, protocol) for protocol in range(6)]
    archive, photo = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("a/embeddings/x.safetensors", concept_to_bytes(embedding()))
    Image.new("RGB", (8, 8)).save(photo, "BMP")
    texts = [
        b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n",
        b"<!doctype html><p>no",
        b'{"error":1}',
    ]
    boxes = [b"\0\0\0\x20ftypheic\0\0\0\0mif1heic", b"RIFF\x24\0\0\0WAVEfmt ", b"GGUF\x03\0\0\0", bytes(3000)]
    return [*plain, archive.getvalue(), photo.getvalue(), *texts, *boxes]


def other_changes() -> list[bytes]:
    """LoRAs of LyCORIS' and PEFT's other kinds, each by the names that its programs give them."""
    kinds = {
        "lora_unet_{}.": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
        "lycoris_{}.": ("lokr_w1", "lokr_w2_a", "lokr_w2_b"),
        "unet.{}.": ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector"),
        "diffusion_model.{}.": ("diff", "diff_b"),
        "oft_unet_{}.": ("oft_blocks",),
        "base_model.model.{}.": ("oft_R.weight",),
    }
    sizes = {"hada_w1_a": (320, 2), "hada_w1_b": (2, 320), "hada_w2_a": (320, 2), "hada_w2_b": (2, 320)}
    sizes |= {"lokr_w1": (8, 8), "lokr_w2_a": (40, 2), "lokr_w2_b": (2, 40), "diff": (320, 320), "diff_b": (320,)}
    sizes |= {"lora_A.weight": (2, 320), "lora_B.weight": (320, 2), "lora_magnitude_vector": (320,)}
    sizes |= {"oft_blocks": (40, 8, 8), "oft_R.weight": (40, 28)}
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"
    facts = {"ss_base_model_version": "sd_v1", "modelspec.title": "a"}
    files = []
    for prefix, names in kinds.items():
        layer = prefix.format(path if "." in prefix[:-1] else path.replace(".", "_"))
        tensors = {layer + name: torch.full(sizes[name], 0.01) for name in names}
        alpha = {f"{layer}alpha": torch.tensor(2.0)} if prefix.startswith(("lora", "lycoris")) else {}
        files.append(safetensors_bytes(tensors | alpha, facts))
    return [*files, torch_saved(safetensors.torch.load(files[0]) | {"ss_base_model_version": "sd_v1"})]


OTHERS = others()  # made once: a zip tells the time


def seeds() -> list[bytes]:
    """One small good file of each format, what holds no concept, and two that mean harm."""
    photo = Image.new("RGB", (16, 64), "white")
    old = {"_use_new_zipfile_serialization": False}
    vectors = rows(1)
    bundle = safetensors.torch.load(foreign.kohya("sd1", every=40)) | {"bundle_emb.a.string_to_param.*": vectors}
    config = json.dumps({"unet.r": 2, "unet.lora_alpha": 4})
    peft = safetensors.torch.load(foreign.diffusers_lora(every=40))
    return [
        concept_to_bytes(concept()),
        concept_to_bytes(embedding()),
        torch_saved({"<a>": vectors[0]}),
        torch_saved({"<a>": vectors}, **old),
        safetensors_bytes({"<a>": vectors}),
        torch_saved(a1111(vectors)),
        torch_saved(a1111(vectors), **old),
        torch_saved(rinongal(vectors)),
        torch_saved(rinongal(vectors), **old),
        safetensors_bytes({"emb_params": vectors.bfloat16()}, {"modelspec.title": "a"}),
        safetensors_bytes({"emp_params": vectors}),
        safetensors_bytes({"clip_l": vectors, "clip_g": rows(1, 1280)}),
        pictures_with.with_chunk(a1111(vectors), photo),
        pictures_with.png(pictures_with.with_pixels(a1111(vectors), photo)),
        safetensors_bytes(bundle, {"ss_output_name": "a"}),
        foreign.kohya("sdxl", every=200),
        safetensors_bytes(peft, {"lora_adapter_metadata": config}),
        foreign.diffusers_lora("sdxl", "processor", every=50),
        foreign.cloneofsimo_safetensors(),
        *exported(),
        *other_changes(),
        *OTHERS,
        torch_saved([torch.ones(4, 1), torch.ones(1, 768)] * 4),
        torch_saved({"<a>": hostile.Evil(), "<b>": vectors}),
        torch_saved({"string_to_param": {"*": hostile.Evil()}}, **old),
    ]


SEEDS = seeds()


def spoiled(chance: random.Random, seeds: list[bytes] = SEEDS) -> bytes:
    """A seed with flips, cuts, doublings and pieces of others in it, most of them where its structure is."""
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.choice((1, 1, 1, 2, 3, 6))):
        if not data:
            break
        at = _place(chance, len(data))
        match chance.randrange(8):
            case 0 | 1 | 2:
                data[at] = chance.randrange(256)
            case 3:
                data[at : at + 4] = chance.choice(
                    (b"\xff\xff\xff\xff", bytes(4), b"\x7f\xff\xff\xff", b"\x00\x00\x00\x80")
                )
            case 4:
                del data[at : at + chance.choice((1, 3, 20, 400, 100_000))]
            case 5:
                other = chance.choice(seeds)
                begin = _place(chance, len(other))
                data[at : at + chance.choice((0, 8, 200))] = other[begin : begin + chance.choice((1, 8, 60, 2000))]
            case 6:
                data[at:at] = data[at : at + chance.choice((1, 30, 500))]
            case 7:
                digits = [i for i in range(min(len(data), 4000)) if 48 <= data[i] <= 57]
                if digits:
                    data[chance.choice(digits)] = chance.choice(b"0123456789-.eE")
    return bytes(data)


def _place(chance: random.Random, size: int) -> int:
    end = min(size, 3000)
    where = chance.random()
    return min(
        size - 1,
        chance.randrange(end)
        if where < 0.6
        else size - 1 - chance.randrange(end)
        if where < 0.9
        else chance.randrange(size),
    )


@contextmanager
def bounded():
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def read(chance: random.Random) -> None:
    data = spoiled(chance)
    began = time.process_time()
    try:
        imported = read_any(data, "x")
    except UserError as error:
        assert str(error).count("\n") <= 1 and len(str(error)) < 600
        assert str(error).replace("\n", "").isprintable()
    else:
        assert isinstance(imported, Concept)
    assert time.process_time() - began < SECONDS


def other_value(chance: random.Random, data: bytes) -> bytes:
    """A value of its JSON by another, of the same length so that what holds it stays whole."""
    at = data.find(b": ", chance.randrange(min(len(data), 6000)))
    ends = [end for mark in (b",", b"}") if (end := data.find(mark, at + 2)) > 0]
    word = chance.choice(WORDS)
    if at < 0 or not ends or min(ends) - at - 2 < len(word):
        return data
    return data[: at + 2] + word.ljust(min(ends) - at - 2) + data[min(ends) :]


def read_picture(chance: random.Random) -> None:
    data = spoiled(chance, PICTURES) if chance.random() < 0.5 else other_value(chance, chance.choice(PICTURES))
    began = time.process_time()
    try:
        result = read_recipe(data, "x.png")
    except UserError as error:
        assert str(error).count("\n") <= 1 and len(str(error)) < 600
        assert str(error).replace("\n", "").isprintable()
    else:
        assert isinstance(result, Foreign | Recipe)
        assert isinstance(result, Recipe) or result.refusal or result.fields["prompt"]
    assert time.process_time() - began < SECONDS


def examples(count: int, read=read) -> None:
    quiet = settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    with bounded():
        quiet(given(st.randoms(use_true_random=False))(read))()
    assert os.listdir() == []  # nothing ran


def test_every_seed_is_good():
    for number, data in enumerate(SEEDS[:-3]):
        if data not in OTHERS:
            assert isinstance(read_any(data, f"seed{number}"), Concept)
            continue
        with pytest.raises(UserError) as caught:
            read_any(data, f"seed{number}")
        assert caught.value.hint


def test_spoiled_files_give_a_concept_or_a_refusal():
    examples(int(os.environ.get("SDPERSONAL_FUZZ_EXAMPLES", FEW)))


def test_spoiled_pictures_give_a_recipe_or_a_refusal():
    examples(int(os.environ.get("SDPERSONAL_FUZZ_EXAMPLES", FEW)), read_picture)


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", [read, read_picture])
def test_twenty_thousand_of_them(kind):
    examples(MANY, kind)
