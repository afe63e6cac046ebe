"""A sheet as a page asks for it: what changes along each side, from a list of what can."""

from __future__ import annotations

from ....errors import PersonalError
from ....playground.xyz_grid import Sheet, draw_sheet
from ..generation_service import Work
from ..render_job import Desk

# What can change: the words of the list, how an axis begins, an example.
SIDES = {
    "Seed": ("seed", "1..4"),
    "Words in the place of {}": ("words", "samurai|cowboy|saint"),
    "Whole prompts": ("prompt", "a cat|a dog"),
    "Strength of a concept": ("strength", "<me/duck>: 0..1 by 0.25"),
    "Time of a concept": ("window", "<me/ink>: 0-1, 0-0.6, 0.4-1"),
    "One concept for another": ("concept", "<me/duck>: <me/cat>, a toy duck"),
    "Steps": ("steps", "5, 10, 25, 50"),
    "Guidance": ("guidance", "1, 3, 5, 7.5"),
}
NOTHING = "Nothing"


def axis(kind: object, values: object) -> str | None:
    """One line for `Sheet`; None for nothing. Raises PersonalError for what is not in the list.

    Checkpoints are not: their axis names a folder, and a page's text must not.
    """
    if kind in (None, "", NOTHING):
        return None
    if not isinstance(kind, str) or kind not in SIDES or not isinstance(values, str):
        raise PersonalError("That is nothing that a sheet can change.", f"Choose one of: {', '.join(SIDES)}.")
    name, example = SIDES[kind]
    target, colon, rest = values.rpartition(": ") if name in ("strength", "window", "concept") else ("", "", values)
    if name in ("strength", "window", "concept") and not colon:
        raise PersonalError(f"{kind} needs the concept first.", f"For example {example}")
    return f"{name} {target}: {rest}".replace(" :", ":")


def sheet_work(form: dict, x: object, x_values: object, y: object, y_values: object) -> Work:
    """Work for the studio. form: as for a drawing; its number of pictures does not count."""
    fields = {name: value for name, value in form.items() if name not in ("n", "every")}
    across = axis(x, x_values)
    if across is None:
        raise PersonalError("Say what changes from column to column.", "For example Seed, 1..4.")
    asked = Sheet(**fields, x=across, y=axis(y, y_values))

    def work(desk: Desk) -> str:
        kept = draw_sheet(asked, desk.generator, desk.outputs, False, _share(desk), desk.stopped)
        for picture in kept.sheets:
            desk.show(picture)
        return f"A sheet of {len(kept.pictures)} pictures, each of them kept too. The page with all: {kept.page.name}"

    return work


def _share(desk: Desk):
    def progress(done: int, total: int) -> None:
        desk.tell({"message": f"Drawing the sheet: {done / max(1, total):.0%}", "done": done / max(1, total)})

    return progress
