"""Final latents of the Generator, prompt to picture, against diffusers' own pipelines doing the same in fp32: on the
built-in base and on the real architectures, narrowed, with random weights."""

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.images.side import set_strengths
from sdpersonal.concepts.card import Card
from sdpersonal.concepts.concept import Concept
from sdpersonal.concepts.concept_file import concept_to_bytes
from sdpersonal.config import GenerateRequest
from sdpersonal.generation import Generator
from sdpersonal.models import load_base
from sdpersonal.models.loading import built_in_folder
from sdpersonal.models.lora import to_lora
from sdpersonal.prompts import Token
from support import original

KINDS = ("tiny", "sd1", "sd2 v", "sdxl")
STEPS, WIDTH, HEIGHT = 3, 96, 64  # a step more, and random weights blow rounding up to hundredths
PROMPT, NEGATIVE = "a red umbrella on the beach", "snow"


def pipelines(kind):
    from diffusers import StableDiffusionImg2ImgPipeline as FromPicture
    from diffusers import StableDiffusionInpaintPipeline as Inpaint
    from diffusers import StableDiffusionPipeline as Whole
    from diffusers import StableDiffusionXLImg2ImgPipeline as FromPictureXL
    from diffusers import StableDiffusionXLInpaintPipeline as InpaintXL
    from diffusers import StableDiffusionXLPipeline as WholeXL

    return (WholeXL, FromPictureXL, InpaintXL) if kind == "sdxl" else (Whole, FromPicture, Inpaint)


@pytest.fixture(scope="module", params=KINDS)
def place(request, tmp_path_factory):
    """(kind, folder): saved by diffusers itself."""
    from transformers import CLIPTokenizer

    if request.param == "tiny":
        return "tiny", built_in_folder()
    folder = tmp_path_factory.mktemp("equality") / "model"
    tokenizers = [CLIPTokenizer.from_pretrained(built_in_folder() / "tokenizer") for _ in range(2)]
    made = original.pipeline(request.param, tokenizers if request.param == "sdxl" else tokenizers[:1])
    made.save_pretrained(folder)
    return request.param.split()[0], folder


@pytest.fixture(scope="module")
def base(place):
    kind, folder = place
    return load_base("tiny" if kind == "tiny" else str(folder), "cpu")


@pytest.fixture
def stock(place, base):
    """Built anew for each test: diffusers' loaders leave things behind."""
    kind, folder = place
    pipe = pipelines(kind)[0].from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = base.make_scheduler()
    return pipe


class Shelf(dict):
    def get(self, token):
        return self[token.name]


@pytest.fixture(scope="module")
def shelf(base):
    """Two words and two LoRAs."""
    rng = torch.Generator().manual_seed(0)
    result = Shelf()
    for name, count in (("one", 2), ("two", 3)):
        rows = {key: (0.03 * torch.randn(count, width, generator=rng)).numpy() for key, width in base.widths.items()}
        result[name] = Concept(Token("me", name, 1), Card(token=f"<me/{name}-v1>", base=base.kind), rows)
    for name in ("red", "blue"):
        trained = base.adapters.add_trainable("all", 2, rng, text_encoder=True)
        for parameter in trained.values():
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=rng)
        base.adapters.clear()
        result[name] = Concept(
            Token("me", name, 1), Card(token=f"<me/{name}-v1>", base=base.kind), {}, to_lora(trained)
        )
    return result


@pytest.fixture
def ours(base, shelf, monkeypatch):
    """Latents that a request ends with."""

    def ours(prompt, **options):
        saved, real = [], base.decode
        with monkeypatch.context() as patched:
            patched.setattr(base, "decode", lambda latents: saved.append(latents) or real(latents))
            common = {"negative": NEGATIVE, "num_images": 1, "seed": 3, "steps": STEPS, "size": f"{WIDTH}x{HEIGHT}"}
            list(
                Generator(base, shelf).generate(
                    GenerateRequest(prompt=prompt, **(common | {"guidance": 4.0} | options))
                )
            )
        return saved[-1]

    return ours


def theirs(pipe, base, prompt, **options):
    noise = torch.randn(base.latent_shape(WIDTH, HEIGHT), generator=torch.Generator().manual_seed(3))[None]
    common = {"negative_prompt": NEGATIVE, "num_inference_steps": STEPS, "guidance_scale": 4.0}
    size = {"height": HEIGHT, "width": WIDTH, "latents": noise}
    return pipe(prompt, output_type="latent", **(common | size | options)).images


def close(item, other):
    torch.testing.assert_close(item, other, atol=1e-4, rtol=1e-4)


def put(pipe, shelf, tmp_path, *names):
    """As diffusers' users do: words by load_textual_inversion, LoRAs by load_lora_weights from a concept's own file."""
    for name in names:
        concept = shelf[name]
        if concept.lora:
            (tmp_path / f"{name}.safetensors").write_bytes(concept_to_bytes(concept))
            pipe.load_lora_weights(tmp_path, weight_name=f"{name}.safetensors", adapter_name=name)
        for key, part in (("clip_l", ""), ("clip_g", "_2")):
            if key in concept.vectors:
                models = {
                    "tokenizer": getattr(pipe, f"tokenizer{part}"),
                    "text_encoder": getattr(pipe, f"text_encoder{part}"),
                }
                pipe.load_textual_inversion(torch.from_numpy(concept.vectors[key]), token=f"<{name}>", **models)


def test_latents_match_diffusers_without_concepts(base, stock, ours):
    close(ours(PROMPT), theirs(stock, base, PROMPT))


def test_latents_match_diffusers_without_guidance(base, stock, ours):
    """Only half is computed, and it is the same."""
    close(ours(PROMPT, guidance=1.0), theirs(stock, base, PROMPT, guidance_scale=1.0))


def test_an_embedding_matches_diffusers(base, stock, shelf, ours, tmp_path):
    put(stock, shelf, tmp_path, "one")
    close(ours("a photo of <me/one> in the snow"), theirs(stock, base, "a photo of <one> in the snow"))


def test_a_lora_at_a_strength_matches_diffusers(base, stock, shelf, ours, tmp_path):
    put(stock, shelf, tmp_path, "red")
    set_strengths(stock, {"red": 0.7})
    made = ours("a duck<me/red:0.7>")
    close(made, theirs(stock, base, "a duck"))
    assert (made - ours("a duck")).abs().max() > 0.01


def test_two_embeddings_with_two_loras_match_diffusers(base, stock, shelf, ours, tmp_path):
    put(stock, shelf, tmp_path, "one", "two", "red", "blue")
    set_strengths(stock, {"red": 0.7, "blue": 0.4})
    made = ours("<me/one> and a <me/two> <me/red:0.7><me/blue:0.4>", compose=False)
    close(made, theirs(stock, base, "<one> and a <two>"))


def test_a_negative_prompt_embedding_matches_diffusers(base, stock, shelf, ours, tmp_path):
    put(stock, shelf, tmp_path, "two")
    close(ours("a cat", negative="bad <me/two>"), theirs(stock, base, "a cat", negative_prompt="bad <two>"))


def test_guidance_rescale_matches_diffusers(base, stock, ours):
    """CFG rescale, where diffusers' pipeline has it."""
    close(ours(PROMPT, rescale=0.6), theirs(stock, base, PROMPT, guidance_rescale=0.6))


@pytest.fixture
def image(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
    path = tmp_path / "start.png"
    Image.fromarray(pixels).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(path)
    return path


def begin_at(scheduler, step):
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(step)


def beginning_as(base, path):
    """What we begin from; diffusers would draw both with one generator."""
    latents = base.encode(np.array(Image.open(path))[None]).mean
    noise = torch.randn(base.latent_shape(WIDTH, HEIGHT), generator=torch.Generator().manual_seed(3))[None]
    return latents, noise


@pytest.mark.parametrize("change", [0.4, 0.7, 1.0])
def test_img2img_matches_diffusers(place, base, stock, ours, image, monkeypatch, change):
    pipe = pipelines(place[0])[1].from_pipe(stock)
    latents, noise = beginning_as(base, image)
    steps = max(1, int(STEPS * change))
    pipe.scheduler.set_timesteps(STEPS)
    begin_at(pipe.scheduler, STEPS - steps)
    begun = pipe.scheduler.add_noise(latents, noise, pipe.scheduler.timesteps[STEPS - steps :][:1])
    monkeypatch.setattr(pipe, "prepare_latents", lambda *_, **__: begun)
    settings = {"negative_prompt": NEGATIVE, "num_inference_steps": STEPS, "guidance_scale": 4.0, "strength": change}
    made = pipe(PROMPT, image=Image.open(image), output_type="latent", **settings).images
    close(ours(PROMPT, init_image=image, strength=change), made)


def test_inpainting_matches_diffusers(place, base, stock, ours, image, monkeypatch, tmp_path):
    if base.kind == "tiny":
        pytest.skip("diffusers keeps the rest in models of four channels alone")
    mask = Image.new("L", (WIDTH, HEIGHT), 0)
    mask.paste(255, (0, 0, WIDTH // 2, HEIGHT))
    mask.save(tmp_path / "mask.png")
    pipe = pipelines(place[0])[2].from_pipe(stock)
    latents, noise = beginning_as(base, image)
    pipe.scheduler.set_timesteps(STEPS)
    begin_at(pipe.scheduler, STEPS - 1)
    begun = pipe.scheduler.add_noise(latents, noise, pipe.scheduler.timesteps[STEPS - 1 :][:1])
    monkeypatch.setattr(pipe, "prepare_latents", lambda *_, **__: (begun, noise, latents))
    settings = {"negative_prompt": NEGATIVE, "num_inference_steps": STEPS, "guidance_scale": 4.0, "strength": 0.5}
    settings |= {"height": HEIGHT, "width": WIDTH, "output_type": "latent"}
    made = pipe(PROMPT, image=Image.open(image), mask_image=mask, **settings).images
    close(ours(PROMPT, init_image=image, mask=tmp_path / "mask.png", strength=0.5), made)
