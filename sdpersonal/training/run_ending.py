"""End a run: restore the checkpoint to keep, add the concept to the library, write the report."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from .. import storage
from ..concepts.concept import Concept
from ..concepts.concept_file import concept_from_bytes, concept_to_chunks
from ..concepts.library import Library
from ..concepts.strict_safetensors import MAX_FILE_BYTES
from ..errors import Diverged, UserError
from .build_concept import build_concept, check_embeddings
from .checkpoint import load_step
from .methods.protocol import Method
from .milestones import RunEnd
from .presets import lower_rate
from .report import RunSummary, write_report
from .run_dir import RESULT_FILE, SNAPSHOT_FILE, has_snapshot, snapshot_file
from .run_inputs import RunInputs
from .sampling import add_sample_sheet
from .train_result import TrainResult
from .train_state import TrainState
from .validation import Validation, Validator


def save_snapshot(inputs: RunInputs, method: Method, validation: Validation, folder: Path) -> None:
    """Save the concept as it is, so that it can be chosen by its images. Of a full DreamBooth nothing is saved: its
    weights are too many, and to extract a LoRA from them takes minutes."""
    if getattr(inputs.settings, "method", None) == "full":
        return
    with suppress(Diverged):
        check_embeddings(inputs.base, method, lower_rate(inputs.lr, inputs.usual_lr))
        concept = build_concept(inputs.settings, inputs.base, method, inputs.preset, validation, {})
        storage.write_bytes(folder / SNAPSHOT_FILE, *concept_to_chunks(concept))


def restore_best(inputs: RunInputs, state: TrainState, end: RunEnd, validator: Validator | None) -> Validation:
    """Restore the chosen or else the best checkpoint and return its validation; without one, return the last step's,
    unscored. A step that has a snapshot needs no checkpoint."""
    last = Validation(end.step, None)
    if end.chosen_step:
        if not has_snapshot(inputs.run, end.chosen_step) and end.chosen_step != end.step:
            load_step(inputs.run, end.chosen_step, state.checkpoint_state())
        validations = validator.validations if validator else []
        chosen = Validation(end.chosen_step, None)
        return next((validation for validation in validations if validation.step == chosen.step), chosen)
    if validator is None or (best := validator.best) is None:
        return last
    if best.step != end.step:
        try:
            load_step(inputs.run, best.step, state.checkpoint_state())
        except UserError as error:
            inputs.say(f"{error.message} The last one is used.")
            load_step(inputs.run, end.step, state.checkpoint_state())
            return next(validation for validation in validator.validations if validation.step == end.step)
    return best


def save_concept(
    inputs: RunInputs, state: TrainState, validator: Validator | None, end: RunEnd, best: Validation, started_at: float
) -> TrainResult:
    """Add the concept to the library, and write the run's report and result."""
    settings, run, base = inputs.settings, inputs.run, inputs.base
    concept = _build_best(inputs, state, end, best)
    state.method.close()
    concept, sheet = add_sample_sheet(concept, base, run, inputs.say) if settings.samples else (concept, None)
    seconds = time.monotonic() - started_at
    scorer_name, validations = (validator.scorer_name, validator.validations) if validator else ("", [])
    ending = _describe_end(end, inputs.preset.steps, best)
    write_report(run, concept, validations, RunSummary(inputs.photo_report, ending, scorer_name, seconds))
    token = Library(settings.library).add(concept)
    result = {"token": str(token), "sha256": concept.identity, "steps": end.step, "best": best.step}
    storage.write_json(run / RESULT_FILE, result | {"seconds": round(seconds, 1)})
    return TrainResult(token, run, sheet, seconds, settings.library)


def _build_best(inputs: RunInputs, state: TrainState, end: RunEnd, best: Validation) -> Concept:
    """Build the concept from what was restored; of a chosen step read its snapshot, if there is one."""
    if end.chosen_step and has_snapshot(inputs.run, best.step):
        path = snapshot_file(inputs.run, best.step)
        return concept_from_bytes(storage.read_bytes(path, MAX_FILE_BYTES), path.name)
    base, method = inputs.base, state.method
    with state.ema.applied():
        check_embeddings(base, method, lower_rate(inputs.lr, inputs.usual_lr))
        return build_concept(inputs.settings, base, method, inputs.preset, best, method.finish(inputs.run))


def _describe_end(end: RunEnd, steps: int, best: Validation) -> str:
    early = f", {end.reason}; {steps} were allowed" if end.reason else ""
    restored = "" if best.step == end.step else f" The concept is as it was after step {best.step}."
    return f"It ended after step {end.step}{early}.{restored}"
