"""Read the result of a training from its run folder and the library."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .. import storage
from ..concepts.concept import Concept
from ..concepts.library import Library
from ..errors import UserError
from ..prompts import Token
from .run_dir import CURVES_FILE, PROGRESS_FILE, REPORT_FILE, read_progress

_MAX_BYTES = 100_000_000  # of a sheet


@dataclass(frozen=True)
class TrainResult:
    """The result of a run. A notebook shows it as its sample sheet, or without samples as the curve of its loss.

    token: of the concept, with its version; run: the folder of the run; sheet: the sample sheet, if there is one;
    seconds: of the whole run; library: the folder of the library that the concept is in.
    """

    token: Token
    run: Path
    sheet: Path | None
    seconds: float
    library: Path

    @property
    def concept(self) -> Concept:
        """The concept, loaded from the library. Raises UserError if it was removed since."""
        return Library(self.library).get(self.token)

    @property
    def losses(self) -> list[float]:
        """The loss of each step, those before a resume included."""
        return [float(entry["loss"]) for entry in read_progress(self.run / PROGRESS_FILE)]

    @property
    def report(self) -> Path:
        """The HTML page about the run."""
        return self.run / REPORT_FILE

    def _repr_png_(self) -> bytes | None:
        with suppress(UserError):  # the folder of the run was removed since
            return storage.read_bytes(self.sheet or self.run / CURVES_FILE, _MAX_BYTES)
        return None
