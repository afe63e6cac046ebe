"""Describe the keyword arguments of the Python API for type checkers, for `help()`, and for the settings classes.

The TypedDicts repeat the fields of the settings classes, since a type checker can read them nowhere else; a test keeps
them equal.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from inspect import Parameter
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar, get_type_hints

from PIL import Image
from pydantic import BaseModel

from ..config import ConceptKind, SettingsBase, flag_of
from ..errors import UserError, printable
from ..prompts import Token

StrPath = str | os.PathLike[str]
Photo = str | os.PathLike[str] | Image.Image
"""An image: its file, or a Pillow image."""
Function = TypeVar("Function", bound=Callable[..., Any])


class TrainingOptions(TypedDict, total=False):
    """Settings that both trainers share."""

    kind: ConceptKind
    consent: Literal["yes", "no", "unknown"]
    base: str | None
    revision: str | None
    vae: StrPath | None
    continue_from: str | Token | None
    resolution: int | None
    steps: int | None
    lr: float | None
    batch: int | None
    accumulate: int
    optimizer: Literal["adamw", "adamw8bit", "prodigy"]
    schedule: Literal["constant", "cosine"]
    snr_gamma: float | None
    noise_offset: float
    checkpointing: int
    seed: int
    crop: Literal["center", "subject"]
    flip: bool
    library: StrPath
    run: StrPath | None
    resume: bool
    save_every: int
    samples: bool
    sample_prompts: tuple[str, ...]
    early_stop: bool
    report_to: Literal["tensorboard", "wandb"] | None


class TextualInversionOptions(TrainingOptions, total=False):
    """Settings of `train_textual_inversion`."""

    init: str | None
    vectors: int | None


class DreamboothOptions(TrainingOptions, total=False):
    """Settings of `train_dreambooth`."""

    method: Literal["lora", "pivotal", "full"]
    rank: int
    targets: Literal["attention", "transformer", "all"] | None
    text_encoder: bool
    prior: str
    prior_weight: float
    num_class_images: int


class RequestOptions(TypedDict, total=False):
    """Settings of an image."""

    negative: str
    seed: int
    steps: int | None
    guidance: float | None
    rescale: float | None
    size: str | None
    variation_strength: float | None
    variation_seed: int
    init_image: Photo | None
    mask: Photo | None
    strength: float
    hires_scale: float
    fast: str | Token | None
    scheduler: str | None
    clip_skip: int
    compose: bool


class GenerateOptions(RequestOptions, total=False):
    """Settings of `Pipeline.generate`."""

    num_images: int
    all_combinations: bool


def documented(settings: type[SettingsBase], options: type) -> Callable[[Function], Function]:
    """Give a function that takes `**settings: Unpack[options]` the signature and the docstring of its settings.

    So `help()` and a notebook show every keyword with its default and what it means.
    """

    def document(function: Function) -> Function:
        signature = inspect.signature(function)
        explicit = [parameter for parameter in signature.parameters.values() if parameter.kind != Parameter.VAR_KEYWORD]
        offered = [_parameter(settings, keyword, type_) for keyword, type_ in _types(settings, options).items()]
        described = [_description(settings, parameter) for parameter in offered]
        function.__signature__ = signature.replace(parameters=[*explicit, *offered])  # type: ignore[attr-defined]  # what inspect reads
        function.__doc__ = "\n".join([inspect.getdoc(function) or "", "", "Settings:", *described])
        return function

    return document


def to_fields(settings: type[SettingsBase], options: type, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return keyword arguments by the names of the settings class. Raises UserError for an unknown one."""
    known = _types(settings, options)
    for keyword in keywords:
        if keyword not in known:
            near = difflib.get_close_matches(keyword, known, n=1)
            raise UserError(
                f"There is no setting {printable(keyword)}.",
                f"Did you mean {near[0]}?" if near else f"The settings are {', '.join(known)}.",
            )
    return dict(keywords)


@contextmanager
def in_keywords(settings: type[SettingsBase]) -> Iterator[None]:
    """Reword errors for a call in Python: `--early-stop` becomes `early_stop=True`, `--lr 0.1` becomes `lr=0.1`."""
    try:
        yield
    except UserError as error:
        error.message, error.hint = _reword(error.message, settings), _reword(error.hint, settings)
        raise


def _types(settings: type[SettingsBase], options: type) -> dict[str, Any]:
    """Return the type of each keyword, in the order of the settings class."""
    types = get_type_hints(options)
    return {name: types[name] for name in settings.model_fields if name in types}


def _parameter(settings: type[SettingsBase], keyword: str, type_: Any) -> Parameter:
    default = settings.model_fields[keyword].default
    default = str(default) if isinstance(default, Path) else default
    return Parameter(keyword, Parameter.KEYWORD_ONLY, default=default, annotation=type_)


def _description(settings: type[SettingsBase], parameter: Parameter) -> str:
    meaning = _reword(_field_docs(settings).get(parameter.name, ""), settings)
    has_default = parameter.default is None or "Default: " in meaning
    return f"    {parameter.name}: {meaning}{'' if has_default else f' Default: {parameter.default!r}.'}"


@cache
def _field_docs(settings: type[BaseModel]) -> dict[str, str]:
    """Return the docstring below each field, from the source, base classes included; {} without a source."""
    docs: dict[str, str] = {}
    for base in reversed(settings.__bases__):
        if issubclass(base, SettingsBase) and base is not SettingsBase:
            docs |= _field_docs(base)
    with suppress(OSError):
        statements = _class_statements(settings)
        for field, doc in pairwise(statements):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(doc, ast.Expr):
                docs[field.target.id] = " ".join(str(ast.literal_eval(doc.value)).split())
    return docs


def _class_statements(cls: type) -> list[ast.stmt]:
    (definition,) = ast.parse(inspect.getsource(cls)).body
    return definition.body if isinstance(definition, ast.ClassDef) else []


# of commands, and their way in Python
_OTHER_FLAGS = {"--anyway": "anyway=True", "--base": "load(base=...)", "--img2img": "from_image=True"}
_FLAG = re.compile(r"--(no-)?([a-z][a-z-]*)(?: ([0-9][0-9.e-]*[0-9]|[0-9]|[A-Z]{2,}))?(?![a-z-])")


def _reword(text: str, settings: type[SettingsBase]) -> str:
    """Replace the flags of the settings by keyword arguments."""
    fields = {flag_of(settings, name).removeprefix("--"): name for name in settings.model_fields}

    def keyword(match: re.Match[str]) -> str:
        negation, flag, value = match.groups()
        name = fields.get(flag)
        if name is None:
            return _OTHER_FLAGS.get(match[0], match[0])
        if settings.model_fields[name].annotation is bool:
            return f"{name}={not negation}" + (f" {value}" if value else "")
        return f"{name}={value}" if value else name

    return _FLAG.sub(keyword, text)
