"""What the server of `ranks` imports before it forks: all that a training loads, and the built-in CLIP.

A child would import and load it anew, which is more than half the time of a short training.
"""

from __future__ import annotations

import gc

import jinja2  # noqa: F401
import torch
import tyro  # noqa: F401

from sdpersonal.models import load_base
from sdpersonal.training import joint, run  # noqa: F401

from .quick_trainings import built_in

torch.set_num_threads(1)  # threads of PyTorch do not survive a fork
load_base("tiny", "cpu")  # imports the classes of the model's parts
built_in()
gc.collect()
gc.freeze()  # no child looks through it, or copies its pages to do so
