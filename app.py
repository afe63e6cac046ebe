"""Start the app: python app.py [--base tiny] [--library concepts] [--listen --password-file FILE] [--port 7860]"""

import signal
import sys
from pathlib import Path
from typing import Annotated

from pydantic import Field

from sdpersonal.cli.main import run_command
from sdpersonal.config import SettingsBase, WholeNumber
from sdpersonal.errors import UserError, printable


class Opening(SettingsBase):
    """Open the app on this machine: a page to train concepts and generate images with them."""

    base: str | None = None
    """Model to generate with: tiny, sd15, sd21, sdxl, a Hub id, folder or file. Default: sd15 on CUDA, else tiny."""
    bases: Path | None = None
    """Folder of more models to choose from on the page: folders in diffusers layout and .safetensors checkpoints."""
    safety_checker: bool = True
    """Hide images that the model's safety checker flags, if it has one."""
    library: Path = Path("concepts")
    """Folder of your concepts."""
    out: Path = Path("outputs")
    """Folder for generated images."""
    runs: Path = Path("runs")
    """Folder for training runs."""
    wildcards: Path = Path("wildcards")
    """Folder of wildcards for __name__ in prompts: name.txt, an option a line, also in subfolders; YAML/JSON packs."""
    port: Annotated[int, WholeNumber, Field(ge=1024, le=65535)] = 7860
    """Port of the page: http://127.0.0.1:PORT."""
    listen: bool = False
    """Accept connections from other machines; needs --password-file."""
    password_file: Path | None = None
    """File with a line NAME:PASSWORD for each user. Each user sees only their own images and trainings."""
    host: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9.-]{1,253}$")], ...] = ()
    """More host names of this machine."""


def say(line: str) -> None:
    print(line, flush=True)


def open_app(settings: Opening) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C, which deletes the files shown
    from sdpersonal import storage
    from sdpersonal.app.ui.auth import configure_access, isolate_gradio

    for folder in (settings.library, settings.out, settings.runs):
        storage.check_folder(folder)
    if settings.bases is not None and not settings.bases.is_dir():
        raise UserError(f"--bases: there is no folder {printable(str(settings.bases))}.", "Leave it out, or make it.")
    access = configure_access(settings.port, settings.listen, settings.host, settings.password_file)
    shown = isolate_gradio()  # before Gradio is imported
    from sdpersonal.app.backend import App, GenerationService, Workspace
    from sdpersonal.app.ui.page import build_page
    from sdpersonal.app.ui.server import serve
    from sdpersonal.concepts.library import Library
    from sdpersonal.generation import Generator
    from sdpersonal.models import load_base

    def load(name: str | None) -> Generator:
        return Generator(load_base(name, safety=settings.safety_checker), app_workspace.library, settings.wildcards)

    app_workspace = Workspace(Library(settings.library), settings.out, settings.runs, shown, settings.wildcards)
    generation = GenerationService(load, app_workspace, settings.base)
    say(generation.describe_base())
    page = build_page(App(app_workspace, generation, fixed_base=settings.listen, bases=settings.bases))
    try:
        private = [settings.library, settings.out, settings.runs, Path(__file__).parent]
        serve(page, access, shown, private=private, say=say)
    finally:
        generation.close()
    return 0


if __name__ == "__main__":
    sys.exit(run_command(open_app, Opening, sys.argv[1:], "app.py"))
