"""Real photos, which are far outside the built-in base's world: how near each method comes all the same.

    python -m tools.tiny_base.real --work build/tiny-base --photos FOLDER [--methods lora full]

FOLDER holds a folder of photos for each subject, whose name begins with its class: `dog6`, `backpack_dog`. The figures
are the acceptance test's own, by the small CLIP, which has never seen a photo; the sheet tells more.
"""

import argparse
import json
import re
import tempfile
from pathlib import Path

from PIL import Image

from sdpersonal.concepts.library import Library
from sdpersonal.models import load_base, loading
from sdpersonal.photos.loading import load_photos

from . import captions, presets, reach
from .workshop import BuildContext

CLASSES = {  # of the DreamBooth data set's folders, in words
    "backpack_dog": "backpack", "bear_plushie": "stuffed animal", "duck_toy": "toy", "fancy_boot": "boot",
    "monster_toy": "toy", "red_cartoon": "cartoon", "robot_toy": "toy",
}  # fmt: skip
PROMPTS = ("a photo of {}", "{} on the beach", "{} in the snow", "{} on a blue background")


def class_noun(folder):
    return CLASSES.get(folder.name) or re.match(r"[a-z]+", folder.name)[0]


def measure_folder(folder, methods):
    """Figures of each method for one folder of photos; a line of pictures for each."""
    found, base = {}, load_base("tiny")
    seen = [Image.fromarray(photo.square()) for photo in load_photos(folder, 128).photos]
    rows = {f"{folder.name}: photos": (seen * 4)[:4] if len(seen) < 4 else seen[:4]}
    for method in methods:
        with tempfile.TemporaryDirectory() as place:
            place = Path(place)
            (place / "photos").symlink_to(folder.resolve())
            found[method] = reach.train_and_time(method, place, class_noun(folder), "object")
            prompts = [prompt.format(f"<t/{method}>") for prompt in PROMPTS]
            rows[method] = reach.generate(base, Library(place / "library"), prompts, seeds=1)
    return found, rows


def main():
    parser = argparse.ArgumentParser(description="Train on real photos with the built-in base.")
    parser.add_argument("--work", type=Path, default=Path("build/tiny-base"))
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--preset", choices=["auto", *presets.PRESETS], default="auto")
    parser.add_argument("--methods", nargs="+", choices=reach.METHODS, default=reach.METHODS)
    parser.add_argument("--only", nargs="+", help="these subjects")
    args = parser.parse_args()
    shop = BuildContext(args.work, presets.choose(args.preset)[1], "cpu")
    loading.built_in_folder = lambda: shop.weights_folder
    path = shop.work / "real.json"
    found, lines = json.loads(path.read_text()) if path.exists() else {}, {}
    for folder in sorted(one for one in args.photos.iterdir() if one.is_dir()):
        if args.only and folder.name not in args.only:
            continue
        figures, rows = measure_folder(folder, args.methods)
        found[folder.name] = found.get(folder.name, {}) | figures
        print(folder.name, json.dumps(figures), flush=True)
        path.write_text(json.dumps(found, indent=1) + "\n")
        # Drawn pictures only: the photos are not ours to put in a document.
        lines |= {f"{captions.with_article(class_noun(folder))}, {method}": rows[method] for method in args.methods}
        reach.save_sheet(rows, shop.work / "look" / f"real-{folder.name}.png")
    reach.save_sheet(lines, shop.work / "look" / "real.png")


if __name__ == "__main__":
    main()
