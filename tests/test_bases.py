"""Bases: what loads, what is refused by name, and text encoding against diffusers' own."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from sdpersonal.bases import load_base
from sdpersonal.bases.loading import built_in_folder
from sdpersonal.errors import PersonalError


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


def test_the_built_in_base_is_one_that_diffusers_loads(tiny, stock):
    assert tiny.kind == "tiny" and tiny.resolution == 128
    assert tiny.latent_shape(128, 128) == (stock.unet.config.in_channels, 16, 16)
    ours, theirs = tiny.unet.state_dict(), stock.unet.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_text_is_encoded_as_the_stock_pipeline_does(tiny, stock):
    prompts = ["a photo of a duck on the beach", "", "Ünïcode, (brackets) & 12 numbers!"]
    theirs = torch.cat([stock.encode_prompt(prompt, "cpu", 1, False)[0] for prompt in prompts])
    torch.testing.assert_close(tiny.condition([[prompt] for prompt in prompts]).states, theirs, atol=1e-5, rtol=1e-5)


def test_vectors_in_a_prompt_equal_diffusers_textual_inversion(tiny, stock):
    rows = torch.randn(3, tiny.widths["clip_l"], generator=torch.Generator().manual_seed(0)) * 0.05
    stock.load_textual_inversion({"<duck>": rows})
    try:
        theirs = stock.encode_prompt("a photo of <duck> on the beach", "cpu", 1, False)[0]
    finally:
        stock.unload_textual_inversion()
    ours = tiny.condition([["a photo of ", {"clip_l": rows}, " on the beach"]]).states
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_gradients_reach_the_vectors_and_nothing_else(tiny):
    before = tiny.encoders["clip_l"].table.clone()
    rows = torch.nn.Parameter(torch.randn(2, tiny.widths["clip_l"]) * 0.05)
    tiny.condition([["a ", {"clip_l": rows}, " here"], ["no token"]]).states.square().sum().backward()
    assert rows.grad.abs().sum(1).min() > 0  # every row, not only the first
    assert not any(parameter.requires_grad for module in tiny.modules().values() for parameter in module.parameters())
    assert torch.equal(tiny.encoders["clip_l"].table, before)


def test_two_prompts_of_a_batch_do_not_share_vectors(tiny):
    one, two = torch.randn(2, 1, tiny.widths["clip_l"])
    together = tiny.condition([["a ", {"clip_l": one}], ["a ", {"clip_l": two}]]).states
    torch.testing.assert_close(together[1:], tiny.condition([["a ", {"clip_l": two}]]).states, atol=1e-5, rtol=1e-5)


def test_77_tokens_fit_and_78_are_refused_with_the_words_that_do_not(tiny):
    assert tiny.condition([["duck " * 75]]).states.shape[1] == 77
    with pytest.raises(PersonalError, match=r"has 77 tokens and 75 fit; too much from 'beach sun' on"):
        tiny.condition([["duck " * 75 + "beach sun"]])
    rows = {"clip_l": torch.zeros(4, tiny.widths["clip_l"])}
    with pytest.raises(PersonalError, match="has 76 tokens"):
        tiny.condition([["duck " * 72, rows]])


def test_pictures_round_trip_through_the_autoencoder_as_in_diffusers(tiny, stock):
    import numpy as np

    pixels = (np.indices((128, 128)).sum(0)[None, :, :, None] % [255, 200, 160]).astype(np.uint8)
    posterior = tiny.encode(pixels)
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        theirs = stock.vae.encode(x).latent_dist
    scale = stock.vae.config.scaling_factor
    torch.testing.assert_close(posterior.mean, theirs.mean * scale, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(posterior.std, theirs.std * scale, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        picture = stock.image_processor.postprocess(stock.vae.decode(theirs.mean).sample, output_type="np")
    assert np.abs(tiny.decode(posterior.mean) / 255 - picture).max() < 2 / 255


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("nowhere", "No base called nowhere"),
        ("../x/y/z", "No base called"),
        ("a\x1b[2Jb", r"No base called a\x1b[2Jb"),
    ],
)
def test_names_that_lead_nowhere(name, problem):
    with pytest.raises(PersonalError) as caught:
        load_base(name)
    assert problem in str(caught.value)


@pytest.mark.tries_network
def test_a_hub_id_without_a_network_is_refused_soon():
    with pytest.raises(PersonalError, match="cannot reach the Hub"):
        load_base("sd15")


def test_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(PersonalError, match=r"no model_index\.json"):
        load_base(str(tmp_path))


def test_a_strangers_folder_cannot_choose_code(folder):
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
def test_broken_folders_are_refused_in_a_sentence(folder, change, problem):
    change(folder)
    with pytest.raises(PersonalError, match=problem):
        load_base(str(folder))
