"""Push concepts to the Hugging Face Hub and pull them. The files to push are built first and can be inspected."""

from __future__ import annotations

import errno
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .. import storage
from ..errors import DiskFull, UserError, printable
from ..prompts import Token
from . import exporters
from .concept import Concept
from .importers.embeddings import DIFFUSERS_FILES
from .importers.hub_client import silence_hub_client
from .importers.hub_repositories import (
    HUB_TAG,
    HUB_TIMEOUT,
    Repository,
    fetch_repository,
    find_native,
    parse_repository,
)
from .importers.read_folders import read_folder
from .model_card import GRID_FILE, model_card
from .thumbnail import reencode_thumbnail

if TYPE_CHECKING:
    from huggingface_hub import HfApi, ModelInfo
    from PIL import Image

_MAX_IMAGE_BYTES = 50_000_000  # bytes
_RECIPE = "sdpersonal"  # the key of a PNG's text with its recipe, `image_metadata.write_png.RECIPE_KEY`


@dataclass(frozen=True)
class RepositoryFile:
    """One file to push: its name in the repository, its bytes, and its purpose."""

    name: str
    data: bytes
    purpose: str


def files_to_push(concept: Concept, hub_id: str, image_paths: Sequence[Path] = ()) -> list[RepositoryFile]:
    """Build every file that `push` sends. image_paths: PNGs generated with this concept, which become one grid.

    Raises UserError for an image not generated with it, and for a person without recorded consent.
    """
    hub_id = _check_hub_id(hub_id)
    if concept.card.kind == "person" and concept.card.consent != "yes":
        raise UserError(
            f"{concept.token} shows a person, and its card does not say that they agree.",
            f"Ask them, then: sdpersonal concepts edit '{concept.token}' --consent yes",
        )
    images = [_read_own_image(path, concept) for path in image_paths]
    native = exporters.simple.native(concept)
    prompts = [prompt for _, prompt in images]
    grid = _image_grid(concept, [image for image, _ in images])
    card = model_card(concept, native, hub_id, prompts, grid is not None)
    files = [RepositoryFile("README.md", card.encode(), "model card: what it is, its licence, how it is used")]
    files += [
        RepositoryFile(name, data, "the concept, for sdpersonal and most programs")
        for name, data in native.files.items()
    ]
    if exporters.diffusers.is_possible(concept):
        export = exporters.diffusers.write(concept)
        files += [RepositoryFile(name, data, "the same for diffusers") for name, data in export.files.items()]
    files += [RepositoryFile(GRID_FILE, grid, "images generated with it, for the model card")] if grid else []
    return files


def push(
    concept: Concept, files: Sequence[RepositoryFile], hub_id: str, public: bool = False, api: HfApi | None = None
) -> str:
    """Push the files as one commit, creating a private repository (or a public one) if needed; return the page's URL.

    Raises UserError within seconds where the Hub is unreachable or denies access, or where the repository holds
    something else.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

    hub_id, api = _check_hub_id(hub_id), api or HfApi()
    if not (api.token or get_token()):
        raise UserError("You are not logged in to the Hub.", "Once: hf auth login")
    silence_hub_client()
    try:
        # These calls answer or fail at once and go first: the others have no timeout.
        repository = _repository_info(api, hub_id)
        api.whoami()
        stale = _replaceable_files(repository, hub_id) - {file.name for file in files}
        if repository is None:
            api.create_repo(hub_id, private=not public, exist_ok=True)
        changes: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(file.name, file.data) for file in files
        ]
        changes += [CommitOperationDelete(name) for name in sorted(stale)]
        api.create_commit(hub_id, changes, commit_message=f"Add {concept.token}")
    except UserError:
        raise
    except Exception as error:  # the Hub client raises its own, httpx's and OSError's
        raise _hub_error(error, hub_id) from None
    return f"{api.endpoint}/{hub_id}"


def pull(hub_id: str, as_: Token | None = None) -> Concept:
    """Load the concept in a Hub repository, in our format or any other. Raises UserError."""
    repository = Repository(_check_hub_id(hub_id))
    return read_folder(fetch_repository(repository), as_, *repository.owner_and_name)


# --- files to push ----------------------------------------------------------------------------------------------------


def _check_hub_id(hub_id: str) -> str:
    repository = parse_repository(hub_id)
    if not repository or repository.file:
        raise UserError(f"{printable(hub_id)} is not a repository's name.", "Write it like karpathy/cool-object.")
    return repository.id


def _read_own_image(path: Path, concept: Concept) -> tuple[Image.Image, str]:
    """Return an image and its prompt if its recipe names this concept's identity; this keeps photos out."""
    from PIL import Image
    from PIL.PngImagePlugin import PngImageFile

    data = storage.read_bytes(path, _MAX_IMAGE_BYTES)
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as opened:
            texts = opened.text if isinstance(opened, PngImageFile) else {}
            recipe = json.loads(texts[_RECIPE])
            used = {part["sha256"] for part in recipe["concepts"]}
            image, prompt = opened.convert("RGB"), str(recipe["prompt"])
    except Exception:  # Pillow raises many kinds; a photo has no recipe
        used = set()
    if concept.identity not in used:
        raise UserError(
            f"{printable(str(path))} is not an image generated with {concept.token}.",
            "Generate some: sdpersonal generate",
        )
    return image, prompt


def _image_grid(concept: Concept, images: Sequence[Image.Image]) -> bytes | None:
    """Return the images as one grid, or the re-encoded thumbnail; None where there are neither."""
    from PIL import Image

    from ..display.image_grid import captioned_grid, encode_png

    if images:
        return encode_png(captioned_grid([(image, "") for image in images], tile_size=256))
    if concept.thumbnail:
        with Image.open(io.BytesIO(reencode_thumbnail(concept.thumbnail))) as image:
            return encode_png(image.convert("RGB"))
    return None


# --- the repository ---------------------------------------------------------------------------------------------------


def _repository_info(api: HfApi, hub_id: str) -> ModelInfo | None:
    """Return the Hub's information on a repository; None if it does not exist."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        return api.model_info(hub_id, timeout=HUB_TIMEOUT)
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        return None


def _replaceable_files(info: ModelInfo | None, hub_id: str) -> set[str]:
    """Return the names of files from an earlier push. Raises UserError where others would be overwritten."""
    names = {sibling.rfilename for sibling in (info.siblings or ())} - {".gitattributes"} if info else set()
    tags = (info.tags or ()) if info else ()
    pushed_names = {"README.md", GRID_FILE, *DIFFUSERS_FILES, find_native(names, tags)}
    if names - {"README.md"} and (HUB_TAG not in tags or names - pushed_names):
        raise UserError(f"{hub_id} already exists on the Hub and holds other files.", "Choose another name.")
    return names - {"README.md"}


def _hub_error(error: Exception, hub_id: str) -> UserError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull("The disk is full; nothing was sent.", "Free some space and run it again.")
    if status == 401:
        return UserError("The Hub does not accept your login.", "Log in again: hf auth login")
    if status == 403:
        return UserError(f"You may not write to {hub_id}.", "Its owner must be you, and the login a write token.")
    if status == 429:
        return UserError("The Hub asks for a pause: too many requests.", "Try again in some minutes.")
    if status:
        return UserError(f"The Hub refused {hub_id} (HTTP {status}): {printable(_reason(error))}", "Try again later.")
    return UserError(
        "The Hub cannot be reached, or the connection broke; nothing has changed there.", "Go online and try again."
    )


def _reason(error: Exception) -> str:
    return str(getattr(error, "server_message", None) or type(error).__name__)
