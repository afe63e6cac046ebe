"""`sdpersonal ...`: prints and exit codes, no logic.

Exit codes: 0 done, 1 `concepts verify` found damage, 2 the user's mistake, 3 no room on disk, 4 training diverged,
130 interrupted.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import Field

from . import concepts_list, habits
from .config import DreamboothSettings, InversionSettings, Kind, PromptText, Request, Settings, Training, Whole
from .errors import Interrupted, PersonalError
from .library import Entry, Library
from .prompts import Token, show

INTERRUPTED = 130
_ALSO = (
    "The flags of diffusers' training scripts are understood as well; docs/from-diffusers.md lists them. "
    "--concepts-list FILE teaches several concepts in turn."
)


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


class Listing(Settings):
    """List the concepts of a library."""

    json_: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print JSON: a list of objects, one per concept."""
    library: Path = Path("concepts")
    """Folder that keeps your concepts."""


class Showing(Listing):
    """Show the card of a concept."""

    token: tyro.conf.Positional[str]
    """For example '<me/duck>'."""


class Importing(Listing):
    """Add concept files to a library."""

    files: tyro.conf.Positional[Annotated[tuple[Path, ...], Field(min_length=1)]]
    """Our own files, or diffusers' learned_embeds.safetensors and .bin."""
    as_: Annotated[str | None, tyro.conf.arg(name="as")] = None
    """The token it gets, for example '<me/duck>'. Default: the one in the file."""
    replace: bool = False
    """Take the place of the concept that has this token."""


class Renaming(Listing):
    """Give a concept another token."""

    old: tyro.conf.Positional[str]
    """Its token, for example '<me/duck>'; with a version only that version."""
    new: tyro.conf.Positional[str]
    """The token it gets."""


class Removing(Listing):
    """Delete a concept."""

    token: tyro.conf.Positional[str]
    """Its token, for example '<me/duck-v2>'."""
    all_versions: bool = False
    """Delete all its versions."""


class Verifying(Listing):
    """Read every file of a library in full and name those that are damaged."""


class Checking(Settings):
    """Look for what is wrong with a folder of photos before training on it."""

    folder: tyro.conf.Positional[Path]
    """Folder with photos of one thing."""
    class_noun: Annotated[str, tyro.conf.arg(name="class"), Field(max_length=100)] = ""
    """The general noun for it, as for training; with it I also look whether the photos show that."""
    kind: Kind = "object"
    """What the photos share: one object, one person, or one style."""
    resolution: Annotated[int, Whole, Field(ge=64, le=2048)] = 512
    """Side in pixels of the squares that would be learned from."""
    crop: Literal["center", "subject"] = "center"
    """Which square of a photo would be used."""
    sheet: Path | None = None
    """PNG with all photos, their squares and what I found. Default: photos-check.png in the current folder."""
    json_: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print JSON."""


class Demo(Settings):
    """Teach the sample subject and the sample style, and draw a sheet that mixes them."""

    out: Path = Path("outputs/demo")
    """Folder for the sheet, the runs and a library of their own."""


def train(asked: Training | concepts_list.Several) -> int:
    from .training import train as teach

    if isinstance(asked, concepts_list.Several):
        return concepts_list.teach_all(asked, teach, say=_say if _is_main_process() else _silently)
    teach(asked, say=_say)
    return 0


def generate(settings: Drawing) -> int:
    from .bases import introduction, load_base
    from .generation import Generator
    from .sheets import png, sheet

    request = Request(**{name: getattr(settings, name) for name in Request.model_fields})
    base = load_base(settings.base)
    _say(introduction(base, settings.base))
    pictures = []
    with _bar("drawing") as advance:
        for picture in Generator(base, Library(settings.library)).draw(request, progress=advance):
            pictures.append(picture)
            path = picture.save(settings.out)
            _say(str(path))
    if settings.grid:
        from . import files

        columns = [f"seed {picture.seed}" for picture in pictures]
        grid = path.with_name(f"{path.stem}-grid.png")
        files.write_bytes(grid, png(sheet([[picture.image for picture in pictures]], column_labels=columns, tile=256)))
        _say(str(grid))
    return 0


def list_concepts(settings: Listing) -> int:
    entries = Library(settings.library).list()
    if settings.json_:
        _say(json.dumps([entry.as_json() for entry in entries], indent=2))
    elif entries:
        width = max(len(str(entry.token)) for entry in entries)
        for entry in entries:
            _say(f"{entry.token!s:{width}}  {_line(entry)}")
    else:
        _say(f"No concepts in {settings.library} yet. Make one: sdpersonal train dreambooth --help")
    return 0


def show_concept(settings: Showing) -> int:
    entry = Library(settings.library).find(Token.parse(settings.token))
    facts = entry.as_json()
    if settings.json_:
        _say(json.dumps(facts, indent=2))
    else:
        for key, value in facts.items():
            if value not in (None, "", [], {}):
                _say(f"{key:14} {_plain(value)}")
    return 0


def import_concepts(settings: Importing) -> int:
    if settings.as_ and len(settings.files) > 1:
        raise PersonalError("--as names one concept; several files are given.", "Import them one by one.")
    as_ = Token.parse(settings.as_) if settings.as_ else None
    return _report(
        settings,
        [Library(settings.library).import_(path, as_, settings.replace) for path in settings.files],
        "imported",
    )


def rename_concept(settings: Renaming) -> int:
    return _report(
        settings, Library(settings.library).rename(Token.parse(settings.old), Token.parse(settings.new)), "renamed"
    )


def remove_concept(settings: Removing) -> int:
    return _report(
        settings, Library(settings.library).remove(Token.parse(settings.token), settings.all_versions), "removed"
    )


def verify_concepts(settings: Verifying) -> int:
    library = Library(settings.library)
    problems = [{"token": str(entry.token), "problem": problem} for entry, problem in library.verify()]
    problems += [
        {"token": None, "problem": f"{show(str(path))} is not where any token leads"} for path in library.strays()
    ]
    if settings.json_:
        _say(json.dumps(problems, indent=2))
    else:
        for one in problems:
            _say(f"{one['token'] or '-'}  {one['problem']}")
        _say(f"{len(problems)} of the files are damaged." if problems else "All is well.")
    return 1 if problems else 0


def check_photos(settings: Checking) -> int:
    from . import files
    from .doctor import contact_sheet, examine
    from .evaluation import Judge
    from .photos import load_photos
    from .sheets import png

    path = _sheet_path(settings)
    photos = load_photos(settings.folder, settings.resolution, settings.crop)
    verdict = examine(photos, settings.kind, settings.class_noun, Judge() if settings.kind != "style" else None)
    files.write_bytes(path, png(contact_sheet(photos, verdict)))
    if settings.json_:
        skipped = {file.name: file.reason for file in photos.skipped + photos.duplicates}
        _say(json.dumps(verdict.as_json() | {"skipped": skipped, "sheet": str(path)}, indent=2))
    else:
        _say("\n".join([photos.report(), *verdict.lines(), f"All photos on one page: {show(str(path))}"]))
    return 0


def _sheet_path(settings: Checking) -> Path:
    """Never among the photos, where it would be taken for one."""
    folder, name = settings.folder.resolve(), "photos-check.png"
    path = (settings.sheet or Path(name)).absolute()
    if settings.sheet is None and path.resolve().is_relative_to(folder):
        path = folder.parent / name
    if path.suffix.lower() != ".png" or path.resolve().is_relative_to(folder):
        raise PersonalError(
            f"--sheet {show(str(settings.sheet))} must be a .png outside the folder of photos.", f"For example {name}."
        )
    return settings.sheet or path


def demo(settings: Demo) -> int:
    from .demo import run

    run(settings.out, say=_say)
    return 0


COMMANDS: dict[str, tuple[Callable, type[Settings]]] = {
    "train textual-inversion": (train, InversionSettings),
    "train dreambooth": (train, DreamboothSettings),
    "generate": (generate, Drawing),
    "photos check": (check_photos, Checking),
    "concepts list": (list_concepts, Listing),
    "concepts show": (show_concept, Showing),
    "concepts import": (import_concepts, Importing),
    "concepts rename": (rename_concept, Renaming),
    "concepts remove": (remove_concept, Removing),
    "concepts verify": (verify_concepts, Verifying),
    "demo": (demo, Demo),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    for name, (command, settings) in COMMANDS.items():
        words = name.split()
        if argv[: len(words)] == words:
            return run(command, settings, argv[len(words) :], f"sdpersonal {name}")
    asked = not argv or argv[0] in ("-h", "--help")
    lines = [f"  {name:26} {(settings.__doc__ or '').splitlines()[0]}" for name, (_, settings) in COMMANDS.items()]
    text = "usage: sdpersonal COMMAND [--help] ...\n\n" + "\n".join(lines)
    print(
        text if asked else f"{show(' '.join(argv[:2]))} is not a command.\n{text}",
        file=sys.stdout if asked else sys.stderr,
    )
    return 0 if asked else 2


def run(command: Callable, settings: type[Settings], argv: Sequence[str], prog: str) -> int:
    """Read the settings, do the work, and turn what went wrong into a line and an exit code."""
    # Threads that spin long while they wait make drawing two to three times slower on a busy machine
    # (docs/performance.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # before torch loads
    try:
        return command(_asked(settings, argv, prog))
    except Interrupted as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except PersonalError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read us has enough (`| head`). What is left in the buffer must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _asked(settings: type[Settings], argv: Sequence[str], prog: str) -> Settings | concepts_list.Several:
    if not issubclass(settings, Training):
        return tyro.cli(settings, args=argv, prog=prog)
    said: set[str] = set()

    def read(argv: Sequence[str]) -> Training:
        ours = habits.translate(settings, argv, habits.here())
        for note in ours.notes:
            if note not in said and _is_main_process():
                print(f"note: {note}", file=sys.stderr)
            said.add(note)
        return tyro.cli(settings, args=ours.argv, prog=prog, description=f"{settings.__doc__}\n\n{_ALSO}")

    path, argv = concepts_list.take(argv)
    return concepts_list.read(path, argv, read) if path else read(argv)


def _is_main_process() -> bool:
    return os.environ.get("RANK", "0") == "0"  # several under accelerate launch have one voice


def _silently(_: str) -> None:
    pass


def _say(text: str) -> None:
    print(text, flush=True)


def _report(settings: Listing, tokens: list[Token], done: str) -> int:
    _say(
        json.dumps({done: [str(token) for token in tokens]})
        if settings.json_
        else f"{done}: {', '.join(map(str, tokens))}"
    )
    return 0


def _line(entry: Entry) -> str:
    if entry.damaged or entry.card is None:
        return f"damaged: {entry.damaged}"
    parts = [f"{entry.vectors} vectors"] if entry.vectors else []
    parts += [f"LoRA rank {entry.lora_rank}"] if entry.lora_rank else []
    kind, what = f"{entry.card.kind:7} {entry.card.base:5}", " + ".join(parts)
    return f"{kind} {what:26} {entry.size / 1e6:6.2f} MB  {entry.card.title}".rstrip()


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={each}" for key, each in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


class _bar:
    """A progress bar on a terminal, nothing elsewhere: advance(done, total)."""

    def __init__(self, what: str):
        self._what = what

    def __enter__(self) -> Callable[[int, int], None]:
        from rich.console import Console
        from rich.progress import Progress

        self._progress = Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
        task = self._progress.add_task(self._what, total=None)
        self._progress.start()
        return lambda done, total: self._progress.update(task, completed=done, total=total)

    def __exit__(self, *_) -> None:
        self._progress.stop()


if __name__ == "__main__":
    sys.exit(main())
