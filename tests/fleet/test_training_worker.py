"""A worker, without Ray: a killed training goes on to the same concept; cancellation and failing storage are obeyed."""

import threading
import time
from dataclasses import replace

import pytest

from sdpersonal.config import DreamboothSettings
from sdpersonal.fleet.jobs import JobState, Outcome, submit
from sdpersonal.fleet.run_copy import RunCopy
from sdpersonal.fleet.store import LocalStore, StoreError
from sdpersonal.fleet.training_worker import TrainingOptions, TrainingWorker
from support import fleet

STEPS = 20
QUICK = {"batch": 2, "save_every": 2}


@pytest.fixture(scope="module")
def warm_worker(tmp_path_factory):
    """A worker whose modules are loaded; each test gives it a storage."""
    worker = TrainingWorker(
        TrainingOptions(str(tmp_path_factory.mktemp("first")), "marker", beat_seconds=0.1, patience=2)
    )
    worker.prepare()
    return worker


@pytest.fixture
def worker(warm_worker, tmp_path, monkeypatch):
    monkeypatch.setattr(warm_worker, "_store", LocalStore(tmp_path / "fleet"))
    monkeypatch.setattr(warm_worker, "_stopping", threading.Event())
    return warm_worker


@pytest.fixture
def job(worker, tmp_path):
    return submit(LocalStore(tmp_path / "fleet"), fleet.settings(0, STEPS, **QUICK))


def during(worker, job, act, once=lambda attempt: attempt.saved > 0):
    """Train; do something when the attempt in the store looks so. Returns how the attempt ended."""
    attempt, results = job.claim("session"), []
    thread = threading.Thread(target=lambda: results.append(worker.run(job.id, attempt.number)))
    thread.start()
    while thread.is_alive():
        time.sleep(0.02)
        if act and once(job.attempt(attempt.number)):
            act()
            act = None
    thread.join()
    assert act is None
    return results[0]


def kill_training():
    [(_, process)] = [(kind, process) for kind, process in fleet.training_processes() if kind == "training"]
    process.kill()


@pytest.mark.slow
def test_a_killed_training_resumes_to_the_same_concept(worker, job, tmp_path):
    pytest.importorskip("psutil")
    ended = during(worker, job, kill_training)
    assert ended.outcome is Outcome.DIED and 0 < ended.saved < STEPS and "SIGKILL" in ended.detail
    assert job.view().state is JobState.WAITING and list(worker._folder.iterdir()) == []
    again = worker.run(job.id, job.claim("session").number)
    assert again.outcome is Outcome.TRAINED and again.first == ended.saved
    [identity] = fleet.train_alone(1, tmp_path, STEPS, **QUICK).values()
    assert job.read_trained()[0].sha256 == identity
    assert job.store.names(f"{job.key}/run") == ["2"]
    assert job.store.read(f"{job.key}/run/2/report.html") and list(worker._folder.iterdir()) == []


@pytest.mark.slow
def test_cancelled_replaced_and_stopped_trainings_end(worker):
    job = submit(worker._store, fleet.settings(0, 100, **QUICK))  # more steps than it takes
    assert during(worker, job, job.cancel).outcome is Outcome.CANCELLED
    job.retry()
    ended = during(worker, job, lambda: job.claim("another"), once=lambda attempt: attempt.step > 0)
    assert ended.outcome is Outcome.REPLACED and job.attempt_numbers() == [2, 3] and ended.first > 0
    stopped = during(worker, job, worker.stop, once=lambda attempt: attempt.step > 0)
    # The step it was in is saved.
    assert stopped.outcome is Outcome.STOPPED and stopped.saved >= stopped.first > 0
    assert worker.run(job.id, job.claim("session").number).outcome is Outcome.STOPPED


@pytest.mark.slow
def test_user_errors_fail_the_job_with_a_message(worker, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "1.jpg").write_bytes(b"no photo")
    job = submit(worker._store, fleet.settings(1, photos=photos))
    assert worker.run(job.id, job.claim("session").number).outcome is Outcome.FAILED
    failure = job.view().failure
    assert failure.exit_code == 2 and "There are no photos" in failure.message


@pytest.mark.slow
def test_occasional_storage_errors_do_not_stop_training(worker, job, monkeypatch):
    calls, write = [], LocalStore.write

    def flaky(self, key, data):
        calls.append(key)
        if len(calls) % 3 == 0:
            raise StoreError("The storage failed: 503.")
        write(self, key, data)

    monkeypatch.setattr(LocalStore, "write", flaky)
    monkeypatch.setattr("sdpersonal.fleet.store._FIRST_PAUSE", 0.01)
    attempt = job.claim("session")
    assert worker.run(job.id, attempt.number).outcome is Outcome.TRAINED and len(calls) > 10
    assert job.view().state is JobState.TRAINED


def test_a_worker_without_access_to_the_storage_reports_the_problem(tmp_path):
    worker = TrainingWorker(TrainingOptions(str(tmp_path / "not mounted"), "marker"))
    worker._starter = type("Cold", (), {"warm_up": lambda self: None})()
    assert "does not see the storage" in worker.prepare().problem


# --- the copy of a run ------------------------------------------------------------------------------------------------


def checkpoint(run, step, content=b"state"):
    folder = run / f"step-{step:06d}"
    folder.mkdir(parents=True)
    (folder / "state.safetensors").write_bytes(content)
    (folder / "manifest.json").write_text("{}")
    (run / "progress.jsonl").write_text(f"{step}\n")


def test_a_checkpoint_is_copied_before_its_manifest_and_after_the_log(tmp_path):
    store, order = LocalStore(tmp_path / "store"), []
    copy = RunCopy(store, "jobs/a/run", 1, tmp_path / "run")
    checkpoint(tmp_path / "run", 5)
    store.write = lambda key, data: (
        order.append(key.removeprefix("jobs/a/run/1/")),
        LocalStore.write(store, key, data),
    )
    copy.upload()
    assert order == ["progress.jsonl", "step-000005/state.safetensors", "step-000005/manifest.json"] and copy.saved == 5
    order.clear()
    copy.upload()
    assert order == []
    checkpoint(tmp_path / "run", 10)
    copy.upload()
    assert "step-000005/manifest.json" not in order and copy.saved == 10


def test_an_abandoned_attempt_does_not_affect_later_attempts(tmp_path):
    store = LocalStore(tmp_path / "store")
    first, second = (RunCopy(store, "run", n, tmp_path / str(n)) for n in (1, 2))
    checkpoint(tmp_path / "1", 5)
    first.upload()
    assert second.download() == 5 and (tmp_path / "2" / "step-000005" / "state.safetensors").read_bytes() == b"state"
    checkpoint(tmp_path / "2", 10)
    second.upload()
    checkpoint(tmp_path / "1", 7, b"of a lost machine")
    first.upload()  # it does not know that it is lost
    third = RunCopy(store, "run", 3, tmp_path / "3")
    assert third.download() == 10


def test_a_checkpoint_copy_without_a_manifest_is_not_used(tmp_path):
    store = LocalStore(tmp_path / "store")
    store.write("run/1/step-000005/state.safetensors", b"x")
    store.write("run/1/step-000005/manifest.json", b"{}")
    store.write("run/2/step-000010/state.safetensors", b"x")
    assert RunCopy(store, "run", 3, tmp_path / "run").download() == 5


def test_hostile_copy_paths_are_never_written_outside_the_run(tmp_path):
    class Hostile(LocalStore):
        def files(self, folder):
            return [f"{folder}/../../../evil", f"{folder}/step-000005/manifest.json"]

        def read(self, key):
            return b"{}"

    store = Hostile(tmp_path / "store")
    store.write("run/1/x", b"")
    with pytest.raises(Exception, match="is not inside"):
        RunCopy(store, "run", 2, tmp_path / "a" / "b" / "c" / "run").download()
    assert not list(tmp_path.rglob("evil"))


def test_dreambooth_settings_are_restored_from_a_job(tmp_path):
    settings = DreamboothSettings(photos=fleet.PHOTOS / "fox", token="<me/fox>", class_noun="fox", rank=4)
    job = submit(LocalStore(tmp_path), settings)
    assert replace(job.view()).state is JobState.WAITING and job.settings().rank == 4
