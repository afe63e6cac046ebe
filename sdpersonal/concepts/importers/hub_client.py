"""Use the Hub's client quietly, and check what a server answers.

Names of files are names, never patterns; nothing larger than announced is fetched; and what a server calls a file's
version, of which the client makes a path, must be a plain word.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

from ... import storage
from ...errors import UserError, printable

if TYPE_CHECKING:
    import httpx2 as httpx  # as the client of the Hub names it

_COMMIT = re.compile(r"[0-9a-f]{40}")
_VERSION = re.compile(r"[^/\\\x00-\x20\x7f]{1,200}")
_VERSION_HEADERS = ("etag", "x-linked-etag", "x-repo-commit")
_SIZE_HEADERS = ("content-length", "x-linked-size")
_HINT = "Try again later, or fetch the file in another way."
_announced: ContextVar[tuple[str, int] | None] = ContextVar("announced", default=None)  # (name, bytes) under way
_guarded: list[bool] = []  # filled once


def silence_hub_client() -> None:
    """Hide the client's progress bars, warnings and retries: the user is told only the result."""
    from huggingface_hub.utils import disable_progress_bars, logging

    disable_telemetry()
    disable_progress_bars()
    logging.set_verbosity_error()


def disable_telemetry() -> None:
    """Turn off telemetry: what else is installed is not for the Hub, and the client would first ask it which agents it
    knows, which takes three seconds more where it does not answer. Check the server's answers from here on."""
    from huggingface_hub import constants

    constants.HF_HUB_DISABLE_TELEMETRY = True
    _check_answers()


def _check_answers() -> None:
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    def make_client() -> httpx.Client:
        client = default_client_factory()
        client.event_hooks["response"].append(_check_answer)
        return client

    if not _guarded:
        _guarded.append(True)
        set_client_factory(make_client)


def download_files(hub_id: str, commit: str | None, sizes: Mapping[str, int | None], names: Sequence[str]) -> Path:
    """Fetch files of one commit, or take them from the cache; return the folder with them.

    sizes: bytes by name, as announced; None where the Hub does not say. Raises UserError where it answers something
    else than it announced, and the client's errors.
    """
    from huggingface_hub import hf_hub_download

    if not commit or not _COMMIT.fullmatch(commit):
        raise UserError(f"The Hub names no commit of {printable(hub_id)}.", _HINT)
    folder = None
    for name in names:
        size = sizes[name]
        token = _announced.set(None if size is None else (name, size))
        try:
            path = Path(hf_hub_download(hub_id, name, revision=commit))
        finally:
            _announced.reset(token)
        folder = path.parents[name.count("/")]
    if folder is None:
        raise ValueError("no names of files to fetch")
    return folder


def check_sums(folder: Path, hub_id: str, sums: Mapping[str, str]) -> None:
    """Compare files with the sha256 that the Hub announced, by name; remove what differs. Raises UserError."""
    for name, expected in sums.items():
        digest = hashlib.sha256()
        with storage.open_to_read(folder / name) as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        if digest.hexdigest() != expected:
            storage.remove((folder / name).resolve())
            raise UserError(f"{printable(name)} of {printable(hub_id)} is not the file that the Hub announced.", _HINT)


def _check_answer(response: httpx.Response) -> None:
    """Raise UserError for an answer that would be written elsewhere, is larger than announced, or leads to this
    machine or network from outside."""
    for header in _VERSION_HEADERS if response.request.method == "HEAD" else ():
        value = response.headers.get(header, "0").lstrip("W/").strip('"')
        if not _VERSION.fullmatch(value) or value.strip(".") == "":
            raise UserError(f"The Hub answers with an impossible {header}: {printable(value)}.", _HINT)
    location = response.headers.get("location")
    if location and _is_local(response.url.join(location).host) and not _is_local(response.url.host):
        raise UserError(f"The Hub leads to an address of this network: {printable(location)}.", _HINT)
    if (announced := _announced.get()) and response.is_success:
        name, size = announced
        numbers = [response.headers.get(header, "") for header in _SIZE_HEADERS]
        if any(number.isdecimal() and int(number[:20]) > size for number in numbers):
            raise UserError(f"{printable(name)} is larger than the Hub announced.", _HINT)


def _is_local(host: str) -> bool:
    """Return whether a host is this machine or one of its network, as far as its name says."""
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return host.rstrip(".").endswith("localhost")
    return not address.is_global
