"""Check with CLIP whether a set has two subjects, and whether a class noun is plainly wrong."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import combinations
from typing import Protocol

import numpy as np
from PIL import Image

from ..smart_crop import distance_from_border
from .across_photos import are_photographs, border_histogram, change_of_light, colour_histogram
from .examined import ExaminedPhoto, measure_all

# Least silhouette. None of 15 full real sets has more than 0.37, but four or five photos of a set have up to 0.49.
MIN_SILHOUETTE, MIN_SILHOUETTE_OF_FEW = 0.4, 0.52
MIN_PHOTOS, FEW_PHOTOS = 4, 5  # photos in a set; two of each subject
_MIDDLE = 0.7  # of the side
_SIDE = 48
_BINS = (6, 8, 8)
_ROUNDS = 5
_SEEDS = 16  # photos from which splits grow, spaced evenly in a large set

# The noun that fits best must do so in most photos. The given one is wrong if the former's mean probability and the
# difference of their logits reach one of these pairs. None of 341 sets of drawn things with a suitable noun does, of
# which CLIP has not seen 165.
_AGREEING = 0.8
_WRONG = ((0.5, 17.0), (0.75, 10.0))
_FEWEST = 4
_SENTENCE = "a picture of {} {}"

# Nouns to compare with: the objects that the built-in model knows. Other class nouns are not checked.
NOUNS = tuple(
    " ".join(noun.split())
    for noun in """
    airplane, alien, ambulance, anchor, angry face, apple, balloon, banana, basketball, bat, bear, bee, bell,
    bicycle, birthday cake, bomb, books, bread, bucket, bus, butterfly, cactus, camel, camera, car, carrot, castle,
    cat, cheese, cherries, chick, chicken, christmas tree, cloud, clover, cookie, corn, cow, crab, crocodile,
    croissant, crown, crying face, crystal ball, cup of coffee, deer, dice, dinosaur, dog, dolphin, dragon, dress,
    drum, duck, eagle, eggplant, elephant, exploding head, face with heart eyes, face with star eyes, face with
    sunglasses, fire, fish, fries, frog, gem, ghost, gift, glass of wine, gorilla, grapes, guitar, hamburger,
    hamster, handbag, headphones, heart, hippo, honey pot, horse, hot dog, hot pepper, hourglass, house, ice cream,
    jeans, jellyfish, kangaroo, key, koala, ladybug, laptop, laughing face, lemon, light bulb, lion, llama,
    lollipop, magnet, maple leaf, microphone, monkey, moon, motorcycle, mouse, mushroom, padlock, palm tree, panda,
    parrot, partying face, peach, pear, pencil, penguin, pig, pine tree, pizza, planet, polar bear, police car,
    poodle, poop, popcorn, potted plant, rabbit, raccoon, rainbow, rhino, rocket, rose, sailboat, scissors, shark,
    skateboard, skull, sleeping face, sloth, smiley, snail, snake, sneaker, snowman, soccer ball, sofa, spider,
    star, strawberry, sun, sunflower, sunglasses, sushi, swan, t-shirt, taxi, telephone, television, tent, thinking
    face, tiger, toilet, tomato, trophy, tropical fish, truck, trumpet, tulip, turtle, ufo, umbrella, unicorn,
    volcano, watermelon, whale, winking face, wolf, zebra
    """.replace("\n", " ").split(",")
)


class ClipFeatures(Protocol):
    """Image and text features: float rows of length 1, (N, d), with the same d; features of the parts of images,
    (N, parts, d); and from these how alike the subjects of each two images are, (N, N).

    logit_scale, knows_photographs: see `Scorer`.
    """

    @property
    def logit_scale(self) -> float: ...

    @property
    def knows_photographs(self) -> bool: ...

    def __hash__(self) -> int: ...

    def image_features(self, images: Sequence[Image.Image]) -> np.ndarray: ...

    def text_features(self, texts: Sequence[str]) -> np.ndarray: ...

    def subject_parts(self, images: Sequence[Image.Image]) -> np.ndarray: ...

    def subject_similarity(self, parts: np.ndarray) -> np.ndarray: ...


def image_features(photos: Sequence[ExaminedPhoto], clip: ClipFeatures) -> np.ndarray:
    """Return the features of whole squares, (N, d)."""
    return measure_all(
        photos, (clip, "whole"), lambda squares: clip.image_features(list(map(Image.fromarray, squares)))
    )


def two_subjects(photos: Sequence[ExaminedPhoto], clip: ClipFeatures) -> tuple[int, ...]:
    """Return the smaller of two groups of photos that seem to show different subjects; none if all show the same.

    The photos are split into two groups, each as similar as possible by CLIP features of the middle and by the colours
    that differ from the border: the silhouette (Rousseeuw 1987) measures how clear the split is. One subject in two
    places splits as well; but then the backgrounds split the same way, and half of that silhouette is subtracted.
    """
    if len(photos) < MIN_PHOTOS:
        return ()
    features = measure_all(
        photos, (clip, "middle"), lambda squares: clip.image_features(list(map(_crop_middle, squares)))
    )
    colours = np.sqrt(np.stack([photo.measure(_subject_histogram) for photo in photos]))
    behind = np.sqrt(np.stack([photo.measure(border_histogram) for photo in photos]))
    distances = 1 - (features @ features.T + colours @ colours.T) / 2
    second = _cluster(distances)
    if second is None:
        return ()
    by_background = max(0.0, silhouette(1 - behind @ behind.T, second))
    if silhouette(distances, second) - by_background / 2 < (
        MIN_SILHOUETTE_OF_FEW if len(photos) <= FEW_PHOTOS else MIN_SILHOUETTE
    ):
        return ()
    smaller = second if second.sum() * 2 <= len(second) else ~second
    return tuple(np.nonzero(smaller)[0].tolist())


def silhouette(distances: np.ndarray, second: np.ndarray) -> float:
    """Return how much closer photos are to their own group than to the other, -1 to 1. distances: (n, n);
    second: which photos are in the second group, (n,)."""
    scores = []
    for i, label in enumerate(second):
        same_group = second == label
        same_group[i] = False
        near, far = distances[i, same_group].mean(), distances[i, second != label].mean()
        scores.append((far - near) / max(near, far, 1e-6))
    return float(np.mean(scores))


def _cluster(distances: np.ndarray) -> np.ndarray | None:
    """Return the best split grown from a pair of photos, with at least two photos in each group."""
    best, best_split = -1.0, None
    seeds = sorted({round(place) for place in np.linspace(0, len(distances) - 1, min(_SEEDS, len(distances)))})
    for a, b in combinations(seeds, 2):
        second = distances[:, b] < distances[:, a]
        for _ in range(_ROUNDS):
            if min(second.sum(), (~second).sum()) < 2:
                break
            second = distances[:, second].mean(1) < distances[:, ~second].mean(1)
        if min(second.sum(), (~second).sum()) >= 2 and (score := silhouette(distances, second)) > best:
            best, best_split = score, second
    return best_split


def _crop_middle(square: np.ndarray) -> Image.Image:
    start = round(len(square) * (1 - _MIDDLE) / 2)
    return Image.fromarray(square[start : len(square) - start, start : len(square) - start])


def _subject_histogram(square: np.ndarray) -> np.ndarray:
    """Return a histogram of the colours that differ from the border, weighted towards the middle; sum 1."""
    small = Image.fromarray(square).resize((_SIDE, _SIDE), Image.Resampling.BOX).convert("YCbCr")
    y, x = np.mgrid[-1 : 1 : _SIDE * 1j, -1 : 1 : _SIDE * 1j]
    colours = np.array(small, np.float32)
    weights = distance_from_border(colours) * np.exp(-2 * (x**2 + y**2))
    colours = colours.reshape(-1, 3)
    colours[:, 1:] = np.clip((colours[:, 1:] - 128) * 128 / 90 + 128, 0, 255)  # strong colours are rare: finer bins
    return colour_histogram(colours, weights.ravel(), _BINS)


def wrong_class(photos: Sequence[ExaminedPhoto], class_noun: str, clip: ClipFeatures) -> bool:
    """Return whether `class_noun` plainly does not fit the photos; False also if that is uncertain.

    CLIP classifies each photo among many nouns (zero-shot, Radford et al. 2021). The built-in CLIP is small and wrong
    about many things, so most photos must agree on one noun, and the given one must be far behind it. What it says of
    photographs means nothing.
    """
    noun = _known_noun(class_noun)
    if noun is None or len(photos) < _FEWEST:
        return False
    if not clip.knows_photographs and are_photographs([photo.measure(change_of_light) for photo in photos]):
        return False
    logits = clip.logit_scale * (image_features(photos, clip) @ _noun_features(clip).T)  # (photos, nouns)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    best = logits.mean(0).argmax()
    if (logits.argmax(1) == best).mean() < _AGREEING:
        return False
    probability = (exponentials[:, best] / exponentials.sum(1)).mean()
    margin = (logits[:, best] - logits[:, NOUNS.index(noun)]).mean()
    return any(probability >= min_probability and margin >= min_margin for min_probability, min_margin in _WRONG)


@functools.lru_cache(maxsize=1)
def _noun_features(clip: ClipFeatures) -> np.ndarray:
    """Return the features of a sentence with each noun, (nouns, d)."""
    return clip.text_features([_SENTENCE.format("an" if noun[0] in "aeiou" else "a", noun) for noun in NOUNS])


def _known_noun(class_noun: str) -> str | None:
    """Return the longest suffix that is a known noun: "polar bear" for "fluffy polar bear"."""
    words = class_noun.lower().split()
    return next((end for i in range(len(words)) if (end := " ".join(words[i:])) in NOUNS), None)
