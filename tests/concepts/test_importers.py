"""Every tool's files, laid out as their writers do, read and compared with the tensors that went in."""

import dataclasses
import json
import types

import numpy as np
import pytest
import torch
from PIL import Image

from sdpersonal.concepts.concept_file import concept_to_bytes
from sdpersonal.concepts.importers import layers, read_any
from sdpersonal.concepts.importers.embedding_images import _lcg_bytes
from sdpersonal.concepts.importers.read_folders import read_folder, read_path
from sdpersonal.concepts.importers.sources import find_concepts
from sdpersonal.errors import UserError
from sdpersonal.prompts import Token
from support import foreign, pictures_with
from support.foreign import a1111, kohya, numpy, rinongal, rows, safetensors_bytes, torch_saved

T = Token.parse
LAYOUTS = {"zip": {}, "old": {"_use_new_zipfile_serialization": False}}
PHOTO = Image.fromarray(np.random.default_rng(1).integers(20, 255, (96, 64, 3), np.uint8))


def same(actual: np.ndarray, expected: torch.Tensor) -> bool:
    return actual.dtype == np.float32 and np.array_equal(actual, numpy(expected))


# --- embeddings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("width", [768, 1024])
def test_a1111_embeddings_are_read_with_their_file_name_as_token(layout, width):
    vectors = rows(3, width)
    imported = read_any(torch_saved(a1111(vectors), **LAYOUTS[layout]), "my Duck_1.5.pt")
    assert same(imported.vectors["clip_l"], vectors)
    assert imported.token == T("<imported/my-duck-1-5>")  # A1111 calls it as the file is called
    assert (imported.card.base, imported.card.steps) == ({768: "sd1", 1024: "sd2"}[width], 3000)
    assert imported.card.base_name == "v1-5-pruned-emaonly"
    assert read_any(torch_saved(a1111(vectors)), "learned_embeds.pt").token == T("<imported/duck>")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("device", ["parameter", "half"])
def test_original_textual_inversion_embeddings_are_read(layout, device):
    vectors = rows(2).half() if device == "half" else rows(2)
    imported = read_any(torch_saved(rinongal(vectors), **LAYOUTS[layout]), "cat statue.pt")
    assert same(imported.vectors["clip_l"], vectors) and imported.token == T("<imported/cat-statue>")
    assert read_any(torch_saved(rinongal(vectors, "sks")), "a.pt").card.title == "sks"


def test_embedding_files_with_several_placeholders_are_refused():
    both = {"string_to_param": {"a": rows(1), "b": rows(1)}}
    with pytest.raises(UserError, match=r"several embeddings \(a, b\)"):
        read_any(torch_saved(both), "two.pt")


@pytest.mark.parametrize("key", ["emb_params", "emp_params", "clip_l", "<duck>"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_single_tensor_safetensors_file_is_read_as_an_embedding(key, dtype):
    vectors = rows(2, dtype=dtype)
    imported = read_any(safetensors_bytes({key: vectors}), "duck.safetensors")
    assert (
        same(imported.vectors["clip_l"], vectors)
        and imported.token == T("<imported/duck>")
        and imported.card.base == "sd1"
    )


@pytest.mark.parametrize("keys", [("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1")])
def test_vectors_for_both_text_encoders_are_read_as_an_sdxl_embedding(keys):
    first, second = rows(2, 768), rows(2, 1280)
    imported = read_any(
        safetensors_bytes(dict(zip(keys, (first, second), strict=True)), {"modelspec.title": "Duck XL"}),
        "x.safetensors",
    )
    assert same(imported.vectors["clip_l"], first) and same(imported.vectors["clip_g"], second)
    assert (imported.card.base, imported.card.title, imported.token) == ("sdxl", "Duck XL", T("<imported/duck-xl>"))


@pytest.mark.parametrize(
    ("tensors", "header", "message"),
    [
        ({"clip_g": rows(1, 1280)}, {}, "without its clip_l"),
        (
            {"clip_l": rows(1)},
            {"modelspec.architecture": "stable-diffusion-xl-v1-base/textual-inversion"},
            "its clip_g",
        ),
        ({"clip_l": rows(1), "clip_g": rows(2, 1280)}, {}, "differ in number"),
        ({"clip_l": rows(1), "clip_g": rows(1, 768)}, {}, "width"),
        ({"clip_l": rows(1), "clip_g": rows(1, 1280), "t5": rows(1, 4096)}, {}, "T5"),
        ({"emp_params": rows(1), "emp_params_out": rows(1)}, {}, "output embeddings"),
        ({"emb_params": torch.full((1, 768), torch.nan)}, {}, "not finite"),
        ({"emb_params": rows(1, 640)}, {}, "width 640"),
        ({"a": rows(1), "b": rows(1)}, {}, "in no supported format"),
    ],
)
def test_unusable_embeddings_are_refused_with_a_message(tensors, header, message):
    with pytest.raises(UserError, match=message):
        read_any(safetensors_bytes(tensors, header), "duck.safetensors")


def test_header_metadata_is_copied_to_the_card_as_plain_text():
    header = {
        "modelspec.title": "A\x1b[31m duck",
        "modelspec.author": "Ann <script>",
        "modelspec.description": "x" * 5000,
        "modelspec.license": "CC-BY-4.0",
        "modelspec.trigger_phrase": "sks duck, quack",
        "modelspec.date": "2024-05-06T07:08:09.123",
        "ss_sd_model_name": "/home/ann/models/v1-5.safetensors",
        "ss_steps": "1600",
        "ss_tag_frequency": '{"10_secret": {"photo of bob": 20}}',
        "name": "ignored",
    }
    card = read_any(safetensors_bytes({"emb_params": rows(1)}, header), "d.safetensors").card
    assert (card.title, card.author, len(card.description)) == ("A[31m duck", "Ann <script>", 2000)
    assert (card.trigger_words, card.created) == (("sks duck", "quack"), "2024-05-06T07:08:09Z")
    assert (card.base_name, card.steps, card.license) == ("v1-5.safetensors", 1600, "CC-BY-4.0")
    assert "bob" not in card.model_dump_json() and "ann" not in card.model_dump_json()


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_embeddings_inside_images_are_read():
    vectors = rows(4)
    embedding = a1111(vectors, "Easy Duck")
    both = pictures_with.with_pixels(embedding, PHOTO)
    framed = Image.new("RGB", (both.width + 20, both.height + 10))  # a screenshot's black edges
    framed.paste(both, (10, 5))
    for data in (
        pictures_with.with_chunk(embedding, PHOTO),
        pictures_with.png(both),
        pictures_with.png(both.convert("RGBA")),
        pictures_with.png(both, "WEBP", lossless=True),
        pictures_with.png(framed),
    ):
        imported = read_any(data, "renamed.jpg")
        assert same(imported.vectors["clip_l"], vectors) and imported.token == T("<imported/easy-duck>")


def test_lcg_bytes_match_the_a1111_reference_values():
    numbers = _lcg_bytes(100_100)
    assert numbers[:8].tolist() == [253, 242, 127, 44, 157, 27, 239, 133]  # A1111's own self-test
    assert int(numbers[100:].astype(np.int64).sum()) == 12731374


def test_images_without_an_embedding_are_refused():
    plain = pictures_with.png(PHOTO)
    for data in (plain, plain[:300], pictures_with.png(PHOTO, "JPEG"), b"GIF89a" + bytes(50)):
        with pytest.raises(UserError, match=r"^x.png is (an? (JPEG |GIF )?image without|refused)"):
            read_any(data, "x.png")


# --- layers' names ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_unet_layer_names_match_the_original_code(kind):
    for path, original in foreign.originals(kind).items():
        module = foreign.unet(kind).get_submodule(path)
        if path and hasattr(module, "weight"):
            ours, reference = foreign.flat_name(path), foreign.flat_name(original)
            if kind == "sdxl":
                assert layers.unet_name(ours, kind) == layers.unet_name(reference, kind) == reference
            else:
                assert layers.unet_name(reference, kind) == layers.unet_name(ours, kind) == ours


# --- LoRAs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_kohya_loras_are_read_exactly(kind, dtype):
    imported = read_any(kohya(kind, dtype), "x.safetensors")
    paths = foreign.originals(kind) if kind == "sdxl" else {}
    expected = {
        f"lora_unet_{foreign.flat_name(paths.get(path, path))}": pair
        for path, pair in foreign.matrices(foreign.layers(kind, 7), dtype=dtype).items()
    }
    assert expected.keys() <= imported.lora.layers.keys() and imported.card.base == kind
    for name, (down, up) in expected.items():
        layer = imported.lora.layers[name]
        assert layer.down.dtype == (np.float16 if dtype == torch.float16 else np.float32)
        assert np.array_equal(layer.down, numpy(down)) and np.array_equal(layer.up, numpy(up)) and layer.alpha == 1.0
    assert imported.token == T("<imported/kohya-duck>") and not imported.card.trigger_words
    concept_to_bytes(imported)


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize(
    "header",
    [
        {"ss_base_model_version": "sd_v1", "ss_v2": "False", "modelspec.architecture": "stable-diffusion-v1/lora"},
        {"ss_base_model_version": "sdxl_base_v1-0", "modelspec.architecture": "stable-diffusion-xl-v1-base/lora"},
    ],
)
def test_the_base_comes_from_the_tensors_not_from_the_header(kind, header):
    assert read_any(foreign.kohya(kind, every=20, **header), "duck.safetensors").card.base == kind
    width = {"sd1": 768, "sd2": 1024}.get(kind)
    vectors = {"emb_params": rows(1, width)} if width else {"clip_l": rows(1), "clip_g": rows(1, 1280)}
    header |= {"sd_checkpoint_name": "some other model"}
    assert read_any(safetensors_bytes(vectors, header), "duck.safetensors").card.base == kind


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_kohya_loras_are_read_the_same_as_diffusers_reads_them(kind, tmp_path):
    """Their converter's answer, in their own naming, must be the same LoRA to us."""
    import safetensors.torch
    from diffusers.loaders import lora_conversion_utils as theirs

    data = kohya(kind)
    tensors = safetensors.torch.load(data)
    if kind == "sdxl":
        config = types.SimpleNamespace(layers_per_block=2)
        tensors = theirs._maybe_map_sgm_blocks_to_diffusers(tensors, config)
    converted, alphas = theirs._convert_non_diffusers_lora_to_diffusers(tensors)
    ours = read_any(data, "duck.safetensors").lora
    alphas = {key.replace(".down.weight.alpha", ".alpha"): torch.tensor(value) for key, value in alphas.items()}
    again = read_any(safetensors_bytes(converted | alphas), "duck.safetensors").lora
    assert ours.layers.keys() == again.layers.keys()
    for name, layer in ours.layers.items():
        other = again.layers[name]
        assert np.array_equal(layer.down, other.down) and np.array_equal(layer.up, other.up)
        assert layer.alpha == other.alpha


def test_missing_or_zero_alpha_equals_the_rank():
    import safetensors.torch

    tensors = safetensors.torch.load(kohya("sd1", torch.float32, rank=4))
    without = {key: value for key, value in tensors.items() if not key.endswith("alpha")}
    zero = without | {key: torch.tensor(0.0) for key in tensors if key.endswith("alpha")}
    for item in (without, zero):
        assert {layer.alpha for layer in read_any(safetensors_bytes(item), "a.safetensors").lora.layers.values()} == {
            4.0
        }


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
@pytest.mark.parametrize("key", ["string_to_param.*", "clip_l"])
def test_embeddings_bundled_with_a_lora_are_read(kind, key):
    import safetensors.torch

    bundle = {f"bundle_emb.<My-Duck>.{key}": rows(2)}
    if kind == "sdxl":
        bundle = {"bundle_emb.<My-Duck>.clip_l": rows(2), "bundle_emb.<My-Duck>.clip_g": rows(2, 1280)}
    imported = read_any(safetensors_bytes(safetensors.torch.load(kohya(kind)) | bundle), "x.safetensors")
    assert imported.token == T("<imported/my-duck>") and imported.lora and same(imported.vectors["clip_l"], rows(2))
    more = safetensors.torch.load(kohya(kind)) | bundle | {"bundle_emb.b.clip_l": rows(1)}
    with pytest.raises(UserError, match="several embeddings"):
        read_any(safetensors_bytes(more), "x.safetensors")


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
@pytest.mark.parametrize("naming", ["processor", "lora", "peft"])
@pytest.mark.parametrize("prefix", ["unet.", "", "base_model.model."])
def test_diffusers_and_peft_loras_are_read_in_every_naming(kind, naming, prefix):
    imported = read_any(foreign.diffusers_lora(kind, naming, prefix=prefix), "duck.safetensors")
    paths = foreign.originals(kind) if kind == "sdxl" else {}
    checked = 0
    for path, (down, up) in foreign.matrices(foreign.layers(kind, 7)).items():
        if layer := imported.lora.layers.get(f"lora_unet_{foreign.flat_name(paths.get(path, path))}"):
            assert (
                np.array_equal(layer.down, numpy(down)) and np.array_equal(layer.up, numpy(up)) and layer.alpha == 2.0
            )
            checked += 1
    assert checked == len(imported.lora.layers) > 10


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("pieces", [("lora_down", "lora_up"), ("lora_A", "lora_B")])
def test_comfyui_loras_are_read_the_same_as_kohya_loras(kind, pieces):
    """As its node saves a LoRA: the original code's paths, text encoders by their names there."""
    tensors = {}
    for path, pair in foreign.matrices(foreign.layers(kind, 7)).items():
        tensors |= {
            f"diffusion_model.{foreign.originals(kind)[path]}.{p}.weight": w for p, w in zip(pieces, pair, strict=True)
        }
    encoders = {"sd1": {"clip_l": 768}, "sd2": {"clip_h": 1024}, "sdxl": {"clip_l": 768, "clip_g": 1280}}[kind]
    for encoder, width in encoders.items():
        for path, pair in foreign.matrices(foreign.text_layers(width), seed=width).items():
            name = f"text_encoders.{encoder}.transformer.{path}"
            tensors |= {f"{name}.{p}.weight": w for p, w in zip(pieces, pair, strict=True)}
    imported = read_any(safetensors_bytes(tensors), "duck.safetensors")
    reference = read_any(foreign.kohya(kind, torch.float32, alpha=2.0), "duck.safetensors")
    assert imported.card.base == kind and imported.identity == reference.identity


def test_the_peft_configuration_sets_alpha(tmp_path):
    import safetensors.torch

    tensors = safetensors.torch.load(foreign.diffusers_lora())
    last = [path for path in foreign.layers("sd1", 7)][-1]
    config = {"unet.r": 2, "unet.lora_alpha": 8, "unet.alpha_pattern": {last: 16}, "unet.use_rslora": False}
    imported = read_any(
        safetensors_bytes(tensors, {"lora_adapter_metadata": json.dumps(config)}), "a.safetensors"
    ).lora.layers
    special = imported.pop(f"lora_unet_{foreign.flat_name(last)}")
    assert special.alpha == 16.0 and {layer.alpha for layer in imported.values()} == {8.0}
    config["unet.use_rslora"] = True
    imported = read_any(
        safetensors_bytes(tensors, {"lora_adapter_metadata": json.dumps(config)}), "a.safetensors"
    ).lora.layers
    assert special.alpha * 2**0.5 == imported[f"lora_unet_{foreign.flat_name(last)}"].alpha
    for bad in (
        "[]",
        "{",
        '{"unet.alpha_pattern": {"(a+)+$": 3}}',
        '{"unet.lora_alpha": "x"}',
        '{"unet.peft_type": "LOHA"}',
    ):
        with pytest.raises(UserError):
            read_any(safetensors_bytes(tensors, {"lora_adapter_metadata": bad}), "a.safetensors")
    folder = tmp_path / "My Adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 6}))
    bare = {key.replace("unet.", "base_model.model."): value for key, value in tensors.items()}
    (folder / "adapter_model.safetensors").write_bytes(safetensors_bytes(bare))
    imported = read_folder(folder)
    assert imported.token == T("<imported/my-adapter>")
    assert {layer.alpha for layer in imported.lora.layers.values()} == {6.0}


@pytest.mark.parametrize("order", ["old", "new"])
def test_cloneofsimo_loras_are_read_exactly(order, tmp_path):
    tensors = foreign.cloneofsimo(order)
    imported = read_any(foreign.cloneofsimo_safetensors(order), "lora_krk.safetensors")
    starts = [f"down_blocks.{i}.attentions.{j}" for i in range(3) for j in range(2)]
    starts += [f"up_blocks.{i}.attentions.{j}" for i in range(1, 4) for j in range(3)] + ["mid_block.attentions.0"]
    for number, path in enumerate(item for start in starts for item in foreign.cloneofsimo_paths(start, order)):
        layer = imported.lora.layers[f"lora_unet_{foreign.flat_name(path)}"]
        assert np.array_equal(layer.up, tensors[f"unet:{number}:up"].numpy()) and layer.alpha == 1.0
        assert np.array_equal(layer.down, tensors[f"unet:{number}:down"].numpy())
    key = "lora_te_text_model_encoder_layers_3_self_attn_v_proj"
    assert np.array_equal(imported.lora.layers[key].up, tensors["text_encoder:13:up"].numpy())
    assert same(imported.vectors["clip_l"], torch.cat([rows(1, seed=0), rows(1, seed=1)]))
    (tmp_path / "lora_weight.pt").write_bytes(foreign.cloneofsimo_list("unet", order))
    (tmp_path / "lora_weight.text_encoder.pt").write_bytes(foreign.cloneofsimo_list("text_encoder", order))
    lists = read_folder(tmp_path, T("<me/krk>"))
    assert lists.lora.layers.keys() == imported.lora.layers.keys()
    assert all(np.array_equal(lists.lora.layers[name].up, item.up) for name, item in imported.lora.layers.items())


REFUSED = {
    "unet.a.to_q.boft_R.default": "BOFT",
    "unet.a.to_q.vera_lambda_b": "adapter of PEFT",
    "lora_unet_double_blocks_0_img_attn_proj.lora_down.weight": "Flux",
    "transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": "Flux",
    "lora_unet_joint_blocks_0_x_block_attn_proj.lora_down.weight": "Stable Diffusion 3",
    "transformer.transformer_blocks.0.attn.to_q.lora_A.weight": "diffusion transformer",
    "model.diffusion_model.input_blocks.0.0.weight": "whole model",
    "conv_in.weight": "whole UNet",
    "text_model.embeddings.token_embedding.weight": "text encoder",
    "control_model.a": "ControlNet",
    "image_proj.proj.weight": "IP-Adapter",
}


@pytest.mark.parametrize("key", REFUSED)
def test_unsupported_file_types_are_refused_by_name(key):
    with pytest.raises(UserError, match=REFUSED[key]) as caught:
        read_any(safetensors_bytes({key: rows(2, 4), "other": rows(1)}), "x.safetensors")
    assert caught.value.hint


def test_hypernetworks_are_refused_by_name():
    layer = {"linear.0.weight": torch.ones(4, 4), "linear.0.bias": torch.ones(4)}
    state = {"step": 3, "name": "hyper", "layer_structure": [1, 2, 1], 768: (layer, layer)}
    with pytest.raises(UserError, match="hypernetwork"):
        read_any(torch_saved(state), "h.pt")


def test_whole_models_are_refused_by_name(tmp_path):
    weights = {"model.diffusion_model.x": rows(1), "cond_stage_model.position_ids": torch.arange(77)}
    with pytest.raises(UserError, match="whole model"):
        read_any(safetensors_bytes(weights), "v1-5.safetensors")
    big = tmp_path / "big.safetensors"
    big.write_bytes(safetensors_bytes(weights))
    with open(big, "r+b") as file:
        file.truncate(400_000_000)  # no room is taken for what is not there
    with pytest.raises(UserError, match="whole model"):
        read_path(big)
    with pytest.raises(UserError, match="in no supported format"):
        read_any(torch_saved({"state_dict": {"a": rows(1), "b": rows(1)}}), "a.ckpt")


# --- folders ----------------------------------------------------------------------------------------------------------


def fill(folder, **contents):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in contents.items():
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder


def test_sd_concepts_library_folders_are_read(tmp_path):
    readme = "---\nlicense: mit\n---\n### Marc Allante on Stable Diffusion\nThis is the `<Marc_Allante>` concept"
    folder = fill(
        tmp_path / "marc-allante",
        **{
            "learned_embeds.bin": torch_saved({"<Marc_Allante>": rows(1)[0]}),
            "token_identifier.txt": "<Marc_Allante>",
            "type_of_concept.txt": "style",
            "README.md": readme,
        },
    )
    imported = read_folder(folder, owner="sd-concepts-library")
    assert imported.token == T("<sd-concepts-library/marc-allante>") and same(imported.vectors["clip_l"], rows(1))
    assert (imported.card.kind, imported.card.license, imported.card.title) == ("style", "mit", "Marc Allante")
    assert [source.path for source in find_concepts(tmp_path)] == [folder]


def test_the_two_sdxl_embedding_files_are_read_as_one_concept(tmp_path):
    folder = fill(
        tmp_path / "a",
        **{
            "learned_embeds.safetensors": safetensors_bytes({"<duck>": rows(2)}),
            "learned_embeds_2.safetensors": safetensors_bytes({"<duck>": rows(2, 1280)}),
            "learned_embeds-steps-500.safetensors": safetensors_bytes({"<duck>": rows(2, seed=9)}),
        },
    )
    imported = read_folder(folder)
    assert same(imported.vectors["clip_l"], rows(2)) and same(imported.vectors["clip_g"], rows(2, 1280))
    assert imported.token == T("<imported/duck>") and imported.card.base == "sdxl"


def test_the_last_step_is_read_where_only_step_files_exist(tmp_path):
    steps = {
        f"learned_embeds-steps-{n}.safetensors": safetensors_bytes({"<duck>": rows(1, seed=n)})
        for n in (500, 1500, 1000)
    }
    assert same(read_folder(fill(tmp_path / "a", **steps)).vectors["clip_l"], rows(1, seed=1500))


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_a_lora_and_its_emb_file_are_read_as_one_concept(tmp_path, kind):
    embedding = {"clip_l": rows(2)} | ({"clip_g": rows(2, 1280)} if kind == "sdxl" else {})
    names = {
        "pytorch_lora_weights.safetensors": foreign.diffusers_lora(kind),
        "corgy_emb.safetensors": safetensors_bytes(embedding),
    }
    imported = read_folder(fill(tmp_path / "corgy", **names))
    assert imported.lora and same(imported.vectors["clip_l"], rows(2)) and imported.token == T("<imported/corgy>")
    names["corgy_emb.safetensors"] = safetensors_bytes({"clip_l": rows(1, 1024)})
    with pytest.raises(UserError, match="two bases"):
        read_folder(fill(tmp_path / "other", **names))


def test_replicate_folders_are_read(tmp_path):
    folder = fill(
        tmp_path / "My Model",
        **{
            "lora.safetensors": foreign.diffusers_lora("sdxl", "processor", prefix=""),
            "embeddings.pti": safetensors_bytes({"text_encoders_0": rows(2), "text_encoders_1": rows(2, 1280)}),
            "special_params.json": '{"TOK": "<s0><s1>"}',
        },
    )
    imported = read_folder(folder)
    assert (
        imported.token == T("<imported/my-model>") and imported.lora and same(imported.vectors["clip_g"], rows(2, 1280))
    )


def test_find_concepts_lists_files_and_subfolders_of_a_folder(tmp_path):
    fill(tmp_path, **{"a.pt": torch_saved(a1111(rows(1))), "a.preview.png": b"x", "a.png": pictures_with.png(PHOTO)})
    fill(tmp_path, **{"b.png": pictures_with.with_chunk(a1111(rows(1)), PHOTO), "notes.txt": "x", ".hidden.pt": "x"})
    fill(tmp_path / "deep/repo", **{"learned_embeds.bin": b"x"})
    (tmp_path / "deep/circle").symlink_to(tmp_path)
    result = [str(source.path.relative_to(tmp_path)) for source in find_concepts(tmp_path)]
    assert result == ["a.pt", "b.png", "deep/repo"]
    with pytest.raises(UserError, match="whole model"):
        read_folder(fill(tmp_path / "model", **{"model_index.json": "{}"}))


# --- round trips ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_imported_loras_are_saved_without_loss(kind):
    for data in (kohya(kind), kohya(kind, torch.float32)):
        imported = read_any(data, "duck.safetensors")
        again = read_any(concept_to_bytes(dataclasses.replace(imported, token=T("<me/duck>"))), "x")
        assert again.identity == imported.identity
        assert all(np.array_equal(again.lora.layers[name].up, item.up) for name, item in imported.lora.layers.items())
