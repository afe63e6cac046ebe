"""Generate images from prompts that contain concepts.

Requests are independent: the same request gives the same images, whatever ran before.
"""

from .denoise import SamplingConfig, StepConditioning, denoise, noise_from_seed
from .generator import MAX_BATCH_SIZE, Generator, ImageGenerator
from .image import GeneratedImage, GeneratedImages
from .prompt_resolution import ConceptSource, NoConcepts

__all__ = [
    "MAX_BATCH_SIZE",
    "ConceptSource",
    "GeneratedImage",
    "GeneratedImages",
    "Generator",
    "ImageGenerator",
    "NoConcepts",
    "SamplingConfig",
    "StepConditioning",
    "denoise",
    "noise_from_seed",
]
