"""The loss against a straight numpy reading of the papers, for both kinds of prediction."""

import numpy as np
import pytest
import torch

from sdpersonal.models import NoiseSchedule
from sdpersonal.training.objective import diffusion_loss


def numpy_loss(abar, prediction, latents, noise, t, predict):
    """Ho et al. 2020 eq. 4 and 14; Salimans and Ho 2022, section 2.4: v = alpha noise - sigma x."""
    losses = []
    for x, e, i in zip(latents, noise, t, strict=True):
        alpha, sigma = np.sqrt(abar[i]), np.sqrt(1 - abar[i])
        target = e if prediction == "epsilon" else alpha * e - sigma * x
        losses.append(np.mean((predict(alpha * x + sigma * e, i) - target) ** 2))
    return np.array(losses)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_loss_equals_a_numpy_version(prediction):
    rng = np.random.default_rng(0)
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 50))
    latents, noise = rng.normal(size=(2, 3, 4, 8, 8))
    t = np.array([0, 17, 49])
    schedule = NoiseSchedule(torch.tensor(abar), prediction)
    loss = diffusion_loss(
        lambda noisy, time: noisy.sin() * (1 + time.view(-1, 1, 1, 1)),
        schedule,
        torch.tensor(latents),
        torch.tensor(noise),
        torch.tensor(t),
    )
    expected = numpy_loss(abar, prediction, latents, noise, t, lambda noisy, i: np.sin(noisy) * (1 + i))
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-12)


def test_add_noise_and_target_equal_those_of_diffusers(tiny):
    from diffusers import DDPMScheduler

    from sdpersonal.models.loading import built_in_folder

    scheduler = DDPMScheduler.from_pretrained(built_in_folder() / "scheduler")
    assert scheduler.config.prediction_type == tiny.schedule.prediction_type
    rng = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 4, *tiny.latent_shape(128, 128), generator=rng)
    t = torch.tensor([0, 1, 500, 999])
    torch.testing.assert_close(tiny.schedule.add_noise(latents, noise, t), scheduler.add_noise(latents, noise, t))
    target = scheduler.get_velocity(latents, noise, t) if tiny.schedule.prediction_type == "v_prediction" else noise
    torch.testing.assert_close(tiny.schedule.target(latents, noise, t), target)


def test_the_noise_schedule_is_fp32_for_every_dtype_of_the_base(tiny):
    assert tiny.schedule.alphas_cumprod.dtype == torch.float32
    assert len(tiny.schedule.alphas_cumprod.unique()) == len(tiny.schedule)  # bf16 would keep 192 of 1,000
