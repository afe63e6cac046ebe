"""Run the command `photos check`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from pydantic import Field

from ...config import ConceptKind, SettingsBase, WholeNumber
from ...errors import UserError, printable
from ..terminal import print_json, say

if TYPE_CHECKING:
    from ...photos.loading import PhotoSet

_MAX_TOKENS = 75  # tokens of a caption that fit CLIP's text encoder
_EMBEDDING_TOKENS = 4  # of them for the subject's embeddings, if the class noun needs no more


class CheckPhotosArgs(SettingsBase):
    """Check a folder of photos for problems before training on it."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """Folder with photos of one thing."""
    class_noun: Annotated[str, tyro.conf.arg(name="class"), Field(max_length=100)] = ""
    """Class noun, as for training; with it, also check whether the photos show that class."""
    kind: ConceptKind = "object"
    """What the photos share: one object, one person, or one style."""
    resolution: Annotated[int, WholeNumber, Field(ge=64, le=2048)] = 512
    """Side in pixels of the training images."""
    crop: Literal["center", "subject"] = "center"
    """Where a photo would be cropped to a square."""
    sheet: Path | None = None
    """PNG with all photos, their crops and the findings. Default: photos-check.png in the current folder."""
    json_: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print JSON: the findings, the notes and what was skipped."""


def check_photos(settings: CheckPhotosArgs) -> int:
    from ... import storage
    from ...display.image_grid import encode_png
    from ...evaluation import Scorer
    from ...photos.checks import check, contact_sheet
    from ...photos.loading import load_photos

    path = _sheet_path(settings)
    storage.check_folder(path.parent)
    photos = load_photos(settings.folder, settings.resolution, settings.crop, settings.kind)
    report = check(photos, settings.kind, settings.class_noun, Scorer() if settings.kind != "style" else None)
    storage.write_bytes(path, encode_png(contact_sheet(photos, report)))
    lengths = _too_long(photos, settings.class_noun)
    if settings.json_:
        skipped = {file.name: file.reason for file in photos.skipped + photos.duplicates}
        facts = {"skipped": skipped, "notes": {p.name: list(p.notes) for p in photos.photos if p.notes}}
        print_json(report.as_json() | facts | {"long_captions": lengths, "sheet": str(path)})
    else:
        long = [
            f"  {name}: its caption has about {tokens} tokens; only {_MAX_TOKENS} are read, so the rest is ignored"
            for name, tokens in lengths.items()
        ]
        say("\n".join([photos.report(), *long, *report.lines(), f"All photos on one page: {printable(str(path))}"]))
    return 0


def _too_long(photos: PhotoSet, noun: str) -> dict[str, int]:
    """Return the token count of the longest caption that exceeds the text encoder's limit, by photo's name.

    The tokenizer is CLIP's, which SD 1.x, 2.x and XL share; the built-in model's needs a few tokens more.
    """
    # A token is at least a byte, so most captions need no counting, and the tokenizer need not be loaded.
    captions = {
        photo.name: [caption for caption in photo.captions if len(caption.encode()) > _MAX_TOKENS - _EMBEDDING_TOKENS]
        for photo in photos.photos
    }
    if not any(captions.values()):
        return {}
    from ...models.loading.single_file import clip_tokenizer

    tokenizer = clip_tokenizer()
    subject_tokens = max(_EMBEDDING_TOKENS, len(tokenizer(noun, add_special_tokens=False).input_ids))
    lengths = {
        name: max(
            len(ids)
            for ids in tokenizer(
                [caption.replace("{}", "") for caption in longest], add_special_tokens=False, verbose=False
            ).input_ids
        )
        + subject_tokens
        for name, longest in captions.items()
        if longest
    }
    return {name: count for name, count in lengths.items() if count > _MAX_TOKENS}


def _sheet_path(settings: CheckPhotosArgs) -> Path:
    """Return the PNG's path, never among the photos, where it would be taken for one."""
    folder, name = settings.folder.resolve(), "photos-check.png"
    path = (settings.sheet or Path(name)).absolute()
    if settings.sheet is None and path.resolve().is_relative_to(folder):
        path = folder.parent / name
    if path.suffix.lower() != ".png" or path.resolve().is_relative_to(folder):
        raise UserError(
            f"--sheet {printable(str(settings.sheet))} must be a .png outside the folder of photos.",
            f"For example {name}.",
        )
    return settings.sheet or path


COMMANDS = {
    "photos check": (check_photos, CheckPhotosArgs),
}
