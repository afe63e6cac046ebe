"""The concept really learns, judged by a CLIP that had no part in the training, on photos that were held out of it.

Figures are printed (pytest -s): likeness to held-out photos of the subject, before and after, beside its floor (other
subjects) and its ceiling (the training photos).
"""

from pathlib import Path

import pytest
from PIL import Image

from sdpersonal.concepts.library import Library
from sdpersonal.config import DreamboothSettings, GenerateRequest, TextualInversionSettings
from sdpersonal.evaluation import Scorer
from sdpersonal.generation import Generator
from sdpersonal.training import train

DATA = Path(__file__).parents[1] / "data" / "likeness"
SUBJECT = "teddy-bear"
PLACES = ("on the beach", "in the snow", "on a blue background", "on a yellow background")


def photos(folder):
    return [Image.open(path) for path in sorted(folder.glob("*.jpg"))]


@pytest.fixture(scope="module")
def judge():
    return Scorer()


@pytest.fixture(scope="module")
def held_out():
    return {folder.name: photos(folder) for folder in sorted(DATA.iterdir())}


@pytest.fixture(scope="module")
def ceiling(judge, held_out, root):
    return judge.likeness(photos(root / "examples" / "photos" / SUBJECT), held_out[SUBJECT])


def draw(base, library, what):
    """Two pictures in each place; the places in which they were asked for, in order."""
    images, places = [], []
    for number, place in enumerate(PLACES):
        request = GenerateRequest(prompt=f"{what} {place}", num_images=2, steps=12)
        images += [image.image for image in Generator(base, library).generate(request)]
        places += [number] * request.num_images
    return images, places


def test_the_scorer_distinguishes_the_subject_from_others(judge, held_out, ceiling):
    others = [judge.likeness(held_out[SUBJECT], held_out[name]) for name in held_out if name != SUBJECT]
    assert ceiling > max(others) + 0.05


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("method", ["dreambooth", pytest.param("textual inversion", marks=pytest.mark.thorough)])
def test_images_of_the_trained_token_are_like_the_subject(tiny, judge, held_out, ceiling, tmp_path, root, method):
    common = {"photos": root / "examples" / "photos" / SUBJECT, "token": "<me/teddy>", "base": "tiny", "samples": False}
    common |= {"library": tmp_path / "concepts", "run": tmp_path / "run"}
    if method == "dreambooth":
        train(DreamboothSettings(**common, class_noun="bear", steps=96), log=lambda line: None)
    else:
        train(TextualInversionSettings(**common, init="bear"), log=lambda line: None)
    library = Library(tmp_path / "concepts")
    before, _ = draw(tiny, library, "a bear")
    after, places = draw(tiny, library, "<me/teddy>")
    likeness = {name: judge.likeness(after, original) for name, original in held_out.items()}
    was = judge.likeness(before, held_out[SUBJECT])
    recorded = judge.best_text(after, [f"a bear {place}" for place in PLACES])
    right = sum(a == b for a, b in zip(recorded, places, strict=True))
    figures = {"initial words": was, "token": likeness[SUBJECT], "training photos": ceiling, **likeness}
    print(f"\n{method}:", {name: round(value, 3) for name, value in figures.items()}, f"places {right}/{len(places)}")
    assert likeness[SUBJECT] > was + (0.1 if method == "dreambooth" else 0.05)
    assert right >= (0.9 if method == "dreambooth" else 0.6) * len(places)
    if method == "dreambooth":
        assert likeness[SUBJECT] > 0.6 * ceiling
    assert likeness[SUBJECT] == max(likeness.values())
