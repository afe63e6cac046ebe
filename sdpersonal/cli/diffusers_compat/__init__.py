"""What people's fingers know: the flags of diffusers' training scripts, read as ours."""

from .environment import Environment, current_environment
from .translate import Translation, translate

__all__ = ["Environment", "Translation", "current_environment", "translate"]
