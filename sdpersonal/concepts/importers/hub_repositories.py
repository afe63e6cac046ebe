"""Concepts in repositories of the Hugging Face Hub: only their files are fetched, never a whole model."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ...errors import NoRoom, PersonalError
from ...prompts import show
from ..strict_safetensors import MAX_FILE
from .contents import OWNER
from .diffusers import FILES

_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:/(?P<file>[^\s\\]{1,300}))?", re.ASCII)
TAG = "sdpersonal"  # on the Hub, of what `push` sends
_SECONDS = 4  # to answer in
_SAFE, _PICKLES = (".safetensors", ".pti"), (".bin", ".pt")
_TEXTS = {"token_identifier.txt", "type_of_concept.txt", "adapter_config.json", "special_params.json", "README.md"}


@dataclass(frozen=True)
class Repository:
    """`owner/name`, or one file of it."""

    id: str
    file: str = ""

    @property
    def words(self) -> tuple[str, str]:
        """Owner and name in the letters of a token; for concepts whose files say neither."""
        owner, name = (re.sub(r"[^a-z0-9]+", "-", part.lower()).strip("-") for part in self.id.split("/"))
        return owner or OWNER, name


def split(text: str) -> Repository | None:
    """`owner/name` or `owner/name/file` of the Hub; None where it cannot be one."""
    found = _ID.fullmatch(text.removeprefix("https://huggingface.co/"))
    name = found and (found["file"] or "")
    if not found or ".." in name.split("/") or (not name and found["id"].endswith((*_SAFE, *_PICKLES, ".png"))):
        return None
    return Repository(found["id"], re.sub(r"^(resolve|blob)/[^/]+/", "", name))


def fetched(repository: Repository) -> Path:
    """The folder of its files, from the Hub or, where that is out of reach, from this machine's cache.

    Raises PersonalError within seconds where it cannot be had, NoRoom where the disk is full.
    """
    from huggingface_hub import HfApi, snapshot_download

    quieten()
    try:
        info = HfApi().model_info(repository.id, files_metadata=True, timeout=_SECONDS)
        sizes = {each.rfilename: each.size or 0 for each in info.siblings or ()}
        wanted = _wanted(repository, sizes, info.tags or ())
        return Path(snapshot_download(repository.id, revision=info.sha, allow_patterns=wanted))
    except PersonalError:
        raise
    except Exception as error:  # the Hub client raises its own, httpx's and OSError's; the reason is in the name
        if "NotFound" not in type(error).__name__ and (folder := _cached(repository)):
            return folder
        raise _explained(error, repository) from None


def quieten() -> None:
    """The client's bars, warnings and retries are not for the user, who is told how it ended."""
    from huggingface_hub.utils import disable_progress_bars, logging

    without_telemetry()
    disable_progress_bars()
    logging.set_verbosity_error()


def without_telemetry() -> None:
    """What else is installed here is not for the Hub, and the client would first ask it which agents it knows, which
    takes three seconds more where it does not answer."""
    from huggingface_hub import constants

    constants.HF_HUB_DISABLE_TELEMETRY = True


def native(names: Iterable[str], tags: Iterable[str]) -> str | None:
    """Our own file in a repository that `push` has made; None in anybody else's."""
    found = [name for name in names if name.endswith(".safetensors") and "/" not in name and name not in FILES]
    return found[0] if TAG in tags and len(found) == 1 else None


def _wanted(repository: Repository, sizes: Mapping[str, int], tags: Iterable[str] = ()) -> list[str]:
    """The names of the files to fetch. Raises PersonalError where there is nothing that could be a concept."""
    if repository.file:
        names = [name for name in sizes if name == repository.file]
    elif ours := native(sizes, tags):
        names = [ours]  # the rest is the same for diffusers
    elif "model_index.json" in sizes:
        raise PersonalError(f"{show(repository.id)} is a whole model, not a concept.", "Give it as --base.")
    else:
        names = _pick(sizes)
    if not any(name.endswith((*_SAFE, *_PICKLES, ".png", ".webp")) for name in names):
        raise PersonalError(f"{show(repository.id)} holds no embedding or LoRA.", "See its files on huggingface.co.")
    for name in names:
        if sizes[name] > MAX_FILE:
            raise PersonalError(f"{show(name)} of {show(repository.id)} is larger than 4 GB, the most I read.")
    if sum(sizes[name] for name in names) > MAX_FILE:
        raise PersonalError(
            f"{show(repository.id)} holds {len(names)} files of together more than 4 GB.",
            f"Name the one you want: {repository.id}/FILE.safetensors.",
        )
    return names


def _pick(sizes: Mapping[str, int]) -> list[str]:
    near = [name for name in sizes if name.count("/") <= 1]
    weights = [name for name in near if name.endswith(_SAFE)] or [name for name in near if name.endswith(_PICKLES)]
    return [*weights, *(name for name in near if name.rpartition("/")[2] in _TEXTS)]


def _cached(repository: Repository) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repository.id, local_files_only=True))
    except Exception:  # whatever it is, there is no copy to use
        return None
    names: Iterable[str] = (each.name for each in folder.iterdir())
    held = (
        (folder / repository.file).is_file() if repository.file else any(n.endswith((*_SAFE, *_PICKLES)) for n in names)
    )
    return folder if held else None


def _explained(error: Exception, repository: Repository) -> PersonalError:
    kind, name = type(error).__name__, show(repository.id)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoRoom(f"The disk is full; {name} is not fetched.", "Make room and run it again: it goes on.")
    if "Gated" in kind:
        return PersonalError(f"{name} asks for an agreement.", "Accept it on its page, then: hf auth login")
    if "NotFound" in kind:
        return PersonalError(f"The Hub has no repository {name}, and no file or folder is called so.")
    if status := getattr(getattr(error, "response", None), "status_code", None):
        return PersonalError(f"The Hub does not give out {name} (HTTP {status}).", "Try again later.")
    return PersonalError(f"I cannot reach the Hub for {name}, and no file or folder is called so.", "Go online.")
