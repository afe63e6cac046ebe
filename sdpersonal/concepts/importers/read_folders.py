"""Read the concept in a file, in a folder, or in several files that belong together."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ... import storage
from ...config.text_checks import strip_unsafe_characters
from ...errors import UserError, printable
from ...prompts import Token
from ...storage.file_types import SAFETENSORS, recognise
from ...storage.reading import parse_strict_json
from ..concept import Concept, Lora, LoraLayer
from ..layer_changes import Change
from ..strict_safetensors import MAX_FILE_BYTES, MAX_FOREIGN_HEADER, damaged_file_error, parse_head_layout
from . import (
    READABLE_GROUPS,
    cloneofsimo,
    embeddings,
    is_native,
    lora_file,
    open_foreign,
    read_content,
    read_native,
    read_pair,
)
from .contents import DEFAULT_OWNER, MAX_PICKLE_BYTES, FileContents, tensor_names
from .sources import (
    MODEL_INDEX,
    PICKLE_SUFFIXES,
    SAFETENSORS_SUFFIXES,
    TEXT_FILES,
    UNFINISHED,
    Source,
    adapter_folders,
    find_concepts,
    folder_name_of,
    join_parts,
    list_folder,
)
from .to_concept import derive_token
from .unsupported import refuse_unsupported

_MAX_TEXT_BYTES = 1_000_000  # of a README or a configuration


def read_source(source: Source, token: Token | None = None) -> Concept:
    """Read the concept, under its own token or the one given. Raises UserError."""
    if not source.files:
        return read_path(source.path, token, source.owner, source.folder_name)
    if len(source.files) == 1 and source.path == source.files[0]:
        return read_path(source.path, token, source.owner, source.folder_name)
    return _read_files(source, token)


def read_path(
    path: str | os.PathLike, token: Token | None = None, owner: str = DEFAULT_OWNER, folder_name: str = ""
) -> Concept:
    """Read the concept in a file or folder, under its own token or the one given. Raises UserError.

    owner, folder_name: the owner and name of its token, where the files say neither.
    """
    path = Path(path)
    if path.is_dir():
        return read_folder(path, token, owner, folder_name)
    _check_downloaded(path)
    data = _read_weights(path)
    if is_native(data, path.name):
        return read_native(data, path.name, token)
    return read_content(open_foreign(data, path.name).from_folder(folder_name, owner), token)


def read_folder(
    folder: str | os.PathLike, token: Token | None = None, owner: str = DEFAULT_OWNER, folder_name: str = ""
) -> Concept:
    """Read the one concept in a folder. owner, folder_name: as for `read_path`. Raises UserError."""
    folder = Path(folder)
    names = list_folder(folder)
    if MODEL_INDEX in names:
        raise UserError(f"{printable(str(folder), 200)} is a whole model, not a concept.", "Give it as --base.")
    if adapters := adapter_folders(folder, names):
        return _read_peft(adapters, token, owner, folder_name or folder_name_of(folder))
    sources = join_parts(find_concepts(folder, owner, folder_name))
    if not sources:
        raise _no_concept_error(folder)
    if len(sources) > 1:
        raise _several_concepts_error([path.name for source in sources for path in source.all_files], folder)
    source = dataclasses.replace(
        sources[0], folder_name=sources[0].folder_name or folder_name or folder_name_of(folder)
    )
    if source.files:
        return _read_files(source, token)
    return read_path(source.path, token, owner, source.folder_name)


def _check_downloaded(path: Path) -> None:
    """Raise UserError where a file's name, its neighbour or its link target shows that it was not downloaded."""
    if path.is_symlink() and not path.exists():
        kind = recognise(os.readlink(path).encode("utf-8", "replace"))  # git-annex links to the file's future place
        raise (
            kind.refusal(path.name)
            if kind.group == "placeholder"
            else UserError(f"{printable(path.name)} is a link to a file that is not there.", "Fetch the file again.")
        )
    if path.name.lower().endswith(UNFINISHED) or os.path.lexists(path.with_name(f"{path.name}.aria2")):
        raise UserError(
            f"{printable(path.name)} is refused: its download has not finished.", "Let it finish, or fetch it again."
        )


def _no_concept_error(folder: Path) -> UserError:
    return UserError(f"{printable(str(folder), 200)} holds no concept in a supported format.", "Give the file itself.")


def _several_concepts_error(names: Sequence[str], folder: Path) -> UserError:
    message = f"{printable(str(folder), 200)} holds several concepts: {printable(', '.join(names), 200)}."
    return UserError(message, "Give one of the files.")


# --- several files as one concept -------------------------------------------------------------------------------------


class NotOneConcept(UserError):
    """Files that were taken for parts of one concept are not."""


def _read_files(source: Source, token: Token | None) -> Concept:
    """Read one concept from several files and the texts beside them. Raises NotOneConcept, UserError."""
    own_files: list[Concept] = []
    contents: list[FileContents] = []
    for path in source.files:
        _check_downloaded(path)
        data = _read_weights(path)
        if is_native(data, path.name):
            own_files.append(read_native(data, path.name, token))
        else:
            contents.append(open_foreign(data, path.name).from_folder(source.folder_name, source.owner))
    in_folder = all(path.parent == source.path for path in source.files)  # else the texts describe something else
    word, fields = _read_text_files(list_folder(source.path) if in_folder and not own_files else {})
    file_token = token
    if token is None and word and contents:
        file_token = derive_token(dataclasses.replace(contents[0], name="", folder_name=""), word)
    parts = [*own_files, *(_combine_contents(contents, file_token, source.path) if contents else ())]
    concept = join_concepts(parts, token)
    return dataclasses.replace(concept, card=concept.card.model_copy(update=fields)) if fields else concept


def _combine_contents(contents: Sequence[FileContents], token: Token | None, folder: Path) -> list[Concept]:
    """Read a concept's parts, vectors and LoRA, from several foreign files. Raises NotOneConcept, UserError."""
    if len(contents) == 2 and embeddings.is_diffusers_pair(contents[0], contents[1]):
        return [read_pair(contents[0], contents[1], token)]
    if all(cloneofsimo.fits(content) for content in contents):
        return [read_content(content, token) for content in contents]
    loras = [content for content in contents if lora_file.fits(content) or cloneofsimo.fits(content)]
    others = [content for content in contents if content not in loras]
    is_pair = len(others) == 2 and embeddings.is_diffusers_pair(others[0], others[1])
    if len(loras) > 1 or (len(others) > 1 and not is_pair):
        raise NotOneConcept(*_several_concepts_error([content.name for content in contents], folder).args)
    embedding_parts = (
        [read_pair(others[0], others[1], token)] if is_pair else [read_content(content, token) for content in others]
    )
    if (
        embedding_parts and token is None and next(iter(others[0].shapes)).startswith("<")
    ):  # only diffusers names them so
        token = embedding_parts[0].token
    return [*(read_content(content, token) for content in loras), *embedding_parts]


def join_concepts(parts: Sequence[Concept], token: Token | None = None) -> Concept:
    """Join vectors and LoRA, or parts of a LoRA, into one concept; duplicate parts count once.

    Raises NotOneConcept where they do not fit together.
    """
    first = next((part for part in parts if part.part_of), parts[0])
    complete = next((part for part in parts if not part.part_of and part.identity == first.part_of), None)
    if complete:  # one of the files holds all of it
        return dataclasses.replace(complete, token=token or complete.token)
    if len(parts) == 1:
        return first
    vectors: dict[str, np.ndarray] = {}
    layers: dict[str, LoraLayer] = {}
    changes: dict[str, Change] = {}
    for part in parts:
        if part.card.base != first.card.base:
            raise NotOneConcept(
                f"Its files are for two bases: {first.card.base} and {part.card.base}.", "Give one of the files."
            )
        lora = part.lora or Lora({})
        if _differ(vectors, part.vectors) or _layers_clash(Lora(layers, changes), lora):
            raise NotOneConcept("Its files hold two concepts.", "Give one of the files.")
        vectors, layers, changes = vectors | part.vectors, layers | lora.layers, changes | lora.changes
    joined_lora = Lora(layers, changes) if layers or changes else None
    concept = Concept(token or first.token, first.card, vectors, joined_lora, first.thumbnail, first.part_of)
    return dataclasses.replace(concept, part_of="") if concept.identity == first.part_of else concept


def _differ(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> bool:
    return bool(a and b) and (a.keys() != b.keys() or any(a[key].tobytes() != b[key].tobytes() for key in a))


def _layers_clash(a: Lora, b: Lora) -> bool:
    """Return whether both change a layer, in different ways."""
    if a.layers.keys() & b.changes.keys() or a.changes.keys() & b.layers.keys():
        return True
    return any(_layers_differ(a.layers[name], b.layers[name]) for name in a.layers.keys() & b.layers.keys()) or any(
        _differ(a.changes[name], b.changes[name]) for name in a.changes.keys() & b.changes.keys()
    )


def _layers_differ(layer: LoraLayer, other: LoraLayer) -> bool:
    return layer.alpha != other.alpha or _differ({"a": layer.down, "b": layer.up}, {"a": other.down, "b": other.up})


# --- PEFT -------------------------------------------------------------------------------------------------------------


def _adapter_weights(folder: Path) -> list[Path]:
    """Return the weight files beside an adapter_config.json: safetensors, if any. Raises UserError."""
    names = list_folder(folder)
    for suffixes in (SAFETENSORS_SUFFIXES, PICKLE_SUFFIXES):
        if paths := [path for name, path in names.items() if name.lower().endswith(suffixes) and path.is_file()]:
            return paths
    raise _no_concept_error(folder)


def _read_peft(folders: Mapping[str, Path], token: Token | None, owner: str, folder_name: str) -> Concept:
    configs: dict[str, dict[str, object]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    tensors: dict[str, tuple[FileContents, str]] = {}  # by full name: the file, and the name there
    for part, folder in folders.items():
        configs[part] = _read_json(folder / "adapter_config.json")
        [path, *more] = _adapter_weights(folder)
        if more:
            raise UserError(f"{printable(str(folder), 200)} holds several files of weights.", "Leave in one.")
        content = open_foreign(_read_weights(path), path.name)
        for key, shape in content.shapes.items():
            full_key = f"{part}.{key.removeprefix('base_model.model.')}" if part else key
            shapes[full_key], tensors[full_key] = shape, (content, key)

    def numbers(key: str) -> np.ndarray:
        content, file_key = tensors[key]
        return content.load_tensor(file_key)

    contents = FileContents("adapter_model", shapes, numbers, folder_name=folder_name, owner=owner)
    return lora_file.read(contents, token, configs)


# --- text files beside the tensors ------------------------------------------------------------------------------------


def _read_text_files(names: Mapping[str, Path]) -> tuple[str, dict[str, object]]:
    """Return the token that a folder's text files name, and their fields for the card."""
    fields: dict[str, object] = {}
    word = ""
    if "token_identifier.txt" in names:
        word = _read_text(names["token_identifier.txt"]).strip()
        word = "" if len(word) > 200 or "," in word else word
    if "type_of_concept.txt" in names and (kind := _read_text(names["type_of_concept.txt"]).strip()) in (
        "object",
        "style",
    ):
        fields["kind"] = kind
    if "README.md" in names and (TEXT_FILES | {"adapter_config.json"}) & names.keys():
        text = _read_text(names["README.md"])
        if licence := re.search(
            r"\A---\s.{0,2000}?^license: *[\"']?([\w.-]{1,60})[\"']?\s", text, re.DOTALL | re.MULTILINE
        ):
            fields["license"] = licence[1]
        if title := re.search(r"^#+ (.{1,200}) on Stable Diffusion", text, re.MULTILINE):
            fields["title"] = strip_unsafe_characters(title[1])[:100]
        if title := re.search(r"^# (.{1,200}), for the sd-concepts-library$", text, re.MULTILINE):  # an export of ours
            fields["title"] = strip_unsafe_characters(re.sub(r"\\(.)", r"\1", title[1]))[:100]
    if "special_params.json" in names:
        words = [str(parameter) for parameter in _read_json(names["special_params.json"])]
        fields["title"] = strip_unsafe_characters(words[0])[:100] if words and words[0] != "TOK" else ""
    return word, {key: value for key, value in fields.items() if value}


def _read_json(path: Path) -> dict[str, object]:
    try:
        content = parse_strict_json(_read_text(path))
    except ValueError as error:
        raise damaged_file_error(path.name, str(error)) from error
    if not isinstance(content, dict):
        raise damaged_file_error(path.name, "it is no JSON object")
    return content


def _read_text(path: Path) -> str:
    return storage.read_bytes(path, _MAX_TEXT_BYTES).decode("utf-8", "replace")


def _read_weights(path: Path) -> bytes:
    """Read the file if its head is of a type that can hold a concept. Raises UserError."""

    def check(head: bytes, size: int) -> None:
        kind = recognise(head, size)
        if kind.group not in READABLE_GROUPS:
            raise kind.refusal(path.name)
        if kind is not SAFETENSORS:
            if size > MAX_PICKLE_BYTES:
                raise UserError(f"{printable(path.name)} is larger than 300 MB, the limit for a pickle or image.")
        elif size > len(head):
            refuse_unsupported(tensor_names(head), path.name)
            parse_head_layout(head, size, path.name, MAX_FOREIGN_HEADER)

    return storage.read_bytes(path, MAX_FILE_BYTES, check)
