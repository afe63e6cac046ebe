"""What the app's page can ask for, without the page: every button's work is a function or a method here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .generation_service import GenerationService, JobView
from .workspace import Workspace


@dataclass(frozen=True)
class App:
    """house: where things are kept; studio: draws, and knows which base is loaded; fixed_base: whether only who
    started the app chooses the base, since several use it; bases: a folder of more that may be chosen."""

    workspace: Workspace
    generation: GenerationService
    fixed_base: bool = False
    bases: Path | None = None


__all__ = ["App", "GenerationService", "JobView", "Workspace"]
