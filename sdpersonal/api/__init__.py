"""The Python API, as `import sdpersonal as sp` offers it: `load`, `train_dreambooth`, `train_textual_inversion`.

It maps keyword arguments to the settings classes of `config`, and calls what the command line and the app call.
Importing it loads no torch.
"""

from .pipeline import Pipeline, load
from .trainers import train_dreambooth, train_textual_inversion

__all__ = ["Pipeline", "load", "train_dreambooth", "train_textual_inversion"]
