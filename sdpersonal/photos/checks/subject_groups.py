"""Check whether all photos of a set show the same subject, by which of them are alike, part by part."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from .across_photos import border_histogram
from .clip_checks import ClipFeatures, image_features
from .examined import ExaminedPhoto, measure_all

# Least similarity of two groups, on average, that may show one subject. None of 75 sets (30 kept-out things in many
# places and in one, 15 real ones) is split by it, nor 225 times four photos of them; three photos have less to compare.
MIN_SIMILARITY, MIN_SIMILARITY_OF_THREE = 0.42, 0.36
_STRICTER = 0.04  # in a set that is split: of nine photos of three real things it tells all three in 40 %, not in 16 %
_SAME_BACKGROUND = 0.2  # how much more alike different things are before the same background
MIN_PHOTOS, MAX_PHOTOS = 3, 24  # of more, the time grows with the square: those evenly spaced are compared


def subject_groups(photos: Sequence[ExaminedPhoto], clip: ClipFeatures) -> list[tuple[int, ...]]:
    """Group photos by what they show, the largest group first; fewer than two groups if all show the same.

    Groups are joined while the mean similarity between them is large enough (average linkage): of parts and of CLIP's
    features, less what a common background adds.
    """
    # Imported here, since they take half a second that every command of a model would pay.
    from scipy.cluster.hierarchy import fcluster, linkage  # type: ignore[import-untyped]  # scipy ships no types
    from scipy.spatial.distance import squareform  # type: ignore[import-untyped]

    count = min(len(photos), MAX_PHOTOS)
    if count < MIN_PHOTOS:
        return []
    indices = [i * len(photos) // count for i in range(count)]
    chosen = [photos[i] for i in indices]
    features = image_features(chosen, clip)
    parts = measure_all(
        chosen, (clip, "parts"), lambda squares: clip.subject_parts(list(map(Image.fromarray, squares)))
    )
    borders = np.stack([photo.measure(border_histogram) for photo in chosen])
    overlap = np.minimum(borders[:, None], borders[None]).sum(2)
    distances = 1 - (clip.subject_similarity(parts) + features @ features.T) / 2 + _SAME_BACKGROUND * overlap
    np.fill_diagonal(distances, 0)
    smallest = MIN_SIMILARITY_OF_THREE if count == MIN_PHOTOS else MIN_SIMILARITY
    tree = linkage(squareform((distances + distances.T) / 2, checks=False), "average")
    labels = fcluster(tree, 1 - smallest, "distance")
    if labels.max() > 1:
        labels = fcluster(tree, 1 - smallest - _STRICTER, "distance")
    groups = [tuple(i for i, label in zip(indices, labels, strict=True) if label == value) for value in {*labels}]
    return sorted(groups, key=lambda group: (-len(group), group))
