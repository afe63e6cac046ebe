"""Do the work of the app without its page: behind every route is a function or a method of this package."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path

from .events import CLOSING, EventHub
from .generate.gallery import Gallery
from .generate.image_files import ImageFiles
from .generation_service import GenerationService
from .train.drafts import Drafts
from .train.training_service import TrainingService
from .train.training_watcher import TrainingWatcher
from .user_jobs import UserJobs
from .workspace import Workspace


@dataclass(frozen=True)
class App:
    """The services of a running app.

    workspace: its folders; generation: generates images and knows which model is loaded; fixed_base: the page cannot
    switch the model, because several users share it; bases: folder of further models to choose from; events: tells
    open pages what has changed; trainings: runs them, one at a time; training_watcher: starts the next one;
    drafts: trainings that are prepared; gallery, images: the users' saved images, and their files; jobs: what is
    generated for users.
    """

    workspace: Workspace
    generation: GenerationService
    fixed_base: bool = False
    bases: Path | None = None
    events: EventHub = field(default_factory=EventHub)
    gallery: Gallery = field(init=False)
    images: ImageFiles = field(init=False)
    jobs: UserJobs = field(init=False)
    trainings: TrainingService = field(init=False)
    training_watcher: TrainingWatcher = field(init=False)
    drafts: Drafts = field(init=False)

    def __post_init__(self) -> None:
        gallery = Gallery(self.workspace)
        object.__setattr__(self, "gallery", gallery)
        object.__setattr__(self, "images", ImageFiles(gallery))
        object.__setattr__(self, "jobs", UserJobs(self.generation, gallery, self.events))
        trainings = TrainingService(self.workspace, self._free_gpu_memory, lambda: self.generation.base.name)
        watcher = TrainingWatcher(trainings, self.events)
        object.__setattr__(self, "trainings", trainings)
        object.__setattr__(self, "training_watcher", watcher)
        object.__setattr__(self, "drafts", Drafts(self.workspace, self.generation, self.events, trainings))
        trainings.on_work = watcher.wake
        watcher.wake()  # trainings that waited when the app ended start by themselves

    def _free_gpu_memory(self) -> None:
        # Generation and training share the GPU, unless it is a fleet's.
        if self.generation.base.device == "cuda" and not self.generation.on_fleet:
            self.generation.release()

    def close(self) -> None:
        """Tell the open pages that the app ends, then end all work, at the same time."""
        self.events.publish_to_all(CLOSING, {})
        work = (self.jobs.close, self._close_trainings)
        threads = [threading.Thread(target=end, daemon=True) for end in work]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _close_trainings(self) -> None:
        self.training_watcher.close()
        self.trainings.close()


__all__ = ["App", "EventHub", "GenerationService", "Workspace"]
