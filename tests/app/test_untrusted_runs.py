"""Run folders that were damaged, or came from somebody else, as the page meets them: each is shown and can be
discarded, none ends the app, and none says where to read and write."""

import json
import os
import time

import pytest

from sdpersonal.app.backend import Workspace
from sdpersonal.app.backend.train import training_service
from sdpersonal.app.backend.train.run_folders import list_runs
from sdpersonal.app.backend.train.run_status import RunStatusReader
from sdpersonal.app.backend.train.run_view import run_details
from sdpersonal.app.backend.train.trainer_process import Process, settings_to_argv
from sdpersonal.app.backend.train.training_service import TrainingService
from sdpersonal.concepts.library import Library
from sdpersonal.config import DreamboothSettings
from sdpersonal.errors import UserError

HUGE = 10**400
DEEP = [[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]
BAD = [HUGE, -1, True, None, "x", "\ud800", [], {}, DEEP, 1e300, float("nan"), float("-inf"), "9" * 100_000]
SETTINGS = {"program": "dreambooth", "photos": "p", "token": "<me/bear>", "class_noun": "bear", "base": "tiny"}
FILES = {
    "process.json": {"pid": 1, "born": 1.0, "began": 1000.0},
    "settings.json": SETTINGS,
    "cost.json": {"held": 10**9, "room": 10**10, "step": 0.1, "steps": 100, "seconds": 10.0},
    "result.json": {"token": "<me/bear-v1>", "sha256": "0" * 64, "steps": 90, "best": 80, "seconds": 9.0},
    "progress.jsonl": {"step": 5, "steps": 100, "loss": 0.5, "seconds": 1.0, "left": 20.0, "fixed": 0.4},
    "trials.jsonl": {"step": 5, "score": 0.7, "likeness": 0.5, "fidelity": 1.0, "copying": 0.0, "diversity": 0.5}
    | {"cosine": 0.5},
}


@pytest.fixture
def workspace(tmp_path):
    (tmp_path / "shown").mkdir()
    (tmp_path / "runs").mkdir()
    return Workspace(Library(tmp_path / "concepts"), tmp_path / "outputs", tmp_path / "runs", tmp_path / "shown")


def make_run(workspace, name="run", finished=False, **changes):
    """A run of the app's; changes: for the stem of a file's name other content, None for no such file."""
    folder = workspace.runs / name
    (folder / "photos").mkdir(parents=True)
    for file, content in FILES.items():
        content = changes.get(file.partition(".")[0], content)
        if content is not None and (file != "result.json" or finished):
            text = content if isinstance(content, str) else json.dumps(content)
            (folder / file).write_text(text + "\n")
    return folder


def shown(trainings, folder):
    """The run's status, which a page can show in text that can be sent."""
    status = RunStatusReader().read(folder)
    details = run_details(status, trainings)
    assert details["message"] and details["text"] and len(f"{details['message']}{details['text']}") < 3000
    json.dumps(details, allow_nan=False).encode()
    assert len(json.dumps(details)) < 20_000
    return status


def first_run(trainings):
    return next(iter(trainings.runs(None)), None)


@pytest.mark.parametrize("file", FILES)
def test_runs_with_invalid_values_are_shown_and_can_be_discarded(workspace, file):
    runs = []
    for name in [*FILES[file], "self"]:
        for number, bad in enumerate(BAD):
            changes = {file.partition(".")[0]: FILES[file] | {name: bad}}
            runs.append(make_run(workspace, f"{name}-{number}", finished=file == "result.json", **changes))
    trainings = TrainingService(workspace)
    for folder in runs:
        state, is_deep = shown(trainings, folder).state, folder.name.endswith(f"-{BAD.index(DEEP)}")
        if is_deep and file in ("process.json", "settings.json", "result.json"):
            assert state == "damaged"
        else:
            assert state == ("done" if file == "result.json" else "failed")
    first = first_run(trainings)
    trainings.dismiss(None, first.id) if first.state == "done" else trainings.cancel(None, first.id)
    assert first_run(trainings).folder != first.folder
    trainings.measured_costs.read()


@pytest.mark.parametrize("name", FILES["process.json"])
def test_a_finished_run_with_invalid_process_data_can_be_dismissed(workspace, name):
    for number, bad in enumerate(BAD):
        make_run(workspace, f"run-{number}", finished=True, process=FILES["process.json"] | {name: bad})
    trainings = TrainingService(workspace)
    for _ in BAD:
        assert first_run(trainings).state == "done"
        trainings.dismiss(None, first_run(trainings).id)
    assert first_run(trainings) is None


CONTENTS = ["", "{", "[]", "7", "null", "[" * 100_000, "\x00" * 50, " " * (2 << 20)]


@pytest.mark.parametrize("file", FILES)
def test_a_damaged_required_file_marks_the_run_as_damaged(workspace, file):
    trainings = TrainingService(workspace)
    for number, content in enumerate(CONTENTS):
        folder = make_run(workspace, f"run-{number}")
        (folder / file).write_text(content)
        status = shown(trainings, folder)
        vital = file in ("process.json", "settings.json", "result.json")
        assert status.state == ("damaged" if vital else "failed") and (file in status.message) == vital
    TrainingService(workspace).cancel(None, "run-0")
    assert len(list_runs(workspace.runs)) == len(CONTENTS) - 1


@pytest.mark.parametrize("name", FILES)
def test_links_pipes_and_folders_in_place_of_run_files_do_not_block(workspace, name):
    trainings = TrainingService(workspace)
    makers = [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path), lambda path: os.symlink(path, path)]
    for number, make in enumerate(makers):
        folder = make_run(workspace, f"run-{number}")
        (folder / name).unlink(missing_ok=True)
        make(folder / name)
        shown(trainings, folder)
    TrainingService(workspace).cancel(None, "run-0")
    assert len(list_runs(workspace.runs)) == len(makers) - 1


def test_a_damaged_run_is_not_listed_first_and_cannot_be_resumed(workspace):
    make_run(workspace, "damaged", settings="{", process={"pid": 1, "born": 1.0, "began": HUGE})
    make_run(workspace, "ahead", process={"pid": 1, "born": 1.0, "began": time.time() + 10**7})
    make_run(workspace, "whole")
    trainings = TrainingService(workspace)
    assert first_run(trainings).id == "whole" and "Cancelled" in trainings.cancel(None, "whole")
    assert [path.name for path in list_runs(workspace.runs)] == ["damaged", "ahead"]
    details = run_details(first_run(trainings), trainings)
    assert details["message"] == "A training is damaged" and details["commands"] == ["discard"]
    assert "settings.json is damaged or missing" in details["text"]
    assert str(workspace.runs / "damaged") in details["text"]
    with pytest.raises(UserError, match=r"cannot be resumed\. Its file settings\.json"):
        trainings.resume(None, "damaged")


def test_leftovers_of_a_discarded_run_are_deleted_when_the_app_starts(workspace):
    folder = make_run(workspace)
    folder.rename(workspace.runs / ".run.12345678.sdpersonal-tmp")
    assert TrainingService(workspace).runs(None) == [] and list(workspace.runs.iterdir()) == []


def test_runs_that_cannot_be_read_or_deleted_do_not_stop_the_app(workspace, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    make_run(workspace, finished=True)
    monkeypatch.setattr(training_service.storage, "remove", refuse)
    trainings = TrainingService(workspace)
    assert first_run(trainings).state == "done"
    monkeypatch.setattr("sdpersonal.app.backend.train.run_status.read_run_json", refuse)
    status = shown(trainings, workspace.runs / "run")
    assert status.state == "damaged" and "Permission denied" in status.message


# --- settings of a run that came from somebody else -------------------------------------------------------------------


@pytest.fixture
def launched(monkeypatch):
    """The command lines of trainings that were started."""
    lines = []

    def start_process(argv, folder):
        lines.append(argv)
        child = type("Child", (), {"wait": lambda self: 0})()
        return Process(2**22 + 1, 1.0), child

    monkeypatch.setattr(training_service, "start_process", start_process)
    return lines


FOREIGN = {
    "library": "/elsewhere/concepts",
    "run": "/elsewhere/run",
    "photos": "/elsewhere/photos",
    "base": "somebody/else",
    "revision": "main",
    "vae": "/elsewhere/vae",
    "prior": "/elsewhere/faces",
    "report_to": "wandb",
}


def test_a_resumed_run_ignores_foreign_paths_and_models_in_its_settings(workspace, launched):
    folder = make_run(workspace, settings=SETTINGS | FOREIGN | {"rank": 3})
    note = TrainingService(workspace, loaded_model=lambda: "sd-of-mine").resume(None, "run")
    [argv] = launched
    expected = DreamboothSettings(
        photos=folder / "photos",
        token="<me/bear>",
        class_noun="bear",
        base="sd-of-mine",
        library=workspace.library.folder,
        run=folder,
        rank=3,
    )
    assert argv == settings_to_argv(expected) and "elsewhere" not in str(argv) and "wandb" not in str(argv)
    assert note.startswith("Not taken from the run's settings.json") and note.count(".") == 2
    assert all(name in note for name in FOREIGN)


def test_the_apps_own_run_is_resumed_as_it_was_started(workspace, launched):
    folder = workspace.runs / "run"
    own = {"library": str(workspace.library.folder), "run": str(folder), "photos": str(folder / "photos")}
    make_run(workspace, settings=SETTINGS | own | {"prior": "generated"})
    assert (
        TrainingService(workspace, loaded_model=lambda: "another").resume(None, "run") == ""
    )  # the built-in model is everybody's
    assert "--prior=generated" in launched[0] and "--base=tiny" in launched[0]


def test_a_linked_folder_of_photos_is_refused(workspace, launched, tmp_path):
    folder = make_run(workspace)
    (folder / "photos").rmdir()
    (folder / "photos").symlink_to(tmp_path)
    with pytest.raises(UserError, match="folder of photos is a link"):
        TrainingService(workspace, loaded_model=lambda: "tiny").resume(None, "run")
    assert launched == []
    assert RunStatusReader().read(folder).state == "failed"  # it is not in the line


def test_only_valid_training_costs_are_recorded(workspace):
    costs = TrainingService(workspace).measured_costs
    for bad in (
        {"steps": 1e-320, "seconds": 1e300, "held": 1},
        {"steps": HUGE, "seconds": 1, "held": 1},
        {"steps": True, "seconds": 1, "held": 1},
        {"steps": 5, "seconds": float("inf"), "held": 1},
        {"steps": 5, "seconds": 5, "held": -1},
        {"steps": 5, "seconds": 5, "held": [1]},
    ):
        costs.add({"base": "tiny"}, bad)
    assert costs.read() == {}
    costs.add({"base": "\ud800", "method": DEEP}, {"steps": 10, "seconds": 5.0, "held": 10**9})
    [(key, measured)] = costs.read().items()
    assert measured == {"step": 0.5, "held": 1e9} and key.encode()
    for bad in BAD:
        (workspace.runs / "pace.json").write_text(json.dumps({"a": bad, "b": {"step": bad, "held": bad}}))
        assert costs.read() == {}
