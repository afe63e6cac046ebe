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
    library: Path = Path("concepts")
    """Folder that keeps your concepts."""
    out: Path = Path("outputs")
    """Folder for the pictures."""
    grid: bool = False
    """Also save them side by side in one picture."""


class Demo(Settings):
    """Teach the sample subject and the sample style, and draw a sheet that mixes them."""

    out: Path = Path("outputs/demo")
    """Folder for the sheet, the runs and a library of their own."""


def generate(settings: Drawing) -> int:
    from ..bases import introduction, load_base
    from ..generation import Generator
    from ..sheets import png, sheet

    request = Request(**{name: getattr(settings, name) for name in Request.model_fields})
    base = load_base(settings.base)
    say(introduction(base, settings.base))
    pictures = []
    with bar("drawing") as advance:
        for picture in Generator(base, Library(settings.library)).draw(request, progress=advance):
            pictures.append(picture)
            path = picture.save(settings.out)
            say(str(path))
    if settings.grid:
        from .. import files

        columns = [f"seed {picture.seed}" for picture in pictures]
        grid = path.with_name(f"{path.stem}-grid.png")
        files.write_bytes(grid, png(sheet([[picture.image for picture in pictures]], column_labels=columns, tile=256)))
        say(str(grid))
    return 0


def demo(settings: Demo) -> int:
    from ..demo import run

    run(settings.out, say=say)
    return 0


COMMANDS = {
    "generate": (generate, Drawing),
    "demo": (demo, Demo),
}
