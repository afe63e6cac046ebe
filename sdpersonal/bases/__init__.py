"""`load_base(name)`: the model under a concept, ready to teach and to draw."""

from .loading import BUILT_IN, introduction, load_base
from .schedule import Schedule
from .sd import Conditioning, Framing, Posterior, StableDiffusion

__all__ = [
    "BUILT_IN",
    "Conditioning",
    "Framing",
    "Posterior",
    "Schedule",
    "StableDiffusion",
    "introduction",
    "load_base",
]
