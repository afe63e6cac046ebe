"""Write the header of a file in another program's layout: ModelSpec, which any program may read."""

from __future__ import annotations

import numpy as np

from ... import storage
from ..concept import Concept
from ..importers.origin import ORIGIN, origin
from ..modelspec import modelspec_metadata
from ..strict_safetensors import tensor_bytes
from ..thumbnail import reencode_thumbnail


def modelspec_header(part: Concept, tensors: dict[str, np.ndarray], trigger: str) -> dict[str, str]:
    """Build the header of a file that answers to `trigger` and holds these tensors.

    part: the vectors or the LoRA that the tensors belong to, of both encoders where each has a file.
    """
    has_lora = part.lora is not None
    thumbnail = reencode_thumbnail(part.thumbnail) if part.thumbnail else None
    metadata = modelspec_metadata(
        part.card, part.token.unversioned(), has_lora, storage.sha256(*tensor_bytes(tensors)), thumbnail
    )
    metadata |= {"format": "pt", ORIGIN: origin(part)}
    return metadata | ({"modelspec.trigger_phrase": trigger} if trigger else {})
