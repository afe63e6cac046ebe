"""Photos to train on: loaded, decoded, cropped and checked. SAMPLES has two sets of five to try with."""

from pathlib import Path

SAMPLES = Path(__file__).parent / "samples"
