"""How a picture looks while it is drawn."""

import torch

from sdpersonal.config import GenerateRequest
from sdpersonal.generation import Generator
from sdpersonal.generation.previews import Previews


def test_predict_x0_recovers_the_noised_latents(tiny):
    """The model's own answer, given perfectly, leads back to the latents."""
    schedule, chance = tiny.schedule, torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(3, 4, 5, 6, generator=chance) for _ in range(2))
    t = torch.tensor([10, 400, 900])
    answer = schedule.target(latents, noise, t)
    torch.testing.assert_close(
        schedule.predict_x0(schedule.add_noise(latents, noise, t), answer, t), latents, atol=1e-3, rtol=1e-3
    )


def test_previews_do_not_change_the_images(tiny):
    request, recorded = GenerateRequest(prompt="a cat on grass", num_images=2, steps=12), []
    bare = [image.to_png() for image in Generator(tiny).generate(request)]
    watched = [image.to_png() for image in Generator(tiny).generate(request, preview=recorded.append)]
    assert watched == bare
    assert all(len(images) == 2 and images[0].size == (128, 128) for images in recorded)


def test_previews_of_large_latents_are_small_and_rare(tiny, monkeypatch):
    clock, displayed = [0.0], []
    monkeypatch.setattr("sdpersonal.generation.previews.time.monotonic", lambda: clock[0])

    def show(images):
        displayed.append((clock[0], images[0].size))
        clock[0] += 0.3  # what it cost

    previews = Previews(tiny, show)
    for _ in range(100):
        clock[0] += 0.2
        previews.update(lambda: torch.zeros(1, tiny.vae.config.latent_channels, 64, 64))
    assert {size for _, size in displayed} == {(21 * tiny.vae_scale_factor, 21 * tiny.vae_scale_factor)}
    assert len(displayed) >= 2 and 0.3 * len(displayed) <= 0.1 * clock[0]
