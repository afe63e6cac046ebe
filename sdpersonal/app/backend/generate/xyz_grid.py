"""A sheet as a page asks for it: what changes along each side, from a list of what can."""

from __future__ import annotations

from ....errors import UserError
from ....playground.xyz_grid import XyzGridRequest, generate_grid
from ..generation_service import RenderJob
from ..render_job import JobContext

# What can change: the words of the list, how an axis begins, an example.
AXES = {
    "Seed": ("seed", "1..4"),
    "Words in the place of {}": ("words", "samurai|cowboy|saint"),
    "Whole prompts": ("prompt", "a cat|a dog"),
    "Strength of a concept": ("strength", "<me/duck>: 0..1 by 0.25"),
    "Time of a concept": ("window", "<me/ink>: 0-1, 0-0.6, 0.4-1"),
    "One concept for another": ("concept", "<me/duck>: <me/cat>, a toy duck"),
    "Steps": ("steps", "5, 10, 25, 50"),
    "Guidance": ("guidance", "1, 3, 5, 7.5"),
}
NO_AXIS = "Nothing"


def axis_text(kind: object, values: object) -> str | None:
    """One line for `XyzGridRequest`; None for nothing. Raises UserError for what is not in the list.

    Checkpoints are not: their axis names a folder, and a page's text must not.
    """
    if kind in (None, "", NO_AXIS):
        return None
    if not isinstance(kind, str) or kind not in AXES or not isinstance(values, str):
        raise UserError("That is nothing that a sheet can change.", f"Choose one of: {', '.join(AXES)}.")
    name, example = AXES[kind]
    target, colon, rest = values.rpartition(": ") if name in ("strength", "window", "concept") else ("", "", values)
    if name in ("strength", "window", "concept") and not colon:
        raise UserError(f"{kind} needs the concept first.", f"For example {example}")
    return f"{name} {target}: {rest}".replace(" :", ":")


def grid_job(form: dict, x: object, x_values: object, y: object, y_values: object) -> RenderJob:
    """Work for the studio. form: as for a drawing; its number of pictures does not count."""
    fields = {name: value for name, value in form.items() if name not in ("n", "every")}
    across = axis_text(x, x_values)
    if across is None:
        raise UserError("Say what changes from column to column.", "For example Seed, 1..4.")
    asked = XyzGridRequest(**fields, x=across, y=axis_text(y, y_values))

    def work(desk: JobContext) -> str:
        kept = generate_grid(asked, desk.generator, desk.outputs, False, _report_progress(desk), desk.stopped)
        for picture in kept.sheets:
            desk.show(picture)
        return f"A sheet of {len(kept.pictures)} pictures, each of them kept too. The page with all: {kept.page.name}"

    return work


def _report_progress(desk: JobContext):
    def progress(done: int, total: int) -> None:
        desk.tell({"message": f"Drawing the sheet: {done / max(1, total):.0%}", "done": done / max(1, total)})

    return progress
