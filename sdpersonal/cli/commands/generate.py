"""Run the command `generate`, and hold what it shares with `sheet`, `endless` and `vary`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from ...concepts.library import Library
from ...config import GenerateRequest, PromptText, SettingsBase
from ...errors import printable
from ..terminal import print_note, progress_bar, say, say_scheduler

if TYPE_CHECKING:
    from ...generation import GeneratedImages
    from ...models import StableDiffusion
    from ...outputs import Outputs


class GenerationArgs(SettingsBase):
    """The model to generate with, and where images are saved."""

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


class GenerateArgs(GenerationArgs, GenerateRequest):
    """Generate images from a prompt with concepts in it."""

    prompt: Annotated[PromptText, tyro.conf.Positional, tyro.conf.arg(metavar="PROMPT")]
    """Prompt in English with concept tokens: 'a photo of <me/duck> on the beach'. Strength and options follow a token:
    <me/ink:0.8>, <me/ink:0.8:in=0.2:ramp=0.2-1>."""
    grid: bool = False
    """Also save a grid of the images, labelled with the chosen alternatives and seeds (with --private unlabelled)."""


def generate(settings: GenerateArgs) -> int:
    from ... import storage
    from ...generation import GeneratedImages, Generator
    from ...generation.request_checks import check_requests
    from ...image_metadata import describe_hidden
    from ...models.loading import kind_of

    request = request_of(settings)
    say_scheduler(request)
    library = Library(settings.library)
    storage.check_folder(settings.out)
    print_note(check_requests([request], library, settings.wildcards, kind_of(settings.base)))
    generator = Generator(load_model(settings, settings.base), library, settings.wildcards)
    images = GeneratedImages()
    with open_outputs(settings) as outputs:
        with progress_bar("generating") as advance:
            for image in generator.generate(request, progress=advance):
                images.append(image)
                path = outputs.save(image.to_png(settings.private))
                say(str(path))
        if hidden := describe_hidden([image.hidden for image in images]):
            say(hidden)
        if settings.grid:
            say(str(_save_grid(path, images, settings.private)))
    return 0


def request_of(settings: GenerateRequest) -> GenerateRequest:
    """Return the request alone, without a command's other settings."""
    return GenerateRequest(**{name: getattr(settings, name) for name in GenerateRequest.model_fields})


def load_model(settings: GenerationArgs, name: str | None) -> StableDiffusion:
    """Load the model and print what it is and, if the user did not choose it, why it was chosen."""
    from ...models import describe_base, load_base

    base = load_base(name, safety=settings.safety_checker)
    say(describe_base(base, name, with_safety=True))
    return base


@contextmanager
def open_outputs(settings: GenerationArgs) -> Iterator[Outputs]:
    """Open the folder of images; its page is rewritten at the end, whatever happens."""
    from ...outputs import Outputs, write_page

    outputs = Outputs(settings.out)
    try:
        yield outputs
    finally:
        if outputs.days():
            write_page(outputs)


def print_paths(paths: Sequence[Path], hidden: Sequence[bool]) -> None:
    """Print where the images are, and how many of them the safety checker hid."""
    from ...image_metadata import describe_hidden

    for path in paths:
        say(printable(str(path), 300))
    if hidden_line := describe_hidden(hidden):
        say(hidden_line)


def _save_grid(beside: Path, images: GeneratedImages, private: bool) -> Path:
    from ... import storage
    from ...display.image_grid import encode_png

    path = beside.with_name(f"{beside.stem}-grid.png")
    storage.write_bytes(path, encode_png(images.grid(256, private)))
    return path


COMMANDS = {"generate": (generate, GenerateArgs)}
