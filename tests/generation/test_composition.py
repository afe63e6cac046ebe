"""Several subjects in one image: who is generated from which words, where, and how the parts are joined."""

import importlib
import itertools
import re

import numpy as np
import pytest
import torch

from sdpersonal.concepts.card import Card
from sdpersonal.concepts.concept import Concept
from sdpersonal.config import GenerateRequest
from sdpersonal.config.scheduler_table import SCHEDULERS
from sdpersonal.errors import Interrupted, UserError
from sdpersonal.generation import Generator, previews
from sdpersonal.generation.composition import (
    Box,
    SharedBackground,
    box_of,
    join,
    split_subjects,
    token_positions,
)
from sdpersonal.generation.prompt_resolution import PromptResolver
from sdpersonal.image_metadata import Recipe, read_recipe
from sdpersonal.image_metadata.read_infotext import parse_infotext
from sdpersonal.image_metadata.write_infotext import format_infotext
from sdpersonal.models import Segment, load_base
from sdpersonal.models.attention_maps import AttentionMaps
from sdpersonal.models.offload import OffloadPlan, bytes_per_step
from sdpersonal.models.schedulers import NoiseSchedule
from sdpersonal.prompts import Region, Token, parse
from support.mixing import Shelf, random_lora, resolved, shelf_of
from support.narrow import save_narrow

LEFT, RIGHT = (0, 0, 0.5, 1), (0.5, 0, 1, 1)
UPPER, LOWER = (0, 0, 1, 0.5), (0, 0.5, 1, 1)


# --- words and places -------------------------------------------------------------------------------------------------


def subjects(text):
    """(words, region) of each subject."""
    prompt = parse(text)
    parts = split_subjects(resolved(text))
    for part in parts:
        assert part.prompt.concepts.keys() == {mention.token for mention in part.prompt.prompt.mentions}
        assert part.prompt.references[part.index] in prompt.pieces
    return [(part.prompt.prompt.text.strip(), tuple(vars(part.region).values())) for part in parts]


COMPOSED = [
    ("a photo of <fox> and <cat> at sea", [("a photo of <fox> at sea", LEFT), ("a photo of <cat> at sea", RIGHT)]),
    ("<fox> next to a <cat>", [("<fox>", LEFT), ("<cat>", RIGHT)]),
    ("a <fox> in a hat and a <cat> at sea", [("a <fox> in a hat at sea", LEFT), ("a <cat> at sea", RIGHT)]),
    ("a <fox> on top of the <cat>", [("a <fox>", UPPER), ("a <cat>", LOWER)]),
    ("<fox> beneath <cat>", [("<fox>", LOWER), ("<cat>", UPPER)]),
    ("<fox:at=right>, <cat:at=left>", [("<fox:at=right>", RIGHT), ("<cat:at=left>", LEFT)]),
    ("<fox:box=0.1,0.2,0.3,0.4> <cat>", [("<fox:box=0.1,0.2,0.3,0.4>", (0.1, 0.2, 0.3, 0.4)), ("<cat>", RIGHT)]),
    ("<fox:at=bottom-right> and <cat>", [("<fox:at=bottom-right>", (0.5, 0.5, 1, 1)), ("<cat>", LEFT)]),
    ("a <fox:at=top> at sea", [("a <fox:at=top> at sea", UPPER)]),
    ("<fox:at=left> and <fox:at=right>", [("<fox:at=left>", LEFT), ("<fox:at=right>", RIGHT)]),
    ("<fox> by <ink> and <cat>", [("<fox> by <ink>", LEFT), ("by <ink> <cat>", RIGHT)]),
    ("<fox> and <cat> by <ink>", [("<fox> by <ink>", LEFT), ("<cat> by <ink>", RIGHT)]),
    ("(<fox> and <cat>:1.2) BREAK at sea", [("(<fox>:1.2) BREAK at sea", LEFT), ("(<cat>:1.2) BREAK at sea", RIGHT)]),
    ("<fox+ink> and <cat>", [("<fox+ink>", LEFT), ("<cat>", RIGHT)]),
    ("<fox:0.5> and <cat:0>", [("<fox:0.5>", LEFT), ("<cat:0>", RIGHT)]),
]


@pytest.mark.parametrize(("text", "parts"), COMPOSED, ids=[text for text, _ in COMPOSED])
def test_each_subject_gets_its_own_prompt_and_region(text, parts):
    assert subjects(text) == parts


def test_three_subjects_get_regions_side_by_side():
    parts = subjects("a <fox>, a <cat>, and a <bob> at night, in the style of <ink>")
    assert [words for words, _ in parts] == [f"a <{n}> at night, in the style of <ink>" for n in ("fox", "cat", "bob")]
    edges = [(region[0], region[2]) for _, region in parts]
    assert np.allclose(edges, [(0, 1 / 3), (1 / 3, 2 / 3), (2 / 3, 1)])


@pytest.mark.parametrize(
    "text",
    [
        "a tree",
        "<fox>",
        "<fox> by <ink>",
        "<ink> <wash>",
        "<fox> and <fox:0.5>",
        "<fox+cat>",
        "<fox@0-0.5> <cat@0.5-1>",
    ],
)
def test_prompts_without_several_subjects_are_not_composed(text):
    assert subjects(text) == []


def test_boxes_stay_inside_the_image_for_any_region():
    edges = (0.0, 0.001, 0.3, 0.5, 0.999, 1.0)
    spans = [(a, b) for a, b in itertools.product(edges, repeat=2) if a < b]
    for (left, right), (top, bottom), size in itertools.product(
        spans, spans, [(64, 64), (72, 200), (2048, 64), (520, 392)]
    ):
        box = box_of(Region(left, top, right, bottom), size)
        assert box.left >= 0 and box.top >= 0 and 8 <= box.side <= min(size)
        assert box.left + box.side <= size[0] and box.top + box.side <= size[1]
    assert box_of(Region(0, 0, 1, 1), (64, 64)) == Box(0, 0, 64)


# --- joining ----------------------------------------------------------------------------------------------------------


def colour(*rgb, side=64):
    return np.broadcast_to(np.array(rgb, np.uint8), (side, side, 3)).copy()


def disc(side=16, radius=0.5):
    y, x = (torch.linspace(-1, 1, side) for _ in range(2))
    return (y[:, None] ** 2 + x**2 < radius**2).float()[None]


@pytest.mark.parametrize("size", [(64, 64), (96, 72), (200, 64), (65, 131), (8, 8)])
def test_joining_images_of_one_colour_keeps_the_colour(size):
    boxes = [box_of(Region(*LEFT), size), box_of(Region(*RIGHT), size)]
    for masks in (torch.zeros(2, 1, 8, 8), torch.ones(2, 1, 8, 8), torch.stack([disc(), disc()])):
        joined = join([colour(200, 100, 50)] * 2, masks, boxes, size)
        assert joined.shape == (size[1], size[0], 3) and joined.dtype == np.uint8
        assert np.abs(joined.astype(int) - (200, 100, 50)).max() <= 1


def test_join_pastes_subjects_onto_the_background():
    red, blue = colour(0, 255, 0), colour(0, 255, 0)
    middle = disc(64, 0.6)[0].bool().numpy()
    red[middle], blue[middle] = (255, 0, 0), (0, 0, 255)
    boxes = [Box(0, 16, 40), Box(56, 16, 40)]
    joined = join([red, blue], torch.stack([disc(64, 0.6)] * 2), boxes, (96, 64)).astype(int)
    assert np.abs(joined[36, 20] - (255, 0, 0)).max() <= 1 and np.abs(joined[36, 76] - (0, 0, 255)).max() <= 1
    assert np.abs(joined[:, 46:50] - (0, 255, 0)).max() <= 40 and np.abs(joined[0] - (0, 255, 0)).max() <= 40
    later_first = join([blue, red], torch.stack([disc(64, 0.6)] * 2), boxes[::-1], (96, 64)).astype(int)
    assert np.abs(joined - later_first).max() <= 1  # boxes apart: the order does not matter


def test_joining_one_full_size_subject_returns_its_image():
    """The border of the image is no seam."""
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    assert np.abs(join([image], disc(64)[None], [Box(0, 0, 64)], (64, 64)).astype(int) - image).max() <= 1


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_prediction_of_inverts_predict_x0(tiny, kind):
    schedule = NoiseSchedule(tiny.schedule.alphas_cumprod, kind)
    x, x0 = (torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(2))
    t = torch.tensor([1, 300, 700, 950])
    torch.testing.assert_close(schedule.predict_x0(x, schedule.prediction_of(x, x0, t), t), x0, atol=1e-3, rtol=1e-3)
    noise = torch.randn(4, 4, 8, 8)
    noisy = schedule.add_noise(x0, noise, t)
    torch.testing.assert_close(
        schedule.prediction_of(noisy, x0, t), schedule.target(x0, noise, t), atol=1e-3, rtol=1e-3
    )


# --- where a subject is -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sd1(tmp_path_factory):
    return load_base(str(save_narrow("sd1", tmp_path_factory.mktemp("composition") / "model")), "cpu")


@pytest.fixture(scope="module")
def shelf(sd1):
    return shelf_of(sd1, rows=2)


def positions(base, concepts, text, index=0):
    return token_positions(base, PromptResolver(base, concepts).resolve(text), index)


def test_token_positions_are_those_of_the_subjects_vectors(sd1, shelf):
    assert positions(sd1, shelf, "<fox> at sea") == [1, 2]  # after the start of the text
    assert positions(sd1, shelf, "a <cat>, (a <fox:0.3>:1.4)", 1) == [6, 7]
    assert positions(sd1, shelf, "<cat+fox> <fox>", 1) == [3, 4]  # a blend of equally many is as long as one
    assert positions(sd1, shelf, "a tree BREAK a <fox>") == [79, 80]
    assert positions(sd1, shelf, "a " + "tree, " * 40 + "<fox>") == [77 + 1 + n for n in (6, 7)]
    words = shelf_of(sd1)
    assert positions(sd1, words, "a <fox> at sea") == [2 + i for i in range(len(sd1.encoders["clip_l"].ids("fox")))]
    words["fox"] = Concept(Token("me", "fox"), Card(base="sd1"), {}, words["fox"].lora)
    assert positions(sd1, words, "a <fox> at sea") == []


def test_attention_maps_match_diffusers_scores_at_the_positions(sd1):
    """Against diffusers' own attention scores, of the layers of at most half the latents' side."""
    rng = torch.Generator().manual_seed(0)
    noisy, t = torch.randn(3, *sd1.latent_shape(64, 64), generator=rng), torch.full((3,), 500)
    conditioning = sd1.encode_captions([["a duck"], ["a red cat"], ["snow"]])
    scores = []

    def record(layer, args, options):
        query, key = layer.to_q(args[0]), layer.to_k(options["encoder_hidden_states"])
        split = layer.get_attention_scores(layer.head_to_batch_dim(query), layer.head_to_batch_dim(key))
        if split.shape[1] <= 16:  # 4 x 4 of 8 x 8
            scores.append(split.unflatten(0, (3, -1)).mean(1).unflatten(1, (4, 4)))  # (rows, 4, 4, tokens)

    maps = AttentionMaps(sd1, {1: [2, 3], 2: [1], 0: []}, (8, 8))
    with torch.no_grad(), maps.recording():
        plain = sd1.predict(noisy, t, conditioning)
    ours = maps.finish_step()
    layers = [module for name, module in sd1.unet.named_modules() if name.endswith("attn2")]
    hooks = [layer.register_forward_pre_hook(record, with_kwargs=True) for layer in layers]
    with torch.no_grad():
        assert torch.equal(sd1.predict(noisy, t, conditioning), plain)  # recording changes nothing
    for hook in hooks:
        hook.remove()
    assert scores and not any(layer._forward_pre_hooks for layer in layers)
    mean = torch.stack(scores).mean(0)
    for i, (row, places) in enumerate([(1, [2, 3]), (2, [1])]):
        share = torch.nn.functional.interpolate(mean[row, ..., places].sum(-1)[None, None], (8, 8), mode="bilinear")
        torch.testing.assert_close(
            ours[i : i + 1], (share - share.min()) / (share.max() - share.min()), atol=1e-3, rtol=0
        )
    assert ours[2, 0, 0, 0] == 0 and ours[2, 0, 3:5, 3:5].min() > 0.9  # nothing to find: the middle


# --- images -----------------------------------------------------------------------------------------------------------

TWO = "a <fox> and a <cat> at sea"


def generate(base, concepts, prompt=TWO, progress=None, **fields):
    request = GenerateRequest(prompt=prompt, **({"num_images": 1, "steps": 2, "seed": 3, "size": "64x64"} | fields))
    return list(Generator(base, concepts).generate(request, *([progress] if progress else [])))


def pixels(*args, **fields):
    return [np.asarray(image.image).astype(int) for image in generate(*args, **fields)]


def plain_mix(base, concepts, words, mix, negative, seed, steps, g, side):
    """The image as former versions made it: all LoRAs and words in one prediction, in a loop of its own."""
    scheduler, noise = base.make_scheduler(), torch.Generator().manual_seed(seed)
    scheduler.set_timesteps(steps)
    with torch.no_grad(), base.adapters.active([(concepts[name].lora, strength) for name, strength in mix]):
        segments = [
            Segment(
                {key: torch.from_numpy(v) for key, v in concepts[part[1:-1]].vectors.items()} if "<" in part else part
            )
            for part in re.split(r"(<\w+>)", words)
        ]
        rows = torch.cat([base.encode_prompt(s).prompt_embeds for s in ([Segment(negative)], segments)])
        latents = torch.randn(1, *base.latent_shape(side, side), generator=noise) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            x = scheduler.scale_model_input(latents, t)
            without, positive = base.unet(torch.cat([x, x]), t.expand(2), rows).sample.chunk(2)
            latents = scheduler.step(without + g * (positive - without), t, latents).prev_sample
        return base.decode(latents)[0]


@pytest.mark.parametrize("name", ["tiny", "sd1"])
def test_without_composition_one_prediction_mixes_all_concepts(name, request):
    base = request.getfixturevalue(name)
    concepts = shelf_of(base, rows=2)
    fields = {"negative": "snow", "guidance": 4, "rescale": 0, "steps": 3, "seed": 7}
    for prompt, mix in [("a <fox> and a <cat>", ("fox", "cat")), ("a <fox> by <ink>", ("fox", "ink"))]:
        [ours] = pixels(base, concepts, prompt, compose=False, **fields)
        theirs = plain_mix(base, concepts, prompt, [(n, 1.0) for n in mix], "snow", seed=7, steps=3, g=4, side=64)
        assert np.array_equal(ours, theirs)
        [composed] = pixels(base, concepts, prompt, **fields)
        assert np.abs(composed - ours).max() > 3


@pytest.mark.parametrize("prompt", ["a tree", "a <fox:0.7> at sea", "a tree by <ink>", "<fox@0-0.5> <cat@0.5-1>"])
def test_compose_does_not_change_prompts_with_one_concept_at_a_time(sd1, shelf, prompt):
    assert np.array_equal(pixels(sd1, shelf, prompt), pixels(sd1, shelf, prompt, compose=False))


def test_the_recipe_reproduces_the_image(sd1, shelf):
    for prompt in (TWO, "a <fox> by <ink>", "a <fox:at=left> by <ink:guidance=3@0-0.5> and a <cat>"):
        for compose in (True, False):
            made = generate(sd1, shelf, prompt, num_images=3, compose=compose)
            recipe = read_recipe(made[1].to_png())
            assert isinstance(recipe, Recipe) and recipe.compose == compose and recipe.prompt == prompt
            again = list(Generator(sd1, shelf).generate(recipe.batch_request()))
            assert np.array_equal(again[recipe.place], made[1]) and len(again) == recipe.batch


def test_former_recipes_generate_without_composition(sd1, shelf):
    [image] = generate(sd1, shelf)
    values = image.recipe.model_dump()
    del values["compose"]
    former = Recipe(**values)
    assert former.compose is False and former.request().compose is False and image.recipe.request().compose is True
    [again] = Generator(sd1, shelf).generate(former.request())
    assert np.array_equal(again, generate(sd1, shelf, compose=False)[0])
    assert "Compose: False" in format_infotext(former) and "Compose" not in format_infotext(image.recipe)
    assert parse_infotext(format_infotext(former)).request(prompt="x").compose is False
    assert parse_infotext(format_infotext(image.recipe)).request(prompt="x").compose is True


def test_subject_order_changes_only_the_layout(sd1, shelf, monkeypatch):
    decoded, real = [], sd1.decode
    monkeypatch.setattr(sd1, "decode", lambda latents: decoded.append(latents) or real(latents))
    first = pixels(sd1, shelf, "a photo of <fox> and <cat> at sea")
    second = pixels(sd1, shelf, "a photo of <cat> and <fox> at sea")
    assert np.array_equal(first, pixels(sd1, shelf, "a photo of <fox> and <cat> at sea"))
    assert np.abs(first[0] - second[0]).max() > 3
    fox, cat, cat_again, fox_again, *_ = decoded
    torch.testing.assert_close(fox, fox_again, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(cat, cat_again, atol=1e-3, rtol=1e-3)


def test_an_image_does_not_depend_on_its_batch(sd1, shelf):
    prompt = "a <fox> by <ink> and a <cat>"
    together = generate(sd1, shelf, prompt, num_images=3, seed=10)
    assert together[0].recipe.batch > 1
    for i in range(3):
        [alone] = pixels(sd1, shelf, prompt, seed=10 + i)
        assert np.abs(alone - np.asarray(together[i])).max() <= 2  # kernels round differently in another batch


def test_subjects_share_the_background_in_early_steps(sd1, shelf, monkeypatch):
    """Where the masks are 0, x_0 of both subjects is the mean of both."""
    maps = AttentionMaps(sd1, {}, (8, 8))
    mask = torch.zeros(2, 1, 8, 8)
    mask[0, ..., :4], mask[1, ..., 6:] = 1, 1
    monkeypatch.setattr(maps, "finish_step", lambda: mask)
    background, x0 = SharedBackground(maps, 2), torch.randn(2, 4, 8, 8)
    edited = background(x0, 0.1)
    torch.testing.assert_close(edited[..., 4:6], x0.mean(0, keepdim=True).expand_as(x0)[..., 4:6], atol=1e-2, rtol=1e-2)
    assert torch.equal(edited[0, ..., :4], x0[0, ..., :4]) and torch.equal(edited[1, ..., 6:], x0[1, ..., 6:])
    torch.testing.assert_close(edited[1, ..., :4], x0[1, ..., :4], atol=1e-2, rtol=1e-2)  # only its own image knows
    assert background(x0, 0.9) is None and torch.equal(background.masks, mask)


OFTEN = {"Euler a", "Heun", "PLMS", "DPM++ 2M Karras", "LCM"}  # with noise of its own, twice a step, with a memory, ...


@pytest.mark.parametrize(
    "scheduler",
    [
        pytest.param(scheduler, marks=() if scheduler.name in OFTEN else pytest.mark.thorough, id=scheduler.name)
        for scheduler in SCHEDULERS
    ],
)
def test_every_scheduler_supports_composition(sd1, shelf, scheduler):
    counts = []
    fields = {"steps": 3, "guidance": 1, "scheduler": scheduler.name}
    [image] = generate(sd1, shelf, progress=lambda done, total: counts.append((done, total)), **fields)
    number = scheduler.predictions(3)
    assert counts == [(i, number) for i in range(1, number + 1)]
    assert np.asarray(image).std() > 1 and image.size == (64, 64)


@pytest.mark.parametrize(
    "fields",
    [
        {"guidance": 1},
        {"fast": "<me/lcm>"},
        {"hires_scale": 1.5},
        {"size": "128x72"},
        {"size": "72x200", "prompt": "a <fox> above a <cat:box=0,0.9,0.1,1>"},
        {"rescale": 0.7},
        {"clip_skip": 2},
        {"variation_strength": 0.3},
        {"steps": 1},
        {"prompt": "a <fox> " + "very " * 90 + "and a <cat> by <ink> BREAK at sea"},
        {"negative": "snow " * 90},
        {"negative": "<bob>"},
        {"prompt": "(a <fox:0.5>:1.3) and [a <cat+bob>]"},
        {"prompt": "<fox> <cat> <bob> by <ink> and <wash>", "num_images": 2},
        {"prompt": "a <fox:guidance=2> and a <cat> by <ink:0.8:guidance=1@0.5-1>"},
        {"prompt": "a <fox:0> and a <cat:ramp=0-1> by <ink:guidance=0@0-0.4>"},
        {"prompt": "a <fox:at=center> at sea"},
    ],
    ids=str,
)
def test_composed_images_with_other_settings_are_reproducible(sd1, fields):
    concepts = shelf_of(sd1, rows=2)
    concepts["lcm"] = Concept(Token("me", "lcm"), Card(base="sd1", title="LCM"), {}, random_lora(sd1, 9))
    made = generate(sd1, concepts, **fields)
    width, height = map(int, fields.get("size", "64x64").split("x"))
    scale = fields.get("hires_scale", 1)
    for image in made:
        assert image.size == (width * scale, height * scale) and np.asarray(image).std() > 1
        again = list(Generator(sd1, concepts).generate(image.recipe.batch_request()))
        assert np.array_equal(again[image.recipe.place], image)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in sd1.unet.modules())


def test_a_subject_without_embeddings_is_placed_in_the_middle(sd1):
    """Only a LoRA: no position of the prompt is its own."""
    concepts = shelf_of(sd1)
    for name in ("fox", "cat"):
        concepts[name] = Concept(Token("me", name), Card(base="sd1"), {}, concepts[name].lora)
    [both] = pixels(sd1, concepts, "<fox> <cat>")
    [none] = pixels(sd1, Shelf(concepts, fox=concepts["bob"]), "<fox> <cat>")
    assert np.abs(both[20:44, :32] - none[20:44, :32]).max() > 3


@pytest.mark.parametrize("prompt", [TWO, "a <fox> by <ink>"])
def test_nan_images_are_refused_with_a_message(sd1, prompt):
    with pytest.raises(UserError, match="The generated image is NaN"):
        generate(sd1, shelf_of(sd1, rows=2, size=1e30), prompt)


def test_one_template_generates_composed_and_plain_prompts(sd1, shelf):
    counts = []
    template = "{a tree|a <fox>|a <fox> and a <cat>|a <fox> by <ink>|a <fox:at=left>}"
    fields = {"all_combinations": True, "hires_scale": 1.5, "strength": 0.5, "steps": 2, "num_images": 2}
    made = generate(sd1, shelf, template, lambda *count: counts.append(count), **fields)
    total = sum(2 + (prompt not in (2, 4)) for prompt in range(5))  # a composition has no second pass
    assert counts == [(i, total) for i in range(1, total + 1)]
    assert [image.recipe.prompt for image in made[::2]] == template[1:-1].split("|")
    for image in made:
        alone = pixels(sd1, shelf, image.recipe.prompt, **(fields | {"num_images": 2, "all_combinations": False}))
        assert np.array_equal(alone[image.recipe.seed - 3], image)


def test_previews_show_the_layout_and_a_stop_leaves_no_hooks(sd1, shelf, monkeypatch):
    monkeypatch.setattr(previews, "_FIRST_AFTER", -1)
    monkeypatch.setattr(previews, "_TIME_SHARE", 1e9)
    shown = []
    request = GenerateRequest(prompt=TWO, num_images=2, steps=3, size="128x64")
    generator = Generator(sd1, shelf)
    list(generator.generate(request, preview=shown.append))
    assert len(shown) == 3 and {image.size for images in shown for image in images} == {(128, 64)}
    assert all(len(images) == 2 for images in shown)
    left, right = (np.asarray(shown[-1][0].crop(box), int) for box in ((0, 0, 40, 64), (88, 0, 128, 64)))
    assert np.abs(left.mean((0, 1)) - right.mean((0, 1))).max() > 0
    stops = iter([False, True])
    with pytest.raises(Interrupted):
        list(generator.generate(request, cancelled=lambda: next(stops)))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in sd1.unet.modules())


def test_an_init_image_disables_composition(sd1, shelf, tmp_path):
    """Nothing is composed then; styles have their guidance."""
    path = tmp_path / "start.png"
    generate(sd1, shelf, "a tree")[0].save(path)
    fields = {"init_image": path, "strength": 0.8, "steps": 4}
    composed, plain = (pixels(sd1, shelf, TWO, compose=compose, **fields) for compose in (True, False))
    assert np.array_equal(composed, plain)
    styled, mixed = (pixels(sd1, shelf, "a <fox> by <ink>", compose=compose, **fields) for compose in (True, False))
    assert np.abs(styled[0] - mixed[0]).max() > 3


def test_a_batch_has_at_most_the_planned_predictions(sd1, shelf, monkeypatch):
    sizes, plans = [], []
    real = sd1.predict
    monkeypatch.setattr(sd1, "predict", lambda x, *rest: sizes.append(len(x)) or real(x, *rest))
    module = importlib.import_module("sdpersonal.generation.generator")
    plan = OffloadPlan("all", False, 3)
    monkeypatch.setattr(module, "plan_offload", lambda base, size, most, beside: plans.append((size, beside)) or plan)
    for prompt in ("a tree", "a <fox> by <ink>", TWO, "a <fox> and a <cat> by <ink>"):
        generate(sd1, shelf, prompt, num_images=4, steps=1, size="72x72")
    assert sizes == [6, 2, 4, 4, 4, 4, 4, 4, 4, 4, 8, 8, 8, 8]
    assert [size for size, _ in plans] == [(72, 72)] * 4 and plans[0][1] == 0
    step = bytes_per_step(sd1, (72, 72)) / 2
    loras = [sd1.adapters.memory_bytes(shelf[n].lora for n in names) for names in (("fox", "ink"), ("fox", "cat"))]
    assert [beside for _, beside in plans[1:3]] == [loras[0] + 2 * step, loras[1] + 2 * step]
