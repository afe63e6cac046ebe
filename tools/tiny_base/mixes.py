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
from .workshop import BuildContext

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
        photos.save(photos.sample_photos(context.work, subject, reach.LEARNED, reach.SEEN), place / "photos")
        asked = reach.run_settings("lora", folder, reach.SUBJECTS[subject], "object", photos=place / "photos")
        train(asked.model_copy(update={"token": f"<{token_for(subject)}>", "run": place / "run"}), log=str)
    place = folder / STYLE
    photos.save(photos.sample_style_photos(context.work, reach.LEARNED, reach.SEEN, STYLE), place / "photos")
    for number, thing in enumerate(photos.STYLE_THINGS[: reach.LEARNED], 1):
        (place / "photos" / f"{number:02}.txt").write_text(f"{captions.with_article(thing)} in the style of {{}}\n")
    asked = reach.run_settings("lora", folder, reach.STYLES[STYLE], "style", photos=place / "photos")
    train(asked.model_copy(update={"token": f"<t/{STYLE}>", "run": place / "run"}), log=str)
    return Library(folder / "library")


class MixEvaluation:
    """Draws and judges."""

    def __init__(self, context, library):
        self.shop, self.eyes = context, reach.JudgePair(context)
        self.base, self.library = load_base("tiny"), library
        number = list(reach.SUBJECTS).index
        self.unseen = {
            one: photos.sample_photos(context.work, one, reach.GUARDED, reach.UNSEEN + number(one)) for one in SUBJECTS
        }

    def draw(self, prompt, seeds=SEEDS):
        return reach.generate(self.base, self.library, [prompt], seeds)

    def likeness(self, images, subject):
        return self.eyes.likeness(images, self.unseen[subject])


def subject_grid(bench):
    """Subject x place x look: a row of pictures for each subject and look, figures of each look."""
    rows, found = {}, {}
    in_look = _looks_of(bench)
    for look, form in LOOKS.items():
        pictures, asked, likeness = [], [], []
        for subject in SUBJECTS:
            line = []
            for place in PLACES:
                drawn = bench.draw(f"{form.format(f'<{token_for(subject)}>')} {captions.PLACES[place][0]}")
                line.append(drawn[0])
                pictures += drawn
                asked += [place] * len(drawn)
            rows[f"{subject}, {look}"] = line
            likeness.append(bench.likeness(pictures[-len(PLACES) * SEEDS :], subject))
        mean = {judge: round(sum(one[judge] for one in likeness) / len(likeness), 3) for judge in likeness[0]}
        seen = _nearest(bench, pictures, in_look)
        found[look] = mean | {
            "places": bench.eyes.places(pictures, asked),
            "look": round(sum(one == look for one in seen) / len(seen), 3),
        }
    return found, rows


def _looks_of(bench):
    """Photos of both subjects in every look, for the CLIP to compare with."""
    work, shop = bench.shop.work, bench.shop
    found = {look: [p for s in SUBJECTS for p in photos.sample_photos(work, s, 6, 7, look)] for look in ("3d", "flat")}
    found[STYLE] = [photos.STYLES[STYLE](photo, i) for i, photo in enumerate(found["3d"])]
    return {look: clip.features(shop.clip, images=reach.tensor(some)) for look, some in found.items()}


@torch.no_grad()
def _nearest(bench, images, in_look):
    seen = clip.features(bench.shop.clip, images=reach.tensor(images))
    scores = torch.stack([(seen @ some.T).mean(1) for some in in_look.values()])
    return [list(in_look)[i] for i in scores.argmax(0).tolist()]


def measure_strengths(bench):
    """Likeness at each strength, mean over both subjects and four places; and a row of pictures."""
    found, rows = {}, {}
    for strength in STRENGTHS:
        likeness = []
        for subject in SUBJECTS:
            drawn = [
                picture
                for place in reach.PLACES
                for picture in bench.draw(f"a photo of <{token_for(subject)}:{strength}> {captions.PLACES[place][0]}")
            ]
            rows.setdefault(f"{subject} at {strength}", drawn[::SEEDS])
            likeness.append(bench.likeness(drawn, subject))
        found[str(strength)] = _mean(likeness)
    return found, rows


def measure_windows(bench):
    """Likeness to the subject when it acts in a part of the sampling, and the share of pictures in the asked look when
    the look does."""
    found, rows, in_look = {}, {}, _looks_of(bench)
    for window in WINDOWS:
        drawn = {one: bench.draw(f"a photo of <{token_for(one)}@{window}> on the beach", 4) for one in SUBJECTS}
        styled = [
            picture
            for one in SUBJECTS
            for picture in bench.draw(f"<{token_for(one)}> on the beach in the style of <t/{STYLE}:0.8@{window}>", 4)
        ]
        seen = _nearest(bench, styled, in_look)
        figures = _mean([bench.likeness(some, one) for one, some in drawn.items()])
        styled_as = [bench.likeness(styled[i * 4 : i * 4 + 4], one) for i, one in enumerate(SUBJECTS)]
        found[window] = figures | {
            "look": round(seen.count(STYLE) / len(seen), 3),
            "likeness in it": _mean(styled_as)["classifier"],
        }
        rows[f"@{window}"] = [drawn[SUBJECTS[0]][0], drawn[SUBJECTS[1]][0], styled[0], styled[4]]
    return found, rows


def measure_pairs(bench):
    """Two subjects in one picture: for each way to ask, how often each is there, and both.

    A subject is there if some third of the picture is nearer to its photos than to the other's and than halfway between
    what photos of the other score and what its own do, by the second judge.
    """
    found, rows = {}, {}
    first, second = SUBJECTS
    for name, form in TOGETHER.items():
        prompt = form
        for number, subject in enumerate(SUBJECTS):
            prompt = prompt.replace(f"{{{number}", f"{{<{token_for(subject)}")
        prompt = prompt.replace("+1}", f"+{token_for(second)}}}").replace("{<", "<").replace("}", ">")
        drawn = bench.draw(prompt, 12)
        there = [_subjects_present(bench, picture) for picture in drawn]
        found[name] = {
            first: round(sum(first in one for one in there) / len(there), 2),
            second: round(sum(second in one for one in there) / len(there), 2),
            "both": round(sum(len(one) == 2 for one in there) / len(there), 2),
            "prompt": prompt,
        }
        rows[name] = drawn[:6]
    return found, rows


def _subjects_present(bench, image):
    width, height = image.size
    parts = [image.crop((left, height // 4, left + width // 2, height * 3 // 4 + height // 8)) for left in
             (0, width // 4, width // 2)]  # fmt: skip
    found = set()
    for part in parts:
        near = {one: bench.likeness([part], one)["classifier"] for one in SUBJECTS}
        best = max(near, key=near.get)
        if near[best] > bench.halfway[best]:
            found.add(best)
    return found


def _mean(some):
    return {judge: round(sum(one[judge] for one in some) / len(some), 3) for judge in some[0]}


def main():
    parser = argparse.ArgumentParser(description="Measure what mixing concepts does.")
    parser.add_argument("--work", type=Path, default=Path("build/tiny-base"))
    parser.add_argument("--preset", choices=["auto", *presets.PRESETS], default="auto")
    parser.add_argument("--keep", type=Path, help="folder for the library, to draw from it again")
    args = parser.parse_args()
    shop = BuildContext(args.work, presets.choose(args.preset)[1], "cpu")
    loading.built_in_folder = lambda: shop.weights_folder
    with tempfile.TemporaryDirectory() as own:
        folder = args.keep or Path(own)
        library = Library(folder / "library") if (folder / "library").is_dir() else train_library(shop, folder)
        bench = MixEvaluation(shop, library)
        bench.halfway = {
            one: sum(bench.likeness(bench.unseen[other], one)["classifier"] for other in SUBJECTS) / 2
            for one in SUBJECTS
        }
        found = {}
        for part in (subject_grid, measure_strengths, measure_windows, measure_pairs):
            found[part.__name__], rows = part(bench)
            reach.save_sheet(rows, shop.work / "look" / f"mixes-{part.__name__}.png")
            print(part.__name__, json.dumps(found[part.__name__]), flush=True)
            (shop.work / "mixes.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
