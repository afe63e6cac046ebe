"""Two real processes, gloo between them: they learn what one would, and when one fails or dies both end with the cause.

(accelerate launch starts several on a CPU only through MPI, so they are started as it would start them.)
"""

import errno
import json
import math
import os
import signal
import socket
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sdpersonal import storage
from sdpersonal.concepts.library import Library
from sdpersonal.prompts import Token
from sdpersonal.training import process_failures
from sdpersonal.training.dataset import PhotoDataset
from sdpersonal.training.methods import factory
from sdpersonal.training.train_state import LoopConfig
from support.narrow import save_narrow, save_photos
from support.ranks import start, start_two

SOON = 30  # seconds in which all have ended


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    return save_narrow("sd1", tmp_path_factory.mktemp("narrow") / "sd1")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Five: a number that two processes do not share out evenly."""
    return save_photos(tmp_path_factory.mktemp("photos"), 5)


@pytest.fixture
def command(narrow, photos):
    def build(folder, *more, batch=1, steps=4, kind="textual-inversion", photos=photos):
        method_flags = ["--vectors", 2] if kind == "textual-inversion" else ["--class", "cat", "--rank", 2]
        flags = ["--photos", photos, "--token", "<me/thing>", "--base", narrow, "--steps", steps, "--batch", batch]
        flags += ["--save-every", 2, "--library", folder / "concepts", "--run", folder / "run", "--no-samples"]
        return ["train", kind, *method_flags, *flags, *more]

    return build


def together(argv, folder, *faults):
    """Both ranks of one command, ended: [rank 0, rank 1] and their exit codes."""
    ranks = start_two([argv, argv], folder, faults or (None, None))
    return ranks, [rank.wait() for rank in ranks]


def trained_tensors(folder):
    concept = Library(folder / "concepts").get(Token("me", "thing"))
    lora = (
        [matrix for _, layer in sorted(concept.lora.layers.items()) for matrix in (layer.down, layer.up)]
        if concept.lora
        else []
    )
    return [*concept.vectors.values(), *lora]


def assert_close(actual_folder, expected_folder):
    for actual, expected in zip(trained_tensors(actual_folder), trained_tensors(expected_folder), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-5)


def losses(folder):
    entries = [json.loads(line) for line in (folder / "run" / "progress.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries] == list(range(1, len(entries) + 1))
    return [entry["loss"] for entry in entries]


def checkpoints(folder):
    return sorted(path.name for path in (folder / "run").iterdir() if path.name.startswith(("step", ".step")))


def note_samples():
    real = PhotoDataset.batch

    def samples(self, indices):
        with open(f"samples-{os.environ.get('RANK', 'one')}", "a") as file:
            file.write(f"{list(indices)}\n")
        return real(self, indices)

    PhotoDataset.batch = samples


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param("textual-inversion", marks=pytest.mark.thorough), "dreambooth"])
def test_two_processes_train_like_one_with_the_same_total_batch(command, tmp_path, kind):
    """And two with two batches of one equal one with a batch of four: the same photos, vectors to 1e-5."""
    two, codes = together(command(tmp_path / "two", "--accumulate", 2, kind=kind), tmp_path, note_samples, note_samples)
    assert codes == [0, 0], two[0].errors + two[1].errors
    assert "4 steps of 4 photos" in two[0].stdout
    assert two[1].stdout == two[1].errors == two[1].err.read_text() == ""  # two processes, one voice
    child = start(command(tmp_path / "one", batch=4, kind=kind), tmp_path / "one", fault=note_samples)
    assert child.wait() == 0, child.errors
    assert_close(tmp_path / "two", tmp_path / "one")
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), atol=1e-5)

    def read_samples(rank):
        with open(f"samples-{rank}") as file:
            return [json.loads(line) for line in file]

    # Last: the rehearsal's and the fixed batch come before them.
    assert read_samples("0")[-8:] == [[i] for i in range(16) if i % 2 == 0] and read_samples("1")[-8:] == [
        [i] for i in range(1, 16, 2)
    ]
    assert [i for indices in read_samples("one")[-4:] for i in indices] == list(range(16))
    assert len(list((tmp_path / "two" / "concepts").glob("*/*"))) == 1


@pytest.mark.slow
def test_a_run_resumes_with_another_number_of_processes(command, tmp_path):
    assert start(command(tmp_path / "whole", batch=2, steps=6), tmp_path / "whole").wait() == 0
    assert together(command(tmp_path / "parts", steps=2), tmp_path / "parts")[1] == [0, 0]
    child = start(command(tmp_path / "parts", "--resume", batch=2, steps=4), tmp_path / "one")
    assert child.wait() == 0, child.errors
    ranks, codes = together(command(tmp_path / "parts", "--resume", steps=6), tmp_path / "parts")
    assert codes == [0, 0] and "Resuming from step 4" in ranks[0].stdout
    assert_close(tmp_path / "parts", tmp_path / "whole")
    assert len(losses(tmp_path / "parts")) == 6


# --- one fails ---


def at_step(number, act):
    """In this process, at the third step of the run (after a checkpoint), `act` instead of the forward pass."""
    real = PhotoDataset.batch

    def samples(self, indices):
        if indices[0] // 2 == number:
            act()
        return real(self, indices)

    PhotoDataset.batch = samples


def raises():
    def act():
        raise ValueError("a bug of ours")

    at_step(3, act)


def exits():
    at_step(3, lambda: os._exit(0))


def exits_politely():
    at_step(3, lambda: exit(0))


def is_killed():
    at_step(3, lambda: os.kill(os.getpid(), signal.SIGKILL))


def has_no_memory():
    def act():
        import torch

        raise torch.OutOfMemoryError("Tried to allocate 20.00 GiB.")

    at_step(3, act)


FAILURES = {
    "exception": (raises, "ValueError: a bug of ours", 1),
    "exit": (exits, "ended without a word", 1),
    "sys.exit": (exits_politely, "called exit(0)", 1),
    "kill -9": (is_killed, "ended without a word", 1),
    "memory": (has_no_memory, "Out of memory at step 4", 2),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_of_rank_1_ends_both_processes_with_its_cause(command, tmp_path, failure):
    fault, message, code = FAILURES[failure]
    ranks = start_two([command(tmp_path, steps=500)] * 2, tmp_path, (None, fault))
    started_at = wait_for_end(ranks[1])
    assert ranks[0].wait(SOON) == code, ranks[0].errors
    ranks[1].wait(SOON)
    assert time.monotonic() - started_at < SOON
    assert ranks[1].process.exitcode != 0 or failure == "exit"  # which nothing can change
    errors = ranks[0].errors + ranks[1].errors
    assert errors.count(message) == 1 and "Rank 1" in errors, errors
    assert failure == "exception" or "Traceback" not in errors
    assert checkpoints(tmp_path) == ["step-000002"] and not list((tmp_path / "concepts").glob("*/*"))


def wait_for_end(child):
    child.process.join(120)
    return time.monotonic()


@pytest.mark.parametrize("failure", ["kill -9", "memory"])
def test_a_failure_of_rank_0_ends_the_other_process(command, tmp_path, failure):
    fault, message, code = FAILURES[failure]
    ranks = start_two([command(tmp_path, steps=500)] * 2, tmp_path, (fault, None))
    started_at = wait_for_end(ranks[0])
    assert ranks[1].wait(SOON) == code
    assert time.monotonic() - started_at < SOON
    errors = ranks[0].errors + ranks[1].errors
    assert errors.count(message) == 1 and "Traceback" not in errors, errors
    assert checkpoints(tmp_path) == ["step-000002"]


def hangs():
    process_failures.GRACE_SECONDS = 1.0
    at_step(3, lambda: time.sleep(600))


def test_a_hanging_process_is_ended_after_a_failure(command, tmp_path):
    """As one does in a collective of NCCL."""
    ranks = start_two([command(tmp_path, steps=500)] * 2, tmp_path, (hangs, is_killed))
    assert ranks[0].wait(SOON) == 1
    assert ranks[0].errors.count("error: Rank 1: It ended without a word") == 1


def unreadable_photos():
    from sdpersonal.errors import UserError
    from sdpersonal.training import run

    def load(folder, *_):
        raise UserError("2.png ends early (damaged download?).", "Fetch it again.")

    run.load_photos = load


def test_a_photo_unreadable_on_one_rank_stops_both_processes(command, tmp_path):
    ranks, codes = together(command(tmp_path), tmp_path, None, unreadable_photos)
    assert codes == [2, 2]
    assert ranks[0].errors == "error: Rank 1: 2.png ends early (damaged download?).\nFetch it again.\n"
    assert ranks[1].errors == ""


def plants_nan():
    real = PhotoDataset.batch

    def samples(self, indices):
        batch = real(self, indices)
        if 5 in indices:
            batch.latents[0, 0, 0, 0] = math.nan
        return batch

    PhotoDataset.batch = samples


def test_a_nan_loss_on_one_rank_stops_both_at_the_same_step(command, tmp_path):
    """Rank 1's alone; the message names its photo, though rank 0 speaks."""
    ranks, codes = together(command(tmp_path, steps=8), tmp_path, None, plants_nan)
    assert codes == [4, 4]
    assert "The loss became NaN at step 3 (" in ranks[0].errors and ranks[0].errors.count(".png") == 1
    assert ranks[1].errors == "" and checkpoints(tmp_path) == ["step-000002"]


def full_disk():
    real, writes_left = storage.atomic._write, [2]  # the rehearsal's and one more

    def write(handle, data):
        if len(data) > 3000:
            writes_left[0] -= 1
            if writes_left[0] < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle, data)

    storage.atomic._write = write


def test_a_full_disk_stops_both_processes(command, tmp_path):
    ranks, codes = together(command(tmp_path, steps=8), tmp_path, full_disk, None)
    assert codes == [3, 3]
    assert ranks[0].errors.startswith("error: not enough space in") and "from step 2" in ranks[0].errors
    assert ranks[1].errors == "" and checkpoints(tmp_path) == ["step-000002"]


def test_ctrl_c_stops_both_processes_at_the_same_step(command, tmp_path):
    """A terminal sends it to all, and a launcher sends it again."""
    ranks = start_two([command(tmp_path, steps=500)] * 2, tmp_path)
    ranks[0].after_lines(tmp_path / "run" / "progress.jsonl", 2)
    for _ in range(2):
        for rank in ranks:
            os.kill(rank.process.pid, signal.SIGINT)
    assert [rank.wait() for rank in ranks] == [130, 130]
    assert "it is saved" in ranks[0].errors and ranks[1].errors == ""
    done = len(losses(tmp_path))
    assert f"after step {done} " in ranks[0].errors and checkpoints(tmp_path)[-1] == f"step-{done:06d}"


def test_a_signal_to_one_process_stops_both(command, tmp_path):
    ranks = start_two([command(tmp_path, steps=500)] * 2, tmp_path)
    ranks[0].after_lines(tmp_path / "run" / "progress.jsonl", 2)
    os.kill(ranks[1].process.pid, signal.SIGTERM)
    assert [rank.wait() for rank in ranks] == [143, 143]
    assert "it is saved" in ranks[0].errors and ranks[1].errors == ""


# --- they start equal ---


@pytest.mark.thorough
def test_ranks_with_different_photos_or_settings_are_refused(command, photos, tmp_path):
    other_photos = tmp_path / "other"
    other_photos.mkdir()
    for path in sorted(photos.iterdir())[:4]:
        (other_photos / path.name).write_bytes(path.read_bytes())
    ranks = start_two([command(tmp_path), command(tmp_path, photos=other_photos)], tmp_path)
    assert [rank.wait() for rank in ranks] == [2, 2]
    assert "Rank 1 sees 4 photos, rank 0 sees 5." in ranks[0].errors and ranks[1].errors == ""
    (other_photos / "4.png").write_bytes((photos / "4.png").read_bytes() + b"more")
    ranks = start_two([command(tmp_path), command(tmp_path, photos=other_photos)], tmp_path)
    assert [rank.wait() for rank in ranks] == [2, 2]
    assert "Rank 1 sees other photos than rank 0." in ranks[0].errors
    ranks = start_two([command(tmp_path), command(tmp_path, "--seed", 1)], tmp_path)
    assert [rank.wait() for rank in ranks] == [2, 2]
    assert "Rank 1 was started with other settings than rank 0." in ranks[0].errors


def test_an_error_of_all_ranks_is_reported_once(command, tmp_path):
    ranks, codes = together(command(tmp_path, "--resume"), tmp_path)
    assert codes == [2, 2]
    assert "no checkpoint in" in ranks[0].errors and ranks[1].errors == ""


def test_a_master_port_in_use_is_refused_with_a_message(command, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(taken.getsockname()[1]), "WORLD_SIZE": "2"}
        rank = start(command(tmp_path), tmp_path, meeting | {"RANK": "0", "LOCAL_RANK": "0"})
        assert rank.wait() == 2
    assert f"Port {meeting['MASTER_PORT']} is in use" in rank.errors and "--main_process_port 0" in rank.errors


def test_sample_indices_are_distributed_over_all_processes():
    config = LoopConfig(Path(), steps=9, batch=3, accumulate=2, save_every=1, lr=1.0, lr_factor=float, identity={})
    for processes in (1, 2, 5):
        batches = [
            list(config.sample_indices(step, part, rank, processes))
            for step in range(4)
            for part in range(2)
            for rank in range(processes)
        ]
        assert [index for batch in batches for index in batch] == list(range(4 * 2 * processes * 3))


# --- they end together ---

STILL = ("--lr", "1e-30")  # no value changes by a bit


def short_schedule():
    """The preset has 40 steps, so that it is measured at each."""
    real = factory.preset
    factory.preset = lambda *which: replace(real(*which), steps=40)
    note_samples()


@pytest.mark.slow
@pytest.mark.thorough
def test_early_stopping_ends_both_processes_at_the_same_step(command, tmp_path):
    """Rank 0 alone measures; rank 1 hears of it. The first milestone that has seen nine values is the twelfth step."""
    two, codes = together(command(tmp_path, *STILL, steps=40), tmp_path, short_schedule, short_schedule)
    assert codes == [0, 0], two[0].errors + two[1].errors
    assert two[0].stdout.count("The loss has converged: ended after step 12 of 40") == 1 and two[1].stdout == ""
    assert len(losses(tmp_path)) == 12 and checkpoints(tmp_path)[-1] == "step-000012"
    for rank in ("0", "1"):
        with open(f"samples-{rank}") as file:
            indices = [json.loads(line) for line in file]
        assert indices[-12:] == [[i] for i in range(24) if i % 2 == int(rank)]  # and nothing after them
    ranks, codes = together(command(tmp_path, *STILL, "--resume", "--no-early-stop", steps=14), tmp_path)
    assert codes == [0, 0] and "Resuming from step 12" in ranks[0].stdout, ranks[0].errors
    assert len(losses(tmp_path)) == 14
