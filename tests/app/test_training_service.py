"""Trainings for pages, with real processes: started without a shell, found again, asked, stopped, killed, cancelled."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from sdpersonal.app.backend import Workspace
from sdpersonal.app.backend.train import trainer_process, training_service
from sdpersonal.app.backend.train.run_commands import keep_step, run_command
from sdpersonal.app.backend.train.run_folders import read_process
from sdpersonal.app.backend.train.run_images import photo_thumbnail, read_image
from sdpersonal.app.backend.train.run_progress import LossPoints, ProgressReader, loss_curve
from sdpersonal.app.backend.train.run_status import RunStatusReader
from sdpersonal.app.backend.train.run_view import run_details, run_summary
from sdpersonal.app.backend.train.trainer_process import (
    Process,
    settings_to_argv,
    start_process,
)
from sdpersonal.app.backend.train.training_service import TrainingService
from sdpersonal.app.backend.train.uploads import PhotoUploads
from sdpersonal.concepts.library import Library
from sdpersonal.config import DreamboothSettings, TextualInversionSettings, settings_from_json, settings_to_json
from sdpersonal.errors import UserError
from sdpersonal.training.run_dir import read_json
from support.ranks import lead_session, start

BEAR = Path(__file__).parents[2] / "examples" / "photos" / "teddy-bear"
PATIENCE = 150  # seconds, on a machine with other work


@pytest.fixture
def workspace(tmp_path):
    (tmp_path / "shown").mkdir()
    return Workspace(Library(tmp_path / "concepts"), tmp_path / "outputs", tmp_path / "runs", tmp_path / "shown")


@pytest.fixture
def photo_uploads(tmp_path):
    (tmp_path / "photo_uploads").mkdir()
    uploads = PhotoUploads(tmp_path / "photo_uploads", 128)
    uploads.add(sorted(BEAR.iterdir())[:6])
    return uploads


@pytest.fixture
def warm_process(monkeypatch):
    """Trainings are forked from a server that has imported what they need: three quarters of a short one's time.

    Their command lines, as they are started.
    """
    started = []

    class Child:
        def __init__(self, process):
            self.wait = process.join

    def start_warm(argv, folder):
        files = (folder / trainer_process.OUTPUT_FILE, folder / trainer_process.ERRORS_FILE)
        started.append(argv)
        process = start(argv, folder, fault=lead_session, files=files).process
        return Process(process.pid, psutil.Process(process.pid).create_time()), Child(process)

    monkeypatch.setattr(training_service, "start_process", start_warm)
    return started


@pytest.fixture
def trainings(workspace):
    opened = TrainingService(workspace)
    yield opened
    for folder in opened._all():
        read_process(folder).terminate(at_once=True)


def inversion(**more):
    return TextualInversionSettings(
        **{"photos": "x", "token": "<me/bear>", "base": "tiny", "init": "bear", "steps": 5000} | more
    )


def shown(trainings, user=None):
    """The status of the user's first run; None if there is none."""
    return next(iter(trainings.runs(user)), None)


def until(trainings, what, user=None):
    """How the user's first training stands once `what` of it is true."""
    end = time.monotonic() + PATIENCE
    while not what(standing := shown(trainings, user)):
        if time.monotonic() > end:
            raise TimeoutError(f"{standing}; {(standing.folder / 'errors.txt').read_text() if standing else ''}")
        time.sleep(0.05)
    return standing


def learning(standing):
    return standing.state == "training" and standing.step >= 2


# --- a training's life ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_training_runs_from_start_to_a_concept_in_the_library(warm_process, trainings, photo_uploads, workspace):
    """It is found again by another app, asked for pictures, stopped at a step that was chosen; its photos go, its
    concept stays, and another step becomes a further version."""
    folder = trainings.start(inversion(sample_prompts=["on a bike"]), photo_uploads, None)
    standing = until(trainings, lambda standing: True)
    assert standing.state == "starting" and (folder / "photos" / "photo 01").exists()
    assert psutil.pid_exists(read_json(folder / "process.json")["pid"])
    assert len(warm_process) == 1 and "on a bike" not in str(warm_process)
    details = run_details(standing, trainings)
    assert len(details["photos"]) == details["photo_count"] == 3 and details["prompts"] == ["<me/bear> on a bike"]
    assert photo_thumbnail(standing, 1).startswith(b"\xff\xd8")

    until(trainings, learning)
    again = TrainingService(workspace)  # after a restart of the app
    standing = shown(again)
    assert standing.state == "training" and standing.folder == folder.resolve() and standing.steps == 5000
    assert again.running_training(None).is_own and not again.running_training("anna").is_own
    assert (
        "Another user is training" in again.running_training("anna").message()
        and "bear" not in again.running_training("anna").message()
    )
    assert shown(again, "anna") is None
    first = run_details(standing, again)
    assert first["message"] == "Training <me/bear>" and "of at most 5,000" in first["text"] and first["timeline"] == []
    run_command(again, None, standing.id, "sample")
    standing = until(again, lambda now: (folder / "trials.jsonl").read_text().endswith("\n"))
    [entry] = run_details(standing, again)["timeline"]
    assert [image["own"] for image in entry["images"]] == [False] * 8 + [True] and entry["best"] and entry["can_keep"]
    assert entry["images"][-1]["prompt"] == "<me/bear> on a bike" and entry["scores"] and entry["sentences"]
    assert len(run_details(standing, again)["class_images"]) == 8
    for number, place in ((1, str(entry["step"])), (9, str(entry["step"])), (0, "class"), (8, "class")):
        assert read_image(standing, place, number).startswith(b"\x89PNG")
    until(again, lambda now: now.step > entry["step"])
    run_command(again, None, standing.id, "sample")
    standing = until(again, lambda now: len(run_details(now, again)["timeline"]) == 2)
    with pytest.raises(UserError, match="after step 4,999 was not kept"):
        keep_step(again, None, standing.id, 4999)
    assert "ends now" in keep_step(again, None, standing.id, entry["step"])
    standing = until(again, lambda now: not now.running)
    assert standing.state == "done" and standing.token == "<me/bear-v1>", (folder / "errors.txt").read_text()
    assert standing.best == entry["step"] == workspace.library.get("<me/bear-v1>").card.steps
    last = run_details(standing, again)
    assert last["message"] == "<me/bear-v1> is ready" and last["try_prompts"][0] == "a photo of <me/bear>"
    assert last["report"] and last["samples"] and [entry["can_keep"] for entry in last["timeline"]] == [False, True]
    second = last["timeline"][1]["step"]
    assert "<me/bear-v2> is in your library" in keep_step(again, None, standing.id, second)
    kept = workspace.library.get("<me/bear-v2>")
    assert (
        kept.card.steps == second and kept.thumbnail and kept.identity != workspace.library.get("<me/bear-v1>").identity
    )
    details = run_details(standing, again)
    assert details["kept"] == {str(second): "<me/bear-v2>"} and not any(e["can_keep"] for e in details["timeline"])
    until(trainings, lambda now: not list(folder.glob("*photos*")))  # whoever started it tidies up
    assert trainings.measured_costs.read() and trainings.running_training(None) is None
    run_command(again, None, standing.id, "dismiss")
    assert shown(trainings) is None and (folder / "report.html").exists()
    assert "discarded" in run_command(again, None, standing.id, "discard").lower() and not folder.exists()
    assert workspace.library.get("<me/bear-v2>")


@pytest.mark.slow
def test_a_training_is_saved_when_the_app_ends_and_can_be_resumed(warm_process, trainings, photo_uploads, workspace):
    folder = trainings.start(inversion(steps=400, early_stop=False, samples=False), photo_uploads, "anna")
    assert folder.parent == (workspace.runs / "anna").resolve()
    until(trainings, learning, "anna")
    trainings.close()
    standing = until(trainings, lambda now: not now.running, "anna")  # it saves, even if the app ends before
    assert standing.state == "stopped" and standing.step >= 2
    assert (folder / "photos").exists() and trainings.running_training("anna") is None
    text = run_summary(standing, trainings)["text"]
    assert text == f"Stopped after step {standing.step} of 400; it is saved.\nPress Resume to go on."
    assert trainings.start_next() is None and not trainings.has_work()  # it waits for its owner

    again = TrainingService(workspace)
    assert again.start_next() is None
    again.resume("anna", standing.id)
    now = until(again, lambda now: now.state == "training" and now.step > standing.step, "anna")
    steps = [json.loads(line)["step"] for line in (folder / "progress.jsonl").read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1)) and now.points.losses[0][0] == 1
    run_command(again, "anna", standing.id, "keep")
    assert until(again, lambda now: not now.running, "anna").state == "done"
    assert not (folder / "photos").exists() or until(again, lambda _: not (folder / "photos").exists(), "anna")


@pytest.mark.slow
def test_killed_training_reports_its_cause_and_cancelling_leaves_no_files(
    warm_process, trainings, photo_uploads, workspace, tmp_path
):
    folder = trainings.start(inversion(), photo_uploads, None)
    until(trainings, learning)
    os.kill(read_json(folder / "process.json")["pid"], signal.SIGKILL)
    standing = until(trainings, lambda now: not now.running)
    assert standing.state == "failed" and "killed, or the machine ran out of memory" in standing.message
    assert "try again" in run_summary(standing, trainings)["text"]
    with pytest.raises(UserError, match="does not run"):
        run_command(trainings, None, standing.id, "keep")
    trainings.resume(None, standing.id)  # there is no checkpoint: from the beginning
    assert until(trainings, learning).step >= 2
    assert "copies of your photos were deleted" in trainings.cancel(None, standing.id)
    assert not folder.exists() and shown(trainings) is None and trainings.running_training(None) is None
    assert workspace.library.entries() == []
    with pytest.raises(UserError, match="does not exist any more"):
        trainings.cancel(None, standing.id)


def test_a_failed_start_shows_the_error_message_of_the_trainer(warm_process, trainings, photo_uploads, workspace):
    folder = trainings.start(inversion(base="no-such-base"), photo_uploads, None)
    standing = until(trainings, lambda now: not now.running)
    assert standing.state == "failed" and "no-such-base" in standing.message and "Traceback" not in standing.message
    assert run_summary(standing, trainings)["message"] == "<me/bear> is not finished"
    (folder / "errors.txt").write_text("Traceback (most recent call last):\n  File /home/me/secret\nKeyError: 'x'\n")
    words = run_summary(shown(trainings), trainings)["text"]
    assert "error in this program" in words and "secret" not in words


@pytest.mark.parametrize("wrong", ["full", "library gone", "no photo left"])
def test_a_refused_start_leaves_no_run(trainings, photo_uploads, workspace, monkeypatch, wrong):
    if wrong == "full":
        monkeypatch.setattr(training_service.storage, "free_bytes", lambda folder: 1000)
    elif wrong == "library gone":
        monkeypatch.setattr(
            training_service, "start_process", lambda *_: (_ for _ in ()).throw(UserError("no process"))
        )
    else:
        photo_uploads.clear()
    with pytest.raises(UserError):
        trainings.start(inversion(), photo_uploads, None)
    assert trainings.runs(None) == [] and [path.name for path in workspace.runs.glob("[!.]*")] == []
    assert trainings.running_training(None) is None


# --- which process it is ----------------------------------------------------------------------------------------------


def test_a_reused_process_id_is_not_mistaken_for_the_training(trainings, workspace, tmp_path):
    process = psutil.Process()
    assert Process(process.pid, process.create_time()).is_alive()
    assert not Process(process.pid, process.create_time() - 100).is_alive()
    for pid in (0, -1, 2**40):
        assert not Process(pid, 0.0).is_alive() and Process(pid, 0.0).terminate(at_once=True)
    run = tmp_path / "runs" / "me-bear"
    run.mkdir(parents=True)
    (run / "settings.json").write_text(json.dumps(inversion().model_dump(mode="json")))
    (run / "process.json").write_text(
        json.dumps({"pid": process.pid, "born": process.create_time() - 100, "began": 5.0})
    )
    assert shown(TrainingService(workspace)).state == "failed"
    assert "deleted" in TrainingService(workspace).cancel(None, "me-bear")  # and this test goes on
    for nonsense in ("{", "[]", '{"pid": "x", "born": null}', '{"pid": true}', "\0"):
        run.mkdir(exist_ok=True)
        (run / "process.json").write_text(nonsense)
        assert TrainingService(workspace).running_training(None) is None


def test_setting_values_are_never_read_as_flags_or_by_a_shell(tmp_path, monkeypatch):
    """Whatever was typed is one word with its flag, and reaches the trainer as it is."""
    monkeypatch.chdir(tmp_path)
    for noun in ("x; touch PWNED", "$(touch PWNED)", "--config=/etc/passwd", "-h", "a | b", "'\"", "--base", "`id`"):
        settings = DreamboothSettings(photos="ph otos", token="<me/bear>", class_noun=noun, flip=True, samples=False)
        argv = settings_to_argv(settings)
        assert argv[:2] == ["train", "dreambooth"] and all(word.startswith("--") for word in argv[2:])
        assert f"--class={noun}" in argv and "--flip" in argv and "--no-samples" in argv
        assert _as_read(argv) == settings.model_copy(update={"photos": Path("ph otos")})
    assert list(tmp_path.iterdir()) == []


def _as_read(argv):
    from sdpersonal.cli.commands.train import parse_training

    return parse_training(DreamboothSettings, argv[2:], "train")


def test_the_training_process_imports_no_module_from_its_working_folder(tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise SystemExit('PWNED')")
    (tmp_path / "sdpersonal.py").write_text("raise SystemExit('PWNED')")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    _, child = start_process(["concepts", "list", "--library=nowhere"], tmp_path / "run")
    assert child.wait(PATIENCE) == 0 and "PWNED" not in (tmp_path / "run" / "errors.txt").read_text()
    assert (tmp_path / "run" / "said.txt").stat().st_mode & 0o777 == 0o600 and sys.executable


def test_the_training_process_gets_no_secrets_and_leads_its_process_group(tmp_path, monkeypatch):
    reporter = tmp_path / "python"
    reporter.write_text(
        f"#!{sys.executable}\nimport os, sys\nprint(sys.argv[1:], dict(os.environ), os.getpgid(0) == os.getpid())"
    )
    reporter.chmod(0o755)
    monkeypatch.setenv("HF_TOKEN", "SECRET")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "SECRET")
    monkeypatch.setattr(sys, "executable", str(reporter))
    _, child = start_process(["train", "dreambooth"], tmp_path)
    assert child.wait(PATIENCE) == 0
    report = (tmp_path / "said.txt").read_text()
    assert "SECRET" not in report and f"'HOME': '{os.environ['HOME']}'" in report and report.endswith(" True\n")
    assert report.startswith("['-P', '-m', 'sdpersonal', 'train', 'dreambooth']")


def test_settings_are_unchanged_after_saving_and_loading():
    for settings in (
        inversion(lr=0.5),
        DreamboothSettings(photos="x", token="<me/a>", class_noun="cat", method="pivotal"),
    ):
        record = json.loads(json.dumps(settings_to_json(settings)))
        assert settings_from_json(record) == settings
    with pytest.raises(UserError):
        settings_from_json({"program": "dreambooth", "photos": "x", "token": "<me/a>", "steps": -1})


# --- what is read and told --------------------------------------------------------------------------------------------


def test_progress_is_read_incrementally_and_again_after_a_resume(tmp_path):
    path = tmp_path / "progress.jsonl"
    ledger = ProgressReader(path)
    ledger.update()
    lines = [
        json.dumps({"step": n, "steps": 9, "loss": 1 / n, "seconds": n, "left": 9 - n}) + "\n" for n in range(1, 9)
    ]
    path.write_text("".join(lines[:3]) + lines[3][:10])
    ledger.update()
    assert ledger.last["step"] == 3 and len(ledger.points.losses) == 3
    with path.open("a") as file:
        file.write(lines[3][10:] + lines[4] + "garbage\n" + '{"step": "x"}\n{"step": 6, "loss": NaN}\n[]\n')
    ledger.update()
    assert [step for step, _ in ledger.points.losses] == [1, 2, 3, 4, 5]
    path.write_text("".join(lines[:2]))
    ledger.update()
    assert [step for step, _ in ledger.points.losses] == [1, 2]


def test_the_loss_curve_has_few_points_and_includes_the_last_step():
    losses = [(n, 1.0 / n) for n in range(1, 3001)]
    curve = loss_curve(LossPoints(losses, [(n, 0.5) for n in range(100, 3000, 100)]))
    assert len(curve["points"]) <= 401 and curve["points"][0] == (1, 1.0) and curve["points"][-1] == (3000, 0.0003333)
    assert curve["average"] == [(n, 0.5) for n in range(100, 3000, 100)]
    mean = loss_curve(LossPoints(losses[:10]))["average"]
    assert mean[4] == (5, float(f"{sum(1 / n for n in range(1, 6)) / 5:.4g}")) and mean[-1][0] == 10
    assert loss_curve(LossPoints()) == {"points": [], "average": []}


def test_runs_of_the_command_line_are_not_listed_by_the_app(workspace, tmp_path):
    (tmp_path / "runs" / "me-cat-dreambooth-lora").mkdir(parents=True)
    assert TrainingService(workspace).runs(None) == []
    assert RunStatusReader().read(tmp_path / "runs" / "me-cat-dreambooth-lora") is None
