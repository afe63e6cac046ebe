"""Reach: how near each method brings the base to things, and to a look, that it has never seen.

    python -m tools.tiny_base.reach --work build/tiny-base [--subjects 2] [--methods lora textual-inversion]

For each kept-out subject: five photos to learn from, four others to compare with. Likeness is the mean cosine of
features between drawn pictures and the held-out photos; the ceiling is what the learning photos themselves score,
the floor is photos of the other subjects, "before" is the class word alone. Places are right if the classifier
sees the one that the prompt asks for.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from sdpersonal.bases import load_base, loading
from sdpersonal.config import DreamboothSettings, InversionSettings, Request
from sdpersonal.generation import Generator
from sdpersonal.library import Library
from sdpersonal.training.run import train

from . import captions, clip, judge, photos, presets, sheets
from .workshop import Workshop

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
STYLE, STYLE_WORDS = "cyanotype", "blue and white"
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


class Eyes:
    """Both judges: likeness by their features, places by the classifier."""

    def __init__(self, shop):
        self.clip, self.classifier = shop.clip, judge.load(shop.work / "second-judge", shop.world)

    @torch.no_grad()
    def likeness(self, some, others, pairs=False):
        """Mean cosine between two sets of PIL pictures, or between those in the same place, by both judges."""
        a, b = tensor(some), tensor(others)
        seen = {
            "CLIP": [clip.features(self.clip, pictures=x) for x in (a, b)],
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


def draw(base, library, prompts, seeds=2):
    """`seeds` pictures of every prompt, prompt by prompt."""
    generator = Generator(base, library)
    asked = [Request(prompt=prompt, n=seeds, seed=7) for prompt in prompts]
    return [picture.image for request in asked for picture in generator.draw(request)]


def settings(method, folder, noun, kind, **common):
    """A run with the method's own presets."""
    common |= {"library": folder / "library", "base": "tiny", "kind": kind, "run": folder / method}
    common |= {"token": f"<t/{method}>", "samples": False}
    if method == "textual-inversion":
        return InversionSettings(**common, init=noun)
    return DreamboothSettings(**common, class_noun=noun, method=method)


def score(eyes, pictures, unseen):
    """Likeness and places of pictures drawn by the prompts of `in_places`."""
    asked = [place for place in PLACES for _ in range(len(pictures) // len(PLACES))]
    return eyes.likeness(pictures, unseen) | {"places": eyes.places(pictures, asked)}


def in_places(what):
    return [f"a photo of {what} {captions.PLACES[place][0]}" for place in PLACES]


def reach(shop, subject, folder, eyes, unseen, methods):
    """Figures of one subject: floor, before, after each method, ceiling; and a row of pictures for each."""
    seen, noun = photos.sample_photos(shop.work, subject, LEARNED, SEEN), SUBJECTS[subject]
    photos.save(seen, folder / "photos")
    base, shelf = load_base("tiny"), Library(folder / "library")
    others = [photo for name, some in unseen.items() if name != subject for photo in some]
    rows = {"a photo": seen[:4], "before": draw(base, shelf, in_places(captions.with_article(noun)))}
    mine = unseen[subject]
    found = {"floor": eyes.likeness(others, mine), "before": score(eyes, rows["before"], mine), "seconds": {}}
    for method in methods:
        began = time.monotonic()
        train(settings(method, folder, noun, "object", photos=folder / "photos"), say=str)
        found["seconds"][method] = round(time.monotonic() - began)
        rows[method] = draw(base, shelf, in_places(f"<t/{method}>"))
        found[method] = score(eyes, rows[method], mine)
    found["ceiling"] = eyes.likeness(seen, mine)
    return found, rows


def reach_style(shop, folder, eyes, methods):
    """The same for the kept-out look: other things in it, each against a photo of that thing in that look."""
    every = photos.sample_style_photos(shop.work, LEARNED + 3, SEEN, STYLE)
    again = photos.sample_style_photos(shop.work, LEARNED + 3, UNSEEN, STYLE)[LEARNED:]
    photos.save(every[:LEARNED], folder / "photos")
    things = [captions.with_article(name) for name in photos.STYLE_THINGS[LEARNED : LEARNED + 3]]
    base, shelf = load_base("tiny"), Library(folder / "library")
    unseen = [photo for photo in every[LEARNED:] for _ in range(2)]
    rows = {"a photo": every[:4], "before": draw(base, shelf, [f"a photo of {thing}" for thing in things])}
    found = {"before": eyes.likeness(rows["before"], unseen, pairs=True), "seconds": {}}
    for method in methods:
        began = time.monotonic()
        train(settings(method, folder, STYLE_WORDS, "style", photos=folder / "photos"), say=str)
        found["seconds"][method] = round(time.monotonic() - began)
        rows[method] = draw(base, shelf, [f"{thing} in the style of <t/{method}>" for thing in things])
        found[method] = eyes.likeness(rows[method], unseen, pairs=True)
    found["ceiling"] = eyes.likeness(again, every[LEARNED:], pairs=True)
    return found, rows


def save_sheet(rows, path):
    """One line of up to eight pictures for each row."""
    pictures, names = [], []
    for name, some in rows.items():
        line = [*some[:8], *[some[0]] * (8 - len(some[:8]))]
        pictures.append(tensor(line))
        names += [name, *[""] * 7]
    sheets.sheet(torch.cat(pictures), names, path, columns=8)


def main():
    parser = argparse.ArgumentParser(description="Measure how near personalisation comes to kept-out subjects.")
    parser.add_argument("--work", type=Path, default=Path("build/tiny-base"))
    parser.add_argument("--preset", choices=["auto", *presets.PRESETS], default="auto")
    parser.add_argument("--subjects", type=int, default=len(SUBJECTS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--no-style", action="store_true")
    args = parser.parse_args()
    shop = Workshop(args.work, presets.choose(args.preset)[1], "cpu")
    loading.built_in_folder = lambda: shop.weights_folder  # the base that was just made, not the one that ships now
    eyes = Eyes(shop)
    unseen = {name: photos.sample_photos(shop.work, name, GUARDED, UNSEEN + i) for i, name in enumerate(SUBJECTS)}
    path = shop.work / "reach.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    jobs = {
        subject: lambda folder, name=subject: reach(shop, name, folder, eyes, unseen, args.methods)
        for subject in list(SUBJECTS)[: args.subjects]
    }
    if not args.no_style:
        jobs[STYLE] = lambda folder: reach_style(shop, folder, eyes, args.methods)
    for name, job in jobs.items():
        with tempfile.TemporaryDirectory() as folder:
            found[name], rows = job(Path(folder))
        save_sheet(rows, shop.work / "look" / f"reach-{name.replace(' ', '-')}.png")
        print(name, json.dumps(found[name]), flush=True)
        path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
