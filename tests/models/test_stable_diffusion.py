"""The real architectures of Stable Diffusion 1.x and 2.x, narrowed, with random weights: shapes, kinds, one step of
each method. No real weights are needed. Equality with diffusers: test_diffusers_equality.py."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from sdpersonal.concepts.library import Library
from sdpersonal.config import DreamboothSettings, GenerateRequest, TextualInversionSettings
from sdpersonal.errors import UserError
from sdpersonal.generation import Generator
from sdpersonal.models import load_base
from sdpersonal.models.loading import built_in_folder
from sdpersonal.training import train
from support import original


@pytest.fixture(scope="module", params=("sd1", pytest.param("sd2", marks=pytest.mark.thorough), "sd2 v"))
def model(request, tmp_path_factory):
    """(kind, folder) of a pipeline saved by diffusers itself."""
    from transformers import CLIPTokenizer

    folder = tmp_path_factory.mktemp("sd") / "model"
    tokenizer = CLIPTokenizer.from_pretrained(built_in_folder() / "tokenizer")
    original.pipeline(request.param, [tokenizer]).save_pretrained(folder)
    return request.param.split()[0], folder


def test_a_base_has_the_kind_and_sizes_of_its_version(model):
    kind, folder = model
    base = load_base(str(folder), device="cpu")
    assert base.kind == kind and base.widths == {"clip_l": {"sd1": 768, "sd2": 1024}[kind]}
    assert base.resolution == 128 and base.latent_shape(256, 64) == (4, 8, 32) and base.guidance == 7.5


@pytest.mark.parametrize("method", ["inversion", "dreambooth"])
def test_a_trained_concept_generates_only_with_its_kind_of_base(model, tmp_path, method, tiny):
    kind, folder = model
    (tmp_path / "photos").mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (300, 280, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "photos" / "a.png")
    common = {"photos": tmp_path / "photos", "token": "<me/duck>", "base": str(folder), "steps": 2, "samples": False}
    common |= {"library": tmp_path / "concepts", "run": tmp_path / "run", "batch": 1}
    if method == "inversion":
        train(TextualInversionSettings(**common, init="toy duck"), log=lambda line: None)
    else:
        train(DreamboothSettings(**common, class_noun="toy duck", rank=4, prior="predicted"), log=lambda line: None)
    library = Library(tmp_path / "concepts")
    (entry,) = library.entries()
    assert entry.card.base == kind and entry.card.base_name == folder.name and str(tmp_path) not in str(entry.card)
    base = load_base(str(folder), device="cpu")
    request = GenerateRequest(prompt="a photo of <duck>", num_images=1, steps=1, size="128x64")
    (image,) = Generator(base, library).generate(request)
    assert image.image.size == (128, 64)
    with pytest.raises(UserError, match=f"made for the base {kind}; the loaded base is tiny"):
        list(Generator(tiny, library).generate(request))


def test_an_inpainting_model_is_refused_by_name(model, tmp_path):
    import json

    _, folder = model
    copy = tmp_path / "inpainting"
    shutil.copytree(folder, copy)
    from diffusers import UNet2DConditionModel

    config = json.loads((copy / "unet" / "config.json").read_text()) | {"in_channels": 9}
    UNet2DConditionModel.from_config(config).save_pretrained(copy / "unet")
    with pytest.raises(UserError, match="is an inpainting or depth model"):
        load_base(str(copy), device="cpu")


def test_vae_weights_with_old_attention_names_load(model, tmp_path):
    """SD 1.5's own folder has them."""
    from safetensors.torch import load_file, save_file

    vae = shutil.copytree(model[1] / "vae", tmp_path / "vae")
    path = vae / "diffusion_pytorch_model.safetensors"
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    expected, renamed = load_file(path), {}
    for key, value in expected.items():
        for new, old in older.items():
            key = key.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
        renamed[key] = value
    assert any("query" in key for key in renamed)
    save_file(renamed, path, {"format": "pt"})
    base = load_base(str(model[1]), "cpu", vae=str(vae))
    assert all(torch.equal(value, expected[key]) for key, value in base.vae.state_dict().items())
