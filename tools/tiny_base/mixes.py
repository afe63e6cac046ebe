"""What mixing does: kept-out subjects in looks and places, two in one picture, strengths and windows.

    python -m tools.tiny_base.mixes --work build/tiny-base [--keep FOLDER] [--parts styles pairs]

Subjects and looks are learned as a user learns them (LoRA, five photos, those of a look with captions), then drawn
together, plainly and as generation composes them by itself. ASIDE took no part in finding the settings of mixing.

Looks are told by the CLIP between photos of the same subject in each look; places by the CLIP and the second judge,
between photos of the subject in each place, all in that look. Likeness is to photos that nobody learned from, by the
second judge, as a share of what the subject scores alone: in grey, and in grey against those photos in the look.
Figures go to WORK/mixes.json, sheets to WORK/look.
"""

import argparse
import itertools
import json
import tempfile
import time
from functools import cached_property, lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F

from sdpersonal.concepts.library import Library
from sdpersonal.config import GenerateRequest
from sdpersonal.generation import Generator
from sdpersonal.models import load_base, loading
from sdpersonal.training.run import train

from . import captions, clip, photos, presets, reach
from .build_context import BuildContext

SUBJECTS = ("teddy bear", "fox", "octopus", "alarm clock", "robot", "pineapple")
STYLES = {"cyanotype": "blue and white", "pencil": "gray and white", "riso": "red and yellow"}
ASIDE_SUBJECTS, ASIDE_STYLES = ("teapot", "helicopter"), {"twemoji": "flat drawing"}
PLACES = ("table", "beach", "space", "snow", "forest", "sunset")
BASE_LOOKS = {"3d": "a photo of {}", "flat": "a flat drawing of {}"}
STRENGTHS = (0, 0.25, 0.5, 0.75, 1, 1.25)
WINDOWS = ("0-1", "0-0.3", "0-0.6", "0.3-1", "0.6-1")
TOGETHER = "a photo of {0} next to {1}"
NUM_PAIRS = 10
PAIR_SEEDS, STYLED_PAIR_SEEDS = 4, 2
SEED = 7


def token_for(name):
    return f"<t/{name.replace(' ', '-')}>"


def photos_in(work, subject, look, count, seed, behind=photos.BACKGROUNDS):
    """Photos of a subject in any look: drawn by people, or made by a filter."""
    if look in ("3d", "flat", "twemoji"):
        return photos.sample_photos(work, subject, count, seed, look, behind=behind)
    plain = photos.sample_photos(work, subject, count, seed, behind=behind)
    return [photos.STYLES[look](photo, i) for i, photo in enumerate(plain)]


def train_library(context, folder):
    """Train every subject and look that the library in the folder lacks."""
    for subject in (*SUBJECTS, *ASIDE_SUBJECTS):
        sample = photos.sample_photos(context.work, subject, reach.TRAINING_PHOTOS, reach.TRAINING_SEED)
        train_concept(folder, subject, reach.SUBJECTS[subject], "object", sample)
    things = photos.STYLE_THINGS[: reach.TRAINING_PHOTOS]
    for style, words in (STYLES | ASIDE_STYLES).items():
        sample = photos.sample_style_photos(context.work, reach.TRAINING_PHOTOS, reach.TRAINING_SEED, style)
        lines = [f"{captions.with_article(thing)} in the style of {{}}\n" for thing in things]
        train_concept(folder, style, words, "style", sample, lines)
    return Library(folder / "library")


def train_concept(folder, name, noun, kind, sample, lines=()):
    place, token = folder / name.replace(" ", "-"), token_for(name)
    if (place / "run" / "result.json").exists():
        return
    photos.save(sample, place / "photos")
    for number, line in enumerate(lines, 1):
        (place / "photos" / f"{number:02}.txt").write_text(line)
    settings = reach.run_settings("lora", folder, noun, kind, photos=place / "photos")
    train(settings.model_copy(update={"token": token, "run": place / "run"}), log=str)


class MixEvaluation:
    """Generates with several concepts, and scores the images. There is one, as long as the program runs."""

    def __init__(self, context, library):
        self.context, self.work = context, context.work
        self.scorers = reach.ScorerPair(context)
        self.generator = Generator(load_base("tiny"), library)

    def generate(self, prompt, seeds=1, compose=True):
        request = GenerateRequest(prompt=prompt, num_images=seeds, seed=SEED, compose=compose)
        return [result.image for result in self.generator.generate(request)]

    @lru_cache(None)  # noqa: B019
    def unseen(self, subject, look="3d"):
        seed = reach.TEST_SEED + list(reach.SUBJECTS).index(subject)
        return photos_in(self.work, subject, look, reach.TEST_PHOTOS, seed)

    @torch.no_grad()
    def judge_features(self, images):
        return F.normalize(self.scorers.classifier.features(reach.tensor(images)), dim=1)

    @torch.no_grad()
    def clip_features(self, images):
        return clip.features(self.scorers.clip, images=reach.tensor(images))

    @lru_cache(None)  # noqa: B019
    def look_references(self, subject, looks):
        return torch.stack([self.clip_features(photos_in(self.work, subject, k, 4, SEED)).mean(0) for k in looks])

    def looks(self, images, subject, looks):
        """Return the look of each image among these."""
        nearest = (self.clip_features(images) @ self.look_references(subject, looks).T).argmax(1)
        return [looks[i] for i in nearest.tolist()]

    @lru_cache(None)  # noqa: B019
    def place_references(self, subject, look):
        """Return the mean features of photos of the subject in each place, in that look, by both models."""
        groups = [photos_in(self.work, subject, look, 6, 900 + i, (place,)) for i, place in enumerate(PLACES)]
        return [torch.stack([score(g).mean(0) for g in groups]) for score in (self.judge_features, self.clip_features)]

    def places_right(self, images, subject, look):
        """Return the share of images, one for each place, that are nearest to photos in that place."""
        scores = 0
        features = (self.judge_features(images), self.clip_features(images))
        for feature, reference in zip(features, self.place_references(subject, look), strict=True):
            mean = reference.mean(0)
            scores = scores + F.normalize(feature - mean, dim=1) @ F.normalize(reference - mean, dim=1).T
        return (scores.argmax(1) == torch.arange(len(PLACES))).float().mean().item()

    def grey_likeness(self, images, others):
        """Return the mean cosine of the second judge's features of two sets of images without their colours."""
        grey = [[image.convert("L").convert("RGB") for image in group] for group in (images, others)]
        return (self.judge_features(grey[0]) @ self.judge_features(grey[1]).T).mean().item()

    @cached_property
    def halfway(self):
        """Likeness by the second judge halfway between a subject's own photos and those of the others."""
        values = {}
        for subject in (*SUBJECTS, *ASIDE_SUBJECTS):
            own = self.likeness(self.unseen(subject), subject)
            others = [s for s in SUBJECTS if s != subject]
            values[subject] = (own + sum(self.likeness(self.unseen(s), subject) for s in others) / len(others)) / 2
        return values

    def likeness(self, images, subject):
        return (self.judge_features(images) @ self.judge_features(self.unseen(subject)).T).mean().item()


def measure_styles(evaluation):
    """Subject x learned look x place: return the mean figures by way of mixing, those of ASIDE apart, and rows."""
    results, rows, collected = {}, {}, {}
    for subject in (*SUBJECTS, *ASIDE_SUBJECTS):
        alone = [evaluation.generate(f"a photo of {token_for(subject)} {_place(p)}")[0] for p in PLACES]
        rows[f"{subject} alone"] = alone
        for style, way in itertools.product((*STYLES, *ASIDE_STYLES), ("plain", "guided")):
            prompts = [f"{token_for(subject)} {_place(p)} in the style of {token_for(style)}" for p in PLACES]
            images = [evaluation.generate(prompt, compose=way == "guided")[0] for prompt in prompts]
            figures = _style_figures(evaluation, images, alone, subject, style)
            is_aside = subject in ASIDE_SUBJECTS or style in ASIDE_STYLES
            collected.setdefault((way, "aside" if is_aside else "used"), []).append(figures)
            collected.setdefault((way, style), []).append(figures)
            rows[f"{subject}, {style}, {way}"] = images
        print(subject, {" ".join(key): _mean(value) for key, value in collected.items()}, flush=True)
    for (way, group), figures in collected.items():
        results.setdefault(way, {})[group] = _mean(figures)
    return results, rows


def measure_ceiling(evaluation):
    """Return the same figures for a perfect style: the filter over images of the subject alone."""
    figures = []
    for subject, style in itertools.product(SUBJECTS, STYLES):
        alone = [evaluation.generate(f"a photo of {token_for(subject)} {_place(p)}")[0] for p in PLACES]
        images = [photos.STYLES[style](image.resize((512, 512)), i) for i, image in enumerate(alone)]
        figures.append(_style_figures(evaluation, images, alone, subject, style))
    return _mean(figures), {}


def _style_figures(evaluation, images, alone, subject, style):
    """Return the figures of a subject's images in a style, one for each place. alone: those without the style."""
    looks = ("3d", "flat", *STYLES) if style in STYLES else ("3d", "flat", *STYLES, style)
    ceiling = evaluation.grey_likeness(alone, evaluation.unseen(subject))
    return {
        "look": evaluation.looks(images, subject, looks).count(style) / len(images),
        "places": evaluation.places_right(images, subject, style),
        "likeness": evaluation.grey_likeness(images, evaluation.unseen(subject)) / ceiling,
        "likeness in the look": evaluation.grey_likeness(images, evaluation.unseen(subject, style)) / ceiling,
    }


def measure_base_looks(evaluation):
    """Return the share of images in the requested look of the base, for words alone: of the concepts, and of their
    class nouns without any concept, which is what the base itself can do."""
    results, rows = {}, {}
    for (look, form), way in itertools.product(BASE_LOOKS.items(), ("concept", "class noun")):
        figures = []
        for subject in (*SUBJECTS, *ASIDE_SUBJECTS):
            words = token_for(subject) if way == "concept" else captions.with_article(reach.SUBJECTS[subject])
            images = [evaluation.generate(f"{form.format(words)} {_place(p)}")[0] for p in PLACES]
            right = evaluation.looks(images, subject, tuple(BASE_LOOKS)).count(look) / len(images)
            figures.append({"look": right, "places": evaluation.places_right(images, subject, look)})
            rows[f"{subject}, {look}, {way}"] = images
        results[f"{look}, {way}"] = _mean(figures)
    return results, rows


def measure_pairs(evaluation):
    """Generate two subjects in one image: return how often both are there, plainly, composed, and with a style."""
    results, rows = {}, {}
    pairs = list(itertools.combinations(SUBJECTS, 2))
    pairs = [pairs[i * len(pairs) // NUM_PAIRS] for i in range(NUM_PAIRS)]
    aside = [ASIDE_SUBJECTS, *((name, SUBJECTS[i]) for i, name in enumerate(ASIDE_SUBJECTS))]
    for group, chosen in (("used", pairs), ("aside", aside)):
        there = {"plain": [], "composed": []}
        for number, (first, second) in enumerate(chosen):
            prompt = f"{TOGETHER.format(token_for(first), token_for(second))} {_place(PLACES[number % len(PLACES)])}"
            for way in there:
                images = evaluation.generate(prompt, PAIR_SEEDS, way == "composed")
                there[way] += [_both_present(evaluation, image, (first, second)) for image in images]
                rows[f"{first} + {second}, {way}"] = images
        results[group] = {way: round(sum(hits) / len(hits), 3) for way, hits in there.items()}
        print("pairs", group, results[group], flush=True)
    return results, rows


def measure_styled_pairs(evaluation):
    """Return how often both subjects are there in images that are in the requested look too."""
    right, rows = [], {}
    for number, (first, second) in enumerate(list(itertools.combinations(SUBJECTS, 2))[::2]):
        style = list(STYLES)[number % len(STYLES)]
        prompt = f"{TOGETHER.format(token_for(first), token_for(second))} {_place(PLACES[number % len(PLACES)])}"
        images = evaluation.generate(f"{prompt} in the style of {token_for(style)}", STYLED_PAIR_SEEDS)
        rows[f"{first} + {second}, {style}"] = images
        looks = evaluation.looks(images, first, ("3d", "flat", *STYLES))
        right += [
            look == style and _both_present(evaluation, image, (first, second), style)
            for look, image in zip(looks, images, strict=True)
        ]
    return round(sum(right) / len(right), 3), rows


def _both_present(evaluation, image, pair, look=None):
    """Return whether a part of the image is nearer to each subject's photos than to the other's, and than halfway
    between what photos of others score and what its own do. With a look: in grey, against photos in that look."""
    width, height = image.size
    present = set()
    for left in (0, width // 4, width // 2):
        part = image.crop((left, height // 4, left + width // 2, height * 7 // 8))
        if look:
            near = {s: evaluation.grey_likeness([part], evaluation.unseen(s, look)) for s in pair}
            best = max(near, key=near.get)
            present.add(best)
            continue
        near = {subject: evaluation.likeness([part], subject) for subject in pair}
        best = max(near, key=near.get)
        if near[best] > evaluation.halfway[best]:
            present.add(best)
    return len(present) == 2


def measure_strengths(evaluation):
    """Return the likeness at each strength, mean over the subjects and four places; and rows of images."""
    results, rows = {}, {}
    for strength in STRENGTHS:
        likeness = []
        for subject in SUBJECTS[:2]:
            token = token_for(subject).replace(">", f":{strength}>")
            images = [evaluation.generate(f"a photo of {token} {_place(p)}")[0] for p in reach.PLACES]
            rows[f"{subject} at {strength}"] = images
            likeness.append(evaluation.likeness(images, subject))
        results[str(strength)] = round(sum(likeness) / len(likeness), 3)
    return results, rows


def measure_windows(evaluation):
    """Return the likeness to the subject if it acts in a part of the sampling only."""
    results, rows = {}, {}
    for window in WINDOWS:
        likeness = []
        for subject in SUBJECTS[:2]:
            token = token_for(subject).replace(">", f"@{window}>")
            rows[f"{subject} @{window}"] = images = evaluation.generate(f"a photo of {token} on the beach", 4)
            likeness.append(evaluation.likeness(images, subject))
        results[window] = round(sum(likeness) / len(likeness), 3)
    return results, rows


def measure_time(evaluation):
    """Return the seconds for four images of each kind as a ratio to plain mixing: the best of three, side by side."""
    first, second, style = token_for(SUBJECTS[0]), token_for(SUBJECTS[1]), token_for("cyanotype")
    prompts = {"style": f"{first} on the beach in the style of {style}", "two subjects": f"{first} next to {second}"}
    ratios = {}
    for name, prompt in prompts.items():
        best = {True: float("inf"), False: float("inf")}
        for _, compose in itertools.product(range(3), (False, True)):
            started_at = time.monotonic()
            evaluation.generate(prompt, 4, compose)
            best[compose] = min(best[compose], time.monotonic() - started_at)
        ratios[name] = round(best[True] / best[False], 2)
    return ratios, {}


def _place(name):
    return captions.PLACES[name][0]


def _mean(figures):
    return {name: round(sum(entry[name] for entry in figures) / len(figures), 3) for name in figures[0]}


PARTS = {
    "styles": measure_styles,
    "ceiling": measure_ceiling,
    "base looks": measure_base_looks,
    "pairs": measure_pairs,
    "styled pairs": measure_styled_pairs,
    "strengths": measure_strengths,
    "windows": measure_windows,
    "time": measure_time,
}


def main():
    parser = argparse.ArgumentParser(description="Measure what mixing concepts does.")
    parser.add_argument("--work", type=Path, default=Path("build/tiny-base"))
    parser.add_argument("--preset", choices=["auto", *presets.PRESETS], default="auto")
    parser.add_argument("--keep", type=Path, help="folder for the library, to generate from it again")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    args = parser.parse_args()
    context = BuildContext(args.work, presets.choose(args.preset)[1], "cpu")
    loading.built_in_folder = lambda: context.weights_folder
    path = context.work / "mixes.json"
    with tempfile.TemporaryDirectory() as temporary:
        evaluation = MixEvaluation(context, train_library(context, args.keep or Path(temporary)))
        results = json.loads(path.read_text()) if path.exists() else {}
        for name in args.parts:
            results[name], rows = PARTS[name](evaluation)
            if rows:
                reach.save_sheet(rows, context.work / "look" / f"mixes-{name.replace(' ', '-')}.png")
            print(name, json.dumps(results[name]), flush=True)
            path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
