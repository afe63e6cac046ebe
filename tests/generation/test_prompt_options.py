"""What block weights and ramps in a prompt do to an image, against mixes made by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sdpersonal.concepts.card import Card
from sdpersonal.concepts.concept import Concept, Lora, LoraLayer
from sdpersonal.config import GenerateRequest
from sdpersonal.errors import UserError
from sdpersonal.generation import Generator
from sdpersonal.generation.prompt_resolution import PromptResolver, embeddings_at_strength
from sdpersonal.generation.request_checks import named
from sdpersonal.image_metadata import read_recipe
from sdpersonal.models import Segment
from sdpersonal.prompts import Token

SMALL = {"steps": 4, "size": "64x64", "num_images": 1, "seed": 5}


class Shelf(dict):
    def get(self, token):
        return self[token.name]


@pytest.fixture(scope="module")
def duck(tiny):
    rng = np.random.default_rng(1)
    layers = {}
    for name in tiny.adapters.layer_names("attention", text_encoder=True):
        rows, width = tiny.adapters.layers()[name].weight.shape
        down, up = rng.normal(size=(2, width)) / width**0.5, rng.normal(size=(rows, 2))
        layers[name] = LoraLayer(down.astype(np.float32), up.astype(np.float32), 1.0)
    vectors = rng.normal(size=(2, tiny.widths["clip_l"])).astype(np.float32) * 0.05
    return Concept(Token("me", "duck"), Card(base="tiny"), {"clip_l": vectors}, Lora(layers))


def image(base, concept, prompt, **fields):
    request = GenerateRequest(prompt=prompt, **(SMALL | fields))
    [result] = Generator(base, Shelf(duck=concept)).generate(request)
    return np.asarray(result.image).astype(int)


def by_hand(concept, weights):
    """The concept with its layers scaled by the first weight whose key begins their name's part after `lora_`."""
    layers = {}
    for name, layer in concept.lora.layers.items():
        weight = next((w for start, w in weights.items() if name.removeprefix("lora_").startswith(start)), 1.0)
        if weight:
            layers[name] = replace(layer, up=layer.up * np.float32(weight))
    return replace(concept, lora=Lora(layers))


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ("in=0", {"unet_down": 0.0}),
        ("in=0.5:out=2:mid=-1:base=0.25", {"unet_down": 0.5, "unet_up": 2.0, "unet_mid": -1.0, "te_": 0.25}),
        ("lbw=OUTALL", {"unet_down": 0.0, "unet_mid": 0.0}),
        ("lbw=0,0,0,0.5,0,0,0,0,0,0,0,0,0,0,0,0,0", {"unet_down_blocks_1_attentions_0": 0.5, "": 0.0}),  # IN04
    ],
)
def test_block_weights_scale_the_layers_of_their_blocks(tiny, duck, options, weights):
    ours = image(tiny, duck, f"a cat <duck:0.8:{options}>")
    expected = image(tiny, by_hand(duck, weights), "a cat <duck:0.8>")
    assert np.abs(ours - expected).max() <= 1  # alpha or B scaled: other roundings
    assert np.abs(ours - image(tiny, duck, "a cat <duck:0.8>")).max() > 3


def test_options_without_effect_do_not_change_the_image(tiny, duck):
    plain = image(tiny, duck, "a cat <duck:0.8>")
    for options in ("in=1:mid=1", "lbw=ALL:ramp=1-1"):
        assert np.array_equal(image(tiny, duck, f"a cat <duck:0.8:{options}>"), plain)
    none = image(tiny, duck, "a cat <duck:lbw=NONE>")
    assert np.array_equal(none, image(tiny, replace(duck, lora=None), "a cat <duck>"))


def test_a_ramp_sets_the_strength_of_each_step(tiny, duck, monkeypatch):
    """Against mixes and words put in by hand at every step."""
    seen, real = [], tiny.predict

    def predict(latents, t, conditioning):
        seen.append((conditioning.prompt_embeds[1:].clone(), adapters_now(tiny)))
        return real(latents, t, conditioning)

    monkeypatch.setattr(tiny, "predict", predict)
    image(tiny, duck, "a cat <duck:-0.8:ramp=0.25-1@0-0.5>")
    monkeypatch.undo()
    # The middles of the first two of four steps, a quarter and three quarters through the window; then it is over.
    strengths = [-0.8 * (0.25 + 0.75 * 0.25), -0.8 * (0.25 + 0.75 * 0.75), 0.0, 0.0]
    for (embeds, adapters), strength in zip(seen, strengths, strict=True):
        with tiny.exclusive(), tiny.adapters.active([(duck.lora, strength)]):
            segments = [Segment("a cat "), Segment(embeddings_at_strength(tiny, duck, strength))]
            expected = tiny.encode_prompt(segments).prompt_embeds
            assert adapters == pytest.approx(adapters_now(tiny), rel=1e-6)
        torch.testing.assert_close(embeds, expected, atol=1e-5, rtol=1e-5)


def adapters_now(base):
    return [0.0 if adapter.up is None else float(adapter.up.sum()) for adapter in base.adapters._adapters.values()]


def test_active_loras_differ_by_blocks_and_step(tiny, duck):
    resolver = PromptResolver(tiny, Shelf(duck=duck))

    def loras(prompt, progress=0.5):
        return resolver.resolve(prompt).loras_at(progress)

    assert loras("<duck:0.8:in=0>") != loras("<duck:0.8>") != loras("<duck:0.8:ramp=0-1>")
    assert loras("<duck:0.8:in=0>") == loras("a <duck:0.8:IN = 0:at=left:guidance=2>")
    assert loras("<duck:0.8:ramp=0-1>") == loras("<duck:0.4>") and loras("<duck:ramp=0-1>", 0.0) == ()
    assert loras("<duck:ramp=1-0@0.25-0.75>") == loras("<duck:0.5>") and loras("<duck:ramp=1-0@0-0.5>") == ()
    assert loras("<duck:lbw=NONE>") == ()
    # Of several mentions that farthest from 0 counts, whichever comes first.
    for first, second, winner in (
        ("0.5:in=0", "0.8", "0.8"),
        ("-0.8:out=0", "0.5", "-0.8:out=0"),
        ("1", "1:in=0", "1"),
    ):
        expected = loras(f"<duck:{winner}>")
        assert loras(f"<duck:{first}> <duck:{second}>") == loras(f"<duck:{second}> <duck:{first}>") == expected
    key = resolver.resolve("<duck:ramp=0-1>")
    assert key.active_at(0.25) != key.active_at(0.5) and hash(key.active_at(0.25)) is not None
    assert resolver.resolve("<duck:0.3>").active_at(0.25) == resolver.resolve("<duck:0.3>").active_at(0.5)


def test_images_of_one_batch_have_their_own_options(tiny, duck):
    ends, fields = ("0.8", "0.8:in=0", "0.8:ramp=0-1"), SMALL | {"steps": 2}
    request = GenerateRequest(prompt=f"a cat <duck:{{{'|'.join(ends)}}}>", all_combinations=True, **fields)
    together = [np.asarray(item.image).astype(int) for item in Generator(tiny, Shelf(duck=duck)).generate(request)]
    alone = [image(tiny, duck, f"a cat <duck:{end}>", steps=2) for end in ends]
    assert all(np.array_equal(a, b) for a, b in zip(together, alone, strict=True))
    assert len({item.tobytes() for item in together}) == len(ends)


@pytest.mark.parametrize(
    ("template", "names"),
    [
        ("a <me/duck:at={left|right}> and <cat:{0.5|1}:in=0>", ["<me/duck>", "<cat>"]),
        ("<me/{duck|cat}:guidance=2>", ["<me/duck>", "<me/cat>"]),
        ("{<me/duck:lbw=OUTS>|<cat>} <me/duck:{in=0|ramp=0-1}>", ["<me/duck>", "<cat>"]),
        ("<me/__animals__:0.5> <cat>", ["<cat>"]),
    ],
)
def test_named_lists_concepts_with_alternatives_in_their_options(template, names):
    assert [str(mention.token) for mention in named(template)] == names


@pytest.mark.parametrize("template", ["<me/duck:at={left|above}>", "<me/duck:size={1|2}>", "<me/{duck|Düc}>"])
def test_invalid_options_in_alternatives_are_refused(template):
    with pytest.raises(UserError, match=r"above|unknown option|not a concept's token"):
        named(template)


def test_a_recipe_with_options_reproduces_the_image(tiny, duck):
    prompt = "a cat <duck:0.8:guidance=2:at=left:lbw=OUTS:ramp=0.2-1@0-0.9>"
    shelf = Shelf(duck=duck)
    [first] = Generator(tiny, shelf).generate(GenerateRequest(prompt=prompt, **SMALL))
    recipe = read_recipe(first.to_png())
    assert recipe.prompt == prompt and recipe == first.recipe
    [again] = Generator(tiny, shelf).generate(recipe.request())
    assert again.to_png() == first.to_png()
