"""Every example in Python works as written: those of docs/python-api.md, the notebook and the script, cut short."""

import dataclasses
import json
import os
import re
import runpy
import sys

import pytest
from PIL import Image

import sdpersonal as sp
from conftest import ROOT

PAGE = ROOT / "docs" / "python-api.md"
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"


@pytest.fixture
def few_steps(monkeypatch, tmp_path):
    """Trainings of ten steps of one photo without a scorer, generations of two steps, in a folder with the examples."""
    from sdpersonal.config import generation
    from sdpersonal.training import presets, run, sampling

    short = {name: dataclasses.replace(preset, steps=10, batch=1) for name, preset in presets._TINY.items()}
    monkeypatch.setitem(presets._TABLES, "tiny", short)
    monkeypatch.setattr(run, "scorer_for_base", lambda kind: None)
    monkeypatch.setattr(sampling, "_SEEDS", 1)
    monkeypatch.setattr(generation, "DEFAULT_STEPS", 2)
    os.symlink(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def blocks(text):
    return re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)


def run_block(code, names, where):
    """Run code, and return the value of its last line, if that is an expression, as a notebook does."""
    import ast

    tree = ast.parse(code, where)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, where, "exec"), names)
    return eval(compile(ast.Expression(last.value), where, "eval"), names) if last else None


@pytest.mark.slow
def test_the_examples_of_the_python_api_page_work(few_steps, capsys):
    names: dict = {"__name__": "page"}
    examples = blocks(PAGE.read_text())
    assert len(examples) > 15
    for number, code in enumerate(examples, 1):
        run_block(code, names, f"{PAGE.name}, example {number}")
    assert len(names["run"].losses) == len(names["ink"].losses) == 10
    printed = capsys.readouterr().out
    assert "No concept <me/tedy>. Did you mean <me/teddy>?" in printed
    assert "num_images must be a whole number from 1 to 100, got 0." in printed
    assert re.search(r"^\d+ steps, 0 s left, loss None$", printed, re.M)
    assert "<me/teddy-v1> My teddy bear" in printed and "<me/blueprint-v1>" in printed
    with Image.open("teddy.jpg") as image:
        assert image.size == (128, 128)


def test_the_python_api_page_has_its_sections_and_valid_links():
    text = PAGE.read_text()
    headings = re.findall(r"^## (.*)$", text, re.M)
    assert headings[:8] == ["Train", "Generate", "Mix", "Variations", "Library", "Progress", "Errors", "Notebooks"]
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert (PAGE.parent / link).exists(), link
    for name in set(re.findall(r"\bsp\.(\w+)", text)):
        assert hasattr(sp, name), name


@pytest.mark.slow
def test_the_notebook_runs_and_shows_images(few_steps):
    names: dict = {"__name__": "__main__"}
    shown = []
    for number, cell in enumerate(cells("code"), 1):
        value = run_block("".join(cell["source"]), names, f"{NOTEBOOK.name}, cell {number}")
        if hasattr(value, "_repr_png_"):
            png = value._repr_png_()
            assert png.startswith(b"\x89PNG"), number
            shown.append(number)
    assert len(names["run"].losses) == 10
    assert len(shown) == 4 and os.path.exists("teddy.png")


def cells(kind):
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == kind]


def test_the_notebook_is_valid_and_holds_no_output():
    """As the schema of nbformat 4.5 asks."""
    notebook = json.loads(NOTEBOOK.read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5) and set(notebook) == {
        *("cells", "metadata", "nbformat", "nbformat_minor")
    }
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name) for name in ids)
    for cell in notebook["cells"]:
        expected = {"cell_type", "id", "metadata", "source"}
        if cell["cell_type"] == "code":
            expected |= {"execution_count", "outputs"}
            assert cell["execution_count"] is None and cell["outputs"] == []
        assert set(cell) == expected and all(isinstance(line, str) for line in cell["source"])
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"


@pytest.mark.slow
def test_the_example_script_does_not_repeat_finished_trainings(few_steps, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train_and_mix.py", "--steps", "2", "--out", "mix"])
    for trainings in (2, 0):
        runpy.run_path(str(ROOT / "examples" / "train_and_mix.py"), run_name="__main__")
        printed = capsys.readouterr().out.splitlines()
        assert sum("2 steps, all about it in" in line for line in printed) == trainings
        with Image.open(printed[-1]) as grid:
            assert grid.width > 3 * 128 and grid.height > 2 * 128
    assert [str(token) for token in sp.Library("mix/concepts")] == ["<me/ink-v1>", "<me/teddy-v1>"]
