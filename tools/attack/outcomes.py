"""The result of an attack: what was asked, what came of it, and whether that is right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """One line of a report. attack, result: text; passed: whether it is as it should be."""

    attack: str
    result: str
    passed: bool

    def __str__(self) -> str:
        return f"{'pass' if self.passed else 'FAIL'}  {self.attack}: {self.result}"


Say = Callable[[Outcome], None]


class Report:
    """The outcomes of a part, each printed when it is known."""

    def __init__(self, say: Callable[[str], None] = print):
        self.outcomes: list[Outcome] = []
        self._say = say

    def add(self, attack: str, result: object, passed: bool) -> None:
        """Add an outcome and print it."""
        self.outcomes.append(Outcome(attack, str(result), bool(passed)))
        self._say(str(self.outcomes[-1]))

    def note(self, text: str) -> None:
        """Print a line that is no outcome, such as a rate."""
        self._say(f"      {text}")

    @property
    def failures(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if not outcome.passed]
