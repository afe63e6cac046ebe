"""Photos of one thing in, a concept with a word of its own out, written in prompts like any other word.

from sdpersonal import Library, Generator, Request, load_base, train
"""

from importlib import import_module

_HOMES = {
    "Concept": "concepts.concept",
    "DreamboothSettings": "config",
    "Generator": "generation",
    "InversionSettings": "config",
    "Library": "concepts.library",
    "PersonalError": "errors",
    "Request": "config",
    "Token": "prompts",
    "load_base": "models",
    "load_photos": "photos.loading",
    "train": "training",
}
__all__ = list(_HOMES)
__version__ = "0.1.0"


def __getattr__(name: str):
    # Late, so that `import sdpersonal` and a listing of concepts cost no torch.
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
