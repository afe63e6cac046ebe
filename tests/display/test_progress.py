"""The bar: what it shows in a terminal and a notebook, and that it shows nothing elsewhere."""

import io
import sys
import types

import pytest

from sdpersonal.display.progress import Progress, ProgressBar


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Gone(Terminal):
    def write(self, _):
        raise OSError("Input/output error")


class Display:
    """Stands in for IPython in a notebook: keeps what is displayed."""

    def __init__(self, monkeypatch):
        self.shown = []
        shell = types.SimpleNamespace(kernel=object())
        monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
        module = types.SimpleNamespace(HTML=str, display=self.display)
        monkeypatch.setitem(sys.modules, "IPython.display", module)

    def display(self, html, display_id):
        self.update(html)
        return self

    def update(self, html):
        self.shown.append(html)


def run(bar, losses=(0.5, 0.25, 0.75)):
    with bar:
        for step, loss in enumerate(losses, 1):
            bar.show(Progress(step, len(losses), 60.0 * (len(losses) - step), loss))


def test_a_terminal_shows_steps_loss_and_time(monkeypatch):
    out = Terminal()
    run(ProgressBar("training", out=out, transient=False))
    text = out.getvalue()
    assert "training" in text and "1/3" in text and "0:02:00 left" in text
    last = text.split("\x1b[2K")[-1]
    assert "3/3" in last and "loss 0.5000" in last and "left" not in last


def test_a_task_that_ends_early_shows_no_time_left(monkeypatch):
    display = Display(monkeypatch)
    with ProgressBar("training", transient=False) as bar:
        bar.show(Progress(1, 9, 60.0, 0.5))
        bar.show(Progress(2, 9, 50.0, 0.5))
    assert display.shown[0].endswith("training: 1 of 9, loss 0.5000, 0:01:00 left")
    assert display.shown[-1].endswith("training: 2 of 9, loss 0.5000")


@pytest.mark.parametrize("out", [io.StringIO(), None])
def test_the_bar_writes_nothing_to_a_file_or_closed_stream(out, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None if out is None else sys.stderr)
    seen = []
    run(ProgressBar("training", seen.append, out=out))
    assert len(seen) == 3 and (out is None or out.getvalue() == "")


def test_quiet_mode_shows_nothing_but_calls_the_callback():
    out, seen = Terminal(), []
    run(ProgressBar("training", seen.append, quiet=True, out=out))
    assert out.getvalue() == "" and [progress.step for progress in seen] == [1, 2, 3]


def test_a_closed_terminal_raises_no_error():
    with ProgressBar("training", out=Gone()):
        pass


def test_a_notebook_shows_one_bar_and_clears_a_transient_one(monkeypatch):
    display = Display(monkeypatch)
    run(ProgressBar("training", transient=False))
    assert 'value="3" max="3"' in display.shown[-1] and "training: 3 of 3, loss 0.5000" in display.shown[-1]
    assert len(display.shown) == 2  # the first step and the end: the others came too soon
    run(ProgressBar("generating"))
    assert display.shown[-1] == "" and "generating: 1 of 3" in display.shown[-2]


def test_ipython_in_a_terminal_is_not_a_notebook(monkeypatch):
    shell = types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    assert not ProgressBar("training", out=io.StringIO()).shown


def test_the_remaining_time_is_estimated_from_the_average_speed(monkeypatch):
    from sdpersonal.display import progress

    clock = iter([0.0, 0.0, 2.0, 6.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    seen = []
    with ProgressBar("generating", seen.append, quiet=True) as bar:
        bar.advance(1, 4)
        bar.advance(3, 4)
    assert seen == [Progress(1, 4, 6.0), Progress(3, 4, 2.0)]
