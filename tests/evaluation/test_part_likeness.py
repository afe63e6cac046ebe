"""Likeness by parts, held to how people see 78 trials of 15 concepts, and to numpy.

tests/data/trials has photos, the class noun's images and validations of runs, as strips of 128-pixel images, and in
labels.json what is without doubt for who looks at them: which is more like the photos, and what is like them or not.
"""

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from sdpersonal.evaluation import ConceptEvaluation, Scorer, explain_scores
from sdpersonal.evaluation.concept_score import LIKE, SOME_LIKENESS
from sdpersonal.evaluation.part_likeness import StyleLikeness, SubjectLikeness
from sdpersonal.models.loading import built_in_folder

TRIALS = Path(__file__).parents[1] / "data" / "trials"
LABELS = json.loads((TRIALS / "labels.json").read_text())
SUBJECTS = [name for name, label in LABELS.items() if label["kind"] == "object"]
SIDE = 128


def strip(concept, name):
    image = Image.open(TRIALS / concept / f"{name}.jpg").convert("RGB")
    return [image.crop((x, 0, x + SIDE, SIDE)) for x in range(0, image.width, SIDE)]


@lru_cache(None)
def scorer():
    return Scorer()


@lru_cache(None)
def comparison(concept, photos="photos"):
    cls = StyleLikeness if LABELS[concept]["kind"] == "style" else SubjectLikeness
    return cls(scorer(), strip(concept, photos), strip(concept, "noun"))


@lru_cache(None)
def likeness(concept, trial, photos="photos"):
    return comparison(concept, photos).likeness(strip(concept, trial))


def test_likeness_orders_images_like_human_labels():
    pairs = [(concept, *pair) for concept, label in LABELS.items() for pair in label["better"]]
    wrong = [(c, worse, better) for c, worse, better in pairs if likeness(c, worse) >= likeness(c, better)]
    print(f"\n{len(pairs) - len(wrong)} of {len(pairs)} pairs; not", wrong)
    assert len(pairs) > 100 and len(wrong) <= 0.1 * len(pairs)


def is_praised(concept, trial):
    """A style is also to be recognisable: whether CLIP knows the prompts' things in it."""
    if likeness(concept, trial) < LIKE or LABELS[concept]["kind"] == "object":
        return likeness(concept, trial) >= LIKE
    style = ConceptEvaluation(scorer(), "style", "drawing", strip(concept, "photos"), strip(concept, "noun"))
    message = explain_scores(style.score(strip(concept, trial)), "drawing", "style")
    return message[-1].startswith("The style is like the photos")


def test_positive_explanations_agree_with_human_labels():
    seen = {like: [(c, t) for c, label in LABELS.items() for t in label[like]] for like in ("like", "unlike")}
    praised = {like: [(c, t) for c, t in trials if is_praised(c, t)] for like, trials in seen.items()}
    print("\npraised, and unlike:", praised["unlike"], "of", len(seen["unlike"]))
    print("like, and not praised:", sorted({*seen["like"]} - {*praised["like"]}))
    assert len(praised["like"]) >= 0.85 * (len(praised["like"]) + len(praised["unlike"]))
    assert len(praised["like"]) >= 0.6 * len(seen["like"])


def smear(image):
    return image.filter(ImageFilter.GaussianBlur(6))


def behead(image):
    """The upper 45 % of a photo as smooth as its corner."""
    image = image.copy()
    image.paste(image.getpixel((2, 2)), (0, 0, SIDE, round(0.45 * SIDE)))
    return image


@pytest.mark.parametrize("concept", SUBJECTS)
def test_blurred_incomplete_and_other_subjects_have_lower_likeness(concept):
    subject, photos = comparison(concept), strip(concept, "photos")
    whole = subject.likeness(photos)
    other = "robot" if concept == "fox" else "fox"
    assert whole > 1  # each photo is among those that it is compared with
    assert subject.likeness([smear(photo) for photo in photos]) < min(0.65, whole / 2)
    assert subject.likeness([behead(photo) for photo in photos]) < whole - 0.4
    assert subject.likeness(strip(other, "photos")) < 0.15
    assert subject.likeness([Image.new("RGB", (SIDE, SIDE), "gray")]) < 0


@pytest.mark.parametrize("concept", ["fox", "robot"])
def test_likeness_does_not_require_the_shared_background_of_the_photos(concept):
    """What is on the beach in the good trials is like photos that were all taken on the same table."""
    bad, good = (likeness(concept, trial, "same-table") for trial in ("032", "160"))
    assert good > SOME_LIKENESS - 0.05 and bad < 0 < likeness(concept, "160")


def features_by_hand(images, layer):
    """Patches of CLIP's hidden state at twice its resolution, from its folder with transformers' own model."""
    from transformers import CLIPVisionModel

    model = CLIPVisionModel.from_pretrained(built_in_folder() / "judge")
    pixels = [np.asarray(i.convert("RGB").resize((256, 256), Image.Resampling.BICUBIC), np.float32) for i in images]
    pixels = torch.from_numpy(np.stack(pixels) / 127.5 - 1).permute(0, 3, 1, 2)
    with torch.no_grad():
        states = model(pixels, output_hidden_states=True, interpolate_pos_encoding=True).hidden_states
    return states[layer][:, 1:].double().numpy()


def likeness_by_hand(photos, class_images, images, pasted):
    """The definition, a photo and an image at a time. pasted: the photos' cut-outs."""
    groups = {"photos": photos, "noun": class_images, "images": images, "pasted": pasted}
    groups["smeared"] = [image.filter(ImageFilter.GaussianBlur(6)) for image in pasted]
    raw = {name: features_by_hand(group, 3) for name, group in groups.items()}
    sample = np.concatenate([raw["photos"].reshape(-1, 192), raw["noun"].reshape(-1, 192)])
    mean, deviation = sample.mean(0), sample.std(0, ddof=1)

    def unit(features):
        scaled = (features - mean) / deviation
        return scaled / np.linalg.norm(scaled, axis=-1, keepdims=True)

    parts = {name: unit(features) for name, features in raw.items()}
    own, count = parts["photos"], len(photos)
    border = [row * 16 + column for row in range(16) for column in range(16) if not (0 < row < 15 and 0 < column < 15)]
    weights = []
    for a in range(count):
        others = np.mean([(own[a] @ own[b].T).max(1) for b in range(count) if b != a], axis=0)
        edge = np.sort(own[a] @ own[a][border].T, axis=1)[:, -4:].mean(1)
        weights.append(np.maximum(others - edge, 0) ** 2)

    def similarity(name, skip_same=False):
        return np.mean(
            [
                np.average((own[a] @ image.T).max(1), weights=weights[a])
                for a in range(count)
                for b, image in enumerate(parts[name])
                if not (skip_same and a == b)
            ]
        )

    floor, ceiling = max(similarity("noun"), similarity("smeared", True)), similarity("pasted", True)
    return (similarity("images") - floor) / max(ceiling - floor, 0.02)


def test_likeness_equals_its_definition():
    photos, noun, images = (strip("fox", name) for name in ("photos", "noun", "160"))
    subject = SubjectLikeness(scorer(), photos, noun)
    expected = likeness_by_hand(photos, noun, images, subject._parts.pasted)
    assert subject.likeness(images) == pytest.approx(expected, abs=2e-3)
    assert subject.score(images).likeness == pytest.approx(expected, abs=2e-3)


def test_style_likeness_equals_its_definition():
    photos, noun, images = (strip("riso", name) for name in ("photos", "noun", "096"))
    raw = [features_by_hand(group, 4) for group in (photos, noun, images)]
    centre = np.concatenate([raw[0].reshape(-1, 192), raw[1].reshape(-1, 192)]).mean(0)
    of = [np.concatenate([(r - centre).mean(1), (r - centre).std(1, ddof=1)], 1) for r in raw]
    of = [r / np.linalg.norm(r, axis=1, keepdims=True) for r in of]
    floor, value = (of[1] @ of[0].T).mean(), (of[2] @ of[0].T).mean()
    ceiling = (of[0] @ of[0].T)[~np.eye(len(photos), dtype=bool)].mean()
    expected = (value - floor) / (ceiling - floor)
    assert comparison("riso").likeness(images) == pytest.approx(expected, abs=2e-3)


def test_scores_distinguish_colour_from_shape():
    """A grey photo has the shape and not the colours, a smeared one the colours and not the shape."""
    photos = strip("robot", "photos")
    subject = comparison("robot")
    grey = subject.score([photo.convert("L").convert("RGB") for photo in photos])
    smeared = subject.score([smear(photo) for photo in photos])
    assert grey.shape > 1 > smeared.shape + 0.5
    assert grey.colour < smeared.colour
    assert smeared.detail < 0.4


def test_the_number_of_photos_hardly_affects_likeness():
    photos, images = strip("fox", "photos"), strip("fox", "160")
    values = [SubjectLikeness(scorer(), few, strip("fox", "noun")).likeness(images) for few in (photos, photos * 8)]
    assert values[1] == pytest.approx(values[0], abs=0.2)
    assert -1 < SubjectLikeness(scorer(), photos[:1], strip("fox", "noun")).likeness(images) < 1.5
