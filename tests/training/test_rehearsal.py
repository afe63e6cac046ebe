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
from sdpersonal.training.ema import EMA
from sdpersonal.training.loop import fit
from sdpersonal.training.progress_log import ProgressLog
from support.lessons import METHODS, cloned_tensors, equal_tensors, loop_config_for, settings_for, train_state_for
from support.narrow import save_narrow, save_photos
from support.ranks import start

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


def of_base(lesson):
    modules = lesson.photos._base.modules()
    return {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}


def of_groups(lesson):
    return [
        {key: value for key, value in group.items() if key != "params"} | {"params": [id(p) for p in group["params"]]}
        for group in lesson.optimizer.param_groups
    ]


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def kept(lesson):
    """All that a step could have changed, copied."""
    return (
        cloned_tensors(lesson.method.trainable_parameters()),
        cloned_tensors(lesson.ema.values),
        cloned_tensors(of_base(lesson)),
        of_groups(lesson),
    )


def assert_as_before(lesson, before):
    values, average, base, groups = before
    assert equal_tensors(values, lesson.method.trainable_parameters()) and equal_tensors(average, lesson.ema.values)
    assert equal_tensors(base, of_base(lesson))
    assert str(of_groups(lesson)) == str(groups)  # tensors among them by their digits
    assert len(lesson.optimizer.state) == 0
    assert all(parameter.grad is None for parameter in lesson.method.trainable_parameters().values())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", METHODS)
def test_nothing_of_it_is_left_and_the_run_is_the_same_to_the_bit(settings, tmp_path, method, optimizer):
    ends = []
    for rehearsed in (True, False):
        place = tmp_path / str(rehearsed)
        place.mkdir()
        (place / "mine.txt").write_text("was here")
        lesson = train_state_for(settings(method, optimizer=optimizer, rank=16), lambda trained: EMA(trained, 0.9))
        if rehearsed:
            before, was = kept(lesson), tree(place)
            cost = perform_dry_run(lesson, 2, 2, place)
            assert_as_before(lesson, before)
            assert tree(place) == was
            assert 0 < cost.step < 60 and 0 < cost.checkpoint < 60 and 0 < cost.used_bytes < cost.available_bytes
        journal = ProgressLog(place, 0, 2)
        fit(lesson, loop_config_for(place, 2), journal)
        ends.append(
            (cloned_tensors(lesson.method.trainable_parameters()) | cloned_tensors(lesson.ema.values), journal.losses)
        )
        lesson.method.close()
    assert equal_tensors(ends[0][0], ends[1][0]) and ends[0][1] == ends[1][1]


def broken_batch(lesson, number):
    """The number-th batch from now on is not a number, the others are."""
    real, left = lesson.photos.batch, [number]

    def samples(indices):
        batch = real(indices)
        left[0] -= 1
        if left[0] == 0:
            batch.latents[0, 0, 0, 0] = math.nan
        return batch

    lesson.photos.samples = samples


@pytest.mark.parametrize("number", [1, 2])  # of two batches a step: the loss that is looked at last may be a good one
@pytest.mark.parametrize("method", METHODS)
def test_a_number_that_is_none_spoils_nothing(settings, tmp_path, method, number):
    lesson = train_state_for(settings(method), lambda trained: EMA(trained, 0.9))
    before, was = kept(lesson), tree(tmp_path)
    broken_batch(lesson, number)
    perform_dry_run(lesson, 2, 2, tmp_path)
    assert_as_before(lesson, before)
    assert tree(tmp_path) == was
    assert all(torch.isfinite(value).all() for value in lesson.method.trainable_parameters().values())
    lesson.method.close()


def test_a_base_that_answers_with_nan_ends_in_the_first_real_step(settings, tmp_path, monkeypatch):
    from sdpersonal.training.methods.textual_inversion import TextualInversion

    real = TextualInversion.loss
    monkeypatch.setattr(TextualInversion, "loss", lambda self, batch, step: real(self, batch, step) * math.nan)
    with pytest.raises(Diverged, match="at step 1 "):
        train(settings("inversion", library=tmp_path / "concepts", run=tmp_path / "run", samples=False), quiet)


def quiet(_line):
    pass


# --- no room ---


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_disk_that_is_asked_for_holds_the_checkpoints(settings, tmp_path, monkeypatch, optimizer):
    """Two kept, the best, and one being written, each of as many bytes as a real one's file."""
    lesson = train_state_for(settings("lora", optimizer=optimizer, rank=16), lambda trained: EMA(trained, 0.9))
    asked = []
    monkeypatch.setattr(dry_run, "_check_disk", lambda run, need: asked.append(need))
    perform_dry_run(lesson, 2, 1, tmp_path)
    monkeypatch.undo()
    fit(lesson, loop_config_for(tmp_path, 1), ProgressLog(tmp_path, 0, 1))
    size = (tmp_path / "step-000001" / "state.safetensors").stat().st_size
    lesson.method.close()
    assert 4 * size * 0.8 < asked[0] < 4 * size * 1.2


@pytest.fixture
def begin(settings, tmp_path):
    def begin(method="lora", **more):
        said = []
        common = {"library": tmp_path / "concepts", "run": tmp_path / "run", "samples": False, "save_every": 2}
        train(settings(method, **(common | more)), said.append)
        return said

    return begin


def left_in(run):
    return sorted(path.name for path in run.iterdir() if not path.name.startswith(".")) if run.exists() else []


@pytest.fixture
def no_steps(monkeypatch):
    """Fails the test if a real step is begun."""
    from sdpersonal.training import loop

    monkeypatch.setattr(loop, "_set_rates", lambda *_: pytest.fail("a step was begun"))


def test_a_disk_that_is_too_small_is_said_first(begin, tmp_path, monkeypatch, no_steps):
    monkeypatch.setattr(storage, "free_bytes", lambda folder: 12_345)
    with pytest.raises(DiskFull) as caught:
        begin()
    needed = re.fullmatch(r"Checkpoints need about ([0-9.]+) GB in .*/run; 0\.0 GB are free\.", caught.value.message)
    assert needed and "--run" in caught.value.hint and caught.value.exit_code == 3
    assert left_in(tmp_path / "run") == [] and not (tmp_path / "concepts").exists()


def test_a_memory_that_is_too_small_is_said_first(begin, tmp_path, monkeypatch, no_steps):
    monkeypatch.setattr(oom_advice, "memory_usage", lambda device: (3_000_000_000, 3_000_100_000))
    with pytest.raises(UserError) as caught:
        begin("full")
    assert re.fullmatch(
        r"No memory for gradients and moments: needs about [0-9.]+ GB, 3\.0 GB there\.", caught.value.message
    )
    assert "Try --checkpointing 1, --batch 1 --accumulate 2" in caught.value.hint and "adamw8bit" in caught.value.hint
    assert left_in(tmp_path / "run") == [] and not (tmp_path / "concepts").exists()


def test_running_out_of_memory_in_it_is_said_as_before_the_first_step(begin, tmp_path, monkeypatch, no_steps):
    def step(*_):
        raise torch.OutOfMemoryError("Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(dry_run, "_time_step", step)
    with pytest.raises(UserError, match="Out of memory before the first step: needs about 2"):
        begin()
    assert left_in(tmp_path / "run") == []


def test_a_disk_that_fills_while_it_is_tried_leaves_nothing(begin, tmp_path, monkeypatch, no_steps):
    import errno

    real = storage.atomic._write

    def write(handle, data):
        if len(data) > 3000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle, data)

    monkeypatch.setattr(storage.atomic, "_write", write)
    with pytest.raises(DiskFull, match="no room in"):
        begin()
    assert left_in(tmp_path / "run") == []


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
def test_killed_in_it_a_new_run_starts_and_ends_the_same(narrow, photos, tmp_path):
    def command(place):
        flags = ["--photos", photos, "--token", "<me/thing>", "--base", narrow, "--steps", 2, "--batch", 1]
        flags += ["--vectors", 2, "--library", place / "concepts", "--run", place / "run", "--no-samples"]
        return ["train", "textual-inversion", *flags]

    child = start(command(tmp_path / "killed"), tmp_path / "killed", fault=dies_in_its_checkpoint)
    assert child.wait() == -signal.SIGKILL
    assert "rehearsal" in left_in(tmp_path / "killed" / "run")
    for place in ("killed", "whole"):
        again = start(command(tmp_path / place), tmp_path / place)
        assert again.wait() == 0, again.errors
    assert "rehearsal" not in left_in(tmp_path / "killed" / "run")
    one, two = (Library(tmp_path / place / "concepts").entries()[0] for place in ("killed", "whole"))
    assert one.identity == two.identity


def test_what_a_kill_left_is_written_over(settings, tmp_path):
    lesson = train_state_for(settings("inversion"))
    (tmp_path / dry_run.DRY_RUN_FOLDER).mkdir()
    save_checkpoint(tmp_path / dry_run.DRY_RUN_FOLDER, 0, lesson.checkpoint_state(), {})
    perform_dry_run(lesson, 1, 1, tmp_path)
    assert tree(tmp_path) == {}
    lesson.method.close()
