"""Translate steps, batch sizes and learning rates: where diffusers multiplies a value, do the same, with a note."""

from __future__ import annotations

import math

from ...errors import UserError, printable
from .state import TranslationState

DIFFUSERS_CLASS_IMAGES = 100
_DEFAULT_BATCH = 4


def set_learning_rate(state: TranslationState) -> None:
    """Set `--lr` from `--learning_rate`, times the photos per step with `--scale_lr`."""
    typed, scaled = state.diffusers_flags.get("learning_rate"), "scale_lr" in state.diffusers_flags
    rate = parse_number(typed)
    if scaled and rate is not None:
        accumulate, batch, processes = (
            int_flag(state, "accumulate", 1),
            _resolve_batch(state),
            state.environment.processes,
        )
        state.set_flag("lr", f"{rate * accumulate * batch * processes:g}", by="learning_rate")
        state.note(
            f"--scale_lr: {rate:g} x {accumulate} accumulated x {batch} per batch x {processes} processes is "
            f"--lr {state.flags['lr']}."
        )
    elif typed is not None:
        state.set_flag("lr", typed, by="learning_rate")
    elif scaled:
        state.note("--scale_lr: has no effect without --learning_rate; our learning rates are for whole steps.")


def set_steps(state: TranslationState) -> None:
    """Set `--steps` from `--max_train_steps`, else from the epochs, else leave our default."""
    epochs = state.diffusers_flags.get("num_train_epochs")
    if "steps" in state.flags:
        return
    if not state.has_flag("class"):
        if epochs:
            state.note("--num_train_epochs: textual inversion counts steps only, in diffusers too.")
        if state.is_diffusers:
            state.note("steps: our default, since --max_train_steps is not given (diffusers' 5000 are mostly wasted).")
    elif epochs and state.flags.get("photos"):
        _set_steps_from_epochs(state, epochs)
    elif state.is_diffusers:
        state.note("steps: our default, since --max_train_steps is not given (diffusers trains one epoch).")
    if "repeats" in state.diffusers_flags and not epochs:
        state.note("--repeats: counts with --num_train_epochs only.")


def _set_steps_from_epochs(state: TranslationState, text: str) -> None:
    """Count as diffusers does: an epoch sees every photo, and every class image, once."""
    epochs = parse_number(text)
    if epochs is None or not epochs.is_integer() or epochs < 1:
        raise UserError(f"--num_train_epochs must be a whole number above 0, got {printable(text, 40)}.")
    images = state.environment.count_photos(state.flags["photos"] or "") * int(
        parse_number(state.diffusers_flags.get("repeats")) or 1
    )
    if "with_prior_preservation" in state.diffusers_flags:
        images = max(images, int_flag(state, "num_class_images", DIFFUSERS_CLASS_IMAGES))
    accumulate, batch, processes = (
        int_flag(state, "accumulate", 1),
        _resolve_batch(state),
        state.environment.processes,
    )
    count = int(epochs) * math.ceil(math.ceil(math.ceil(images / batch) / processes) / accumulate)
    state.set_flag("steps", str(count), by="num_train_epochs")
    state.note(f"--num_train_epochs: {int(epochs)} of {images} images, batch size {batch}, are --steps {count}.")


def _resolve_batch(state: TranslationState) -> int:
    """Return the batch size; set it if it was not given, since other values are computed from it."""
    state.set_default("batch", str(_DEFAULT_BATCH))
    return int_flag(state, "batch", _DEFAULT_BATCH)


def int_flag(state: TranslationState, name: str, otherwise: int) -> int:
    """Return one of our flags as a count."""
    value = parse_number(state.flags.get(name))
    return int(value) if value is not None and value.is_integer() and value >= 1 else otherwise


def parse_number(text: str | None) -> float | None:
    """Return a finite number, or None; the settings class reports what is wrong with the text."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
