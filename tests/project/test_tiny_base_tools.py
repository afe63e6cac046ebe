"""How the built-in base is made: scenes are functions of (seed, index), trainings survive a kill, kept out is out."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tools.tiny_base import autoencoder, captions, feed, muon, places, pool, presets, render, runs, scenes, unet
from tools.tiny_base import world as worlds


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


def test_captions_name_what_is_drawn(world):
    for i in range(200):
        scene = scenes.draw_scene(world, 7, i, scenes.Mix())
        noun = world.names[scene.name]
        assert noun in scene.caption or captions.plural(noun) in scene.caption


def test_batches_are_functions_of_their_step_whoever_draws_them(world):
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
def test_articles_and_plurals(noun, one, many):
    assert captions.with_article(noun) == one
    assert captions.plural(noun) == many


def test_nothing_kept_out_is_in_the_core():
    names, looks = worlds.kept_out()
    assert len(names) >= 48
    assert looks
    assert not set(names) & set(worlds.core_names())
    assert len(worlds.core_names()) >= 160 and len(worlds.starred_positions()) == 100
    for preset in presets.PRESETS.values():
        assert not set(looks) & {*preset.looks, *preset.clip_looks}


def test_every_background_has_a_painter_and_words():
    assert len(places.PAINTERS) == len(captions.BACKGROUNDS)
    assert [p.__name__ for p in places.PAINTERS] == list(captions.BACKGROUNDS)
    backs = torch.rand(len(captions.BACKGROUNDS), 10)
    painted = places.paint(torch.arange(len(captions.BACKGROUNDS)), backs, 32, places.noise_bank("cpu"))
    assert painted.min() >= 0 and painted.max() <= 1
    assert painted.isfinite().all()


def test_the_renderer_puts_things_where_the_scene_says(world):
    back = scenes.Background("plain", (1.0, 1.0, 1.0), (0, 0, 0), (0, 0, 0, 0))
    thing = scenes.Thing(sprite=0, x=-0.25, y=0.25, size=0.5)
    scene = scenes.Scene((thing,), back, "", 0, 0, True)
    renderer = render.Renderer(world.sprites, size=64)
    picture, cover = renderer.with_cover(scenes.pack([scene]))
    assert torch.allclose(picture[0, :, 48, 16], torch.tensor([1.0, -1.0, -1.0]), atol=0.02)  # red, low on the left
    assert (picture[0, :, 16, 48] == 1).all()  # white elsewhere
    assert cover[0, 0, 48, 16] > 0.99 and cover[0, 0, 16, 48] == 0


def test_one_scene_looks_the_same_alone_and_in_a_batch(world):
    drawn = [scenes.draw_scene(world, 3, i, scenes.Mix()) for i in range(12)]
    renderer = render.Renderer(world.sprites, size=32)
    together = render.render(renderer, drawn)
    alone = torch.cat([render.render(renderer, [scene]) for scene in drawn])
    assert torch.allclose(together, alone, atol=1e-5)


def test_the_autoencoder_starts_as_a_thumbnail_and_balancing_changes_nothing_seen(world):
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


def test_a_killed_training_goes_on_where_it_was(tmp_path):
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


def test_the_pool_replaces_its_oldest(world):
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


def test_photos_of_a_style_are_in_its_two_colours():
    from PIL import Image

    from tools.tiny_base import photos

    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    print_ = np.asarray(photos.cyanotype(photo, 1), np.float32)
    assert (print_[..., 2] >= print_[..., 0] - 3).all()  # never warm
    assert np.array_equal(print_, np.asarray(photos.cyanotype(photo, 1), np.float32))


def test_the_example_photos_are_there():
    folder = Path(__file__).parents[2] / "examples" / "photos"
    for name in ("teddy-bear", "cyanotype"):
        assert len(list((folder / name).glob("*.jpg"))) == 5


def test_muons_updates_are_nearly_orthogonal_and_point_where_the_polar_factor_does():
    some = torch.randn(3, 12, 40, generator=torch.Generator().manual_seed(0))
    ours = muon.orthogonal(some).double().numpy()
    for update, matrix in zip(ours, some.double().numpy(), strict=True):
        u, _, v = np.linalg.svd(matrix, full_matrices=False)
        values = np.linalg.svd(update, compute_uv=False)
        assert values.min() > 0.6 and values.max() < 1.3
        assert (update * (u @ v)).sum() / np.linalg.norm(update) / np.linalg.norm(u @ v) > 0.98


def test_muon_takes_convolutions_and_tall_matrices_and_leaves_vectors_to_adamw():
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
