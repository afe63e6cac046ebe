"""The gradients of a step, plain and as they are replayed on a card, here with the graph's stand-in for the CPU."""

from dataclasses import replace

import pytest
import torch

from sdpersonal.training.early_stopping import fixed_inputs
from sdpersonal.training.gradients import Gradients, loss_scaler
from sdpersonal.training.loss_inputs import prefetch
from sdpersonal.training.optim import EMA
from support.narrow import save_narrow, save_photos
from support.train_states import cloned_tensors, fit_to_end, loop_config_for, settings_for, train_state_for

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(
    scope="module",
    params=[*(pytest.param(kind, marks=pytest.mark.thorough) for kind in ("sd1", "sd2 v")), "sdxl"],
)
def folder(request, tmp_path_factory):
    return save_narrow(request.param, tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def sd1_folder(tmp_path_factory):
    return save_narrow("sd1", tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return save_photos(tmp_path_factory.mktemp("photos"), 3)


def train(settings, run, captures, accumulate=1, pivot_steps=3):
    run.mkdir()
    state = train_state_for(settings, lambda trained: EMA(trained, 0.9), pivot_steps)
    state.gradients = Gradients(state.method, state.accelerator, state.scaler, captures=captures)
    fixed = fixed_inputs(state.method, state.photos, 2, CPU)
    log = fit_to_end(state, loop_config_for(run, 6, accumulate=accumulate, fixed_batch=fixed, measure_every=2))
    values = cloned_tensors(state.method.trainable_parameters())
    state.method.close()
    return values, [*log.losses, *(loss for _, loss in log.fixed_batch_losses)], state


def largest_difference(left, right):
    return max(float((left[name] - right[name]).abs().max() / left[name].abs().max().clamp(min=1e-12)) for name in left)


@pytest.mark.parametrize(
    "method", ["pivotal", "full", *(pytest.param(name, marks=pytest.mark.thorough) for name in ("inversion", "lora"))]
)
def test_replayed_steps_train_like_eager_steps(sd1_folder, photos, tmp_path, method):
    """Over both phases of a pivotal run, with several batches a step, and measured with the average in between."""
    settings = settings_for(method, photos, sd1_folder)
    plain, losses, _ = train(settings, tmp_path / "plain", captures=False, accumulate=2)
    replayed, replayed_losses, state = train(settings, tmp_path / "replayed", captures=True, accumulate=2)
    assert {key[2] for key in state.gradients._passes} == {None, 0.5}  # it did replay, losses alone too
    assert {key[0] for key in state.gradients._passes} == ({0, 1} if method == "pivotal" else {0})
    assert largest_difference(plain, replayed) < 1e-4
    assert losses == pytest.approx(replayed_losses, rel=1e-5)


def test_replayed_steps_with_a_prior_train_like_eager_steps(sd1_folder, photos, tmp_path):
    settings = settings_for("lora", photos, sd1_folder, prior="predicted", text_encoder=True)
    plain, *_ = train(settings, tmp_path / "plain", captures=False)
    replayed, *_ = train(settings, tmp_path / "replayed", captures=True)
    assert largest_difference(plain, replayed) < 1e-4


def test_a_failed_capture_falls_back_to_eager_with_one_message(sd1_folder, photos, tmp_path, monkeypatch):
    from sdpersonal.training import gradients

    def refuse(*_):
        raise RuntimeError("not permitted when stream is capturing\nand more")

    settings, said = settings_for("lora", photos, sd1_folder), []
    plain, *_ = train(settings, tmp_path / "plain", captures=False)
    monkeypatch.setattr(gradients, "CapturedCall", refuse)
    state = train_state_for(settings)
    state.gradients = Gradients(state.method, state.accelerator, state.scaler, said.append, captures=True)
    (tmp_path / "run").mkdir()
    fit_to_end(state, loop_config_for(tmp_path / "run", 6))
    assert largest_difference(plain, cloned_tensors(state.method.trainable_parameters())) == 0
    assert said == [
        "The step is not captured in a CUDA graph, so it takes longer: not permitted when stream is capturing."
    ]
    state.method.close()


def test_the_loss_compiles_to_one_graph_with_equal_gradients(folder, photos):
    """No break, so nothing in it depends on values or leaves tensors; and the same loss and gradients."""
    state = train_state_for(settings_for("lora", photos, folder))
    method = state.method
    inputs = method.inputs(state.photos.batch(range(2)))
    tensors = inputs.tensors()
    expected = method.loss(inputs, 0)
    expected.mean().backward()
    gradients = {name: value.grad.clone() for name, value in method.trainable_parameters().items()}
    for value in method.trainable_parameters().values():
        value.grad = None
    torch._dynamo.reset()

    def loss(*tensors):
        return method.loss(type(inputs)(*tensors), 0)

    compiled = torch.compile(loss, fullgraph=True, backend="eager", dynamic=False)(*tensors)
    compiled.mean().backward()
    assert torch.equal(compiled, expected)
    for name, value in method.trainable_parameters().items():
        torch.testing.assert_close(value.grad, gradients[name])
    method.close()


def test_fp16_training_scales_the_loss_and_skips_overflowing_steps(sd1_folder, photos):
    assert not loss_scaler(torch.bfloat16, CPU).is_enabled() and loss_scaler(torch.float16, CPU).is_enabled()
    state = train_state_for(settings_for("inversion", photos, sd1_folder))
    state = replace(state, scaler=torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=True))
    plain = Gradients(state.method, state.accelerator, loss_scaler(torch.float32, CPU))
    inputs = state.method.inputs(state.photos.batch(range(2)))
    parameters = list(state.method.trainable_parameters().values())
    plain.add(inputs, 0)
    expected = [parameter.grad.clone() for parameter in parameters]
    plain.clear(state.optimizer)
    loss = state.gradients.add(inputs, 0)
    assert float(loss) == pytest.approx(float(state.method.loss(inputs, 0).mean().detach()))  # unscaled
    for parameter, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, 1024 * gradient)
    before = [parameter.detach().clone() for parameter in parameters]
    parameters[0].grad[0] = torch.inf
    assert state.gradients.apply(state.optimizer) == 0
    assert all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
    assert state.scaler.get_scale() == 512
    state.gradients.add(inputs, 0)
    assert state.gradients.apply(state.optimizer) > 0
    assert not any(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
    state.method.close()


def test_inputs_are_prefetched_in_order_only_on_a_gpu():
    started = []

    def load(step):
        started.append(step)
        return step * 10

    for device in (CPU, CUDA):
        started.clear()
        steps = prefetch(load, range(5), device)
        assert next(steps) == 0
        assert next(steps) == 10
        assert started == [0, 1] if device == CPU else len(started) >= 2
        assert list(steps) == [20, 30, 40] and started == [0, 1, 2, 3, 4]


def test_a_prefetch_error_is_raised_at_its_step():
    def load(step):
        if step == 2:
            raise ValueError("broken")
        return step

    steps = prefetch(load, range(5), CUDA)
    assert [next(steps), next(steps)] == [0, 1]
    with pytest.raises(ValueError, match="broken"):
        next(steps)
