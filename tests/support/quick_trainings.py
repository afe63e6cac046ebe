"""Trainings in this process share the built-in CLIP, which they load anew each, check a photo once, and plot no curves.

That is a third of a short training's time. `tests/training/test_report.py` tests the curves, and
`tests/training/test_resume.py` that a run saves them.
"""

from __future__ import annotations

import functools
import hashlib
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from PIL import Image

from sdpersonal import storage
from sdpersonal.config import generation
from sdpersonal.display.image_grid import encode_png
from sdpersonal.evaluation import Scorer
from sdpersonal.photos.checks import Report, check
from sdpersonal.training import joint, run, sampling, validation

built_in = functools.cache(Scorer)
_DOT = encode_png(Image.new("RGB", (1, 1)))  # in place of the plot
_reports: dict[bytes, Report] = {}


def _check_once(photos, kind, class_noun="", clip=None, base_kind=None) -> Report:
    key = hashlib.sha256(pickle.dumps((photos, kind, class_noun, clip is None, base_kind))).digest()
    if key not in _reports:
        _reports[key] = check(photos, kind, class_noun, clip, base_kind)
    return _reports[key]


@contextmanager
def quick_trainings() -> Iterator[None]:
    """Let trainings in the block share it, with what it computes for nouns and equal photos, and leave out the plot."""
    real = run.scorer_for_base

    def scorer_for_base(kind: str) -> Scorer | None:
        return built_in() if kind == "tiny" else real(kind)

    with (
        mock.patch.object(run, "scorer_for_base", scorer_for_base),
        mock.patch.object(joint, "scorer_for_base", scorer_for_base),
        mock.patch.object(run, "Scorer", built_in),
        mock.patch.object(run, "check", _check_once),
        mock.patch.object(run, "save_curves", lambda path, *_: storage.write_bytes(path, _DOT)),
    ):
        yield


def draw_rough_images() -> None:
    """Let this process denoise in two steps, and draw one image for each prompt of a sheet."""
    validation.DENOISING_STEPS, generation.DEFAULT_STEPS, sampling._SEEDS = 2, 2, 1
