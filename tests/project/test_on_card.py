"""The check of everything on a card runs, without one, in every part."""

import json
import sys
from unittest.mock import Mock

import pytest

from benchmarks import on_card
from benchmarks.card.session import Session


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("has_xl", [False, pytest.param(True, marks=pytest.mark.thorough)])
def test_every_part_runs_without_a_gpu(tmp_path, monkeypatch, capsys, has_xl):
    """The parts for SDXL call what those for SD 1.5 call."""
    parts = [part for part in on_card.PARTS if has_xl or not part.endswith("-xl")]
    line = ["on_card.py", "--dry-run", "--out", str(tmp_path / "out"), "--parts", ",".join(parts)]
    monkeypatch.setattr(sys, "argv", line)
    monkeypatch.setattr(on_card, "faulthandler", Mock())  # it writes to the process's own stderr
    on_card.main()
    report = (tmp_path / "out" / "on_card.txt").read_text()
    assert capsys.readouterr().out == report
    assert "FAIL" not in report and "Traceback" not in report, report
    results = json.loads((tmp_path / "out" / "on_card.json").read_text())
    assert {f"seconds of {part}" for part in parts} <= results.keys()
    rows = [line for line in report.splitlines() if "] |" in line]
    assert len(rows) == len(results["table"]) > 25


def test_failed_and_skipped_parts_are_reported_and_the_next_runs(tmp_path, capsys):
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


def test_unknown_parts_are_refused_by_name(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["on_card.py", "--dry-run", "--parts", "ceilings,magic"])
    with pytest.raises(SystemExit, match=r"--parts: there is no magic\. Choose from ceilings,"):
        on_card.main()
