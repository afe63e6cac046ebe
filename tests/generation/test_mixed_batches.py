"""Several requests in one batch, each with the LoRAs of its own prompt: against each alone, and against diffusers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from sdpersonal.config import GenerateRequest
from sdpersonal.errors import Interrupted, UserError
from sdpersonal.generation import Generator
from sdpersonal.models.loading import built_in_folder
from sdpersonal.prompts import Token
from support.mixing import DensePipeline, shelf_of

SIDE, STEPS = 64, 2
PROMPTS = ["a photo of <fox>", "<cat:0.6> on grass", "a red umbrella", "<bob> and a tree", "<fox:0.3>", "<ink@0-0.5>"]


@pytest.fixture(scope="module")
def generator(tiny):
    return Generator(tiny, shelf_of(tiny, size=0.1, text_encoder=True))


def request(prompt, **fields):
    common = {"num_images": 1, "steps": STEPS, "size": f"{SIDE}x{SIDE}", "negative": "snow"}
    return GenerateRequest(prompt=prompt, **(common | fields))


def pixels(images):
    return [np.asarray(image.image).astype(int) for image in images]


def together(generator, requests):
    """The images of each request, and the number of predictions of all."""
    images, totals = [[] for _ in requests], set()
    for index, image in generator.generate_many(requests, lambda done, total: totals.add(total)):
        images[index].append(image)
    return images, totals.pop()


def check_equal_to_each_alone(generator, requests):
    images, predictions = together(generator, requests)
    for given, of_request in zip(requests, images, strict=True):
        alone = list(generator.generate(given))
        assert [image.seed for image in of_request] == [image.seed for image in alone]
        for ours, expected in zip(pixels(of_request), pixels(alone), strict=True):
            assert ours.shape == expected.shape and np.abs(ours - expected).max() <= 1
        for ours, expected in zip(of_request, alone, strict=True):
            assert ours.recipe.prompt == expected.recipe.prompt
            assert [c.token for c in ours.recipe.concepts] == [c.token for c in expected.recipe.concepts]
    return predictions


def test_every_image_of_a_batch_equals_its_request_alone(generator, tiny):
    requests = [request(prompt, seed=i) for i, prompt in enumerate(PROMPTS)]
    assert check_equal_to_each_alone(generator, requests) == STEPS  # all in one batch
    assert not any(module._forward_hooks for module in tiny.unet.modules())


def test_latents_match_diffusers_with_merged_loras(generator, tiny, monkeypatch):
    """A batch of four mixes, against diffusers' own pipeline with B A added to the weights by hand, one by one."""
    from diffusers import StableDiffusionPipeline

    names, latents, decode = ("fox", "cat", "bob", "ink"), [], tiny.decode
    monkeypatch.setattr(tiny, "decode", lambda given: latents.append(given) or decode(given))
    assert together(generator, [request(f"a <{name}>", seed=i) for i, name in enumerate(names)])[1] == STEPS
    dense = DensePipeline(built_in_folder(), tiny)
    stock: StableDiffusionPipeline = dense._pipe
    stock.set_progress_bar_config(disable=True)
    stock.scheduler = tiny.make_scheduler()
    for i, name in enumerate(names):
        noise = torch.randn(tiny.latent_shape(SIDE, SIDE), generator=torch.Generator().manual_seed(i))[None]
        with dense._added([(generator.concepts[name].lora, 1.0)]):
            expected = stock(
                f"a {name}",
                negative_prompt="snow",
                num_inference_steps=STEPS,
                guidance_scale=tiny.guidance,
                height=SIDE,
                width=SIDE,
                latents=noise,
                output_type="latent",
            ).images
        torch.testing.assert_close(latents[i], expected, atol=1e-3, rtol=1e-3)
        assert i == 0 or (latents[i] - latents[0]).abs().max() > 0.1


def test_requests_with_different_settings_use_separate_batches(generator):
    requests = [
        request("<fox>", seed=1),
        request("<cat>", size="96x64"),
        request("<cat>", num_images=2),
        request("<bob>", guidance=2.0),
        request("<bob>", seed=4, size="96x64"),
        request("<ink>, " + "very " * 80),  # two contexts
        request("<fox>", steps=STEPS + 1),
        request("<cat>", hires_scale=2.0, strength=0.5),
    ]
    # fox with both of cat; both of 96x64; guidance; contexts; steps; a second pass of one step
    assert check_equal_to_each_alone(generator, requests) == 4 * STEPS + (STEPS + 1) + (STEPS + 1)


def test_styles_and_compositions_share_batches(generator):
    styles = [request("<fox> in the style of <ink>"), request("<cat> in the style of <wash>", seed=1)]
    subjects = [request("<fox> and <cat>"), request("<bob> and <fox>", seed=5)]
    assert check_equal_to_each_alone(generator, [*styles, *subjects]) == 2 * STEPS


def test_requests_with_the_same_init_image_share_a_batch(generator, tmp_path):
    for name, colour in (("red", (200, 30, 30)), ("blue", (20, 40, 200))):
        Image.new("RGB", (SIDE, SIDE), colour).save(tmp_path / f"{name}.png")
    red, blue = ({"init_image": tmp_path / f"{name}.png", "strength": 1.0} for name in ("red", "blue"))
    requests = [request("<fox>", **red), request("<cat>", **blue), request("<bob>", **red)]
    assert check_equal_to_each_alone(generator, requests) == 2 * STEPS


def test_the_recipe_of_a_batched_image_reproduces_it(generator):
    mixed, _ = together(generator, [request("<fox>", seed=1), request("<cat>", seed=2)])
    assert [(image.recipe.batch, image.recipe.place) for (image,) in mixed] == [(1, 0), (1, 0)]
    equal, _ = together(generator, [request("<fox>", seed=1), request("a tree, <fox>", seed=8)])
    assert [(image.recipe.batch, image.recipe.place) for (image,) in equal] == [(2, 0), (2, 1)]
    (second,) = equal[1]
    again = list(generator.generate(second.recipe.batch_request()))[second.recipe.place]
    assert np.array_equal(*pixels([again, second]))  # to the bit: the batch has one mix of LoRAs


def test_requests_of_one_concept_share_a_batch(generator):
    names = ["fox", "cat"] * 8
    images, _ = together(generator, [request(f"<{name}>", seed=i) for i, name in enumerate(names)])
    assert {image.recipe.batch for (image,) in images} == {8}
    assert [image.recipe.concepts[0].token for (image,) in images] == [f"<me/{name}>" for name in names]


def test_an_error_names_the_request_before_any_step_runs(generator):
    class Missing(dict):
        def get(self, token):
            raise UserError(f"There is no concept {token}.", "Train it.")

    steps = []
    good, deep = request("a tree"), request("a tree", clip_skip=12)
    with pytest.raises(UserError) as error:
        list(generator.generate_many([good, good, deep], lambda done, total: steps.append(done)))
    assert str(error.value).startswith("Request 3 of 3: clip_skip must be at most")
    with pytest.raises(UserError) as error:
        list(generator.with_concepts(Missing()).generate_many([good, request("<me/fox>")]))
    assert str(error.value) == "Request 2 of 2: There is no concept <me/fox>.\nTrain it."
    with pytest.raises(UserError, match=r"^There is no concept"):
        list(generator.with_concepts(Missing()).generate_many([request("<me/fox>")]))
    assert not steps and not list(generator.generate_many([]))


def test_an_interrupted_batch_leaves_no_lora_hooks(generator, tiny):
    requests = [request("<fox>"), request("<cat>")]
    with pytest.raises(Interrupted):
        list(generator.generate_many(requests, cancelled=lambda: True))
    assert not any(module._forward_hooks for module in tiny.unet.modules())


class Owned(dict):
    """Concepts of one owner, by token."""

    def get(self, token):
        return self[str(token)]


def test_the_same_token_selects_each_owners_own_concept(generator, tiny):
    shelf = shelf_of(tiny, rows=2)
    owners = [
        Owned({"<me/duck>": replace(shelf[name], token=Token("me", "duck", 1))}) for name in ("fox", "cat", "bob")
    ]
    requests = [request(f"a <me/duck> {i}", seed=i // 2, num_images=1 + i % 2) for i in range(6)]
    sources = [owners[i % 3] for i in range(6)]
    images, shown = [[] for _ in requests], []

    def show(indices, pictures):
        shown.append((indices, len(pictures)))

    for index, image in generator.generate_many(requests, preview=show, sources=sources):
        images[index].append(image)
    for i, of_request in enumerate(images):
        alone = list(Generator(tiny, sources[i]).generate(requests[i]))
        assert len(of_request) == len(alone)
        for ours, expected in zip(of_request, alone, strict=True):
            assert np.abs(pixels([ours])[0] - pixels([expected])[0]).max() <= 1
            assert ours.recipe.model_copy(update={"batch": 1, "place": 0}) == expected.recipe.model_copy(
                update={"batch": 1, "place": 0}
            )
    assert all(len(indices) == count for indices, count in shown)


def test_equal_loras_with_other_trigger_words_stay_distinct(generator, tiny):
    """Two owners' <me/ink>: the same LoRA, but other trigger words on the card."""
    ink = shelf_of(tiny)["ink"]
    owners = [
        Owned({"<me/ink>": replace(ink, card=ink.card.model_copy(update={"trigger_words": (word,)}))})
        for word in ("a red ball", "a blue bird")
    ]
    images = dict(generator.generate_many([request("<me/ink>")] * 2, sources=owners))
    for index, source in enumerate(owners):
        [alone] = Generator(tiny, source).generate(request("<me/ink>"))
        assert np.abs(pixels([images[index]])[0] - pixels([alone])[0]).max() <= 1
    assert not np.array_equal(*pixels([images[0], images[1]]))
