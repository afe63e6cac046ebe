"""The check of everything on a card runs, without one, in every part."""

import json
import subprocess
import sys

import pytest

from benchmarks.card.session import Session
from benchmarks.on_card import PARTS


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_part_runs_without_a_card(root, tmp_path):
    line = [sys.executable, str(root / "benchmarks" / "on_card.py"), "--dry-run", "--out", str(tmp_path / "out")]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=560)
    report = (tmp_path / "out" / "on_card.txt").read_text()
    assert done.returncode == 0 and done.stdout == report, done.stderr[-2000:]
    assert "FAIL" not in report and "Traceback" not in report, report
    results = json.loads((tmp_path / "out" / "on_card.json").read_text())
    assert {f"seconds of {part}" for part in PARTS} <= results.keys()
    rows = [line for line in report.splitlines() if "] |" in line]
    assert len(rows) == len(results["table"]) > 30
    assert not (tmp_path / "concepts").exists()


def test_a_part_that_fails_or_has_no_time_is_told_and_the_next_goes_on(tmp_path, capsys):
    session = Session(tmp_path / "out", seconds=100)
    session.guarded("broken", 10, lambda session: 1 / 0)
    session.guarded("long", 1000, lambda session: session.row("never"))
    session.guarded("good", 10, lambda session: session.check("two", True, "a detail"))
    session.write_table()
    report = (tmp_path / "out" / "on_card.txt").read_text()
    assert capsys.readouterr().out == report
    assert report.count("FAIL  broken  ZeroDivisionError: division by zero") == 1 and "1 / 0" in report
    assert "skip  long" in report and "never" not in report
    assert report.count("Traceback") == 1
    assert [cell.strip() for cell in report.splitlines()[-1].split("|")[1:-1]] == ["pass", "two", "a detail"]


def test_parts_that_do_not_exist_are_named(root, tmp_path):
    line = [sys.executable, str(root / "benchmarks" / "on_card.py"), "--dry-run", "--parts", "ceilings,magic"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1 and "--parts: there is no magic. Choose from ceilings," in done.stderr


@pytest.mark.parametrize("kind, method", [("sd15", "lora"), ("sd15", "textual-inversion"), ("sd15", "full")])
def test_work_of_a_step_is_as_counted(kind, method):
    from benchmarks.card.training import STEP_FLOPS
    from benchmarks.steps.work import count_flops

    counted = count_flops(kind, method, 512, batch=1, rank=16, vectors=4)["step"]
    assert sum(counted.values()) == pytest.approx(STEP_FLOPS[kind, method], rel=0.01)
