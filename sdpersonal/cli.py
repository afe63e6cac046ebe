"""`sdpersonal ...`: finds the command, reads its settings, and gives the exit code. The commands are in `commands/`.

Exit codes: 0 done, 1 `concepts verify` found damage, 2 the user's mistake, 3 no room on disk, 4 training diverged,
130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

import tyro

from . import concepts_list, habits
from .commands import (
    cards,
    comparing,
    concepts,
    drawing,
    exporting,
    history,
    importing,
    photos,
    playing,
    sharing,
    training,
)
from .commands.output import is_main_process
from .commands.training import train
from .config import Settings, Training
from .errors import Interrupted, PersonalError
from .prompts import show

__all__ = ["COMMANDS", "main", "run", "train"]

INTERRUPTED = 130
_ALSO = (
    "The flags of diffusers' training scripts are understood as well; docs/from-diffusers.md lists them. "
    "--concepts-list FILE teaches several concepts in turn."
)

COMMANDS: dict[str, tuple[Callable, type[Settings]]] = {
    name: command
    for module in (
        training,
        drawing,
        playing,
        history,
        photos,
        concepts,
        cards,
        comparing,
        importing,
        exporting,
        sharing,
    )
    for name, command in module.COMMANDS.items()
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    for name, (command, settings) in COMMANDS.items():
        words = name.split()
        if argv[: len(words)] == words:
            return run(command, settings, argv[len(words) :], f"sdpersonal {name}")
    asked = not argv or argv[0] in ("-h", "--help")
    lines = [f"  {name:26} {(settings.__doc__ or '').splitlines()[0]}" for name, (_, settings) in COMMANDS.items()]
    text = "usage: sdpersonal COMMAND [--help] ...\n\n" + "\n".join(lines)
    print(
        text if asked else f"{show(' '.join(argv[:2]))} is not a command.\n{text}",
        file=sys.stdout if asked else sys.stderr,
    )
    return 0 if asked else 2


def run(command: Callable, settings: type[Settings], argv: Sequence[str], prog: str) -> int:
    """Read the settings, do the work, and turn what went wrong into a line and an exit code."""
    # Threads that spin long while they wait make drawing two to three times slower on a busy machine
    # (docs/performance.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # before torch loads
    try:
        return command(_asked(settings, argv, prog))
    except Interrupted as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except PersonalError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read us has enough (`| head`). What is left in the buffer must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _asked(settings: type[Settings], argv: Sequence[str], prog: str) -> Settings | concepts_list.Several:
    if not issubclass(settings, Training):
        return tyro.cli(settings, args=argv, prog=prog)
    said: set[str] = set()

    def read(argv: Sequence[str]) -> Training:
        ours = habits.translate(settings, argv, habits.here())
        for note in ours.notes:
            if note not in said and is_main_process():
                print(f"note: {note}", file=sys.stderr)
            said.add(note)
        return tyro.cli(settings, args=ours.argv, prog=prog, description=f"{settings.__doc__}\n\n{_ALSO}")

    path, argv = concepts_list.take(argv)
    return concepts_list.read(path, argv, read) if path else read(argv)


if __name__ == "__main__":
    sys.exit(main())
