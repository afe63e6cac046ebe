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
from .build_context import BuildContext

CLASSES = {  # of the DreamBooth data set's folders, in words
    "backpack_dog": "backpack", "bear_plushie": "stuffed animal", "duck_toy": "toy", "fancy_boot": "boot",
    "monster_toy": "toy", "red_cartoon": "cartoon", "robot_toy": "toy",
}  # fmt: skip
PROMPTS = ("a photo of {}", "{} on the beach", "{} in the snow", "{} on a blue background")


def class_noun(folder):
    return CLASSES.get(folder.name) or re.match(r"[a-z]+", folder.name)[0]


def measure_folder(folder, methods):
    """Figures of each method for one folder of photos; a line of pictures for each."""
    results, base = {}, load_base("tiny")
    squares = [Image.fromarray(photo.square()) for photo in load_photos(folder, 128).photos]
    rows = {f"{folder.name}: photos": (squares * 4)[:4] if len(squares) < 4 else squares[:4]}
    for method in methods:
        with tempfile.TemporaryDirectory() as work_folder:
            work_folder = Path(work_folder)
            (work_folder / "photos").symlink_to(folder.resolve())
            results[method] = reach.train_and_time(method, work_folder, class_noun(folder), "object")
            prompts = [prompt.format(f"<t/{method}>") for prompt in PROMPTS]
            rows[method] = reach.generate(base, Library(work_folder / "library"), prompts, seeds=1)
    return results, rows


def main():
    parser = argparse.ArgumentParser(description="Train on real photos with the built-in base.")
    parser.add_argument("--work", type=Path, default=Path("build/tiny-base"))
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--preset", choices=["auto", *presets.PRESETS], default="auto")
    parser.add_argument("--methods", nargs="+", choices=reach.METHODS, default=reach.METHODS)
    parser.add_argument("--only", nargs="+", help="these subjects")
    args = parser.parse_args()
    context = BuildContext(args.work, presets.choose(args.preset)[1], "cpu")
    loading.built_in_folder = lambda: context.weights_folder
    path = context.work / "real.json"
    results, lines = json.loads(path.read_text()) if path.exists() else {}, {}
    for folder in sorted(path for path in args.photos.iterdir() if path.is_dir()):
        if args.only and folder.name not in args.only:
            continue
        figures, rows = measure_folder(folder, args.methods)
        results[folder.name] = results.get(folder.name, {}) | figures
        print(folder.name, json.dumps(figures), flush=True)
        path.write_text(json.dumps(results, indent=1) + "\n")
        # Drawn pictures only: the photos are not ours to put in a document.
        lines |= {f"{captions.with_article(class_noun(folder))}, {method}": rows[method] for method in args.methods}
        reach.save_sheet(rows, context.work / "look" / f"real-{folder.name}.png")
    reach.save_sheet(lines, context.work / "look" / "real.png")


if __name__ == "__main__":
    main()
