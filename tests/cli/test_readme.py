"""Every command and link in the README works as written."""

import ast
import functools
import inspect
import io
import os
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout

import pytest

import sdpersonal
from conftest import ROOT
from sdpersonal.cli.main import main

README = (ROOT / "README.md").read_text()


def commands():
    """The lines of the README's shell blocks, continuations joined."""
    for block in re.findall(r"^```(?:bash|sh|shell)\n(.*?)^```", README, re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip() and not line.lstrip().startswith("#"):
                yield line.strip()


def words_of(command):
    """Words without environment settings in front and without a comment behind."""
    words = shlex.split(command, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    return words


def flags_of(words):
    return {word.partition("=")[0] for word in words if word.startswith("--")}


@functools.cache
def help_of(program):
    """What a script, or a command of sdpersonal, says to --help; None if there is no such command."""
    if program.endswith(".py"):
        environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
        command = [sys.executable, program, "--help"]
        ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout
    with redirect_stdout(io.StringIO()) as output, redirect_stderr(io.StringIO()):
        try:
            code = main([*program.split(), "--help"])
        except SystemExit as end:
            code = end.code
    return None if code else output.getvalue()


def test_the_readme_has_commands():
    assert {"make demo", "make test"} <= set(commands())


@pytest.mark.parametrize("command", sorted({c for c in commands() if words_of(c)[:1] == ["make"]}))
def test_make_targets_exist(command):
    assert subprocess.run(["make", "-n", *words_of(command)[1:]], cwd=ROOT, capture_output=True).returncode == 0


@pytest.mark.parametrize("command", sorted({c for c in commands() if re.search(r"\w+\.py\b", c)}))
def test_scripts_accept_the_readme_flags(command):
    words = words_of(command)
    at = next(i for i, word in enumerate(words) if word.endswith(".py"))
    assert flags_of(words[at:]) <= _flags_in(help_of(words[at]))


@pytest.mark.parametrize("command", sorted({c for c in commands() if "sdpersonal" in words_of(c)[0]}))
def test_the_command_line_accepts_the_readme_flags(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    words = words_of(command)[1:]
    plain = [word for word in words if re.fullmatch(r"[a-z][a-z-]*", word)]
    deepest = next(
        plain[:n] for n in (2, 1, 0) if n <= len(plain) and plain[:n] == words[:n] and help_of(" ".join(plain[:n]))
    )
    assert flags_of(words) <= _flags_in(help_of(" ".join(deepest)))


def _flags_in(text):
    return set(re.findall(r"--[a-z][a-z0-9-]*", text))


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#]+?)\)", README))))
def test_relative_links_point_to_existing_files(link):
    if not re.match(r"https?://", link):
        assert (ROOT / link).exists()


def _docstrings():
    return "".join(script.read_text().partition('"""')[2].partition('"""')[0] for script in ROOT.glob("*.py"))


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\bexamples/[\w./-]+\w", README + _docstrings()))))
def test_named_example_files_exist(path):
    assert (ROOT / path).exists()


def test_the_python_example_fits_the_signatures():
    """Every call is bound to the function's own signature; docs/python-api.md has the examples that are run."""
    [example] = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)
    load = sdpersonal.load
    pipeline = getattr(sys.modules[load.__module__], load.__annotations__["return"])
    bound = []
    for call in (node for node in ast.walk(ast.parse(example)) if isinstance(node, ast.Call)):
        owner, _, name = ast.unparse(call.func).rpartition(".")
        if owner in ("sp", "sd"):
            function = getattr(sdpersonal if owner == "sp" else pipeline, name)
            positional = [None] * (len(call.args) + (owner == "sd"))  # with self
            inspect.signature(function).bind(*positional, **{keyword.arg: None for keyword in call.keywords})
            bound.append(name)
    assert {"train_dreambooth", "load", "generate", "Library"} <= set(bound)
