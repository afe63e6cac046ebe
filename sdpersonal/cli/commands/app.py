"""Run the command `app`: the page in a browser."""

from __future__ import annotations

import gc
import importlib.util
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ...config import SettingsBase, WholeNumber
from ...errors import UserError, printable
from ..terminal import say

if TYPE_CHECKING:
    from ...app.backend import Workspace
    from ...app.backend.generation_service import LoadGenerator
    from ...fleet.serving.client import FleetClient


class AppArgs(SettingsBase):
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
    """Folder of wildcards for __name__ in prompts: name.txt with one option a line, subfolders, YAML or JSON packs."""
    port: Annotated[int, WholeNumber, Field(ge=1024, le=65535)] = 7860
    """Port of the page: http://127.0.0.1:PORT."""
    listen: bool = False
    """Accept connections from other machines; needs --password-file."""
    password_file: Path | None = None
    """File with a line NAME:PASSWORD for each user. Each user sees only their own images and trainings."""
    host: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9.-]{1,253}$")], ...] = ()
    """More host names of this machine."""
    proxy: tuple[Annotated[str, Field(max_length=60)], ...] = ()
    """Address of a proxy whose X-Forwarded-For and X-Forwarded-Proto are believed; needs --password-file."""
    fleet: Annotated[str, Field(max_length=300)] | None = None
    """Address of a fleet that generates the images, http://HOST:PORT; trainings stay on this machine."""
    fleet_key: Path | None = None
    """File with your key for the fleet. Default: the key in SDPERSONAL_FLEET_KEY."""
    api: bool = True
    """Let programs use the HTTP API at the page's address; docs/http-api.md describes it."""


def open_app(settings: AppArgs) -> int:
    for name in ("SIGTERM", "SIGHUP"):  # ends like Ctrl-C, which deletes the files shown; Windows has no SIGHUP
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.default_int_handler)
    from ... import storage
    from ...app.server.auth import configure_access, isolate_gradio

    _check_installed()
    for folder in (settings.library, settings.out, settings.runs):
        storage.check_folder(folder)
    if settings.bases is not None and not settings.bases.is_dir():
        raise UserError(f"--bases: there is no folder {printable(str(settings.bases))}.", "Leave it out, or make it.")
    fleet = _fleet_client(settings)
    access = configure_access(settings.port, settings.listen, settings.host, settings.password_file, settings.proxy)
    shown = isolate_gradio()  # before Gradio is imported
    gc.disable()  # until the server is up: what is imported stays, and looking through it is a fifth of the start
    from ...app.backend import App, GenerationService, Workspace
    from ...app.server.server import build_server, serve
    from ...concepts.library import Library

    workspace = Workspace(Library(settings.library), settings.out, settings.runs, shown, settings.wildcards)
    load = _local_generator(settings, workspace) if fleet is None else _fleet_generator(settings, workspace, fleet)
    generation = GenerationService(load, workspace, settings.base, on_fleet=fleet is not None)
    say(generation.describe_base() if fleet is None else f"{generation.describe_base()} Images come from {fleet.url}.")
    is_fixed = bool(settings.listen or settings.proxy or fleet)
    app = App(workspace, generation, fixed_base=is_fixed, bases=settings.bases)
    server = build_server(app, shown, settings.api)
    private = [settings.library, settings.out, settings.runs, *_own_folders()]
    users: list[str | None] = [*access.passwords] or [None]
    serve(server, access, shown, private, say, app.close, settings.api, lambda: app.jobs.restore(users))
    return 0


def _fleet_client(settings: AppArgs) -> FleetClient | None:
    """Return what asks the fleet, None without one. Raises UserError."""
    if settings.fleet is None:
        if settings.fleet_key is not None:
            raise UserError("--fleet-key is for a fleet, and none is named.", "Give --fleet http://HOST:PORT too.")
        return None
    for name in ("base", "bases"):
        if getattr(settings, name) is not None:
            raise UserError(f"--{name} cannot be used with --fleet.", "The fleet has its own model.")
    from ...fleet.serving.client import FleetClient, read_key

    return FleetClient(settings.fleet, read_key(settings.fleet_key))


def _local_generator(settings: AppArgs, workspace: Workspace) -> LoadGenerator:
    from ...generation import Generator
    from ...models import load_base

    def load(name: str | None) -> Generator:
        return Generator(load_base(name, safety=settings.safety_checker), workspace.library, settings.wildcards)

    return load


def _fleet_generator(settings: AppArgs, workspace: Workspace, fleet: FleetClient) -> LoadGenerator:
    from ...fleet.serving.remote_generator import RemoteGenerator

    def load(name: str | None) -> RemoteGenerator:
        return RemoteGenerator(fleet, fleet.model(), workspace.library, settings.wildcards)

    return load


def _check_installed() -> None:
    missing = [name for name in ("gradio", "psutil") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"The app needs {' and '.join(missing)}.", "Install with pip install 'sdpersonal[app]'.")


def _own_folders() -> list[Path]:
    """Return the folders of this program, which the page must never serve: the package, and in a checkout all of it."""
    package = Path(__file__).parents[2]
    return [package.parent if (package.parent / "pyproject.toml").exists() else package]


COMMANDS = {"app": (open_app, AppArgs)}
