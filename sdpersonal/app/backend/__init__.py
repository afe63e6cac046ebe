"""The app without its page: the work behind every route is a function or a method in this package."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from .events import EventHub
from .generate.gallery import Gallery
from .generate.image_files import ImageFiles
from .generation_service import GenerationService
from .user_jobs import UserJobs
from .workspace import Workspace


@dataclass(frozen=True)
class App:
    """The services of a running app.

    workspace: its folders; generation: generates images and knows which model is loaded; fixed_base: the page cannot
    switch the model, because several users share it; bases: folder of further models to choose from; events: tells
    open pages what has changed; gallery, images: the users' saved images; jobs: what is generated for users.
    """

    workspace: Workspace
    generation: GenerationService
    fixed_base: bool = False
    bases: Path | None = None
    events: EventHub = field(default_factory=EventHub)
    gallery: Gallery = field(init=False)
    images: ImageFiles = field(init=False)
    jobs: UserJobs = field(init=False)

    def __post_init__(self) -> None:
        set_field = object.__setattr__  # the fields are frozen for all others
        set_field(self, "gallery", Gallery(self.workspace))
        set_field(self, "images", ImageFiles(self.gallery))
        set_field(self, "jobs", UserJobs(self.generation, self.gallery, self.events))

    def close(self) -> None:
        """End all jobs, when the app ends."""
        self.jobs.close()


__all__ = ["App", "EventHub", "GenerationService", "Workspace"]
