"""Train concepts on photos, and use them in prompts of Stable Diffusion by their tokens.

from sdpersonal import GenerateRequest, Generator, Library, load_base, train
"""

from importlib import import_module

_HOMES = {
    "Concept": "concepts.concept",
    "DreamboothSettings": "config",
    "GenerateRequest": "config",
    "Generator": "generation",
    "Library": "concepts.library",
    "TextualInversionSettings": "config",
    "Token": "prompts",
    "UserError": "errors",
    "load_base": "models",
    "load_photos": "photos.loading",
    "train": "training",
}
_FORMER_NAMES = {  # kept for one more version
    "InversionSettings": "TextualInversionSettings",
    "PersonalError": "UserError",
    "Request": "GenerateRequest",
}
__all__ = list(_HOMES)
__version__ = "0.1.0"


def __getattr__(name: str):
    # Imported lazily, so that `import sdpersonal` and listing concepts do not load torch.
    name = _FORMER_NAMES.get(name, name)
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
