"""Load Stable Diffusion models with `load_base(name)`, ready to train concepts on and to generate images with."""

from .deferred_imports import RARELY_USED, deferred_imports

with deferred_imports(*RARELY_USED):
    from .backends import to_device
    from .loading import BUILT_IN, describe_base, load_base
    from .schedulers import NoiseSchedule, SchedulerAdapter, check_scheduler, import_all_schedulers, sampling_progress
    from .stable_diffusion import Conditioning, LatentDistribution, SizeConditioning, StableDiffusion
    from .text_encoder import Segment, Vectors

    import_all_schedulers()

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
