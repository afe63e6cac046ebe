"""The keywords of the Python API are the fields of the settings classes, with their types and defaults."""

import ast
import inspect
import os
import subprocess
import sys
import typing
from pathlib import Path
from types import UnionType
from typing import Annotated, Union, get_args, get_origin

import pytest
from PIL import Image

import sdpersonal as sp
from conftest import ROOT
from sdpersonal.api import options
from sdpersonal.config import DreamboothSettings, GenerateRequest, TextualInversionSettings

FUNCTIONS = [
    (sp.train_dreambooth, DreamboothSettings, options.DreamboothOptions, set()),
    (sp.train_textual_inversion, TextualInversionSettings, options.TextualInversionOptions, set()),
    (sp.Pipeline.generate, GenerateRequest, options.GenerateOptions, set()),
    (sp.Pipeline.endless, GenerateRequest, options.RequestOptions, {"num_images", "all_combinations"}),
    (sp.Pipeline.xyz_grid, GenerateRequest, options.RequestOptions, {"num_images", "all_combinations"}),
]


@pytest.mark.parametrize(("function", "settings", "offered", "missing"), FUNCTIONS)
def test_every_field_is_a_keyword_with_the_same_default(function, settings, offered, missing):
    parameters = inspect.signature(function).parameters
    fields = settings.model_fields
    assert set(fields) - set(parameters) == missing
    for name in set(fields) - missing:
        default, expected = parameters[name].default, fields[name].default
        if fields[name].is_required():
            assert default is inspect.Parameter.empty, name
        else:
            assert default == (str(expected) if isinstance(expected, Path) else expected), name
    assert set(typing.get_type_hints(offered)) <= set(fields)


@pytest.mark.parametrize(("function", "settings", "offered", "missing"), FUNCTIONS)
def test_keyword_types_match_the_types_of_the_fields(function, settings, offered, missing):
    fields = typing.get_type_hints(settings, include_extras=True)
    for keyword, type_ in typing.get_type_hints(offered).items():
        assert _plain(fields[keyword]) == _settled(type_), keyword


def _plain(annotation):
    """A field's type without what pydantic and tyro add to it, as a set."""
    if get_origin(annotation) is Annotated:
        return _plain(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return frozenset().union(*(_plain(part) for part in get_args(annotation)))
    return frozenset({annotation})


def _settled(annotation):
    """A keyword's type, with a path where text or any path is accepted; images and tokens are accepted beside them."""
    parts = _plain(annotation)
    if os.PathLike[str] in parts:
        parts = parts - {os.PathLike[str], str} | {Path}
    return parts - {Image.Image, sp.Token}


@pytest.mark.parametrize(("function", "settings", "offered", "missing"), FUNCTIONS)
def test_docstrings_describe_every_keyword_without_flags(function, settings, offered, missing):
    text = inspect.getdoc(function)
    for keyword in typing.get_type_hints(offered):
        line = next(line for line in text.splitlines() if line.startswith(f"    {keyword}: "))
        assert len(line) > len(keyword) + 12 and "--" not in line, line


@pytest.mark.parametrize(
    ("text", "reworded"),
    [
        ("Add --resume to go on.", "Add resume=True to go on."),
        ("Add --no-samples.", "Add samples=False."),
        ("Try --lr 0.001, with another --run.", "Try lr=0.001, with another run."),
        ("--class is needed; give --run FOLDER.", "class_noun is needed; give run=FOLDER."),
        ("Start with: accelerate launch --main_process_port 0", "Start with: accelerate launch --main_process_port 0"),
        ("--steps 20 --no-early-stop", "steps=20 early_stop=False"),
        ("a dash -- and --runner", "a dash -- and --runner"),
    ],
)
def test_error_messages_name_keywords_instead_of_flags(text, reworded):
    with pytest.raises(sp.UserError) as caught, options.in_keywords(DreamboothSettings):
        raise sp.UserError(text, text)
    assert (caught.value.message, caught.value.hint) == (reworded, reworded)


def checked_imports(path):
    """The names that a module imports for type checkers alone, each under its own name, and from where."""
    (block,) = (node for node in ast.parse(path.read_text()).body if isinstance(node, ast.If))
    assert all(alias.asname == alias.name for node in block.body for alias in node.names)
    return {alias.name: node.module for node in block.body for alias in node.names}


def test_type_checking_imports_match_the_names_at_run_time():
    """`sdpersonal` has all names from `api`, which has its own and the others from where they are defined."""
    package = Path(sp.__file__).parent
    assert set(checked_imports(package / "__init__.py")) == set(sp.__all__) == set(sp._MODULES)
    elsewhere = {name: module for name, module in sp._MODULES.items() if module != "api"}
    assert checked_imports(package / "api" / "__init__.py") == elsewhere
    assert set(sp.__all__) - set(elsewhere) == set(sp.api.__all__)
    assert {*sp.__all__, "__version__"} <= {*dir(sp)} and (package / "py.typed").exists()


def test_accessing_the_functions_does_not_import_torch():
    names = "sp.load, sp.train_dreambooth, sp.Library, sp.Progress"
    code = f"import sys, sdpersonal as sp; {names}; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"
