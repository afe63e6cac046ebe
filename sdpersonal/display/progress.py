"""Report progress to a callback, and as a bar in a terminal or a notebook."""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

SMOOTHING = 30  # steps: the loss on a bar is their mean, since that of one step depends mostly on its noise levels
_NOTEBOOK_INTERVAL = 0.1  # seconds between updates of a notebook's page


@dataclass(frozen=True)
class Progress:
    """The progress of a training or a generation: steps done, of how many, and an estimate of the seconds left.

    A generation counts the denoising steps of all its images and has no loss.
    """

    step: int
    steps: int
    seconds_left: float
    loss: float | None = None


OnProgress = Callable[[Progress], None]


class ProgressBar:
    """Passes progress on to a callback, and shows it as a bar on a terminal or in a notebook, unless `quiet`.

    on_progress: may raise an exception to stop the work. transient: the bar disappears at the end.
    """

    def __init__(
        self,
        label: str,
        on_progress: OnProgress | None = None,
        quiet: bool = False,
        transient: bool = True,
        out: TextIO | None = None,
    ):
        self._on_progress = on_progress
        self._bar = None if quiet else _choose_bar(label, transient, out or sys.stderr)
        self._started_at = time.monotonic()

    @property
    def shown(self) -> bool:
        """Whether there is a bar: none is shown in a file or a pipe."""
        return self._bar is not None

    def __enter__(self) -> ProgressBar:
        self._started_at = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            with suppress(OSError):  # the terminal is gone
                self._bar.stop()

    def show(self, progress: Progress) -> None:
        if self._bar:
            self._bar.update(progress)
        if self._on_progress:
            self._on_progress(progress)

    def advance(self, done: int, total: int) -> None:
        """Show `done` of `total` steps, with the time left at the pace so far."""
        seconds = time.monotonic() - self._started_at
        self.show(Progress(done, total, seconds / done * (total - done) if done else math.inf))


@contextmanager
def ignore_missing_widgets() -> Iterator[None]:
    """Ignore the warning of tqdm, on import in a notebook, that ipywidgets is missing: the bars here need none."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="IProgress not found")
        yield


def _choose_bar(label: str, transient: bool, out: TextIO | None) -> _Bar | None:
    if _in_notebook():
        return _NotebookBar(label, transient)
    if out is None or not out.isatty():  # None: started with stderr closed
        return None
    return _TerminalBar(label, transient, out)


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return hasattr(shell, "kernel")  # a shell in a terminal has none


class _Bar:
    """A bar with the mean of the last losses; a subclass shows it."""

    def __init__(self, label: str, transient: bool):
        self.label, self.transient = label, transient
        self._losses: deque[float] = deque(maxlen=SMOOTHING)
        self._last: Progress | None = None

    def update(self, progress: Progress) -> None:
        if progress.loss is not None:
            self._losses.append(progress.loss)
        self._last = progress
        self.show(progress, self._loss_text(), _time_text(progress.seconds_left))

    def stop(self) -> None:
        """Show the last step without a time left: the work may have ended early."""
        if self._last:
            self.show(self._last, self._loss_text(), "", is_last=True)

    def show(self, progress: Progress, loss: str, time_left: str, is_last: bool = False) -> None:
        raise NotImplementedError

    def _loss_text(self) -> str:
        return f"loss {math.fsum(self._losses) / len(self._losses):.4f}" if self._losses else ""


class _TerminalBar(_Bar):
    """A bar of rich. It begins with the first step, so that it is not broken by messages before."""

    def __init__(self, label: str, transient: bool, out: TextIO):
        super().__init__(label, transient)
        self._out = out
        self._progress: RichProgress | None = None

    def show(self, progress: Progress, loss: str, time_left: str, is_last: bool = False) -> None:
        fields: dict[str, Any] = {"completed": progress.step, "total": progress.steps, "loss": loss, "left": time_left}
        bar = self._progress = self._progress or self._start(fields)
        bar.update(bar.task_ids[0], **fields)
        if is_last:
            bar.stop()

    def _start(self, fields: dict[str, Any]) -> RichProgress:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichBar

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
        )
        bar = RichBar(*columns, console=Console(file=self._out), transient=self.transient)
        bar.add_task(self.label, **fields)
        bar.start()
        return bar


class _NotebookBar(_Bar):
    """A bar in HTML, which needs no widgets."""

    def __init__(self, label: str, transient: bool):
        super().__init__(label, transient)
        self._handle: Any = None
        self._shown_at = -math.inf

    def show(self, progress: Progress, loss: str, time_left: str, is_last: bool = False) -> None:
        now = time.monotonic()
        if now - self._shown_at < _NOTEBOOK_INTERVAL and not is_last:
            return
        self._shown_at = now
        bar = f'<progress value="{progress.step}" max="{progress.steps}" style="width: 20em"></progress>'
        texts = filter(None, (f"{self.label}: {progress.step} of {progress.steps}", loss, time_left))
        self._display("" if is_last and self.transient else f"{bar} {', '.join(texts)}")

    def _display(self, html: str) -> None:
        ipython = import_module("IPython.display")
        if self._handle is None:
            self._handle = ipython.display(ipython.HTML(html), display_id=True)
        else:
            self._handle.update(ipython.HTML(html))


def _time_text(seconds: float) -> str:
    if not math.isfinite(seconds):
        return ""
    return f"{timedelta(seconds=round(seconds))} left"
