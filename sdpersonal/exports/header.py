"""What the header of a file in another program's layout says of the concept: ModelSpec, which any program may read."""

from __future__ import annotations

import numpy as np

from .. import files
from ..concept import Concept
from ..modelspec import modelspec
from ..tensorfile import payload
from ..thumbnail import remade


def facts(concept: Concept, tensors: dict[str, np.ndarray], trigger: str) -> dict[str, str]:
    """The header's text for a file that holds these tensors and answers to `trigger`."""
    has_lora = any(name.endswith(".weight") for name in tensors)
    thumbnail = remade(concept.thumbnail) if concept.thumbnail else None
    token = concept.token.unversioned()
    found = modelspec(concept.card, token, has_lora, files.sha256(*payload(tensors)), thumbnail)
    return {"format": "pt"} | found | ({"modelspec.trigger_phrase": trigger} if trigger else {})
