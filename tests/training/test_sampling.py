"""Samples during a training: the precision of their parts, and what they do on a card, shown on a CPU."""

import numpy as np
import pytest
import torch

from sdpersonal.training.methods.dreambooth_full import DreamboothFull
from sdpersonal.training.presets import preset
from sdpersonal.training.sampling import generate_samples
from sdpersonal.training.validation import Validator

PROMPTS = [("a duck on the beach", 0), ("a duck in the snow", 1)]


def samples(base, autocast_dtype=None):
    return generate_samples(base, lambda prompt: [prompt], PROMPTS, 64, 2, autocast_dtype)


@pytest.fixture
def autocast_parts(tiny, monkeypatch):
    """The parts of the base that were computed under autocast, and those that were not."""
    parts = {True: set(), False: set()}

    def recorded(name):
        part = getattr(tiny, name)

        def call(*args, **kwargs):
            parts[torch.is_autocast_enabled("cpu")].add(name)
            return part(*args, **kwargs)

        monkeypatch.setattr(tiny, name, call)

    for name in ("predict", "decode", "encode_captions"):
        recorded(name)
    return parts


def test_only_the_predictions_of_samples_are_autocast(tiny, autocast_parts):
    """The autoencoder of SDXL needs fp32, and the text encoders have the precision that they were loaded in."""
    exact = samples(tiny)
    assert autocast_parts == {True: set(), False: {"predict", "decode", "encode_captions"}}
    autocast_parts[False].clear()
    rounded = samples(tiny, torch.bfloat16)
    assert autocast_parts == {True: {"predict"}, False: {"decode", "encode_captions"}}
    differences = [np.abs(np.asarray(a, int) - np.asarray(b, int)) for a, b in zip(exact, rounded, strict=True)]
    assert 0 < max(difference.mean() for difference in differences) < 12


def test_validations_are_generated_in_the_precision_of_the_method(tiny, autocast_parts, tmp_path):
    images = samples(tiny)
    autocast_parts[False].clear()
    validator = Validator(tmp_path, tiny, None, "object", "duck", images, torch.bfloat16)
    validator.generate(lambda prompt: [prompt.format("a duck")])
    assert autocast_parts == {True: {"predict"}, False: {"decode", "encode_captions"}}


def test_a_full_training_on_a_cpu_needs_no_autocast(tiny):
    method = DreamboothFull(tiny, "duck", 2, False, preset("dreambooth-full", "tiny"))
    try:
        assert method.autocast_dtype is None
    finally:
        method.close()
