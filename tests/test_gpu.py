"""What only a CUDA card can show; skipped without one."""

import numpy as np
import pytest
import torch

from sdpersonal.config import DreamboothSettings, Request
from sdpersonal.generation import Generator
from sdpersonal.library import Library
from sdpersonal.training import train

pytestmark = pytest.mark.gpu


def test_the_frozen_base_is_bf16_and_the_schedule_fp32():
    from sdpersonal.bases import load_base

    base = load_base("tiny", device="cuda")
    assert base.dtype == torch.bfloat16 and base.schedule.alphas_cumprod.dtype == torch.float32
    assert base.schedule.alphas_cumprod.device.type == "cuda"


def test_a_seed_means_the_same_picture_as_on_the_cpu_but_for_rounding(tiny):
    from sdpersonal.bases import load_base

    request = Request(prompt="a duck on the beach", n=2)
    here = [np.asarray(picture.image, int) for picture in Generator(tiny).draw(request)]
    there = [np.asarray(picture.image, int) for picture in Generator(load_base("tiny", device="cuda")).draw(request)]
    assert max(np.abs(a - b).mean() for a, b in zip(here, there, strict=True)) < 12


def test_training_and_resuming_on_the_card(tmp_path, root):
    common = {
        "photos": root / "examples/photos/teddy-bear",
        "token": "<me/teddy>",
        "base": "tiny",
        "class_noun": "bear",
    }
    common |= {"library": tmp_path / "concepts", "samples": False, "save_every": 5}
    train(DreamboothSettings(**common, run=tmp_path / "whole", steps=10), say=lambda line: None)
    train(DreamboothSettings(**common, run=tmp_path / "parts", steps=5), say=lambda line: None)
    train(DreamboothSettings(**common, run=tmp_path / "parts", steps=10, resume=True), say=lambda line: None)
    library = Library(tmp_path / "concepts")
    assert [str(entry.token) for entry in library.list()] == ["<me/teddy-v1>", "<me/teddy-v2>"]  # 10 steps once, 5 once
