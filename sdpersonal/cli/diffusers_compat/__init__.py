"""Translate the flags of diffusers' training scripts to ours."""

from .state import Environment, current_environment
from .translate import Translation, translate

__all__ = ["Environment", "Translation", "current_environment", "translate"]
