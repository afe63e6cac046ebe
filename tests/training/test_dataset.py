"""What the loop reads: chance as a function, photos as posteriors. Methods and runs have files of their own."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from sdpersonal.models import NoiseSchedule
from sdpersonal.photos.loading import load_photos
from sdpersonal.training.dataset import Batch, PhotoDataset
from sdpersonal.training.rng import generator_for, photo_index
from support.narrow import save_photos


@pytest.fixture
def photos(tmp_path):
    """Three photos of nothing much: what is learned is not the question here."""
    return save_photos(tmp_path / "photos", 3)


@pytest.fixture
def batch(tiny, photos):
    data = PhotoDataset(tiny, load_photos(photos, 128).photos, ("a photo of {}", "{}"), seed=3, flip=True)
    return data.batch(range(4))


# --- chance ---


def test_every_epoch_uses_every_photo_once_in_a_new_order():
    orders = [[photo_index(5 * epoch + i, 5, seed=0) for i in range(5)] for epoch in range(20)]
    assert all(sorted(order) == [0, 1, 2, 3, 4] for order in orders)
    assert len(set(map(tuple, orders))) > 10


def test_training_samples_depend_only_on_seed_and_index(tiny, photos):
    loaded = load_photos(photos, 128).photos
    batch_of_four = PhotoDataset(tiny, loaded, ("{}", "a {}"), seed=0, flip=False).batch(range(4))
    dataset = PhotoDataset(tiny, loaded, ("{}", "a {}"), seed=0, flip=False)
    torch.rand(7)  # somebody else's draw
    parts = [dataset.batch([i]) for i in (3, 2, 1, 0)][::-1]
    assert torch.equal(batch_of_four.latents, torch.cat([part.latents for part in parts]))
    assert torch.equal(batch_of_four.noise, torch.cat([part.noise for part in parts]))
    assert torch.equal(batch_of_four.t, torch.cat([part.t for part in parts]))
    assert batch_of_four.captions == sum((part.captions for part in parts), ())
    changed = PhotoDataset(tiny, loaded, ("{}",), seed=1, flip=False).batch(range(4))
    assert not torch.equal(batch_of_four.noise, changed.noise)


def test_random_timesteps_are_uniform_and_noise_is_normal():
    times = [int(torch.randint(1000, (), generator=generator_for("t", 0, i))) for i in range(3000)]
    counts = np.histogram(times, bins=10, range=(0, 1000))[0]
    assert ((counts - 300) ** 2 / 300).sum() < 27.9  # chi-squared, 9 degrees of freedom, p = 0.001
    draws = torch.cat([torch.randn(16, generator=generator_for("noise", 0, i)) for i in range(2000)])
    assert abs(draws.mean()) < 0.02 and abs(draws.std() - 1) < 0.02


def test_cached_posteriors_have_the_distribution_of_the_vae(tiny, photos):
    loaded = load_photos(photos, 128).photos[:1]
    data = PhotoDataset(tiny, loaded, ("{}",), seed=0, flip=False)
    latents = torch.stack([data.batch([i]).latents[0] for i in range(400)])
    x = torch.from_numpy(loaded[0].square()).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        anew = tiny.vae.encode(x).latent_dist
    scale = tiny.vae.config.scaling_factor
    error = (latents.mean(0) - anew.mean[0] * scale).abs() / (anew.std[0] * scale / math.sqrt(400))
    assert error.mean() < 1.0  # a standard normal's mean distance is 0.8
    assert abs((latents.std(0) / (anew.std[0] * scale)).mean() - 1) < 0.02


def test_a_batch_has_the_expected_fields_and_shapes(batch, tiny):
    assert all(len(getattr(batch, field.name)) == 4 for field in dataclasses.fields(Batch))
    assert batch.indices == (0, 1, 2, 3)
    assert (
        batch.latents.shape == batch.noise.shape == (4, *tiny.latent_shape(128, 128))
        and batch.latents.dtype == torch.float32
    )
    assert len(set(batch.photos[:3])) == 3 and isinstance(batch.t, torch.Tensor)


def test_the_tiny_base_has_a_schedule_with_zero_terminal_snr(tiny):
    assert isinstance(tiny.schedule, NoiseSchedule) and tiny.schedule.alphas_cumprod[-1] == 0  # zero terminal SNR
