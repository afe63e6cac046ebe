"""Import concepts from files dropped on the page, and export them for other programs."""

from __future__ import annotations

import dataclasses
import io
import secrets
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from .... import storage
from ....concepts.exporters import FORMATS, Export, Format, export
from ....concepts.importers.sources import DROPPED, STEPS, find_concepts
from ....concepts.importing import DUPLICATES, ImportOutcome, Source, import_all, join_parts
from ....concepts.library import OTHER_PART_HINT, TAKEN_HINT, Library
from ....display.units import format_bytes
from ....errors import UserError, printable
from ....prompts import Token
from ..workspace import Workspace
from .concept_details import parse_token

MAX_FILES = 40  # in one drop
PROGRAMS = {
    "native": "sdpersonal: everything in one file, which A1111 and ComfyUI read as well",
    "a1111": "A1111 (Stable Diffusion web UI), Forge",
    "comfyui": "ComfyUI",
    "invokeai": "InvokeAI",
    "diffusers": "diffusers (Python)",
    "kohya": "kohya's scripts",
    "onetrainer": "OneTrainer",
    "sd-concepts-library": "sd-concepts-library (old notebooks)",
}
_IMPORT_STEP = "Drop the file on the Library tab of the other sdpersonal."
_BESIDE = {"readme.md", "token_identifier.txt", "type_of_concept.txt", "special_params.json", "adapter_config.json"}
_PAGE_HINTS = {  # the command line's hints in the page's words
    TAKEN_HINT: "Import it again with another name, or choose what to do if the name is taken.",
    OTHER_PART_HINT: "If they are one concept, import both at once, to replace the one in the library.",
}
_FLAG_HINTS = {  # the same for hints that name a flag, the first that fits
    "--as ": "Import it again with a name.",
    "--base FOLDER": "Its folder may be a model.",
    "--base FILE": "Start the app with --bases and the file's folder, and choose it on the Models tab.",
    "--base": "It is a model, not a concept.",
    "--format native": "Export it for sdpersonal, and generate with it here.",
}


@dataclass(frozen=True)
class ImportedFile:
    """Result of importing one file. status: "imported", "here already" or "refused"; message: the token and what it
    is, or what is wrong; name_helps: whether another name may help."""

    name: str
    status: str
    message: str
    token: str | None = None
    name_helps: bool = False


def import_uploads(
    workspace: Workspace,
    dropped: object,
    as_: object = "",
    duplicates: object = "refuse",
) -> list[ImportedFile]:
    """Import uploaded files, then delete the uploads; parts of one concept that were dropped together are joined.

    as_: the token of a single concept, or ""; duplicates: as in `importing.import_all`, or "replace" for replacing the
    concept of that name. Raises UserError.
    """
    paths = _check_uploads(workspace, dropped)
    replace = duplicates == "replace"
    duplicates = "refuse" if replace else duplicates
    if duplicates not in DUPLICATES:
        raise UserError("Choose what to do if the name is taken.", f"One of {', '.join(DUPLICATES)}, replace.")
    folder = storage.make_folder(workspace.served_dir / f"arrivals-{secrets.token_hex(16)}")
    try:
        token = _parse_token(as_)
        moved = _group_files(paths, folder)
        sources = _find_sources(moved, folder, steps=duplicates != "refuse")
        if token and len(sources) > 1 and duplicates != "versions":
            raise UserError("The name is for one concept, but several were dropped.", "Drop them one at a time.")
        return [
            _imported_file(outcome, sources)
            for outcome in import_all(workspace.library, sources, token, replace, duplicates)
        ]
    finally:
        storage.remove(folder)
        for path in paths:
            if path.exists():
                storage.remove(path)
            workspace.remove_empty_folders(path)


def import_message(files: Sequence[ImportedFile]) -> str:
    """Say in one sentence how many were imported."""
    counts = {status: sum(file.status == status for file in files) for status in ("imported", "here already")}
    parts = [f"{count} {status}" for status, count in counts.items() if count]
    refused = len(files) - sum(counts.values())
    parts += [f"{refused} not imported"] if refused else []
    return f"{', '.join(parts)}.".capitalize()


@dataclass(frozen=True)
class ExportDownload:
    """A concept for another program. name, data: the single file, or a zip with README; steps: how to install it."""

    name: str
    data: bytes
    program: str
    places: tuple[tuple[str, str], ...]  # (file, where in the program it goes)
    steps: tuple[str, ...]
    typed: str
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        """Return all but the data, with its size in words."""
        return {
            "name": self.name,
            "size": format_bytes(len(self.data)),
            "program": self.program,
            "places": self.places,
            "steps": self.steps,
            "typed": self.typed,
            "notes": self.notes,
        }


def make_export(library: Library, token: object, format: object) -> ExportDownload:
    """Export a concept for download. Raises UserError."""
    if not isinstance(format, str) or format not in FORMATS:
        raise UserError("Choose a program.", f"One of {', '.join(FORMATS)}.")
    concept = library.get(parse_token(token))
    try:
        exported = export(concept, cast(Format, format))
    except UserError as error:
        raise UserError(error.message, page_hint(error.hint)) from None
    name, data = _pack(exported, f"{concept.token.slug}-{format}")
    places = tuple((name, destination) for name, destination in exported.destinations.items() if name != "README.md")
    steps = tuple(_IMPORT_STEP if step.startswith("sdpersonal ") else step for step in exported.install)
    return ExportDownload(name, data, exported.program, places, steps, exported.prompt_text, exported.notes)


def _pack(exported: Export, stem: str) -> tuple[str, bytes]:
    contents = {name: data for name, data in exported.files.items() if name != "README.md"}
    if len(contents) == 1 and exported.program == "sdpersonal":
        return next(iter(contents.items()))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:  # weights do not get smaller
        for name, data in exported.files.items():
            archive.writestr(zipfile.ZipInfo(f"{stem}/{name}"), data)
    return f"{stem}.zip", packed.getvalue()


def _check_uploads(workspace: Workspace, dropped: object) -> list[Path]:
    """Return the uploaded files' paths. Raises UserError for any other path, since a page may send any text."""
    if not isinstance(dropped, list | tuple) or not dropped:
        raise UserError("No files were dropped.", "Drop some, or click to choose them.")
    if len(dropped) > MAX_FILES:
        raise UserError(f"These are {len(dropped)} files; {MAX_FILES} can be imported at once.", "Drop fewer.")
    return [workspace.uploaded_file(path) for path in dropped]


def _parse_token(as_: object) -> Token | None:
    text = as_.strip() if isinstance(as_, str) else ""
    token = Token.parse(text) if text else None
    return dataclasses.replace(token, owner="me") if token and not token.owner else token


def _group_files(paths: Sequence[Path], folder: Path) -> list[Path]:
    """Move all files to one folder, as programs keep the files of a concept; a file whose name is taken gets its
    own folder."""
    moved: list[Path] = []
    for number, path in enumerate(paths):
        target = folder / DROPPED
        target = folder / str(number) / DROPPED if (target / path.name).exists() else target
        moved.append(storage.make_folder(target) / path.name)
        storage.rename(path, moved[-1])
    return moved


def _find_sources(moved: Sequence[Path], folder: Path, steps: bool) -> list[Source]:
    """Find the concepts in the dropped files; every other file becomes a source of its own, so that its error says
    what it is."""
    if len(moved) == 1:
        return [Source(moved[0])]
    sources = join_parts(find_concepts(folder, steps=steps))
    source_files = {path for source in sources for path in source.all_files}
    companions = {path for path in moved if path.name.lower() in _BESIDE and source_files}
    peft_folders = {source.path for source in sources if source.path.is_dir() and not source.files}  # PEFT's
    steps_left = {path for path in moved if STEPS.fullmatch(path.name.lower())} if not steps else set()
    rest = [
        path for path in moved if path not in source_files | companions | steps_left and path.parent not in peft_folders
    ]
    return [*sources, *(Source(path) for path in rest)]


def _imported_file(outcome: ImportOutcome, sources: Sequence[Source]) -> ImportedFile:
    path = Path(outcome.source)
    parts = next((part.files for part in sources if part.label == outcome.source and part.files), ())
    parts = parts or (tuple(path.iterdir()) if path.is_dir() else (path,))
    name = printable(" + ".join(sorted(part.name for part in parts)), 200)
    if outcome.error:
        hint = outcome.error.hint
        name_helps = hint in _PAGE_HINTS or "--as " in hint
        message = f"{outcome.error.message} {page_hint(hint)}".strip()
        return ImportedFile(name, outcome.status, message, name_helps=name_helps)
    return ImportedFile(name, outcome.status, f"{outcome.token}: {outcome.summary}", str(outcome.token))


def page_hint(hint: str) -> str:
    """Translate a command-line hint to the page's words."""
    if hint in _PAGE_HINTS:
        return _PAGE_HINTS[hint]
    return next((text for flag, text in _FLAG_HINTS.items() if flag in hint), hint)
