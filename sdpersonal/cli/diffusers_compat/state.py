"""State that the rules of a translation read and write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ...config import TrainingSettings
from ...errors import UserError
from .environment import Environment
from .instance_prompt import Subject


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
            raise UserError(f"--{by} means nothing to {method}.", "Leave it out, or take the other trainer.")
        if name in self.flags:
            raise UserError(f"--{by} and --{name.replace('_', '-')} are one setting.", "Give one of them.")
        self.added[name] = value

    def set_default(self, name: str, value: str) -> None:
        """Set one of our flags if it is not set yet."""
        if name not in self.flags:
            self.added[name] = value
