"""The app without its page: the work behind every route is a function or a method in this package."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path

from .events import CLOSING, EventHub
from .generation_service import GenerationService, JobView
from .train.training_service import TrainingService
from .train.training_watcher import TrainingWatcher
from .workspace import Workspace


@dataclass(frozen=True)
class App:
    """The services of a running app.

    workspace: its folders; generation: generates images and knows which model is loaded; fixed_base: the page cannot
    switch the model, because several users share it; bases: folder of further models to choose from; events: tells
    open pages what has changed; trainings: runs them, one at a time; training_watcher: starts the next one.
    """

    workspace: Workspace
    generation: GenerationService
    fixed_base: bool = False
    bases: Path | None = None
    events: EventHub = field(default_factory=EventHub)
    trainings: TrainingService = field(init=False)
    training_watcher: TrainingWatcher = field(init=False)

    def __post_init__(self) -> None:
        trainings = TrainingService(self.workspace, self._free_gpu_memory, lambda: self.generation.base.name)
        watcher = TrainingWatcher(trainings, self.events)
        object.__setattr__(self, "trainings", trainings)
        object.__setattr__(self, "training_watcher", watcher)
        trainings.on_work = watcher.wake
        watcher.wake()  # trainings that waited when the app ended start by themselves

    def _free_gpu_memory(self) -> None:
        if self.generation.base.device == "cuda":  # generation and training share the GPU
            self.generation.release()

    def close(self) -> None:
        """Tell the open pages that the app ends, then end all work, at the same time."""
        self.events.publish_to_all(CLOSING, {})
        work = (self.generation.close, self._close_trainings)
        threads = [threading.Thread(target=end, daemon=True) for end in work]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _close_trainings(self) -> None:
        self.training_watcher.close()
        self.trainings.close()


__all__ = ["App", "EventHub", "GenerationService", "JobView", "Workspace"]
