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
from sdpersonal.training.validation import read_validations

from . import captions, clip, judge, photos, presets, sheets
from .workshop import BuildContext

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
PLACES = ("table", "beach", "space", "snow")  # what the prompts ask for
SEEN, UNSEEN = 1, 2  # seeds of the photos to learn from, and of those to compare with
LEARNED = 5  # photos to learn from
GUARDED = 4  # and to compare with


def tensor(images):
    """PIL pictures -> (N, 3, 128, 128) in -1..1."""
    pixels = [
        torch.frombuffer(bytearray(i.convert("RGB").resize((128, 128)).tobytes()), dtype=torch.uint8) for i in images
    ]
    return torch.stack(pixels).view(-1, 128, 128, 3).permute(0, 3, 1, 2).float() / 127.5 - 1


class JudgePair:
    """Both judges: likeness by their features, places by the classifier."""

    def __init__(self, context):
        self.clip, self.classifier = context.clip, judge.load(context.work / "second-judge", context.world)

    @torch.no_grad()
    def likeness(self, some, others, pairs=False):
        """Mean cosine between two sets of PIL pictures, or between those in the same place, by both judges."""
        a, b = tensor(some), tensor(others)
        seen = {
            "CLIP": [clip.features(self.clip, images=x) for x in (a, b)],
            "classifier": [F.normalize(self.classifier.features(x), dim=1) for x in (a, b)],
        }
        cosine = {name: x @ y.T for name, (x, y) in seen.items()}
        return {name: round((c.diagonal() if pairs else c).mean().item(), 3) for name, c in cosine.items()}

    @torch.no_grad()
    def places(self, some, asked):
        """Share of pictures that show the place asked for."""
        first = len(captions.BACKGROUNDS) - len(captions.PLACES)
        guess = self.classifier(tensor(some))[2][:, first:].argmax(1).tolist()
        names = list(captions.PLACES)
        return round(sum(names[g] == a for g, a in zip(guess, asked, strict=True)) / len(asked), 3)


def generate(base, library, prompts, seeds=2):
    """`seeds` pictures of every prompt, prompt by prompt."""
    generator = Generator(base, library)
    asked = [GenerateRequest(prompt=prompt, n=seeds, seed=7) for prompt in prompts]
    return [picture.image for request in asked for picture in generator.generate(request)]


def run_settings(method, folder, noun, kind, **common):
    """A run with the method's own presets."""
    common |= {"library": folder / "library", "base": "tiny", "kind": kind, "run": folder / method}
    common |= {"token": f"<t/{method}>"}
    if method == "textual-inversion":
        return TextualInversionSettings(**common, init=noun)
    return DreamboothSettings(**common, class_noun=noun, method=method)


def score(clip, images, unseen):
    """Likeness and places of pictures drawn by the prompts of `in_places`."""
    asked = [place for place in PLACES for _ in range(len(images) // len(PLACES))]
    return clip.likeness(images, unseen) | {"places": clip.places(images, asked)}


def place_prompts(what):
    return [f"a photo of {what} {captions.PLACES[place][0]}" for place in PLACES]


def measure_subject(context, subject, folder, clip, unseen, methods):
    """Figures of one subject: floor, before, after each method, ceiling; and a row of pictures for each."""
    seen, noun = photos.sample_photos(context.work, subject, LEARNED, SEEN), SUBJECTS[subject]
    photos.save(seen, folder / "photos")
    base, shelf = load_base("tiny"), Library(folder / "library")
    others = [photo for name, some in unseen.items() if name != subject for photo in some]
    rows = {"a photo": seen[:4], "before": generate(base, shelf, place_prompts(captions.with_article(noun)))}
    mine = unseen[subject]
    found = {"floor": clip.likeness(others, mine), "before": score(clip, rows["before"], mine)}
    for method in methods:
        run = train_and_time(method, folder, noun, "object")
        rows[method] = generate(base, shelf, place_prompts(f"<t/{method}>"))
        found[method] = score(clip, rows[method], mine) | run
    found["ceiling"] = clip.likeness(seen, mine)
    return found, rows


def train_and_time(method, folder, noun, kind, **more):
    """Train on the photos in the folder; the time it took, where it ended, which step was kept and its scores."""
    began = time.monotonic()
    asked = run_settings(method, folder, noun, kind, photos=folder / "photos", **more)
    train(asked, log=str)
    seconds = time.monotonic() - began
    result = json.loads((asked.run / "result.json").read_text())
    own = {trial.step: trial.scores for trial in read_validations(asked.run)}[result["best"]]
    return {"seconds": round(seconds), "steps": result["steps"], "kept": result["best"], "own": own.to_dict()}


def measure_style(context, style, folder, clip, methods):
    """The same for a kept-out look: other things in it, each against a photo of that thing in that look."""
    every = photos.sample_style_photos(context.work, LEARNED + 3, SEEN, style)
    again = photos.sample_style_photos(context.work, LEARNED + 3, UNSEEN, style)[LEARNED:]
    photos.save(every[:LEARNED], folder / "photos")
    for number, thing in enumerate(photos.STYLE_THINGS[:LEARNED], 1):
        (folder / "photos" / f"{number:02}.txt").write_text(f"{captions.with_article(thing)} in the style of {{}}\n")
    things = [captions.with_article(name) for name in photos.STYLE_THINGS[LEARNED : LEARNED + 3]]
    base, shelf = load_base("tiny"), Library(folder / "library")
    unseen = [photo for photo in every[LEARNED:] for _ in range(2)]
    rows = {"a photo": every[:4], "before": generate(base, shelf, [f"a photo of {thing}" for thing in things])}
    found = {"before": clip.likeness(rows["before"], unseen, pairs=True)}
    for method in methods:
        run = train_and_time(method, folder, STYLES[style], "style")
        rows[method] = generate(base, shelf, [f"{thing} in the style of <t/{method}>" for thing in things])
        found[method] = clip.likeness(rows[method], unseen, pairs=True) | run
    found["ceiling"] = clip.likeness(again, every[LEARNED:], pairs=True)
    return found, rows


def save_sheet(rows, path):
    """One line of up to eight pictures for each row."""
    pictures, names, columns = [], [], min(8, max(map(len, rows.values())))
    for name, some in rows.items():
        line = tensor(some[:columns])
        pictures += [line, line.new_ones(columns - len(line), *line.shape[1:])]
        names += [name, *[""] * (columns - 1)]
    sheets.sheet(torch.cat(pictures), names, path, columns=columns)


def main():
    parser = argparse.ArgumentParser(description="Measure how near personalisation comes to kept-out subjects.")
    parser.add_argument("--work", type=Path, default=Path("build/tiny-base"))
    parser.add_argument("--preset", choices=["auto", *presets.PRESETS], default="auto")
    parser.add_argument("--subjects", type=int, default=len(SUBJECTS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--only", nargs="+", help="these subjects and looks")
    args = parser.parse_args()
    shop = BuildContext(args.work, presets.choose(args.preset)[1], "cpu")
    loading.built_in_folder = lambda: shop.weights_folder  # the base that was just made, not the one that ships now
    eyes = JudgePair(shop)
    unseen = {name: photos.sample_photos(shop.work, name, GUARDED, UNSEEN + i) for i, name in enumerate(SUBJECTS)}
    path = shop.work / "reach.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    jobs = {
        subject: lambda folder, name=subject: measure_subject(shop, name, folder, eyes, unseen, args.methods)
        for subject in list(SUBJECTS)[: args.subjects]
    }
    for style in STYLES:
        jobs[style] = lambda folder, name=style: measure_style(shop, name, folder, eyes, args.methods)
    for name, job in jobs.items():
        if args.only and name not in args.only:
            continue
        with tempfile.TemporaryDirectory() as folder:
            figures, rows = job(Path(folder))
            found[name] = found.get(name, {}) | figures
        save_sheet(rows, shop.work / "look" / f"reach-{name.replace(' ', '-')}.png")
        print(name, json.dumps(found[name]), flush=True)
        path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
