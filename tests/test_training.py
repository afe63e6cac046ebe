"""Training: it moves what it should and nothing else, goes on exactly where it was killed, and fails in a sentence."""

import dataclasses
import json
import math
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from sdpersonal.bases import Schedule
from sdpersonal.config import DreamboothSettings, InversionSettings
from sdpersonal.errors import Diverged, Interrupted, NoRoom, PersonalError
from sdpersonal.library import Library
from sdpersonal.photos import load_photos
from sdpersonal.prompts import Token
from sdpersonal.training import train
from sdpersonal.training.chance import generator_for, photo_at
from sdpersonal.training.dataset import Batch, TrainingPhotos


@pytest.fixture
def photos(tmp_path):
    """Three photos of nothing much: what is learned is not the question here."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 255, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).resize((256, 256)).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def batch(tiny, photos):
    data = TrainingPhotos(tiny, load_photos(photos, 128).photos, ("a photo of {}", "{}"), seed=3, flip=True)
    return data.samples(range(4))


def settings(kind, photos, place, **changes):
    common = {"photos": photos, "token": "<me/thing>", "base": "tiny", "steps": 4, "batch": 1, "save_every": 2}
    common |= {"library": place / "concepts", "run": place / "run", "samples": False}
    if kind == "inversion":
        return InversionSettings(**(common | {"vectors": 2} | changes))
    return DreamboothSettings(**(common | {"class_noun": "cat", "rank": 2} | changes))


def quiet(_line):
    pass


# --- chance ---


def test_every_epoch_shows_every_photo_once_in_a_new_order():
    orders = [[photo_at(5 * epoch + i, 5, seed=0) for i in range(5)] for epoch in range(20)]
    assert all(sorted(order) == [0, 1, 2, 3, 4] for order in orders)
    assert len(set(map(tuple, orders))) > 10


def test_a_sample_is_the_same_whoever_draws_it_and_whenever(tiny, photos):
    loaded = load_photos(photos, 128).photos
    one = TrainingPhotos(tiny, loaded, ("{}", "a {}"), seed=0, flip=False).samples(range(4))
    other = TrainingPhotos(tiny, loaded, ("{}", "a {}"), seed=0, flip=False)
    torch.rand(7)  # somebody else's draw
    parts = [other.samples([i]) for i in (3, 2, 1, 0)][::-1]
    assert torch.equal(one.latents, torch.cat([part.latents for part in parts]))
    assert torch.equal(one.noise, torch.cat([part.noise for part in parts]))
    assert torch.equal(one.t, torch.cat([part.t for part in parts]))
    assert one.captions == sum((part.captions for part in parts), ())
    changed = TrainingPhotos(tiny, loaded, ("{}",), seed=1, flip=False).samples(range(4))
    assert not torch.equal(one.noise, changed.noise)


def test_chance_is_uniform_and_normal():
    times = [int(torch.randint(1000, (), generator=generator_for("t", 0, i))) for i in range(3000)]
    counts = np.histogram(times, bins=10, range=(0, 1000))[0]
    assert ((counts - 300) ** 2 / 300).sum() < 27.9  # chi-squared, 9 degrees of freedom, p = 0.001
    draws = torch.cat([torch.randn(16, generator=generator_for("noise", 0, i)) for i in range(2000)])
    assert abs(draws.mean()) < 0.02 and abs(draws.std() - 1) < 0.02


def test_cached_posteriors_have_the_distribution_of_encoding_anew(tiny, photos):
    loaded = load_photos(photos, 128).photos[:1]
    data = TrainingPhotos(tiny, loaded, ("{}",), seed=0, flip=False)
    drawn = torch.stack([data.samples([i]).latents[0] for i in range(400)])
    x = torch.from_numpy(loaded[0].square()).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        anew = tiny.vae.encode(x).latent_dist
    scale = tiny.vae.config.scaling_factor
    error = (drawn.mean(0) - anew.mean[0] * scale).abs() / (anew.std[0] * scale / math.sqrt(400))
    assert error.mean() < 1.0  # a standard normal's mean distance is 0.8
    assert abs((drawn.std(0) / (anew.std[0] * scale)).mean() - 1) < 0.02


# --- whole runs ---


def payload(place, token="<me/thing>"):
    concept = Library(place / "concepts").get(Token.parse(token))
    return concept.identity, concept.card.model_dump(exclude={"created"})


@pytest.mark.parametrize("kind", ["inversion", "dreambooth"])
def test_a_run_leaves_a_concept_and_pictures_of_it(tiny, photos, tmp_path, kind):
    before = {key: value.clone() for key, value in tiny.unet.state_dict().items()}
    said = []
    result = train(settings(kind, photos, tmp_path, samples=True), said.append)
    concept = Library(tmp_path / "concepts").get(result.token)
    assert str(result.token) == "<me/thing-v1>" and concept.card.steps == 4 and concept.thumbnail
    assert (concept.lora is not None) == (kind == "dreambooth")
    lines = [json.loads(line) for line in (tmp_path / "run" / "progress.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4] and all(line["loss"] > 0 for line in lines)
    for name in ("loss.png", "samples.png"):
        with Image.open(tmp_path / "run" / name) as picture:
            assert picture.width > 400 and len(set(picture.convert("L").tobytes())) > 50
    assert "tiny" in said[0] and "3 photos" in said[1]
    assert all(torch.equal(before[key], value) for key, value in tiny.unet.state_dict().items())
    with pytest.raises(PersonalError, match="holds a run that is at step 4"):
        train(settings(kind, photos, tmp_path), quiet)


def test_the_same_seed_gives_the_same_bytes_and_another_gives_others(photos, tmp_path):
    ends = []
    for place, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(settings("dreambooth", photos, tmp_path / place, steps=2, seed=seed), quiet)
        ends.append(payload(tmp_path / place)[0])
    assert ends[0] == ends[1] != ends[2]


def test_a_concepts_file_tells_nothing_of_photos_machine_or_user(photos, tmp_path):
    import getpass
    import socket

    (photos / "0.png").rename(photos / "IMG_holiday_Rex.png")
    train(settings("inversion", photos, tmp_path, steps=1), quiet)
    data = next((tmp_path / "concepts").glob("*/*.safetensors")).read_bytes()
    for secret in ("holiday", str(tmp_path), os.environ["HOME"], getpass.getuser(), socket.gethostname()):
        assert secret.encode() not in data


COMMAND = [sys.executable, "-m", "sdpersonal", "train"]


def command(kind, photos, place, *more, steps=12):
    flags = [
        "--photos",
        photos,
        "--token",
        "<me/thing>",
        "--base",
        "tiny",
        "--steps",
        steps,
        "--batch",
        1,
        "--save-every",
        2,
    ]
    flags += ["--library", place / "concepts", "--run", place / "run", "--no-samples"]
    own = (
        ["textual-inversion", "--vectors", 2] if kind == "inversion" else ["dreambooth", "--class", "cat", "--rank", 2]
    )
    return [*COMMAND, *map(str, own + flags), *more]


def environment(root):
    return os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["inversion", "dreambooth"])
def test_killed_and_resumed_equals_uninterrupted(kind, photos, tmp_path, root):
    """kill -9 at moments of no one's choosing, a checkpoint being written among them; at the end, the same bytes."""
    subprocess.run(command(kind, photos, tmp_path / "whole"), env=environment(root), check=True, capture_output=True)
    place, chance, kills = tmp_path / "killed", random.Random(kind), 0
    progress = place / "run" / "progress.jsonl"
    resume = ()
    for _ in range(3):
        child = subprocess.Popen(
            command(kind, photos, place, *resume),
            env=environment(root),
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        lines = len(progress.read_text().splitlines()) if progress.exists() else 0
        wanted = lines // 2 * 2 + chance.randint(2, 4)  # lines, counted after those beyond the checkpoint are dropped
        while child.poll() is None and not (progress.exists() and len(progress.read_text().splitlines()) >= wanted):
            time.sleep(0.005)
        time.sleep(chance.random() * 0.1)
        child.send_signal(signal.SIGKILL)
        kills += child.wait() == -signal.SIGKILL
        resume = ("--resume",) if list((place / "run").glob("step-*")) else ()
    assert kills >= 2
    subprocess.run(command(kind, photos, place, *resume), env=environment(root), check=True, capture_output=True)
    assert payload(place) == payload(tmp_path / "whole")
    steps = [json.loads(line)["step"] for line in progress.read_text().splitlines()]
    assert steps == list(range(1, 13))


def test_ctrl_c_saves_and_the_run_goes_on(photos, tmp_path, root):
    child = subprocess.Popen(
        command("inversion", photos, tmp_path, steps=500),
        env=environment(root),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    progress = tmp_path / "run" / "progress.jsonl"
    while child.poll() is None and not (progress.exists() and progress.read_text().count("\n") >= 3):
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 130 and "it is saved" in said and "--resume" in said and "Traceback" not in said
    reached = int(said.split("after step ")[1].split()[0])
    assert (tmp_path / "run" / f"step-{reached:06d}" / "manifest.json").exists()
    assert not list((tmp_path / "concepts").glob("*/*"))


def test_steps_may_grow_on_resume(photos, tmp_path):
    train(settings("inversion", photos, tmp_path / "a", steps=6), quiet)
    train(settings("inversion", photos, tmp_path / "b", steps=2), quiet)
    result = train(settings("inversion", photos, tmp_path / "b", steps=6, resume=True), quiet)
    assert str(result.token) == "<me/thing-v2>"
    assert payload(tmp_path / "a")[0] == payload(tmp_path / "b")[0]


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"lr": 0.5}, "lr was"),
        ({"seed": 9}, "seed was 0, is 9"),
        ({"vectors": 3}, "vectors was 2, is 3"),
        ({"batch": 2}, "batch was 1, is 2"),
    ],
)
def test_other_settings_on_resume_are_named(photos, tmp_path, change, names):
    train(settings("inversion", photos, tmp_path, steps=2), quiet)
    with pytest.raises(PersonalError, match="other settings") as caught:
        train(settings("inversion", photos, tmp_path, steps=4, resume=True, **change), quiet)
    assert names in caught.value.problem


def test_other_photos_on_resume_are_noticed(photos, tmp_path):
    train(settings("inversion", photos, tmp_path, steps=2), quiet)
    (photos / "2.png").unlink()
    with pytest.raises(PersonalError, match="photos was"):
        train(settings("inversion", photos, tmp_path, steps=4, resume=True), quiet)


def test_resume_without_a_checkpoint_never_starts_over(photos, tmp_path):
    with pytest.raises(PersonalError, match="no checkpoint in"):
        train(settings("inversion", photos, tmp_path, resume=True), quiet)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]


@pytest.mark.parametrize("damage", ["state cut", "manifest gone", "manifest torn", "manifest nonsense"])
def test_a_damaged_newest_checkpoint_is_said_and_the_one_before_used(photos, tmp_path, damage):
    train(settings("inversion", photos, tmp_path / "whole", steps=6), quiet)
    train(settings("inversion", photos, tmp_path / "hurt", steps=4), quiet)
    newest = tmp_path / "hurt" / "run" / "step-000004"
    if damage == "state cut":
        state = newest / "state.safetensors"
        state.write_bytes(state.read_bytes()[:-10])
    elif damage == "manifest gone":
        (newest / "manifest.json").unlink()
    else:
        (newest / "manifest.json").write_text("{" if damage == "manifest torn" else '{"step": "x", "sha256": 1}')
    (newest / "optimizer.bin").write_bytes(
        b"\x80\x04cos\nsystem\n(S'touch PWNED'\ntR."
    )  # not a file of ours: never opened
    said = []
    train(settings("inversion", photos, tmp_path / "hurt", steps=6, resume=True), said.append)
    assert any("step-000004 is damaged; going on from step 2" in line for line in said)
    assert payload(tmp_path / "hurt")[0] == payload(tmp_path / "whole")[0]
    assert not os.path.exists("PWNED")


@pytest.mark.parametrize("kind", ["inversion", "dreambooth"])
def test_an_absurd_rate_ends_in_a_sentence_and_no_concept(photos, tmp_path, root, kind):
    done = subprocess.run(
        command(kind, photos, tmp_path, "--lr", "1e6"), env=environment(root), capture_output=True, text=True
    )
    assert done.returncode == 4, done.stderr
    assert "No concept was made" in done.stderr and "Try --lr" in done.stderr and "Traceback" not in done.stderr
    assert not list((tmp_path / "concepts").glob("*/*"))


@pytest.mark.parametrize("planted", [math.nan, math.inf])
def test_one_bad_number_stops_the_run_at_its_step(photos, tmp_path, monkeypatch, planted):
    real = TrainingPhotos.samples

    def samples(self, indices):
        batch = real(self, indices)
        if 2 in indices:  # the third step
            batch.latents[0, 0, 0, 0] = planted
        return batch

    monkeypatch.setattr(TrainingPhotos, "samples", samples)
    with pytest.raises(Diverged, match=r"at step 3 \(\d\.png; --lr 0\.01\)"):
        train(settings("inversion", photos, tmp_path), quiet)
    assert [path.name for path in (tmp_path / "run").glob("step-*")] == ["step-000002"]  # the last good one


def test_a_full_disk_at_a_checkpoint_keeps_the_one_before(photos, tmp_path, monkeypatch):
    import errno

    from sdpersonal import files

    real, room = files._write, [2]  # checkpoints

    def write(handle, data):
        if len(data) > 3000:
            room[0] -= 1
            if room[0] < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle, data)

    monkeypatch.setattr(files, "_write", write)
    with pytest.raises(NoRoom, match="no room in") as caught:
        train(settings("inversion", photos, tmp_path, steps=8, vectors=8), quiet)
    assert caught.value.exit_code == 3
    kept = sorted(path.name for path in (tmp_path / "run").iterdir() if path.name.startswith(("step", ".step")))
    assert kept == ["step-000002", "step-000004"]
    monkeypatch.undo()
    train(settings("inversion", photos, tmp_path, steps=8, vectors=8, resume=True), quiet)


def test_two_runs_cannot_share_a_folder(photos, tmp_path):
    from sdpersonal import files

    with files.lock(tmp_path / "run"), pytest.raises(PersonalError, match="in use by process"):
        train(settings("inversion", photos, tmp_path), quiet)


def test_bad_photos_stop_it_before_anything_is_written(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"<html>")
    with pytest.raises(PersonalError, match="no photos in"):
        train(settings("inversion", tmp_path / "photos", tmp_path), quiet)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]


def test_interrupting_inside_python_leaves_a_checkpoint(photos, tmp_path, monkeypatch):
    from sdpersonal.training import loop

    class Asked(loop.StopSignals):
        def __enter__(self):
            self.asked = True
            return self

    monkeypatch.setattr(loop, "StopSignals", Asked)
    with pytest.raises(Interrupted, match="after step 1 of 4"):
        train(settings("inversion", photos, tmp_path), quiet)


def test_a_batch_holds_what_it_says(batch):
    assert {field.name for field in dataclasses.fields(Batch)} == {"latents", "noise", "t", "captions", "photos"}
    assert batch.latents.shape == batch.noise.shape == (4, 4, 16, 16) and batch.latents.dtype == torch.float32
    assert len(set(batch.photos[:3])) == 3 and isinstance(batch.t, torch.Tensor)


def test_the_schedule_of_the_base_is_its_own(tiny):
    assert isinstance(tiny.schedule, Schedule) and tiny.schedule.alphas_cumprod[-1] == 0  # zero terminal SNR
