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
from dataclasses import replace
from pathlib import Path

from PIL import Image

from sdpersonal.bases import loading
from sdpersonal.training.course import course_of
from sdpersonal.training.presets import preset
from sdpersonal.training.settling import evidence
from sdpersonal.training.trials import FOLDER, best_of, is_rising, picture_name, read_trials

from . import photos, presets, reach
from .workshop import Workshop

_TILE, _GAP, _MARGIN = 128, 6, int(128 * 1.15)  # of the sheets that a run keeps


def tiles(path):
    """The eight pictures of a trial's sheet, as they were drawn."""
    page = Image.open(path).convert("RGB")
    places = [(_MARGIN + _GAP + x * (_TILE + _GAP), _GAP + y * (_TILE + _GAP)) for y in range(4) for x in range(2)]
    return [page.crop((left, top, left + _TILE, top + _TILE)) for left, top in places]


def measured_in(run):
    """The fixed batch's losses: (step, loss)."""
    lines = [json.loads(line) for line in (run / "progress.jsonl").read_text().splitlines()]
    return [(line["step"], line["fixed"]) for line in lines if "fixed" in line]


def ended_at(run, measured, course, steps):
    """The step at which the rule ends such a run."""
    for mark in course.milestones(steps):
        seen = evidence([one for one in measured if one[0] <= mark], course.pivot)
        if seen and seen[-1].settled and not is_rising([trial for trial in read_trials(run) if trial.step <= mark]):
            return mark
    return steps


def pick(shop, subject, method, eyes):
    """Figures of one subject and method."""
    unseen = photos.sample_photos(shop.work, subject, reach.GUARDED, reach.UNSEEN + list(reach.SUBJECTS).index(subject))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        photos.save(photos.sample_photos(shop.work, subject, reach.LEARNED, reach.SEEN), folder / "photos")
        whole = reach.taught(method, folder, reach.SUBJECTS[subject], "object", early_stop=False)
        run = folder / method
        measured, trials = measured_in(run), read_trials(run)
        name = method if method == "textual-inversion" else f"dreambooth-{method}"
        table = replace(preset(name, "tiny"), measure_every=measured[0][0])
        course = course_of(table, True, True)
        ended = ended_at(run, measured, course, whole["steps"])
        truth = {t.step: eyes.likeness(tiles(run / FOLDER / picture_name(t.step)), unseen) for t in trials}
    picked = best_of([trial for trial in trials if trial.step <= ended])
    best = max(trials, key=lambda trial: trial.scores.score)
    sure = max(truth, key=lambda step: truth[step]["classifier"])
    line = lambda trial: {"step": trial.step, "score": round(trial.scores.score, 3)} | truth[trial.step]  # noqa: E731
    return {
        "steps": whole["steps"],
        "ended": ended,
        "picked": line(picked),
        "last": line(trials[-1]),
        "best": line(best),
        "best by the second judge": {"step": sure} | truth[sure],
        "seconds of the whole": whole["seconds"],
        "trials": [line(trial) for trial in trials],
        "measured": measured,
    }


def main():
    parser = argparse.ArgumentParser(description="Measure what stopping early and picking a checkpoint cost.")
    parser.add_argument("--work", type=Path, default=Path("build/tiny-base"))
    parser.add_argument("--preset", choices=["auto", *presets.PRESETS], default="auto")
    parser.add_argument("--subjects", type=int, default=len(reach.SUBJECTS))
    parser.add_argument("--methods", nargs="+", choices=reach.METHODS, default=reach.METHODS)
    args = parser.parse_args()
    shop = Workshop(args.work, presets.choose(args.preset)[1], "cpu")
    loading.built_in_folder = lambda: shop.weights_folder
    eyes, path = reach.Eyes(shop), shop.work / "picks.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    for method in args.methods:
        for subject in list(reach.SUBJECTS)[: args.subjects]:
            found.setdefault(method, {})[subject] = pick(shop, subject, method, eyes)
            print(method, subject, json.dumps(found[method][subject]), flush=True)
            path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
