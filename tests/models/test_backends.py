"""How torch is set up for a card: the precision by its age, and settings that other readers of them can live with."""

import numpy as np
import pytest
import torch

from sdpersonal.config import GenerateRequest
from sdpersonal.generation import Generator
from sdpersonal.models import describe_base, load_base, loading
from sdpersonal.models.backends import compute_dtype
from support.mixing import shelf_of


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ((6, 1), torch.float16),  # GTX 1080
        ((7, 5), torch.float16),  # RTX 2060, T4
        ((8, 0), torch.bfloat16),  # A100
        ((8, 6), torch.bfloat16),  # RTX 3060
        ((9, 0), torch.bfloat16),  # H100
        ((12, 0), torch.bfloat16),  # RTX 5090
    ],
)
def test_the_precision_follows_the_card(capability, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert compute_dtype(torch.device("cuda", 1)) == expected
    assert compute_dtype(torch.device("cpu")) == torch.float32


def test_an_older_card_draws_the_same_in_fp16(tiny, monkeypatch):
    shelf = shelf_of(tiny, rows=2, size=0.1)
    request = GenerateRequest(prompt="a dog <fox:0.7>", num_images=2, steps=4, seed=3)
    expected = [np.asarray(image.image, int) for image in Generator(tiny, shelf).generate(request)]
    monkeypatch.setattr(loading, "compute_dtype", lambda device: torch.float16)
    base = load_base("tiny", "cpu")
    assert base.dtype == base.vae.dtype == torch.float16 and base.schedule.alphas_cumprod.dtype == torch.float32
    images = [np.asarray(image.image, int) for image in Generator(base, shelf).generate(request)]
    assert max(np.abs(a - b).mean() for a, b in zip(images, expected, strict=True)) < 2


def test_the_description_says_why_it_is_fp16(tiny, monkeypatch):
    monkeypatch.setattr(type(tiny), "device", torch.device("cuda", 0))
    monkeypatch.setattr(type(tiny), "dtype", torch.float16)
    assert "million parameters in fp16, since this card has no bf16." in describe_base(tiny, "tiny")
    monkeypatch.setattr(type(tiny), "dtype", torch.bfloat16)
    assert "million parameters in bf16." in describe_base(tiny, "tiny")
