"""`sdpersonal ...`: find the command, parse its settings, and return the exit code. The commands are in `commands/`.

Exit codes: 0 done, 1 `concepts verify` found damage, 2 the user's mistake, 3 disk full, 4 training diverged,
130 interrupted.

Commands are found here, not by tyro's `SubcommandApp`: a training command's words are translated from diffusers' flags
before they are parsed, former commands and flags are accepted without being in the help, and a mistake is two lines
that name the nearest command or flag. `commands/completion.py` uses SubcommandApp for its completion script.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Sequence

from ..config import SettingsBase, TrainingSettings
from ..errors import Interrupted, UserError, printable
from ..version import __version__
from .commands import COMMANDS, FORMER_COMMANDS, GROUPS
from .commands.fleet import FleetTrainArgs, parse_fleet_training
from .commands.train import parse_training
from .parsing import name_by_flag, parse_settings

__all__ = ["COMMANDS", "main", "run_command"]

EXIT_INTERRUPTED = 130
_DESCRIPTION = "Train concepts on photos, and generate images with them in prompts of Stable Diffusion."
_HELP = ("-h", "--help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    _print_anything()
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv == ["--version"]:
        print(f"sdpersonal {__version__}")
        return 0
    if not argv or argv[0] in _HELP:
        print(_help())
        return 0
    if argv[0] in GROUPS and (argv[1:2] == [] or argv[1] in _HELP) and argv != ["outputs"]:
        print(_group_help(argv[0]))
        return 0
    name, rest = _split_command(argv)
    if name is None:
        print(f"error: {_unknown_command(argv)}", file=sys.stderr)
        return UserError.exit_code
    command, settings = COMMANDS[name]
    return run_command(command, settings, rest, f"sdpersonal {name}")


def _split_command(argv: list[str]) -> tuple[str | None, list[str]]:
    """Return the command's name and the words after it; None if there is no such command."""
    for count in (2, 1):
        name = " ".join(argv[:count])
        name = FORMER_COMMANDS.get(name, name)
        if name in COMMANDS and (name != "outputs page" or count == 2 or argv[1:2] == [] or argv[1].startswith("-")):
            return name, argv[count:]
    return None, argv


def _help() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:{width}}{_summary(settings)}" for name, (_, settings) in COMMANDS.items()]
    usage = "usage: sdpersonal [-h] [--version] COMMAND ...\n\n" + _DESCRIPTION
    return f"{usage}\n\n" + "\n".join(lines) + "\n\nFlags of a command: sdpersonal COMMAND --help"


def _group_help(group: str) -> str:
    commands = {name: settings for name, (_, settings) in COMMANDS.items() if name.startswith(f"{group} ")}
    width = max(map(len, commands)) + 2
    lines = [f"  {name:{width}}{_summary(settings)}" for name, settings in commands.items()]
    usage = f"usage: sdpersonal {group} [-h] COMMAND ...\n\n{GROUPS[group]}"
    return f"{usage}\n\n" + "\n".join(lines) + f"\n\nFlags of a command: sdpersonal {group} COMMAND --help"


def _summary(settings: type[SettingsBase]) -> str:
    return (settings.__doc__ or "").splitlines()[0].partition(". ")[0].rstrip(".") + "."


def _unknown_command(argv: Sequence[str]) -> UserError:
    words = argv[:2] if argv[0] in GROUPS or (len(argv) > 1 and not argv[1].startswith("-")) else argv[:1]
    typed = " ".join(words)
    last_words = {name.rpartition(" ")[2]: name for name in COMMANDS}  # `sdpersonal list`
    close = difflib.get_close_matches(typed, [*COMMANDS, *GROUPS], n=1) or difflib.get_close_matches(
        words[0], [*GROUPS, *last_words], n=1
    )
    meant = f"Did you mean sdpersonal {last_words.get(close[0], close[0])}? " if close else ""
    return UserError(f"{printable(typed)} is not a command.", f"{meant}All commands: sdpersonal --help")


def run_command(command: Callable[..., int], settings: type[SettingsBase], argv: Sequence[str], prog: str) -> int:
    """Parse the settings, run the command, and turn an error into a message and an exit code."""
    # Threads that spin long while they wait make generation two to three times slower on a busy machine
    # (docs/performance.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # before torch loads
    _print_anything()
    try:
        _check_environment()
        if issubclass(settings, TrainingSettings):
            return command(parse_training(settings, argv, prog))
        if settings is FleetTrainArgs:
            return command(parse_fleet_training(argv, prog))
        return command(parse_settings(settings, argv, prog))
    except Interrupted as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except UserError as error:
        print(f"error: {name_by_flag(error, settings)}", file=sys.stderr)
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


if __name__ == "__main__":
    sys.exit(main())
