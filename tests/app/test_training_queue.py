"""Trainings that wait in line, with fake processes: who is next, after a restart too, and what pages are told."""

import json
import threading
import time

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from sdpersonal.app.backend import Workspace
from sdpersonal.app.backend.events import EventHub
from sdpersonal.app.backend.train import training_service
from sdpersonal.app.backend.train.run_advice import advice_after, page_text
from sdpersonal.app.backend.train.run_files import tidy_run
from sdpersonal.app.backend.train.run_status import RunStatus
from sdpersonal.app.backend.train.run_text import run_text
from sdpersonal.app.backend.train.run_view import run_summary
from sdpersonal.app.backend.train.trainer_process import Process
from sdpersonal.app.backend.train.training_cost import MeasuredCosts
from sdpersonal.app.backend.train.training_queue import MAX_WAITING
from sdpersonal.app.backend.train.training_service import TrainingService
from sdpersonal.app.backend.train.training_watcher import TrainingWatcher
from sdpersonal.app.routes import trainings as training_routes
from sdpersonal.app.routes.requests import USER_KEY, add_error_handlers
from sdpersonal.concepts.library import Library
from sdpersonal.config import DreamboothSettings, TextualInversionSettings
from sdpersonal.errors import UserError
from sdpersonal.training.own_prompts import read_own_prompts
from sdpersonal.training.run_dir import read_json, snapshot_file


class FakeMachine:
    """Processes that run until they are ended, by a number of their own."""

    def __init__(self):
        self.argvs, self.alive, self.ended = [], set(), {}

    def start(self, argv, folder):
        self.argvs.append(argv)
        pid = 2**22 + len(self.argvs)  # larger than any of the system
        self.alive.add(pid)
        self.ended[pid] = threading.Event()
        return Process(pid, 1.0), type("Child", (), {"wait": lambda child: self.ended[pid].wait(30)})()

    def end(self, folder, **result):
        """End a run's process, with a result or without."""
        pid = read_json(folder / "process.json")["pid"]
        if result:
            (folder / "result.json").write_text(json.dumps(result))
        self.alive.discard(pid)
        self.ended[pid].set()


@pytest.fixture
def machine(monkeypatch):
    fake = FakeMachine()
    monkeypatch.setattr(training_service, "start_process", fake.start)
    monkeypatch.setattr(Process, "is_alive", lambda process: process.pid in fake.alive)

    def terminate(process, at_once=False, wait=10.0):
        fake.alive.discard(process.pid)
        return True

    monkeypatch.setattr(Process, "terminate", terminate)
    yield fake
    for event in fake.ended.values():
        event.set()


@pytest.fixture
def workspace(tmp_path):
    (tmp_path / "shown").mkdir()
    return Workspace(Library(tmp_path / "concepts"), tmp_path / "outputs", tmp_path / "runs", tmp_path / "shown")


class Photos:
    """What `start` takes of the photos."""

    def copy_to(self, folder):
        folder.mkdir()
        for name in ("photo 01", "photo 01.txt", "photo 02"):
            (folder / name).write_bytes(b"x")


def settings(name="bear", **more):
    values = {"photos": "x", "token": f"<me/{name}>", "base": "tiny", "init": "bear"} | more
    return TextualInversionSettings(**values)


@pytest.fixture
def trainings(workspace, machine):
    return TrainingService(workspace)


def states(trainings, user=None):
    return [(status.settings["token"], status.state) for status in trainings.runs(user)]


def test_a_second_training_starts_when_the_first_has_ended(trainings, machine):
    first = trainings.start(settings("a"), Photos(), None)
    second = trainings.start(settings("b", sample_prompts=["on a bike"]), Photos(), None)
    assert states(trainings) == [("<me/a>", "starting"), ("<me/b>", "waiting")] and len(machine.argvs) == 1
    assert trainings.start_next() is None and len(machine.argvs) == 1
    summary = run_summary(trainings.runs(None)[1], trainings)
    assert summary["photo_count"] == 2 and summary["ahead"] == 0 and "starts by itself" in summary["text"]
    machine.end(first, token="<me/a-v1>", steps=9, best=9)
    assert trainings.start_next() == second and f"--run={second}" in machine.argvs[1]
    assert states(trainings) == [("<me/b>", "starting"), ("<me/a>", "done")]
    assert "on a bike" not in str(machine.argvs) and "--no-resume" not in machine.argvs[1]
    assert read_own_prompts(second, (), "<me/b>", "object") == ("{} on a bike",)


def test_concurrent_starts_run_a_single_training_and_queue_the_others(trainings, machine):
    threads = [threading.Thread(target=trainings.start, args=(settings(), Photos(), None)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(state for _, state in states(trainings)) == ["starting"] + ["waiting"] * 5 and len(machine.argvs) == 1


def test_trainings_start_in_queue_order_across_users(trainings, machine):
    running = trainings.start(settings("a"), Photos(), "anna")
    waiting = [trainings.start(settings(name), Photos(), user) for name, user in (("b", "ben"), ("c", "anna"))]
    [status] = [status for status in trainings.runs("anna") if status.state == "waiting"]
    summary = run_summary(status, trainings)
    assert summary["ahead"] == 1 and "1 training starts before it" in summary["text"]
    assert "ben" not in json.dumps(run_summary(status, trainings))
    for folder in waiting:
        machine.end(running, token="<me/a-v1>")
        assert trainings.start_next() == folder
        running = folder


def test_moving_a_training_reorders_only_the_users_own_trainings(trainings, machine):
    trainings.start(settings("a"), Photos(), "anna")
    line = [("b", "ben"), ("c", "anna"), ("d", "ben"), ("e", "anna"), ("f", "ben")]
    ids = {name: trainings.start(settings(name), Photos(), user).name for name, user in line}

    def order():
        everybody = [status for user in ("anna", "ben") for status in trainings.runs(user) if status.state == "waiting"]
        return "".join(status.id[3] for status in sorted(everybody, key=lambda status: status.queued_at))

    assert order() == "bcdef"
    trainings.move("ben", ids["f"], ids["b"])
    assert order() == "fcbed"
    trainings.move("ben", ids["f"], None)
    assert order() == "bcdef"
    trainings.move("anna", ids["e"], ids["c"])
    trainings.move("anna", ids["e"], ids["e"])
    assert order() == "bedcf"
    for run, before in ((ids["b"], None), (ids["c"], ids["b"]), ("../ben", None), ("nothing", None)):
        with pytest.raises(UserError, match="does not wait"):
            trainings.move("anna", run, before)


def test_the_queued_trainings_of_a_user_are_limited(trainings, machine, workspace):
    for number in range(MAX_WAITING + 1):
        trainings.start(settings(f"c{number}"), Photos(), "anna")
    with pytest.raises(UserError, match="waiting already"):
        trainings.start(settings("more"), Photos(), "anna")
    assert trainings.start(settings("another"), Photos(), "ben")


def test_only_waiting_trainings_start_after_a_restart(trainings, machine, workspace):
    stopped = trainings.start(settings("a"), Photos(), None)
    waiting = trainings.start(settings("b"), Photos(), None)
    (stopped / "step-000002").mkdir()
    (stopped / "step-000002" / "manifest.json").write_text("{}")
    trainings.close()
    assert trainings.start_next() is None  # the app ends
    again = TrainingService(workspace)
    assert states(again) == [("<me/b>", "waiting"), ("<me/a>", "stopped")]
    assert again.start_next() == waiting and f"--run={waiting}" in machine.argvs[-1]
    assert again.resume(None, stopped.name) == "" and states(again)[1] == ("<me/a>", "waiting")
    machine.end(waiting)
    assert again.start_next() == stopped and "--resume" in machine.argvs[-1]


def test_a_waiting_run_without_its_model_fails_and_the_next_starts(trainings, machine, workspace):
    trainings.start(settings("a"), Photos(), None)
    foreign = trainings.start(settings("b", base="/somewhere/model"), Photos(), None)
    last = trainings.start(settings("c"), Photos(), None)
    trainings.close()
    again = TrainingService(workspace, loaded_model=lambda: "tiny")
    again.cancel(None, again.runs(None)[-1].id)
    assert again.start_next() == foreign and again.start_next() == last
    status = again.find(None, foreign.name)
    assert status.state == "failed" and "Resume takes the loaded one" in run_summary(status, again)["text"]
    assert not any("/somewhere" in str(argv) for argv in machine.argvs)


def test_a_waiting_run_can_be_cancelled_only_by_its_user(trainings, machine):
    trainings.start(settings("a"), Photos(), "anna")
    waiting = trainings.start(settings("b"), Photos(), "anna")
    for user in (None, "ben"):
        with pytest.raises(UserError, match="does not exist"):
            trainings.cancel(user, waiting.name)
    assert "nothing was added" in trainings.cancel("anna", waiting.name) and not waiting.exists()


def test_two_apps_on_the_same_folders_start_a_training_once(trainings, machine, workspace):
    running = trainings.start(settings("a"), Photos(), None)
    trainings.start(settings("b"), Photos(), None)
    apps = [trainings, *(TrainingService(workspace) for _ in range(3))]
    machine.end(running)
    threads = [threading.Thread(target=app.start_next) for app in apps]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(machine.argvs) == 2


def test_the_start_of_a_training_is_reported_in_steps(trainings, machine):
    folder = trainings.start(settings("a"), Photos(), None)
    log = ["Base: tiny on cpu, the built-in model.", "5 photos, 5 with captions", "Training <me/a> with ..."]
    for count in range(4):
        (folder / "said.txt").write_text("Base: an earlier run\n\f" + "\n".join(log[:count]))
        steps = [step["state"] for step in run_summary(trainings.runs(None)[0], trainings)["ready"]]
        assert steps == ["done"] * count + ["now"] + ["todo"] * (3 - count)


# --- what pages are told ----------------------------------------------------------------------------------------------


class Page(EventHub):
    """Events of one user's page that is open."""

    def __init__(self):
        super().__init__()
        self.events = []

    def watching_users(self):
        return [None]

    def lists(self):
        return [data["trainings"] for kind, data in self.events if kind == "trainings"]

    def publish(self, user, kind, data, key=""):
        self.events.append((kind, json.loads(json.dumps(data))))

    def publish_to_all(self, kind, data, key=""):
        self.publish(None, kind, data, key)


def wait_for(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_the_watcher_starts_trainings_sends_events_and_ends_when_idle(trainings, machine):
    page = Page()
    watcher = TrainingWatcher(trainings, page, poll_seconds=0.01)
    trainings.on_work = watcher.wake
    first = trainings.start(settings("a"), Photos(), None)
    second = trainings.start(settings("b"), Photos(), None)
    wait_for(lambda: page.events)
    (first / "progress.jsonl").write_text(json.dumps({"step": 3, "steps": 9, "loss": 0.5, "left": 60}) + "\n")
    wait_for(lambda: page.lists()[-1][0]["step"] == 3)
    count = len(page.lists())
    (first / "trials").mkdir()
    wait_for(lambda: ("training", {"id": first.name}) in page.events)
    assert len(page.lists()) == count  # the list is as it was
    machine.end(first, token="<me/a-v1>")
    wait_for(lambda: trainings.find(None, second.name).state == "starting")
    machine.end(second)
    wait_for(lambda: watcher._thread is None)
    assert {entry["token"]: entry["state"] for entry in page.lists()[-1]} == {"<me/b>": "failed", "<me/a-v1>": "done"}
    assert page.events.count(("library", {})) == 1  # for the concept that was added
    count = len(page.events)
    time.sleep(0.05)
    assert len(page.events) == count  # nothing runs: nothing is read and nothing is sent
    third = trainings.start(settings("c"), Photos(), None)
    wait_for(lambda: len(page.events) > count)
    machine.end(third)
    wait_for(lambda: watcher._thread is None)


# --- routes -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def client(trainings):
    events = EventHub()
    app = type(
        "App", (), {"trainings": trainings, "events": events, "training_watcher": TrainingWatcher(trainings, events)}
    )

    class Users:
        def __init__(self, inner):
            self.inner = inner

        async def __call__(self, scope, receive, send):
            scope[USER_KEY] = dict(scope.get("headers", ())).get(b"x-user", b"").decode()
            await self.inner(scope, receive, send)

    server = FastAPI()
    server.include_router(training_routes.router(app))
    add_error_handlers(server)
    server.add_middleware(Users)
    with TestClient(server) as opened:
        yield opened
    app.training_watcher.close()


def test_routes_return_the_list_or_refuse_with_a_message(client, trainings, machine, workspace):
    running = trainings.start(settings("a"), Photos(), None)
    waiting = [trainings.start(settings(name), Photos(), None).name for name in "bc"]

    def tokens(answer):
        return [run["token"] for run in answer.json()["trainings"]]

    assert tokens(client.get("/app/trainings")) == ["<me/a>", "<me/b>", "<me/c>"]
    assert tokens(client.get("/app/trainings", headers={"x-user": "anna"})) == []
    moved = client.post("/app/trainings/move", json={"id": waiting[1], "before": waiting[0]})
    assert tokens(moved) == ["<me/a>", "<me/c>", "<me/b>"]
    cancelled = client.post(f"/app/trainings/{waiting[0]}/command", json={"command": "cancel"})
    assert tokens(cancelled) == ["<me/a>", "<me/c>"] and "Cancelled" in cancelled.json()["message"]
    details = client.get(f"/app/trainings/{running.name}").json()
    assert details["commands"] == ["cancel"] and len(details["photos"]) == 2 and details["timeline"] == []
    assert client.post(f"/app/trainings/{running.name}/prompts", json={"prompts": ["a <me/a> hat"]}).status_code == 200
    assert client.get(f"/app/trainings/{running.name}").json()["prompts"] == ["a <me/a> hat"]
    answer = client.post(f"/app/trainings/{running.name}/prompts", json={"prompts": ["<me/other>"]})
    assert answer.status_code == 400 and answer.json()["field"] == "sample_prompts"
    for method, path, body, code in (
        ("GET", "gone", None, 400),
        ("GET", "..%2f..", None, 404),
        ("GET", f"{running.name}/images/7/1.png", None, 400),
        ("GET", f"{running.name}/images/..%2f../1.png", None, 404),
        ("GET", f"{running.name}/images/class/99999999999999999999.png", None, 400),
        ("GET", f"{running.name}/photos/1.jpg", None, 400),  # it is none
        ("GET", f"{running.name}/photos/-1.jpg", None, 400),
        ("GET", f"{running.name}/report", None, 400),
        ("POST", f"{running.name}/keep", {"step": 5}, 400),
        ("POST", f"{running.name}/keep", {"step": 0}, 422),
        ("POST", f"{running.name}/command", {"command": "sing"}, 422),
        ("POST", f"{running.name}/command", {"command": "resume"}, 400),
        ("POST", f"{running.name}/prompts", {"prompts": ["a"] * 9}, 400),
    ):
        answer = client.request(method, f"/app/trainings/{path}", json=body)
        assert answer.status_code == code, (path, answer.text)
        assert code == 404 or answer.json()["error"]
    assert client.get(f"/app/trainings/{running.name}", headers={"x-user": "anna"}).status_code == 400


def test_old_sheets_are_served_and_files_that_are_not_images_refused(client, trainings, machine):
    run = trainings.start(settings("a"), Photos(), None)
    (run / "trials").mkdir()
    (run / "trials" / "step-000007.png").write_bytes(b"\x89PNG\r\n\x1a\n...")
    (run / "trials" / "step-000008.png").write_bytes(b"<html>")
    (run / "trials" / "step-000009").mkdir()
    (run / "trials" / "step-000009" / "images.json").write_text('{"images": [{"file": "../../photos/photo 01"}, 7]}')
    timeline = client.get(f"/app/trainings/{run.name}").json()["timeline"]
    assert [(entry["step"], len(entry["images"])) for entry in timeline] == [(7, 1), (8, 1), (9, 0)]
    image = client.get(timeline[0]["images"][0]["url"])
    assert image.headers["content-type"] == "image/png" and "immutable" in image.headers["cache-control"]
    assert client.get(timeline[1]["images"][0]["url"]).status_code == 400


def test_a_damaged_snapshot_is_refused_and_adds_no_concept(client, trainings, machine, workspace):
    run = trainings.start(settings("a"), Photos(), None)
    machine.end(run, token="<me/a-v1>", steps=9, best=9)
    snapshot_file(run, 5).parent.mkdir(parents=True)
    snapshot_file(run, 5).write_bytes(b"\x00" * 100)
    assert client.get(f"/app/trainings/{run.name}").json()["timeline"][0]["can_keep"]
    answer = client.post(f"/app/trainings/{run.name}/keep", json={"step": 5})
    assert answer.status_code == 400 and len(workspace.library) == 0
    assert client.get(f"/app/trainings/{run.name}").json()["kept"] == {}


# --- advice -----------------------------------------------------------------------------------------------------------


def failed(message, **more):
    saved = {"program": "dreambooth", "token": "<me/a>"} | more
    return RunStatus(None, "failed", saved, 0.0, message=message)


def test_advice_changes_fields_of_the_form_and_names_no_flag():
    diverged = (
        "The loss became NaN at step 27 (photo 01; --lr 50). Nothing was kept. No concept was made.\n"
        "Try --lr 5, with another --run."
    )
    [advice] = advice_after(failed(diverged, lr=50.0))
    assert advice.change == {"lr": "5"} and "5" in advice.text
    assert page_text(diverged) == (
        "The loss became NaN at step 27 (photo 01; learning rate 50). Nothing was kept. No concept was made."
    )
    # As it is, it would fail again: Resume is offered after other failures only.
    assert "Resume" not in run_text(failed(diverged), 0)[1] and "Press Resume" in run_text(failed("It broke."), 0)[1]
    memory = "Not enough memory for a step: 9.1 GB of 8.0.\nTry --checkpointing 1, --resolution 384."
    changes = [advice.change for advice in advice_after(failed(memory, rank=16))]
    assert changes == [{}, {"resolution": "384"}, {"rank": "4"}, {"method": "textual-inversion"}]
    killed = "The process ended without a message: it was killed, or the machine ran out of memory."
    changes = [advice.change for advice in advice_after(failed(killed, program="textual-inversion", resolution=512))]
    assert changes == [{}, {"resolution": "384"}]
    assert advice_after(failed("Something else.")) == [] and page_text("Add --resume to go on.") == ""
    for status in (failed(diverged), failed(memory), failed(killed), failed("There are no photos in /a.")):
        assert advice_after(status) and not any("--" in advice.text for advice in advice_after(status))


def test_sample_prompts_name_the_subject_once():
    made = DreamboothSettings(
        photos="x", token="<me/a>", class_noun="cat", sample_prompts=["<me/a> at sea", "a hat", "a {} toy", "a hat"]
    )
    assert made.sample_prompts == ("{} at sea", "{} a hat", "a {} toy")
    assert settings(kind="style", sample_prompts=("a tree",)).sample_prompts == ("a tree in the style of {}",)
    for wrong in (["{} and {}"], ["<me/b>"], ["x" * 301], ["a"] * 9, [""], [7], "a hat", [" \t "], ["a\x00b"]):
        with pytest.raises(UserError, match="sample_prompts"):
            settings(sample_prompts=wrong)


def test_the_measured_step_time_comes_from_training_not_the_dry_run(tmp_path):
    run, costs = tmp_path / "run", MeasuredCosts(tmp_path / "pace.json")
    (run / "photos").mkdir(parents=True)
    (run / "settings.json").write_text('{"base": "tiny", "method": "lora"}')
    (run / "result.json").write_text('{"token": "<me/a-v1>"}')
    (run / "cost.json").write_text('{"steps": 100, "seconds": 900, "held": 1000000}')
    before = [(step, 5.0 * step) for step in range(1, 41)]
    resumed = [(step, 2.0 * (step - 40)) for step in range(41, 81)]
    lines = [json.dumps({"step": step, "loss": 0.1, "seconds": seconds}) for step, seconds in before + resumed]
    (run / "progress.jsonl").write_text("\n".join([*lines, ""]))
    tidy_run(run, costs)
    assert costs.read() == {"tiny lora own": {"step": 2.0, "held": 1000000.0}}
