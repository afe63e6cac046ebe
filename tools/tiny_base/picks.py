"""What stopping early and picking a checkpoint cost, against going through the whole schedule.

    python -m tools.tiny_base.picks --work build/tiny-base [--subjects 8] [--methods lora]

A run is let go on to the end of its schedule, with a trial at every milestone. Where the rule would have ended it, and
which checkpoint would have been kept there, follows from what it wrote down. That one is compared with the last and
with the best by hindsight: by the score that picks, and by the second judge's likeness of the trials' pictures to
photos that nobody learned from.
"""

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from sdpersonal.models import loading
from sdpersonal.training.early_stopping import dvar
from sdpersonal.training.presets import preset
from sdpersonal.training.validation import (
    VALIDATIONS_FOLDER,
    Validation,
    best_validation,
    image_name,
    is_improving,
    read_validations,
)

from . import photos, presets, reach
from .workshop import BuildContext

_TILE, _GAP, _MARGIN = 128, 6, int(128 * 1.15)  # of the sheets that a run keeps


def tiles(path):
    """The eight pictures of a trial's sheet, as they were drawn."""
    page = Image.open(path).convert("RGB")
    places = [(_MARGIN + _GAP + x * (_TILE + _GAP), _GAP + y * (_TILE + _GAP)) for y in range(4) for x in range(2)]
    return [page.crop((left, top, left + _TILE, top + _TILE)) for left, top in places]


def read_losses(run):
    """The fixed batch's losses: (step, loss)."""
    lines = [json.loads(line) for line in (run / "progress.jsonl").read_text().splitlines()]
    return [(line["step"], line["fixed"]) for line in lines if "fixed" in line]


def measure_run(context, subject, method, clip):
    """What one subject and method went through: the scores and the truth at every milestone, and the losses."""
    unseen = photos.sample_photos(
        context.work, subject, reach.GUARDED, reach.UNSEEN + list(reach.SUBJECTS).index(subject)
    )
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        photos.save(photos.sample_photos(context.work, subject, reach.LEARNED, reach.SEEN), folder / "photos")
        whole = reach.train_and_time(method, folder, reach.SUBJECTS[subject], "object", early_stop=False)
        run = folder / method
        trials = [
            {"step": trial.step, "score": round(trial.scores.score, 3)}
            | clip.likeness(tiles(run / VALIDATIONS_FOLDER / image_name(trial.step)), unseen)
            for trial in read_validations(run)
        ]
        measured = read_losses(run)
    return {"steps": whole["steps"], "seconds": whole["seconds"], "trials": trials, "measured": measured}


def apply_rules(method, went):
    """Where the rule as it is now ends such a run, and which of its trials are kept, last, best, and best in truth."""
    held = [Validation(one["step"], _TrialScore(one["score"])) for one in went["trials"]]
    name = method if method == "textual-inversion" else f"dreambooth-{method}"
    ended = _end_step(held, went["measured"], preset(name, "tiny").pivot_steps)
    by_step = {one["step"]: one for one in went["trials"]}
    return {
        "steps": went["steps"],
        "ended": ended,
        "picked": by_step[best_validation([trial for trial in held if trial.step <= ended]).step],
        "last": went["trials"][-1],
        "best": max(went["trials"], key=lambda one: one["score"]),
        "best by the second judge": max(went["trials"], key=lambda one: one["classifier"]),
    }


@dataclass(frozen=True)
class _TrialScore:
    """As much of a trial's scores as the rules look at."""

    score: float


def _end_step(held, measured, pivot):
    for number, trial in enumerate(held, 1):
        seen = dvar([one for one in measured if one[0] <= trial.step], pivot)
        if seen and seen[-1].converged and not is_improving(held[:number]):
            return trial.step
    return held[-1].step


def main():
    parser = argparse.ArgumentParser(description="Measure what stopping early and picking a checkpoint cost.")
    parser.add_argument("--work", type=Path, default=Path("build/tiny-base"))
    parser.add_argument("--preset", choices=["auto", *presets.PRESETS], default="auto")
    parser.add_argument("--subjects", type=int, default=len(reach.SUBJECTS))
    parser.add_argument("--methods", nargs="+", choices=reach.METHODS, default=reach.METHODS)
    args = parser.parse_args()
    shop = BuildContext(args.work, presets.choose(args.preset)[1], "cpu")
    loading.built_in_folder = lambda: shop.weights_folder
    eyes, path = reach.JudgePair(shop), shop.work / "picks.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    for method in args.methods:
        for subject in list(reach.SUBJECTS)[: args.subjects]:
            found.setdefault(method, {})[subject] = measure_run(shop, subject, method, eyes)
            print(method, subject, json.dumps(apply_rules(method, found[method][subject])), flush=True)
            path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
