"""The hidden step before the first: nothing of it is left, and what cannot be done is said before anything is."""

import math
import os
import re
import signal

import pytest
import torch

from sdpersonal import storage
from sdpersonal.concepts.library import Library
from sdpersonal.errors import DiskFull, Diverged, UserError
from sdpersonal.training import dry_run, oom_advice, train
from sdpersonal.training.checkpoint import save_checkpoint
from sdpersonal.training.dry_run import perform_dry_run
from sdpersonal.training.optim import EMA
from support.narrow import save_narrow, save_photos
from support.ranks import start
from support.train_states import (
    METHODS,
    cloned_tensors,
    equal_tensors,
    fit_to_end,
    loop_config_for,
    settings_for,
    train_state_for,
)

OPTIMIZERS = ("adamw", "prodigy", "adamw8bit")


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    return save_narrow("sd1", tmp_path_factory.mktemp("narrow") / "sd1")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return save_photos(tmp_path_factory.mktemp("photos"), 3)


@pytest.fixture
def settings(narrow, photos):
    return lambda method, **more: settings_for(method, photos, narrow, **more)


def base_tensors(state):
    modules = state.photos._base.modules()
    return {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}


def group_settings(state):
    return [
        {key: value for key, value in group.items() if key != "params"} | {"params": [id(p) for p in group["params"]]}
        for group in state.optimizer.param_groups
    ]


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def trained_values(state):
    """All that a step could have changed, copied."""
    return (
        cloned_tensors(state.method.trainable_parameters()),
        cloned_tensors(state.ema.values),
        cloned_tensors(base_tensors(state)),
        group_settings(state),
    )


def assert_unchanged(state, initial):
    values, average, base, groups = initial
    assert equal_tensors(values, state.method.trainable_parameters()) and equal_tensors(average, state.ema.values)
    assert equal_tensors(base, base_tensors(state))
    assert str(group_settings(state)) == str(groups)  # tensors among them by their digits
    assert len(state.optimizer.state) == 0
    assert all(parameter.grad is None for parameter in state.method.trainable_parameters().values())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", METHODS)
def test_the_dry_run_leaves_no_trace_and_training_is_bitwise_equal(settings, tmp_path, method, optimizer):
    ends = []
    for dry_run_first in (True, False):
        folder = tmp_path / str(dry_run_first)
        folder.mkdir()
        (folder / "mine.txt").write_text("was here")
        state = train_state_for(settings(method, optimizer=optimizer, rank=16), lambda trained: EMA(trained, 0.9))
        if dry_run_first:
            initial, files_before = trained_values(state), tree(folder)
            cost = perform_dry_run(state, 2, 2, folder)
            assert_unchanged(state, initial)
            assert tree(folder) == files_before
            assert 0 < cost.step < 60 and 0 < cost.checkpoint < 60 and 0 < cost.used_bytes < cost.available_bytes
        log = fit_to_end(state, loop_config_for(folder, 2))
        ends.append(
            (cloned_tensors(state.method.trainable_parameters()) | cloned_tensors(state.ema.values), log.losses)
        )
        state.method.close()
    assert equal_tensors(ends[0][0], ends[1][0]) and ends[0][1] == ends[1][1]


def broken_batch(state, number):
    """The number-th batch from now on is not a number, the others are."""
    real, left = state.photos.batch, [number]

    def samples(indices):
        batch = real(indices)
        left[0] -= 1
        if left[0] == 0:
            batch.latents[0, 0, 0, 0] = math.nan
        return batch

    state.photos.batch = samples


@pytest.mark.parametrize("number", [1, 2])  # of two batches a step: the loss that is looked at last may be a good one
@pytest.mark.parametrize("method", METHODS)
def test_a_nan_in_the_dry_run_changes_nothing(settings, tmp_path, method, number):
    state = train_state_for(settings(method), lambda trained: EMA(trained, 0.9))
    initial, files_before = trained_values(state), tree(tmp_path)
    broken_batch(state, number)
    perform_dry_run(state, 2, 2, tmp_path)
    assert_unchanged(state, initial)
    assert tree(tmp_path) == files_before
    assert all(torch.isfinite(value).all() for value in state.method.trainable_parameters().values())
    state.method.close()


def test_a_nan_loss_stops_training_at_the_first_step(settings, tmp_path, monkeypatch):
    from sdpersonal.training.methods.textual_inversion import TextualInversion

    real = TextualInversion.loss
    monkeypatch.setattr(TextualInversion, "loss", lambda self, batch, step: real(self, batch, step) * math.nan)
    with pytest.raises(Diverged, match="at step 1 "):
        train(settings("inversion", library=tmp_path / "concepts", run=tmp_path / "run", samples=False), quiet)


def quiet(_line):
    pass


# --- no room ---


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_required_disk_space_is_that_of_four_checkpoints(settings, tmp_path, monkeypatch, optimizer):
    """Two kept, the best, and one being written, each of as many bytes as a real one's file."""
    state = train_state_for(settings("lora", optimizer=optimizer, rank=16), lambda trained: EMA(trained, 0.9))
    requested_bytes = []
    monkeypatch.setattr(dry_run, "_check_disk", lambda run, need: requested_bytes.append(need))
    perform_dry_run(state, 2, 1, tmp_path)
    monkeypatch.undo()
    fit_to_end(state, loop_config_for(tmp_path, 1))
    size = (tmp_path / "step-000001" / "state.safetensors").stat().st_size
    state.method.close()
    assert 4 * size * 0.8 < requested_bytes[0] < 4 * size * 1.2


@pytest.fixture
def begin(settings, tmp_path):
    def begin(method="lora", **more):
        lines = []
        common = {"library": tmp_path / "concepts", "run": tmp_path / "run", "samples": False, "save_every": 2}
        train(settings(method, **(common | more)), lines.append)
        return lines

    return begin


def files_in(run):
    return sorted(path.name for path in run.iterdir() if not path.name.startswith(".")) if run.exists() else []


@pytest.fixture
def no_steps(monkeypatch):
    """Fails the test if a real step is begun."""
    from sdpersonal.training import loop

    monkeypatch.setattr(loop, "_set_learning_rates", lambda *_: pytest.fail("a step was begun"))


def test_insufficient_disk_space_is_refused_before_the_first_step(begin, tmp_path, monkeypatch, no_steps):
    monkeypatch.setattr(storage, "free_bytes", lambda folder: 12_345)
    with pytest.raises(DiskFull) as caught:
        begin()
    needed = re.fullmatch(r"Checkpoints need about ([0-9.]+) GB in .*/run; 0\.0 GB are free\.", caught.value.message)
    assert needed and "--run" in caught.value.hint and caught.value.exit_code == 3
    assert files_in(tmp_path / "run") == [] and not (tmp_path / "concepts").exists()


def test_insufficient_memory_is_refused_before_the_first_step(begin, tmp_path, monkeypatch, no_steps):
    monkeypatch.setattr(oom_advice, "memory_usage", lambda device: (3_000_000_000, 3_000_100_000))
    with pytest.raises(UserError) as caught:
        begin("full")
    assert re.fullmatch(
        r"Not enough memory for gradients and moments: needs about [0-9.]+ GB, 3\.0 GB there\.", caught.value.message
    )
    assert "Try --checkpointing 1, --batch 1 --accumulate 2" in caught.value.hint and "adamw8bit" in caught.value.hint
    assert files_in(tmp_path / "run") == [] and not (tmp_path / "concepts").exists()


@pytest.mark.parametrize(("autocast_dtype", "bytes_a_weight"), [(None, 12), (torch.bfloat16, 14)])
def test_required_memory_includes_gradients_moments_and_autocast_copies(
    settings, tmp_path, monkeypatch, autocast_dtype, bytes_a_weight
):
    """Gradient and two moments in fp32, and the copy of a weight that autocast computes with."""
    state, required = train_state_for(settings("full")), []
    state.method.autocast_dtype = autocast_dtype
    monkeypatch.setattr(oom_advice.OomAdvice, "require", lambda advice, size, what: required.append(size))
    monkeypatch.setattr(dry_run, "_time_step", lambda *_: 3.0)
    try:
        perform_dry_run(state, 1, 1, tmp_path)
        count = sum(weight.numel() for weight in state.method.trainable_parameters().values())
        assert required == [bytes_a_weight * count]
    finally:
        state.method.close()


def test_out_of_memory_in_the_dry_run_is_reported_before_the_first_step(begin, tmp_path, monkeypatch, no_steps):
    def step(*_):
        raise torch.OutOfMemoryError("Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(dry_run, "_time_step", step)
    with pytest.raises(UserError, match="Out of memory before the first step: needs about 2"):
        begin()
    assert files_in(tmp_path / "run") == []


def test_a_full_disk_in_the_dry_run_leaves_no_files(begin, tmp_path, monkeypatch, no_steps):
    import errno

    real = storage.atomic._write

    def write(handle, data):
        if len(data) > 3000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle, data)

    monkeypatch.setattr(storage.atomic, "_write", write)
    with pytest.raises(DiskFull, match="not enough space in"):
        begin()
    assert files_in(tmp_path / "run") == []


# --- killed ---


def dies_in_its_checkpoint():
    """After the tensors are written, before the manifest is."""
    real = storage.write_json

    def write(path, value):
        if path.name == "manifest.json":
            os.kill(os.getpid(), signal.SIGKILL)
        real(path, value)

    storage.write_json = write


@pytest.mark.thorough
def test_a_new_run_after_a_killed_dry_run_gives_the_same_concept(narrow, photos, tmp_path):
    def command(folder):
        flags = ["--photos", photos, "--token", "<me/thing>", "--base", narrow, "--steps", 2, "--batch", 1]
        flags += ["--vectors", 2, "--library", folder / "concepts", "--run", folder / "run", "--no-samples"]
        return ["train", "textual-inversion", *flags]

    child = start(command(tmp_path / "killed"), tmp_path / "killed", fault=dies_in_its_checkpoint)
    assert child.wait() == -signal.SIGKILL
    assert "rehearsal" in files_in(tmp_path / "killed" / "run")
    for folder in ("killed", "whole"):
        child = start(command(tmp_path / folder), tmp_path / folder)
        assert child.wait() == 0, child.errors
    assert "rehearsal" not in files_in(tmp_path / "killed" / "run")
    first, two = (Library(tmp_path / folder / "concepts").entries()[0] for folder in ("killed", "whole"))
    assert first.identity == two.identity


def test_the_dry_run_removes_files_of_a_killed_dry_run(settings, tmp_path):
    state = train_state_for(settings("inversion"))
    (tmp_path / dry_run.DRY_RUN_FOLDER).mkdir()
    save_checkpoint(tmp_path / dry_run.DRY_RUN_FOLDER, 0, state.checkpoint_state(), {})
    perform_dry_run(state, 1, 1, tmp_path)
    assert tree(tmp_path) == {}
    state.method.close()
