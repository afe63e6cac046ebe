"""Fetch concepts from repositories of the Hugging Face Hub: only their files, never a whole model."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ...errors import DiskFull, UserError, printable
from ...prompts import to_token_word
from ..strict_safetensors import MAX_FILE_BYTES
from .contents import DEFAULT_OWNER
from .embeddings import DIFFUSERS_FILES
from .hub_client import check_sums, download_files, silence_hub_client
from .sources import MODEL_INDEX, PICKLE_SUFFIXES, SAFETENSORS_SUFFIXES, TEXT_FILES

_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:/(?P<file>[^\s\\]{1,300}))?", re.ASCII)
HUB_TAG = "sdpersonal"  # on the Hub, of repositories that `push` creates
HUB_TIMEOUT = 4  # seconds for the Hub to answer
_MAX_FILES = 1000  # that are fetched from one repository
_WEIGHT_SUFFIXES = (*SAFETENSORS_SUFFIXES, *PICKLE_SUFFIXES)
_TEXTS = TEXT_FILES | {"adapter_config.json", "README.md"}


@dataclass(frozen=True)
class Repository:
    """`owner/name`, or one file of it."""

    id: str
    file: str = ""

    @property
    def owner_and_name(self) -> tuple[str, str]:
        """Return owner and name in a token's characters, for concepts whose files say neither."""
        owner, name = map(to_token_word, self.id.split("/"))
        return owner or DEFAULT_OWNER, name


def parse_repository(text: str) -> Repository | None:
    """Parse `owner/name` or `owner/name/file` of the Hub; return None where it cannot be one."""
    match = _ID.fullmatch(text.removeprefix("https://huggingface.co/"))
    if match is None:
        return None
    name = match["file"] or ""
    if ".." in name.split("/") or (not name and match["id"].endswith((*_WEIGHT_SUFFIXES, ".png"))):
        return None
    return Repository(match["id"], re.sub(r"^(resolve|blob)/[^/]+/", "", name))


def fetch_repository(repository: Repository) -> Path:
    """Return the folder of its files, from the Hub or, where that is unreachable, from this machine's cache.

    Raises UserError within seconds where neither has it, DiskFull where the disk is full.
    """
    from huggingface_hub import HfApi

    silence_hub_client()
    try:
        info = HfApi().model_info(repository.id, files_metadata=True, timeout=HUB_TIMEOUT)
        files = {file.rfilename: file for file in info.siblings or ()}
        sizes = {name: file.size for name, file in files.items()}
        names = _files_to_fetch(repository, {name: size or 0 for name, size in sizes.items()}, info.tags or ())
        fetched = download_files(repository.id, info.sha, sizes, names)
        sums = {name: lfs.sha256 for name in names if (lfs := files[name].lfs)}
        check_sums(fetched, repository.id, sums)
        return fetched
    except UserError:
        raise
    except Exception as error:  # the Hub client raises its own, httpx's and OSError's; the reason is in the name
        if "NotFound" not in type(error).__name__ and (folder := _cached_folder(repository)):
            return folder
        raise _hub_error(error, repository) from None


def find_native(names: Iterable[str], tags: Iterable[str]) -> str | None:
    """Return our own file in a repository that `push` created; None in any other."""
    candidates = [
        name for name in names if name.endswith(".safetensors") and "/" not in name and name not in DIFFUSERS_FILES
    ]
    return candidates[0] if HUB_TAG in tags and len(candidates) == 1 else None


def _files_to_fetch(repository: Repository, sizes: Mapping[str, int], tags: Iterable[str] = ()) -> list[str]:
    """Return the names of the files to fetch. Raises UserError where none could be a concept."""
    if repository.file:
        names = [name for name in sizes if name == repository.file]
    elif native := find_native(sizes, tags):
        names = [native]  # the other files are a copy for diffusers
    elif MODEL_INDEX in sizes:
        raise UserError(f"{printable(repository.id)} is a whole model, not a concept.", "Give it as --base.")
    else:
        names = _pick_files(sizes)
    if len(names) > _MAX_FILES:
        raise UserError(
            f"{printable(repository.id)} holds {len(names):,} files; {_MAX_FILES:,} are the most.",
            f"Name the one you want: {printable(repository.id)}/FILE.safetensors.",
        )
    if not any(name.endswith((*_WEIGHT_SUFFIXES, ".png", ".webp")) for name in names):
        raise UserError(f"{printable(repository.id)} holds no embedding or LoRA.", "See its files on huggingface.co.")
    for name in names:
        if sizes[name] > MAX_FILE_BYTES:
            raise UserError(f"{printable(name)} of {printable(repository.id)} is larger than 4 GB, the limit.")
    if sum(sizes[name] for name in names) > MAX_FILE_BYTES:
        raise UserError(
            f"{printable(repository.id)} holds {len(names)} files of together more than 4 GB.",
            f"Name the one you want: {repository.id}/FILE.safetensors.",
        )
    return names


def _pick_files(names: Iterable[str]) -> list[str]:
    """Return the weights and texts among a repository's files, in it or one folder down."""
    top_names = [name for name in names if name.count("/") <= 1]
    weights = [name for name in top_names if name.endswith(SAFETENSORS_SUFFIXES)] or [
        name for name in top_names if name.endswith(PICKLE_SUFFIXES)
    ]
    return [*weights, *(name for name in top_names if name.rpartition("/")[2] in _TEXTS)]


def _cached_folder(repository: Repository) -> Path | None:
    """Return the folder of the newest copy in the cache, if it has files that could be a concept."""
    from huggingface_hub import constants, scan_cache_dir

    try:
        cache = scan_cache_dir(constants.HF_HUB_CACHE)
        repos = [repo for repo in cache.repos if (repo.repo_id, repo.repo_type) == (repository.id, "model")]
        # Not by branch: the client records none for a download by commit, as ours are.
        newest = max((copy for repo in repos for copy in repo.revisions), key=lambda copy: copy.last_modified)
    except Exception:  # whatever the error is, there is no copy to use
        return None
    folder = newest.snapshot_path
    if repository.file:
        return folder if (folder / repository.file).is_file() else None
    paths = [*folder.glob("*"), *folder.glob("*/*")]
    names = _pick_files(path.relative_to(folder).as_posix() for path in paths if path.is_file())
    return folder if any(name.endswith(_WEIGHT_SUFFIXES) for name in names) else None


def _hub_error(error: Exception, repository: Repository) -> UserError:
    kind, name = type(error).__name__, printable(repository.id)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"The disk is full; {name} is not fetched.", "Free some space and run it again: it goes on.")
    if "Gated" in kind:
        return UserError(f"{name} requires accepting an agreement.", "Accept it on its page, then: hf auth login")
    if "NotFound" in kind:
        return UserError(f"The Hub has no repository {name}, and no file or folder has that name.")
    if status := getattr(getattr(error, "response", None), "status_code", None):
        return UserError(f"The Hub refuses access to {name} (HTTP {status}).", "Try again later.")
    return UserError(f"The Hub cannot be reached for {name}, and no file or folder has that name.", "Go online.")
