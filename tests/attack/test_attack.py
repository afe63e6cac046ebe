"""The attacks of tools/attack in a short form; `make attack` runs all of them. And the tool itself: it can fail."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from sdpersonal.errors import UserError
from tools.attack import files, http_checks, http_server, kills
from tools.attack.disk import attack_disk
from tools.attack.files import attack_files, replay
from tools.attack.formats import Format, all_formats
from tools.attack.kills import attack_kills
from tools.attack.outcomes import Report
from tools.attack.work import LibraryWork

FUZZED = int(os.environ.get("SDPERSONAL_FUZZ_EXAMPLES", "300"))


def passed(report):
    assert report.outcomes and not report.failures, "\n".join(map(str, report.failures))
    return report


@pytest.fixture(scope="module")
def formats():
    return all_formats()


def test_damaged_and_hostile_files_are_read_or_refused_with_a_message(formats, monkeypatch):
    monkeypatch.setattr(files, "CPU_SECONDS", 10.0)  # the first file of a process also pays for what it imports
    report = Report()
    attack_files(report, seed=1, count=FUZZED, workers=1, formats=formats)
    assert int(passed(report).outcomes[-1].attack.split()[0].replace(",", "")) >= FUZZED + 500
    assert os.listdir() == []  # nothing ran


def test_a_seed_gives_the_same_files(formats):
    for format in formats:
        if format.share:
            first, second = ([format.make(random.Random(seed)) for seed in range(5)] for _ in range(2))
            assert first == second and len(set(first)) > 1, format.name


def test_killed_processes_lose_no_data(tmp_path):
    report = Report()
    attack_kills(report, seed=1, count=8, operations=3)
    passed(report)


def test_a_full_disk_changes_nothing():
    report = Report()
    attack_disk(report, seed=1, count=20)
    passed(report)


# --- the attacks can fail ---------------------------------------------------------------------------------------------


def _raise(name, data, folder):
    raise KeyError(data[0]) if data[0] == 7 else UserError("x is refused.")


def _search(name, data, folder):
    while data[0] == 7:
        pass


def _hoard(name, data, folder):
    bytearray(600_000_000 if data[0] == 7 else 1)


def _ramble(name, data, folder):
    raise UserError("x is refused\nfor\nseveral reasons" if data[0] == 7 else "x is refused.")


def _die(name, data, folder):
    if data[0] == 7:
        os.kill(os.getpid(), signal.SIGKILL)


def _act(name, data, folder):
    if data[0] == 7:
        Path("PWNED").mkdir(exist_ok=True)


@pytest.mark.parametrize(
    ("read", "cause"),
    [
        (_raise, "KeyError"),
        (_search, "more than 0.1 s of CPU time"),
        (_hoard, "MemoryError"),
        (_ramble, "no sentence"),
        (_die, "signal 9"),
        (_act, "something ran"),
    ],
)
def test_failures_are_reported_and_saved_with_their_seed(read, cause, monkeypatch):
    monkeypatch.setattr(files, "CPU_SECONDS", 0.1)
    format = Format("toy", lambda rng: ("x", bytes([rng.randrange(6, 8)])), read, 1, {"x": b"good"})
    report = Report()
    attack_files(report, seed=3, count=4, workers=2, formats=[format])
    assert any(cause in failure.result for failure in report.failures)
    if read is not _act:
        saved = sorted(path for path in files.FAILURES.iterdir() if path.name.startswith("toy-3-"))
        assert saved and (saved[0] / "data").read_bytes() == b"\7"
        monkeypatch.setattr(files, "all_formats", lambda: [format])
        again = Report()
        replay(again, saved[0])
        assert cause in again.failures[0].result


def test_a_lost_or_damaged_concept_is_detected(tmp_path):
    work = LibraryWork(tmp_path)
    work.prepare()
    assert work.problems([]) == []
    (tmp_path / "concepts" / "me" / "cat-v1.safetensors").unlink()
    assert work.problems([]) == ["lost 1 concepts"]
    path = tmp_path / "concepts" / "you" / "ink-v1.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    assert any("damaged: <you/ink-v1>" in problem for problem in work.problems([]))


def test_the_traceback_of_a_killed_child_is_reported_as_a_failure(tmp_path, capfd):
    class Broken(LibraryWork):
        def steps(self, rng, log):
            yield
            raise KeyError("x")

    report = Report()
    kills._kill_often(report, Broken(tmp_path), random.Random(0), 1, 1.0, time.monotonic() + 3)
    assert "KeyError" in capfd.readouterr().err and report.failures


# --- a server ---------------------------------------------------------------------------------------------------------

SLOW = (http_checks.images_of_many_pixels, http_checks.big_json)  # in `make attack`, and by themselves in tests/app


@pytest.mark.slow
def test_a_running_server_passes_the_http_checks():
    """Also: what was shown goes when the app ends, and a user's images are the user's own."""
    report = Report()
    with http_server.started() as target:
        for check in http_checks.CHECKS:
            if check not in SLOW:
                http_server.run_check(check, target, report)
        folders = target.folders
        assert folders and {path.stat().st_mode & 0o777 for path in folders} == {0o700}
        assert target.server.end() == 0 and not target.folders
    passed(report)
