"""A real cluster of Ray: workers and machines die, and every concept is what it is when trained alone."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from sdpersonal.concepts.library import Library
from sdpersonal.fleet.cluster import connect
from sdpersonal.fleet.driver_loop import DriverOptions
from sdpersonal.fleet.jobs import all_jobs
from sdpersonal.fleet.run import FleetOptions, train_fleet
from sdpersonal.fleet.store import LocalStore
from support import fleet

fleet.require_ray()
pytest.importorskip("psutil")
pytestmark = pytest.mark.slow


def survive(tmp_path, monkeypatch, trainings, machines, kills, machine_kills, steps, pause, full_seconds=0.0):
    """Train under fire; check that every concept is there once and equal. Returns the jobs, and what was killed."""
    alone = fleet.train_alone(trainings, tmp_path, steps)
    library, uri = tmp_path / "library", str(tmp_path / "fleet")
    concepts = [fleet.settings(number, steps, library=library) for number in range(trainings)]
    with fleet.cluster(machines) as cluster, fleet.full_library(monkeypatch, full_seconds) as refused:
        if not full_seconds:
            refused.append(0.0)
        chaos = fleet.Chaos(cluster, uri, kills, machine_kills, pause=pause)
        chaos.start()
        said: list[str] = []
        options = FleetOptions(uri, cluster.address, driver=DriverOptions(0.5, 15.0))
        jobs, code = train_fleet(concepts, library, options, said.append)
        chaos.is_over = True
    assert code == 0, said
    assert fleet.identities(library) == alone and len(alone) == trainings
    assert [entry for entry, _ in Library(library).verify()] == []
    print(*said, *chaos.killed, f"refused {len(refused)} times", sep="\n")
    return jobs, chaos.killed, said


@pytest.mark.thorough  # test_worker.py kills a training without a cluster
@pytest.mark.timeout(600)
def test_a_killed_worker_and_machine_do_not_change_the_concepts(tmp_path, monkeypatch):
    jobs, killed, _ = survive(tmp_path, monkeypatch, 2, 2, 1, 1, 20, (0.3, 1.0))
    assert len(killed) == 2 and sum(job.attempts for job in jobs) in (3, 4)  # the machine may have been idle
    attempts = [
        job.attempt(number) for job in all_jobs(LocalStore(tmp_path / "fleet")) for number in job.attempt_numbers()
    ]
    assert sum(attempt.outcome in ("died", "lost") for attempt in attempts) in (1, 2)


@pytest.mark.thorough
@pytest.mark.timeout(5400)
@pytest.mark.parametrize("full_seconds", [0.0, 60.0])
def test_forty_trainings_survive_ten_killed_workers_and_two_killed_machines(tmp_path, monkeypatch, full_seconds):
    jobs, killed, _ = survive(tmp_path, monkeypatch, 40, 4, 10, 2, 40, (2.0, 12.0), full_seconds)
    assert len(killed) == 12 and sum(job.attempts for job in jobs) >= 40 + len(killed) - 2


@pytest.mark.timeout(600)
def test_the_local_train_command_leaves_no_files_or_processes(tmp_path):
    """One training through the command line: the table, no word of Ray, no file in the user's home, no process."""
    home = tmp_path / "home"
    home.mkdir()
    photos = tmp_path / "photos"
    (photos / "ben").mkdir(parents=True)
    (photos / "ben" / "duck").symlink_to(fleet.PHOTOS / "fox", target_is_directory=True)
    command = [sys.executable, "-m", "sdpersonal", "fleet", "train", photos, "--method", "textual-inversion"]
    command += ["--steps", "2", "--no-samples", "--base", "tiny"]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=580)
    assert ran.returncode == 0, ran.stderr
    assert "<ben/duck-v1>" in ran.stdout and "ray" not in (ran.stdout + ran.stderr).lower()
    assert len(Library(tmp_path / "concepts")) == 1
    written = [str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()]
    assert not [name for name in written if "ray" in name or "token" in name], written
    assert _sessions_of(tmp_path) == []


def test_connecting_to_a_cluster_restores_the_signal_handlers():
    before = signal.signal(signal.SIGTERM, _no_handler)
    try:
        with connect(None, cpus=1) as ray:
            assert ray.is_initialized() and signal.getsignal(signal.SIGTERM) is not _no_handler
        assert signal.getsignal(signal.SIGTERM) is _no_handler
    finally:
        signal.signal(signal.SIGTERM, before)


def _no_handler(number, frame):
    raise AssertionError("a signal came")


def _sessions_of(folder: Path) -> list[str]:
    """List processes that were started in this folder and still run."""
    import psutil

    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd().startswith(str(folder)):
                found.append(" ".join(process.cmdline())[:200])
        except psutil.Error:
            continue
    return found
