"""Whole runs: they leave what they should, go on exactly where they were killed, and fail in a sentence."""

import errno
import getpass
import json
import math
import os
import random
import re
import signal
import socket
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from sdpersonal import storage
from sdpersonal.concepts.library import Library
from sdpersonal.config import DreamboothSettings, TextualInversionSettings, generation
from sdpersonal.errors import DiskFull, Diverged, Interrupted, UserError
from sdpersonal.prompts import Token
from sdpersonal.training import curves, loop, run, run_ending, sampling, train, validation
from sdpersonal.training.checkpoint import CheckpointState, load_checkpoint, save_checkpoint
from sdpersonal.training.dataset import PhotoDataset
from sdpersonal.training.methods.textual_inversion import TextualInversion
from sdpersonal.training.presets import preset
from sdpersonal.training.progress_log import ProgressLog
from support import crash
from support.narrow import save_narrow, save_photos
from support.ranks import start
from support.train_states import loop_config_for


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """A folder with Stable Diffusion 1.x, narrow and with random weights: what is learned is not the question here."""
    return save_narrow("sd1", tmp_path_factory.mktemp("narrow") / "sd1")


@pytest.fixture
def photos(tmp_path):
    return save_photos(tmp_path / "photos", 3)


@pytest.fixture
def settings(narrow, photos):
    def build(kind, place, **changes):
        common = {"photos": photos, "token": "<me/thing>", "base": str(narrow), "steps": 4, "batch": 1, "save_every": 2}
        common |= {"library": place / "concepts", "run": place / "run", "samples": False}
        if kind == "inversion":
            return TextualInversionSettings(**(common | {"vectors": 2} | changes))
        return DreamboothSettings(**(common | {"class_noun": "cat", "rank": 2} | changes))

    return build


@pytest.fixture
def command(narrow, photos):
    def build(kind, place, *more, steps=12):
        method_flags = (
            ["textual-inversion", "--vectors", 2] if kind == "inversion" else ["dreambooth", "--class", "cat"]
        )
        flags = ["--photos", photos, "--token", "<me/thing>", "--base", narrow, "--steps", steps, "--batch", 1]
        flags += ["--save-every", 2, "--library", place / "concepts", "--run", place / "run", "--no-samples"]
        return ["train", *method_flags, *flags, *more]

    return build


def quiet(_line):
    pass


def payload(place, token="<me/thing>"):
    concept = Library(place / "concepts").get(Token.parse(token))
    return concept.identity, concept.card.model_dump(exclude={"created"})


def checkpoints(place):
    return sorted(path.name for path in (place / "run").iterdir() if path.name.startswith(("step", ".step")))


def progress_lines(place):
    return [json.loads(line) for line in (place / "run" / "progress.jsonl").read_text().splitlines()]


# --- what a run leaves ---


@pytest.mark.parametrize("kind", [pytest.param("inversion", marks=pytest.mark.thorough), "dreambooth"])
def test_a_run_saves_a_concept_with_samples_and_curves(tiny, settings, tmp_path, kind, monkeypatch):
    monkeypatch.setattr(validation, "DENOISING_STEPS", 2)
    monkeypatch.setattr(sampling, "_SEEDS", 1)
    monkeypatch.setattr(generation, "DEFAULT_STEPS", 4)
    monkeypatch.setattr(run, "save_curves", curves.save_curves)
    initial = {key: value.clone() for key, value in tiny.unet.state_dict().items()}
    lines = []
    result = train(settings(kind, tmp_path, base="tiny", steps=2, samples=True), lines.append)
    concept = Library(tmp_path / "concepts").get(result.token)
    result_json = json.loads((tmp_path / "run" / "result.json").read_text())
    assert str(result.token) == "<me/thing-v1>" and concept.thumbnail
    assert result_json["steps"] == 2 and concept.card.steps == result_json["best"] in (1, 2)
    assert (concept.lora is not None) == (kind == "dreambooth")
    assert [line["step"] for line in progress_lines(tmp_path)] == [1, 2]
    assert all(line["loss"] > 0 for line in progress_lines(tmp_path))
    for name in ("loss.png", "samples.png"):
        with Image.open(tmp_path / "run" / name) as image:
            assert image.width > 400 and len(set(image.convert("L").tobytes())) > 50
    assert "tiny" in lines[0] and "3 photos" in lines[1]
    assert all(torch.equal(initial[key], value) for key, value in tiny.unet.state_dict().items())
    with pytest.raises(UserError, match="holds a finished run, of 2 steps"):
        train(settings(kind, tmp_path, base="tiny", steps=2), quiet)


def test_equal_seeds_give_identical_concepts_and_other_seeds_do_not(settings, tmp_path):
    ends = []
    for place, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(settings("dreambooth", tmp_path / place, steps=2, seed=seed), quiet)
        ends.append(payload(tmp_path / place)[0])
    assert ends[0] == ends[1] != ends[2]


def test_a_concept_file_contains_no_names_of_photos_machine_or_user(settings, photos, tmp_path):
    (photos / "0.png").rename(photos / "IMG_holiday_Rex.png")
    (tmp_path / "hidden-cats").mkdir()
    (tmp_path / "hidden-cats" / "a.png").write_bytes((photos / "1.png").read_bytes())
    train(settings("dreambooth", tmp_path, steps=1, prior=str(tmp_path / "hidden-cats")), quiet)
    data = next((tmp_path / "concepts").glob("*/*.safetensors")).read_bytes()
    for secret in ("holiday", "hidden", str(tmp_path), os.environ["HOME"]):
        assert secret.encode() not in data
    header = data[8 : 8 + int.from_bytes(data[:8], "little")].decode()
    for name in (getpass.getuser(), socket.gethostname()):  # short ones stand anywhere among a tensor's bytes
        assert not re.search(rf"\b{re.escape(name)}\b", header)


def test_gradient_accumulation_trains_like_one_large_batch(settings, tmp_path, monkeypatch):
    """Eight photos a step, at once or in four batches: the same samples, the same concept but for rounding."""
    read_indices = []
    real = PhotoDataset.batch
    monkeypatch.setattr(
        PhotoDataset, "batch", lambda self, which: (read_indices.append(list(which)), real(self, which))[1]
    )
    ends = {}
    for name, batch, accumulate in (("whole", 8, 1), ("parts", 2, 4)):
        read_indices.clear()
        train(settings("inversion", tmp_path / name, steps=2, batch=batch, accumulate=accumulate), quiet)
        del read_indices[: -2 * accumulate]  # the rehearsal's, the fixed batch
        assert [len(batch_indices) for batch_indices in read_indices] == [batch] * (2 * accumulate)
        assert [index for batch_indices in read_indices for index in batch_indices] == list(range(16))
        ends[name] = Library(tmp_path / name / "concepts").get(Token("me", "thing")).vectors["clip_l"]
        ends[f"{name} losses"] = [line["loss"] for line in progress_lines(tmp_path / name)]
    np.testing.assert_allclose(ends["whole"], ends["parts"], atol=1e-5)
    np.testing.assert_allclose(ends["whole losses"], ends["parts losses"], atol=1e-5)


def test_the_loop_uses_the_lr_schedule_and_resolution_of_the_settings(settings, tmp_path, monkeypatch):
    rates, sides = [], []
    real = loop._set_learning_rates
    monkeypatch.setattr(loop, "_set_learning_rates", lambda *args: rates.append(real(*args)) or rates[-1])
    encode = run.PhotoDataset.__init__
    monkeypatch.setattr(
        run.PhotoDataset,
        "__init__",
        lambda self, base, photos, *rest: (sides.append(photos[0].square().shape), encode(self, base, photos, *rest))[
            1
        ],
    )
    train(settings("inversion", tmp_path, lr=0.1, schedule="cosine", resolution=128), quiet)
    np.testing.assert_allclose(rates, [[0.05 * (1 + math.cos(math.pi * step / 4))] for step in range(4)])
    assert sides == [(128, 128, 3)]


@pytest.mark.parametrize(
    "method, optimizer",
    [
        ("pivotal", "prodigy"),
        ("lora", "adamw8bit"),
        pytest.param("lora", "prodigy", marks=pytest.mark.thorough),
        pytest.param("pivotal", "adamw8bit", marks=pytest.mark.thorough),
    ],
)
def test_every_optimizer_resumes_to_an_identical_concept(settings, tmp_path, monkeypatch, optimizer, method):
    if optimizer == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    import dataclasses

    from sdpersonal.training.methods import factory

    real = factory.preset
    monkeypatch.setattr(factory, "preset", lambda *which: dataclasses.replace(real(*which), pivot_steps=2, steps=4))
    common = {"optimizer": optimizer, "method": method, "save_every": 1, "rank": 16}
    train(settings("dreambooth", tmp_path / "whole", **common), quiet)
    real_step = ProgressLog.step
    for stop in (1, 3):  # before the pivot and after it
        place = tmp_path / str(stop)

        def step(self, number, *rest, stop=stop):
            if number > stop:
                raise KeyboardInterrupt
            real_step(self, number, *rest)

        monkeypatch.setattr(ProgressLog, "step", step)
        with pytest.raises(KeyboardInterrupt):
            train(settings("dreambooth", place, **common), quiet)
        monkeypatch.setattr(ProgressLog, "step", real_step)
        assert checkpoints(place)[-1] == f"step-{stop:06d}"
        train(settings("dreambooth", place, **common, resume=True), quiet)
        assert payload(place)[0] == payload(tmp_path / "whole")[0]


# --- killed, stopped, resumed ---


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param("inversion", marks=pytest.mark.thorough), "dreambooth"])
def test_a_killed_and_resumed_run_equals_an_uninterrupted_run(kind, command, tmp_path):
    """kill -9 at moments of no one's choosing, a checkpoint being written among them; at the end, the same bytes."""
    assert start(command(kind, tmp_path / "whole"), tmp_path / "whole").wait() == 0
    place, rng, kills = tmp_path / "killed", random.Random(kind), 0
    progress = place / "run" / "progress.jsonl"
    resume = ()
    for _ in range(4):
        done = len(progress.read_text().splitlines()) if progress.exists() else 0
        line_count = done // 2 * 2 + rng.randint(2, 4)  # lines, counted after those beyond the checkpoint are dropped
        child = start(command(kind, place, *resume), place).after_lines(progress, line_count)
        time.sleep(rng.random() * 0.1)
        child.process.kill()
        kills += child.wait() == -signal.SIGKILL
        resume = ("--resume",) if list((place / "run").glob("step-*")) else ()
    assert kills >= 2
    child = start(command(kind, place, *resume), place)
    assert child.wait() == 0, child.errors
    assert payload(place) == payload(tmp_path / "whole")
    assert [line["step"] for line in progress_lines(place)] == list(range(1, 13))


@pytest.mark.thorough
@pytest.mark.slow
def test_a_run_killed_at_any_write_resumes_to_the_same_concept(settings, tmp_path, monkeypatch):
    """The child dies as a machine does that loses its power: what was not flushed is cut."""
    base = run.load_base(settings("inversion", tmp_path).base, "cpu")
    monkeypatch.setattr(run, "load_base", lambda *_, **__: base)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a forked child has no threads but its own
    try:
        common = {"steps": 3, "save_every": 1}
        writes = crash.calls_made(lambda: train(settings("inversion", tmp_path / "whole", **common), quiet))
        assert writes > 60
        for n in range(1, writes + 1, 5):
            place = tmp_path / str(n)
            died = crash.die_at(n, lambda place=place: train(settings("inversion", place, **common), quiet))
            assert died == crash.DIED
            assert Library(place / "concepts").verify() == []
            resume = bool(list((place / "run").glob("step-*/manifest.json")))
            train(settings("inversion", place, **common, resume=resume), quiet)
            assert payload(place)[0] == payload(tmp_path / "whole")[0], n
            assert len(progress_lines(place)) == 3 and len(Library(place / "concepts").entries()) == 1
    finally:
        torch.set_num_threads(threads)


class Small:
    """Something to checkpoint: a parameter and its optimiser, at any step."""

    def __init__(self, steps):
        self.trainable_parameters = {"rows": nn.Parameter(torch.zeros(40, 10))}
        self.optimizer = torch.optim.AdamW(self.trainable_parameters.values(), fused=True)
        for _ in range(steps):
            self.trainable_parameters["rows"].grad = torch.ones(40, 10)
            self.optimizer.step()
        self.checkpoint_state = CheckpointState(self.trainable_parameters, self.optimizer, {})

    def save(self, folder, step):
        save_checkpoint(folder, step, self.checkpoint_state, {})

    def load(self, folder):
        return load_checkpoint(folder, self.checkpoint_state, {}).step


@pytest.mark.parametrize("number", [None, errno.ENOSPC, errno.EIO])
def test_a_failed_checkpoint_write_leaves_a_complete_checkpoint(tmp_path, number):
    """Died or failed at the n-th: the newest that can be read is the old one or the new one, and its numbers are its
    own."""
    n = 0
    while True:
        n += 1
        folder = tmp_path / str(n)
        for step in (1, 2):
            Small(step).save(folder, step)
        work = lambda folder=folder: Small(3).save(folder, 3)  # noqa: E731
        status = crash.die_at(n, work) if number is None else crash.fail_at(n, number, work)
        small = Small(0)
        step = small.load(folder)
        assert step in (2, 3)
        assert torch.equal(small.trainable_parameters["rows"], Small(step).trainable_parameters["rows"])
        storage.remove_leftovers(folder)
        assert {path.name for path in folder.iterdir()} <= {f"step-{step:06d}" for step in (1, 2, 3)}
        if status == crash.DONE:
            break
        assert status == crash.DIED if number is None else status in (crash.NO_ROOM, crash.REFUSED)
    assert n > 15 and sorted(path.name for path in folder.iterdir()) == ["step-000002", "step-000003"]


def test_a_new_checkpoint_replaces_damaged_later_checkpoints(tmp_path):
    for step in (2, 4, 6):
        Small(step).save(tmp_path, step)
    for step in (4, 6):
        (tmp_path / f"step-{step:06d}" / "manifest.json").write_text("{")
    assert Small(0).load(tmp_path) == 2 if (tmp_path / "step-000002").exists() else True
    Small(3).save(tmp_path, 3)
    Small(4).save(tmp_path, 4)  # in a damaged one's place
    assert Small(0).load(tmp_path) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000003", "step-000004"]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=["INT", "TERM", "HUP"]
)
def test_a_signal_saves_a_checkpoint_and_the_run_can_resume(command, tmp_path, number, code):
    place = tmp_path
    child = start(command("inversion", place, steps=500), place).after_lines(place / "run" / "progress.jsonl", 2)
    os.kill(child.process.pid, number)
    assert child.wait() == code
    assert "it is saved" in child.errors and "--resume" in child.errors and "Traceback" not in child.errors
    reached = int(re.search(r"after step (\d+)", child.errors)[1])
    assert (place / "run" / f"step-{reached:06d}" / "manifest.json").exists()
    assert [line["step"] for line in progress_lines(place)] == list(range(1, reached + 1))
    assert not list((place / "concepts").glob("*/*"))
    if number == signal.SIGINT:
        child = start(command("inversion", place, "--resume", steps=reached + 1), place)
        assert child.wait() == 0 and f"Resuming from step {reached}" in child.stdout


def slow_saving():
    """The second Ctrl-C comes while the first one's checkpoint is being written."""
    real = loop.save_checkpoint

    def save(*args):
        if args[1] > 2:
            time.sleep(600)
        real(*args)

    loop.save_checkpoint = save


def test_a_second_ctrl_c_stops_immediately(command, tmp_path):
    place = tmp_path
    child = start(command("inversion", place, steps=500), place, fault=slow_saving)
    child.after_lines(place / "run" / "progress.jsonl", 2)
    os.kill(child.process.pid, signal.SIGINT)
    time.sleep(1.0)
    os.kill(child.process.pid, signal.SIGINT)
    assert child.wait(60) == 130
    assert "Traceback" not in child.errors
    assert set(checkpoints(place)) <= {"step-000002"}


def nobody_listens():
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)


def test_a_closed_stdout_does_not_stop_training(command, tmp_path):
    child = start(command("inversion", tmp_path, steps=2), tmp_path, fault=nobody_listens)
    assert child.wait() == 0, child.errors
    assert child.errors == "" and len(Library(tmp_path / "concepts").entries()) == 1


def test_a_lost_terminal_does_not_stop_the_progress_log(settings, tmp_path):
    class Gone:
        def isatty(self):
            return False

        def write(self, _):
            raise OSError(errno.EIO, "Input/output error")

    log = ProgressLog(tmp_path, 0, 2, out=Gone())
    with log:
        log.step(1, 0.5)
        log.step(2, 0.5)
    assert (tmp_path / "progress.jsonl").read_text().count("\n") == 2


def test_an_interrupt_in_python_raises_interrupted_with_the_step(settings, tmp_path, monkeypatch):
    class Interrupting(loop.StopSignals):
        def __enter__(self):
            self.signal_number = signal.SIGINT
            return self

    monkeypatch.setattr(loop, "StopSignals", Interrupting)
    with pytest.raises(Interrupted, match="after step 1 of 4"):
        train(settings("inversion", tmp_path), quiet)


# --- going on ---


def test_a_finished_run_can_be_resumed_with_more_steps(settings, tmp_path):
    train(settings("inversion", tmp_path / "a", steps=6), quiet)
    train(settings("inversion", tmp_path / "b", steps=2), quiet)
    result = train(settings("inversion", tmp_path / "b", steps=6, resume=True), quiet)
    assert str(result.token) == "<me/thing-v2>"
    assert payload(tmp_path / "a")[0] == payload(tmp_path / "b")[0]
    with pytest.raises(UserError, match="is at step 6 already, past --steps 4"):
        train(settings("inversion", tmp_path / "b", steps=4, resume=True), quiet)


def test_changed_settings_on_resume_are_refused_by_name(settings, photos, tmp_path):
    train(settings("inversion", tmp_path, steps=2), quiet)
    for change, names in (
        ({"lr": 0.5}, "lr was"),
        ({"seed": 9}, "seed was 0, is 9"),
        ({"vectors": 3}, "vectors was 2, is 3"),
        ({"batch": 2}, "batch was 1, is 2"),
        ({"accumulate": 2}, "batch was 1, is 2"),
        ({"optimizer": "prodigy"}, "optimizer was adamw, is prodigy"),
        ({"resolution": 128}, "resolution was 64, is 128"),
        ({"schedule": "cosine"}, "schedule was constant, is cosine"),
    ):
        with pytest.raises(UserError, match="other settings") as caught:
            train(settings("inversion", tmp_path, steps=4, resume=True, **change), quiet)
        assert names in caught.value.message
    with pytest.raises(UserError) as caught:
        train(settings("inversion", tmp_path, resume=True, seed=1, flip=True, vectors=3, batch=2), quiet)
    assert caught.value.message.splitlines()[1:] == [
        "  batch was 1, is 2",
        "  flip was False, is True",
        "  seed was 0, is 1",
        "  and 1 more",
    ]
    (photos / "2.png").unlink()
    with pytest.raises(UserError, match="photos was"):
        train(settings("inversion", tmp_path, steps=4, resume=True), quiet)


def test_settings_without_effect_on_the_result_may_change_on_resume(settings, tmp_path):
    train(settings("inversion", tmp_path / "whole", batch=2), quiet)
    train(settings("inversion", tmp_path / "cut", steps=2, batch=2), quiet)
    changes = {"batch": 1, "accumulate": 2, "checkpointing": 1, "save_every": 1}
    train(settings("inversion", tmp_path / "cut", resume=True, **changes), quiet)
    ends = [
        Library(tmp_path / name / "concepts").get(Token("me", "thing")).vectors["clip_l"] for name in ("whole", "cut")
    ]
    np.testing.assert_allclose(*ends, atol=1e-5)


def test_restarting_an_unfinished_run_is_refused_with_a_resume_hint(settings, tmp_path, monkeypatch):
    train(settings("inversion", tmp_path, steps=2), quiet)
    (tmp_path / "run" / "result.json").unlink()  # as if killed at the end
    with pytest.raises(UserError, match="unfinished run of the same settings, at step 2 of 4") as caught:
        train(settings("inversion", tmp_path), quiet)
    assert "--resume" in caught.value.hint
    with pytest.raises(UserError, match="unfinished run of other settings, at step 2"):
        train(settings("inversion", tmp_path, seed=1), quiet)


def test_a_run_interrupted_after_its_last_step_resumes_to_a_concept(settings, tmp_path, monkeypatch):
    def broken(*_):
        raise KeyboardInterrupt  # while the pictures were drawn

    monkeypatch.setattr(run_ending, "add_sample_sheet", broken)
    with pytest.raises(KeyboardInterrupt):
        train(settings("inversion", tmp_path, samples=True), quiet)
    monkeypatch.undo()
    assert Library(tmp_path / "concepts").entries() == []
    train(settings("inversion", tmp_path, resume=True), quiet)
    assert len(Library(tmp_path / "concepts").entries()) == 1 and len(progress_lines(tmp_path)) == 4


def test_resume_without_a_checkpoint_is_refused(settings, tmp_path):
    with pytest.raises(UserError, match="no checkpoint in"):
        train(settings("inversion", tmp_path, resume=True), quiet)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]


@pytest.mark.parametrize(
    "damage", ["state cut", "manifest gone", "manifest torn", "manifest nonsense", "manifest elsewhere"]
)
def test_a_damaged_checkpoint_is_reported_and_the_previous_one_is_used(settings, tmp_path, damage):
    train(settings("inversion", tmp_path / "hurt"), quiet)
    expected = payload(tmp_path / "hurt")[0]
    newest = tmp_path / "hurt" / "run" / "step-000004"
    if damage == "state cut":
        state = newest / "state.safetensors"
        state.write_bytes(state.read_bytes()[:-10])
    elif damage == "manifest gone":
        (newest / "manifest.json").unlink()
    elif damage == "manifest elsewhere":
        manifest = json.loads((newest / "manifest.json").read_text())
        (newest / "manifest.json").write_text(json.dumps(manifest | {"sha256": {"../../secret.safetensors": "0"}}))
    else:
        (newest / "manifest.json").write_text("{" if damage == "manifest torn" else '{"step": "x", "sha256": 1}')
    # Not files of ours: never opened.
    (newest / "optimizer.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'touch PWNED'\ntR.")
    lines = []
    train(settings("inversion", tmp_path / "hurt", resume=True), lines.append)
    assert any("step-000004 is damaged; resuming from step 2" in line for line in lines)
    assert payload(tmp_path / "hurt")[0] == expected
    assert not os.path.exists("PWNED")


# --- numbers that are none ---


@pytest.mark.parametrize("kind", ["inversion", "dreambooth"])
def test_diverged_training_ends_with_a_message_and_no_concept(settings, tmp_path, kind):
    with pytest.raises(Diverged, match="No concept was made") as caught:
        train(settings(kind, tmp_path, lr=1e6, steps=12, base="tiny"), quiet)
    usual = preset("textual-inversion" if kind == "inversion" else "dreambooth-lora", "tiny").lr
    assert caught.value.exit_code == 4 and f"Try --lr {usual:g}" in caught.value.hint  # not another absurd one
    assert not list((tmp_path / "concepts").glob("*/*"))


@pytest.mark.parametrize("planted", [math.nan, math.inf])
def test_a_nan_or_infinite_latent_stops_training_at_its_step(settings, tmp_path, monkeypatch, planted):
    real = PhotoDataset.batch

    def samples(self, indices):
        batch = real(self, indices)
        if 5 in indices:  # the third step's second batch
            batch.latents[0, 0, 0, 0] = planted
        return batch

    monkeypatch.setattr(PhotoDataset, "batch", samples)
    with pytest.raises(Diverged, match=r"at step 3 \(\d\.png; --lr 0\.01\)\. Nothing after step 2 was kept"):
        train(settings("inversion", tmp_path, lr=0.01, accumulate=2, steps=8), quiet)
    assert checkpoints(tmp_path) == ["step-000002"]
    assert [line["step"] for line in progress_lines(tmp_path)] == [1, 2]  # though the fourth was under way


@pytest.mark.parametrize("step", [2, 4])  # of which a checkpoint would be made
def test_no_checkpoint_is_saved_of_a_step_with_nan_loss(settings, tmp_path, monkeypatch, step):
    real = TextualInversion.loss
    monkeypatch.setattr(
        TextualInversion, "loss", lambda self, batch, now: real(self, batch, now) * (math.nan if now + 1 == step else 1)
    )
    with pytest.raises(Diverged, match=f"at step {step} "):
        train(settings("inversion", tmp_path), quiet)
    assert checkpoints(tmp_path) == [f"step-{number:06d}" for number in range(2, step, 2)]


# --- no room ---


def test_a_full_disk_preserves_the_earlier_checkpoints(settings, tmp_path, monkeypatch):
    real, room = storage.atomic._write, [3]  # checkpoints, the rehearsal's first

    def write(handle, data):
        if len(data) > 3000:
            room[0] -= 1
            if room[0] < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle, data)

    monkeypatch.setattr(storage.atomic, "_write", write)
    with pytest.raises(DiskFull, match="not enough space in") as caught:
        train(settings("inversion", tmp_path, steps=8), quiet)
    assert caught.value.exit_code == 3 and "from step 4" in caught.value.hint
    assert checkpoints(tmp_path) == ["step-000002", "step-000004"]
    monkeypatch.undo()
    train(settings("inversion", tmp_path, steps=8, resume=True), quiet)


NO_MEMORY = "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 11.00 GiB."


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError(NO_MEMORY), RuntimeError(f"DefaultCPUAllocator: {NO_MEMORY}")]
)
@pytest.mark.parametrize("step", [0, 2])
def test_the_out_of_memory_message_states_the_need_and_remedies(settings, tmp_path, monkeypatch, step, error):
    real = TextualInversion.loss

    def loss(self, batch, now):
        if now == step:
            raise error
        return real(self, batch, now)

    monkeypatch.setattr(TextualInversion, "loss", loss)
    with pytest.raises(UserError, match=f"Out of memory at step {step + 1}") as caught:
        train(settings("inversion", tmp_path, batch=2, resolution=128), quiet)
    needed, there = map(
        float, re.search(r"needs about ([0-9.]+) GB, ([0-9.]+) GB there", caught.value.message).groups()
    )
    assert needed > 21 and there > 0.1
    assert "Try --checkpointing 1, --batch 1 --accumulate 2, --resolution 64." in caught.value.hint
    assert checkpoints(tmp_path) == (["step-000002"] if step == 2 else [])
    if step == 2:
        monkeypatch.undo()
        train(settings("inversion", tmp_path, batch=2, resolution=128, resume=True, checkpointing=1), quiet)


def test_the_out_of_memory_message_omits_options_already_used(settings, tmp_path, monkeypatch):
    def encode(*_, **__):
        raise torch.OutOfMemoryError("no sizes in this one")

    monkeypatch.setattr(run.PhotoDataset, "__init__", encode)
    with pytest.raises(UserError, match="Out of memory before the first step: needs about") as caught:
        train(settings("dreambooth", tmp_path, checkpointing=1, method="full"), quiet)
    assert caught.value.hint.startswith("Try --optimizer adamw8bit, --method lora.")


def test_out_of_memory_while_sampling_omits_only_the_samples(settings, tmp_path, monkeypatch):
    def fail_to_generate(*_):
        raise torch.OutOfMemoryError(NO_MEMORY)

    monkeypatch.setattr(sampling.Generator, "generate", fail_to_generate)
    lines = []
    result = train(settings("inversion", tmp_path, samples=True), lines.append)
    assert result.sheet is None and any("no memory left for samples" in line for line in lines)
    assert Library(tmp_path / "concepts").get(result.token).thumbnail is None


# --- places ---


def test_two_runs_cannot_share_a_folder(settings, tmp_path):
    with storage.lock(tmp_path / "run"), pytest.raises(UserError, match="in use by process"):
        train(settings("inversion", tmp_path), quiet)


@pytest.mark.parametrize("folder_name", ["photos", "photos/run", "link"])
def test_a_run_folder_inside_the_photos_is_refused(settings, photos, tmp_path, folder_name):
    (tmp_path / "link").symlink_to(photos)
    with pytest.raises(UserError, match="inside the folder of photos"):
        train(settings("inversion", tmp_path, run=tmp_path / folder_name), quiet)
    assert sorted(path.name for path in photos.iterdir()) == ["0.png", "1.png", "2.png"]


def test_unreadable_photos_are_refused_before_any_file_is_written(settings, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").write_bytes(b"<html>")
    with pytest.raises(UserError, match="no photos in"):
        train(settings("inversion", tmp_path, photos=tmp_path / "bad"), quiet)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "photos"]


# --- trackers ---


def test_tensorboard_logs_the_loss_and_the_learning_rates(settings, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(settings("dreambooth", tmp_path, report_to="tensorboard", schedule="cosine"), quiet)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    losses = [(event.step, event.value) for event in events.Scalars("loss")]
    written = [(line["step"], line["loss"]) for line in progress_lines(tmp_path)]
    np.testing.assert_allclose(losses, written, atol=1e-5)
    rates = [event.value for event in events.Scalars("rate/1")]
    np.testing.assert_allclose(rates, [1e-3 * 0.5 * (1 + math.cos(math.pi * step / 4)) for step in range(4)], rtol=1e-5)
    everything = b"".join(path.read_bytes() for path in (tmp_path / "run" / "tensorboard").rglob("*") if path.is_file())
    assert b"photos/" not in everything and str(tmp_path).encode() not in everything


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb"])
def test_a_missing_tracker_package_is_refused_before_loading(settings, tmp_path, monkeypatch, tracker):
    from sdpersonal.training import trackers

    real = trackers.importlib.util.find_spec
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None if name == tracker else real(name))
    with pytest.raises(UserError, match=f"needs the package {tracker}") as caught:
        train(settings("inversion", tmp_path, base="no-such-base", report_to=tracker), quiet)
    assert f"sdpersonal[{tracker}]" in caught.value.hint


# --- a thousand steps ---


class Slope:
    """A method whose step costs nothing: only the loop itself is left."""

    def __init__(self):
        self.rows = {"clip_l": nn.Parameter(torch.ones(4))}

    def trainable_parameters(self):
        return {"rows.clip_l": self.rows["clip_l"], "frozen": nn.Parameter(torch.ones(3))}

    def learning_rates(self, step):
        return [1e-3]

    def inputs(self, batch):
        return batch

    def loss(self, inputs, step):
        return (self.rows["clip_l"] * inputs.latents.mean()).square().sum()[None]


def test_a_thousand_steps_leak_no_memory_and_no_open_files(tmp_path):
    accelerator = run.init_distributed()
    method, resources = Slope(), []
    optimizer = torch.optim.AdamW(list(method.trainable_parameters().values()), lr=1e-3, fused=True)
    tracker = SimpleNamespace(
        log=lambda values, step: resources.append((resident(), open_files())) if step % 100 == 0 else None
    )

    class Data:
        def batch(self, indices):
            latents = torch.randn(1, 4, 64, 64)
            return SimpleNamespace(latents=latents, photos=("a",), to=lambda device: SimpleNamespace(latents=latents))

    config = loop_config_for(tmp_path, 1000, batch=1, save_every=50)
    oom_advice = run.OomAdvice(accelerator.device, TextualInversionSettings(photos=tmp_path, token="<me/a>"), 64, 1)
    state = loop.TrainState(accelerator, method, Data(), optimizer, oom_advice)
    loop.fit(state, config, loop.LoopHooks(ProgressLog(tmp_path, 0, 1000, tracker)))
    entries = [json.loads(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries] == list(range(1, 1001))
    assert {count for _, count in resources[1:]} == {resources[1][1]}
    assert resources[-1][0] < 1.05 * resources[1][0]
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-000950", "step-001000"]


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1])


def open_files():
    return len(os.listdir("/proc/self/fd"))
