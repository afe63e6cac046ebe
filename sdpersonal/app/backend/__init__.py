"""The app without its page: the work of every button is a function or a method in this package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .generation_service import GenerationService, JobView
from .workspace import Workspace


@dataclass(frozen=True)
class App:
    """The services of a running app.

    workspace: its folders; generation: generates images and knows which model is loaded; fixed_base: the page cannot
    switch the model, because several users share it; bases: folder of further models to choose from.
    """

    workspace: Workspace
    generation: GenerationService
    fixed_base: bool = False
    bases: Path | None = None


__all__ = ["App", "GenerationService", "JobView", "Workspace"]
