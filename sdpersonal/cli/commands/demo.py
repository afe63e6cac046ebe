"""Run the command `demo`: train on three sample sets of photos, and generate a grid that mixes the concepts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from ... import storage
from ...concepts.library import Library
from ...config import DreamboothSettings, GenerateRequest, SettingsBase
from ...photos import SAMPLES
from ...prompts import Token
from ..terminal import say

SUBJECT, OTHER, STYLE = "<demo/teddy>", "<demo/fox>", "<demo/cyanotype>"
NUM_IMAGES = 4
ROWS = (  # the concept whose photo comes first, and the prompt
    (SUBJECT, f"{SUBJECT} on the beach"),
    (SUBJECT, f"{SUBJECT} in space"),
    (OTHER, f"{OTHER} in the snow"),
    (STYLE, "a duck in the style of <demo/cyanotype:guidance=2>"),
    (STYLE, f"{SUBJECT} in the snow in the style of {STYLE}"),
    (OTHER, f"{SUBJECT} next to {OTHER} on the beach"),
)


class DemoArgs(SettingsBase):
    """Train two sample subjects and a sample style, and generate a grid that mixes them."""

    out: Path = Path("outputs/demo")
    """Folder for the grid, the runs and their own library."""


def demo(settings: DemoArgs) -> int:
    storage.check_folder(settings.out)
    run_demo(settings.out, say=say)
    return 0


def run_demo(out: Path, say: Callable[[str], None] = print) -> Path:
    """Train what is not yet trained in `out`, generate the grid, and say where it is. Raises UserError."""
    from ...display.image_grid import encode_png, labelled_grid
    from ...generation import Generator
    from ...models import load_base
    from ...photos.loading import load_photos

    sets = {SUBJECT: SAMPLES / "teddy-bear", OTHER: SAMPLES / "fox", STYLE: SAMPLES / "cyanotype"}
    library = Library(out / "concepts")
    _train_if_missing(out, SUBJECT, photos=sets[SUBJECT], class_noun="bear", say=say)
    _train_if_missing(out, OTHER, photos=sets[OTHER], class_noun="dog", say=say)
    _train_if_missing(out, STYLE, photos=sets[STYLE], class_noun="blue and white", kind="style", say=say)
    base = load_base("tiny")
    firsts = {token: Image.fromarray(load_photos(folder, 256).photos[0].square()) for token, folder in sets.items()}
    generator, rows = Generator(base, library), []
    for token, prompt in ROWS:
        say(f"Generating {prompt}")
        results = generator.generate(GenerateRequest(prompt=prompt, num_images=NUM_IMAGES))
        rows.append([firsts[token], *(result.image for result in results)])
    page = labelled_grid(rows, [prompt for _, prompt in ROWS], ["a photo", *(f"seed {i}" for i in range(NUM_IMAGES))])
    path = out / "sheet.png"
    storage.write_bytes(path, encode_png(page))
    say(f"Your turn: sdpersonal generate '{SUBJECT} in the forest' --base tiny --library {library.folder}")
    say(str(path))
    return path


def _train_if_missing(out: Path, token: str, say: Callable[[str], None], **settings: Any) -> None:
    from ...training import train
    from ...training.run_dir import latest_step

    library, run = Library(out / "concepts"), out / "runs" / Token.parse(token).name
    if any(Token.parse(token).matches(entry.token) for entry in library.entries()):
        say(f"{token} is trained already.")
        return
    unfinished = latest_step(run) is not None
    train(
        DreamboothSettings(token=token, base="tiny", library=library.folder, run=run, resume=unfinished, **settings),
        say,
    )


COMMANDS = {"demo": (demo, DemoArgs)}
