"""The commands `generate` and `demo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from ...concepts.library import Library
from ...config import GenerateRequest, PromptText, SettingsBase
from .output import note, progress_bar, say, say_scheduler

if TYPE_CHECKING:
    from ...generation import GeneratedImages


class GenerateArgs(GenerateRequest):
    """Generate images from a prompt with concepts in it."""

    prompt: Annotated[PromptText, tyro.conf.Positional, tyro.conf.arg(metavar="PROMPT")]
    """Prompt in English with concept tokens: 'a photo of <me/duck> on the beach'."""
    base: str | None = None
    """Model to generate with: tiny, sd15, sd21, sdxl, a Hub id, folder or file. Default: sd15 on CUDA, else tiny."""
    safety_checker: bool = True
    """Hide images that the model's safety checker flags, if it has one."""
    library: Path = Path("concepts")
    """Folder of your concepts."""
    out: Path = Path("outputs")
    """Folder for the images, with a subfolder for each day."""
    wildcards: Path = Path("wildcards")
    """Folder of wildcards for __name__ in prompts: name.txt with one option a line, subfolders, YAML or JSON packs."""
    private: bool = False
    """Save no recipe in the images: no prompt, no settings, no names of concepts."""
    grid: bool = False
    """Also save a grid of the images, labelled with the chosen alternatives and seeds (with --private unlabelled)."""


class DemoArgs(SettingsBase):
    """Train the sample subject and the sample style, and generate a grid that mixes them."""

    out: Path = Path("outputs/demo")
    """Folder for the grid, the runs and their own library."""


def generate(settings: GenerateArgs) -> int:
    from ... import storage
    from ...generation import GeneratedImages, Generator
    from ...generation.request_checks import check_requests
    from ...image_metadata import describe_hidden
    from ...models import describe_base, load_base
    from ...models.loading import kind_of
    from ...outputs import Outputs, write_page

    request = GenerateRequest(**{name: getattr(settings, name) for name in GenerateRequest.model_fields})
    say_scheduler(request)
    library = Library(settings.library)
    storage.check_folder(settings.out)
    note(check_requests([request], library, settings.wildcards, kind_of(settings.base)))
    base = load_base(settings.base, safety=settings.safety_checker)
    say(describe_base(base, settings.base, with_safety=True))
    outputs, images = Outputs(settings.out), GeneratedImages()
    with progress_bar("drawing") as advance:
        generator = Generator(base, library, settings.wildcards)
        for image in generator.generate(request, progress=advance):
            images.append(image)
            path = outputs.save(image.to_png(settings.private))
            say(str(path))
    if hidden := describe_hidden([image.hidden for image in images]):
        say(hidden)
    if settings.grid:
        say(str(_save_grid(path, images, settings.private)))
    write_page(outputs)
    return 0


def _save_grid(beside: Path, images: GeneratedImages, private: bool) -> Path:
    from ... import storage
    from ...image_grid import encode_png

    path = beside.with_name(f"{beside.stem}-grid.png")
    storage.write_bytes(path, encode_png(images.grid(256, private)))
    return path


def demo(settings: DemoArgs) -> int:
    from ... import storage
    from ..demo import run_demo

    storage.check_folder(settings.out)
    run_demo(settings.out, say=say)
    return 0


COMMANDS = {
    "generate": (generate, GenerateArgs),
    "demo": (demo, DemoArgs),
}
