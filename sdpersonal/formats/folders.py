"""Folders: a concept in several files, or many concepts.

    learned_embeds, its `_2` for SDXL          diffusers
    the same, token_identifier.txt, type_of_concept.txt, README.md    a repository of the sd-concepts-library
    pytorch_lora_weights and NAME_emb          advanced DreamBooth: a LoRA and its embedding
    lora, embeddings.pti, special_params.json  replicate
    adapter_config.json, adapter_model         PEFT; or in `unet/`, `text_encoder/`, `text_encoder_2/`
    lora_weight.pt, .text_encoder.pt           cloneofsimo, one model a file

A pickle is not opened where a safetensors file stands beside it, even a broken one.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from .. import files
from ..card import plain
from ..concept import Concept, Lora
from ..errors import PersonalError
from ..prompts import Token, show
from ..tensorfile import MAX_FILE, MAX_HEADER, MAX_STRANGERS_HEADER, check_head, damaged, strict_json
from . import cloneofsimo, diffusers, is_ours, lora_file, open_any, pickles, pictures, read_any, read_content
from .content import MAX_PICKLE, OWNER, Content, names_in
from .diffusers import FILES
from .making import token_for
from .refusals import refuse

_SAFE, _PICKLES, _PICTURES = (".safetensors", ".pti"), (".bin", ".pt", ".pth", ".ckpt"), (".png", ".webp")
_MARKS = {"token_identifier.txt", "type_of_concept.txt", "adapter_config.json", "special_params.json"}
_MARK = re.compile(r"(learned_embeds(_2)?|pytorch_lora_weights|adapter_model)\.(safetensors|bin)|lora_weight.*\.pt")
_STEPS = re.compile(r"(learned_embeds(?:_2)?)-steps-(\d{1,9})\.(safetensors|bin)")
_PARTS = ("unet", "text_encoder", "text_encoder_2")
_MODEL = "model_index.json"
_MAX_FILES, _MAX_DEPTH = 100_000, 3
_MAX_TEXT = 1_000_000  # bytes of a README or a configuration


def read_path(path: str | os.PathLike, token: Token | None = None, owner: str = OWNER, place: str = "") -> Concept:
    """The concept in a file or folder, under its own token or the one given. Raises PersonalError.

    owner, place: whose it is and what to call it, where the files say neither.
    """
    path = Path(path)
    if path.is_dir():
        return read_folder(path, token, owner, place)
    data = _bytes(path)
    if is_ours(data, path.name):
        return read_any(data, path.name, token)
    return read_content(open_any(data, path.name).standing_in(place, owner), token)


def read_folder(folder: str | os.PathLike, token: Token | None = None, owner: str = OWNER, place: str = "") -> Concept:
    """The one concept in a folder. owner, place: whose and what it is, where its files say neither. PersonalError."""
    folder = Path(folder)
    place = place or folder.absolute().name
    names = {entry.name: Path(entry.path) for entry in _scan(folder)}
    if _MODEL in names:
        raise PersonalError(f"{show(str(folder), 200)} is a whole model, not a concept.", "Give it as --base.")
    if adapter := _adapter_folders(folder, names):
        return _peft(adapter, token, owner, place)
    chosen = _chosen(names)
    if ours := _ours(chosen, folder):
        return read_any(_bytes(ours), ours.name, token)
    contents = [open_any(_bytes(path), path.name).standing_in(place, owner) for path in chosen]
    word, facts = _said(names)
    if token is None and word:
        token = token_for(dataclasses.replace(contents[0], name="", place=""), word)
    concept = _together(contents, token, folder)
    return dataclasses.replace(concept, card=concept.card.model_copy(update=facts)) if facts else concept


def concepts_in(path: Path) -> Iterator[Path]:
    """The files and folders of one concept each that `path` stands for; itself, if it is one. Raises PersonalError."""
    return _unfolded(path, 0) if path.is_dir() else iter([path])


def _unfolded(folder: Path, depth: int) -> Iterator[Path]:
    entries = sorted(_scan(folder), key=lambda entry: entry.name)
    names = {entry.name: Path(entry.path) for entry in entries}
    if _is_one(folder, names):
        yield folder
        return
    for name, path in names.items():
        if path.is_dir():
            if depth < _MAX_DEPTH and not path.is_symlink():  # a link may lead in a circle
                yield from _unfolded(path, depth + 1)
        elif _may_be_concept(name, path):
            yield path


def _is_one(folder: Path, names: Mapping[str, Path]) -> bool:
    if names.keys() & (_MARKS | {_MODEL}) or any(_MARK.fullmatch(name) or _STEPS.fullmatch(name) for name in names):
        return True
    weights = [name for name in names if name.endswith(_SAFE)]
    pair = len(weights) == 2 and any(name.endswith("_emb.safetensors") for name in weights)
    return pair or bool(_adapter_folders(folder, names))


def _may_be_concept(name: str, path: Path) -> bool:
    if ".preview." in name:
        return False
    if name.lower().endswith(_PICTURES):  # most pictures are previews of what stands beside them
        return pictures.holds_embedding(files.read_bytes(path, MAX_PICKLE))
    return name.lower().endswith(_SAFE + _PICKLES)


def _chosen(names: Mapping[str, Path]) -> list[Path]:
    """The files that hold the tensors. Raises PersonalError where there are none."""
    weights = {name: path for name, path in names.items() if name.endswith(_SAFE) and not path.is_dir()}
    weights = weights or {name: path for name, path in names.items() if name.endswith(_PICKLES) and not path.is_dir()}
    if not weights:
        raise PersonalError("The folder holds no concept that I can read.", "Give the file itself.")
    kept = {name: path for name, path in weights.items() if not _STEPS.fullmatch(name)}
    if not any(name.startswith("learned_embeds") for name in kept):
        kept |= _latest(weights)
    return [kept[name] for name in sorted(kept)]


def _ours(chosen: Sequence[Path], folder: Path) -> Path | None:
    """Our own file, as in what `push` sends: what stands beside it is the same for diffusers.

    Raises PersonalError where something else stands there.
    """
    found = [path for path in chosen if is_ours(*_head(path))]
    if len(found) > 1 or (found and {path.name for path in chosen} - FILES - {found[0].name}):
        raise _several([path.name for path in chosen], folder)
    return found[0] if found else None


def _several(names: Sequence[str], folder: Path) -> PersonalError:
    said = f"{show(str(folder), 200)} holds several concepts: {show(', '.join(names), 200)}."
    return PersonalError(said, "Give one of the files.")


def _latest(weights: Mapping[str, Path]) -> dict[str, Path]:
    """Of files that training left on its way, the last for each encoder."""
    found = sorted((int(match[2]), name) for name in weights if (match := _STEPS.fullmatch(name)))
    return {name: weights[name] for steps, name in found if steps == found[-1][0]}


def _together(contents: Sequence[Content], token: Token | None, folder: Path) -> Concept:
    """One concept of several files' contents. Raises PersonalError where they are not parts of one."""
    if len(contents) == 2 and diffusers.is_pair(*contents):
        return diffusers.read_pair(*contents, token)
    if all(cloneofsimo.fits(content) for content in contents):
        concepts = [read_content(content, token) for content in contents]
        return _joined(concepts, token) if len(concepts) > 1 else concepts[0]
    loras = [content for content in contents if lora_file.fits(content) or cloneofsimo.fits(content)]
    rest = [content for content in contents if content not in loras]
    pair = len(rest) == 2 and diffusers.is_pair(*rest)
    if len(loras) > 1 or (len(rest) > 1 and not pair):
        raise _several([content.name for content in contents], folder)
    words = [diffusers.read_pair(*rest, token)] if pair else [read_content(content, token) for content in rest]
    concepts = [*(read_content(content, token) for content in loras), *words]
    if len(concepts) == 1:
        return concepts[0]
    named = [each.token for each in words if next(iter(rest[0].shapes)).startswith("<")]  # only diffusers' rows are
    return _joined(concepts, token or next(iter(named), None))


def _joined(concepts: Sequence[Concept], token: Token | None) -> Concept:
    """A LoRA and its embedding, or the parts of a LoRA. Raises PersonalError where they do not fit together."""
    first = concepts[0]
    token = token or first.token
    vectors, layers, changes = {}, {}, {}
    for concept in concepts:
        if concept.card.base != first.card.base:
            raise PersonalError(f"Its files are for two bases: {first.card.base} and {concept.card.base}.")
        mine = concept.lora or Lora({})
        if (vectors and concept.vectors) or (layers | changes).keys() & (mine.layers | mine.changes).keys():
            raise PersonalError("Its files hold two concepts.", "Give one of the files.")
        vectors, layers, changes = vectors | concept.vectors, layers | mine.layers, changes | mine.changes
    return Concept(token, first.card, vectors, Lora(layers, changes) if layers or changes else None)


# --- PEFT -------------------------------------------------------------------------------------------------------------


def _adapter_folders(folder: Path, names: Mapping[str, Path]) -> dict[str, Path]:
    """Folders with an adapter_config.json, by the component they are for; "" where only the tensors tell."""
    if "adapter_config.json" in names:
        return {"": folder}
    return {part: names[part] for part in _PARTS if part in names and (names[part] / "adapter_config.json").is_file()}


def _peft(folders: Mapping[str, Path], token: Token | None, owner: str, place: str) -> Concept:
    adapters, shapes, source = {}, {}, {}
    for part, folder in folders.items():
        config = _json(folder / "adapter_config.json")
        names = {entry.name: Path(entry.path) for entry in _scan(folder)}
        [path, *more] = _chosen(names)
        if more:
            raise PersonalError(f"{show(str(folder), 200)} holds several files of weights.", "Leave in one.")
        content = open_any(_bytes(path), path.name)
        adapters[part] = config
        for key, shape in content.shapes.items():
            whole = f"{part}.{key.removeprefix('base_model.model.')}" if part else key
            shapes[whole], source[whole] = shape, (content, key)

    def numbers(key: str):
        content, inner = source[key]
        return content.numbers(inner)

    return lora_file.read(Content("adapter_model", shapes, numbers, place=place, owner=owner), token, adapters)


# --- what stands beside the tensors ----------------------------------------------------------------


def _said(names: Mapping[str, Path]) -> tuple[str, dict[str, object]]:
    """The token that a folder's text files name, and what they tell for the card."""
    facts: dict[str, object] = {}
    word = ""
    if "token_identifier.txt" in names:
        word = _text(names["token_identifier.txt"]).strip()
        word = "" if len(word) > 200 or "," in word else word
    if "type_of_concept.txt" in names and (kind := _text(names["type_of_concept.txt"]).strip()) in ("object", "style"):
        facts["kind"] = kind
    if "README.md" in names and _MARKS & names.keys():
        text = _text(names["README.md"])
        if licence := re.search(r"\A---\s.{0,2000}?^license: *([\w.-]{1,60})\s", text, re.DOTALL | re.MULTILINE):
            facts["license"] = licence[1]
        if title := re.search(r"^#+ (.{1,200}) on Stable Diffusion", text, re.MULTILINE):
            facts["title"] = plain(title[1])[:100]
    if "special_params.json" in names:
        words = [str(each) for each in _json(names["special_params.json"])]
        facts["title"] = plain(words[0])[:100] if words and words[0] != "TOK" else ""
    return word, {key: value for key, value in facts.items() if value}


def _json(path: Path) -> dict:
    try:
        found = strict_json(_text(path))
    except ValueError as error:
        raise damaged(path.name, str(error)) from error
    if not isinstance(found, dict):
        raise damaged(path.name, "it is no JSON object")
    return found


def _text(path: Path) -> str:
    return files.read_bytes(path, _MAX_TEXT).decode("utf-8", "replace")


def _bytes(path: Path) -> bytes:
    """The file, if its head is that of something that a concept can be. Raises PersonalError."""

    def look(head: bytes, size: int) -> None:
        if pickles.is_pickle(head) or pictures.is_picture(head):
            if size > MAX_PICKLE:
                raise PersonalError(f"{show(path.name)} is larger than 300 MB, the most of a pickle or picture.")
        elif size > len(head):
            refuse(names_in(head), path.name)
            check_head(head, size, path.name, MAX_STRANGERS_HEADER)

    return files.read_bytes(path, MAX_FILE, look)


def _head(path: Path) -> tuple[bytes, str, int]:
    head, size = files.read_head(path, 8 + MAX_HEADER)
    return head, path.name, size


def _scan(folder: Path) -> list[os.DirEntry]:
    """What is in a folder, hidden things left out. Raises PersonalError."""
    try:
        with os.scandir(folder) as entries:
            found = [entry for _, entry in zip(range(_MAX_FILES), entries, strict=False) if entry.name[0] != "."]
    except OSError as error:
        raise PersonalError(f"{show(str(folder), 200)}: {error.strerror}.") from error
    return found
