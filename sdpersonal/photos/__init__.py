"""Load, decode, crop and check photos to train on. SAMPLES has two sets of five to try with."""

from pathlib import Path

SAMPLES = Path(__file__).parent / "samples"
