"""What only a CUDA card can show; skipped without one."""

import numpy as np
import pytest
import torch

from sdpersonal.concepts.library import Library
from sdpersonal.config import DreamboothSettings, GenerateRequest
from sdpersonal.generation import Generator
from sdpersonal.training import train

pytestmark = pytest.mark.gpu


def test_the_frozen_base_is_bf16_and_the_schedule_fp32():
    from sdpersonal.models import load_base

    base = load_base("tiny", device="cuda")
    assert base.dtype == torch.bfloat16 and base.schedule.alphas_cumprod.dtype == torch.float32
    assert base.schedule.alphas_cumprod.device.type == "cuda"


def test_a_seed_means_the_same_picture_as_on_the_cpu_but_for_rounding(tiny):
    from sdpersonal.models import load_base

    request = GenerateRequest(prompt="a duck on the beach", num_images=2)
    here = [np.asarray(image.image, int) for image in Generator(tiny).generate(request)]
    there = [np.asarray(image.image, int) for image in Generator(load_base("tiny", device="cuda")).generate(request)]
    assert max(np.abs(a - b).mean() for a, b in zip(here, there, strict=True)) < 12


def test_training_and_resuming_on_the_card(tmp_path, root):
    common = {
        "photos": root / "examples/photos/teddy-bear",
        "token": "<me/teddy>",
        "base": "tiny",
        "class_noun": "bear",
    }
    common |= {"library": tmp_path / "concepts", "samples": False, "save_every": 5}
    train(DreamboothSettings(**common, run=tmp_path / "whole", steps=10), log=lambda line: None)
    train(DreamboothSettings(**common, run=tmp_path / "parts", steps=5), log=lambda line: None)
    train(DreamboothSettings(**common, run=tmp_path / "parts", steps=10, resume=True), log=lambda line: None)
    library = Library(tmp_path / "concepts")
    assert [str(entry.token) for entry in library.entries()] == [
        "<me/teddy-v1>",
        "<me/teddy-v2>",
    ]  # 10 steps once, 5 once


@pytest.mark.parametrize("mode", ["model", "sequential"])
def test_models_that_wait_beside_the_card_draw_the_same_bytes(mode, monkeypatch):
    from sdpersonal.models import load_base, offload
    from sdpersonal.models.offload import OffloadPlan

    base = load_base("tiny", device="cuda")
    request = GenerateRequest(prompt="a duck on the beach", num_images=3, steps=4)
    expected = [image.image.tobytes() for image in Generator(base).generate(request)]
    stored = base.offloader.bytes_on_device()
    monkeypatch.setattr(offload, "choose_plan", lambda free, need, most: OffloadPlan(mode, False, most))
    assert [image.image.tobytes() for image in Generator(base).generate(request)] == expected
    assert base.offloader.bytes_on_device() < stored and base.device.type == "cuda"
    monkeypatch.undo()
    assert [image.image.tobytes() for image in Generator(base).generate(request)] == expected
    assert base.offloader.bytes_on_device() == stored


def test_a_lora_reaches_models_that_wait(tiny, monkeypatch):
    from test_generation import Shelf, random_concept

    from sdpersonal.models import load_base, offload
    from sdpersonal.models.offload import OffloadPlan

    shelf, base = Shelf(duck=random_concept(tiny, "<me/duck>", 1)), load_base("tiny", device="cuda")
    request = GenerateRequest(prompt="a cat <duck:0.7>", num_images=2, steps=4)
    expected = [image.image.tobytes() for image in Generator(base, shelf).generate(request)]
    monkeypatch.setattr(offload, "choose_plan", lambda free, need, most: OffloadPlan("sequential", False, most))
    assert [image.image.tobytes() for image in Generator(base, shelf).generate(request)] == expected


def test_a_card_that_is_full_says_so_and_is_as_before_after_it():
    from sdpersonal.errors import OutOfMemory
    from sdpersonal.models import load_base

    base, request = load_base("tiny", device="cuda"), GenerateRequest(prompt="a duck", num_images=2, steps=2)
    expected = [image.image.tobytes() for image in Generator(base).generate(request)]
    torch.cuda.empty_cache()
    _, full = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved() / full + 1e-6)
    try:
        with pytest.raises(OutOfMemory, match="Out of memory generating"):
            list(Generator(base).generate(GenerateRequest(prompt="a duck", num_images=8, steps=2, size="2048x2048")))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert [image.image.tobytes() for image in Generator(base).generate(request)] == expected


def test_what_a_stage_takes_on_a_card_is_about_what_is_reckoned_with():
    from benchmarks.steps.geometry import build
    from sdpersonal.models.offload import memory_need

    base, images = build("sd15", "cuda"), 4
    for model in base.modules().values():
        model.to(torch.bfloat16)
    reckoned, shape = memory_need(base, (512, 512)), base.latent_shape(512, 512)
    with base.exclusive():
        condition = base.encode_captions([["a"]] * (2 * images))
        latents = torch.zeros(2 * images, *shape, device="cuda")
        for work, expected in (
            (lambda: base.predict(latents, torch.zeros(2 * images, device="cuda"), condition), 4 * reckoned.step),
            (lambda: base.decode(latents[:1]), reckoned.decoding),
        ):
            work()
            torch.cuda.empty_cache()
            stored = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            work()
            assert torch.cuda.max_memory_allocated() - stored < 1.3 * expected
