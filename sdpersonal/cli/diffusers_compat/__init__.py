"""What people's fingers know: the flags of diffusers' training scripts, read as ours."""

from .environment import Surroundings, here
from .translate import Translation, translate

__all__ = ["Surroundings", "Translation", "here", "translate"]
