"""`generate` and `demo`."""

from __future__ import annotations

from pathlib import Path

import tyro

from ..config import PromptText, Request, Settings
from ..library import Library
from .output import bar, say


class Drawing(Request):
    """Draw pictures of a prompt with concepts in it."""

    prompt: tyro.conf.Positional[PromptText]
    """English with concept tokens in it: 'a photo of <me/duck> on the beach'."""
    base: str | None = None
    """Model to draw with: tiny, sd15, sd21, sdxl, a Hub id, folder or file. Default: sd15 on CUDA, else tiny."""
    safety_checker: bool = True
    """Hide what the base's safety checker flags, where it has one."""
    library: Path = Path("concepts")
    """Folder that keeps your concepts."""
    out: Path = Path("outputs")
    """Folder for the pictures; each day gets one of its own in it."""
    wildcards: Path = Path("wildcards")
    """Folder of lists for __name__ in prompts: name.txt, an option a line."""
    private: bool = False
    """Leave no recipe in the pictures: no prompt, no settings, no names of concepts."""
    grid: bool = False
    """Also save them side by side in one picture."""


class Demo(Settings):
    """Teach the sample subject and the sample style, and draw a sheet that mixes them."""

    out: Path = Path("outputs/demo")
    """Folder for the sheet, the runs and a library of their own."""


def generate(settings: Drawing) -> int:
    from ..bases import introduction, load_base
    from ..generation import Generator
    from ..outputs import Outputs, write_page
    from ..recipes import hidden_note

    request = Request(**{name: getattr(settings, name) for name in Request.model_fields})
    base = load_base(settings.base, safety=settings.safety_checker)
    say(introduction(base, settings.base, draws=True))
    outputs, pictures = Outputs(settings.out), []
    with bar("drawing") as advance:
        generator = Generator(base, Library(settings.library), settings.wildcards)
        for picture in generator.draw(request, progress=advance):
            pictures.append(picture)
            path = outputs.save(picture.png(settings.private))
            say(str(path))
    if note := hidden_note([picture.hidden for picture in pictures]):
        say(note)
    if settings.grid:
        say(str(_save_grid(path, pictures)))
    write_page(outputs)
    return 0


def _save_grid(beside: Path, pictures: list) -> Path:
    from .. import files
    from ..sheets import png, sheet

    columns = [f"seed {picture.seed}" for picture in pictures]
    grid = beside.with_name(f"{beside.stem}-grid.png")
    files.write_bytes(grid, png(sheet([[picture.image for picture in pictures]], column_labels=columns, tile=256)))
    return grid


def demo(settings: Demo) -> int:
    from ..demo import run

    run(settings.out, say=say)
    return 0


COMMANDS = {
    "generate": (generate, Drawing),
    "demo": (demo, Demo),
}
