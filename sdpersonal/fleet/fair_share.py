"""Decide whose turn it is where several users wait for workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import count


class FairShare:
    """Choose the user for whom the next task starts: max-min fairness of the workers, and turns among equals.

    The user with the fewest running tasks comes first, so that users who always have work hold equally many workers,
    however many tasks they have and however long each takes. Of users with equally many the one comes first whose last
    turn is the longest ago. A user who was never chosen comes before all of these, and leaving and coming back does not
    make a user new.
    """

    def __init__(self) -> None:
        self._last_turns: dict[str, int] = {}
        self._turns = count()

    def choose(self, users: Iterable[str], running: Counter[str]) -> str:
        """Return the user whose turn it is, and note the turn, also as another running task.

        Args:
            users: those who have a task that could start now; at least one.
            running: the number of running tasks by user.
        """
        user = min(users, key=lambda name: (running[name], self._last_turns.get(name, -1)))
        self._last_turns[user] = next(self._turns)
        running[user] += 1
        return user
