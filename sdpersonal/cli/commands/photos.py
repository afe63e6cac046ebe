"""`photos check`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from pydantic import Field

from ...config import ConceptKind, SettingsBase, WholeNumber
from ...errors import UserError
from ...prompts import printable
from .output import say

if TYPE_CHECKING:
    from ...photos.loading import PhotoSet

_ROOM = 75  # tokens of a caption that CLIP reads
_ROWS = 4  # of them the subject's own, where the class noun takes no more


class CheckPhotosArgs(SettingsBase):
    """Look for what is wrong with a folder of photos before training on it."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """Folder with photos of one thing."""
    class_noun: Annotated[str, tyro.conf.arg(name="class"), Field(max_length=100)] = ""
    """The general noun for it, as for training; with it I also look whether the photos show that."""
    kind: ConceptKind = "object"
    """What the photos share: one object, one person, or one style."""
    resolution: Annotated[int, WholeNumber, Field(ge=64, le=2048)] = 512
    """Side in pixels of the squares that would be learned from."""
    crop: Literal["center", "subject"] = "center"
    """Which square of a photo would be used."""
    sheet: Path | None = None
    """PNG with all photos, their squares and what I found. Default: photos-check.png in the current folder."""
    json_: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print JSON."""


def check_photos(settings: CheckPhotosArgs) -> int:
    from ... import storage
    from ...evaluation import Scorer
    from ...image_grid import encode_png
    from ...photos.checks import check, contact_sheet
    from ...photos.loading import load_photos

    path = _sheet_path(settings)
    storage.check_folder(path.parent)
    photos = load_photos(settings.folder, settings.resolution, settings.crop, settings.kind)
    verdict = check(photos, settings.kind, settings.class_noun, Scorer() if settings.kind != "style" else None)
    storage.write_bytes(path, encode_png(contact_sheet(photos, verdict)))
    lengths = _too_long(photos, settings.class_noun)
    if settings.json_:
        skipped = {file.name: file.reason for file in photos.skipped + photos.duplicates}
        facts = {"skipped": skipped, "notes": {p.name: list(p.notes) for p in photos.photos if p.notes}}
        say(json.dumps(verdict.as_json() | facts | {"long_captions": lengths, "sheet": str(path)}, indent=2))
    else:
        long = [
            f"  {name}: its caption takes about {tokens} tokens; {_ROOM} are read, so the rest is not learned from"
            for name, tokens in lengths.items()
        ]
        say("\n".join([photos.report(), *long, *verdict.lines(), f"All photos on one page: {printable(str(path))}"]))
    return 0


def _too_long(photos: PhotoSet, noun: str) -> dict[str, int]:
    """Tokens of the longest caption of each photo that has one which no text encoder reads whole, by photo's name.

    Counted with CLIP's tokenizer, which SD 1.x, 2.x and XL share; the built-in base's needs a few tokens more.
    """
    # A token is a byte or more, so most captions need not be counted, nor the tokenizer be loaded.
    captions = {
        photo.name: [caption for caption in photo.captions if len(caption.encode()) > _ROOM - _ROWS]
        for photo in photos.photos
    }
    if not any(captions.values()):
        return {}
    from ...models.loading.tokenizer import clip_tokenizer

    tokenizer = clip_tokenizer()
    slot = max(_ROWS, len(tokenizer(noun, add_special_tokens=False).input_ids))
    lengths = {
        name: max(
            len(ids)
            for ids in tokenizer(
                [caption.replace("{}", "") for caption in longest], add_special_tokens=False, verbose=False
            ).input_ids
        )
        + slot
        for name, longest in captions.items()
        if longest
    }
    return {name: count for name, count in lengths.items() if count > _ROOM}


def _sheet_path(settings: CheckPhotosArgs) -> Path:
    """Never among the photos, where it would be taken for one."""
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
