"""The driver: fair among owners, never the same job twice, nothing lost when a worker, the store or itself dies."""

import random
import time
from collections import Counter
from dataclasses import replace

import pytest

from sdpersonal.concepts.concept_file import concept_to_chunks
from sdpersonal.concepts.library import Library
from sdpersonal.config import TextualInversionSettings
from sdpersonal.errors import DiskFull
from sdpersonal.fleet.driver_loop import CRASHED, DriverOptions
from sdpersonal.fleet.jobs import Failure, JobState, Outcome, Result, submit
from sdpersonal.fleet.library_writer import LibraryWriter
from sdpersonal.fleet.progress import summarize, write_trainings
from sdpersonal.fleet.store import LocalStore, StoreError
from sdpersonal.fleet.training_driver import TrainingDriver
from sdpersonal.fleet.worker import Ended
from support import samples

FAST = {"beat_seconds": 0.01, "lease_seconds": 0.2, "patience": 0.3}


class Pool:
    """Workers that do what `play` says of a job's n-th attempt: an outcome, None for lost, or "hang"."""

    def __init__(self, store, play=lambda token, number: Outcome.TRAINED, slots=2):
        self.store, self.play, self._slots = store, play, slots
        self.running, self.order, self.most = [], [], 0
        self.jobs, self.tokens, self.tries = {}, {}, Counter()

    def slots(self):
        return self._slots

    def free(self):
        return self._slots - len(self.running)

    def start(self, job_id, number):
        self.order.append(self.tokens[job_id])
        self.running.append((job_id, number))
        self.most = max(self.most, len(self.running))

    def wait(self, seconds):
        time.sleep(0.001)
        if not self.running:
            return []
        job_id, number = self.running[0]
        job = self.jobs[job_id]
        self.tries[self.tokens[job.id]] += 1
        act = self.play(self.tokens[job.id], self.tries[self.tokens[job.id]])
        if act == "hang":
            return []
        self.running.pop(0)
        if act is None:
            return [Ended(job_id, None)]
        return [Ended(job_id, self._finish(job, number, act))]

    def _finish(self, job, number, outcome):
        if outcome is Outcome.TRAINED:
            concept = samples.embedding(self.tokens[job.id])
            job.write_trained(Result("", concept.identity, 20, 2.0), b"".join(concept_to_chunks(concept)))
        if outcome is Outcome.FAILED:
            job.write_failure(Failure(4, "It diverged."))
        attempt = replace(job.attempt(number), outcome=outcome, step=7, saved=5)
        job.update(attempt)
        return attempt

    def stop(self):
        self.play = lambda token, number: Outcome.STOPPED


@pytest.fixture
def fleet(tmp_path):
    """make(tokens, play, ...) -> a driver over jobs of those tokens, with its pool and what it said."""
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "1.jpg").write_bytes(b"x")

    def make(tokens, play=lambda token, number: Outcome.TRAINED, slots=2, **options):
        store = LocalStore(tmp_path / "fleet")
        jobs = {token: submit(store, TextualInversionSettings(photos=photos, token=token)) for token in tokens}
        pool, said = Pool(store, play, slots), []
        pool.jobs = {job.id: job for job in jobs.values()}
        pool.tokens = {job.id: token for token, job in jobs.items()}
        driver = TrainingDriver(
            jobs, pool, LibraryWriter(tmp_path / "library"), DriverOptions(**FAST | options), said.append
        )
        driver.said, driver.pool, driver.library = said, pool, Library(tmp_path / "library")
        return driver

    return make


def states(driver):
    return [str(tracked.state) for tracked in driver.tracked.values()]


def test_every_concept_is_added_to_the_library_once(fleet):
    driver = fleet([f"<me/c{n}>" for n in range(7)])
    assert driver.run() == 0 and states(driver) == ["done"] * 7 and driver.pool.most == 2
    assert [str(token) for token in driver.library] == [f"<me/c{n}-v1>" for n in range(7)]
    again = fleet([f"<me/c{n}>" for n in range(8)])
    assert again.run() == 0 and again.pool.order == ["<me/c7>"]


def test_jobs_of_different_owners_start_in_turns(fleet):
    tokens = [f"<anna/c{n}>" for n in range(6)] + ["<ben/x>", "<cleo/x>", "<cleo/y>"]
    driver = fleet(tokens)
    driver.run()
    owners = [token[1] for token in driver.pool.order]
    assert owners[:3] == ["a", "b", "c"] and owners.index("c", 3) < 6 and sorted(owners) == sorted("aaaaaabcc")


def test_a_lost_worker_costs_an_attempt_and_the_job_is_resumed(fleet):
    driver = fleet(["<me/a>", "<me/b>"], lambda token, number: None if number < 3 else Outcome.TRAINED)
    assert driver.run() == 0 and [tracked.attempts for tracked in driver.tracked.values()] == [3, 3]
    assert "<me/a>: Its worker was lost. It goes on from step 0." in driver.said


def test_a_job_that_kills_its_workers_fails_and_the_others_finish(fleet):
    driver = fleet(["<me/bad>", "<me/a>", "<me/b>"], lambda token, n: None if "bad" in token else Outcome.TRAINED)
    assert driver.run() == CRASHED and states(driver) == ["failed", "done", "done"]
    assert driver.pool.tries["<me/bad>"] == 10 and len(driver.library) == 2


def test_deaths_after_new_checkpoints_do_not_count(fleet):
    driver = fleet(["<me/a>"], lambda token, number: Outcome.DIED if number < 7 else Outcome.TRAINED)
    # Each attempt begins from step 0 and saves step 5.
    assert driver.run() == 0 and driver.tracked[next(iter(driver.tracked))].attempts == 7


def test_permanently_failed_jobs_are_not_repeated_until_retry(fleet):
    driver = fleet(["<me/a>", "<me/b>"], lambda token, n: Outcome.FAILED if "a" in token else Outcome.TRAINED)
    assert driver.run() == 4 and driver.pool.tries == {"<me/a>": 1, "<me/b>": 1}
    assert any("It diverged." in line for line in driver.said)
    assert fleet(["<me/a>", "<me/b>"]).run() == 4  # it stays failed until `fleet retry`
    next(tracked.job for tracked in driver.tracked.values()).retry()
    assert fleet(["<me/a>", "<me/b>"]).run() == 0


def test_a_cancelled_job_is_not_started(fleet):
    driver = fleet(["<me/a>", "<me/b>"])
    next(tracked.job for tracked in driver.tracked.values()).cancel()
    assert driver.run() == 130 and states(driver) == ["cancelled", "done"] and driver.pool.order == ["<me/b>"]


def test_a_killed_driver_loses_no_jobs(fleet):
    """The first dies with jobs in each state; the next waits for the lease of what was running, and finishes all."""
    tokens = [f"<me/c{n}>" for n in range(6)]

    def die(token, number):
        if token == "<me/c3>":
            raise SystemError("killed")
        return Outcome.TRAINED

    first = fleet(tokens, die)
    with pytest.raises(SystemError):
        first.run()
    running = [tracked for tracked in first.tracked.values() if tracked.job.view().state is JobState.RUNNING]
    assert running
    second = fleet(tokens)
    started = time.monotonic()
    assert second.run() == 0 and len(second.library) == 6 and time.monotonic() - started > FAST["lease_seconds"]
    assert len(second.pool.order) + len(set(first.pool.order) - {t.token for t in running}) == 6


def test_two_drivers_never_train_the_same_job(fleet):
    """What another driver trains is left to it while its beat goes on, and its end is seen."""
    other = fleet(["<me/a>"])
    [tracked] = other.tracked.values()
    attempt = tracked.job.claim("another session")
    beats = []

    driver = fleet(["<me/a>"])
    wait = driver.pool.wait

    def beat_on(seconds):
        time.sleep(0.01)
        beats.append(1)
        if len(beats) < 60:
            tracked.job.update(replace(attempt, beat=len(beats)))
        elif len(beats) == 60:
            driver.pool._finish(tracked.job, attempt.number, Outcome.TRAINED)
        return wait(seconds)

    driver.pool.wait = beat_on
    assert driver.run() == 0 and driver.pool.order == [] and len(driver.library) == 1


def test_an_interrupted_driver_stops_and_saves_the_running_trainings(fleet):
    def interrupt(token, number):
        raise KeyboardInterrupt

    driver = fleet(["<me/a>", "<me/b>", "<me/c>"], interrupt)
    with pytest.raises(KeyboardInterrupt):
        driver.run()
    outcomes = [tracked.job.view().last for tracked in driver.tracked.values()]
    assert [bool(last) and last.outcome for last in outcomes].count(Outcome.STOPPED) == 2
    assert fleet(["<me/a>", "<me/b>", "<me/c>"]).run() == 0


def test_a_full_library_raises_disk_full_and_keeps_the_trained_concepts(fleet, monkeypatch):
    def full(self, concept):
        raise DiskFull("not enough space in library.")

    with monkeypatch.context() as patch:
        patch.setattr(Library, "add", full)
        driver = fleet(["<me/a>", "<me/b>"])
        with pytest.raises(DiskFull, match="not enough space"):
            driver.run()
    assert states(driver) == ["trained"] * 2
    second = fleet(["<me/a>", "<me/b>"])
    assert second.run() == 0 and second.pool.order == [] and len(second.library) == 2


def test_failing_storage_calls_are_repeated_without_loss(fleet, monkeypatch):
    draw, fails, made = random.Random(7), [], Counter()

    def flaky(name):
        real = getattr(LocalStore, name)

        def act(self, *args):
            if fails and draw.random() < 1 / 3:
                made[name] += 1
                raise StoreError("The storage failed: 503.")
            return real(self, *args)

        return act

    play = lambda token, n: None if n == 1 else Outcome.TRAINED  # noqa: E731
    driver = fleet([f"<me/c{n}>" for n in range(5)], play, patience=60.0)
    finish, run_round = driver.pool._finish, driver._round

    def steady(*args):  # the workers' part has its own tests
        fails.clear()
        attempt = finish(*args)
        fails.append(True)
        return attempt

    def flaky_round():
        fails.append(True)
        run_round()

    monkeypatch.setattr(driver.pool, "_finish", steady)
    monkeypatch.setattr(driver, "_round", flaky_round)
    for name in ("_FIRST_PAUSE", "_LONGEST_PAUSE"):
        monkeypatch.setattr(f"sdpersonal.fleet.adder.{name}", 0.01)
    for name in ("read", "write", "write_new", "names"):
        monkeypatch.setattr(LocalStore, name, flaky(name))
    assert driver.run() == 0 and len(driver.library) == 5 and min(made["read"], made["write"], made["names"]) > 0
    assert "The storage failed: 503. Trying again." in driver.said


def test_the_remaining_time_covers_all_jobs_and_workers(fleet):
    driver = fleet([f"<me/c{n}>" for n in range(4)], lambda token, number: "hang")
    jobs = list(driver.tracked.values())
    assert summarize(jobs, 2).seconds_left is None
    driver._start_tasks()
    for tracked in jobs[:2]:
        tracked.attempt = replace(tracked.attempt, step=10, steps=40, left=30.0, seconds=10.0)
    summary = summarize(jobs, 2)
    assert (summary.over, summary.running, summary.seconds_left) == (0, 2, (30 + 30 + 2 * 40) / 2)


def test_the_status_page_lists_every_job_and_escapes_text(fleet, tmp_path):
    driver = fleet(["<me/a>", "<me/b>"], lambda token, number: Outcome.FAILED if "a" in token else Outcome.TRAINED)
    driver.run()
    jobs = list(driver.tracked.values())
    jobs[0].failure = Failure(2, "<script>alert(1)</script>")
    write_trainings(driver.pool.store, jobs, summarize(jobs, 2))
    page = (tmp_path / "fleet" / "index.html").read_text()
    assert "&lt;me/b-v1&gt;" in page and "2 of 2 over" in page and "<script>" not in page and "refresh" not in page
