"""Save a user's own presets in outputs/[USER/].presets.json: styles, negative prompts, and whole forms."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Literal, cast, get_args

from .... import storage
from ....config.text_checks import encoding_problem
from ....errors import UserError
from ....prompts import MAX_PROMPT
from ..workspace import Workspace

FILE_NAME = ".presets.json"
MAX_PRESETS = 200
MAX_NAME = 80  # characters
_MAX_VALUES = 40
_MAX_FILE = 8_000_000  # bytes
PresetKind = Literal["style", "negative", "form"]
_FIELD = {"style": "prompt", "negative": "negative"}  # the one value that these kinds have


def list_presets(workspace: Workspace, user: str | None) -> list[dict[str, Any]]:
    """Return the user's presets, {id, name, kind, values}, in their order. Entries that are damaged are left out."""
    path = workspace.user_outputs(user).folder / FILE_NAME
    if not path.is_file():
        return []
    entries: object = None
    with suppress(ValueError, RecursionError):
        entries = json.loads(storage.read_bytes(path, _MAX_FILE))
    if not isinstance(entries, list):
        raise UserError("Your presets cannot be read.", f"Move {FILE_NAME} out of the outputs folder.")
    return [entry for entry in entries[:MAX_PRESETS] if _is_valid(entry)]


def add_preset(workspace: Workspace, user: str | None, name: str, kind: PresetKind, values: Mapping[str, Any]) -> str:
    """Add a preset, in the place of one of the same kind and name; return its id. Raises UserError."""
    entry = {"id": secrets.token_hex(4), "name": name.strip(), "kind": kind, "values": dict(values)}
    if not entry["name"]:
        raise UserError("The preset has no name.", "Type one.")
    if not _is_valid(entry):
        raise UserError("The preset cannot be saved: its values are not those of the form.")
    folder = storage.make_folder(workspace.user_outputs(user).folder)
    with storage.lock(folder, timeout=storage.LOCK_TIMEOUT):
        presets = list_presets(workspace, user)
        same = [i for i, other in enumerate(presets) if (other["kind"], other["name"]) == (kind, entry["name"])]
        if same:
            presets[same[0]] = entry | {"id": presets[same[0]]["id"]}
        elif len(presets) >= MAX_PRESETS:
            raise UserError(f"You have {MAX_PRESETS} presets already.", "Delete some.")
        else:
            presets.append(entry)
        storage.write_json(folder / FILE_NAME, presets)
    return cast(str, presets[same[0]]["id"] if same else entry["id"])


def delete_preset(workspace: Workspace, user: str | None, preset_id: str) -> None:
    """Delete a preset. Raises UserError if there is none with this id."""
    folder = storage.make_folder(workspace.user_outputs(user).folder)
    with storage.lock(folder, timeout=storage.LOCK_TIMEOUT):
        presets = list_presets(workspace, user)
        left = [preset for preset in presets if preset["id"] != preset_id]
        if len(left) == len(presets):
            raise UserError("This preset is gone already.")
        storage.write_json(folder / FILE_NAME, left)


def _is_valid(entry: object) -> bool:
    if not isinstance(entry, dict) or entry.keys() != {"id", "name", "kind", "values"}:
        return False
    kind, values = entry["kind"], entry["values"]
    return (
        _is_text(entry["id"], 20)
        and _is_text(entry["name"], MAX_NAME)
        and kind in get_args(PresetKind)
        and isinstance(values, dict)
        and 0 < len(values) <= _MAX_VALUES
        and (kind == "form" or set(values) == {_FIELD[kind]})
        and all(_is_text(name, 40) and _is_value(value) for name, value in values.items())
    )


def _is_value(value: object) -> bool:
    if isinstance(value, float):
        return value == value and abs(value) < 1e9
    return (
        value is None
        or isinstance(value, bool)
        or _is_text(value, MAX_PROMPT)
        or (isinstance(value, int) and abs(value) < 2**64)
    )


def _is_text(value: object, length: int) -> bool:
    return isinstance(value, str) and len(value) <= length and encoding_problem(value) is None
