"""`load_base(name)`: the model under a concept, ready to teach and to draw."""

from .loading import BUILT_IN, introduction, load_base
from .samplers import SamplerKind
from .schedule import Schedule
from .sd import Conditioning, Framing, Posterior, Spoken, StableDiffusion

__all__ = [
    "BUILT_IN",
    "Conditioning",
    "Framing",
    "Posterior",
    "SamplerKind",
    "Schedule",
    "Spoken",
    "StableDiffusion",
    "introduction",
    "load_base",
]
