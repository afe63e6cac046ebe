"""Train concepts on photos, and use them in prompts of Stable Diffusion by their tokens.

import sdpersonal as sp

run = sp.train_dreambooth("photos/", token="<me/duck>", class_noun="toy duck")
sd = sp.load(library="concepts")
images = sd.generate("a photo of <me/duck> on the beach", num_images=4, seed=7)
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .version import __version__ as __version__

if TYPE_CHECKING:
    from .api import Concept as Concept
    from .api import DreamboothSettings as DreamboothSettings
    from .api import GeneratedImage as GeneratedImage
    from .api import GeneratedImages as GeneratedImages
    from .api import GenerateRequest as GenerateRequest
    from .api import Generator as Generator
    from .api import Interrupted as Interrupted
    from .api import Library as Library
    from .api import Pipeline as Pipeline
    from .api import Progress as Progress
    from .api import TextualInversionSettings as TextualInversionSettings
    from .api import Token as Token
    from .api import TrainResult as TrainResult
    from .api import UnknownConcept as UnknownConcept
    from .api import UserError as UserError
    from .api import load as load
    from .api import load_base as load_base
    from .api import load_photos as load_photos
    from .api import train as train
    from .api import train_dreambooth as train_dreambooth
    from .api import train_textual_inversion as train_textual_inversion
    from .api import train_together as train_together

_MODULES = {
    "Concept": "concepts.concept",
    "DreamboothSettings": "config",
    "GenerateRequest": "config",
    "GeneratedImage": "generation",
    "GeneratedImages": "generation",
    "Generator": "generation",
    "Interrupted": "errors",
    "Library": "concepts.library",
    "Pipeline": "api",
    "Progress": "display.progress",
    "TextualInversionSettings": "config",
    "Token": "prompts",
    "TrainResult": "training",
    "UnknownConcept": "errors",
    "UserError": "errors",
    "load": "api",
    "load_base": "models",
    "load_photos": "photos.loading",
    "train": "training",
    "train_dreambooth": "api",
    "train_textual_inversion": "api",
    "train_together": "training",
}
_FORMER_NAMES = {  # kept for one more version
    "InversionSettings": "TextualInversionSettings",
    "PersonalError": "UserError",
    "Request": "GenerateRequest",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> object:
    # Imported lazily, so that `import sdpersonal` and listing concepts do not load torch.
    name = _FORMER_NAMES.get(name, name)
    if name in _MODULES:
        return getattr(import_module(f".{_MODULES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
