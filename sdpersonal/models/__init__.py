"""`load_base(name)`: the model under a concept, ready to teach and to draw."""

from .loading import BUILT_IN, introduction, load_base
from .schedule import Schedule
from .schedulers import check_scheduler, draws_noise, step_of, step_options
from .stable_diffusion import Conditioning, Framing, Posterior, Spoken, StableDiffusion

__all__ = [
    "BUILT_IN",
    "Conditioning",
    "Framing",
    "Posterior",
    "Schedule",
    "Spoken",
    "StableDiffusion",
    "check_scheduler",
    "draws_noise",
    "introduction",
    "load_base",
    "step_of",
    "step_options",
]
