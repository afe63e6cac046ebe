"""Concepts to the Hugging Face Hub and back. What is sent is made here, file by file, and can be looked at first."""

from __future__ import annotations

import errno
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .. import storage
from ..errors import NoRoom, PersonalError
from ..prompts import Token, show
from . import exporters
from .concept import Concept
from .importers.diffusers import FILES
from .importers.folders import read_folder
from .importers.hub_repositories import TAG, Repository, fetched, native, quieten, split
from .model_card import PICTURES, model_card
from .thumbnail import remade

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from PIL import Image

_SECONDS = 4  # for the Hub to answer in
_MAX_PICTURE = 50_000_000  # bytes
_RECIPE = "sdpersonal"  # the key in a PNG's text that `generation.Picture` writes


@dataclass(frozen=True)
class Upload:
    """One file as it will be sent: its name in the repository, its bytes, what it is there for."""

    name: str
    data: bytes
    purpose: str


def uploads(concept: Concept, hub_id: str, pictures: Sequence[Path] = ()) -> list[Upload]:
    """Every byte that `push` sends. pictures: PNGs drawn with this very concept, which become one grid.

    Raises PersonalError for a picture that was not drawn with it, and for a person who is not known to agree.
    """
    hub_id = _checked(hub_id)
    if concept.card.kind == "person" and concept.card.consent != "yes":
        raise PersonalError(
            f"{concept.token} shows a person, and its card does not say that they agree.",
            f"Ask them, then: sdpersonal concepts edit '{concept.token}' --consent yes",
        )
    drawn = [_drawn(path, concept) for path in pictures]
    ours = exporters.sdpersonal_file.write(concept)
    prompts = [prompt for _, prompt in drawn]
    grid = _grid(concept, [image for image, _ in drawn])
    card = model_card(concept, ours, hub_id, prompts, grid is not None)
    sent = [Upload("README.md", card.encode(), "model card: what it is, its licence, how it is used")]
    sent += [Upload(name, data, "the concept, for sdpersonal and most programs") for name, data in ours.files.items()]
    if exporters.diffusers.is_possible(concept):
        made = exporters.diffusers.write(concept)
        sent += [Upload(name, data, "the same for diffusers") for name, data in made.files.items()]
    sent += [Upload(PICTURES, grid, "pictures drawn with it, for the model card")] if grid else []
    return sent


def push(concept: Concept, sent: Sequence[Upload], hub_id: str, public: bool = False, api: HfApi | None = None) -> str:
    """Send the files as one commit, into a new private repository if there is none; returns the page's address.

    Raises PersonalError within seconds where the Hub is out of reach or does not let us, or where the repository holds
    something else.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

    hub_id, api = _checked(hub_id), api or HfApi()
    if not (api.token or get_token()):
        raise PersonalError("You are not logged in to the Hub.", "Once: hf auth login")
    quieten()
    try:
        # First what answers or fails at once: the other calls wait without end.
        there = _there(api, hub_id)
        api.whoami()
        stale = _replaceable(there, hub_id) - {each.name for each in sent}
        if there is None:
            api.create_repo(hub_id, private=not public, exist_ok=True)
        changes = [CommitOperationAdd(each.name, each.data) for each in sent]
        changes += [CommitOperationDelete(name) for name in sorted(stale)]
        api.create_commit(hub_id, changes, commit_message=f"Add {concept.token}")
    except PersonalError:
        raise
    except Exception as error:  # the Hub client raises its own, httpx's and OSError's
        raise _explained(error, hub_id) from None
    return f"{api.endpoint}/{hub_id}"


def pull(hub_id: str, as_: Token | None = None) -> Concept:
    """The concept in a repository of the Hub, ours or anybody's. Raises PersonalError."""
    repository = Repository(_checked(hub_id))
    return read_folder(fetched(repository), as_, *repository.words)


# --- what is sent -----------------------------------------------------------------------------------------------------


def _checked(hub_id: str) -> str:
    found = split(hub_id)
    if not found or found.file:
        raise PersonalError(f"{show(hub_id)} is not a repository's name.", "Write it like karpathy/cool-object.")
    return found.id


def _drawn(path: Path, concept: Concept) -> tuple[Image.Image, str]:
    """A picture and its prompt, if its recipe names this concept's vectors and weights: so no photo gets in."""
    from PIL import Image

    data = storage.read_bytes(path, _MAX_PICTURE)
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
            recipe = json.loads(picture.text[_RECIPE])
            used = {each["sha256"] for each in recipe["concepts"]}
            image, prompt = picture.convert("RGB"), str(recipe["prompt"])
    except Exception:  # Pillow raises many kinds; a photo has no recipe
        used = set()
    if concept.identity not in used:
        raise PersonalError(
            f"{show(str(path))} is not a picture that was drawn with {concept.token}.", "Draw some: sdpersonal generate"
        )
    return image, prompt


def _grid(concept: Concept, images: Sequence[Image.Image]) -> bytes | None:
    """The pictures on one sheet, or the thumbnail, remade from pixels; None where there are neither."""
    from PIL import Image

    from ..image_grid import laid_out, png

    if images:
        return png(laid_out([(image, "") for image in images], tile=256))
    if concept.thumbnail:
        with Image.open(io.BytesIO(remade(concept.thumbnail))) as picture:
            return png(picture.convert("RGB"))
    return None


# --- what is there ----------------------------------------------------------------------------------------------------


def _there(api: HfApi, hub_id: str):
    """What the Hub knows of a repository; None if there is none."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        return api.model_info(hub_id, timeout=_SECONDS)
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        return None


def _replaceable(there, hub_id: str) -> set[str]:
    """The files that an earlier push left. Raises PersonalError where others would be overwritten."""
    names = {each.rfilename for each in (there.siblings or ())} - {".gitattributes"} if there else set()
    tags = (there.tags or ()) if there else ()
    ours = {"README.md", PICTURES, *FILES, native(names, tags)}
    if names - {"README.md"} and (TAG not in tags or names - ours):
        raise PersonalError(f"{hub_id} is there already and holds something else.", "Choose another name.")
    return names - {"README.md"}


def _explained(error: Exception, hub_id: str) -> PersonalError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoRoom("The disk is full; nothing was sent.", "Make room and run it again.")
    if status == 401:
        return PersonalError("The Hub does not know your login.", "Log in again: hf auth login")
    if status == 403:
        return PersonalError(f"You may not write to {hub_id}.", "Its owner must be you, and the login a write token.")
    if status == 429:
        return PersonalError("The Hub asks for a pause: too many requests.", "Try again in some minutes.")
    if status:
        return PersonalError(f"The Hub refused {hub_id} (HTTP {status}): {show(_reason(error))}", "Try again later.")
    return PersonalError(
        "I cannot reach the Hub, or the connection broke; nothing has changed there.", "Go online and try again."
    )


def _reason(error: Exception) -> str:
    return str(getattr(error, "server_message", None) or type(error).__name__)
