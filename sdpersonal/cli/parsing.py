"""Turn the words of a command line into a command's settings.

tyro converts the values and prints the help. Three things are done before it, because it has no option for them:
a mistake is reported in two lines that name the flag and suggest another, a flag's former name is accepted without
being in the help, and `--no-x` is accepted although the help shows only the spelling that changes something.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import tyro
from pydantic.fields import FieldInfo
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructTypeInfo,
)

from ..config import SettingsBase, flag_of
from ..config.text_checks import IF_UNSET, is_blank
from ..errors import FieldError, UserError, printable

_FLAG = re.compile(r"--?[A-Za-z]")
_NEGATIVE_NUMBER = re.compile(r"-(inf|infinity|nan)$", re.I)  # a value for tyro too
_Append: Any = tyro.conf.UseAppendAction  # Any: its subscript is no type for mypy
_APPEND = get_args(_Append[Any])[1:]
S = TypeVar("S", bound=SettingsBase)


def parse_settings(settings: type[S], argv: Sequence[str], prog: str, description: str | None = None) -> S:
    """Parse a command line into settings. prog: the command, for messages and help; description: the help's first text.

    Raises UserError, with the flag's name, for a word or value that cannot be used; SystemExit after printing the help.
    """
    words = with_present_names(settings, argv)
    if not any(word in ("-h", "--help") for word in words):
        words = _Checker(settings, prog).check(words)
    try:
        return tyro.cli(settings, args=words, prog=prog, description=description, registry=_registry())
    except FieldError as error:
        raise name_by_flag(error, settings) from None


def name_by_flag(error: UserError, settings: type[SettingsBase]) -> UserError:
    """Return the error with the flag's name in place of the field's, if it is about a setting."""
    if isinstance(error, FieldError) and error.field in settings.model_fields:
        return error.called(flag_of(settings, error.field))
    return error


def with_present_names(settings: type[SettingsBase], argv: Sequence[str]) -> list[str]:
    """Replace the former names of flags by the present ones."""
    words = list(argv)
    for index, word in enumerate(words):
        flag, equals, value = word.partition("=")
        negated = "no_" if flag.startswith(("--no-", "--no_")) else ""
        name = flag[2:].replace("-", "_").removeprefix(negated)
        present = settings.present_name(name, value if equals else "".join(words[index + 1 : index + 2]))
        if word.startswith("--") and present != name:
            flag = flag_of(settings, present).removeprefix("--")
            words[index] = f"--{'no-' if negated else ''}{flag}{equals}{value}"
    return words


@dataclass(frozen=True)
class _Option:
    """A flag or positional argument. values: how many words it takes at most; 0 for a switch."""

    name: str
    flag: str
    values: float
    default: object
    is_required: bool

    @property
    def is_positional(self) -> bool:
        return not self.flag.startswith("--")


def _option(settings: type[SettingsBase], name: str, info: FieldInfo) -> _Option:
    repeated = any(mark in _APPEND for mark in info.metadata)
    values = 0 if info.annotation is bool else math.inf if _is_tuple(info.annotation) and not repeated else 1
    return _Option(name, flag_of(settings, name), values, info.default, info.is_required())


def _is_tuple(annotation: Any) -> bool:
    return get_origin(annotation) is tuple or any(map(_is_tuple, get_args(annotation)))


class _Checker:
    """Checks the words of one command line. prog: the command."""

    def __init__(self, settings: type[SettingsBase], prog: str):
        self._prog = prog
        self._options = [_option(settings, name, info) for name, info in settings.model_fields.items()]
        self._by_spelling: dict[str, _Option] = {}
        for option, info in zip(self._options, settings.model_fields.values(), strict=True):
            spellings = [option.flag] if option.flag.startswith("--") else []
            spellings += [alias for mark in info.metadata for alias in getattr(mark, "aliases", None) or ()]
            spellings += [f"--no-{option.flag[2:]}"] if option.values == 0 else []
            self._by_spelling |= {_plain(spelling): option for spelling in spellings}

    def check(self, words: Sequence[str]) -> list[str]:
        """Return the words for tyro. Raises UserError for an unknown flag, and for missing or surplus words."""
        queue, checked, positional = list(words), [], []
        names, switches, spare = set(), {}, 0
        while queue:
            word = queue.pop(0)
            if not _is_flag(word):
                positional += queue if word == "--" else [word]
                checked += [word, *(queue if word == "--" else ())]
                queue = [] if word == "--" else queue
                continue
            if not word.startswith("--") and _plain(word[:2]) in self._by_spelling:
                word = f"{word[:2]}={word[2:].removeprefix('=')}" if len(word) > 2 else word  # -n3
            option = self._by_spelling.get(_plain(word)) or self._raise_unknown(word)
            names.add(option.name)
            values = self._take_values(option, word, queue)
            spare += len(values) if option.values > 1 else 0
            if option.values == 0:
                switches[option] = not word.startswith(("--no-", "--no_"))
            else:
                checked += [word, *values]
        self._check_positional(positional)
        self._check_required(names, len(positional) + spare)
        return [_spell(option, on) for option, on in switches.items() if on is not option.default] + checked

    def _take_values(self, option: _Option, word: str, queue: list[str]) -> list[str]:
        """Move the values of a flag out of the queue, and return them; the value in `--flag=value` stays there."""
        flag, equals, value = word.partition("=")
        if option.values == 0:
            if equals or (queue and is_blank(queue[0])):
                shown = printable(value, 40) if not is_blank(value) else "an empty one"
                raise UserError(f"{flag} takes no value, got {shown}.", IF_UNSET if is_blank(value) else "")
            return []
        taken: list[str] = []
        while queue and queue[0] != "--" and not _is_flag(queue[0]) and len(taken) + bool(equals) < option.values:
            taken.append(queue.pop(0))
        if not taken and not equals and option.values == 1:
            hint = f"A value that begins with a dash is written {flag}={printable(queue[0], 40)}" if queue else ""
            raise UserError(f"{flag} needs a value.", hint)
        return taken

    def _check_positional(self, positional: list[str]) -> None:
        places = [option for option in self._options if option.is_positional]
        if len(positional) > sum(option.values for option in places):
            word = printable(repr(positional[int(sum(option.values for option in places))]), 60)
            raise UserError(f"{word} is a word too many.", "Put a text of several words in quotes.")

    def _check_required(self, names: set[str], words: int) -> None:
        places = [option.flag for option in self._options if option.is_positional and option.values == 1]
        needed = [option for option in self._options if option.is_required]
        missing = [option.flag for option in needed if option.flag in places[words:]]
        missing += [option.flag for option in needed if not option.is_positional and option.name not in names]
        if missing:
            text = " and ".join(filter(None, (", ".join(missing[:-1]), missing[-1])))
            text += " is missing." if len(missing) == 1 else " are missing."
            raise UserError(text, f"For help: {self._prog} --help")

    def _raise_unknown(self, word: str) -> _Option:
        flag = word.partition("=")[0]
        spellings = {spelling.strip("_"): spelling for spelling in self._by_spelling}
        close = difflib.get_close_matches(_plain(word).strip("_"), spellings, n=1, cutoff=0.65)
        hint = f"Did you mean {spellings[close[0]].replace('_', '-')}? " if close else ""
        raise UserError(f"{self._prog} has no flag {printable(flag, 60)}.", f"{hint}For help: {self._prog} --help")


def _plain(word: str) -> str:
    return word.partition("=")[0].replace("-", "_")


def _is_flag(word: str) -> bool:
    return bool(_FLAG.match(word)) and not _NEGATIVE_NUMBER.match(word)


def _spell(option: _Option, on: bool) -> str:
    return option.flag if on else f"--no-{option.flag[2:]}"


def _registry() -> ConstructorRegistry:
    """Make tyro pass on raw text that is no number, no choice or an empty path, so that the settings class refuses it
    with the message of a Python call. tyro's own `Path("")` would be the current folder."""
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def raw(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
        kind, optional = _without_none(info.type)
        choices = {str(choice): choice for choice in get_args(kind)} if get_origin(kind) is Literal else {}
        if kind not in _METAVARS and not choices:
            return None

        def read(words: list[str]) -> Any:
            if optional and words[0] == "None":
                return None
            if choices or kind in (Path, str):
                return choices.get(words[0], words[0])
            try:
                return kind(words[0])
            except ValueError:
                return words[0]

        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="{" + ",".join(choices) + "}" if choices else _METAVARS[kind],
            instance_from_str=read,
            is_instance=lambda value: (
                value in choices.values() if choices else isinstance(value, kind) or (optional and value is None)
            ),
            str_from_instance=lambda value: [str(value)],
        )

    _shorten_help(registry)
    return registry


_METAVARS = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH"}


def _without_none(annotation: Any) -> tuple[Any, bool]:
    """Return X and whether the annotation is `X | None`, without the marks of `Annotated`."""
    parts = [part for part in get_args(annotation) if part is not type(None)]
    optional = type(None) in get_args(annotation) and len(parts) == 1
    kind = parts[0] if optional else annotation
    return (get_args(kind)[0] if get_origin(kind) is Annotated else kind), optional


def _shorten_help(registry: ConstructorRegistry) -> None:
    """Add a rule that omits defaults without information (None, an empty text, a switch that is off) from the help, and
    shows only the spelling that changes something."""
    hint = tyro.conf.arg(help_behavior_hint=lambda text: _HINTS.get(text, f"(default: {text})"))
    within = False

    @registry.struct_rule
    def settings(info: StructTypeInfo) -> StructConstructorSpec | None:
        nonlocal within
        if within or not (isinstance(info.type, type) and issubclass(info.type, SettingsBase)):
            return None
        within = True  # so that tyro's own rule applies
        try:
            spec = ConstructorRegistry.get_struct_spec(info)
        finally:
            within = False
        if not isinstance(spec, StructConstructorSpec):
            return None
        return replace(spec, fields=tuple(replace(f, type=_marked(f.type, f.default)) for f in spec.fields))

    def _marked(annotation: Any, default: object) -> Any:
        marked = Annotated[annotation, hint]
        switch: Any = tyro.conf.FlagCreatePairsOff  # Any: its subscript is no type for mypy
        return switch[marked] if default is False else marked


_HINTS = {"None": "", "": "", "''": "", "False": "", "True": "(default: on)"}
