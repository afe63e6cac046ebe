"""Run the command `completion`: write a script that completes commands, flags and choices in a shell."""

from __future__ import annotations

from typing import Annotated, Literal

import tyro
from tyro.extras import SubcommandApp

from ...config import SettingsBase


class CompletionArgs(SettingsBase):
    """Print a completion script for your shell, for example: sdpersonal completion bash >> ~/.bash_completion"""

    shell: Annotated[Literal["bash", "zsh"], tyro.conf.Positional, tyro.conf.arg(metavar="SHELL")]
    """bash, or zsh: sdpersonal completion zsh > ~/.zfunc/_sdpersonal, a folder in your fpath."""


def print_completion(settings: CompletionArgs) -> int:
    from . import COMMANDS, GROUPS

    root = SubcommandApp()
    groups = {name: SubcommandApp() for name in GROUPS}
    for name, group in groups.items():
        root.command(group, name=name, help=GROUPS[name])
    for name, (_, command) in COMMANDS.items():
        group_name, _, word = name.rpartition(" ")
        groups.get(group_name, root).command(name=word)(command)
    root.cli(prog="sdpersonal", args=["--tyro-print-completion", settings.shell])
    return 0


COMMANDS = {"completion": (print_completion, CompletionArgs)}
