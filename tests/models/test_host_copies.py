"""Models that leave a card and come back: nothing is copied twice, and nothing that changed is lost.

The device is the CPU here, where a model on the device has tensors apart from the copies.
"""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sdpersonal.concepts.card import Card
from sdpersonal.concepts.concept import Concept, Lora
from sdpersonal.config import GenerateRequest
from sdpersonal.generation import Generator
from sdpersonal.models import host_copies, load_base
from sdpersonal.models.host_copies import HostCopies
from sdpersonal.models.offload import OffloadPlan
from sdpersonal.prompts import Token
from sdpersonal.training.methods.dreambooth_full import DreamboothFull
from sdpersonal.training.presets import preset
from support.mixing import Shelf

CPU = torch.device("cpu")


class Small(nn.Module):
    """Weights of several shapes and layouts, one of them used twice, and a buffer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm2d(5)
        self.first, self.low = nn.Linear(7, 5), nn.Linear(5, 7).bfloat16()
        self.tied = nn.Linear(7, 5)
        self.tied.weight = self.first.weight
        self.requires_grad_(False)


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(model, expected):
    tensors = model.state_dict()
    return all(
        torch.equal(tensors[name], value) and tensors[name].stride() == value.stride()
        for name, value in expected.items()
    )


class Copied(TorchDispatchMode):
    """Counts the tensors that are copied."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket in (torch.ops.aten.copy_, torch.ops.aten._to_copy, torch.ops.aten.clone)
        return func(*args, **(kwargs or {}))


def copied(work):
    with Copied() as copies:
        work()
    return copies.count


def pointers(model):
    return [tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())]


def test_unchanged_weights_are_copied_to_the_host_once():
    model = Small()
    expected, copies, number = state(model), HostCopies(model, CPU), len(pointers(model))
    assert copied(copies.to_host) == number
    host = pointers(model)
    for _ in range(2):
        assert copied(copies.to_device) == number and equal(model, expected)
        assert not set(pointers(model)) & set(host)
        assert copied(copies.to_host) == 0 and equal(model, expected) and pointers(model) == host
    assert model.tied.weight is model.first.weight


def test_host_copies_take_little_more_memory_than_the_weights(monkeypatch):
    """torch rounds pinned memory up to powers of two: blocks are one, but the last."""
    monkeypatch.setattr(host_copies, "_BLOCK_BYTES", 1 << 12)
    sizes, allocate = [], host_copies._allocate_bytes
    monkeypatch.setattr(
        host_copies, "_allocate_bytes", lambda size, pinned: sizes.append((size, pinned)) or allocate(size, False)
    )
    model = nn.Sequential(*(nn.Linear(16, 16) for _ in range(8)), nn.Linear(64, 64)).requires_grad_(False)
    expected = state(model)
    HostCopies(model, torch.device("cuda", 0)).to_host()
    assert equal(model, expected)
    assert sizes == [(3 * 1280, True), (3 * 1280, True), (2 * 1280, True), (1 << 14, True), (256, True)]


def test_pageable_memory_is_used_when_pinning_fails(monkeypatch):
    empty = torch.empty

    def refuse(*args, pin_memory=False, **kwargs):
        if pin_memory:
            raise torch.AcceleratorError("CUDA error: out of memory")
        return empty(*args, **kwargs)

    monkeypatch.setattr(torch, "empty", refuse)
    assert host_copies._allocate_bytes(100, pinned=True).shape == (100,)

    def fail(*args, **kwargs):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch, "empty", fail)
    with pytest.raises(RuntimeError, match="illegal"):
        host_copies._allocate_bytes(100, pinned=True)


@pytest.mark.parametrize("place", ["device", "host"])
def test_changed_weights_are_copied_again(place):
    """In place, by a cast to the same place and back, and by other tensors."""
    model = Small()
    copies = HostCopies(model, CPU)
    move, back = (copies.to_host, copies.to_device) if place == "device" else (copies.to_device, copies.to_host)
    move(), back()
    with torch.no_grad():
        model.conv.weight.mul_(2)
        model.norm.running_mean += 1
    model.low.weight.data = model.low.weight.data.float() / 3
    model.low.bias = nn.Parameter(torch.arange(7.0), requires_grad=False)
    model.first.bias.data = model.first.bias.data + 1
    model.conv.to(memory_format=torch.contiguous_format)
    expected = state(model)
    for step in (move, back, move):
        step()
        assert equal(model, expected) and model.low.weight.dtype == torch.float32


def test_trainable_weights_are_never_restored_from_an_old_copy():
    """A replayed CUDA graph changes weights without a trace: nothing counts its changes."""
    model = Small()
    copies = HostCopies(model, CPU)
    copies.to_host(), copies.to_device()
    model.first.weight.requires_grad_(True)
    model.first.weight.data.add_(1)  # not counted either
    expected = state(model)
    copies.to_host()
    assert equal(model, expected)
    model.first.weight.data.add_(1)
    model.first.weight.requires_grad_(False)
    expected = state(model)
    copies.to_device()
    assert equal(model, expected)


def test_a_model_that_does_not_fit_stays_on_the_host(monkeypatch):
    model = Small()
    expected, copies = state(model), HostCopies(model, CPU)
    copies.to_host()
    host, placed, place = pointers(model), [], copies._place

    def fill_up(weight, value):
        if len(placed) == 3:
            placed.append(None)
            raise torch.OutOfMemoryError("CUDA out of memory.")
        placed.append(weight)
        place(weight, value)

    monkeypatch.setattr(copies, "_place", fill_up)
    with pytest.raises(torch.OutOfMemoryError):
        copies.to_device()
    assert pointers(model) == host and equal(model, expected)
    copies.to_device()
    assert equal(model, expected) and not set(pointers(model)) & set(host)


def test_copies_of_replaced_weights_are_dropped():
    model = Small()
    copies = HostCopies(model, CPU)
    for _ in range(3):
        model.low.bias = nn.Parameter(torch.zeros(7), requires_grad=False)
        copies.to_host(), copies.to_device()
        assert len(copies._copies) == len(pointers(model))


@pytest.fixture
def base(monkeypatch):
    """A base whose models are on the device for their own stage only."""
    base = load_base("tiny", "cpu")

    def plan(requested, *_):
        return OffloadPlan("sequential" if requested is base else "all", False, 2)

    monkeypatch.setattr("sdpersonal.generation.generator.plan_offload", plan)
    return base


def test_concepts_with_norms_and_biases_work_on_offloaded_models(tiny, base):
    """What replaces weights of the base comes and goes while its models move."""
    rng = np.random.default_rng(0)
    changes = {}
    for name, norm in list(tiny.adapters._norms.items())[::3]:
        values = {"w_norm": norm.weight, "b_norm": norm.bias}
        changes[name] = {key: 0.2 * rng.normal(size=value.shape).astype(np.float32) for key, value in values.items()}
    for name in tiny.adapters.layer_names("transformer")[::4]:
        weight = tiny.adapters.layers()[name].weight
        changes[name] = {"diff": 0.02 * rng.normal(size=weight.shape).astype(np.float32)}
    shelf = Shelf(fox=Concept(Token("me", "fox"), Card(base="tiny", trigger_words=("fox",)), {}, Lora({}, changes)))
    for prompt, images in (("a <fox:0.8>", 3), ("a duck", 1)):
        request = GenerateRequest(prompt=prompt, num_images=images, steps=1, size="64x64")
        expected = [image.image.tobytes() for image in Generator(tiny, shelf).generate(request)]
        assert [image.image.tobytes() for image in Generator(base, shelf).generate(request)] == expected
    assert all(equal(model, tiny.modules()[name].state_dict()) for name, model in base.modules().items())


def test_an_offloaded_base_is_saved_completely(tiny, base, tmp_path):
    list(Generator(base).generate(GenerateRequest(prompt="a duck", num_images=1, steps=1, size="64x64")))
    base.save(tmp_path / "model")
    for part, name in (("unet", "unet"), ("vae", "vae"), ("text_encoder", "clip_l")):
        (path,) = (tmp_path / "model" / part).glob("*.safetensors")
        stored, expected = load_file(path), tiny.modules()[name].state_dict()
        assert all(torch.equal(stored[key], expected[key]) for key in stored) and len(stored) > 10


def test_offloading_preserves_fully_trained_weights_until_they_are_removed(tiny, base):
    request = GenerateRequest(prompt="a duck", num_images=1, steps=2, size="64x64")

    def generate(model):
        return [image.image.tobytes() for image in Generator(model).generate(request)]

    expected = generate(tiny)
    assert generate(base) == expected
    method = DreamboothFull(base, "duck", rank=2, text=True, preset=preset("dreambooth-full", "tiny"))
    try:
        with torch.no_grad():
            for weight in method.trainable_parameters().values():
                weight.mul_(1.02)
        trained = {name: state(model) for name, model in base.modules().items()}
        changed = generate(base)
        assert changed != expected and generate(base) == changed
        assert all(equal(model, trained[name]) for name, model in base.modules().items())
    finally:
        method.close()
    assert generate(base) == expected
    assert all(equal(model, tiny.modules()[name].state_dict()) for name, model in base.modules().items())
