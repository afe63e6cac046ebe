"""The pages of the documentation: links lead somewhere, the index is complete, and shown code is today's source."""

import importlib
import inspect
import re
import shlex
import tomllib

import pytest
import tyro

from conftest import ROOT
from sdpersonal.cli.commands.fleet import FleetTrainArgs
from sdpersonal.cli.fleet_list import split_flags
from sdpersonal.cli.main import COMMANDS
from sdpersonal.config import DreamboothSettings, TextualInversionSettings
from tools import code_in_docs

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / ".github").rglob("*.md")])
SHOWN = re.findall(
    r"<!-- loop: (\S+):(\w+) -->\n+```python\n(.*?)^```$", (ROOT / "docs" / "architecture.md").read_text(), re.M | re.S
)


def prose(page):
    """The text of a page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)


def anchors(page):
    """GitHub's anchors of the headings: lower case, spaces to hyphens, no punctuation."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_point_to_existing_files_and_headings(page):
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_the_index_has_one_line_for_each_page():
    links = re.findall(r"^- \[[^\]]+\]\(([^)]+)\)", (ROOT / "docs" / "index.md").read_text(), re.M)
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert len(links) == len(set(links)) and pages <= set(links)


def test_the_architecture_page_shows_both_loops():
    assert [(path, name) for path, name, _ in SHOWN] == [
        ("sdpersonal/training/loop.py", "fit"),
        ("sdpersonal/generation/denoise.py", "denoise"),
    ]


@pytest.mark.parametrize(("path", "name", "code"), SHOWN, ids=[name for _, name, _ in SHOWN])
def test_code_in_the_docs_equals_the_source(path, name, code):
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    assert code == inspect.getsource(getattr(module, name)), "run `make docs`"


def test_make_docs_updates_outdated_code(tmp_path):
    page = (ROOT / "docs" / "architecture.md").read_text()
    old = re.sub(r"(?<=```python\n)def fit.*?(?=^```$)", "def fit(): ...\n", page, flags=re.M | re.S)
    assert old != page and code_in_docs.update(old) == page
    with pytest.raises(SystemExit, match="no function gone"):
        code_in_docs.update(page.replace("loop.py:fit", "loop.py:gone"))


PACKAGE = ROOT / "sdpersonal"
FOLDERS = {path.name for path in [*PACKAGE.iterdir(), *ROOT.iterdir()] if path.is_dir()}


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_pages_name_modules_that_exist(name):
    """A path in backquotes that ends with .py, or that begins with a package, is there."""
    modules = {path.name for path in PACKAGE.rglob("*.py")}
    missing = []
    for path in re.findall(r"`([\w/]+/|[\w/]+\.py)`", prose(ROOT / name)):
        if "/" not in path and path not in modules | {"train_dreambooth.py", "train_textual_inversion.py"}:
            missing.append(path)
        if path.partition("/")[0] in FOLDERS and not ((ROOT / path).exists() or (PACKAGE / path).exists()):
            missing.append(path)
    assert missing == []


def documented_commands():
    """Every `sdpersonal ...` line of code blocks, indented or fenced, in the README and the docs."""
    texts = [page.read_text() for page in PAGES]
    code = [line for text in texts for line in re.findall(r"^    (sdpersonal .*)$", text, re.M)]
    code += [line for text in texts for block in re.findall(r"^```(?:bash|sh)\n(.*?)^```", text, re.M | re.S)
             for line in block.splitlines() if line.startswith("sdpersonal ")]  # fmt: skip
    return [shlex.split(line, comments=True)[1:] for line in sorted(set(code))]


@pytest.mark.parametrize("command", documented_commands(), ids=" ".join)
def test_documented_commands_are_parsed(command):
    """By their present names: former names of commands and flags are accepted, but not shown."""
    count = 2 if " ".join(command[:2]) in COMMANDS else 1
    _, settings = COMMANDS[" ".join(command[:count])]
    words = command[count:]
    if settings is FleetTrainArgs:  # the trainer's flags are among its own
        words, training = split_flags(words)
        trainer = TextualInversionSettings if "textual-inversion" in words else DreamboothSettings
        training += [
            "--photos",
            "x",
            "--token",
            "<me/x>",
            *(() if trainer is TextualInversionSettings else ("--class", "x")),
        ]
        assert tyro.cli(trainer, args=training)
    assert tyro.cli(settings, args=words)


def test_contributing_lists_the_layers_in_the_linters_order():
    linter = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]["layers"]
    layers = [set(re.findall(r"\w+", layer)) - {"__main__"} for layer in linter]
    sentence = re.search(r"Imports go one way: (.*?)\. ", (ROOT / "CONTRIBUTING.md").read_text(), re.S)[1]
    assert [set(re.findall(r"`(\w+)`", layer)) for layer in sentence.split("→")] == [layer for layer in layers if layer]
