"""Stable Diffusion XL, narrowed, with random weights: equal to diffusers' own pipeline, with and without a concept."""

import json
import shutil

import numpy as np
import pytest
import torch

from sdpersonal.concepts.card import Card
from sdpersonal.concepts.concept import Concept, Lora, LoraLayer
from sdpersonal.concepts.concept_file import concept_to_bytes
from sdpersonal.config import GenerateRequest
from sdpersonal.errors import UserError
from sdpersonal.generation import Generator
from sdpersonal.models import Conditioning, SizeConditioning, load_base
from sdpersonal.models.loading import built_in_folder
from sdpersonal.models.lora import to_lora
from sdpersonal.prompts import Token
from support import original

PROMPT, NEGATIVE = "a duck on the beach", "a cat"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from transformers import CLIPTokenizer

    ours = built_in_folder() / "tokenizer"
    tokenizers = [CLIPTokenizer.from_pretrained(ours), CLIPTokenizer.from_pretrained(ours, pad_token="!")]
    folder = tmp_path_factory.mktemp("sdxl") / "model"
    original.pipeline("sdxl", tokenizers).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(folder):
    return load_base(str(folder), "cpu")


@pytest.fixture
def stock(folder, base):
    from diffusers import StableDiffusionXLPipeline

    pipe = StableDiffusionXLPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = base.make_scheduler()
    return pipe


@pytest.fixture
def rows():
    generator = torch.Generator().manual_seed(0)
    return {
        key: 0.02 * torch.randn(2, width, generator=generator) for key, width in (("clip_l", 768), ("clip_g", 1280))
    }


def close(ours, reference):
    torch.testing.assert_close(ours, reference, atol=1e-4, rtol=1e-4)


def a_lora(base, targets="all", seed=0):
    """One that says something in every layer that could be trained."""
    generator = torch.Generator().manual_seed(seed)
    trained = base.adapters.add_trainable(targets, 2, generator, text_encoder=True)
    for parameter in trained.values():
        parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
    base.adapters.clear()
    return to_lora(trained)


def test_an_sdxl_base_has_the_expected_kind_sizes_and_encoders(base):
    assert base.kind == "sdxl" and base.widths == {"clip_l": 768, "clip_g": 1280}
    assert base.resolution == 128 and base.latent_shape(64, 32) == (4, 4, 8) and base.guidance == 5.0


def test_prompt_and_pooled_embeddings_equal_those_of_diffusers(base, stock):
    for prompt in (PROMPT, "wow! Ünïcode, (brackets)", "one"):
        states, _, pooled, _ = stock.encode_prompt(prompt, device="cpu", do_classifier_free_guidance=False)
        ours = base.encode_captions([[prompt]])
        close(ours.prompt_embeds, states)
        close(ours.added_cond_kwargs["text_embeds"], pooled)


def test_empty_prompts_are_zeros_as_in_diffusers(base, stock, folder, tmp_path):
    _, states, _, pooled = stock.encode_prompt(PROMPT, device="cpu")  # no negative prompt given
    ours = base.encode_captions([[""], [PROMPT], []])
    close(ours[:1].prompt_embeds, states)
    close(ours[:1].added_cond_kwargs["text_embeds"], pooled)
    assert not ours[2:].prompt_embeds.any() and ours[1:2].prompt_embeds.abs().sum() > 0
    copy = shutil.copytree(folder, tmp_path / "copy", symlinks=True)
    index = json.loads((copy / "model_index.json").read_text()) | {"force_zeros_for_empty_prompt": False}
    (copy / "model_index.json").write_text(json.dumps(index))
    assert load_base(str(copy), "cpu").encode_captions([[""]]).prompt_embeds.any()


def test_size_conditioning_equals_that_of_diffusers(base, stock):
    framing = SizeConditioning(original=(1023, 771), crop=(13, 0), target=(64, 128))
    reference = stock._get_add_time_ids(
        (1023, 771), (13, 0), (64, 128), torch.float32, text_encoder_projection_dim=1280
    )
    condition = base.encode_captions([[PROMPT]], [framing])
    assert torch.equal(condition.added_cond_kwargs["time_ids"], reference)
    assert base.encode_captions([[PROMPT]]).added_cond_kwargs["time_ids"].tolist() == [[128, 128, 0, 0, 128, 128]]
    again = base.with_size_conditioning(condition, [SizeConditioning.full(64, 32)])
    assert (
        again.added_cond_kwargs["time_ids"].tolist() == [[64, 32, 0, 0, 64, 32]]
        and again.prompt_embeds is condition.prompt_embeds
    )
    noisy, t = torch.randn(1, 4, 8, 16), torch.tensor([500])
    assert not torch.equal(base.predict(noisy, t, condition), base.predict(noisy, t, again))
    both = Conditioning.cat([condition, again])
    assert both.added_cond_kwargs["time_ids"].shape == (2, 6) and torch.equal(
        both[1:].added_cond_kwargs["time_ids"], again.added_cond_kwargs["time_ids"]
    )


def test_an_embedding_equals_textual_inversion_in_diffusers(base, stock, rows):
    tokenizers, encoders = (stock.tokenizer, stock.tokenizer_2), (stock.text_encoder, stock.text_encoder_2)
    for key, tokenizer, encoder in zip(("clip_l", "clip_g"), tokenizers, encoders, strict=True):
        stock.load_textual_inversion(rows[key], token="<duck>", tokenizer=tokenizer, text_encoder=encoder)
    states, _, pooled, _ = stock.encode_prompt(
        "a photo of <duck> here", device="cpu", do_classifier_free_guidance=False
    )
    ours = base.encode_captions([["a photo of ", rows, " here"]])
    close(ours.prompt_embeds, states)
    close(ours.added_cond_kwargs["text_embeds"], pooled)


def test_gradients_reach_the_embeddings_of_both_encoders(base, rows):
    rows = {key: torch.nn.Parameter(value) for key, value in rows.items()}
    condition = base.encode_captions([["a ", rows, " here"]])
    (condition.prompt_embeds.square().sum() + condition.added_cond_kwargs["text_embeds"].square().sum()).backward()
    assert all(value.grad.abs().sum(1).min() > 0 for value in rows.values())
    assert not any(p.requires_grad for module in base.modules().values() for p in module.parameters())


def test_lora_layers_have_the_names_of_kohya(base):
    names = base.adapters.layer_names("all", text_encoder=True)
    for name in (  # of sd-scripts' networks/lora.py, over its sdxl_original_unet.py
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
        "lora_unet_input_blocks_4_1_proj_in",
        "lora_unet_middle_block_1_transformer_blocks_1_attn2_to_out_0",
        "lora_unet_output_blocks_0_1_transformer_blocks_0_ff_net_0_proj",
        "lora_unet_input_blocks_1_0_in_layers_2",
        "lora_unet_input_blocks_3_0_op",
        "lora_unet_output_blocks_2_2_conv",
        "lora_unet_middle_block_0_emb_layers_1",
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
        "lora_te2_text_model_encoder_layers_1_mlp_fc1",
    ):
        assert name in names, name
    assert not any("te1_text_model_encoder_layers_1_" in name for name in names)  # its states are not read
    assert not any(word in name for name in names for word in ("time_embed", "label_emb", "input_blocks_0_0", "out_2"))


def test_diffusers_loads_a_saved_lora_with_equal_predictions(base, stock, tmp_path):
    """Read by diffusers' own converter from kohya's names, of UNet and both encoders."""
    lora = a_lora(base)
    concept = Concept(Token.parse("<me/duck>"), Card(base="sdxl", title="duck"), {}, lora)
    (tmp_path / "duck.safetensors").write_bytes(concept_to_bytes(concept))
    stock.load_lora_weights(tmp_path, weight_name="duck.safetensors")
    noisy, t = torch.randn(1, 4, 8, 8), torch.tensor([500])
    with torch.no_grad(), base.adapters.active([(lora, 1.0)]):
        condition = base.encode_captions([[PROMPT]])
        ours = base.predict(noisy, t, condition)
    bare = base.encode_captions([[PROMPT]])
    with torch.no_grad():
        states, _, pooled, _ = stock.encode_prompt(PROMPT, device="cpu", do_classifier_free_guidance=False)
        added = {"text_embeds": pooled, "time_ids": condition.added_cond_kwargs["time_ids"]}
        reference = stock.unet(noisy, t, states, added_cond_kwargs=added).sample
        unet_bare = base.predict(noisy, t, condition)
    close(condition.prompt_embeds, states)
    close(ours, reference)
    assert (ours - unet_bare).abs().max() > 1e-2
    assert (condition.prompt_embeds - bare.prompt_embeds).abs().max() > 1e-2


def test_loras_with_diffusers_layer_names_are_equivalent(base):
    lora = a_lora(base, "attention")
    from sdpersonal.models.loading.ldm_keys import unet_paths

    reference = {
        f"lora_unet_{new.replace('.', '_')}": f"lora_unet_{old.replace('.', '_')}"
        for old, new in unet_paths(base.unet).items()
    }
    other = Lora({reference.get(name, name): layer for name, layer in lora.layers.items()})
    assert any("down_blocks" in name for name in other.layers)
    base.adapters.check(other, "<me/duck>")
    noisy, t, condition = torch.randn(1, 4, 8, 8), torch.tensor([500]), base.encode_captions([[PROMPT]])
    answers = []
    for mix in ([(lora, 1.0), (lora, 1.0)], [(lora, 1.0), (other, 1.0)]):
        with torch.no_grad(), base.adapters.active(mix):
            answers.append(base.predict(noisy, t, condition))
    assert torch.equal(*answers)


def test_every_trained_layer_gets_a_gradient(base, rows):
    trained = base.adapters.add_trainable("all", 2, torch.Generator().manual_seed(0), text_encoder=True)
    try:
        for name, parameter in trained.items():
            parameter.data += 0.01 if name.endswith("up.weight") else 0.0
        condition = base.encode_captions([["a ", rows, " here"], [""]])
        base.predict(torch.randn(2, 4, 8, 8), torch.tensor([500, 3]), condition).square().mean().backward()
        assert [name for name, p in trained.items() if p.grad is None or not p.grad.abs().sum()] == []
    finally:
        base.adapters.clear()


def test_images_of_a_concept_with_text_encoder_lora_vary_with_strength(base, rows):
    concept = Concept(
        Token("me", "duck", 1),
        Card(base="sdxl", title="duck"),
        {key: value.numpy() for key, value in rows.items()},
        a_lora(base, "attention"),
    )

    class Shelf:
        def get(self, token):
            return concept

    settings = {"num_images": 1, "steps": 2, "size": "128x64"}
    (image,) = Generator(base, Shelf()).generate(GenerateRequest(prompt="a <duck>", **settings))
    (other,) = Generator(base, Shelf()).generate(GenerateRequest(prompt="a <duck:0.2>", **settings))
    assert image.image.size == (128, 64) and np.any(np.asarray(image.image) != np.asarray(other.image))


def test_a_saved_base_loads_unchanged_here_and_in_diffusers(base, tmp_path):
    from diffusers import StableDiffusionXLPipeline

    base.save(tmp_path / "model")
    again = load_base(str(tmp_path / "model"), "cpu")
    stock = StableDiffusionXLPipeline.from_pretrained(tmp_path / "model")
    for key, value in base.unet.state_dict().items():
        assert torch.equal(value, again.unet.state_dict()[key]) and torch.equal(value, stock.unet.state_dict()[key])
    assert torch.equal(base.encode_captions([[PROMPT]]).prompt_embeds, again.encode_captions([[PROMPT]]).prompt_embeds)
    assert again.schedule.prediction_type == "epsilon"
    with pytest.raises(UserError, match="already exists"):
        base.save(tmp_path / "model")


def test_the_sdxl_vae_stays_in_fp32_unless_its_config_disables_it():
    from sdpersonal.models.loading.weights import vae_dtype

    half = torch.bfloat16
    assert vae_dtype("sdxl", {}, half) == vae_dtype("sdxl", {"force_upcast": True}, half) == torch.float32
    assert vae_dtype("sdxl", {"force_upcast": False}, half) == vae_dtype("sd1", {"force_upcast": True}, half) == half


def test_a_bf16_base_with_an_fp32_vae_encodes_and_decodes(folder):
    base = load_base(str(folder), "cpu")
    for name, module in base.modules().items():
        module.to(torch.float32 if name == "vae" else torch.bfloat16)
    posterior = base.encode(np.zeros((1, 64, 64, 3), np.uint8))
    with base.exclusive():
        message = base.predict(posterior.mean, torch.tensor([10]), base.encode_captions([[PROMPT]]))
    assert message.dtype == posterior.mean.dtype == torch.float32
    assert base.decode(message).shape == (1, 64, 64, 3)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("refiner", "is the refiner of SDXL"),
        ("null encoder", "is the refiner of SDXL"),
        ("inpainting", r"is an inpainting or depth model \(9 channels\)"),
        ("edm", "was trained in an unsupported way"),
        ("no second encoder", "text_encoder_2/model.safetensors is missing"),
        ("no second tokenizer", "cannot be read"),
    ],
)
def test_unsupported_sdxl_variants_are_refused_by_name(folder, tmp_path, change, problem):
    copy = shutil.copytree(folder, tmp_path / "copy")

    def edit(path, **options):
        (copy / path).write_text(json.dumps(json.loads((copy / path).read_text()) | options))

    if change == "refiner":
        edit("model_index.json", _class_name="StableDiffusionXLImg2ImgPipeline")
    elif change == "null encoder":
        shutil.rmtree(copy / "text_encoder")
        edit("model_index.json", text_encoder=[None, None])
    elif change == "inpainting":
        edit("unet/config.json", in_channels=9)
    elif change == "edm":
        edit("scheduler/scheduler_config.json", _class_name="EDMDPMSolverMultistepScheduler")
    elif change == "no second encoder":
        (copy / "text_encoder_2" / "model.safetensors").unlink()
    else:
        shutil.rmtree(copy / "tokenizer_2")
    with pytest.raises(UserError, match=problem):
        load_base(str(copy), "cpu")


def test_a_lora_of_another_base_is_refused(base):
    stranger = Lora({"lora_unet_mid_block_attentions_9_proj_in": LoraLayer(np.zeros((2, 3)), np.zeros((4, 2)), 2.0)})
    with pytest.raises(UserError, match="was made for another base"):
        base.adapters.check(stranger, "<me/duck>")
