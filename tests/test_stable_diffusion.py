"""The real architectures of Stable Diffusion 1.x and 2.x, narrowed, with random weights: shapes, kinds, equality with
diffusers, one step of each method. No real weights are needed, and none are at hand here."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from sdpersonal.bases import load_base
from sdpersonal.bases.loading import built_in_folder
from sdpersonal.config import DreamboothSettings, InversionSettings, Request
from sdpersonal.errors import PersonalError
from sdpersonal.generation import Generator, denoise
from sdpersonal.library import Library
from sdpersonal.training import train

KINDS = {  # text width, what the UNet predicts, linear projections: as in the configs of SD 1.5, 2.1-base and 2.1
    "sd1": (768, "epsilon", False),
    "sd2": (1024, "epsilon", True),
    "sd2 v": (1024, "v_prediction", True),
}


@pytest.fixture(scope="module", params=KINDS)
def model(request, tmp_path_factory):
    """(kind, folder) of a pipeline saved by diffusers itself."""
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    width, prediction, linear = KINDS[request.param]
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(built_in_folder() / "tokenizer")
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=width,
            num_hidden_layers=1,
            num_attention_heads=4,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 32, 64, 64),
        layers_per_block=2,
        cross_attention_dim=width,
        attention_head_dim=8,
        norm_num_groups=16,
        use_linear_projection=linear,
    )
    vae = AutoencoderKL(
        block_out_channels=(16, 16, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=8,
        sample_size=128,
    )
    scheduler = PNDMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        skip_prk_steps=True,
        prediction_type=prediction,
    )
    folder = tmp_path_factory.mktemp("sd") / "model"
    parts = {"text_encoder": text, "tokenizer": tokenizer, "unet": unet, "vae": vae, "scheduler": scheduler}
    pipe = StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipe.save_pretrained(folder)
    return request.param.split()[0], folder


def test_kind_and_sizes(model):
    kind, folder = model
    base = load_base(str(folder), device="cpu")
    assert base.kind == kind and base.widths == {"clip_l": {"sd1": 768, "sd2": 1024}[kind]}
    assert base.resolution == 128 and base.latent_shape(256, 64) == (4, 8, 32) and base.guidance == 7.5


def test_pictures_equal_the_stock_pipelines(model):
    from diffusers import StableDiffusionPipeline

    _, folder = model
    base = load_base(str(folder), device="cpu")
    stock = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    stock.set_progress_bar_config(disable=True)
    stock.scheduler = base.sampler()
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    settings = {"num_inference_steps": 4, "guidance_scale": 5.0, "output_type": "latent", "latents": noise}
    theirs = stock("a duck on the beach", negative_prompt="a cat", **settings).images
    with base.quiet():
        condition = base.condition([["a cat"], ["a duck on the beach"]])
        ours = denoise(base, condition, noise, 4, 5.0, lambda step: None)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", ["inversion", "dreambooth"])
def test_a_concept_is_taught_and_drawn_and_stays_with_its_kind(model, tmp_path, method, tiny):
    kind, folder = model
    (tmp_path / "photos").mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (300, 280, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "photos" / "a.png")
    common = {"photos": tmp_path / "photos", "token": "<me/duck>", "base": str(folder), "steps": 2, "samples": False}
    common |= {"library": tmp_path / "concepts", "run": tmp_path / "run", "batch": 1}
    if method == "inversion":
        train(InversionSettings(**common, init="toy duck"), say=lambda line: None)
    else:
        train(DreamboothSettings(**common, class_noun="toy duck", rank=4, prior="predicted"), say=lambda line: None)
    library = Library(tmp_path / "concepts")
    (entry,) = library.list()
    assert entry.card.base == kind and entry.card.base_name == folder.name and str(tmp_path) not in str(entry.card)
    base = load_base(str(folder), device="cpu")
    request = Request(prompt="a photo of <duck>", n=1, steps=1, size="128x64")
    (picture,) = Generator(base, library).draw(request)
    assert picture.image.size == (128, 64)
    with pytest.raises(PersonalError, match=f"made for the base {kind}; the loaded one is tiny"):
        list(Generator(tiny, library).draw(request))


def test_an_inpainting_model_is_refused_by_name(model, tmp_path):
    import json

    _, folder = model
    copy = tmp_path / "inpainting"
    shutil.copytree(folder, copy)
    from diffusers import UNet2DConditionModel

    config = json.loads((copy / "unet" / "config.json").read_text()) | {"in_channels": 9}
    UNet2DConditionModel.from_config(config).save_pretrained(copy / "unet")
    with pytest.raises(PersonalError, match="is an inpainting or depth model"):
        load_base(str(copy), device="cpu")
