"""Share components, event options and helpers between tabs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NotRequired, TypedDict

import gradio as gr
from gradio.blocks import Block
from gradio.components import Component

GENERATE, TRAIN, LIBRARY, MODELS = "generate", "train", "library", "models"  # the tabs' names


class EventOptions(TypedDict):
    """Options of a Gradio event listener, by the names of its parameters."""

    concurrency_limit: int | None
    show_progress: Literal["full", "minimal", "hidden"]
    api_visibility: Literal["public", "private", "undocumented"]
    show_progress_on: NotRequired[Component]


class Event(EventOptions):
    """A whole event, for listeners that share one handler."""

    fn: Callable[..., Any]
    inputs: Block | Sequence[Block] | None
    outputs: Block | Sequence[Block]


# Of most events: no limit, since jobs for the device have the `JobQueue`; no spinner, since the page has status lines.
EVENT: EventOptions = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}


@dataclass(frozen=True)
class SharedComponents:
    """Components that several tabs use. tabs: return `gr.Tabs(selected=NAME)` to it to switch; prompt: the Generate
    tab's; base: the line about the loaded model."""

    page: gr.Blocks
    tabs: gr.Tabs
    prompt: gr.Textbox
    base: gr.Textbox


@dataclass(frozen=True)
class LibraryState:
    """State of the Library tab. chosen: token of the concept whose card is shown, "" for none; changes: a counter of
    changes to the library."""

    chosen: gr.State
    changes: gr.State

    def refresh(
        self,
        tab: gr.Tab,
        fn: Callable[..., Any],
        inputs: Block | Sequence[Block] | None,
        outputs: Block | Sequence[Block],
        on_choice: bool = False,
    ) -> None:
        """Run fn when the tab is opened or the library changes; on_choice: also when another concept is chosen."""
        for listen in (tab.select, self.changes.change, *([self.chosen.change] if on_choice else [])):
            listen(fn, inputs, outputs, **EVENT)


def user_name(request: gr.Request) -> str | None:
    """Return the logged-in user's name; None if nobody logs in."""
    return getattr(request, "username", None)


def thumbnails(label: str, name: str) -> gr.Gallery:
    """Make a gallery whose images are clicked to choose, not to enlarge."""
    return gr.Gallery(
        label=label,
        show_label=False,
        columns=4,
        object_fit="cover",
        allow_preview=False,
        interactive=False,
        buttons=[],
        elem_id=name,
    )


def session_id(request: gr.Request) -> str:
    """Return the id of the page's session."""
    return request.session_hash or ""


def text_line(
    text: str = "", name: str | None = None, label: str | None = None, max_lines: int = 6, visible: bool = True
) -> gr.Textbox:
    """Make a status line. Neither Markdown nor a toast, which would render text from other people's files as HTML."""
    return gr.Textbox(
        text,
        label=label,
        lines=1,
        max_lines=max_lines,
        visible=visible,
        show_label=False,
        container=False,
        interactive=False,
        elem_id=name,
        elem_classes="line",
    )
