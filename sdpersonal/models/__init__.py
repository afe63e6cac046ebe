"""Load Stable Diffusion models with `load_base(name)`, ready to train concepts on and to generate images with."""

from .loading import BUILT_IN, describe_base, load_base
from .schedule import NoiseSchedule
from .schedulers import check_scheduler, draws_noise, step_of, step_options
from .stable_diffusion import Conditioning, LatentDistribution, Segment, SizeConditioning, StableDiffusion

__all__ = [
    "BUILT_IN",
    "Conditioning",
    "LatentDistribution",
    "NoiseSchedule",
    "Segment",
    "SizeConditioning",
    "StableDiffusion",
    "check_scheduler",
    "describe_base",
    "draws_noise",
    "load_base",
    "step_of",
    "step_options",
]
