"""Optimisers and rates: equal to the packages they follow, and exact over a checkpoint whatever they keep."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import prodigyopt
import pytest
import torch
from torch import nn

from sdpersonal.config import TextualInversionSettings
from sdpersonal.errors import UserError
from sdpersonal.training.checkpoint import CheckpointState, load_checkpoint, save_checkpoint
from sdpersonal.training.optim import lr_factor, make_optimizer
from sdpersonal.training.presets import Preset, lower_rate
from sdpersonal.training.prodigy import Prodigy
from sdpersonal.training.run_inputs import RunInputs

PRESET = Preset(steps=10, batch=1, lr=1e-3, embedding_lr=5e-3)


def parameters(sizes=((70, 70), (5,), (2, 3)), seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(size, generator=generator, dtype=dtype)) for size in sizes]


def gradients(values, step, scales=None):
    """Of a badly scaled quadratic with its minimum elsewhere, and noise: the same for the same values and step."""
    generator = torch.Generator().manual_seed(1000 + step)
    for i, value in enumerate(values):
        scale = scales[i] if scales else 1.0
        x = value.detach() * scale
        value.grad = (x - 0.3 * (i + 1)) * (i + 0.5) * scale + 0.05 * scale * torch.randn(
            x.shape, generator=generator, dtype=x.dtype
        )


def settings(**values):
    return TextualInversionSettings(photos="photos", token="<me/a>", **values)


def test_prodigy_equals_the_authors_implementation():
    our_parameters, their_parameters = parameters(dtype=torch.float64), parameters(dtype=torch.float64)
    a = Prodigy(
        [{"params": our_parameters[:2], "lr": 1.0, "weight_decay": 0.01}, {"params": our_parameters[2:], "lr": 1.0}]
    )
    groups = [
        {"params": their_parameters[:2], "weight_decay": 0.01},
        {"params": their_parameters[2:], "weight_decay": 0.0},
    ]
    b = prodigyopt.Prodigy(groups, lr=1.0, use_bias_correction=True, safeguard_warmup=True)
    for step in range(300):
        for optimizer, values in ((a, our_parameters), (b, their_parameters)):
            gradients(values, step)
            for group in optimizer.param_groups:
                group["lr"] = 1.0 - step / 400  # as a schedule sets it
            optimizer.step()
    assert b.param_groups[0]["d"] > 1e-2  # the estimate has grown
    assert float(a.param_groups[0]["d"]) == pytest.approx(b.param_groups[0]["d"], rel=1e-6)
    for actual, expected in zip(our_parameters, their_parameters, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


def test_a_learning_rate_in_prodigy_scales_its_parameters():
    """Ten times the rate of the others: as the authors' Prodigy on a tenth of the parameter."""
    our_parameters, their_parameters = parameters(dtype=torch.float64), parameters(dtype=torch.float64)
    with torch.no_grad():
        their_parameters[1] /= 10
    a = Prodigy(
        [{"params": [our_parameters[0], our_parameters[2]], "lr": 1.0}, {"params": [our_parameters[1]], "lr": 10.0}]
    )
    b = prodigyopt.Prodigy(their_parameters, lr=1.0, use_bias_correction=True, safeguard_warmup=True)
    for step in range(300):
        gradients(our_parameters, step)
        a.step()
        gradients(their_parameters, step, scales=(1.0, 10.0, 1.0))
        b.step()
    assert float(a.param_groups[0]["d"]) == pytest.approx(b.param_groups[0]["d"], rel=1e-6)
    torch.testing.assert_close(our_parameters[1], 10 * their_parameters[1].detach(), rtol=1e-6, atol=1e-6)


def test_the_authors_prodigy_refuses_two_learning_rates():
    """The reason why this package has its own: the token's embeddings train faster than the LoRA."""
    values = parameters()
    optimizer = prodigyopt.Prodigy([{"params": values[:1], "lr": 1.0}, {"params": values[1:], "lr": 10.0}])
    gradients(values, 0)
    with pytest.raises(RuntimeError, match="different lr values in different parameter groups"):
        optimizer.step()


def test_prodigy_does_not_change_parameters_without_gradient_or_lr():
    values = parameters()
    initial = [value.detach().clone() for value in values]
    optimizer = Prodigy([{"params": values[:1], "lr": 1.0}, {"params": values[1:], "lr": 1.0}])
    optimizer.step()  # no gradient anywhere
    for step in range(5):
        gradients(values, step)
        values[0].grad = None
        optimizer.param_groups[1]["lr"] = 0.0 if step < 2 else 1.0
        optimizer.step()
        assert torch.equal(values[1], initial[1]) == (step < 2)
    assert torch.equal(values[0], initial[0]) and values[0] not in optimizer.state


def authors_prodigy(groups):
    return prodigyopt.Prodigy([group | {"lr": 1.0} for group in groups])


@pytest.mark.parametrize("name", ["adamw", "adamw8bit", "prodigy", "another's"])
def test_training_resumed_from_a_checkpoint_gives_equal_parameters(tmp_path, name):
    """Uninterrupted, and broken off in either of two phases, of which the first trains one parameter only."""
    if name == "adamw8bit":
        pytest.importorskip("bitsandbytes")

    def new():
        values = dict(zip(("lora.up.weight", "rows.clip_l", "rows.clip_g"), parameters(), strict=True))
        (lora, *embeddings) = values.values()
        groups = [
            {"params": [lora], "lr": 1e-3, "weight_decay": 1e-2},
            {"params": embeddings, "lr": 5e-3, "weight_decay": 0.0},
        ]
        return values, authors_prodigy(groups) if name == "another's" else make_optimizer(name, groups, 1e-3, 1e-3)

    def train(values, optimizer, steps):
        for step in steps:
            gradients(values.values(), step)
            if step < 3:
                values["lora.up.weight"].grad = None
            optimizer.step()

    values, optimizer = new()
    train(values, optimizer, range(8))
    if name == "adamw8bit":
        assert optimizer.state[values["lora.up.weight"]]["state1"].dtype == torch.uint8
    for stop in (2, 3, 6):
        parts, resumed = new()
        train(parts, resumed, range(stop))
        save_checkpoint(tmp_path / str(stop), stop, CheckpointState(parts, resumed, {}), {})
        parts, resumed = new()
        train(parts, resumed, range(1))  # whatever it held before goes
        assert load_checkpoint(tmp_path / str(stop), CheckpointState(parts, resumed, {}), {}).step == stop
        train(parts, resumed, range(stop, 8))
        for key, value in values.items():
            assert torch.equal(value, parts[key]), key


def test_a_large_checkpoint_state_is_saved_in_shards(tmp_path, monkeypatch):
    from sdpersonal.training import checkpoint

    monkeypatch.setattr(checkpoint, "_SHARD_BYTES", 30_000)
    values = dict(zip("abc", parameters(), strict=True))
    optimizer = torch.optim.AdamW(values.values(), fused=True)
    gradients(values.values(), 0)
    optimizer.step()
    save_checkpoint(tmp_path, 1, CheckpointState(values, optimizer, {}), {})
    assert len(list((tmp_path / "step-000001").glob("state*.safetensors"))) == 3
    restored = dict(zip("abc", parameters(seed=1), strict=True))
    load_checkpoint(tmp_path, CheckpointState(restored, torch.optim.AdamW(restored.values(), fused=True), {}), {})
    assert all(torch.equal(restored[key], values[key]) for key in "abc")
    (tmp_path / "step-000001" / "state-1.safetensors").unlink()
    with pytest.raises(UserError, match="no checkpoint"):
        load_checkpoint(tmp_path, CheckpointState(restored, torch.optim.AdamW(restored.values(), fused=True), {}), {})


def test_adamw8bit_without_bitsandbytes_is_refused_with_a_message(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match="needs the package bitsandbytes") as caught:
        make_optimizer("adamw8bit", [], 1e-3, 1e-3)
    assert "sdpersonal[8bit]" in caught.value.hint


def test_the_cosine_schedule_equals_that_of_pytorch():
    factor = lr_factor(settings(schedule="cosine"), PRESET)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    their_parameters = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    expected = []
    for _ in range(11):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        their_parameters.step()
    np.testing.assert_allclose([factor(step) for step in range(11)], expected, atol=1e-12)
    assert [lr_factor(settings(), PRESET)(step) for step in (0, 9)] == [1.0, 1.0]


def test_prodigy_learning_rates_are_relative_to_the_main_one():
    assert lr_factor(settings(optimizer="prodigy"), PRESET)(3) * PRESET.lr == pytest.approx(1.0)
    half = Preset(steps=10, batch=1, lr=0.5, embedding_lr=2.5)  # as --lr 0.5 makes it
    assert lr_factor(settings(optimizer="prodigy", lr=0.5), half)(3) * half.lr == pytest.approx(0.5)
    groups = [{"params": parameters()[:1], "lr": 0.5}, {"params": parameters()[1:], "lr": 2.5}]
    optimizer = make_optimizer("prodigy", groups, half.lr, PRESET.lr)
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 5.0]
    assert float(optimizer.param_groups[0]["d"]) == pytest.approx(1e-4)


@pytest.mark.parametrize(("lr", "used", "proposed"), [(None, 1.0, 0.1), (0.5, 0.5, 0.05), (1e4, 1e4, 1.0)])
def test_diverged_prodigy_training_proposes_a_rate_of_prodigys_scale(lr, used, proposed):
    settings = TextualInversionSettings(photos="x", token="<me/a>", optimizer="prodigy", lr=lr, base="tiny")
    tiny_kind = SimpleNamespace(kind="tiny", resolution=128)
    inputs = RunInputs(settings, Path("run"), None, tiny_kind, None, None, [], None, print)
    assert inputs.lr == used and lower_rate(inputs.lr, inputs.usual_lr) == pytest.approx(proposed)
