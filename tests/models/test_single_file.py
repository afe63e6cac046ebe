"""Checkpoints in one file: equal to the folder they were written from, at full size on paper, and refused by name."""

import json

import pytest
import torch
from safetensors.torch import save_file

from sdpersonal.errors import UserError
from sdpersonal.models import load_base
from sdpersonal.models.loading.architecture import (
    clip_config,
    open_clip_config,
    unet_config,
    vae_config,
    with_prefix_removed,
)
from sdpersonal.models.loading.ldm_keys import clip_keys, open_clip_keys, unet_keys, vae_keys
from sdpersonal.models.loading.single_file import clip_tokenizer, declared_prediction_type, predicts_v
from support import original


@pytest.fixture(scope="module")
def tokenizers():
    return clip_tokenizer(), clip_tokenizer("!")


@pytest.fixture(scope="module", params=original.KINDS)
def both(request, tmp_path_factory, tokenizers):
    """(kind, folder in diffusers layout with fp16 weights, one file): the same model."""
    folder = tmp_path_factory.mktemp("single")
    concept = {"sd1": tokenizers[:1], "sdxl": tokenizers}.get(request.param, tokenizers[1:])
    pipe = original.pipeline(request.param, concept)
    metadata = (
        {"modelspec.prediction_type": "v"} if request.param == "sd2 v" else {"modelspec.prediction_type": "epsilon"}
    )
    original.write(pipe, folder / "model.safetensors", metadata)
    pipe.to(dtype=torch.float16).save_pretrained(folder / "model", variant="fp16")
    return request.param, folder / "model", folder / "model.safetensors"


def tensors(base):
    return {
        f"{name}.{key}": value for name, model in base.modules().items() for key, value in model.state_dict().items()
    }


def test_a_single_file_equals_the_diffusers_folder_of_the_same_model(both):
    kind, folder, path = both
    ours, reference = load_base(str(path), "cpu"), load_base(str(folder), "cpu")
    assert ours.kind == reference.kind == kind.split()[0]
    concept, expected = tensors(ours), tensors(reference)
    assert concept.keys() == expected.keys() and all(torch.equal(concept[key], expected[key]) for key in expected)
    assert (
        ours.schedule.prediction_type
        == reference.schedule.prediction_type
        == ("v_prediction" if kind == "sd2 v" else "epsilon")
    )
    assert torch.equal(ours.schedule.alphas_cumprod, reference.schedule.alphas_cumprod)
    rows = {key: 0.02 * torch.randn(2, width) for key, width in ours.widths.items()}
    prompts = [["a photo of ", rows, " on the beach, 8k!"], ["a cat"]]
    noisy, t = torch.randn(2, 4, 16, 16), torch.tensor([999, 10])
    with torch.no_grad():
        item, two = ours.encode_captions(prompts), reference.encode_captions(prompts)
        assert torch.equal(item.prompt_embeds, two.prompt_embeds)
        assert torch.equal(
            ours.predict(noisy, t, item), reference.predict(noisy, t, ours.with_size_conditioning(two, _whole(ours, 2)))
        )
    pixels = torch.randint(0, 255, (1, 64, 64, 3), dtype=torch.uint8).numpy()
    assert torch.equal(ours.encode(pixels).mean, reference.encode(pixels).mean)
    sampler, stock = dict(ours.make_scheduler().config), dict(reference.make_scheduler().config)
    assert {key: sampler[key] for key in ("timestep_spacing", "steps_offset", "beta_schedule", "prediction_type")} == {
        key: stock[key] for key in ("timestep_spacing", "steps_offset", "beta_schedule", "prediction_type")
    }


def _whole(base, count):
    from sdpersonal.models import SizeConditioning

    return [SizeConditioning.full(base.resolution, base.resolution)] * count


@pytest.fixture(scope="module", params=original.FULL)
def full(request):
    """(kind, models of the published size, their checkpoint), shapes without numbers."""
    with torch.device("meta"):
        parts = original.models(request.param, original.FULL)
        return request.param, parts, original.checkpoint(parts)


def test_diffusers_converts_the_checkpoints_of_these_tests(full):
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

    _, parts, tensors = full
    converted = convert_ldm_unet_checkpoint(dict(tensors), dict(parts["unet"].config))
    assert _shapes(converted) == _shapes(parts["unet"].state_dict())
    assert _shapes(convert_ldm_vae_checkpoint(dict(tensors), dict(parts["vae"].config))) == _shapes(
        parts["vae"].state_dict()
    )


def test_every_weight_of_the_full_models_has_a_checkpoint_key(full):
    kind, parts, tensors = full
    texts = {
        "sd1": [("text_encoder", clip_keys, "cond_stage_model.transformer.text_model.")],
        "sd2": [("text_encoder", open_clip_keys, "cond_stage_model.model.")],
        "sdxl": [
            ("text_encoder", clip_keys, "conditioner.embedders.0.transformer.text_model."),
            ("text_encoder_2", open_clip_keys, "conditioner.embedders.1.model."),
        ],
    }[kind]
    places = {"unet": unet_keys(parts["unet"]), "vae": vae_keys(parts["vae"])}
    places |= {name: find(parts[name], prefix) for name, find, prefix in texts}
    taken = set()
    for part, result in places.items():
        for key, weight in parts[part].state_dict().items():
            place, tensor = result[key], tensors[result[key].key]
            shape = list(tensor.shape)
            if place.qkv_index is not None:
                shape[0] //= 3
            assert [n for n in shape if n != 1] == [n for n in weight.shape if n != 1], key
            taken.add(place.key)
    left = {key.rsplit(".", 1)[-1] for key in tensors.keys() - taken}
    assert left <= {"logit_scale", "position_ids"} | ({"text_projection"} if kind == "sd2" else set())


def test_published_configs_are_inferred_from_weight_shapes(full):
    kind, parts, tensors = full
    shapes = _shapes(tensors)
    size = parts["unet"].config.sample_size * 8
    inputs = with_prefix_removed(shapes, "model.diffusion_model.")
    _same(unet_config(inputs, kind, size), parts["unet"].config)
    _same(vae_config(with_prefix_removed(shapes, "first_stage_model."), kind, 512), parts["vae"].config)
    if kind == "sd1":
        concept = clip_config(with_prefix_removed(shapes, "cond_stage_model.transformer.text_model."))
        _same(concept, parts["text_encoder"].config.to_dict())
    elif kind == "sd2":
        concept = open_clip_config(with_prefix_removed(shapes, "cond_stage_model.model."), all_layers=False)
        _same(concept, parts["text_encoder"].config.to_dict())
        deeper = with_prefix_removed(shapes, "cond_stage_model.model.") | {
            "transformer.resblocks.23.mlp.c_fc.weight": (4096, 1024)
        }
        assert open_clip_config(deeper, all_layers=False)["num_hidden_layers"] == 23  # of Stability's own file
    else:
        _same(
            clip_config(with_prefix_removed(shapes, "conditioner.embedders.0.transformer.text_model.")),
            parts["text_encoder"].config.to_dict(),
        )
        concept = open_clip_config(with_prefix_removed(shapes, "conditioner.embedders.1.model."), all_layers=True)
        _same(concept, parts["text_encoder_2"].config.to_dict())


def _shapes(state):
    return {key: tuple(value.shape) for key, value in state.items()}


def _same(concept, reference):
    def plain(value):
        return list(value) if isinstance(value, tuple) else value

    assert {key: plain(value) for key, value in concept.items()} == {key: plain(reference[key]) for key in concept}


def test_full_models_have_the_published_parameter_counts(full):
    kind, parts, _ = full
    millions = round(sum(p.numel() for p in parts["unet"].parameters()) / 1e6)
    assert millions == {"sd1": 860, "sd2": 866, "sdxl": 2567}[kind]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("a photo of a cat", [320, 1125, 539, 320, 2368]),
        ("it's 1234 éàü 漢字 🎉", [585, 568, 272, 273, 274, 275, 3459, 36149, 47177, 162, 120, 95, 35751, 501, 3986]),
        ("A DIAGRAM   of\n things", [320, 22697, 539, 1739]),
    ],
)
def test_the_tokenizer_produces_the_token_ids_of_openai_clip(tokenizers, text, ids):
    """The ids were written down from openai/CLIP's simple_tokenizer.py."""
    for tokenizer in tokenizers:
        assert tokenizer(text, add_special_tokens=False).input_ids == ids
    assert (len(tokenizers[0]), tokenizers[0].bos_token_id, tokenizers[0].eos_token_id) == (49408, 49406, 49407)
    assert [tokenizer.pad_token_id for tokenizer in tokenizers] == [49407, 0]


# --- what a file does not say -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sd2(tokenizers):
    return original.pipeline("sd2", tokenizers[1:])


@pytest.mark.parametrize(
    ("metadata", "yaml", "keys", "prediction"),
    [
        ({"modelspec.prediction_type": "v"}, None, (), "v_prediction"),
        ({"modelspec.prediction_type": "epsilon"}, 'parameterization: "v"', (), "epsilon"),
        ({"modelspec.architecture": "stable-diffusion-v2-768-v"}, None, (), "v_prediction"),
        ({"modelspec.architecture": "stable-diffusion-v1"}, None, (), None),
        ({}, None, ("v_pred",), "v_prediction"),
        ({}, 'model:\n  params:\n    parameterization: "v"\n', (), "v_prediction"),
        ({}, "model:\n  params:\n    timesteps: 1000\n", (), "epsilon"),
        ({}, None, (), None),
    ],
)
def test_the_prediction_type_is_read_from_metadata_yaml_and_keys(tmp_path, metadata, yaml, keys, prediction):
    if yaml is not None:
        (tmp_path / "it.yaml").write_text(yaml)
    assert declared_prediction_type(metadata, dict.fromkeys(keys, (0,)), tmp_path / "it.safetensors") == prediction


@pytest.mark.parametrize(("bias", "prediction"), [(-9.0, "v_prediction"), (9.0, "epsilon")])
def test_an_undeclared_prediction_type_is_detected_as_in_a1111(tokenizers, tmp_path, bias, prediction):
    pipe = original.pipeline("sd2", tokenizers[1:])
    pipe.unet.conv_out.bias.data.fill_(bias)
    base = load_base(str(original.write(pipe, tmp_path / "sd2.safetensors")), "cpu")
    assert base.schedule.prediction_type == prediction and base.note.startswith("The file does not say")
    assert base.resolution == (768 if prediction == "v_prediction" else 512)
    x = torch.ones((1, 4, 8, 8)) * 0.5  # as A1111 asks
    with torch.no_grad():
        out = pipe.unet(x, torch.asarray([999]), torch.ones((1, 2, 1024)) * 0.5).sample
    assert ((out - x).mean().item() < -1) == (prediction == "v_prediction") == predicts_v(base.unet)


def test_zero_terminal_snr_is_detected_by_its_marker_key(sd2, tmp_path):
    extra = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    base = load_base(str(original.write(sd2, tmp_path / "sd2.safetensors", {}, extra)), "cpu")
    assert float(base.schedule.alphas_cumprod[-1]) < 1e-6 and type(base.make_scheduler()).__name__ == "DDIMScheduler"


# --- another autoencoder ----------------------------------------------------------------------------------------------


def test_another_vae_loads_from_a_folder_or_a_file(sd2, tmp_path):
    path = original.write(sd2, tmp_path / "sd2.safetensors", {"modelspec.prediction_type": "epsilon"})
    other = original.models("sd2", vocabulary=512)["vae"]
    other.save_pretrained(tmp_path / "vae")
    alone = {key.removeprefix("first_stage_model."): value for key, value in original._vae(other).items()}
    save_file({key: value.contiguous() for key, value in alone.items()}, tmp_path / "vae.safetensors")
    usual = load_base(str(path), "cpu")
    for arguments in ("vae", "vae.safetensors"):
        base = load_base(str(path), "cpu", vae=tmp_path / arguments)
        concept, expected = base.vae.state_dict(), other.state_dict()
        assert concept.keys() == expected.keys() and all(torch.equal(concept[key], expected[key]) for key in expected)
        assert base.version != usual.version
    config = json.loads((tmp_path / "vae" / "config.json").read_text()) | {"scaling_factor": 0.13025}
    (tmp_path / "vae" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="has other latents"):
        load_base(str(path), "cpu", vae=str(tmp_path / "vae"))
    with pytest.raises(UserError, match="No autoencoder called nothing"):
        load_base(str(path), "cpu", vae="nothing")
    with pytest.raises(UserError, match="not an autoencoder"):
        save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
        load_base(str(path), "cpu", vae=str(tmp_path / "other.safetensors"))


def test_a_checkpoint_without_a_vae_requires_another_vae(sd2, tmp_path):
    parts = {"unet": sd2.unet, "vae": sd2.vae, "text_encoder": sd2.text_encoder}
    complete = original.checkpoint(parts)
    bare = {
        key: value.half().contiguous() for key, value in complete.items() if not key.startswith("first_stage_model")
    }
    save_file(bare, tmp_path / "bare.safetensors", {"modelspec.prediction_type": "epsilon"})
    with pytest.raises(UserError, match=r"has no autoencoder \(VAE\)"):
        load_base(str(tmp_path / "bare.safetensors"), "cpu")
    sd2.vae.save_pretrained(tmp_path / "vae")
    base = load_base(str(tmp_path / "bare.safetensors"), "cpu", vae=str(tmp_path / "vae"))
    assert torch.equal(base.vae.encoder.conv_in.weight, sd2.vae.encoder.conv_in.weight)


# --- refused ----------------------------------------------------------------------------------------------------------

UNET = "model.diffusion_model."


def unet_like(channels=4, width=768, **options):
    shapes = {
        f"{UNET}input_blocks.0.0.weight": (32, channels, 3, 3),
        f"{UNET}out.2.weight": (4, 32, 3, 3),
        f"{UNET}middle_block.1.transformer_blocks.0.attn2.to_k.weight": (32, width),
        "first_stage_model.decoder.conv_in.weight": (8, 4, 3, 3),
        "cond_stage_model.transformer.text_model.final_layer_norm.weight": (width,),
    }
    return shapes | options


@pytest.mark.parametrize(
    ("shapes", "problem"),
    [
        (unet_like(channels=9), "is an inpainting model: its UNet takes 9 channels"),
        (unet_like(channels=8), "is an editing model"),
        (unet_like(channels=5), "is a depth model"),
        (unet_like(width=640), "has text embeddings of width 640"),
        (unet_like(width=192), "has text embeddings of width 192"),
        ({key: shape for key, shape in unet_like().items() if "cond_stage" not in key}, "has no text encoder"),
        (unet_like(width=1024, **{f"{UNET}label_emb.0.0.weight": (64, 2048)}), "unCLIP"),
        (unet_like(width=1280, **{"conditioner.embedders.0.model.ln_final.weight": (1280,)}), "is the refiner of SDXL"),
        ({f"{UNET}joint_blocks.0.x_block.attn.qkv.weight": (9, 3)}, "is Stable Diffusion 3"),
        ({f"{UNET}double_blocks.0.img_attn.norm.key_norm.scale": (9,)}, "is FLUX"),
        ({"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": (4, 320)}, "is a LoRA, not a base"),
        ({"unet.down_blocks.0.attentions.0.to_q.lora_A.weight": (4, 320)}, "is a LoRA, not a base"),
        ({"emb_params": (4, 768)}, "is an embedding, not a base"),
        ({"<cat-toy>": (1, 768)}, "is an embedding, not a base"),
        ({"clip_l": (4, 768), "clip_g": (4, 1280)}, "is an embedding, not a base"),
        ({"control_model.time_embed.0.weight": (4, 4)}, "is a ControlNet"),
        ({"input_blocks.0.0.weight": (32, 4, 3, 3)}, "is a UNet alone"),
        (
            {"conv_in.weight": (32, 4, 3, 3), "down_blocks.0.resnets.0.conv1.weight": (3, 3)},
            "is a part of a diffusers folder",
        ),
        ({"decoder.conv_in.weight": (32, 4, 3, 3), "encoder.conv_in.weight": (3, 3)}, r"is an autoencoder \(VAE\)"),
        ({"blocks.0.weight": (3, 3), "blocks.1.weight": (3, 3)}, "is not a supported checkpoint"),
        (unet_like(), "is not laid out as Stable Diffusion: it lacks .*"),
    ],
)
def test_unsupported_checkpoints_are_refused_by_model_type(tmp_path, shapes, problem):
    save_file({key: torch.zeros(shape) for key, shape in shapes.items()}, tmp_path / "it.safetensors")
    with pytest.raises(UserError, match=problem) as caught:
        load_base(str(tmp_path / "it.safetensors"), "cpu")
    assert caught.value.hint and "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("old.ckpt", b"\x80\x02}q\x00.", r"is a pickle \(\.ckpt\), which can run code"),
        ("old.pt", b"PK\x03\x04", r"is a pickle \(\.pt\)"),
        ("new.gguf", b"GGUF", "is not a .safetensors file"),
        ("void.safetensors", b"", "is empty"),
        ("zip.safetensors", b"PK\x03\x04" + bytes(99), "is not a safetensors file"),
        ("bomb.safetensors", (1 << 40).to_bytes(8, "little") + b"{" * 50, "safetensors file"),
    ],
)
def test_files_other_than_safetensors_are_refused(tmp_path, name, content, problem):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=problem):
        load_base(str(tmp_path / name), "cpu")


def test_a_missing_file_and_a_revision_of_a_local_base_are_refused(tmp_path):
    with pytest.raises(UserError, match="There is no file"):
        load_base(str(tmp_path / "nothing.safetensors"), "cpu")
    save_file({"emb_params": torch.zeros(1, 4)}, tmp_path / "it.safetensors")
    for name in (str(tmp_path / "it.safetensors"), "tiny"):
        with pytest.raises(UserError, match="--revision is for models of the Hub"):
            load_base(name, "cpu", revision="fp16")


@pytest.mark.parametrize("share", [0.3, 0.999])
def test_a_truncated_checkpoint_is_refused_with_a_message(tmp_path, share):
    path = tmp_path / "it.safetensors"
    save_file({f"{UNET}{i}": torch.zeros(100) for i in range(100)}, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UserError, match="is cut short"):
        load_base(str(path), "cpu")


def test_the_error_message_names_a_missing_or_misshapen_weight(sd2, tmp_path):
    parts = {"unet": sd2.unet, "vae": sd2.vae, "text_encoder": sd2.text_encoder}
    complete = {key: value.half().contiguous() for key, value in original.checkpoint(parts).items()}
    sample = f"{UNET}input_blocks.1.1.transformer_blocks.0.norm1.weight"
    save_file({key: value for key, value in complete.items() if key != sample}, tmp_path / "it.safetensors")
    with pytest.raises(UserError, match=rf"lacks 1 of the weights it should have; the first is {sample}"):
        load_base(str(tmp_path / "it.safetensors"), "cpu")
    save_file(complete | {sample: torch.zeros(7)}, tmp_path / "it.safetensors")
    with pytest.raises(UserError, match=rf"{sample} has the shape \(7,\) where \(64,\) belongs"):
        load_base(str(tmp_path / "it.safetensors"), "cpu")
