"""One built-in CLIP for all trainings in this process, which load it anew each: a tenth of a short training's time."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from sdpersonal.evaluation import Scorer
from sdpersonal.training import joint, run

_built_in = functools.cache(Scorer)


@contextmanager
def shared_scorer() -> Iterator[None]:
    """Let trainings in the block share it. What it computes for nouns is cached with it."""
    real = run.scorer_for_base

    def scorer_for_base(kind: str) -> Scorer | None:
        return _built_in() if kind == "tiny" else real(kind)

    with (
        mock.patch.object(run, "scorer_for_base", scorer_for_base),
        mock.patch.object(joint, "scorer_for_base", scorer_for_base),
        mock.patch.object(run, "Scorer", _built_in),
    ):
        yield
