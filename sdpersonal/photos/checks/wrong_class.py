"""Detect a class noun that is plainly wrong.

CLIP ranks the noun among many others for each photo. The built-in CLIP is small and knows only drawn objects, so it is
trusted only if it recognizes the subject: it must rank nouns alike for photos that are unlike each other. On real
photos it does not, and then there is no finding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from .clip_features import ClipFeatures

_WRONG = -1.0  # standard deviations below the mean of all nouns: for a fox, wolf lies above that and airplane below
# Least correlation between two photos' rankings, and by how much the median exceeds that of the photos' own cosines:
# equal rankings of one repeated image prove nothing. No four real photos of a set reach both.
_NAMED_ALIKE, _MORE_THAN_THEY_LOOK = 0.85, 0.2
_FEWEST = 4
_SENTENCE = "a picture of {} {}"

# Nouns to compare with: the objects that the built-in model knows. Other class nouns are not checked.
NOUNS = tuple(
    noun.strip()
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


def wrong_class(squares: Sequence[np.ndarray], class_noun: str, clip: ClipFeatures) -> bool:
    """Return whether `class_noun` plainly does not fit the photos; False also if that is uncertain.
    squares: uint8 (S, S, 3) each."""
    noun = _known_noun(class_noun)
    if noun is None or len(squares) < _FEWEST:
        return False
    seen = clip.image_features([Image.fromarray(square) for square in squares])
    fits = seen @ clip.text_features([_SENTENCE.format("an" if noun[0] in "aeiou" else "a", noun) for noun in NOUNS]).T
    if not _can_tell(seen, fits):
        return False
    mean = fits.mean(0)
    return bool(mean[NOUNS.index(noun)] < mean.mean() + _WRONG * mean.std())


def _known_noun(class_noun: str) -> str | None:
    """Return the longest suffix that is a known noun: "polar bear" for "fluffy polar bear"."""
    words = class_noun.lower().split()
    return next((end for i in range(len(words)) if (end := " ".join(words[i:])) in NOUNS), None)


def _can_tell(seen: np.ndarray, fits: np.ndarray) -> bool:
    pairs = np.triu_indices(len(seen), 1)
    named_alike, look_alike = np.corrcoef(fits)[pairs], (seen @ seen.T)[pairs]
    more = np.median(named_alike) - np.median(look_alike)
    return bool(named_alike.min() > _NAMED_ALIKE and more > _MORE_THAN_THEY_LOOK)
