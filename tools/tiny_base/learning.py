"""docs/learning.md: how near training comes, written from the figures of `reach`, `picks` and `real`, never by hand.

python -m tools.tiny_base.learning --work build/tiny-base --out docs
"""

import argparse
import json
from pathlib import Path

from PIL import Image

from . import picks, reach

HERE = Path(__file__).parent
NAMES = {"textual-inversion": "textual inversion", "lora": "LoRA", "pivotal": "pivotal", "full": "full"}
PICTURES = {  # in the work folder: in the docs
    "reach-alarm-clock.png": "learning-clock.png",
    "reach-teddy-bear.png": "learning-teddy.png",
    "reach-cyanotype.png": "learning-cyanotype.png",
    "reach-pencil.png": "learning-pencil.png",
    "mixes-grid.png": "mixes-grid.png",
    "mixes-together.png": "mixes-together.png",
}


def write(work, out):
    """Write the page and its pictures from work/reach.json, picks.json and real.json; what is not there is left out."""
    found = _read(work / "reach.json")
    subjects = {name: rows for name, rows in found.items() if name in reach.SUBJECTS}
    looks = {name: rows for name, rows in found.items() if name in reach.STYLES}
    text = (HERE / "learning.md").read_text().format(
        count=len(subjects), subjects="\n".join(_mean_rows(subjects)), each="\n".join(_subject_rows(subjects)),
        looks="\n".join(_look_rows(looks)), picks="\n".join(_pick_rows(_read(work / "picks.json"))),
        real="\n".join(_real_photo_rows(_read(work / "real.json"))),
        **{part: "\n".join(table) for part, table in _mix_tables(_read(work / "mixes.json"))},
    )  # fmt: skip
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    (out / "learning.md").write_text(text)
    for source, target in PICTURES.items():
        if (work / "look" / source).exists():
            picture = Image.open(work / "look" / source).convert("RGB").quantize(256)
            picture.save(out / "pictures" / target, optimize=True)
    if sheets := _join_photo_sheets(work):
        sheets.quantize(256).save(out / "pictures" / "learning-real.png", optimize=True)


def _mean_rows(subjects):
    """A row for the floor, the class noun, each method and the ceiling: means over the subjects it was measured on."""
    yield "| (subjects) | CLIP | classifier | of the ceiling | places right | copied | ended after | kept | seconds |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    title = {"floor": "other subjects' photos", "before": "the class noun", "ceiling": "the photos themselves"}
    for row in ("floor", "before", *reach.METHODS, "ceiling"):
        some = {name: one for name, one in subjects.items() if row in one}
        if not some:
            continue
        likeness = _mean(some, row, "classifier")
        cells = [f"{title.get(row) or NAMES[row]} ({len(some)})", f"{_mean(some, row, 'CLIP'):.3f}", f"{likeness:.3f}"]
        cells.append(f"{likeness / _mean(some, 'ceiling', 'classifier'):.0%}")
        cells.append(f"{_mean(some, row, 'places'):.0%}" if row not in ("floor", "ceiling") else "")
        if row in reach.METHODS:
            cells.append(f"{sum(one[row]['own']['copying'] for one in some.values()) / len(some):.0%}")
            cells += [f"{_mean(some, row, figure):.0f}" for figure in ("steps", "kept", "seconds")]
        yield "| " + " | ".join(cells + [""] * (9 - len(cells))) + " |"


def _subject_rows(subjects):
    """A row a subject: the second judge's likeness."""
    rows = ("before", *reach.METHODS, "ceiling")
    yield "| | the class noun | " + " | ".join(NAMES[method] for method in reach.METHODS) + " | the photos |"
    yield "| --- " * (len(rows) + 1) + "|"
    for name, one in subjects.items():
        cells = [f"{one[row]['classifier']:.2f}" if row in one else "" for row in rows]
        yield f"| {name} ({reach.SUBJECTS[name]}) | " + " | ".join(cells) + " |"


def _look_rows(looks):
    rows = ("before", *reach.METHODS, "ceiling")
    yield "| | CLIP | classifier | ended after | kept | seconds |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for name, one in looks.items():
        for row in rows:
            if row in one:
                said = {"before": "plain words", "ceiling": "photos in that style"}.get(row) or NAMES[row]
                ran = [str(one[row].get(figure, "")) for figure in ("steps", "kept", "seconds")]
                yield f"| {name}: {said} | {one[row]['CLIP']:.3f} | {one[row]['classifier']:.3f} | {' | '.join(ran)} |"


def _pick_rows(found):
    """A row a run: where it ended, what it kept, against the last step and the best by hindsight."""
    head = ("method, subject", "schedule", "ended", "kept", "its score", "the last's", "the best's", "of the best")
    yield f"| {' | '.join(head)} | classifier: kept, last, best |"
    yield "| --- " * (len(head) + 1) + "|"
    notes = []
    for method, runs in found.items():
        shares, ends, judged = [], [], []
        for subject, went in runs.items():
            one = picks.apply_rules(method, went)
            picked, last, best, sure = one["picked"], one["last"], one["best"], one["best by the second judge"]
            shares.append(picked["score"] / best["score"])
            ends.append(one["ended"] / one["steps"])
            judged.append(picked["classifier"] / sure["classifier"])
            cells = [one["steps"], one["ended"], picked["step"], f"{picked['score']:.3f}", f"{last['score']:.3f}"]
            cells += [f"{best['score']:.3f} at {best['step']}", f"{shares[-1]:.1%}"]
            cells += [
                f"{picked['classifier']:.3f}, {last['classifier']:.3f}, {sure['classifier']:.3f} at {sure['step']}"
            ]
            yield f"| {NAMES[method]}, {subject} | " + " | ".join(map(str, cells)) + " |"
        mean = lambda values: sum(values) / len(values)  # noqa: E731
        within = sum(share >= 0.97 for share in shares)
        notes.append(
            f"- {NAMES[method]}, {len(shares)} runs: {mean(ends):.0%} of the schedule's steps; the kept checkpoint has "
            f"{mean(shares):.1%} of the best's score (least {min(shares):.1%}; {within} of {len(shares)} within 3 %) "
            f"and {mean(judged):.1%} of the best likeness by the classifier."
        )
    yield ""
    yield from notes


def _mix_tables(found):
    """(place in the page, its table)"""
    rounded = lambda one, *figures: [f"{one[figure]:.3f}" for figure in figures]  # noqa: E731
    head = ("", "CLIP", "classifier")
    yield (
        "mixed",
        _table(
            (*head, "places right", "style right"),
            [
                (look, *rounded(one, "CLIP", "classifier"), f"{one['places']:.0%}", f"{one['look']:.0%}")
                for look, one in found.get("grid", {}).items()
            ],
        ),
    )
    yield (
        "strengths",
        _table(
            head,
            [(one, *rounded(row, "CLIP", "classifier")) for one, row in found.get("strengths", {}).items()],
        ),
    )
    yield (
        "windows",
        _table(
            (*head, "images in the style", "likeness then"),
            [
                (window, *rounded(one, "CLIP", "classifier"), f"{one['look']:.0%}", f"{one['likeness in it']:.3f}")
                for window, one in found.get("windows", {}).items()
            ],
        ),
    )
    subjects = [key for one in found.get("together", {}).values() for key in one if key not in ("both", "prompt")][:2]
    yield (
        "together",
        _table(
            ("prompt", *subjects, "both"),
            [
                (f"`{one['prompt']}`", *(f"{one[part]:.0%}" for part in (*subjects, "both")))
                for one in found.get("together", {}).values()
            ],
        ),
    )


def _table(head, rows):
    yield f"| {' | '.join(head)} |"
    yield "| --- " * len(head) + "|"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _real_photo_rows(found):
    rows = [("(sets)", "likeness", "prompts followed", "copied", "seconds")]
    for method in reach.METHODS:
        runs = [one[method] for one in found.values() if method in one]
        if runs:
            mean = lambda figure: sum(run["own"][figure] for run in runs) / len(runs)  # noqa: E731, B023
            seconds = sum(run["seconds"] for run in runs) / len(runs)
            row = [f"{NAMES[method]} ({len(runs)})", f"{mean('likeness'):.2f}", f"{mean('fidelity'):.0%}"]
            rows.append((*row, f"{mean('copying'):.0%}", f"{seconds:.0f}"))
    yield from _table(rows[0], rows[1:])
    yield ""
    sets = [(name, *(_likeness(one, method) for method in reach.METHODS)) for name, one in found.items()]
    yield from _table(("likeness", *(NAMES[method] for method in reach.METHODS)), sets)


def _likeness(one, method):
    return f"{one[method]['own']['likeness']:.2f}" if method in one else ""


def _join_photo_sheets(work):
    """The sheets of real photos, three abreast, without their first row: the photos are not ours to show."""
    parts = []
    for name, methods in _read(work / "real.json").items():
        sheet = Image.open(work / "look" / f"real-{name}.png").convert("RGB")
        parts.append(sheet.crop((0, sheet.height // (1 + len(methods)), *sheet.size)))
    if not parts:
        return None
    width, height = max(part.width for part in parts), max(part.height for part in parts)
    whole = Image.new("RGB", (3 * width, -(-len(parts) // 3) * height), "white")
    for i, part in enumerate(parts):
        whole.paste(part, (i % 3 * width, i // 3 * height))
    return whole


def _mean(subjects, row, figure):
    values = [one[row][figure] for one in subjects.values() if figure in one.get(row, {})]
    return sum(values) / len(values)


def _read(path):
    return json.loads(path.read_text()) if path.exists() else {}


def main():
    parser = argparse.ArgumentParser(description="Write docs/learning.md from the figures that WORK holds.")
    parser.add_argument("--work", type=Path, default=Path("build/tiny-base"))
    parser.add_argument("--out", type=Path, default=Path("docs"))
    args = parser.parse_args()
    write(args.work, args.out)


if __name__ == "__main__":
    main()
