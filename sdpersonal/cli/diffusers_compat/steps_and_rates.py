"""Steps, batch sizes and learning rates: where diffusers multiplies a value, do the same here, with a note."""

from __future__ import annotations

import math

from ...errors import UserError
from ...prompts import printable
from .state import TranslationState

DIFFUSERS_CLASS_IMAGES = 100
_DEFAULT_BATCH = 4


def set_learning_rate(reading: TranslationState) -> None:
    """Set `--lr` from `--learning_rate`, times the photos per step with `--scale_lr`."""
    typed, scaled = reading.diffusers_flags.get("learning_rate"), "scale_lr" in reading.diffusers_flags
    rate = parse_number(typed)
    if scaled and rate is not None:
        accumulate, batch, processes = (
            int_flag(reading, "accumulate", 1),
            _resolve_batch(reading),
            reading.environment.processes,
        )
        reading.set_flag("lr", f"{rate * accumulate * batch * processes:g}", by="learning_rate")
        reading.note(
            f"--scale_lr: {rate:g} x {accumulate} accumulated x {batch} at once x {processes} processes is "
            f"--lr {reading.flags['lr']}."
        )
    elif typed is not None:
        reading.set_flag("lr", typed, by="learning_rate")
    elif scaled:
        reading.note("--scale_lr: has no effect without --learning_rate; our rates are for whole steps.")


def set_steps(reading: TranslationState) -> None:
    """Set `--steps` from `--max_train_steps`, else from the epochs, else leave our default."""
    epochs = reading.diffusers_flags.get("num_train_epochs")
    if "steps" in reading.flags:
        return
    if not reading.has_flag("class"):
        if epochs:
            reading.note("--num_train_epochs: textual inversion counts steps only, in diffusers too.")
        if reading.is_diffusers:
            reading.note("steps: ours, since --max_train_steps is not given (diffusers takes 5000, mostly wasted).")
    elif epochs and reading.flags.get("photos"):
        _set_steps_from_epochs(reading, epochs)
    elif reading.is_diffusers:
        reading.note("steps: ours, since --max_train_steps is not given (diffusers looks once at each photo).")
    if "repeats" in reading.diffusers_flags and not epochs:
        reading.note("--repeats: counts with --num_train_epochs only.")


def _set_steps_from_epochs(reading: TranslationState, asked: str) -> None:
    """Count as diffusers does: an epoch sees every photo, and every class image, once."""
    epochs = parse_number(asked)
    if epochs is None or not epochs.is_integer() or epochs < 1:
        raise UserError(f"--num_train_epochs must be a whole number above 0, got {printable(asked, 40)}.")
    class_images = reading.environment.count_photos(reading.flags["photos"] or "") * int(
        parse_number(reading.diffusers_flags.get("repeats")) or 1
    )
    if "with_prior_preservation" in reading.diffusers_flags:
        class_images = max(class_images, int_flag(reading, "class_pictures", DIFFUSERS_CLASS_IMAGES))
    accumulate, batch, processes = (
        int_flag(reading, "accumulate", 1),
        _resolve_batch(reading),
        reading.environment.processes,
    )
    count = int(epochs) * math.ceil(math.ceil(math.ceil(class_images / batch) / processes) / accumulate)
    reading.set_flag("steps", str(count), by="num_train_epochs")
    reading.note(f"--num_train_epochs: {int(epochs)} of {class_images} pictures, {batch} at once, are --steps {count}.")


def _resolve_batch(reading: TranslationState) -> int:
    """Return the batch size; set it if it was not given, since other values are computed from it."""
    reading.set_default("batch", str(_DEFAULT_BATCH))
    return int_flag(reading, "batch", _DEFAULT_BATCH)


def int_flag(reading: TranslationState, name: str, otherwise: int) -> int:
    """Return one of our flags as a count."""
    value = parse_number(reading.flags.get(name))
    return int(value) if value is not None and value.is_integer() and value >= 1 else otherwise


def parse_number(text: str | None) -> float | None:
    """Return a finite number, or None; the settings class reports what is wrong with the text."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
