"""Drawing for a page: one request at a time on the device, with progress, stop, and words for what went wrong."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ..config import Request
from ..errors import Interrupted, PersonalError
from ..outputs import Outputs
from ..recipes import hidden_note
from .house import House
from .words import in_words

IDLE = "Write a prompt and press Draw. Your pictures appear here."
_LOOK = 0.2  # seconds between looks at a drawing that has nothing new to show


class Draws(Protocol):
    """What the studio needs of a generator: `generation.Generator` is one."""

    def draw(self, request: Request, progress, cancelled) -> Iterator[Any]: ...


@dataclass(frozen=True)
class Sheet:
    """What the page shows of one request at one moment. done: the share of the work that is finished, 0 to 1."""

    message: str
    pictures: tuple[tuple[str, str], ...] = ()  # (path, caption)
    recipes: tuple[str, ...] = ()
    done: float = 0.0


class Studio:
    """Draws for pages, each known by its session's name; a page has one drawing at a time."""

    def __init__(self, generator: Draws, house: House):
        self.generator, self.house = generator, house
        self._device = threading.Lock()
        self._stops: dict[str, threading.Event] = {}

    @property
    def base(self):
        """The base that is loaded: its kind, name, resolution, device, guidance, version, safety."""
        return self.generator.base

    def about(self) -> str:
        """Which base is loaded, in a line."""
        base = self.base
        side, place = base.resolution, "graphics card" if base.device.type == "cuda" else "CPU"
        line = f"Base: {base.name}, {side}x{side} pixels, on the {place}."
        if base.kind == "tiny":
            line += (
                " It is built in: small, quick, and draws toy-like pictures. For photographs start with --base sd15."
            )
        return f"{line} {base.safety}"

    def draw(self, form: dict[str, Any], page: str, user: str | None = None) -> Iterator[Sheet]:
        """Sheets as the drawing goes on; the last one says how it ended, mistakes included."""
        try:
            request = Request(**form)
        except PersonalError as error:
            yield Sheet(str(error))
            return
        stop = self._stops[page] = threading.Event()
        try:
            yield from self._watch(request, stop, page, user)
        finally:
            stop.set()  # also when the page went away and nobody asks for the next sheet
            if self._stops.get(page) is stop:
                del self._stops[page]

    def stop(self, page: str) -> None:
        """End the page's drawing at the next step; what is finished stays."""
        if page in self._stops:
            self._stops[page].set()

    def _watch(self, request: Request, stop: threading.Event, page: str, user: str | None) -> Iterator[Sheet]:
        # A thread of its own: the page asks for sheets from whichever thread is free, a drawing must stay in one.
        news: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=self._work, args=(request, stop, news.put, page, user), daemon=True).start()
        sheet = Sheet("Waiting for the picture before this one …")
        yield sheet
        while True:
            try:
                change, last = news.get(timeout=_LOOK)
            except queue.Empty:
                continue
            while not last and not news.empty():  # only the newest state is worth showing
                more, last = news.get()
                change |= more
            sheet = replace(sheet, **change)
            yield sheet
            if last:
                return

    def _work(self, request: Request, stop: threading.Event, tell, page: str, user: str | None) -> None:
        shown: list[tuple[str, str]] = []
        recipes: list[str] = []
        hidden: list[bool] = []

        def progress(done: int, total: int) -> None:
            tell(({"message": f"Drawing: step {done} of {total}", "done": done / total}, False))

        with self._device:
            begun = time.monotonic()
            try:
                for picture in self.generator.draw(request, progress=progress, cancelled=stop.is_set):
                    hidden.append(picture.hidden)
                    data = picture.png()
                    self.house.pictures(user).save(data)
                    shown.append((str(Outputs(self.house.room(page)).save(data)), f"seed {picture.seed}"))
                    recipes.append(json.dumps(picture.recipe.model_dump(), indent=2, ensure_ascii=False))
                    tell(({"pictures": tuple(shown), "recipes": tuple(recipes)}, False))
                message = self._ending(len(shown), time.monotonic() - begun, hidden_note(hidden))
            except Interrupted:
                message = f"Stopped; {len(shown)} of {request.n} pictures are finished."
            except Exception as error:
                message = in_words(error)
        tell(({"message": message, "done": 1.0}, True))

    def _ending(self, drawn: int, seconds: float, note: str) -> str:
        pictures = "1 picture" if drawn == 1 else f"{drawn} pictures"
        return (
            f"{pictures} in {seconds:.1f} s, kept in {self.house.outputs}. Click one to see its recipe. {note}".rstrip()
        )


def insert(prompt: str, token: str) -> str:
    """The prompt with the token behind it, one space between."""
    return f"{prompt.rstrip()} {token}".lstrip()
