"""Several concepts in one batch: each equal to the same run alone, and none affected by another's end."""

import json
import math
import os
import signal
import threading

import numpy as np
import pytest
import torch

from sdpersonal.concepts.library import Library
from sdpersonal.config import DreamboothSettings, TextualInversionSettings, generation
from sdpersonal.errors import Diverged, Interrupted, UserError
from sdpersonal.models import load_base
from sdpersonal.training import sampling, train, validation
from sdpersonal.training.dataset import PhotoDataset
from sdpersonal.training.joint import joint_losses, train_together
from sdpersonal.training.run_dir import checkpoint_steps
from support.narrow import save_narrow, save_photos
from support.train_states import settings_for, train_state_for


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    return save_narrow("sd1", tmp_path_factory.mktemp("narrow") / "sd1")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Photo folders of several people."""
    folder = tmp_path_factory.mktemp("people")
    return [save_photos(folder / str(count), count) for count in (2, 3, 4)]


@pytest.fixture(scope="module")
def settings(narrow, photos):
    """Settings of run `number`; all differ in what each run has of its own."""

    def build(number, place, **changes):
        own = {"batch": 1 + number, "vectors": 1 + number, "seed": number, "steps": 4 + number, "init": "cat"}
        common = {
            "photos": photos[number],
            "token": f"<me/thing{number}>",
            "base": str(narrow),
            "save_every": 2,
            "resolution": 64,
        }
        common |= {"library": place / "concepts", "run": place / f"run{number}", "samples": False}
        return TextualInversionSettings(**(common | own | changes))

    return build


DIFFERENT = ({}, {"snr_gamma": 5.0, "accumulate": 2}, {"lr": 0.01})


@pytest.fixture(scope="module")
def alone(settings, tmp_path_factory):
    """Three runs, one after the other."""
    place = tmp_path_factory.mktemp("alone")
    return [train(settings(i, place, **changes), quiet) for i, changes in enumerate(DIFFERENT)]


def quiet(_line):
    pass


def vectors(result):
    return Library(result.run.parent / "concepts").get(result.token).vectors["clip_l"]


def losses(result):
    return [json.loads(line)["loss"] for line in (result.run / "progress.jsonl").read_text().splitlines()]


def check_equal(result, expected):
    np.testing.assert_allclose(losses(result), losses(expected), atol=2e-5)
    np.testing.assert_allclose(vectors(result), vectors(expected), atol=2e-5)
    assert checkpoint_steps(result.run) == checkpoint_steps(expected.run)
    names = [sorted(str(path.relative_to(run)) for path in run.rglob("*")) for run in (result.run, expected.run)]
    assert names[0] == names[1]


def test_joint_runs_equal_separate_runs(settings, alone, tmp_path):
    lines, steps = [], []
    runs = [settings(i, tmp_path, **changes) for i, changes in enumerate(DIFFERENT)]
    before = threading.active_count()
    results = train_together(runs, lines.append, lambda run, progress: steps.append((run, progress.step)))
    for result, expected in zip(results, alone, strict=True):
        check_equal(result, expected)
    assert np.abs(vectors(results[0])[0] - vectors(results[1])[0]).max() > 1e-3
    assert [steps.count((0, step)) for step in range(1, 5)] == [1] * 4 and max(steps) == (2, 6)
    assert all(line.startswith("<me/thing") for line in lines) and threading.active_count() == before


def test_joint_gradients_of_embeddings_equal_those_of_separate_runs(narrow, photos):
    states = [
        train_state_for(settings_for("inversion", folder, narrow, vectors=1 + i, snr_gamma=gamma))
        for i, (folder, gamma) in enumerate(zip(photos, (None, 5.0, None), strict=True))
    ]
    base = load_base(str(narrow), "cpu")
    batches = [(state.method, state.method.inputs(state.photos.batch(range(2 + i)))) for i, state in enumerate(states)]
    torch.stack([loss.mean() for loss in joint_losses(base, batches)]).sum().backward()
    for method, inputs in batches:
        (parameter,) = method.trainable_parameters().values()
        together, parameter.grad = parameter.grad, None
        method.loss(inputs, 0).mean().backward()
        torch.testing.assert_close(together, parameter.grad, atol=1e-6, rtol=1e-4)
        assert parameter.grad.abs().max() > 1e-6


def test_joint_gradients_of_loras_equal_those_of_separate_runs(narrow, photos):
    """Of two ranks, of every kind of layer, beside a run without a LoRA."""
    kinds = (("lora", {"rank": 2}), ("inversion", {}), ("lora", {"rank": 3, "targets": "all"}))
    states = [
        train_state_for(settings_for(method, folder, narrow, **options))
        for folder, (method, options) in zip(photos, kinds, strict=True)
    ]
    batches = [(state.method, state.method.inputs(state.photos.batch(range(2)))) for state in states]
    rng, base = torch.Generator().manual_seed(0), load_base(str(narrow), "cpu")
    for method, _ in batches:
        for parameter in method.trained_lora.values():
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=rng)
    with base.adapters.trained_in_groups([method.trained_lora for method, _ in batches]):
        torch.stack([loss.mean() for loss in joint_losses(base, batches)]).sum().backward()
    assert not any(module._forward_hooks for module in base.unet.modules())
    for method, inputs in batches:
        parameters = method.trainable_parameters()
        together = {name: parameter.grad for name, parameter in parameters.items()}
        for parameter in parameters.values():
            parameter.grad = None
        method.loss(inputs, 0).mean().backward()
        for name, parameter in parameters.items():
            torch.testing.assert_close(together[name], parameter.grad, atol=1e-5, rtol=1e-3, msg=name)
        assert max(parameter.grad.abs().max() for parameter in parameters.values()) > 1e-4


def test_joint_runs_with_loras_equal_separate_runs(settings, photos, narrow, tmp_path, monkeypatch):
    monkeypatch.setattr(validation, "DENOISING_STEPS", 2)
    monkeypatch.setattr(generation, "DEFAULT_STEPS", 4)
    monkeypatch.setattr(sampling, "_SEEDS", 1)

    def runs(place):
        common = {"base": str(narrow), "batch": 2, "steps": 2, "samples": False, "library": place / "concepts"}
        common["resolution"] = 64
        loras = [
            DreamboothSettings(token=f"<me/cat{i}>", class_noun="cat", run=place / f"cat{i}", photos=folder, **own)
            for i, (folder, own) in enumerate(
                (
                    (photos[0], common | {"rank": 2}),
                    (photos[1], common | {"rank": 3, "seed": 4, "lr": 1e-3, "samples": True, "accumulate": 2}),
                )
            )
        ]
        return [*loras, settings(2, place, batch=2, steps=2)]

    expected = [train(run, quiet) for run in runs(tmp_path / "alone")]
    for result, other in zip(train_together(runs(tmp_path / "together"), quiet), expected, strict=True):
        check_equal(result, other)
        lora, theirs = (Library(x.run.parent / "concepts").get(x.token).lora for x in (result, other))
        assert (lora is None) == (theirs is None)
        for name, layer in lora.layers.items() if lora else ():
            np.testing.assert_allclose(layer.up, theirs.layers[name].up, atol=2e-5)
            np.testing.assert_allclose(layer.down, theirs.layers[name].down, atol=2e-5)
            assert np.abs(layer.up).max() > 1e-6


def test_a_joint_run_stopped_by_a_signal_resumes_alone(settings, alone, tmp_path):
    runs = [settings(i, tmp_path, **changes) for i, changes in enumerate(DIFFERENT[:2])]
    before = signal.getsignal(signal.SIGTERM)

    def stop(run, progress):
        if (run, progress.step) == (0, 1):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="Stopped after step") as stopped:
        train_together(runs, quiet, stop)
    assert stopped.value.exit_code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
    assert all(max(checkpoint_steps(run.run)) < run.steps for run in runs)
    resumed = [train(run.model_copy(update={"resume": True}), quiet) for run in runs]
    for result, expected in zip(resumed, alone, strict=False):
        np.testing.assert_allclose(losses(result), losses(expected), atol=2e-5)
        np.testing.assert_allclose(vectors(result), vectors(expected), atol=2e-5)


def test_a_failed_run_does_not_end_the_other_runs(settings, alone, tmp_path, monkeypatch):
    real = PhotoDataset.batch

    def with_a_bad_number(self, indices):
        batch = real(self, indices)
        if self._seed == 7 and 5 in indices:  # the third step of two samples
            batch.latents[0, 0, 0, 0] = math.nan
        return batch

    monkeypatch.setattr(PhotoDataset, "batch", with_a_bad_number)
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    runs = [
        settings(0, tmp_path),
        settings(1, tmp_path, seed=7),
        settings(2, tmp_path, photos=tmp_path / "empty"),
        settings(1, tmp_path / "other", **DIFFERENT[1]),
    ]
    good, diverged, missing, other = train_together(runs, quiet)
    check_equal(good, alone[0])
    check_equal(other, alone[1])
    assert isinstance(diverged, Diverged) and "NaN at step 3" in str(diverged)
    assert isinstance(missing, UserError) and "photo" in str(missing)


def test_an_unexpected_exception_is_raised_and_releases_the_lock(settings, tmp_path, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("boom")

    monkeypatch.setattr("sdpersonal.training.joint.joint_losses", broken)
    with pytest.raises(ZeroDivisionError, match="boom"):
        train_together([settings(0, tmp_path), settings(1, tmp_path)], quiet)
    monkeypatch.undo()
    train_together([settings(0, tmp_path)], quiet)  # the folder's lock is free again


def test_a_keyboard_interrupt_ends_every_thread(settings, tmp_path):
    def interrupt(run, progress):
        raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        train_together([settings(0, tmp_path), settings(1, tmp_path)], quiet, interrupt)
    assert threading.active_count() == before
    assert not list(tmp_path.rglob("result.json"))  # the other run did not go on


def test_incompatible_runs_are_refused_before_training(settings, tmp_path, photos, narrow):
    first = settings(0, tmp_path)
    with pytest.raises(UserError, match=r"<me/thing0> has resolution 64 and <me/thing1> has 128"):
        train_together([first, settings(1, tmp_path, resolution=128)], quiet)
    with pytest.raises(UserError, match="the same run folder"):
        train_together([first, settings(1, tmp_path, run=first.run)], quiet)
    lora = DreamboothSettings(
        photos=photos[1], token="<me/cat>", base=str(narrow), class_noun="cat", batch=2, resolution=64
    )
    for changes, reason in (
        ({"method": "pivotal"}, "it has --method pivotal"),
        ({"prior": "predicted"}, "it has a --prior"),
        ({"text_encoder": True}, "its text encoder is trained"),
    ):
        with pytest.raises(UserError, match=f"<me/cat> cannot be trained together with others: {reason}"):
            train_together([first, lora.model_copy(update=changes)], quiet)
    with pytest.raises(UserError, match="the same batch size: <me/thing0> has 1, <me/cat> has 2"):
        train_together([first, lora], quiet)
    with pytest.raises(UserError, match="got 0"):
        train_together([], quiet)
    assert not first.run.exists()


def test_the_dry_run_of_a_joint_run_captures_no_graph(settings, tmp_path, monkeypatch):
    """On a card each run would capture a step that it never replays, and keep its memory."""
    from sdpersonal.training import run as whole_run

    asked = []

    def build(*args):
        asked.append(args[-1])
        raise UserError("Enough.")

    monkeypatch.setattr(whole_run, "_build_state", build)
    with pytest.raises(UserError, match="Enough"):
        train(settings(0, tmp_path), quiet)
    (outcome,) = train_together([settings(1, tmp_path)], quiet)
    assert isinstance(outcome, UserError) and asked == [None, False]
