"""`sdpersonal ...`: find the command, parse its settings, and return the exit code. The commands are in `commands/`.

Exit codes: 0 done, 1 `concepts verify` found damage, 2 the user's mistake, 3 disk full, 4 training diverged,
130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructTypeInfo,
)

from ..config import SettingsBase, TrainingSettings, flag_of
from ..config.text_checks import IF_UNSET, is_blank
from ..errors import FieldError, Interrupted, UserError
from ..prompts import printable
from . import batch_training, diffusers_compat
from .commands import (
    concepts_compare,
    concepts_edit,
    concepts_export,
    concepts_hub,
    concepts_import,
    generate,
    outputs,
    photos,
    play,
)
from .commands import concepts_list as concepts
from .commands import train as training
from .commands.output import is_main_process
from .commands.train import train
from .diffusers_compat.argv import split_argv

__all__ = ["COMMANDS", "main", "run_command", "train"]

EXIT_INTERRUPTED = 130
_HELP_EPILOG = (
    "The flags of diffusers' training scripts are understood as well; docs/from-diffusers.md lists them. "
    "--concepts-list FILE teaches several concepts in turn."
)

COMMANDS: dict[str, tuple[Callable, type[SettingsBase]]] = {
    name: command
    for module in (
        training,
        generate,
        play,
        outputs,
        photos,
        concepts,
        concepts_edit,
        concepts_compare,
        concepts_import,
        concepts_export,
        concepts_hub,
    )
    for name, command in module.COMMANDS.items()
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    _print_anything()
    argv = list(sys.argv[1:] if argv is None else argv)
    for name, (command, settings) in COMMANDS.items():
        words = name.split()
        if argv[: len(words)] == words:
            return run_command(command, settings, argv[len(words) :], f"sdpersonal {name}")
    is_help = not argv or argv[0] in ("-h", "--help")
    lines = [f"  {name:26} {(settings.__doc__ or '').splitlines()[0]}" for name, (_, settings) in COMMANDS.items()]
    text = "usage: sdpersonal COMMAND [--help] ...\n\n" + "\n".join(lines)
    print(
        text if is_help else f"{printable(' '.join(argv[:2]))} is not a command.\n{text}",
        file=sys.stdout if is_help else sys.stderr,
    )
    return 0 if is_help else 2


def run_command(command: Callable, settings: type[SettingsBase], argv: Sequence[str], prog: str) -> int:
    """Parse the settings, run the command, and turn an error into a message and an exit code."""
    # Threads that spin long while they wait make generation two to three times slower on a busy machine
    # (docs/performance.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # before torch loads
    _print_anything()
    try:
        _check_environment()
        return command(_parse_settings(settings, argv, prog))
    except Interrupted as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except UserError as error:
        print(f"error: {_by_its_flag(error, settings)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output closed the pipe (`| head`). What is left in the buffer must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _print_anything() -> None:
    """Print an escape for a character that the terminal cannot show, instead of failing (LANG=C, cp1252)."""
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", None) == "strict" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


_WHOLE_NUMBERS = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")  # torchrun, accelerate launch


def _check_environment() -> None:
    """Raise UserError for launcher variables that are not numbers; accelerate would end with a traceback."""
    for name in _WHOLE_NUMBERS:
        value = os.environ.get(name)
        if value is not None and not (value.isascii() and value.removeprefix("-").isdecimal()):
            raise UserError(
                f"The environment variable {name} must be a whole number, got {printable(repr(value), 40)}.",
                "Unset it, or start with accelerate launch, which sets it.",
            )


def _parse_settings(
    settings: type[SettingsBase], argv: Sequence[str], prog: str
) -> SettingsBase | batch_training.BatchSettings:
    if not issubclass(settings, TrainingSettings):
        return _parsed(settings, argv, prog)
    seen_notes: set[str] = set()

    def read(argv: Sequence[str]) -> TrainingSettings:
        translation = diffusers_compat.translate(settings, argv, diffusers_compat.current_environment())
        for note in translation.notes:
            if note not in seen_notes and is_main_process():
                print(f"note: {note}", file=sys.stderr)
            seen_notes.add(note)
        return _parsed(settings, translation.argv, prog, f"{settings.__doc__}\n\n{_HELP_EPILOG}")

    path, argv = batch_training.take_list_flag(argv)
    return batch_training.read_batch(path, argv, read) if path else read(argv)


def _parsed(
    settings: type[SettingsBase], argv: Sequence[str], prog: str, description: str | None = None
) -> SettingsBase:
    """Parse a command line into settings. Raises UserError for an unusable value, with the flag's name."""
    _check_switches(settings, argv)
    try:
        return tyro.cli(settings, args=argv, prog=prog, description=description, registry=_as_typed())
    except FieldError as error:
        raise _by_its_flag(error, settings) from None


def _by_its_flag(error: UserError, settings: type[SettingsBase]) -> UserError:
    """Return the error with the flag's name in place of the field's, if it is about a setting."""
    if isinstance(error, FieldError) and error.field in settings.model_fields:
        return error.called(flag_of(settings, error.field))
    return error


def _check_switches(settings: type[SettingsBase], argv: Sequence[str]) -> None:
    """Raise UserError for an empty word behind a switch, which tyro would only report as unknown."""
    switches = {
        f"{no}{flag_of(settings, name).removeprefix('--').replace('-', '_')}"
        for name, field in settings.model_fields.items()
        for no in ("", "no_")
        if field.annotation is bool
    }
    for item in split_argv(argv):
        if item.name in switches and any(is_blank(value) for value in item.values):
            raise UserError(
                f"{item.flag} takes no value, got an empty one.",
                IF_UNSET,
            )


def _as_typed() -> ConstructorRegistry:
    """Make tyro pass on raw text that is no number, no choice or an empty path, so that the settings class refuses it
    with the message of a Python call. tyro's own `Path("")` would be the current folder."""
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def raw(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
        choices = {str(choice): choice for choice in get_args(info.type)} if get_origin(info.type) is Literal else {}
        if info.type not in (int, float, Path) and not choices:
            return None

        def read(words: list[str]) -> Any:
            if choices:
                return choices.get(words[0], words[0])
            try:
                return words[0] if info.type is Path else info.type(words[0])
            except ValueError:
                return words[0]

        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="{" + ",".join(choices) + "}" if choices else info.type.__name__.upper(),
            instance_from_str=read,
            is_instance=lambda value: value in choices.values() if choices else isinstance(value, info.type),
            str_from_instance=lambda value: [str(value)],
        )

    _say_no_empty_defaults(registry)
    return registry


def _say_no_empty_defaults(registry: ConstructorRegistry) -> None:
    """Add a rule that omits "(default: X)" from help for defaults without information: None and ""."""
    hint = tyro.conf.arg(help_behavior_hint=lambda text: f"(default: {text})" if text not in _EMPTY_DEFAULTS else "")
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
        return replace(spec, fields=tuple(replace(field, type=Annotated[field.type, hint]) for field in spec.fields))


_EMPTY_DEFAULTS = ("None", "", "''")


if __name__ == "__main__":
    sys.exit(main())
