"""Read what a client asks for: requests with the identities of their concepts, and image files by their sha256."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ... import storage
from ...config import MAX_IMAGES, GenerateRequest, check_total_work
from ...errors import UserError, printable
from ...generation.request_checks import naming_request
from ...prompts import Token, Wildcards
from ..image_task import FILE_FIELDS, INPUTS, ImageTask, PinnedConcept, split_request

MAX_BODY = 48 << 20  # bytes: two images of 16 MB as base64, and their requests
_MAX_VALUES = 200_000  # in the JSON
_MAX_FILES = 16
_VALUE_MARKS = re.compile(rb"[\[{,:]")
_FORM_KEYS = {"requests", "files"}
_ENTRY_KEYS = {"request", "concepts", "template", "number"}  # those of `ImageTask.as_json`
_NO_LISTS = Wildcards(None)


@dataclass(frozen=True)
class Form:
    """What was asked for. tasks: an image each, in order; files: what their initial images are, by key of the store."""

    tasks: list[ImageTask]
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def concepts(self) -> set[PinnedConcept]:
        return {pinned for task in self.tasks for pinned in task.concepts.values()}


def parse_form(body: bytes, session: str) -> Form:
    """Read a body:

        {"requests": [{"request": {"prompt": "a <me/duck>", ...}, "concepts": {"<me/duck>": IDENTITY}}, ...],
         "files": {SHA256: base64}}

    The fields of a request are those of `GenerateRequest`; init_image and mask are the sha256 of one of the files. What
    `ImageTask.as_json` writes is accepted too. session: 16 hexadecimal digits under which the files are stored.

    Raises: UserError.
    """
    content = _parse_json(body)
    entries = content.get("requests")
    if not isinstance(entries, list) or not 1 <= len(entries) <= MAX_IMAGES:
        raise UserError(f"requests must be a list of 1 to {MAX_IMAGES} requests.")
    files = _parse_files(content.get("files", {}))
    keys = {sha256: f"{INPUTS}/{session}/{sha256}" for sha256 in files}
    tasks: list[ImageTask] = []
    for index, entry in enumerate(entries):
        with naming_request(index, len(entries)):
            tasks += _tasks_of(entry, keys, len(tasks))
    if len(tasks) > MAX_IMAGES:
        raise UserError(f"These are {len(tasks)} images; up to {MAX_IMAGES} are generated at once.")
    check_total_work(max((task.request for task in tasks), key=lambda request: request.work_per_image), len(tasks))
    return Form(tasks, {keys[sha256]: data for sha256, data in files.items()})


def _parse_json(body: bytes) -> Mapping[str, Any]:
    if len(_VALUE_MARKS.findall(body)) > _MAX_VALUES:
        raise UserError(f"The form has more than {_MAX_VALUES:,} values.")
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise UserError("The form is not JSON.") from None
    if not isinstance(content, dict) or content.keys() - _FORM_KEYS:
        raise UserError("The form must be an object with requests, and files if there are any.")
    return content


def _parse_files(files: object) -> dict[str, bytes]:
    if not isinstance(files, dict) or len(files) > _MAX_FILES:
        raise UserError(f"files must be an object of up to {_MAX_FILES} files.")
    contents: dict[str, bytes] = {}
    for sha256, text in files.items():
        try:
            data = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
        except (binascii.Error, ValueError):
            raise UserError(f"The file {printable(sha256, 64)} is not base64.") from None
        if storage.sha256(data) != sha256:
            raise UserError(f"The file {printable(sha256, 64)} has another sha256.")
        contents[sha256] = data
    return contents


def _tasks_of(entry: object, keys: Mapping[str, str], first: int) -> list[ImageTask]:
    if not isinstance(entry, dict) or entry.keys() - _ENTRY_KEYS or not isinstance(entry.get("request"), dict):
        raise UserError("An entry of requests must be an object with a request, and the concepts that it names.")
    request = _request_of(entry["request"], keys)
    concepts = _concepts_of(entry.get("concepts", {}))
    template = entry.get("template", "")
    if not isinstance(template, str):
        raise UserError("template must be text.")
    tasks = split_request(request, _NO_LISTS, lambda token, is_fast: _pinned(token, concepts), lambda path: path)
    return [replace(task, number=first + task.number, template=task.template or template) for task in tasks]


def _request_of(fields: Mapping[str, Any], keys: Mapping[str, str]) -> GenerateRequest:
    fields = dict(fields)
    for name in FILE_FIELDS:
        sha256 = fields.get(name)
        if sha256 is None:
            continue
        sha256 = sha256.rpartition("/")[2] if isinstance(sha256, str) else ""  # of a key of another store
        if sha256 not in keys:
            raise UserError(f"{name} must be the sha256 of one of the files.")
        fields[name] = Path(keys[sha256])
    return GenerateRequest(**fields)


def _concepts_of(concepts: object) -> dict[str, PinnedConcept]:
    if not isinstance(concepts, dict):
        raise UserError("concepts must be an object of tokens and identities.")
    return {token: PinnedConcept.parse(name) for token, name in concepts.items()}


def _pinned(token: Token, concepts: Mapping[str, PinnedConcept]) -> PinnedConcept:
    if str(token) not in concepts:
        raise UserError(f"concepts does not say which one {token} is.", "Upload it: PUT /concepts/IDENTITY.")
    return concepts[str(token)]


def form_body(tasks: Sequence[ImageTask], files: Mapping[str, bytes]) -> bytes:
    """Return the body that asks for tasks. files: contents by sha256."""
    encoded = {sha256: base64.b64encode(data).decode() for sha256, data in files.items()}
    return json.dumps({"requests": [task.as_json() for task in tasks], "files": encoded}).encode()
