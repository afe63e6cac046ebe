"""Load Stable Diffusion models with `load_base(name)`, ready to train concepts on and to generate images with."""

from . import deferred_imports  # noqa: F401  # first: the modules below import diffusers
from .backends import to_device
from .loading import BUILT_IN, describe_base, load_base
from .schedulers import NoiseSchedule, SchedulerAdapter, check_scheduler, sampling_progress
from .stable_diffusion import Conditioning, LatentDistribution, SizeConditioning, StableDiffusion
from .text_encoder import Segment, Vectors

__all__ = [
    "BUILT_IN",
    "Conditioning",
    "LatentDistribution",
    "NoiseSchedule",
    "SchedulerAdapter",
    "Segment",
    "SizeConditioning",
    "StableDiffusion",
    "Vectors",
    "check_scheduler",
    "describe_base",
    "load_base",
    "sampling_progress",
    "to_device",
]
