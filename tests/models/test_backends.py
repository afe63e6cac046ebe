"""How torch is set up for a card: the precision by its age, and settings that other readers of them can live with."""

import os
import sys

import numpy as np
import pytest
import torch

from sdpersonal.config import GenerateRequest
from sdpersonal.errors import UserError
from sdpersonal.generation import Generator
from sdpersonal.models import backends, describe_base, load_base, loading
from sdpersonal.models.backends import compute_dtype, configure_cuda, full_fp32
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
def test_the_dtype_depends_on_the_compute_capability(capability, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert compute_dtype(torch.device("cuda", 1)) == expected
    assert compute_dtype(torch.device("cpu")) == torch.float32


def test_fp16_generates_nearly_the_same_images_as_fp32(tiny, monkeypatch):
    shelf = shelf_of(tiny, rows=2, size=0.1)
    request = GenerateRequest(prompt="a dog <fox:0.7>", num_images=2, steps=4, seed=3)
    expected = [np.asarray(image.image, int) for image in Generator(tiny, shelf).generate(request)]
    monkeypatch.setattr(loading, "compute_dtype", lambda device: torch.float16)
    base = load_base("tiny", "cpu")
    assert base.dtype == base.vae.dtype == torch.float16 and base.schedule.alphas_cumprod.dtype == torch.float32
    images = [np.asarray(image.image, int) for image in Generator(base, shelf).generate(request)]
    assert max(np.abs(a - b).mean() for a, b in zip(images, expected, strict=True)) < 2


def test_a_vae_that_overflows_in_fp16_runs_in_fp32(tiny, monkeypatch):
    """Those of some fine-tunes do. Here the output is multiplied by more than fp16 holds, and divided again."""
    monkeypatch.setattr(loading, "compute_dtype", lambda device: torch.float16)
    base = load_base("tiny", "cpu")
    latents = torch.randn(1, *base.latent_shape(64, 64), generator=torch.Generator().manual_seed(0))
    expected = base.decode(latents).astype(int)
    assert base.vae.dtype == torch.float16
    vae, decode = base.vae, base.vae.decode

    def exceed(x):
        result = decode(x)
        result.sample = result.sample * torch.tensor(70000.0).to(x.dtype) / 70000
        return result

    monkeypatch.setattr(vae, "decode", exceed)
    assert np.abs(base.decode(latents).astype(int) - expected).max() <= 3
    assert vae.dtype == torch.float32 and base.dtype == torch.float16
    with pytest.raises(UserError, match="is NaN"):
        base.decode(latents / 0)


def test_the_base_description_gives_the_reason_for_fp16(tiny, monkeypatch):
    monkeypatch.setattr(type(tiny), "device", torch.device("cuda", 0))
    monkeypatch.setattr(type(tiny), "dtype", torch.float16)
    assert "million parameters in fp16, since this card has no bf16." in describe_base(tiny, "tiny")
    monkeypatch.setattr(type(tiny), "dtype", torch.bfloat16)
    assert "million parameters in bf16." in describe_base(tiny, "tiny")


@pytest.fixture
def untouched(monkeypatch):
    """torch and the environment as in a fresh process, and again after the test."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    for name in backends._ALLOCATOR_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    yield matmul
    os.environ.pop("PYTORCH_ALLOC_CONF", None)
    matmul.allow_tf32 = False
    matmul.fp32_precision = before


def test_configure_cuda_leaves_both_precision_apis_of_torch_readable(untouched):
    """After torch's newer way, `fp32_precision = "tf32"`, its own compiler raises."""
    configure_cuda()
    configure_cuda()
    assert untouched.allow_tf32 and untouched.fp32_precision == "tf32"
    assert torch.get_float32_matmul_precision() == "high" and torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.conv.fp32_precision == "tf32"
    assert torch.backends.mkldnn.matmul.fp32_precision == "none"  # nothing changes on the CPU
    with full_fp32():
        assert untouched.fp32_precision == "ieee"
    assert untouched.allow_tf32 and torch.get_float32_matmul_precision() == "high"
    untouched.fp32_precision = "ieee"
    with pytest.raises(RuntimeError, match="mix of the legacy and new APIs"):
        print(untouched.allow_tf32)


@pytest.mark.parametrize("chosen", ["ieee", "tf32"])
def test_configure_cuda_preserves_precision_and_allocator_of_the_user(untouched, monkeypatch, chosen):
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:128")
    untouched.fp32_precision = chosen
    configure_cuda()
    with full_fp32():
        assert untouched.fp32_precision == "ieee"
    assert untouched.fp32_precision == chosen and "PYTORCH_ALLOC_CONF" not in os.environ


@pytest.mark.parametrize("platform, expected", [("linux", "expandable_segments:True"), ("win32", None)])
def test_expandable_segments_are_enabled_only_where_torch_supports_them(untouched, monkeypatch, platform, expected):
    monkeypatch.setattr(sys, "platform", platform)
    configure_cuda()
    assert os.environ.get("PYTORCH_ALLOC_CONF") == expected


def test_cuda_is_configured_only_for_a_cuda_device(monkeypatch):
    configured = []
    monkeypatch.setattr(loading, "configure_cuda", lambda: configured.append(True))
    load_base("tiny", "cpu")
    assert not configured
    monkeypatch.setattr(loading, "_choose_device", lambda device: torch.device("cuda", 0))

    def stop(device):
        raise InterruptedError

    monkeypatch.setattr(loading, "compute_dtype", stop)  # no further: there is no card
    with pytest.raises(InterruptedError):
        load_base("tiny", "cuda")
    assert configured == [True]
