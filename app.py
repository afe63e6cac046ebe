"""The app: python app.py [--base tiny] [--library concepts] [--out outputs] [--port 7860]"""

import signal
import sys
from pathlib import Path
from typing import Annotated

from pydantic import Field

from sdpersonal.cli import run
from sdpersonal.config import Settings, Whole


class Opening(Settings):
    """Open the app on this machine: a page to draw with your concepts."""

    base: str | None = None
    """Model to draw with: tiny, sd15, sd21, sdxl, a Hub id, folder or file. Default: sd15 on CUDA, else tiny."""
    safety_checker: bool = True
    """Hide what the base's safety checker flags, where it has one."""
    library: Path = Path("concepts")
    """Folder that keeps your concepts."""
    out: Path = Path("outputs")
    """Folder for the pictures."""
    port: Annotated[int, Whole, Field(ge=1024, le=65535)] = 7860
    """Where the page is: http://127.0.0.1:PORT."""


def say(line: str) -> None:
    print(line, flush=True)


def open_app(settings: Opening) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C, which clears the pictures shown
    from sdpersonal.ui.environment import seclude

    shown = seclude()  # before Gradio is imported
    from sdpersonal.bases import load_base
    from sdpersonal.generation import Generator
    from sdpersonal.library import Library
    from sdpersonal.service import App, House, Studio
    from sdpersonal.ui.page import build
    from sdpersonal.ui.serve import serve

    def load(name: str | None) -> Generator:
        return Generator(load_base(name, safety=settings.safety_checker), house.library)

    house = House(Library(settings.library), settings.out, Path("runs"), shown)
    studio = Studio(load, house, settings.base)
    say(studio.about())
    page = build(App(house, studio))
    serve(page, settings.port, private=[settings.library, Path("runs"), Path(__file__).parent], say=say)
    return 0


if __name__ == "__main__":
    sys.exit(run(open_app, Opening, sys.argv[1:], "app.py"))
