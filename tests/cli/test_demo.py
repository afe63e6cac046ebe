"""The demo, with its trainings cut short: what it leaves, what it says last, and that it does nothing twice."""

import dataclasses

import pytest
from PIL import Image

from sdpersonal.cli.commands import demo
from sdpersonal.concepts.library import Library
from sdpersonal.config import generation
from sdpersonal.training import presets, run, sampling


@pytest.mark.slow
def test_the_demo_generates_a_grid_and_trains_its_concepts_only_once(tmp_path, monkeypatch):
    short = {
        name: dataclasses.replace(preset, steps=10, batch=1, milestones=1) for name, preset in presets._TINY.items()
    }
    monkeypatch.setitem(presets._TABLES, "tiny", short)
    monkeypatch.setattr(run, "scorer_for_base", lambda kind: None)  # no validation: half the time of these trainings
    monkeypatch.setattr(generation, "DEFAULT_STEPS", 2)
    monkeypatch.setattr(sampling, "_SEEDS", 1)
    monkeypatch.setattr(demo, "NUM_IMAGES", 2)
    monkeypatch.setattr(demo, "ROWS", demo.ROWS[::5])
    messages = []
    path = demo.run_demo(tmp_path, messages.append)
    assert messages[-1] == str(path) and sum("up to 10 steps" in line for line in messages) == 3
    assert [str(entry.token) for entry in Library(tmp_path / "concepts").entries()] == [
        "<demo/cyanotype-v1>",
        "<demo/fox-v1>",
        "<demo/teddy-v1>",
    ]
    with Image.open(path) as sheet:
        assert sheet.width > 3 * 192 and sheet.height > len(demo.ROWS) * 192
    monkeypatch.setattr(demo, "ROWS", demo.ROWS[:1])
    again = []
    demo.run_demo(tmp_path, again.append)
    assert sum("is trained already" in line for line in again) == 3
