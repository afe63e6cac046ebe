"""The meter of where concepts are: what it measures, against attention computed otherwise; it changes nothing."""

import json

import numpy as np
import pytest
import torch
from test_generation import Shelf, random_concept

from sdpersonal.config import GenerateRequest
from sdpersonal.errors import Interrupted
from sdpersonal.generation import Generator
from sdpersonal.generation import generator as generator_module
from sdpersonal.generation.presence import HEAT_SIDE, MAX_CONCEPTS, measure
from sdpersonal.image_metadata import read_recipe
from sdpersonal.models import Conditioning, Segment
from sdpersonal.models.attention_maps import AttentionRecorder

STEPS = 6  # more than the uses after which a LoRA is merged


@pytest.fixture(scope="module")
def shelf(tiny):
    concepts = {
        name: random_concept(tiny, f"<me/{name}>", seed, lora=name != "word")
        for seed, name in enumerate(("duck", "fox", "word", "ink"))
    }
    ink = concepts["ink"]
    concepts["ink"] = type(ink)(ink.token, ink.card.model_copy(update={"kind": "style"}), ink.vectors, ink.lora)
    return Shelf(concepts)


def images(base, concepts, prompt, **fields):
    request = GenerateRequest(**({"prompt": prompt, "num_images": 2, "steps": STEPS, "size": "64x64"} | fields))
    return list(Generator(base, concepts).generate(request))


def presences(image):
    return {concept.token: concept.presence for concept in image.recipe.concepts}


# --- what is measured -------------------------------------------------------------------------------------------------


def rectangle(left, top, right, bottom, value=1.0, ground=0.0):
    attention = np.full((64, 64), ground)
    attention[top:bottom, left:right] += value
    return attention


def test_measure_gives_share_box_and_overlap_of_rectangles():
    left, right = rectangle(0, 0, 32, 64, ground=0.25), rectangle(24, 16, 56, 48, 2.0)
    measured = measure({"left": left, "right": right})
    total = 0.25 * 64 * 64 + 32 * 64 + 2 * 32 * 32
    assert measured["left"].share == pytest.approx((0.25 * 64 * 64 + 32 * 64) / total, abs=5e-4)
    assert sum(presence.share for presence in measured.values()) == pytest.approx(1, abs=1e-3)
    assert measured["left"].box == (0, 0, 0.5, 1) and measured["right"].box == (0.375, 0.25, 0.875, 0.75)
    assert measured["left"].overlap == pytest.approx(8 * 32 / (32 * 64), abs=5e-4)
    assert measured["right"].overlap == pytest.approx(8 * 32 / (32 * 32), abs=5e-4)
    assert measured["left"].heat == "ffff0000" * 8
    assert measured["right"].heat == "0" * 16 + "000ffff0" * 4 + "0" * 16


def test_a_style_does_not_count_as_overlap_of_a_subject():
    maps = {"ink": rectangle(0, 0, 64, 64), "duck": rectangle(0, 0, 16, 16)}
    maps["ink"][60:] = 0
    measured = measure(maps, styles={"ink"})
    assert measured["duck"].overlap == 0 and measured["ink"].overlap == pytest.approx(16 * 16 / (60 * 64), abs=5e-4)
    assert measure(maps)["duck"].overlap == 1


def test_unmapped_areas_do_not_count_for_any_concept():
    unknown = rectangle(8, 8, 24, 24, ground=0.5)
    unknown[:, 32:] = np.nan
    measured = measure({"a": unknown, "b": rectangle(40, 0, 64, 64)})
    assert measured["a"].box == (0.125, 0.125, 0.375, 0.375) and measured["a"].overlap == 0
    assert measured["a"].share == pytest.approx((1024 + 256) / (1024 + 256 + 24 * 64), abs=5e-4)


def test_uniform_attention_gives_the_whole_image_as_box():
    measured = measure({"a": np.full((64, 64), 0.3), "b": np.zeros((64, 64))})
    assert measured["a"].box == measured["b"].box == (0, 0, 1, 1)
    assert measured["a"].share == 1 and measured["b"].share == measured["b"].overlap == 0
    assert measured["a"].heat == "0" * HEAT_SIDE**2


# --- where it comes from ----------------------------------------------------------------------------------------------


def test_recorded_attention_matches_diffusers_scores(tiny):
    """Diffusers' first processor computes the whole matrix of scores, which this one keeps."""
    from diffusers.models.attention_processor import AttnProcessor

    layer_scores = []

    class Keeping(AttnProcessor):
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, **options):
            if encoder_hidden_states is not None:
                query = attn.head_to_batch_dim(attn.to_q(hidden_states))
                key = attn.head_to_batch_dim(attn.to_k(encoder_hidden_states))
                layer_scores.append(attn.get_attention_scores(query, key).unflatten(0, (-1, attn.heads)).mean(1))
            return super().__call__(attn, hidden_states, encoder_hidden_states, **options)

    prompts = [tiny.encode_prompt([Segment(text)]) for text in ("a cat on grass", "a red house")]
    rows = Conditioning.cat(prompts)
    noise = torch.randn(2, *tiny.latent_shape(128, 128), generator=torch.Generator().manual_seed(1))
    recorder = AttentionRecorder(tiny, tuple(noise.shape[2:]), [(1, [2, 3]), (0, [2])])
    with recorder.recording():
        tiny.predict(noise, torch.tensor([500, 500]), rows)
    maps = recorder.take()
    processors = tiny.unet.attn_processors
    tiny.unet.set_attn_processor(Keeping())
    try:
        tiny.predict(noise, torch.tensor([500, 500]), rows)
    finally:
        tiny.unet.set_attn_processor(processors)
    expected = []
    for row, positions in ((1, [2, 3]), (0, [2])):
        grids = [scores[row][:, positions].sum(-1) for scores in layer_scores]
        grids = [grid.view(1, 1, *[int(len(grid) ** 0.5)] * 2) for grid in grids]
        grids = [grid for grid in grids if grid.shape[2] <= noise.shape[2] / 2]
        resized = [torch.nn.functional.interpolate(grid, noise.shape[2:], mode="bilinear") for grid in grids]
        expected.append(torch.stack(resized).mean(0)[0])
    assert len(layer_scores) > 2 and torch.allclose(maps, torch.stack(expected), atol=1e-5)


@pytest.mark.parametrize(
    ("prompt", "fields"),
    [
        ("<duck> next to <fox>", {"compose": False}),
        ("<duck> and <word>, a tree", {"compose": False, "guidance": 1.0}),
        ("<duck> in the style of <ink>", {}),
        ("<duck@0.3-1> in the style of <ink@0-0.6>", {"scheduler": "Heun Karras"}),
        ("<duck:0.7+fox:0.3> on grass", {}),
        ("<duck> next to <fox>", {}),
        ("<duck> by <ink>", {"size": "72x88"}),  # layers of odd sides
        ("<duck> next to <fox> in the style of <ink>", {"num_images": 1}),
        ("<duck> and <word>", {"compose": False, "hires_scale": 1.5, "num_images": 1}),
    ],
)
def test_recording_changes_no_pixel_and_shares_sum_to_one(tiny, shelf, monkeypatch, prompt, fields):
    recorded = images(tiny, shelf, prompt, **fields)
    monkeypatch.setattr(generator_module.Generator, "_meter", lambda *_: None)
    for image, bare in zip(recorded, images(tiny, shelf, prompt, **fields), strict=True):
        assert np.array_equal(np.asarray(image), np.asarray(bare))
        assert {None} == set(presences(bare).values()) and None not in presences(image).values()
        assert sum(presence.share for presence in presences(image).values()) == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("prompt", ["a cat", "<duck> on grass", "<duck> and <duck:0.5>", "<duck:1@0-0.1> by <ink>"])
def test_presence_is_not_recorded_for_a_single_concept(tiny, shelf, prompt):
    for image in images(tiny, shelf, prompt, compose=False, num_images=1):
        assert set(presences(image).values()) <= {None} and "presence" not in image.recipe.to_json()


def test_no_meter_is_created_for_one_or_too_many_concepts(tiny, shelf, monkeypatch):
    monkeypatch.setattr(generator_module, "PresenceMeter", None)  # it would fail
    images(tiny, shelf, "<duck> on grass", num_images=1)
    many = Shelf({f"w{i}": random_concept(tiny, f"<me/w{i}>", i, lora=False) for i in range(MAX_CONCEPTS + 1)})
    images(tiny, many, " ".join(f"<w{i}>" for i in range(MAX_CONCEPTS + 1)), num_images=1, compose=False)


def test_presence_matches_composition_boxes_and_blends(tiny, shelf):
    # Boxes of 104 pixels from 56 on, and of 66 pixels in the upper left corner.
    for image in images(tiny, shelf, "<duck:at=right> and <fox:box=0,0,0.4,0.4>", size="160x128"):
        duck, fox = (presences(image)[f"<me/{name}>"] for name in ("duck", "fox"))
        assert duck.box[0] >= 0.33 and fox.box[2] <= 0.43 and fox.box[3] <= 0.54
        assert all(digit == "0" for row in range(8) for digit in fox.heat[8 * row + 5 : 8 * row + 8])
    (image,) = images(tiny, shelf, "<duck+fox> on grass", num_images=1)
    duck, fox = presences(image).values()
    assert duck == fox and duck.overlap == 1 and duck.share == 0.5


def test_each_image_of_a_batch_has_its_own_presence(tiny, shelf):
    both = images(tiny, shelf, "a photo of <duck> and <word>", compose=False)
    (second,) = images(tiny, shelf, "a photo of <duck> and <word>", compose=False, num_images=1, seed=1)
    assert presences(both[0]) != presences(both[1])
    for token, presence in presences(both[1]).items():
        assert presences(second)[token].share == pytest.approx(presence.share, abs=2e-3)
        assert presences(second)[token].box == pytest.approx(presence.box, abs=0.04)


def test_an_interrupted_generation_leaves_no_hooks(tiny, shelf):
    request = GenerateRequest(prompt="<duck> and <fox>", steps=STEPS, size="64x64", compose=False)
    generator, done = Generator(tiny, shelf), []

    def cancelled():
        done.append(1)
        return len(done) == STEPS

    with pytest.raises(Interrupted):
        list(generator.generate(request, cancelled=cancelled))
    assert not any(module._forward_hooks or module._forward_pre_hooks for _, module in tiny.unet.named_modules())


def test_the_recipe_stores_presence_in_less_than_a_kilobyte(tiny, shelf):
    (image,) = images(tiny, shelf, "<duck> next to <fox> by <word>", compose=False, num_images=1)
    assert read_recipe(image.to_png()) == image.recipe
    fields = json.loads(image.recipe.to_json())
    assert len(json.dumps([concept.pop("presence") for concept in fields["concepts"]])) < 1000
    assert type(image.recipe)(**fields).concepts[0].presence is None
