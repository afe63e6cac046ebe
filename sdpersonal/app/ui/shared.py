"""Share components, event options and helpers between tabs."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

GENERATE, TRAIN, LIBRARY, MODELS = "generate", "make", "library", "base"  # the tabs' names
QUICK_EVENT = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}  # answered at once


@dataclass(frozen=True)
class SharedComponents:
    """Components that several tabs use. tabs: return `gr.Tabs(selected=NAME)` to it to switch; prompt: the Generate
    tab's; base: the line about the loaded model."""

    page: gr.Blocks
    tabs: gr.Tabs
    prompt: gr.Textbox
    base: gr.Textbox


def user_name(request: gr.Request) -> str | None:
    """Return the logged-in user's name; None if nobody logs in."""
    return getattr(request, "username", None)


def text_line(text: str = "", name: str | None = None, **more) -> gr.Textbox:
    """Make a status line. Neither Markdown nor a toast, which would render text from other people's files as HTML."""
    looks = {"show_label": False, "container": False, "interactive": False, "elem_classes": "line", "max_lines": 6}
    return gr.Textbox(text, lines=1, elem_id=name, **(looks | more))
