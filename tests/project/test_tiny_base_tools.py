"""How the built-in base is made: scenes are functions of (seed, index), trainings survive a kill, kept out is out."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tools.tiny_base import (
    autoencoder,
    captions,
    eyes,
    feed,
    figures,
    filters,
    learning,
    muon,
    places,
    pool,
    presets,
    render,
    runs,
    scenes,
    stages,
    unet,
)
from tools.tiny_base import world as worlds
from tools.tiny_base.build_context import BuildContext


@pytest.fixture
def world(tmp_path):
    """Three things in two looks: a disc in six colours."""
    line = np.linspace(-1, 1, 32)
    disc = (np.hypot(*np.meshgrid(line, line)) < 0.95).astype(np.uint8) * 255
    sprites = np.zeros((6, 32, 32, 4), np.uint8)
    for i in range(6):
        sprites[i, ..., 3] = disc
        sprites[i, ..., i % 3] = disc // (1 + i // 3)
    made = worlds.World(("a", "b", "c"), ("apple", "boat", "cat"), ("3d", "flat"), 3, tmp_path, tmp_path)
    made.__dict__["sprites"] = sprites
    return made


def test_a_scene_is_a_function_of_seed_and_index(world):
    mix = scenes.Mix()
    first = [scenes.draw_scene(world, 5, i, mix) for i in range(40)]
    assert first == [scenes.draw_scene(world, 5, i, mix) for i in range(40)]
    assert scenes.draw_scene(world, 6, 0, mix) != first[0]
    assert len({s.caption for s in first}) > 25


def test_captions_name_the_object_in_the_scene(world):
    for i in range(200):
        scene = scenes.draw_scene(world, 7, i, scenes.Mix())
        noun = world.names[scene.name]
        assert noun in scene.caption or captions.plural(noun) in scene.caption


def test_batches_depend_only_on_their_step(world):
    batches = feed.SceneBatches(world, 9, scenes.Mix(), 6, duels=True)
    some = feed.iterate_batches(batches, first=2)
    later = feed.iterate_batches(batches, first=3, workers=1)
    next(some)
    drawn, packed = next(some)
    assert drawn == next(later)[0] == batches[3][0]
    assert len({scene.background for scene in drawn}) == 1  # a duel
    assert (packed["kinds"] == packed["kinds"][0]).all()


@pytest.mark.parametrize(
    ("noun", "one", "many"),
    [("cat", "a cat", "cats"), ("apple", "an apple", "apples"),
     ("glass of wine", "a glass of wine", "glasses of wine"),
     ("fries", "fries", "fries"), ("strawberry", "a strawberry", "strawberries"),
     ("octopus", "an octopus", "octopuses"),
     ("mouse", "a mouse", "mice"), ("umbrella", "an umbrella", "umbrellas"), ("unicorn", "a unicorn", "unicorns"),
     ("boy", "a boy", "boys"), ("bread", "bread", "pieces of bread"), ("bus", "a bus", "buses")],
)  # fmt: skip
def test_nouns_get_the_right_article_and_plural(noun, one, many):
    assert captions.with_article(noun) == one
    assert captions.plural(noun) == many


def test_held_out_names_and_looks_are_not_used_for_training():
    names, looks = worlds.kept_out()
    assert len(names) >= 48
    assert looks
    assert not set(names) & set(worlds.core_names())
    assert len(worlds.core_names()) >= 160 and len(worlds.starred_positions()) == 100
    for preset in presets.PRESETS.values():
        assert not set(looks) & {*preset.looks, *preset.clip_looks}


def test_every_background_has_a_painter_and_a_caption():
    assert len(places.PAINTERS) == len(captions.BACKGROUNDS)
    assert [p.__name__ for p in places.PAINTERS] == list(captions.BACKGROUNDS)
    backs = torch.rand(len(captions.BACKGROUNDS), 10)
    painted = places.paint(torch.arange(len(captions.BACKGROUNDS)), backs, 32, places.noise_bank("cpu"))
    assert painted.min() >= 0 and painted.max() <= 1
    assert painted.isfinite().all()


def test_the_renderer_places_objects_as_the_scene_specifies(world):
    back = scenes.Background("plain", (1.0, 1.0, 1.0), (0, 0, 0), (0, 0, 0, 0))
    thing = scenes.Thing(sprite=0, x=-0.25, y=0.25, size=0.5)
    scene = scenes.Scene((thing,), back, "", 0, 0, True)
    renderer = render.Renderer(world.sprites, size=64)
    picture, cover = renderer.with_cover(scenes.pack([scene]))
    assert torch.allclose(picture[0, :, 48, 16], torch.tensor([1.0, -1.0, -1.0]), atol=0.02)  # red, low on the left
    assert (picture[0, :, 16, 48] == 1).all()  # white elsewhere
    assert cover[0, 0, 48, 16] > 0.99 and cover[0, 0, 16, 48] == 0


def test_a_scene_renders_the_same_alone_and_in_a_batch(world):
    drawn = [scenes.draw_scene(world, 3, i, scenes.Mix()) for i in range(12)]
    renderer = render.Renderer(world.sprites, size=32)
    together = render.render(renderer, drawn)
    alone = torch.cat([render.render(renderer, [scene]) for scene in drawn])
    assert torch.allclose(together, alone, atol=1e-5)


def test_the_initial_vae_encodes_thumbnails_and_balancing_preserves_images(world):
    torch.manual_seed(0)
    model = autoencoder.build().eval()
    renderer = render.Renderer(world.sprites)
    pictures = render.render(renderer, [scenes.draw_scene(world, 1, i, scenes.Mix(patterns=0)) for i in range(8)])
    with torch.no_grad():
        latents = model.encode(pictures).latent_dist.mean
        small = torch.nn.functional.avg_pool2d(pictures, 8)
        for channel in range(3):  # each of the first latents is a thumbnail in one colour
            pair = torch.stack([latents[:, channel].flatten(), small[:, channel].flatten()])
            assert torch.corrcoef(pair)[0, 1] > 0.9
        before = model.decode(latents).sample
        autoencoder.balance(model, world, renderer, count=64)
        after = model.encode(pictures).latent_dist
        assert torch.allclose(model.decode(after.mean).sample, before, atol=1e-3)
    scaled = after.mean * model.config.scaling_factor
    assert 0.7 < scaled.std() < 1.4


def test_an_interrupted_training_resumes_to_equal_weights(tmp_path):
    stage = presets.Stage(steps=6, minutes=5, batch=1, lr=0.1)

    def train(stop_after=None):
        model = torch.nn.Linear(2, 1)
        torch.nn.init.zeros_(model.weight), torch.nn.init.zeros_(model.bias)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        run = runs.Run(tmp_path, stage, {"model": model, "optimizer": optimizer}, save_minutes=0)
        for step in run.steps():
            if step == stop_after:
                return None
            model(torch.tensor([1.0, float(step)])).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return model.weight.detach().clone()

    straight = train()
    (tmp_path / "state.pt").unlink()
    assert train(stop_after=3) is None
    assert torch.equal(train(), straight)


def test_the_objective_is_zero_for_the_true_velocity():
    schedule = unet.scheduler()
    latents, noise = torch.randn(2, 4, 8, 16, 16)
    t = torch.tensor([0, 300, 700, 999])
    truth = schedule.get_velocity(latents, noise, t)

    class Oracle:
        def __call__(self, noisy, t, states):
            return type("Out", (), {"sample": truth})

    loss = unet.loss_of(Oracle(), schedule.alphas_cumprod, latents, noise, t, None, torch.ones(4, 1, 16, 16))
    assert loss < 1e-10
    assert schedule.alphas_cumprod[-1] < 1e-6  # zero terminal SNR


def test_the_pool_replaces_its_oldest_samples(world):
    class Text(torch.nn.Module):
        config = type("C", (), {"hidden_size": 4})

        def forward(self, input_ids):
            return type("Out", (), {"last_hidden_state": torch.zeros(len(input_ids), 77, 4)})

    class Words:
        def __call__(self, texts, **_):
            return type("Ids", (), {"input_ids": torch.zeros(len(texts), 77, dtype=torch.long)})

    source = feed.SceneBatches(world, 300, scenes.Mix(), 4)
    some = pool.Pool(source, Words(), autoencoder.build().eval(), Text(), 6, runs.Machine())
    some.add()
    latent = some.latents[3].clone()
    some.add()
    assert len(some) == 6 and some.state_dict() == {"first": 2}
    assert torch.equal(some.latents[3], latent)
    latents, states, weights = some.batch(step=1, count=5)
    assert latents.shape == (5, 8, 16, 16) and states.shape == (5, 77, 4) and weights.shape == (5, 1, 16, 16)
    assert torch.equal(latents, some.batch(step=1, count=5)[0])


def test_cyanotype_photos_are_never_warm_and_are_reproducible():
    from PIL import Image

    from tools.tiny_base import photos

    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    print_ = np.asarray(photos.cyanotype(photo, 1), np.float32)
    assert (print_[..., 2] >= print_[..., 0] - 3).all()  # never warm
    assert np.array_equal(print_, np.asarray(photos.cyanotype(photo, 1), np.float32))


def test_the_example_photos_exist():
    folder = Path(__file__).parents[2] / "examples" / "photos"
    for name in ("teddy-bear", "cyanotype"):
        assert len(list((folder / name).glob("*.jpg"))) == 5


def test_muon_updates_are_nearly_orthogonal_and_near_the_polar_factor():
    some = torch.randn(3, 12, 40, generator=torch.Generator().manual_seed(0))
    ours = muon.orthogonal(some).double().numpy()
    for update, matrix in zip(ours, some.double().numpy(), strict=True):
        u, _, v = np.linalg.svd(matrix, full_matrices=False)
        values = np.linalg.svd(update, compute_uv=False)
        assert values.min() > 0.6 and values.max() < 1.3
        assert (update * (u @ v)).sum() / np.linalg.norm(update) / np.linalg.norm(u @ v) > 0.98


def test_muon_optimizes_matrices_and_adamw_optimizes_vectors():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(8 * 36, 4, bias=False))
    adam, matrices = muon.split(model, 1e-3, apart=("2",))
    assert [p.shape for p in adam.param_groups[0]["params"]] == [(8,), (4, 288)]
    [weight] = matrices.param_groups[0]["params"]
    before = weight.detach().clone()
    model(torch.randn(2, 3, 8, 8)).square().mean().backward()
    matrices.step()
    change = (weight.detach() - before * (1 - 1e-3 * 0.01)).flatten(1).numpy() / (1e-3 * 0.2 * 27**0.5)
    values = np.linalg.svd(change, compute_uv=False)
    assert values.min() > 0.5 and values.max() < 1.3
    tall = torch.nn.Parameter(torch.randn(20, 5))
    tall.grad = torch.randn(20, 5)
    before = tall.detach().clone()
    muon.Muon([tall], lr=0.1, weight_decay=0.0).step()
    assert np.linalg.svd((tall.detach() - before).numpy() / (0.1 * 0.2 * 20**0.5), compute_uv=False).min() > 0.5


def two_named(caption):
    """The things in a caption of two, first and second, and where the first is: read from its words."""
    hows = {
        "on the left and": "left", "to the left of": "left", "next to": "left", "beside": "left", "and": "left",
        "on the right and": "right", "to the right of": "right",
        "on top of": "above", "above": "above", "under": "below", "below": "below",
    }  # fmt: skip
    words = re.sub(r"\b(an?|small|tiny|little|large|big|huge) ", "", caption)
    match = re.search(rf"(\w+) ({'|'.join(hows)}) (\w+)", words)
    return match[1], match[3], hows[match[2]]


def test_pairs_are_placed_as_their_captions_state(world):
    mix, seen = scenes.Mix(pairs=1, pair_sizes=0.5), set()
    for i in range(300):
        scene = scenes.draw_scene(world, 11, i, mix)
        first, second = scene.things
        a, b, where = two_named(scene.caption)
        assert (a, b) == (world.names[first.sprite % 3], world.names[second.sprite % 3]) and a != b
        assert b == world.names[scene.others[0]]
        across, down = second.x - first.x, second.y - first.y
        along = {"left": across, "right": -across, "above": down, "below": -down}[where]
        assert along > 0.37 * (first.size + second.size)  # they hardly overlap
        for thing in scene.things:
            assert max(abs(thing.x), abs(thing.y)) + thing.size / 2 < 0.62
        seen.add(where)
    assert seen == {"left", "right", "above", "below"}


def test_objects_captioned_as_small_are_smaller(world):
    for i in range(200):
        scene = scenes.draw_scene(world, 12, i, scenes.Mix(pairs=1, pair_sizes=1))
        a = two_named(scene.caption)[0]
        small = re.search(r"\b(small|tiny|little) (\w+)", scene.caption)
        large = re.search(r"\b(large|big|huge) (\w+)", scene.caption)
        first_is_smaller = small[2] == a if small else large[2] != a
        assert (scene.things[0].size < 0.75 * scene.things[1].size) == first_is_smaller
        assert bool(small) != bool(large)


def test_captions_name_three_different_objects_in_order(world):
    scene = scenes.draw_scene(world, 13, 0, scenes.Mix(trios=1))
    assert sorted({scene.name, *scene.others}) == [0, 1, 2]
    places = [scene.caption.index(world.names[name]) for name in (scene.name, *scene.others)]
    assert places == sorted(places)


@pytest.fixture
def filtered(world):
    """The same world with the looks that are filters."""
    made = replace(world, looks=("3d", "flat", *filters.FILTERS))
    made.__dict__["sprites"] = world.sprites
    return made


def test_filter_looks_are_captioned_and_use_sprites_of_the_first_look(filtered):
    shares = (0.0, 0.0, *[1 / len(filters.FILTERS)] * len(filters.FILTERS))
    for i in range(100):
        scene = scenes.draw_scene(filtered, 14, i, scenes.Mix(look_shares=shares))
        assert scene.filter in scene.caption and scene.filter == filtered.looks[scene.look]
        assert scene.things[0].sprite < 3
    assert scenes.single_thing_scene(filtered, 1, 0, "snow", 1, 0).filter == ""
    looks = {scenes.draw_scene(filtered, 15, i, scenes.Mix(look_shares=(0, 1, 0, 0, 0))).look for i in range(20)}
    assert looks == {1}


def test_a_filter_changes_only_its_scene_and_scales_with_the_size(filtered):
    plain = [scenes.single_thing_scene(filtered, 0, name, "beach", 3, name) for name in range(3)]
    renderer, small = render.Renderer(filtered.sprites), render.Renderer(filtered.sprites, size=64)
    untouched = render.render(renderer, plain)
    for name in filters.FILTERS:
        images = render.render(renderer, [plain[0], replace(plain[1], filter=name), plain[2]])
        assert torch.equal(images[[0, 2]], untouched[[0, 2]])
        assert (images[1] - untouched[1]).abs().mean() > 0.1
        assert images.abs().max() <= 1 and images.isfinite().all()
        alone = render.render(renderer, [replace(plain[1], filter=name)])
        assert torch.allclose(alone[0], images[1], atol=1e-5)
        half = render.render(small, [replace(plain[1], filter=name)])
        assert (torch.nn.functional.avg_pool2d(alone, 2) - half).abs().mean() < 0.12


def test_neon_images_are_dark_and_watercolour_images_are_light(filtered):
    scene = scenes.single_thing_scene(filtered, 0, 0, "beach", 3, 0)
    renderer = render.Renderer(filtered.sprites)
    neon, watercolour = render.render(renderer, [replace(scene, filter=n) for n in ("neon", "watercolour")])
    assert neon.median() < -0.6
    assert watercolour[:, 0].mean() > 0.85


def test_a_continued_base_starts_with_the_weights_of_the_original(world, tmp_path):
    preset = replace(
        presets.TRIAL,
        mix=scenes.Mix(),
        start=presets.CONTINUE.start,
        unet=presets.Stage(1, 5, 2, 0.0),
        pool=2,
        pool_start=2,
        refill=2,
    )
    context = BuildContext(tmp_path, preset, "cpu")
    context.__dict__["world"] = world
    stages.run("start", context)
    for stage in ("tokenizer", "clip", "clip-images", "autoencoder"):
        stages.run(stage, context)  # nothing is left to do in these
    stages.run("unet", context)
    shipped, made = (
        load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
        for folder in (preset.start, context.weights_folder)
    )
    assert shipped.keys() == made.keys()
    assert all(torch.equal(shipped[name], made[name]) for name in shipped)
    for part in ("text_encoder", "vae"):
        shipped, made = (
            load_file(next((folder / part).glob("*.safetensors"))) for folder in (preset.start, context.weights_folder)
        )
        assert all(torch.allclose(shipped[name], made[name], atol=1e-3) for name in shipped)


def test_a_deeper_unet_predicts_the_same_as_the_one_it_starts_from():
    torch.manual_seed(0)
    start, deeper = unet.build(blocks=(16, 32, 48), layers=1), unet.build(blocks=(16, 32, 48), layers=(2, 3, 1))
    unet.load_shallower(deeper, start)
    inputs = torch.randn(2, 8, 16, 16), torch.tensor([10, 900]), torch.randn(2, 77, 192)
    with torch.no_grad():
        torch.testing.assert_close(deeper(*inputs).sample, start(*inputs).sample)
    deeper(*inputs).sample.square().mean().backward()
    new = [p for name, p in deeper.named_parameters() if "down_blocks.1.resnets.2.conv2" in name]
    assert new and all(p.grad.abs().sum() > 0 for p in new)  # what was added learns


def test_edges_and_eyes_count_more_than_surfaces_and_these_more_than_backgrounds():
    pictures, cover = torch.zeros(1, 3, 128, 128), torch.zeros(1, 1, 128, 128)
    cover[..., 64:] = 1
    pictures[..., 90:94, 100:104] = -1  # an eye
    weights = pool.loss_weights(pictures, cover)[0, 0]
    assert weights[2, 2] == 0.5 and weights[2, 12] == 1.0
    assert weights[11, 12] == weights.max() > 1.3


def test_a_base_trained_from_scratch_copies_no_weights(tmp_path):
    stages.run("start", BuildContext(tmp_path, presets.TRIAL, "cpu"))
    assert not any(tmp_path.iterdir())


def test_both_objects_of_a_pair_must_be_recognized_in_separate_views():
    class RedOrBlue:
        """Names a view by the channel that is brightest in it: 0 red, 2 blue."""

        def __call__(self, images):
            return (images.mean((2, 3)),)

    red, blue = torch.tensor([1.0, 0, 0])[:, None, None], torch.tensor([0, 0, 1.0])[:, None, None]
    both, one = torch.zeros(2, 3, 50, 50)
    both[..., :20], both[..., 30:] = red, blue
    one[...] = red
    assert figures.named_in_views(RedOrBlue(), torch.stack([both, one]), [0, 0], [2, 2]).tolist() == [True, False]
    assert figures.named_in_views(RedOrBlue(), both[None], [2], [0]).tolist() == [True]
    assert figures.named_in_views(RedOrBlue(), both[None], [1], [0]).tolist() == [False]
    assert figures.named_in_views(RedOrBlue(), both[None], [1], [0], first_choices=3).tolist() == [True]


@pytest.fixture
def faces(tmp_path):
    """White bears with small black eyes, in two looks."""
    sprites = np.full((2, 100, 100, 4), 255, np.uint8)
    for x in eyes.FACES["bear"][:2]:
        sprites[:, 43:50, round(x) - 3 : round(x) + 4, :3] = 0
    made = worlds.World(("b",), ("bear",), ("3d", "flat"), 1, tmp_path, tmp_path)
    made.__dict__["sprites"] = sprites
    return eyes.FaceScenes(made)


def test_eyes_are_black_at_their_labelled_positions(faces):
    drawn = [faces.draw(1, i) for i in range(24)]
    images = faces.images([scene for scene, _ in drawn])
    assert {len(truth) for _, truth in drawn} == {0, 1, 2}
    for image, (_, truth) in zip(images, drawn, strict=True):
        for x, y in truth:
            assert image[:, int((y + 1) * 64), int((x + 1) * 64)].max() < -0.7
    assert all(len(faces.draw(1, i, whole=True)[1]) == 2 for i in range(24))


def test_erasing_an_eye_leaves_the_other_unchanged(faces):
    sprite = faces.world.sprites[0]
    left, right = sprite[:, :50, :3], sprite[:, 50:, :3]
    erased = eyes.erase(sprite, "bear", (0,))
    assert erased[:, :50, :3].min() == 255 and left.min() == 0
    assert (erased[:, 50:, :3] == right).all()


def test_eyes_are_counted_by_the_peaks_of_the_map():
    class Map:
        """Finds an eye where an image is bright in both of two rows and columns."""

        def __call__(self, images):
            return 20 * images[:, 0, ::2, ::2] - 10

    images = torch.zeros(3, 3, 128, 128)
    images[1:, 0, 40, 30] = images[2, 0, 40, 90] = 1.0
    images[1, 0, 40, 34] = 0.9  # beside a higher peak: the same eye
    assert eyes.count(Map(), images).tolist() == [0, 1, 2]


def trial(step, score, classifier):
    return {"step": step, "score": score, "CLIP": 0.5, "classifier": classifier}


def test_the_early_stopping_section_is_written_into_the_existing_page(tmp_path):
    """What is kept, by hand: the run of LoRA ends at its last step, since the loss was never measured."""
    lora = {"steps": 40, "measured": [], "trials": [trial(10, 0.5, 0.7), trial(20, 0.72, 0.6), trial(40, 0.8, 0.5)]}
    inversion = {"steps": 20, "measured": [], "trials": [trial(10, 0.0, 0.4), trial(20, 0.0, 0.3)]}
    runs = {"lora": {"fox": lora}, "textual-inversion": {"fox": inversion}}
    (tmp_path / "picks.json").write_text(json.dumps(runs))
    page = (learning.HERE / "learning.md").read_text()
    end = learning._section_range(page)[1]
    (tmp_path / "learning.md").write_text(page.replace("# How close", "# As it was"))
    for _ in range(2):
        learning.write_picks(tmp_path, tmp_path)
    text = (tmp_path / "learning.md").read_text()
    assert text.startswith("# As it was") and text.endswith(page[end:]) and "{picks}" not in text
    assert "| LoRA, fox | 40 | 40 | 40 | 0.800 | 0.800 | 0.800 at 40 | 100.0% | 0.500, 0.500, 0.700 at 10 |" in text
    assert "The best checkpoint of the first half has 90.0% of it (0 of 1 within 3 %)" in text
    assert "| textual inversion, fox | 20 | 20 | 20 | 0.000 | 0.000 | 0.000 at 10 | all 0 |" in text
    assert "In 1 of the runs no checkpoint scores more than 0" in text
