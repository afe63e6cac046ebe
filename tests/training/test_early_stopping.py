"""When a run is over: the rule, the fixed batch it looks at, the average that is measured, and whole runs that end."""

import json
import random
import re
import statistics
from dataclasses import replace

import numpy as np
import pytest
import torch

from sdpersonal.concepts.library import Library
from sdpersonal.config import DreamboothSettings, TextualInversionSettings
from sdpersonal.training import sampling, train
from sdpersonal.training.early_stopping import (
    DVAR_THRESHOLD,
    FIXED_BATCH_SIZE,
    WINDOW,
    can_converge,
    dvar,
    fixed_batch,
    fixed_batch_loss,
    fixed_inputs,
)
from sdpersonal.training.methods import factory
from sdpersonal.training.milestones import milestone_steps
from sdpersonal.training.optim import EMA
from support.narrow import save_narrow, save_photos
from support.train_states import (
    METHODS,
    cloned_tensors,
    equal_tensors,
    fit_to_end,
    loop_config_for,
    settings_for,
    train_state_for,
)

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    return save_narrow("sd1", tmp_path_factory.mktemp("narrow") / "sd1")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return save_photos(tmp_path_factory.mktemp("photos"), 3)


@pytest.fixture
def settings(narrow, photos):
    return lambda method, **more: settings_for(method, photos, narrow, **more)


# --- the rule ---


def by_hand(losses):
    """Every prefix that is longer than the window: the population variance of its end over that of all."""
    prefixes = [losses[: end + 1] for end in range(WINDOW, len(losses))]
    return [statistics.pvariance(prefix[-WINDOW:]) / statistics.pvariance(prefix) for prefix in prefixes]


@pytest.mark.parametrize("seed", range(5))
def test_the_convergence_rule_equals_that_of_the_paper(seed):
    rng = random.Random(seed)
    losses = [0.2 + rng.random() * 0.9**i for i in range(rng.randint(WINDOW + 1, 60))]
    points = dvar([(3 * i, loss) for i, loss in enumerate(losses, 1)])
    assert [point.step for point in points] == [3 * i for i in range(WINDOW + 1, len(losses) + 1)]
    expected = by_hand(losses)
    np.testing.assert_allclose([point.variance_ratio for point in points], expected, rtol=1e-9)
    assert [point.converged for point in points] == [ratio < DVAR_THRESHOLD for ratio in expected]


def test_the_variance_ratio_of_a_linear_loss_depends_only_on_its_length():
    """The variance of n numbers in a row is (n^2 - 1) / 12 of their step's square."""
    points = dvar([(i, 1.0 - 0.01 * i) for i in range(1, 41)])
    lengths = np.arange(WINDOW + 1, 41)
    np.testing.assert_allclose(
        [point.variance_ratio for point in points], (WINDOW**2 - 1) / (lengths**2 - 1), rtol=1e-6
    )


def test_a_loss_that_levels_off_converges_soon_after():
    bent = [(i, max(0.1, 1.0 - 0.1 * i)) for i in range(1, 41)]
    assert next(point.step for point in dvar(bent) if point.converged) in range(9, 9 + WINDOW)


def test_convergence_needs_one_loss_more_than_the_window():
    losses = [(i, 1 / i) for i in range(1, WINDOW + 2)]
    assert dvar([]) == dvar(losses[:WINDOW]) == []
    assert len(dvar(losses)) == 1


@pytest.mark.parametrize("value", [0.0, 0.1, 0.123456, 0.3, 0.7, 1 / 3, 1e-9, 55.555555])
def test_a_constant_loss_is_converged_at_every_point(value):
    points = dvar([(i, value) for i in range(1, 200)])
    assert all(point.variance_ratio == 0 and point.converged for point in points)


def test_a_nan_loss_is_not_converged():
    losses = [(i, 1 / i) for i in range(1, 30)] + [(30, float("nan"))]
    assert not dvar(losses)[-1].converged


def test_losses_before_the_start_step_are_ignored():
    rng = random.Random(1)
    earlier = [(i, 5 + rng.random()) for i in range(1, 21)]
    later = [(i, rng.random()) for i in range(21, 41)]
    assert dvar(earlier + later, start=20) == dvar(later)
    assert dvar(earlier + later)[-1] != dvar(later)[-1]
    assert dvar(earlier, start=20) == []


# --- the fixed batch ---


def test_the_fixed_batch_is_reproducible_with_evenly_spaced_timesteps(settings):
    state, other = train_state_for(settings("inversion")), train_state_for(settings("inversion"))
    first, second, third = fixed_batch(state.photos), fixed_batch(state.photos), fixed_batch(other.photos)
    for again in (second, third):
        for field in ("latents", "noise", "t"):
            assert torch.equal(getattr(first, field), getattr(again, field))
        assert (first.captions, first.photos, first.indices) == (again.captions, again.photos, again.indices)
    levels, steps = state.photos.levels, np.diff(first.t.numpy())
    assert levels == 1000 and len(first.t) == FIXED_BATCH_SIZE == len(first.latents) == len(first.captions)
    assert first.t[0] < levels * 0.05 and levels * 0.75 < first.t[-1] < levels
    assert steps.min() > 0 and steps.max() - steps.min() <= 1
    assert set(first.photos) == {"0.png", "1.png", "2.png"}


@pytest.mark.parametrize("method", METHODS)
def test_measuring_the_fixed_batch_does_not_change_training(settings, tmp_path, method):
    ends, measured = {}, {}
    for name in ("watched", "not"):
        state = train_state_for(settings(method), lambda trained: EMA(trained, 0.9))
        (tmp_path / name).mkdir()
        parts = fixed_inputs(state.method, state.photos, 2, CPU) if name == "watched" else ()
        log = fit_to_end(state, loop_config_for(tmp_path / name, 6, fixed_batch=parts))
        ends[name] = cloned_tensors(state.method.trainable_parameters()) | {
            f"mean {k}": v for k, v in cloned_tensors(state.ema.values).items()
        }
        measured[name] = log.fixed_batch_losses, log.losses
        with state.ema.applied():  # as it was at the last measurement
            now = fixed_batch_loss(state.gradients.loss, fixed_inputs(state.method, state.photos, 2, CPU), 5)
        state.method.close()
    assert equal_tensors(ends["watched"], ends["not"]) and measured["watched"][1] == measured["not"][1]
    assert [step for step, _ in measured["watched"][0]] == [1, 2, 3, 4, 5, 6] and measured["not"][0] == []
    assert measured["watched"][0][-1][1] == pytest.approx(float(now), abs=1e-6)


def test_the_fixed_batch_is_measured_at_intervals_in_batch_sized_parts(settings, tmp_path):
    state = train_state_for(settings("inversion"))
    config = loop_config_for(tmp_path, 7, fixed_batch=fixed_inputs(state.method, state.photos, 2, CPU), measure_every=3)
    sizes, real = [], state.method.loss
    state.method.loss = lambda batch, step: sizes.append(len(batch.t)) or real(batch, step)
    fit_to_end(state, config)
    lines = [json.loads(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "fixed" in line] == [3, 6]
    assert max(sizes) == config.batch


# --- the average ---


def test_the_ema_equals_its_formula(settings, tmp_path):
    rng = np.random.default_rng(0)
    parameter = torch.nn.Parameter(torch.tensor(rng.normal(size=(3, 2)), dtype=torch.float32))
    average, expected = EMA({"a": parameter}, 0.7), parameter.detach().numpy().astype(np.float64)
    for step in range(30):
        value = rng.normal(size=(3, 2)).astype(np.float32)
        parameter.data.copy_(torch.from_numpy(value))
        average.update(step)
        decay = min(0.7, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    np.testing.assert_allclose(average.values["a"].numpy(), expected, atol=1e-6)
    assert torch.equal(parameter, torch.from_numpy(value))


def test_the_applied_ema_is_removed_after_an_exception():
    parameter = torch.nn.Parameter(torch.ones(3))
    average = EMA({"a": parameter}, 0.9)
    with torch.no_grad():
        parameter.fill_(2)
    place, average_place = parameter.data_ptr(), average.values["a"].data_ptr()
    with pytest.raises(KeyboardInterrupt), average.applied():
        assert torch.equal(parameter, torch.ones(3)) and torch.equal(average.values["a"], 2 * torch.ones(3))
        raise KeyboardInterrupt
    assert torch.equal(parameter, 2 * torch.ones(3)) and torch.equal(average.values["a"], torch.ones(3))
    assert (parameter.data_ptr(), average.values["a"].data_ptr()) == (place, average_place)


@pytest.mark.parametrize("method", METHODS)
def test_an_ema_does_not_change_the_trained_values(settings, tmp_path, method):
    """And the average is that of the values after each step, from numpy."""
    ends, decay = {}, 0.8
    for name, make_average in (("average", lambda trained: EMA(trained, decay)), ("none", None)):
        state = train_state_for(settings(method), *([make_average] if make_average else []))
        initial, history = cloned_tensors(state.method.trainable_parameters()), []
        real = state.ema.update
        state.ema.update = lambda step, real=real, state=state, history=history: (
            history.append(cloned_tensors(state.method.trainable_parameters())),
            real(step),
        )
        (tmp_path / name).mkdir()
        fit_to_end(state, loop_config_for(tmp_path / name, 5))
        ends[name] = cloned_tensors(state.method.trainable_parameters())
        if make_average:
            expected = {key: value.numpy().astype(np.float64) for key, value in initial.items()}
            for step, values in enumerate(history):
                weight = min(decay, (1 + step) / (10 + step))
                expected = {key: weight * expected[key] + (1 - weight) * values[key].numpy() for key in expected}
            for key, value in state.ema.values.items():
                np.testing.assert_allclose(value.numpy(), expected[key], atol=1e-6)
        state.method.close()
    assert equal_tensors(ends["average"], ends["none"])
    assert not equal_tensors(ends["none"], initial)


# --- runs that end ---

TINY_LR = 1e-30  # a rate at which no value changes by a bit


@pytest.fixture
def begin(narrow, photos, tmp_path):
    def begin(**more):
        lines = []
        common = {"photos": photos, "token": "<me/thing>", "base": str(narrow), "steps": 40, "batch": 1, "lr": TINY_LR}
        common |= {"library": tmp_path / "concepts", "run": tmp_path / "run", "samples": False, "save_every": 1000}
        kind = DreamboothSettings if "method" in more else TextualInversionSettings
        result = train(kind(**(common | more)), lines.append)
        return Library(tmp_path / "concepts").get(result.token), lines

    return begin


def last_step(tmp_path):
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "run" / "progress.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, result["steps"] + 1))
    return result["steps"]


@pytest.fixture
def usual(monkeypatch):
    """Presets of so many steps."""

    def usual(steps, **more):
        real = factory.preset
        monkeypatch.setattr(factory, "preset", lambda *which: replace(real(*which), steps=steps, **more))

    return usual


@pytest.mark.parametrize(
    ("steps", "end"),
    [(40, 12), *(pytest.param(n, end, marks=pytest.mark.thorough) for n, end in ((80, 24), (120, 36)))],
)
def test_a_converged_run_stops_at_the_first_milestone_with_enough_losses(begin, usual, tmp_path, steps, end):
    """The first of ten milestones that has seen nine of forty measurements."""
    usual(steps)
    concept, lines = begin(steps=None)
    assert last_step(tmp_path) == concept.card.steps == end
    line = f"The loss has converged: ended after step {end} of {steps} (--no-early-stop runs all of them)."
    assert lines.count(line) == 1
    assert f"It ended after step {end}, since the loss had converged; {steps} were allowed." in " ".join(
        (tmp_path / "run" / "report.html").read_text().split()
    )


def test_runs_with_more_steps_stop_early_at_a_later_step(begin, usual, tmp_path):
    usual(80)
    begin(steps=40)
    assert last_step(tmp_path) == 20  # nine measurements of every second step
    begin(steps=160, run=tmp_path / "longer" / "run")
    assert last_step(tmp_path / "longer") == 48


def test_a_resumed_run_stops_again_unless_early_stopping_is_off(begin, usual, tmp_path):
    usual(14)
    first, _ = begin(steps=14)
    assert last_step(tmp_path) == first.card.steps == 10
    resumed, lines = begin(steps=14, resume=True)
    assert last_step(tmp_path) == 10 and resumed.identity == first.identity
    assert any("loss has converged" in line for line in lines)
    _, lines = begin(steps=14, resume=True, early_stop=False)
    assert last_step(tmp_path) == 14
    assert any("Resuming from step 10" in line for line in lines)


def test_a_short_run_is_never_stopped_early(begin, usual, tmp_path):
    usual(80)
    concept, lines = begin(steps=18)
    assert last_step(tmp_path) == concept.card.steps == 18 and not any("loss has converged" in line for line in lines)


def test_no_early_stop_trains_all_steps(begin, usual, tmp_path):
    usual(14)
    concept, lines = begin(steps=14, early_stop=False)
    assert last_step(tmp_path) == concept.card.steps == 14 and not any("loss has converged" in line for line in lines)


def test_early_stopping_of_pivotal_runs_ignores_losses_before_the_pivot(begin, usual, tmp_path):
    usual(20, pivot_steps=4)
    concept, _ = begin(method="pivotal", class_noun="cat", rank=2, steps=20)
    assert last_step(tmp_path) == concept.card.steps == 14  # 10 values of the LoRA's curve; by all it would be 10


def test_a_run_without_samples_generates_none_and_uses_the_last_step(begin, tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "denoise", lambda *_: pytest.fail("drew"))
    concept, lines = begin(base="tiny", steps=3, lr=None)
    assert concept.card.steps == 3 and concept.card.scores == {} and concept.thumbnail is None
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert not left & {"trials", "trials.jsonl", "samples.png"} and "report.html" in left
    assert not any(re.search("copies|no effect|like the photos", line) for line in lines)


def test_milestones_cover_the_run_to_its_last_step(tmp_path):
    assert milestone_steps(10, 3) == (4, 8, 10) and milestone_steps(10, 2) == (5, 10)
    for steps in (1, 2, 9, 10, 11, 39, 40, 250, 801):
        milestones = milestone_steps(steps, 10)
        assert list(milestones) == sorted(set(milestones)) and milestones[-1] == steps and len(milestones) <= 10
        assert milestone_steps(steps, 1) == (steps,)
        assert can_converge(steps, 1) == (steps > WINDOW + 1)
        config = loop_config_for(tmp_path, steps, milestones=milestones)
        assert [step for step in range(1, steps + 1) if config.is_milestone(step)] == list(milestones)
        assert [config.next_milestone(step) for step in (0, *milestones[:-1])] == list(milestones)
