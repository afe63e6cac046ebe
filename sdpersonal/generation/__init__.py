"""Generate images from prompts that contain concepts.

Requests are independent: the same request gives the same images, whatever ran before.
"""

from .denoise import SamplingConfig, denoise, noise_from_seed
from .generator import MAX_BATCH_SIZE, Generator
from .image import GeneratedImage
from .prompt_resolution import ConceptSource, NoConcepts

__all__ = [
    "MAX_BATCH_SIZE",
    "ConceptSource",
    "GeneratedImage",
    "Generator",
    "NoConcepts",
    "SamplingConfig",
    "denoise",
    "noise_from_seed",
]
