"""What mixing does: two kept-out subjects in six places and three looks; strengths; windows; two in one picture.

    python -m tools.tiny_base.mixes --work build/tiny-base

Subjects and a look are learned as a user learns them (LoRA, five photos), then drawn together. Likeness is to photos
that nobody learned from, by the CLIP and by the second judge; places by the second judge; a look is told by the CLIP
between photos of the same thing in each look. Figures go to WORK/mixes.json, sheets to WORK/look.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch

from sdpersonal.concepts.library import Library
from sdpersonal.models import load_base, loading
from sdpersonal.training.run import train

from . import captions, clip, photos, presets, reach
from .build_context import BuildContext

SUBJECTS = ("teddy bear", "fox")
STYLE = "cyanotype"
PLACES = ("table", "beach", "space", "snow", "forest", "sunset")
LOOKS = {"3d": "a photo of {}", "flat": "a flat drawing of {}", "cyanotype": "{} in the style of <t/cyanotype:0.8>"}
STRENGTHS = (0, 0.25, 0.5, 0.75, 1, 1.25)
WINDOWS = ("0-1", "0-0.3", "0-0.6", "0.3-1", "0.6-1")
TOGETHER = {
    "side by side": "a photo of {0} next to {1}",
    "weaker": "a photo of {0:0.7} next to {1:0.7}",
    "one early, one late": "a photo of {0@0-0.5} next to {1@0.5-1}",
    "blended": "a photo of {0+1}",
}
SEEDS = 2


def token_for(subject):
    return f"t/{subject.replace(' ', '-')}"


def train_library(context, folder):
    """A library with both subjects and the look."""
    for subject in SUBJECTS:
        place = folder / subject
        photos.save(
            photos.sample_photos(context.work, subject, reach.TRAINING_PHOTOS, reach.TRAINING_SEED), place / "photos"
        )
        settings = reach.run_settings("lora", folder, reach.SUBJECTS[subject], "object", photos=place / "photos")
        train(settings.model_copy(update={"token": f"<{token_for(subject)}>", "run": place / "run"}), log=str)
    place = folder / STYLE
    photos.save(
        photos.sample_style_photos(context.work, reach.TRAINING_PHOTOS, reach.TRAINING_SEED, STYLE), place / "photos"
    )
    for number, thing in enumerate(photos.STYLE_THINGS[: reach.TRAINING_PHOTOS], 1):
        (place / "photos" / f"{number:02}.txt").write_text(f"{captions.with_article(thing)} in the style of {{}}\n")
    settings = reach.run_settings("lora", folder, reach.STYLES[STYLE], "style", photos=place / "photos")
    train(settings.model_copy(update={"token": f"<t/{STYLE}>", "run": place / "run"}), log=str)
    return Library(folder / "library")


class MixEvaluation:
    """Generates with two concepts, and scores the images."""

    def __init__(self, context, library):
        self.context, self.scorers = context, reach.ScorerPair(context)
        self.base, self.library = load_base("tiny"), library
        number = list(reach.SUBJECTS).index
        self.unseen = {
            subject: photos.sample_photos(context.work, subject, reach.TEST_PHOTOS, reach.TEST_SEED + number(subject))
            for subject in SUBJECTS
        }

    def generate(self, prompt, seeds=SEEDS):
        return reach.generate(self.base, self.library, [prompt], seeds)

    def likeness(self, images, subject):
        return self.scorers.likeness(images, self.unseen[subject])


def subject_grid(evaluation):
    """Subject x place x look: return a row of images for each subject and look, and the figures of each look."""
    rows, results = {}, {}
    look_features = _looks_of(evaluation)
    for look, form in LOOKS.items():
        all_images, expected_places, likeness = [], [], []
        for subject in SUBJECTS:
            line = []
            for place in PLACES:
                images = evaluation.generate(f"{form.format(f'<{token_for(subject)}>')} {captions.PLACES[place][0]}")
                line.append(images[0])
                all_images += images
                expected_places += [place] * len(images)
            rows[f"{subject}, {look}"] = line
            likeness.append(evaluation.likeness(all_images[-len(PLACES) * SEEDS :], subject))
        mean = _mean(likeness)
        nearest_looks = _nearest(evaluation, all_images, look_features)
        results[look] = mean | {
            "places": evaluation.scorers.places(all_images, expected_places),
            "look": round(sum(entry == look for entry in nearest_looks) / len(nearest_looks), 3),
        }
    return results, rows


def _looks_of(evaluation):
    """Return CLIP features of photos of both subjects in every look."""
    work, context = evaluation.context.work, evaluation.context
    photos_by_look = {
        look: [p for s in SUBJECTS for p in photos.sample_photos(work, s, 6, 7, look)] for look in ("3d", "flat")
    }
    photos_by_look[STYLE] = [photos.STYLES[STYLE](photo, i) for i, photo in enumerate(photos_by_look["3d"])]
    return {look: clip.features(context.clip, images=reach.tensor(images)) for look, images in photos_by_look.items()}


@torch.no_grad()
def _nearest(evaluation, images, look_features):
    image_features = clip.features(evaluation.context.clip, images=reach.tensor(images))
    scores = torch.stack([(image_features @ features.T).mean(1) for features in look_features.values()])
    return [list(look_features)[i] for i in scores.argmax(0).tolist()]


def measure_strengths(evaluation):
    """Return the likeness at each strength, mean over both subjects and four places; and rows of images."""
    results, rows = {}, {}
    for strength in STRENGTHS:
        likeness = []
        for subject in SUBJECTS:
            images = [
                image
                for place in reach.PLACES
                for image in evaluation.generate(
                    f"a photo of <{token_for(subject)}:{strength}> {captions.PLACES[place][0]}"
                )
            ]
            rows.setdefault(f"{subject} at {strength}", images[::SEEDS])
            likeness.append(evaluation.likeness(images, subject))
        results[str(strength)] = _mean(likeness)
    return results, rows


def measure_windows(evaluation):
    """Return the likeness to the subject if it acts in a part of the sampling only, and the share of images in the
    requested look if the look does."""
    results, rows, look_features = {}, {}, _looks_of(evaluation)
    for window in WINDOWS:
        images = {
            subject: evaluation.generate(f"a photo of <{token_for(subject)}@{window}> on the beach", 4)
            for subject in SUBJECTS
        }
        styled = [
            image
            for subject in SUBJECTS
            for image in evaluation.generate(
                f"<{token_for(subject)}> on the beach in the style of <t/{STYLE}:0.8@{window}>", 4
            )
        ]
        nearest_looks = _nearest(evaluation, styled, look_features)
        figures = _mean([evaluation.likeness(generated, subject) for subject, generated in images.items()])
        styled_as = [evaluation.likeness(styled[i * 4 : i * 4 + 4], subject) for i, subject in enumerate(SUBJECTS)]
        results[window] = figures | {
            "look": round(nearest_looks.count(STYLE) / len(nearest_looks), 3),
            "likeness in it": _mean(styled_as)["classifier"],
        }
        rows[f"@{window}"] = [images[SUBJECTS[0]][0], images[SUBJECTS[1]][0], styled[0], styled[4]]
    return results, rows


def measure_pairs(evaluation):
    """Generate two subjects in one image: return how often each, and both, are there, for each form of the prompt.

    A subject is there if a third of the image is nearer to its photos than to the other's and than halfway between
    what photos of the other score and what its own do, by the second judge.
    """
    results, rows = {}, {}
    first, second = SUBJECTS
    for name, form in TOGETHER.items():
        prompt = form
        for number, subject in enumerate(SUBJECTS):
            prompt = prompt.replace(f"{{{number}", f"{{<{token_for(subject)}")
        prompt = prompt.replace("+1}", f"+{token_for(second)}}}").replace("{<", "<").replace("}", ">")
        images = evaluation.generate(prompt, 12)
        there = [_subjects_present(evaluation, image) for image in images]
        results[name] = {
            first: round(sum(first in entry for entry in there) / len(there), 2),
            second: round(sum(second in entry for entry in there) / len(there), 2),
            "both": round(sum(len(entry) == 2 for entry in there) / len(there), 2),
            "prompt": prompt,
        }
        rows[name] = images[:6]
    return results, rows


def _subjects_present(evaluation, image):
    width, height = image.size
    parts = [image.crop((left, height // 4, left + width // 2, height * 3 // 4 + height // 8)) for left in
             (0, width // 4, width // 2)]  # fmt: skip
    present = set()
    for part in parts:
        near = {subject: evaluation.likeness([part], subject)["classifier"] for subject in SUBJECTS}
        best = max(near, key=near.get)
        if near[best] > evaluation.halfway[best]:
            present.add(best)
    return present


def _mean(scores):
    return {scorer: round(sum(entry[scorer] for entry in scores) / len(scores), 3) for scorer in scores[0]}


def main():
    parser = argparse.ArgumentParser(description="Measure what mixing concepts does.")
    parser.add_argument("--work", type=Path, default=Path("build/tiny-base"))
    parser.add_argument("--preset", choices=["auto", *presets.PRESETS], default="auto")
    parser.add_argument("--keep", type=Path, help="folder for the library, to generate from it again")
    args = parser.parse_args()
    context = BuildContext(args.work, presets.choose(args.preset)[1], "cpu")
    loading.built_in_folder = lambda: context.weights_folder
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        library = Library(folder / "library") if (folder / "library").is_dir() else train_library(context, folder)
        evaluation = MixEvaluation(context, library)
        evaluation.halfway = {
            subject: sum(evaluation.likeness(evaluation.unseen[name], subject)["classifier"] for name in SUBJECTS) / 2
            for subject in SUBJECTS
        }
        results = {}
        parts = {"grid": subject_grid, "strengths": measure_strengths, "windows": measure_windows}
        for name, measure in (parts | {"together": measure_pairs}).items():
            results[name], rows = measure(evaluation)
            reach.save_sheet(rows, context.work / "look" / f"mixes-{name}.png")
            print(name, json.dumps(results[name]), flush=True)
            (context.work / "mixes.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
