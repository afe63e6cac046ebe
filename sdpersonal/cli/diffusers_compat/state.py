"""What the rules of a translation read and write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ...config import Training
from ...errors import PersonalError
from .environment import Surroundings
from .instance_prompt import Subject


@dataclass
class Reading:
    """A translation on its way.

    typed: our own flags as the user gave them, None for a switch; theirs: diffusers' flags, "" for a switch;
    added: our flags that these became; notes: what to say of it; subject: what a DreamBooth prompt is about.
    """

    settings: type[Training]
    machine: Surroundings
    typed: Mapping[str, str | None]
    theirs: dict[str, str] = field(default_factory=dict)
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
        return not self.theirs.keys().isdisjoint(("instance_data_dir", "train_data_dir", "instance_prompt"))

    def has(self, name: str) -> bool:
        """Whether the trainer has this flag."""
        return ("class_noun" if name == "class" else name) in self.settings.model_fields

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def put(self, name: str, value: str | None, by: str) -> None:
        """Set one of our flags on behalf of one of theirs. Raises PersonalError where the two are at odds."""
        if not self.has(name):
            method = "DreamBooth" if self.has("class") else "textual inversion"
            raise PersonalError(f"--{by} means nothing to {method}.", "Leave it out, or take the other trainer.")
        if name in self.ours:
            raise PersonalError(f"--{by} and --{name.replace('_', '-')} are one setting.", "Give one of them.")
        self.added[name] = value

    def suggest(self, name: str, value: str) -> None:
        """Set one of our flags unless it is set."""
        if name not in self.ours:
            self.added[name] = value
