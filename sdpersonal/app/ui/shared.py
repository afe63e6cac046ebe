"""What several tabs touch."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

GENERATE, TRAIN, LIBRARY, MODELS = "generate", "make", "library", "base"  # the tabs' names
QUICK_EVENT = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}  # answered at once


@dataclass(frozen=True)
class SharedComponents:
    """tabs: to go to another, return `gr.Tabs(selected=NAME)` to it; prompt: the Generate tab's; base: the line about
    the base that is loaded."""

    page: gr.Blocks
    tabs: gr.Tabs
    prompt: gr.Textbox
    base: gr.Textbox


def user_name(request: gr.Request) -> str | None:
    """Who asks, where people log in; else None: there is one user."""
    return getattr(request, "username", None)


def text_line(text: str = "", name: str | None = None, **more) -> gr.Textbox:
    """A line of text about how things stand. Not Markdown and no toast: these would show a stranger's words as HTML."""
    looks = {"show_label": False, "container": False, "interactive": False, "elem_classes": "line", "max_lines": 6}
    return gr.Textbox(text, lines=1, elem_id=name, **(looks | more))
