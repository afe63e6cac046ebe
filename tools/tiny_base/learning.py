"""docs/learning.md: how near training comes, written from the figures of `reach`, `picks`, `mixes` and `real`.

Comparisons with former versions are added by hand, and go when it is written again.

python -m tools.tiny_base.learning --work build/tiny-base --out docs
python -m tools.tiny_base.learning --work build/tiny-base --out docs --picks

With --picks only the section on early stopping is written anew; the rest of the page stays, and its figures are not
needed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean
from typing import Any

from PIL import Image

from . import picks, reach

HERE = Path(__file__).parent
NAMES = {"textual-inversion": "textual inversion", "lora": "LoRA", "pivotal": "pivotal", "full": "full"}
PICKS_HEADING = "## Early stopping and the choice of the checkpoint\n"
IMAGES = {  # in the work folder: in the docs
    "reach-alarm-clock.png": "learning-clock.png",
    "reach-teddy-bear.png": "learning-teddy.png",
    "reach-cyanotype.png": "learning-cyanotype.png",
    "reach-pencil.png": "learning-pencil.png",
    "mixes-styles.png": "mixes-styles.png",
    "mixes-pairs.png": "mixes-pairs.png",
    "mixes-styled-pairs.png": "mixes-styled-pairs.png",
}


def write(work, out):
    """Write the page and its pictures from work/reach.json, picks.json and real.json; what is not there is left out."""
    results = _read(work / "reach.json")
    subjects = {name: rows for name, rows in results.items() if name in reach.SUBJECTS}
    looks = {name: rows for name, rows in results.items() if name in reach.STYLES}
    text = (HERE / "learning.md").read_text().format(
        count=len(subjects), subjects="\n".join(_mean_rows(subjects)), each="\n".join(_subject_rows(subjects)),
        looks="\n".join(_look_rows(looks)), picks="\n".join(_pick_rows(_read(work / "picks.json"))),
        real="\n".join(_real_photo_rows(_read(work / "real.json"))),
        **{part: "\n".join(table) for part, table in _mix_tables(_read(work / "mixes.json"))},
    )  # fmt: skip
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    (out / "learning.md").write_text(text)
    for source, target in IMAGES.items():
        if (work / "look" / source).exists():
            image = Image.open(work / "look" / source).convert("RGB").quantize(256)
            image.save(out / "pictures" / target, optimize=True)
    if sheets := _join_photo_sheets(work):
        sheets.quantize(256).save(out / "pictures" / "learning-real.png", optimize=True)


def write_picks(work, out):
    """Write the section on early stopping into the page that is there, from work/picks.json."""
    page, template = out / "learning.md", (HERE / "learning.md").read_text()
    section = template[slice(*_section_range(template))]
    text = page.read_text()
    start, end = _section_range(text)
    rows = "\n".join(_pick_rows(_read(work / "picks.json")))
    page.write_text(text[:start] + section.format(picks=rows) + text[end:])


def _section_range(text):
    """Return where the section on early stopping begins and ends."""
    start = text.index(PICKS_HEADING)
    return start, text.index("\n## ", start)


def _mean_rows(subjects):
    """A row for the floor, the class noun, each method and the ceiling: means over the subjects it was measured on."""
    yield "| (subjects) | CLIP | classifier | of the ceiling | places right | copied | ended after | kept | seconds |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    title = {"floor": "other subjects' photos", "before": "the class noun", "ceiling": "the photos themselves"}
    for row in ("floor", "before", *reach.METHODS, "ceiling"):
        measured = {name: figures for name, figures in subjects.items() if row in figures}
        if not measured:
            continue
        likeness = _mean(measured, row, "classifier")
        cells = [
            f"{title.get(row) or NAMES[row]} ({len(measured)})",
            f"{_mean(measured, row, 'CLIP'):.3f}",
            f"{likeness:.3f}",
        ]
        cells.append(f"{likeness / _mean(measured, 'ceiling', 'classifier'):.0%}")
        cells.append(f"{_mean(measured, row, 'places'):.0%}" if row not in ("floor", "ceiling") else "")
        if row in reach.METHODS:
            cells.append(f"{sum(figures[row]['own']['copying'] for figures in measured.values()) / len(measured):.0%}")
            cells += [f"{_mean(measured, row, figure):.0f}" for figure in ("steps", "kept", "seconds")]
        yield "| " + " | ".join(cells + [""] * (9 - len(cells))) + " |"


def _subject_rows(subjects):
    """A row a subject: the second judge's likeness."""
    rows = ("before", *reach.METHODS, "ceiling")
    yield "| | the class noun | " + " | ".join(NAMES[method] for method in reach.METHODS) + " | the photos |"
    yield "| --- " * (len(rows) + 1) + "|"
    for name, figures in subjects.items():
        cells = [f"{figures[row]['classifier']:.2f}" if row in figures else "" for row in rows]
        yield f"| {name} ({reach.SUBJECTS[name]}) | " + " | ".join(cells) + " |"


def _look_rows(looks):
    rows = ("before", *reach.METHODS, "ceiling")
    yield "| | CLIP | classifier | ended after | kept | seconds |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for name, figures in looks.items():
        for row in rows:
            if row in figures:
                label = {"before": "plain words", "ceiling": "photos in that style"}.get(row) or NAMES[row]
                ran = [str(figures[row].get(figure, "")) for figure in ("steps", "kept", "seconds")]
                scores = f"{figures[row]['CLIP']:.3f} | {figures[row]['classifier']:.3f}"
                yield f"| {name}: {label} | {scores} | {' | '.join(ran)} |"


def _pick_rows(results):
    """A row a run: where it ended, what it kept, against the last step and the best by hindsight."""
    head = ("method, subject", "schedule", "ended", "kept", "its score", "the last's", "the best's", "of the best")
    yield f"| {' | '.join(head)} | classifier: kept, last, best |"
    yield "| --- " * (len(head) + 1) + "|"
    notes = []
    for method, runs in results.items():
        figures_of_runs = {subject: picks.apply_rules(method, measured_run) for subject, measured_run in runs.items()}
        for subject, figures in figures_of_runs.items():
            yield _pick_row(f"{NAMES[method]}, {subject}", figures)
        notes.append(_pick_note(NAMES[method], list(figures_of_runs.values())))
    yield ""
    yield from notes


def _pick_row(name: str, figures: dict[str, Any]) -> str:
    picked, last, best = figures["picked"], figures["last"], figures["best"]
    sure = figures["best by the second judge"]
    cells = [
        figures["steps"],
        figures["ended"],
        picked["step"],
        f"{picked['score']:.3f}",
        f"{last['score']:.3f}",
        f"{best['score']:.3f} at {best['step']}",
        f"{picked['score'] / best['score']:.1%}" if best["score"] else "all 0",
        f"{picked['classifier']:.3f}, {last['classifier']:.3f}, {sure['classifier']:.3f} at {sure['step']}",
    ]
    return f"| {name} | " + " | ".join(map(str, cells)) + " |"


def _pick_note(name: str, figures_of_runs: list[dict[str, Any]]) -> str:
    """Sum up the runs of a method in one item of a list."""
    scored = [figures for figures in figures_of_runs if figures["best"]["score"]]
    shares = [figures["picked"]["score"] / figures["best"]["score"] for figures in scored]
    half_shares = [figures["best of the first half"]["score"] / figures["best"]["score"] for figures in scored]
    ends = [figures["ended"] / figures["steps"] for figures in figures_of_runs]
    classifier_shares = [
        figures["picked"]["classifier"] / figures["best by the second judge"]["classifier"]
        for figures in figures_of_runs
    ]
    within, within_half = (sum(share >= 0.97 for share in values) for values in (shares, half_shares))
    note = (
        f"- {name}, {len(ends)} runs: {fmean(ends):.0%} of the schedule's steps; the kept checkpoint has "
        f"{fmean(classifier_shares):.1%} of the best likeness by the classifier"
    )
    if shares:
        note += (
            f" and {fmean(shares):.1%} of the best's score (least {min(shares):.1%}; {within} of {len(shares)} "
            f"within 3 %). The best checkpoint of the first half has {fmean(half_shares):.1%} of it "
            f"({within_half} of {len(shares)} within 3 %), the most that any rule can reach with half the steps"
        )
    if unscored := len(figures_of_runs) - len(scored):
        note += f". In {unscored} of the runs no checkpoint scores more than 0, and the last one is kept"
    return f"{note}."


def _mix_tables(results):
    """Yield (placeholder of the page, its table)."""
    percent = lambda figures: [f"{value:.0%}" for value in figures.values()]  # noqa: E731
    head = ("", "look right", "places right", "likeness", "likeness in the look")
    rows = [
        (f"{way}, {group}", *percent(figures))
        for way, groups in results.get("styles", {}).items()
        for group, figures in groups.items()
    ]
    if "ceiling" in results:
        rows.append(("the filter itself", *percent(results["ceiling"])))
    yield "styles", _table(head, rows)
    looks = [(look, *percent(figures)) for look, figures in results.get("base looks", {}).items()]
    yield "base_looks", _table(head[:3], looks)
    pairs = [(group, *percent(figures)) for group, figures in results.get("pairs", {}).items()]
    yield "pairs", _table(("", "mixed plainly", "composed"), pairs)
    yield "styled_pairs", [f"{results.get('styled pairs', 0):.0%}"]
    yield "times", [" and ".join(f"{ratio:.1f} for {name}" for name, ratio in results.get("time", {}).items())]
    for part in ("strengths", "windows"):
        yield part, _table(("", "classifier"), [(k, f"{v:.3f}") for k, v in results.get(part, {}).items()])


def _table(head, rows):
    yield f"| {' | '.join(head)} |"
    yield "| --- " * len(head) + "|"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _real_photo_rows(results):
    rows = [("(sets)", "likeness", "prompts followed", "copied", "seconds")]
    for method in reach.METHODS:
        runs = [figures[method] for figures in results.values() if method in figures]
        if runs:
            mean = lambda figure: sum(run["own"][figure] for run in runs) / len(runs)  # noqa: E731, B023
            seconds = sum(run["seconds"] for run in runs) / len(runs)
            row = [f"{NAMES[method]} ({len(runs)})", f"{mean('likeness'):.2f}", f"{mean('fidelity'):.0%}"]
            rows.append((*row, f"{mean('copying'):.0%}", f"{seconds:.0f}"))
    yield from _table(rows[0], rows[1:])
    yield ""
    sets = [(name, *(_likeness(figures, method) for method in reach.METHODS)) for name, figures in results.items()]
    yield from _table(("likeness", *(NAMES[method] for method in reach.METHODS)), sets)


def _likeness(figures, method):
    return f"{figures[method]['own']['likeness']:.2f}" if method in figures else ""


def _join_photo_sheets(work):
    """Join the sheets of real photos, three abreast, without their first row: the photos must not be published."""
    parts = []
    for name, methods in _read(work / "real.json").items():
        sheet = Image.open(work / "look" / f"real-{name}.png").convert("RGB")
        parts.append(sheet.crop((0, sheet.height // (1 + len(methods)), *sheet.size)))
    if not parts:
        return None
    width, height = max(part.width for part in parts), max(part.height for part in parts)
    joined = Image.new("RGB", (3 * width, -(-len(parts) // 3) * height), "white")
    for i, part in enumerate(parts):
        joined.paste(part, (i % 3 * width, i // 3 * height))
    return joined


def _mean(subjects, row, figure):
    values = [figures[row][figure] for figures in subjects.values() if figure in figures.get(row, {})]
    return sum(values) / len(values)


def _read(path):
    return json.loads(path.read_text()) if path.exists() else {}


def main():
    parser = argparse.ArgumentParser(description="Write docs/learning.md from the figures that WORK holds.")
    parser.add_argument("--work", type=Path, default=Path("build/tiny-base"))
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--picks", action="store_true", help="write the section on early stopping only")
    args = parser.parse_args()
    (write_picks if args.picks else write)(args.work, args.out)


if __name__ == "__main__":
    main()
