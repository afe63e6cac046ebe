"""Watch the trainings while one runs or waits: start the next one, and tell open pages what has changed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from ..events import EventHub
from .run_view import run_summaries, timeline_stamp
from .training_service import TrainingService

POLL_SECONDS = 1.0

log = logging.getLogger(__name__)


class TrainingWatcher:
    """One thread, which is there only while a training runs or waits.

    publish_if_changed: sends `trainings` and `training` events; called once a second, and whenever the page changed
    something.
    """

    def __init__(self, service: TrainingService, events: EventHub, poll_seconds: float = POLL_SECONDS):
        self._service, self._events, self._poll_seconds = service, events, poll_seconds
        self._mutex, self._woken, self._ended = threading.Lock(), threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._sent: dict[str | None, list[dict[str, Any]]] = {}
        self._stamps: dict[tuple[str | None, str], object] = {}

    def wake(self) -> None:
        """Look at once, and as long as a training runs or waits."""
        self._woken.set()
        with self._mutex:
            if not self._ended.is_set() and (self._thread is None or not self._thread.is_alive()):
                self._thread = threading.Thread(target=self._watch, name="trainings", daemon=True)
                self._thread.start()

    def close(self) -> None:
        self._ended.set()
        self._woken.set()

    def _watch(self) -> None:
        while not self._ended.is_set():
            self._woken.clear()
            has_work = self._guarded(self._look)
            if not has_work and self._may_end():
                return
            self._ended.wait(self._poll_seconds) if has_work else None

    def _may_end(self) -> bool:
        """End the thread, unless it was woken meanwhile."""
        with self._mutex:
            if self._woken.is_set():
                return False
            self._thread = None
            return True

    def _look(self) -> bool:
        self._service.start_next()
        has_work = self._service.has_work()  # before the news, so that the last ones are those of its end
        for user in self._events.watching_users():
            self.publish(user)
        return has_work

    def publish(self, user: str | None) -> None:
        """Send a user's pages the list of trainings and which timelines have grown, if they have changed."""
        runs = self._service.runs(user)
        summaries = run_summaries(runs, self._service)
        before = self._sent.get(user)
        if before != summaries:
            self._sent[user] = summaries
            self._events.publish(user, "trainings", {"trainings": summaries})
            if before is not None and not _done_ids(summaries) <= _done_ids(before):
                self._events.publish_to_all("library", {})  # the trainer has added its concept
        for run in runs:
            stamp = timeline_stamp(run)
            if self._stamps.setdefault((user, run.id), stamp) != stamp:
                self._stamps[user, run.id] = stamp
                self._events.publish(user, "training", {"id": run.id}, run.id)

    @staticmethod
    def _guarded(look: Callable[[], bool]) -> bool:
        try:
            return look()
        except Exception as error:  # a damaged folder must not end the line for everybody
            log.error("trainings could not be watched", exc_info=error)
            return True


def _done_ids(summaries: list[dict[str, Any]]) -> set[str]:
    return {summary["id"] for summary in summaries if summary["state"] == "done"}
