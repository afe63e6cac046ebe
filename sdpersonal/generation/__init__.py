"""Pictures from prompts with concepts in them. A request leaves no trace: the same one gives the same pictures,
whatever ran before."""

from .denoise import Sampling, denoise
from .generator import AT_ONCE, Generator
from .noise import noise_of
from .picture import Picture
from .prompt_resolution import Concepts, NoConcepts

__all__ = ["AT_ONCE", "Concepts", "Generator", "NoConcepts", "Picture", "Sampling", "denoise", "noise_of"]
