"""Reach: how near textual inversion and DreamBooth LoRA bring the base to things it has never seen.

    python -m tools.tiny_base.reach --work build/tiny-base [--subjects 2]

For each kept-out subject: five photos to learn from, four others to compare with. Likeness is the mean cosine of
features between drawn pictures and the held-out photos; the ceiling is what the learning photos themselves score,
the floor is photos of the other subjects, "before" is the class word alone.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F

from sdpersonal.bases import load_base, loading
from sdpersonal.config import DreamboothSettings, InversionSettings, Request
from sdpersonal.generation import Generator
from sdpersonal.library import Library
from sdpersonal.training.run import train

from . import clip, judge, photos, presets
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
PROMPTS = (
    "a photo of {}",
    "a photo of {} on a white background",
    "a photo of {} on the beach",
    "a photo of {} in space",
)
SEEN, UNSEEN = 1, 2  # seeds of the photos to learn from, and of those to compare with


def tensor(images):
    """PIL pictures -> (N, 3, 128, 128) in -1..1."""
    pixels = [
        torch.frombuffer(bytearray(i.convert("RGB").resize((128, 128)).tobytes()), dtype=torch.uint8) for i in images
    ]
    return torch.stack(pixels).view(-1, 128, 128, 3).permute(0, 3, 1, 2).float() / 127.5 - 1


class Eyes:
    """Both judges' features, and likeness by them."""

    def __init__(self, shop):
        self.clip, self.classifier = shop.clip, judge.load(shop.work / "second-judge", shop.world)

    @torch.no_grad()
    def likeness(self, some, others):
        """Mean cosine between two sets of PIL pictures, by the CLIP and by the classifier."""
        a, b = tensor(some), tensor(others)
        by_clip = clip.features(self.clip, pictures=a) @ clip.features(self.clip, pictures=b).T
        f = lambda x: F.normalize(self.classifier.features(x), dim=1)  # noqa: E731
        return {"CLIP": round(by_clip.mean().item(), 3), "classifier": round((f(a) @ f(b).T).mean().item(), 3)}


def draw(base, library, what, seeds=2):
    """Pictures of `what` in every prompt."""
    generator = Generator(base, library)
    asked = [Request(prompt=prompt.format(what), n=seeds, seed=7) for prompt in PROMPTS]
    return [picture.image for request in asked for picture in generator.draw(request)]


def reach(shop, subject, folder, eyes, unseen):
    """Figures of one subject: floor, before, after each method, ceiling."""
    work = shop.work
    seen, noun = photos.sample_photos(work, subject, 5, SEEN), SUBJECTS[subject]
    photos.save(seen, folder / "photos")
    library, word = folder / "library", subject.replace(" ", "-")
    common = {"photos": folder / "photos", "library": library, "base": "tiny"}
    inversion = train(InversionSettings(**common, token=f"<t/{word}>", init=noun, run=folder / "ti"), say=str)
    lora = train(DreamboothSettings(**common, token=f"<d/{word}>", class_noun=noun, run=folder / "lora"), say=str)
    base, shelf = load_base("tiny"), Library(library)
    mine = unseen[subject]
    others = [photo for name, some in unseen.items() if name != subject for photo in some]
    return {
        "floor": eyes.likeness(others, mine),
        "before": eyes.likeness(draw(base, shelf, f"a {noun}"), mine),
        "textual inversion": eyes.likeness(draw(base, shelf, str(inversion.token)), mine),
        "DreamBooth LoRA": eyes.likeness(draw(base, shelf, str(lora.token)), mine),
        "ceiling": eyes.likeness(seen, mine),
        "seconds": [round(inversion.seconds), round(lora.seconds)],
    }


def main():
    parser = argparse.ArgumentParser(description="Measure how near personalisation comes to kept-out subjects.")
    parser.add_argument("--work", type=Path, default=Path("build/tiny-base"))
    parser.add_argument("--preset", choices=["auto", *presets.PRESETS], default="auto")
    parser.add_argument("--subjects", type=int, default=len(SUBJECTS))
    args = parser.parse_args()
    shop = Workshop(args.work, presets.choose(args.preset)[1], "cpu")
    loading.built_in_folder = lambda: shop.weights_folder  # the base that was just made, not the one that ships now
    eyes = Eyes(shop)
    unseen = {name: photos.sample_photos(shop.work, name, 4, UNSEEN + i) for i, name in enumerate(SUBJECTS)}
    path = shop.work / "reach.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    for subject in list(SUBJECTS)[: args.subjects]:
        with tempfile.TemporaryDirectory() as folder:
            found[subject] = reach(shop, subject, Path(folder), eyes, unseen)
        print(subject, json.dumps(found[subject]), flush=True)
        path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
