"""What the rules of a translation read and write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ...config import TrainingSettings
from ...errors import UserError
from .environment import Environment
from .instance_prompt import Subject


@dataclass
class TranslationState:
    """A translation on its way.

    typed: our own flags as the user gave them, None for a switch; theirs: diffusers' flags, "" for a switch;
    added: our flags that these became; notes: what to say of it; subject: what a DreamBooth prompt is about.
    """

    settings: type[TrainingSettings]
    machine: Environment
    typed: Mapping[str, str | None]
    diffusers_flags: dict[str, str] = field(default_factory=dict)
    added: dict[str, str | None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    subject: Subject | None = None

    @property
    def ours(self) -> dict[str, str | None]:
        """All of our flags so far."""
        return {**self.typed, **self.added}

    @property
    def is_diffusers(self) -> bool:
        """Whether it is a command for diffusers' scripts: each of those has to be told its photos in such words."""
        return not self.diffusers_flags.keys().isdisjoint(("instance_data_dir", "train_data_dir", "instance_prompt"))

    def has_flag(self, name: str) -> bool:
        """Whether the trainer has this flag."""
        return ("class_noun" if name == "class" else name) in self.settings.model_fields

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def put(self, name: str, value: str | None, by: str) -> None:
        """Set one of our flags on behalf of one of theirs. Raises UserError where the two are at odds."""
        if not self.has_flag(name):
            method = "DreamBooth" if self.has_flag("class") else "textual inversion"
            raise UserError(f"--{by} means nothing to {method}.", "Leave it out, or take the other trainer.")
        if name in self.ours:
            raise UserError(f"--{by} and --{name.replace('_', '-')} are one setting.", "Give one of them.")
        self.added[name] = value

    def set_default(self, name: str, value: str) -> None:
        """Set one of our flags unless it is set."""
        if name not in self.ours:
            self.added[name] = value
