"""Reach: how near each method brings the base to things, and to looks, that it has never seen.

    python -m tools.tiny_base.reach --work build/tiny-base [--subjects 2] [--methods lora] [--only fox cyanotype]

For each kept-out subject: five photos to learn from, four others to compare with. Likeness is the mean cosine of
features between drawn pictures and the held-out photos; the ceiling is what the learning photos themselves score,
the floor is photos of the other subjects, "before" is the class word alone. Places are right if the classifier
sees the one that the prompt asks for. Photos of a look have captions, as the documentation asks for; those of a subject
have none.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from sdpersonal.concepts.library import Library
from sdpersonal.config import DreamboothSettings, GenerateRequest, TextualInversionSettings
from sdpersonal.generation import Generator
from sdpersonal.models import load_base, loading
from sdpersonal.training.run import train
from sdpersonal.training.run_dir import RESULT_FILE
from sdpersonal.training.validation import read_validations

from . import captions, clip, judge, photos, presets, sheets
from .build_context import BuildContext

# subject: its class word, a thing the base knows
SUBJECTS = {
    "teddy bear": "bear",
    "fox": "dog",
    "octopus": "jellyfish",
    "alarm clock": "bell",
    "teapot": "cup of coffee",
    "helicopter": "airplane",
    "robot": "television",
    "pineapple": "strawberry",
}
STYLES = {"cyanotype": "blue and white", "pencil": "gray and white"}
METHODS = ("textual-inversion", "lora", "pivotal", "full")
PLACES = ("table", "beach", "space", "snow")  # in the prompts
TRAINING_SEED, TEST_SEED = 1, 2  # seeds of the photos to train on, and of those to compare with
TRAINING_PHOTOS = 5
TEST_PHOTOS = 4


def tensor(images):
    """Convert PIL images to (N, 3, 128, 128) in -1..1."""
    pixels = [
        torch.frombuffer(bytearray(i.convert("RGB").resize((128, 128)).tobytes()), dtype=torch.uint8) for i in images
    ]
    return torch.stack(pixels).view(-1, 128, 128, 3).permute(0, 3, 1, 2).float() / 127.5 - 1


class ScorerPair:
    """Both scorers: likeness by their features, places by the classifier."""

    def __init__(self, context):
        self.clip, self.classifier = context.clip, judge.load(context.work / "second-judge", context.world)

    @torch.no_grad()
    def likeness(self, images, others, pairs=False):
        """Return the mean cosine between two sets of PIL images by both scorers. pairs: only of those at one index."""
        a, b = tensor(images), tensor(others)
        features = {
            "CLIP": [clip.features(self.clip, images=x) for x in (a, b)],
            "classifier": [F.normalize(self.classifier.features(x), dim=1) for x in (a, b)],
        }
        cosine = {name: x @ y.T for name, (x, y) in features.items()}
        return {name: round((c.diagonal() if pairs else c).mean().item(), 3) for name, c in cosine.items()}

    @torch.no_grad()
    def places(self, images, expected_places):
        """Return the share of images that show the requested place."""
        first = len(captions.BACKGROUNDS) - len(captions.PLACES)
        guess = self.classifier(tensor(images))[2][:, first:].argmax(1).tolist()
        names = list(captions.PLACES)
        return round(sum(names[g] == a for g, a in zip(guess, expected_places, strict=True)) / len(expected_places), 3)


def generate(base, library, prompts, seeds=2):
    """Generate `seeds` images of every prompt, prompt by prompt."""
    generator = Generator(base, library)
    requests = [GenerateRequest(prompt=prompt, num_images=seeds, seed=7) for prompt in prompts]
    return [result.image for request in requests for result in generator.generate(request)]


def run_settings(method, folder, noun, kind, **common):
    """Return the settings of a run with the method's presets."""
    common |= {"library": folder / "library", "base": "tiny", "kind": kind, "run": folder / method}
    common |= {"token": f"<t/{method}>"}
    if method == "textual-inversion":
        return TextualInversionSettings(**common, init=noun)
    return DreamboothSettings(**common, class_noun=noun, method=method)


def score(clip, images, unseen):
    """Return likeness and places of images of the prompts of `place_prompts`."""
    expected_places = [place for place in PLACES for _ in range(len(images) // len(PLACES))]
    return clip.likeness(images, unseen) | {"places": clip.places(images, expected_places)}


def place_prompts(subject):
    return [f"a photo of {subject} {captions.PLACES[place][0]}" for place in PLACES]


def measure_subject(context, subject, folder, clip, unseen, methods):
    """Return figures of one subject (floor, before, after each method, ceiling), and a row of images for each."""
    training_photos, noun = (
        photos.sample_photos(context.work, subject, TRAINING_PHOTOS, TRAINING_SEED),
        SUBJECTS[subject],
    )
    photos.save(training_photos, folder / "photos")
    base, library = load_base("tiny"), Library(folder / "library")
    others = [photo for name, images in unseen.items() if name != subject for photo in images]
    rows = {
        "a photo": training_photos[:4],
        "before": generate(base, library, place_prompts(captions.with_article(noun))),
    }
    test_photos = unseen[subject]
    figures_by_name = {"floor": clip.likeness(others, test_photos), "before": score(clip, rows["before"], test_photos)}
    for method in methods:
        run = train_and_time(method, folder, noun, "object")
        rows[method] = generate(base, library, place_prompts(f"<t/{method}>"))
        figures_by_name[method] = score(clip, rows[method], test_photos) | run
    figures_by_name["ceiling"] = clip.likeness(training_photos, test_photos)
    return figures_by_name, rows


def train_and_time(method, folder, noun, kind, **more):
    """Train on the photos in the folder; return its seconds, last step, best step and the scores of that."""
    started_at = time.monotonic()
    settings = run_settings(method, folder, noun, kind, photos=folder / "photos", **more)
    train(settings, log=str)
    seconds = time.monotonic() - started_at
    result = json.loads((settings.run / RESULT_FILE).read_text())
    best_scores = {validation.step: validation.scores for validation in read_validations(settings.run)}[result["best"]]
    return {"seconds": round(seconds), "steps": result["steps"], "kept": result["best"], "own": best_scores.to_dict()}


def measure_style(context, style, folder, clip, methods):
    """Return the same for a held-out look: other things in it, each against a photo of that thing in that look."""
    style_photos = photos.sample_style_photos(context.work, TRAINING_PHOTOS + 3, TRAINING_SEED, style)
    test_images = photos.sample_style_photos(context.work, TRAINING_PHOTOS + 3, TEST_SEED, style)[TRAINING_PHOTOS:]
    photos.save(style_photos[:TRAINING_PHOTOS], folder / "photos")
    for number, thing in enumerate(photos.STYLE_THINGS[:TRAINING_PHOTOS], 1):
        (folder / "photos" / f"{number:02}.txt").write_text(f"{captions.with_article(thing)} in the style of {{}}\n")
    things = [captions.with_article(name) for name in photos.STYLE_THINGS[TRAINING_PHOTOS : TRAINING_PHOTOS + 3]]
    base, library = load_base("tiny"), Library(folder / "library")
    unseen = [photo for photo in style_photos[TRAINING_PHOTOS:] for _ in range(2)]
    rows = {"a photo": style_photos[:4], "before": generate(base, library, [f"a photo of {thing}" for thing in things])}
    figures_by_name = {"before": clip.likeness(rows["before"], unseen, pairs=True)}
    for method in methods:
        run = train_and_time(method, folder, STYLES[style], "style")
        rows[method] = generate(base, library, [f"{thing} in the style of <t/{method}>" for thing in things])
        figures_by_name[method] = clip.likeness(rows[method], unseen, pairs=True) | run
    figures_by_name["ceiling"] = clip.likeness(test_images, style_photos[TRAINING_PHOTOS:], pairs=True)
    return figures_by_name, rows


def save_sheet(rows, path):
    """Save a sheet with up to eight images for each row."""
    tiles, names, columns = [], [], min(8, max(map(len, rows.values())))
    for name, images in rows.items():
        line = tensor(images[:columns])
        tiles += [line, line.new_ones(columns - len(line), *line.shape[1:])]
        names += [name, *[""] * (columns - 1)]
    sheets.sheet(torch.cat(tiles), names, path, columns=columns)


def main():
    parser = argparse.ArgumentParser(description="Measure how near personalisation comes to kept-out subjects.")
    parser.add_argument("--work", type=Path, default=Path("build/tiny-base"))
    parser.add_argument("--preset", choices=["auto", *presets.PRESETS], default="auto")
    parser.add_argument("--subjects", type=int, default=len(SUBJECTS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--only", nargs="+", help="these subjects and looks")
    args = parser.parse_args()
    context = BuildContext(args.work, presets.choose(args.preset)[1], "cpu")
    loading.built_in_folder = lambda: context.weights_folder  # the base that was just made, not the one that ships now
    scorers = ScorerPair(context)
    unseen = {
        name: photos.sample_photos(context.work, name, TEST_PHOTOS, TEST_SEED + i) for i, name in enumerate(SUBJECTS)
    }
    path = context.work / "reach.json"
    figures_by_name = json.loads(path.read_text()) if path.exists() else {}
    jobs = {
        subject: lambda folder, name=subject: measure_subject(context, name, folder, scorers, unseen, args.methods)
        for subject in list(SUBJECTS)[: args.subjects]
    }
    for style in STYLES:
        jobs[style] = lambda folder, name=style: measure_style(context, name, folder, scorers, args.methods)
    for name, job in jobs.items():
        if args.only and name not in args.only:
            continue
        with tempfile.TemporaryDirectory() as folder:
            figures, rows = job(Path(folder))
            figures_by_name[name] = figures_by_name.get(name, {}) | figures
        save_sheet(rows, context.work / "look" / f"reach-{name.replace(' ', '-')}.png")
        print(name, json.dumps(figures_by_name[name]), flush=True)
        path.write_text(json.dumps(figures_by_name, indent=1) + "\n")


if __name__ == "__main__":
    main()
