"""Drawing for pages: one device, a line of jobs before it, and for each page what it is to show at the moment."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ...config import Request
from ...config.scheduler_names import difference
from ...errors import Interrupted
from ...generation import Generator
from ...image_metadata import hidden_note
from ...models.oom import give_back
from ...playground.endless import Series, draw_endless
from .device_worker import Device
from .error_text import in_words
from .job_queue import Job, Line
from .models.info import BaseFacts
from .render_job import Desk, InTurn, Result
from .workspace import House

IDLE = "Write a prompt and press Draw. Your pictures appear here."
WAITING = 24  # jobs in the line, the one that draws among them
MOST_ENDLESS = 500  # pictures; whoever is there presses again
_LOOK = 0.5  # seconds between views: each costs server and browser a tenth of a second of a core

Load = Callable[[str | None], Generator]
"""A base's name, None for the usual one, to a generator with it. Raises PersonalError."""
Work = Callable[[Desk], str | None]
"""Draws, and says what there is to say at the end instead of the usual."""


@dataclass(frozen=True)
class View:
    """What the page shows of a job at one moment. done: the share that is finished, 0 to 1; preview: how the pictures
    that are being drawn look so far."""

    message: str
    results: tuple[Result, ...] = ()
    done: float = 0.0
    preview: tuple[Image.Image, ...] = ()


class Studio:
    """Draws for pages, each known by its session's name; a page has one drawing at a time."""

    def __init__(self, load: Load, house: House, base: str | None = None):
        self.house = house
        self._device = Device()
        self._load, self._name = load, base
        self._generator: Generator | None = self._device.do(load, base)
        self._base = BaseFacts.of(self._generator.base)
        self._line = Line(WAITING)
        self._stops: dict[str, threading.Event] = {}

    # --- the base -----------------------------------------------------------------------------------------------------

    @property
    def base(self) -> BaseFacts:
        """Of the base that is loaded, or was last."""
        return self._base

    def about(self) -> str:
        """Which base is loaded, in a line."""
        return self.base.line()

    def use(self, name: str) -> str:
        """Load another base as soon as nothing is half drawn; what it is, in a line.

        The one that was there goes first: memory may not hold both. Raises PersonalError where the other cannot be
        loaded; then the next drawing loads the former one again.
        """
        with self._line.job(alone=True) as job, job.turn():
            self._drop()
            self._generator = self._device.do(self._load, name)
            self._name, self._base = name, BaseFacts.of(self._generator.base)
        return self.about()

    def release(self) -> None:
        """Give the base's memory back until the next drawing, which loads it again: for a training on the same card."""
        with self._line.job(alone=True) as job, job.turn():
            self._drop()

    def _drop(self) -> None:
        self._generator = None
        give_back()

    def _ready(self) -> Generator:
        """In the device's thread, with the device to oneself."""
        if self._generator is None:
            self._generator = self._load(self._name)
            self._base = BaseFacts.of(self._generator.base)
        return self._generator

    # --- drawing ------------------------------------------------------------------------------------------------------

    def do(self, order: Callable[[], Work], page: str, user: str | None = None) -> Iterator[View]:
        """What to show as a page's work goes on; the last one says how it ended. A mistake in the order is told so too.

        order: for example `lambda: pictures(form)`.
        """
        try:
            work = order()
        except Exception as error:
            yield View(in_words(error), done=1.0)
            return
        self.stop(page)  # a page has one at a time
        stop = self._stops[page] = threading.Event()
        try:
            yield from self._watch(work, stop, page, user)
        finally:
            stop.set()  # also when the page went away and nobody asks for the next view
            if self._stops.get(page) is stop:
                del self._stops[page]

    def stop(self, page: str) -> None:
        """End the page's drawing at the next step; what is finished stays."""
        if stop := self._stops.get(page):
            stop.set()

    def end(self) -> None:
        """The app ends: so do all drawings."""
        for stop in list(self._stops.values()):
            stop.set()

    def leave(self, page: str) -> None:
        """The page was closed."""
        self.stop(page)
        self.house.leave(page)

    def _watch(self, work: Work, stop: threading.Event, page: str, user: str | None) -> Iterator[View]:
        # A thread of its own: the page asks for views from whichever thread is free, a drawing must stay in one.
        news: queue.SimpleQueue = queue.SimpleQueue()
        ended = threading.Event()
        threading.Thread(target=self._work, args=(work, stop, news.put, ended, page, user), daemon=True).start()
        view, last = View(""), False
        while not last:
            last = ended.wait(_LOOK)
            change: dict = {}
            while not news.empty():
                change |= news.get()
            if change:
                view = replace(view, **change)
                yield view

    def _work(
        self, work: Work, stop: threading.Event, put, ended: threading.Event, page: str, user: str | None
    ) -> None:
        results: list[Result] = []
        hidden: list[bool] = []
        notes: list[str] = []
        try:
            with self._line.job() as job:
                desk = self._desk(job, stop, put, page, user, results, hidden, notes)
                said = work(desk)
            message = " ".join([said or _ending(len(results), time.monotonic() - job.begun, hidden), *notes])
        except Interrupted:
            message = f"Stopped. {_counted(len(results))} finished and kept." if results else "Stopped."
        except Exception as error:
            message = in_words(error)
        put({"message": message, "done": 1.0, "preview": ()})
        ended.set()

    def _desk(self, job: Job, stop: threading.Event, put, page: str, user, results, hidden, notes) -> Desk:
        def waits(ahead: int) -> None:
            put({"message": f"In the line: {ahead} before you." if ahead else "Just a moment …"})

        def preview(pictures: list[Image.Image]) -> None:
            put({"preview": tuple(pictures)})

        generator = InTurn(self._device, self._ready, job, stop.is_set, preview, waits)
        return Desk(generator, self.house, page, user, stop, put, results, hidden, notes)


def pictures(form: Mapping[str, Any]) -> Work:
    """The pictures of a `Request` with these fields. Raises PersonalError."""
    request = Request(**form)

    def work(desk: Desk) -> None:
        desk.notes.extend(filter(None, [difference(request.scheduler)]))
        for picture in desk.generator.draw(request, desk.progress):
            desk.keep(picture)

    return work


def endless(form: Mapping[str, Any], wildcards: Path | None = None) -> Work:
    """On and on, each picture with other alternatives and another seed, from where it was. Raises PersonalError."""
    request = Request(**{**form, "n": 1, "every": False})
    series = Series(request, wildcards)

    def work(desk: Desk) -> str:
        desk.notes.extend(filter(None, [difference(request.scheduler)]))
        drawn = draw_endless(
            series, desk.generator, desk.outputs, MOST_ENDLESS, progress=desk.progress, stopped=desk.stopped
        )
        for path, hidden in drawn:
            desk.show(path, hidden)
        return f"{MOST_ENDLESS} pictures are enough for now. Press Endless to go on."

    return work


def _ending(drawn: int, seconds: float, hidden: list[bool]) -> str:
    return f"{_counted(drawn)} in {seconds:.1f} s. Click one to do more with it. {hidden_note(hidden)}".rstrip()


def _counted(drawn: int) -> str:
    return "1 picture" if drawn == 1 else f"{drawn} pictures"


def insert(prompt: str, token: str) -> str:
    """The prompt with the token behind it, one space between."""
    return f"{prompt.rstrip()} {token}".lstrip()
