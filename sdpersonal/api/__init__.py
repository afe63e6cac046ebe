"""Offer the Python API, `import sdpersonal as sp`: `load`, `train_dreambooth`, `train_textual_inversion`.

It maps keyword arguments to the settings classes of `config`, and calls what the command line and the app call.
Importing it loads no torch.
"""

from typing import TYPE_CHECKING

from .pipeline import Pipeline, load
from .trainers import train_dreambooth, train_textual_inversion

if TYPE_CHECKING:  # the other public names, for `sdpersonal/__init__.py`, which gives them lazily
    from ..concepts.concept import Concept as Concept
    from ..concepts.library import Library as Library
    from ..config import DreamboothSettings as DreamboothSettings
    from ..config import GenerateRequest as GenerateRequest
    from ..config import TextualInversionSettings as TextualInversionSettings
    from ..display.progress import Progress as Progress
    from ..errors import Interrupted as Interrupted
    from ..errors import UnknownConcept as UnknownConcept
    from ..errors import UserError as UserError
    from ..generation import GeneratedImage as GeneratedImage
    from ..generation import GeneratedImages as GeneratedImages
    from ..generation import Generator as Generator
    from ..models import load_base as load_base
    from ..photos.loading import load_photos as load_photos
    from ..prompts import Token as Token
    from ..training import TrainResult as TrainResult
    from ..training import train as train
    from ..training import train_together as train_together

__all__ = ["Pipeline", "load", "train_dreambooth", "train_textual_inversion"]
