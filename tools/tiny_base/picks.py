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
from sdpersonal.training.run_dir import PROGRESS_FILE, read_sample_images, validation_folder
from sdpersonal.training.validation import Validation, best_validation, is_improving, read_validations

from . import photos, presets, reach
from .build_context import BuildContext


def validation_images(run, step):
    """Load the scored images of a validation."""
    samples = read_sample_images(validation_folder(run, step))
    return [Image.open(sample.path).convert("RGB") for sample in samples if not sample.is_own]


def read_losses(run):
    """Read the fixed batch's losses: (step, loss)."""
    lines = [json.loads(line) for line in (run / PROGRESS_FILE).read_text().splitlines()]
    return [(line["step"], line["fixed"]) for line in lines if "fixed" in line]


def measure_run(context, subject, method, clip):
    """Train one subject with a method; return the scores at every milestone, those of both scorers, and the losses."""
    unseen = photos.sample_photos(
        context.work, subject, reach.TEST_PHOTOS, reach.TEST_SEED + list(reach.SUBJECTS).index(subject)
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        photos.save(
            photos.sample_photos(context.work, subject, reach.TRAINING_PHOTOS, reach.TRAINING_SEED), folder / "photos"
        )
        summary = reach.train_and_time(method, folder, reach.SUBJECTS[subject], "object", early_stop=False)
        run = folder / method
        entries = [
            {
                "step": validation.step,
                "score": round(validation.scores.score, 3),
                "fidelity": round(validation.scores.fidelity, 3),
            }
            | clip.likeness(validation_images(run, validation.step), unseen)
            for validation in read_validations(run)
        ]
        measured = read_losses(run)
    return {"steps": summary["steps"], "seconds": summary["seconds"], "trials": entries, "measured": measured}


def apply_rules(method, measured_run):
    """Apply the stopping rule to a run; return where it ends, and the picked, last and best of its validations, and the
    best of those in the first half of the schedule."""
    validations = [
        Validation(entry["step"], _TrialScore(entry["score"], entry.get("fidelity", 1.0)))  # some runs recorded none
        for entry in measured_run["trials"]
    ]
    name = method if method == "textual-inversion" else f"dreambooth-{method}"
    end = _end_step(validations, measured_run["measured"], preset(name, "tiny").pivot_steps)
    by_step = {entry["step"]: entry for entry in measured_run["trials"]}
    return {
        "steps": measured_run["steps"],
        "ended": end,
        "picked": by_step[best_validation([validation for validation in validations if validation.step <= end]).step],
        "last": measured_run["trials"][-1],
        "best": max(measured_run["trials"], key=lambda entry: entry["score"]),
        "best of the first half": max(
            (entry for entry in measured_run["trials"] if 2 * entry["step"] <= measured_run["steps"]),
            key=lambda entry: entry["score"],
        ),
        "best by the second judge": max(measured_run["trials"], key=lambda entry: entry["classifier"]),
    }


@dataclass(frozen=True)
class _TrialScore:
    """The part of a validation's scores that the rules read."""

    score: float
    fidelity: float
    out_of_domain: bool = False


def _end_step(validations, measured, pivot):
    for number, validation in enumerate(validations, 1):
        points = dvar([entry for entry in measured if entry[0] <= validation.step], pivot)
        if points and points[-1].converged and not is_improving(validations[:number]):
            return validation.step
    return validations[-1].step


def main():
    parser = argparse.ArgumentParser(description="Measure what stopping early and picking a checkpoint cost.")
    parser.add_argument("--work", type=Path, default=Path("build/tiny-base"))
    parser.add_argument("--preset", choices=["auto", *presets.PRESETS], default="auto")
    parser.add_argument("--subjects", type=int, default=len(reach.SUBJECTS))
    parser.add_argument("--methods", nargs="+", choices=reach.METHODS, default=reach.METHODS)
    args = parser.parse_args()
    context = BuildContext(args.work, presets.choose(args.preset)[1], "cpu")
    loading.built_in_folder = lambda: context.weights_folder
    scorers, path = reach.ScorerPair(context), context.work / "picks.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for method in args.methods:
        for subject in list(reach.SUBJECTS)[: args.subjects]:
            if subject not in results.setdefault(method, {}):  # a measurement goes on where it was stopped
                results[method][subject] = measure_run(context, subject, method, scorers)
            print(method, subject, json.dumps(apply_rules(method, results[method][subject])), flush=True)
            path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
