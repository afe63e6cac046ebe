"""What is asked of a run while it goes on: real processes, a word in a file."""

import json
import time

import pytest
from PIL import Image

from sdpersonal.concepts.library import Library
from sdpersonal.config import TextualInversionSettings, generation
from sdpersonal.training import sampling, train, validation
from sdpersonal.training.control import NO_REQUEST, Command, StopRequest, poll, send
from sdpersonal.training.run_dir import COMMAND_FILE, snapshot_file
from support.narrow import save_narrow, save_photos
from support.quick_trainings import draw_rough_images
from support.ranks import start, start_two


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    return save_narrow("sd1", tmp_path_factory.mktemp("narrow") / "sd1")


@pytest.fixture
def command(narrow, tmp_path):
    photos = save_photos(tmp_path / "photos", 2)

    def build(folder, *more, base=narrow, steps=5000):
        flags = ["--photos", photos, "--token", "<me/thing>", "--base", base, "--steps", steps, "--batch", 1]
        flags += ["--vectors", 2, "--library", folder / "concepts", "--run", folder / "run"]
        return ["train", "textual-inversion", *flags, *more]

    return build


def result(folder):
    return json.loads((folder / "run" / "result.json").read_text())


def after_lines(child, folder, count):
    return child.after_lines(folder / "run" / "progress.jsonl", count)


def test_a_command_is_read_once_and_invalid_commands_are_ignored(tmp_path):
    assert poll(tmp_path) == NO_REQUEST
    for sent in (Command.SAMPLE, Command.KEEP):
        send(tmp_path, sent)
        assert (poll(tmp_path), poll(tmp_path)) == (StopRequest(0, sent), NO_REQUEST)
    send(tmp_path, Command.SAMPLE)
    send(tmp_path, Command.KEEP)
    assert poll(tmp_path) == StopRequest(0, Command.KEEP)
    for nonsense in (b"", b"nothing", b"stop\n", b"\xff\xfe", b"keep" * 1000, b"keep 0", b"keep -1", b"keep 1e3"):
        (tmp_path / COMMAND_FILE).write_bytes(nonsense)
        assert poll(tmp_path) == NO_REQUEST and not (tmp_path / COMMAND_FILE).exists()
    (tmp_path / COMMAND_FILE).mkdir()
    assert poll(tmp_path) == NO_REQUEST and not (tmp_path / COMMAND_FILE).exists()
    (tmp_path / COMMAND_FILE).symlink_to("/dev/zero")
    assert poll(tmp_path) == NO_REQUEST and not (tmp_path / COMMAND_FILE).is_symlink()


def test_the_keep_command_accepts_only_steps_with_a_saved_state(tmp_path):
    (snapshot_file(tmp_path, 7)).parent.mkdir(parents=True)
    snapshot_file(tmp_path, 7).touch()
    (tmp_path / "step-000009").mkdir()
    (tmp_path / "step-000009" / "manifest.json").touch()
    for step, expected in ((7, 7), (9, 9), (8, 0), (10**9, 0)):
        send(tmp_path, Command.KEEP, step)
        assert poll(tmp_path) == (StopRequest(0, Command.KEEP, step) if expected else NO_REQUEST)
    (tmp_path / COMMAND_FILE).write_text("sample 7")
    assert poll(tmp_path) == NO_REQUEST


@pytest.mark.slow
def test_a_running_training_samples_and_stops_on_command(command, tmp_path):
    """On the built-in base, which has a judge: pictures come, are judged, and the concept is what was best."""
    child = start(command(tmp_path, base="tiny", steps=400), tmp_path, fault=draw_rough_images)
    after_lines(child, tmp_path, 3)
    send(tmp_path / "run", Command.SAMPLE)
    validations_file = tmp_path / "run" / "trials.jsonl"
    while child.process.is_alive() and not (validations_file.exists() and validations_file.read_text().endswith("\n")):
        time.sleep(0.02)
    first = json.loads(validations_file.read_text())
    reached = first["step"]
    assert 3 <= reached < 40  # before the first milestone
    with Image.open(tmp_path / "run" / "trials" / f"step-{reached:06d}.png") as image:
        assert image.width > 300
    after_lines(child, tmp_path, reached + 2)  # it went on
    send(tmp_path / "run", Command.KEEP)
    assert child.wait() == 0, child.errors
    steps = len((tmp_path / "run" / "progress.jsonl").read_text().splitlines())
    assert (
        f"Ended after step {steps} of 400, as requested." in child.stdout
        and not (tmp_path / "run" / COMMAND_FILE).exists()
    )
    assert result(tmp_path)["steps"] == steps and result(tmp_path)["best"] in (reached, steps)
    (entry,) = Library(tmp_path / "concepts").entries()
    assert entry.card.scores and entry.card.steps == result(tmp_path)["best"]
    assert "as requested; 400 were allowed" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize("samples", [pytest.param(True, marks=pytest.mark.thorough), False])
def test_training_without_validation_generates_only_requested_samples(command, tmp_path, samples):
    child = start(command(tmp_path, *(() if samples else ("--no-samples",))), tmp_path)
    after_lines(child, tmp_path, 2)
    send(tmp_path / "run", Command.SAMPLE)
    while child.process.is_alive() and (tmp_path / "run" / COMMAND_FILE).exists():
        time.sleep(0.02)
    done = (tmp_path / "run" / "progress.jsonl").read_text().count("\n")
    after_lines(child, tmp_path, done + 2)
    send(tmp_path / "run", Command.KEEP)
    assert child.wait() == 0, child.errors
    last_step = result(tmp_path)["steps"]
    assert result(tmp_path)["best"] == last_step and not (tmp_path / "run" / "trials.jsonl").exists()
    image_names = sorted(path.name for path in (tmp_path / "run").glob("trials/*.png"))
    assert len(image_names) == (2 if samples else 0) and (not samples or image_names[-1] == f"step-{last_step:06d}.png")


def test_requested_samples_do_not_change_the_trained_concept(command, narrow, tmp_path, monkeypatch):
    """The same run, one watched and one not: the same losses, and the same checkpoint at the same step."""
    monkeypatch.setattr(validation, "DENOISING_STEPS", 2)
    monkeypatch.setattr(generation, "DEFAULT_STEPS", 2)
    monkeypatch.setattr(sampling, "_SEEDS", 1)
    settings = {"photos": tmp_path / "photos", "token": "<me/thing>", "base": str(narrow), "steps": 6, "batch": 1}
    for name in ("alone", "watched"):
        folder = tmp_path / name
        (folder / "run").mkdir(parents=True)

        def say(line, folder=folder, name=name):
            if "Training <me/thing>" in line and name == "watched":
                send(folder / "run", Command.SAMPLE)

        train(TextualInversionSettings(**settings, library=folder / "concepts", run=folder / "run"), say)
    trials = sorted((tmp_path / "watched" / "run" / "trials").iterdir())
    assert [path.suffix for path in trials] == ["", ".png"] and trials[0].stem == trials[1].stem
    identities = [Library(tmp_path / name / "concepts").entries()[0].identity for name in ("alone", "watched")]
    assert identities[0] == identities[1]


def test_a_command_left_by_a_dead_run_is_ignored(command, narrow, tmp_path):
    (tmp_path / "run").mkdir()
    send(tmp_path / "run", Command.KEEP)
    child = start(command(tmp_path, "--no-samples", steps=3), tmp_path)
    assert child.wait() == 0 and result(tmp_path)["steps"] == 3


@pytest.mark.slow
def test_two_processes_stop_on_command_and_save_one_concept(command, tmp_path):
    argv = command(tmp_path, "--no-samples", "--no-early-stop")
    ranks = start_two([argv, argv], tmp_path)
    after_lines(ranks[0], tmp_path, 3)
    send(tmp_path / "run", Command.SAMPLE)
    after_lines(ranks[0], tmp_path, 8)
    send(tmp_path / "run", Command.KEEP)
    assert [rank.wait() for rank in ranks] == [0, 0], ranks[0].errors
    assert "as requested" in ranks[0].stdout and ranks[1].stdout == ""
    assert len(Library(tmp_path / "concepts").entries()) == 1


def test_the_strongest_of_combined_requests_is_used():
    keep, sample, signal = StopRequest(0, Command.KEEP), StopRequest(0, Command.SAMPLE), StopRequest(15)
    assert keep | sample == sample | keep == keep | NO_REQUEST == keep
    assert keep | signal == signal | keep == StopRequest(15) and not NO_REQUEST | NO_REQUEST
    chosen = StopRequest(0, Command.KEEP, 96)
    assert chosen | sample == sample | chosen == chosen | keep == chosen and chosen | signal == StopRequest(15)
