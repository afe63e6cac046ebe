"""Load the inputs of a run, before its method is built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..config import TrainingSettings
from ..evaluation import Scorer
from ..models import StableDiffusion
from ..photos.loading import PhotoSet
from .distributed import Accelerator
from .methods.factory import method_name
from .presets import Preset, preset


@dataclass(frozen=True)
class RunInputs:
    """The inputs of a run. scorer: None unless the main process has one; photo_report: lines about the photos."""

    settings: TrainingSettings
    run: Path
    accelerator: Accelerator
    base: StableDiffusion
    photos: PhotoSet
    scorer: Scorer | None
    photo_report: list[str]
    preset: Preset  # with the user's settings applied
    say: Callable[[str], None]

    @property
    def resolution(self) -> int:
        return self.settings.resolution or self.base.resolution

    @property
    def preset_lr(self) -> float:
        return preset(method_name(self.settings), self.base.kind, self.settings.kind).lr

    @property
    def usual_lr(self) -> float:
        """The learning rate without --lr; Prodigy's is 1."""
        return 1.0 if self.settings.optimizer == "prodigy" else self.preset_lr

    @property
    def lr(self) -> float:
        return self.settings.lr or self.usual_lr

    @property
    def photos_per_step(self) -> int:
        return self.preset.batch * self.settings.accumulate * self.accelerator.num_processes
