"""Keep facts about a model without keeping its weights."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args

from ..config.base import BaseKind
from ..config.scheduler_table import SCHEDULERS
from ..errors import UserError
from .loading import PRECISION_NAMES

_TEXTS = ("name", "kind", "version", "device", "precision", "sampler", "safety")
_NUMBERS = ("resolution", "guidance", "rescale", "parameters")


@dataclass(frozen=True)
class ModelInfo:
    """Facts about a loaded model.

    name, kind, version: as in `StableDiffusion`; resolution: pixels a side; device: "cpu" or "cuda"; parameters: their
    number; safety: a sentence on its safety checker; schedulers: names of those that work with it.
    """

    name: str
    kind: BaseKind
    version: str
    resolution: int
    guidance: float
    rescale: float
    device: str
    precision: str
    parameters: int
    sampler: str
    safety: str
    schedulers: tuple[str, ...] = ()

    @classmethod
    def of(cls, base) -> ModelInfo:
        if isinstance(base, cls):  # of a fleet
            return base
        return cls(
            name=base.name,
            kind=base.kind,
            version=base.version,
            resolution=base.resolution,
            guidance=base.guidance,
            rescale=base.rescale,
            device=base.device.type,
            precision=PRECISION_NAMES[base.dtype],
            parameters=base.num_parameters,
            sampler=type(base.make_scheduler()).__name__.removesuffix("Scheduler"),
            safety=base.safety_note,
            schedulers=_schedulers_of(base),
        )

    @property
    def title(self) -> str:
        """The name without the folders that it is in, which are nobody's business on a page."""
        return Path(self.name).name if Path(self.name).is_absolute() else self.name

    def facts(self) -> dict[str, Any]:
        """Return all facts as JSON, for another machine; without the folders that it is in."""
        return asdict(self) | {"name": self.title, "schedulers": list(self.schedulers)}

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> ModelInfo:
        """Read what `facts` wrote on another machine. Raises UserError."""
        try:
            info = cls(**{field.name: facts[field.name] for field in fields(cls)})
        except KeyError as error:
            raise UserError(f"The facts of the model lack its {error.args[0]}.") from None
        is_fine = all(isinstance(getattr(info, name), str) for name in _TEXTS)
        is_fine &= all(isinstance(getattr(info, name), int | float) for name in _NUMBERS)
        is_fine &= info.kind in get_args(BaseKind) and isinstance(info.schedulers, list | tuple)
        if not is_fine:
            raise UserError("The facts of the model have another form.")
        return replace(info, schedulers=tuple(map(str, info.schedulers)))

    def to_json(self) -> dict[str, Any]:
        """Return the facts that the page shows."""
        return {
            "name": self.title,
            "kind": self.kind,
            "resolution": self.resolution,
            "guidance": self.guidance,
            "rescale": self.rescale,
            "device": self.device,
            "precision": self.precision,
            "schedulers": list(self.schedulers),
            "line": self.line(),
        }

    def line(self) -> str:
        """Describe the model in one line."""
        place = "GPU" if self.device == "cuda" else "CPU"
        text = f"Model: {self.title}, {self.resolution}x{self.resolution} pixels, on the {place}."
        if self.kind == "tiny":
            text += " It is built in: small and fast, with toy-like images."
        return f"{text} {self.safety}"


def _schedulers_of(base) -> tuple[str, ...]:
    from .schedulers import check_scheduler

    names = []
    for scheduler in SCHEDULERS:
        with suppress(UserError):
            check_scheduler(base.scheduler_config, scheduler, steps=25)
            names.append(scheduler.name)
    return tuple(names)
