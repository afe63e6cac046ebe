"""Settings of training and generation. `base` validates them, with the same messages at every entry point."""

from .base import (
    CONCEPT_KINDS,
    FORMER_FIELDS,
    FORMER_PRIORS,
    SEEDS,
    ConceptKind,
    CropMode,
    MayBeEmpty,
    Number,
    Seed,
    SettingsBase,
    TokenText,
    WholeNumber,
    flag_of,
)
from .generation import MAX_CLIP_SKIP, MAX_IMAGES, MAX_WORK, GenerateRequest, PromptText, check_total_work
from .training import IDENTIFIER, DreamboothSettings, TextualInversionSettings, TrainingSettings

__all__ = [
    "CONCEPT_KINDS",
    "FORMER_FIELDS",
    "FORMER_PRIORS",
    "IDENTIFIER",
    "MAX_CLIP_SKIP",
    "MAX_IMAGES",
    "MAX_WORK",
    "SEEDS",
    "ConceptKind",
    "CropMode",
    "DreamboothSettings",
    "GenerateRequest",
    "MayBeEmpty",
    "Number",
    "PromptText",
    "Seed",
    "SettingsBase",
    "TextualInversionSettings",
    "TokenText",
    "TrainingSettings",
    "WholeNumber",
    "check_total_work",
    "flag_of",
]
