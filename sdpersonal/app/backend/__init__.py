"""The app without its page: the work behind every route is a function or a method in this package."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path

from .events import EventHub
from .generation_service import GenerationService, JobView
from .workspace import Workspace


@dataclass(frozen=True)
class App:
    """The services of a running app.

    workspace: its folders; generation: generates images and knows which model is loaded; fixed_base: the page cannot
    switch the model, because several users share it; bases: folder of further models to choose from; events: tells
    open pages what has changed.
    """

    workspace: Workspace
    generation: GenerationService
    fixed_base: bool = False
    bases: Path | None = None
    events: EventHub = field(default_factory=EventHub)

    def close(self) -> None:
        """Tell the open pages that the app ends, then end all work, at the same time."""
        self.events.publish_to_all("closing", {})
        threads = [threading.Thread(target=work, daemon=True) for work in (self.generation.close,)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


__all__ = ["App", "EventHub", "GenerationService", "JobView", "Workspace"]
