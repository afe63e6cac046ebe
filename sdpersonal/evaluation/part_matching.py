"""Match the parts of images: patches of a vision transformer's hidden state, in rows of a square grid."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

_BORDER_MATCHES = 4  # border patches that a patch is compared with: those most like it


def standardize(features: Tensor, sample: Tensor) -> Tensor:
    """Return features (N, parts, d) in units of the deviation of the sample's, normalised to length 1."""
    flat = sample.flatten(0, 1)
    return F.normalize((features - flat.mean(0)) / flat.std(0).clamp(min=1e-6), dim=-1)


def border_similarity(features: Tensor) -> Tensor:
    """Return the mean cosine of each part to the parts at its own image's border that are most like it, (N, parts).

    What stands around a subject reaches the border, and a subject seldom does. features: standardized, (N, parts, d).
    """
    side = round(features.shape[1] ** 0.5)
    border = torch.ones(side, side, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    cosines = torch.stack([image @ image[border.flatten()].T for image in features])
    return cosines.sort(2, descending=True).values[:, :, :_BORDER_MATCHES].mean(2)


def pairwise_similarity(features: np.ndarray) -> np.ndarray:
    """Return how alike the subjects of each two images are, -1 to 1, (N, N): the mean cosine of the parts of each to
    their best matches in the other, weighted by how far they are from the border. features: (N, parts, d)."""
    raw = torch.from_numpy(features)
    parts = standardize(raw, raw)
    weights = (1 - border_similarity(parts)).clamp(min=1e-6) ** 2
    weights = weights / weights.sum(1, keepdim=True)
    flat, (count, places) = parts.flatten(0, 1).T, parts.shape[:2]
    best = (image.matmul(flat).view(places, count, places).amax(2) for image in parts)  # one image at a time: memory
    similarity = torch.stack([weight @ match for match, weight in zip(best, weights, strict=True)])
    return ((similarity + similarity.T) / 2).numpy()
