"""Hold the state that the rules of a translation read and write, and what they need to know of the machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ...config import TrainingSettings
from ...errors import UserError
from .instance_prompt import Subject


@dataclass(frozen=True)
class Environment:
    """Facts of the machine, as functions, so that tests can replace them.

    processes: how many train together; count_photos: counts a folder's files that may be photos (raises UserError if it
    cannot be read); has_checkpoint: whether a run's folder has a checkpoint.
    """

    processes: int
    count_photos: Callable[[str], int]
    has_checkpoint: Callable[[str], bool]


def current_environment() -> Environment:
    """Return the environment of this process."""
    world = os.environ.get("WORLD_SIZE", "1")  # set by accelerate launch and torchrun
    return Environment(int(world) if world.isdecimal() else 1, _count_photos, _has_checkpoint)


def _count_photos(folder: str) -> int:
    from ...photos.loading import count_photos

    return count_photos(Path(folder))


def _has_checkpoint(run: str) -> bool:
    from ...training.run_dir import has_checkpoint

    return has_checkpoint(Path(run))


@dataclass
class TranslationState:
    """A translation in progress.

    typed: our own flags as the user gave them, None for a switch; diffusers_flags: diffusers' flags, "" for a switch;
    added: our flags translated from these; notes: messages for the user; subject: that of the DreamBooth prompt.
    """

    settings: type[TrainingSettings]
    environment: Environment
    typed: Mapping[str, str | None]
    diffusers_flags: dict[str, str] = field(default_factory=dict)
    added: dict[str, str | None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    subject: Subject | None = None

    @property
    def flags(self) -> dict[str, str | None]:
        """Return all of our flags set so far."""
        return {**self.typed, **self.added}

    @property
    def is_diffusers(self) -> bool:
        """Return whether the command is one for diffusers' scripts: all of them require a flag for the photos."""
        return not self.diffusers_flags.keys().isdisjoint(("instance_data_dir", "train_data_dir", "instance_prompt"))

    def has_flag(self, name: str) -> bool:
        """Return whether the trainer has this flag."""
        return ("class_noun" if name == "class" else name) in self.settings.model_fields

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def set_flag(self, name: str, value: str | None, by: str) -> None:
        """Set one of our flags from one of diffusers'. Raises UserError if the two contradict each other."""
        if not self.has_flag(name):
            method = "DreamBooth" if self.has_flag("class") else "textual inversion"
            raise UserError(f"--{by} has no meaning for {method}.", "Leave it out, or use the other trainer.")
        if name in self.flags:
            raise UserError(f"--{by} and --{name.replace('_', '-')} are the same setting.", "Give one of them.")
        self.added[name] = value

    def set_default(self, name: str, value: str) -> None:
        """Set one of our flags if it is not set yet."""
        if name not in self.flags:
            self.added[name] = value
