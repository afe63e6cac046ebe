"""Find the concepts in folders, and read several files as one concept.

A folder is one concept where it has files with these names (ending .safetensors or .bin where none is given);
`checkpoint-N/` beside them is ignored:

    learned_embeds, its `_2` for SDXL          diffusers; without them the last of `learned_embeds-steps-N`, or the
                                               contents of the last `checkpoint-N/`
    the same, token_identifier.txt, type_of_concept.txt, README.md    a repository of the sd-concepts-library
    pytorch_lora_weights and NAME_emb          advanced DreamBooth: a LoRA and its embedding
    lora, embeddings.pti, special_params.json  replicate
    adapter_config.json, adapter_model         PEFT; or in `unet/`, `text_encoder/`, `text_encoder_2/`
    lora_weight.pt, .text_encoder.pt           cloneofsimo, one model a file

Every other file is a concept of its own, except NAME with NAME_emb, NAME.pt with NAME.text_encoder.pt, and the parts
of an export of ours. A pickle is not opened where a safetensors file of its name stands beside it, even a broken one.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ... import storage as files
from ...errors import UserError
from ...prompts import Token, printable
from ...storage.file_types import SAFETENSORS, recognise
from ..card import parse_card, strip_unsafe_characters
from ..concept import WHOLE, Concept, Lora, LoraLayer
from ..layer_changes import Change
from ..strict_safetensors import (
    MAX_FILE_BYTES,
    MAX_FOREIGN_HEADER,
    damaged_file_error,
    parse_head_layout,
    parse_strict_json,
)
from . import READ, cloneofsimo, diffusers, is_native, lora_file, open_foreign, read_content, read_ours, read_pair
from . import embedding_images as embedding_pictures
from .contents import DEFAULT_OWNER, MAX_PICKLE_BYTES, FileContents, tensor_names
from .diffusers import FILES
from .origin import origin_in
from .to_concept import derive_token
from .unsupported import refuse_unsupported

_SAFETENSORS, _PICKLES, _IMAGES = (".safetensors", ".pti"), (".bin", ".pt", ".pth", ".ckpt"), (".png", ".webp")
_UNFINISHED = (".part", ".crdownload", ".download", ".aria2", ".partial", ".incomplete", ".opdownload", ".!qb", ".!ut")
_TEXTS = {"token_identifier.txt", "type_of_concept.txt", "special_params.json"}
_GENERIC = re.compile(r"(learned_embeds(_2)?|pytorch_lora_weights|adapter_model)\.(safetensors|bin)|lora_weight.*\.pt")
CHECKPOINT = re.compile(r"checkpoint-(\d{1,9})", re.IGNORECASE)
STEPS = re.compile(r"(learned_embeds(?:_2)?)-steps-(\d{1,9})\.(safetensors|bin)")
_COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
_MODEL = "model_index.json"
_STATES = re.compile(r"checkpoint-\d+|.*-state|concept_images|__macosx|samples?|logs?", re.IGNORECASE)
DROPPED = "dropped"  # a folder without a name of its own, for files dropped on the page together
_CACHED = re.compile(r"models--(?P<owner>.+?)--(?P<name>.+)")  # a repository in the Hub's cache; snapshots/SHA in it
_MAX_FILES, _MAX_DEPTH = 100_000, 4  # the Hub's cache has models--OWNER--NAME/snapshots/SHA/FOLDER
_FIRST_READ = 32_768  # bytes: nearly every header in one call
_MAX_TEXT = 1_000_000  # bytes of a README or a configuration


@dataclass(frozen=True)
class Source:
    """The files that one concept is read from.

    path: the file or folder that names it; files: those with its tensors, none where `path` is a file or is read as a
    whole (PEFT, a base); owner, place: the owner and name of its token, where the files say neither.
    """

    path: Path
    files: tuple[Path, ...] = ()
    owner: str = DEFAULT_OWNER
    place: str = ""

    @property
    def all_files(self) -> tuple[Path, ...]:
        return self.files or (self.path,)

    @property
    def label(self) -> str:
        """Return its label for the user: its one file, or the folder of several."""
        return str(self.files[0] if len(self.files) == 1 else self.path)


def read_source(source: Source, token: Token | None = None) -> Concept:
    """Read the concept, under its own token or the one given. Raises UserError."""
    if not source.files:
        return read_path(source.path, token, source.owner, source.place)
    if len(source.files) == 1 and source.path == source.files[0]:
        return read_path(source.path, token, source.owner, source.place)
    return _read_files(source, token)


def read_path(
    path: str | os.PathLike, token: Token | None = None, owner: str = DEFAULT_OWNER, place: str = ""
) -> Concept:
    """Read the concept in a file or folder, under its own token or the one given. Raises UserError.

    owner, place: the owner and name of its token, where the files say neither.
    """
    path = Path(path)
    if path.is_dir():
        return read_folder(path, token, owner, place)
    _check_downloaded(path)
    data = _read_weights(path)
    if is_native(data, path.name):
        return read_ours(data, path.name, token)
    return read_content(open_foreign(data, path.name).from_folder(place, owner), token)


def read_folder(
    folder: str | os.PathLike, token: Token | None = None, owner: str = DEFAULT_OWNER, place: str = ""
) -> Concept:
    """Read the one concept in a folder. owner, place: as for `read_path`. Raises UserError."""
    folder = Path(folder)
    names = {entry.name: Path(entry.path) for entry in _scan(folder)}
    if _MODEL in names:
        raise UserError(f"{printable(str(folder), 200)} is a whole model, not a concept.", "Give it as --base.")
    if adapter := _adapter_folders(folder, names):
        return _read_peft(adapter, token, owner, place or _name(folder))
    sources = joined(find_concepts(folder, owner, place))
    if not sources:
        raise UserError("The folder holds no concept that I can read.", "Give the file itself.")
    if len(sources) > 1:
        raise _several_concepts_error([path.name for source in sources for path in source.all_files], folder)
    source = dataclasses.replace(sources[0], place=sources[0].place or place or _name(folder))
    if source.files:
        return _read_files(source, token)
    return read_path(source.path, token, owner, source.place)


def find_concepts(path: Path, owner: str = DEFAULT_OWNER, place: str = "", steps: bool = False) -> list[Source]:
    """Find the concepts in a file or folder, which may be one itself. Raises UserError.

    steps: include the checkpoints of diffusers' training beside its last.
    """
    return list(_walk(path, 0, owner, place, steps)) if path.is_dir() else [Source(path, (), owner, place)]


def _walk(folder: Path, depth: int, owner: str, place: str, steps: bool) -> Iterator[Source]:
    entries = sorted(_scan(folder), key=lambda entry: entry.name)
    names = {entry.name: Path(entry.path) for entry in entries}
    if _MODEL in names or _adapter_folders(folder, names):
        yield Source(folder, (), owner, place)
        return
    owner, place = _cached_words(folder) or (owner, place)
    sources = list(
        _here(folder, {name: path for name, path in names.items() if not path.is_dir()}, owner, place, steps)
    )
    checkpoints = _checkpoints(folder, names, owner, place)
    yield from checkpoints if steps else () if sources else checkpoints[-1:]
    yield from sources
    for name, path in names.items():
        skipped = (sources or checkpoints) and _STATES.fullmatch(name)
        if path.is_dir() and depth < _MAX_DEPTH and not path.is_symlink() and not skipped:  # links may lead in circles
            yield from _walk(path, depth + 1, owner, place, steps)


def _checkpoints(folder: Path, names: Mapping[str, Path], owner: str, place: str) -> list[Source]:
    """Return the checkpoints of diffusers' training in `checkpoint-N/`, by N: files with generic names, or PEFT."""
    numbered = [(int(match[1]), path) for name, path in names.items() if (match := CHECKPOINT.fullmatch(name))]
    sources = []
    for _, path in sorted((number, path) for number, path in numbered if path.is_dir() and not path.is_symlink()):
        inside = {entry.name: Path(entry.path) for entry in _scan(path)}
        weights = _weights({name: inside[name] for name in inside if _GENERIC.fullmatch(name.lower())})
        if _adapter_folders(path, inside):
            sources.append(Source(path, (), owner, place or _name(folder)))
        elif weights:
            sources.append(Source(path, tuple(weights.values()), owner, place or _name(folder)))
    return sources


def _cached_words(folder: Path) -> tuple[str, str] | None:
    """Return owner and name of the repository if this folder is its snapshot in the Hub's cache."""
    parts = folder.absolute().parts[-3:]
    match = len(parts) == 3 and parts[1] == "snapshots" and _CACHED.fullmatch(parts[0])
    if not match:
        return None
    owner, name = (re.sub(r"[^a-z0-9]+", "-", word.lower()).strip("-") for word in (match["owner"], match["name"]))
    return owner or DEFAULT_OWNER, name


def _here(folder: Path, names: Mapping[str, Path], owner: str, place: str, steps: bool) -> Iterator[Source]:
    """Yield the concepts in the files directly in a folder, its own one first."""
    weights = _weights(names)
    main_names = _own(folder, names, weights)
    if main_names:
        yield Source(folder, tuple(weights.pop(name) for name in main_names), owner, place or _name(folder))
    for paths in _earlier(weights):
        if steps:
            yield Source(paths[0], paths, owner, place or _name(folder))
    groups: dict[str, list[Path]] = {}
    for name, path in weights.items():
        groups.setdefault(_stem(name), []).append(path)
    for stem, members in groups.items():
        if len(members) > 1:
            yield Source(folder, tuple(members), owner, place or stem.removesuffix(" safe"))
        else:
            yield Source(members[0], (), owner)


def _name(folder: Path) -> str:
    """Return the name that a folder gives to its concept."""
    name = folder.absolute().name
    return "" if name == DROPPED else name


def _earlier(weights: dict[str, Path]) -> Iterator[tuple[Path, ...]]:
    """Yield the paths saved at each step before the last; remove them and our copies for diffusers from `weights`."""
    by_step: dict[int, list[str]] = {}
    for name in weights:
        if match := STEPS.fullmatch(name.lower()):
            by_step.setdefault(int(match[2]), []).append(name)
    for name in [name for name in weights if _GENERIC.fullmatch(name.lower())]:
        del weights[name]
    for _, names in sorted(by_step.items()):
        yield tuple(weights.pop(name) for name in names)


def _stem(name: str) -> str:
    """Return the common stem of one concept's files: NAME of NAME_emb.safetensors and NAME.text_encoder.pt."""
    name = name.lower()
    if name.endswith(_SAFETENSORS):
        return name.rpartition(".")[0].removesuffix("_emb") + " safe"
    return name.rpartition(".")[0].removesuffix(".text_encoder") if name.endswith(_PICKLES) else name


def _weights(names: Mapping[str, Path]) -> dict[str, Path]:
    """Return the files that may hold a concept's tensors; no pickle beside a safetensors file of its name."""
    safe_stems = {name.lower().rpartition(".")[0] for name in names if name.lower().endswith(_SAFETENSORS)}
    weights = {}
    for name, path in names.items():
        lowered = name.lower()
        if lowered.endswith(_PICKLES) and lowered.rpartition(".")[0] in safe_stems:
            continue
        if _may_be_concept(lowered, path):
            weights[name] = path
    return weights


def _own(folder: Path, names: Mapping[str, Path], weights: Mapping[str, Path]) -> list[str]:
    """Return the names of the files of the folder's own concept: those with generic names and their companions."""
    lower = {name: name.lower() for name in weights}
    picked = [name for name in lower if _GENERIC.fullmatch(lower[name])]
    if not any(lower[name].startswith("learned_embeds") for name in picked):
        picked += _latest_checkpoints(weights)
    others = [name for name in lower if name not in picked]
    if picked and len(others) == 1 and _are_copies([weights[name] for name in picked], weights[others[0]]):
        return others  # the layout of `push`: the other files are a copy for diffusers
    if "special_params.json" in names:
        picked += [name for name in lower if lower[name] in ("lora.safetensors", "embeddings.pti")]
    embeds = [name for name in lower if lower[name].endswith("_emb.safetensors")]
    loras = [name for name in picked if lower[name].startswith("pytorch_lora_weights")]
    if loras and not any(lower[name].startswith("learned_embeds") for name in picked):
        matches = (
            embeds if len(embeds) == 1 else [name for name in embeds if _stem(name) == _stem(f"{folder.name}.pti")]
        )
        picked += matches[:1]
    elif not picked and len(embeds) == 1 and len([name for name in lower if lower[name].endswith(_SAFETENSORS)]) == 2:
        picked = [name for name in lower if lower[name].endswith(_SAFETENSORS)]
    if not picked and len(weights) == 1 and _TEXTS & names.keys():
        picked = list(weights)
    return picked


def _is_ours(path: Path) -> bool:
    try:
        head, size = _header(path)
        return is_native(head, path.name, size)
    except UserError:
        return False


def _are_copies(own: Sequence[Path], other: Path) -> bool:
    """Return whether these are the export for diffusers of the other one, a file of ours."""
    has_standard_names = {path.name.lower() for path in own} <= FILES
    return has_standard_names and _is_ours(other) and not any(map(_is_ours, own)) and 0 < _count([other]) == _count(own)


def _count(paths: Sequence[Path]) -> int:
    """Count the numbers in their tensors, without alphas; -1 where a file cannot be read."""
    count = 0
    for path in paths:
        try:
            head, size = _header(path)
            tensors = parse_head_layout(head, size, path.name, MAX_FOREIGN_HEADER).tensors
        except UserError:
            return -1
        count += sum(math.prod(tensor.shape) for name, tensor in tensors.items() if not name.endswith(".alpha"))
    return count


def _header(path: Path) -> tuple[bytes, int]:
    """Return a file's first bytes, with the whole header of a safetensors file, and its size. Raises UserError."""
    head, size = files.read_head(path, _FIRST_READ)
    header_end = 8 + int.from_bytes(head[:8], "little")
    if len(head) < header_end <= 8 + MAX_FOREIGN_HEADER and recognise(head, size) is SAFETENSORS:
        head, size = files.read_head(path, header_end)
    return head, size


def _latest_checkpoints(weights: Mapping[str, Path]) -> list[str]:
    """Return the names of the last of training's step files, one for each text encoder."""
    checkpoints = sorted((int(match[2]), name) for name in weights if (match := STEPS.fullmatch(name.lower())))
    return [name for steps, name in checkpoints if steps == checkpoints[-1][0]]


def _may_be_concept(low: str, path: Path) -> bool:
    if ".preview." in low:
        return False
    if low.endswith(_IMAGES):  # most images are previews of the file beside them
        try:
            return embedding_pictures.holds_embedding(files.read_bytes(path, MAX_PICKLE_BYTES))
        except UserError:
            return False
    return low.endswith(
        _SAFETENSORS + _PICKLES + tuple(f"{end}{more}" for end in _SAFETENSORS + _PICKLES for more in _UNFINISHED)
    )


def _check_downloaded(path: Path) -> None:
    """Raise UserError where a file's name, its neighbour or its link target shows that it was not downloaded."""
    if path.is_symlink() and not path.exists():
        kind = recognise(os.readlink(path).encode("utf-8", "replace"))  # git-annex links to the file's future place
        raise (
            kind.refusal(path.name)
            if kind.group == "placeholder"
            else UserError(f"{printable(path.name)} is a link to a file that is not there.", "Fetch the file again.")
        )
    if path.name.lower().endswith(_UNFINISHED) or os.path.lexists(path.with_name(f"{path.name}.aria2")):
        raise UserError(
            f"{printable(path.name)} is refused: its download has not finished.", "Let it finish, or fetch it again."
        )


def _several_concepts_error(names: Sequence[str], folder: Path) -> UserError:
    message = f"{printable(str(folder), 200)} holds several concepts: {printable(', '.join(names), 200)}."
    return UserError(message, "Give one of the files.")


# --- parts of our exports ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Head:
    """The facts of a safetensors file's header. whole: the identity of the concept that it is a part of, or its own;
    part: it is only a part; word: its token; lora: it has LoRA layers."""

    whole: str
    part: bool
    word: str
    lora: bool


def joined(sources: Sequence[Source]) -> list[Source]:
    """Merge the sources that are parts of one concept: by their headers, wherever they lie and whatever their names;
    without such headers, an embedding and a LoRA of one name."""
    if len(sources) < 2:
        return list(sources)
    heads = [_read_head(source) for source in sources]
    keys = [(head.whole, head.word) if head and head.whole else None for head in heads]
    apart = {key for key, head in zip(keys, heads, strict=True) if head and head.part}
    groups: dict[object, list[int]] = {}
    for number, (source, head, key) in enumerate(zip(sources, heads, keys, strict=True)):
        if key in apart:
            groups.setdefault(key, []).append(number)
        elif head and not head.whole and len(source.all_files) == 1:
            groups.setdefault(source.path.stem.lower(), []).append(number)
        else:
            groups[number] = [number]
    return [source for group in groups.values() for source in _merged(group, sources, heads)]


def _merged(group: list[int], sources: Sequence[Source], heads: Sequence[_Head | None]) -> Iterator[Source]:
    members = [sources[number] for number in group]
    first = heads[group[0]]
    have_lora = [head.lora for number in group if (head := heads[number])]
    if len(group) == 1 or (not (first and first.whole) and sorted(have_lora) != [False, True]):
        yield from members
        return
    paths = tuple(dict.fromkeys(path for source in members for path in source.all_files))
    yield dataclasses.replace(members[0], path=_common(paths), files=paths)


def _common(paths: Sequence[Path]) -> Path:
    """Return the folder that holds all of them."""
    try:
        return Path(os.path.commonpath([path.parent for path in paths]))
    except ValueError:  # absolute and relative paths, or two drives
        return paths[0].parent


def _read_head(source: Source) -> _Head | None:
    """Return the head of its first file with a claim of ours; None where there is no safetensors file."""
    heads = [head for path in source.all_files if path.is_file() and (head := _peek(path))]
    return next((head for head in heads if head.whole), heads[0] if len(heads) == len(source.all_files) == 1 else None)


def _peek(path: Path) -> _Head | None:
    try:
        head, size = _header(path)
        if recognise(head, size) is not SAFETENSORS:
            return None
        layout = parse_head_layout(head, size, path.name, MAX_FOREIGN_HEADER)
    except UserError:
        return None
    metadata, lora = layout.metadata, any("lora" in name for name in layout.tensors)
    if claim := origin_in(metadata, path.name):
        is_half = claim.card.base == "sdxl" and len(layout.tensors) == 1  # embeddings for one of two text encoders
        return _Head(claim.whole or claim.part, bool(claim.whole) or is_half, str(claim.token), lora)
    if "sdpersonal.card" in metadata:
        try:
            word = str(Token.parse(parse_card(metadata["sdpersonal.card"], path.name).token))
        except UserError:
            return None
        whole = metadata.get(WHOLE, "")
        return _Head(whole or metadata.get("modelspec.hash_sha256", "").removeprefix("0x"), bool(whole), word, lora)
    return _Head("", False, "", lora)


# --- several files as one concept -------------------------------------------------------------------------------------


class Apart(UserError):
    """Files that were taken for parts of one concept are not."""


def _read_files(source: Source, token: Token | None) -> Concept:
    """Read one concept from several files and the texts beside them. Raises Apart, UserError."""
    ours: list[Concept] = []
    contents: list[FileContents] = []
    for path in source.files:
        _check_downloaded(path)
        data = _read_weights(path)
        if is_native(data, path.name):
            ours.append(read_ours(data, path.name, token))
        else:
            contents.append(open_foreign(data, path.name).from_folder(source.place, source.owner))
    together = all(path.parent == source.path for path in source.files)  # else the texts describe something else
    beside = {entry.name: Path(entry.path) for entry in _scan(source.path)} if together and not ours else {}
    word, facts = _read_text_files(beside)
    file_token = token
    if token is None and word and contents:
        file_token = derive_token(dataclasses.replace(contents[0], name="", folder_name=""), word)
    parts = [*ours, *(_combine_contents(contents, file_token, source.path) if contents else ())]
    concept = united(parts, token)
    return dataclasses.replace(concept, card=concept.card.model_copy(update=facts)) if facts else concept


def _combine_contents(contents: Sequence[FileContents], token: Token | None, folder: Path) -> list[Concept]:
    """Read a concept's parts, vectors and LoRA, from several foreign files. Raises Apart, UserError."""
    if len(contents) == 2 and diffusers.is_pair(contents[0], contents[1]):
        return [read_pair(contents[0], contents[1], token)]
    if all(cloneofsimo.fits(content) for content in contents):
        return [read_content(content, token) for content in contents]
    loras = [content for content in contents if lora_file.fits(content) or cloneofsimo.fits(content)]
    rest = [content for content in contents if content not in loras]
    pair = len(rest) == 2 and diffusers.is_pair(rest[0], rest[1])
    if len(loras) > 1 or (len(rest) > 1 and not pair):
        raise Apart(*_several_concepts_error([content.name for content in contents], folder).args)
    words = [read_pair(rest[0], rest[1], token)] if pair else [read_content(content, token) for content in rest]
    if words and token is None and next(iter(rest[0].shapes)).startswith("<"):  # only diffusers names them so
        token = words[0].token
    return [*(read_content(content, token) for content in loras), *words]


def united(parts: Sequence[Concept], token: Token | None = None) -> Concept:
    """Join vectors and LoRA, or parts of a LoRA, into one concept; duplicate parts count once.

    Raises Apart where they do not fit together.
    """
    first = next((part for part in parts if part.whole), parts[0])
    complete = next((part for part in parts if not part.whole and part.identity == first.whole), None)
    if complete:  # one of the files holds all of it
        return dataclasses.replace(complete, token=token or complete.token)
    if len(parts) == 1:
        return first
    vectors: dict[str, np.ndarray] = {}
    layers: dict[str, LoraLayer] = {}
    changes: dict[str, Change] = {}
    for part in parts:
        if part.card.base != first.card.base:
            raise Apart(
                f"Its files are for two bases: {first.card.base} and {part.card.base}.", "Give one of the files."
            )
        lora = part.lora or Lora({})
        if _differ(vectors, part.vectors) or _layers_clash(Lora(layers, changes), lora):
            raise Apart("Its files hold two concepts.", "Give one of the files.")
        vectors, layers, changes = vectors | part.vectors, layers | lora.layers, changes | lora.changes
    joined_lora = Lora(layers, changes) if layers or changes else None
    concept = Concept(token or first.token, first.card, vectors, joined_lora, first.thumbnail, first.whole)
    return dataclasses.replace(concept, whole="") if concept.identity == first.whole else concept


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


def _adapter_folders(folder: Path, names: Mapping[str, Path]) -> dict[str, Path]:
    """Return the folders with an adapter_config.json by component; "" where only the tensors name it."""
    if "adapter_config.json" in names:
        return {"": folder}
    return {
        part: names[part] for part in _COMPONENTS if part in names and (names[part] / "adapter_config.json").is_file()
    }


def _adapter_weights(names: Mapping[str, Path]) -> list[Path]:
    """Return the weight files beside an adapter_config.json: safetensors, if any. Raises UserError."""
    for ends in (_SAFETENSORS, _PICKLES):
        if paths := [path for name, path in sorted(names.items()) if name.lower().endswith(ends) and path.is_file()]:
            return paths
    raise UserError("The folder holds no concept that I can read.", "Give the file itself.")


def _read_peft(folders: Mapping[str, Path], token: Token | None, owner: str, place: str) -> Concept:
    adapters, shapes, source = {}, {}, {}
    for part, folder in folders.items():
        config = _read_json(folder / "adapter_config.json")
        names = {entry.name: Path(entry.path) for entry in _scan(folder)}
        [path, *more] = _adapter_weights(names)
        if more:
            raise UserError(f"{printable(str(folder), 200)} holds several files of weights.", "Leave in one.")
        content = open_foreign(_read_weights(path), path.name)
        adapters[part] = config
        for key, shape in content.shapes.items():
            full_key = f"{part}.{key.removeprefix('base_model.model.')}" if part else key
            shapes[full_key], source[full_key] = shape, (content, key)

    def numbers(key: str):
        content, file_key = source[key]
        return content.numbers(file_key)

    return lora_file.read(
        FileContents("adapter_model", shapes, numbers, folder_name=place, owner=owner), token, adapters
    )


# --- text files beside the tensors -----------------------------------------------------------------


def _read_text_files(names: Mapping[str, Path]) -> tuple[str, dict[str, object]]:
    """Return the token that a folder's text files name, and their fields for the card."""
    facts: dict[str, object] = {}
    word = ""
    if "token_identifier.txt" in names:
        word = _read_text(names["token_identifier.txt"]).strip()
        word = "" if len(word) > 200 or "," in word else word
    if "type_of_concept.txt" in names and (kind := _read_text(names["type_of_concept.txt"]).strip()) in (
        "object",
        "style",
    ):
        facts["kind"] = kind
    if "README.md" in names and (_TEXTS | {"adapter_config.json"}) & names.keys():
        text = _read_text(names["README.md"])
        if licence := re.search(
            r"\A---\s.{0,2000}?^license: *[\"']?([\w.-]{1,60})[\"']?\s", text, re.DOTALL | re.MULTILINE
        ):
            facts["license"] = licence[1]
        if title := re.search(r"^#+ (.{1,200}) on Stable Diffusion", text, re.MULTILINE):
            facts["title"] = strip_unsafe_characters(title[1])[:100]
        if title := re.search(r"^# (.{1,200}), for the sd-concepts-library$", text, re.MULTILINE):  # an export of ours
            facts["title"] = strip_unsafe_characters(re.sub(r"\\(.)", r"\1", title[1]))[:100]
    if "special_params.json" in names:
        words = [str(parameter) for parameter in _read_json(names["special_params.json"])]
        facts["title"] = strip_unsafe_characters(words[0])[:100] if words and words[0] != "TOK" else ""
    return word, {key: value for key, value in facts.items() if value}


def _read_json(path: Path) -> dict:
    try:
        content = parse_strict_json(_read_text(path))
    except ValueError as error:
        raise damaged_file_error(path.name, str(error)) from error
    if not isinstance(content, dict):
        raise damaged_file_error(path.name, "it is no JSON object")
    return content


def _read_text(path: Path) -> str:
    return files.read_bytes(path, _MAX_TEXT).decode("utf-8", "replace")


def _read_weights(path: Path) -> bytes:
    """Read the file if its head is of a type that can hold a concept. Raises UserError."""

    def look(head: bytes, size: int) -> None:
        kind = recognise(head, size)
        if kind.group not in READ:
            raise kind.refusal(path.name)
        if kind is not SAFETENSORS:
            if size > MAX_PICKLE_BYTES:
                raise UserError(f"{printable(path.name)} is larger than 300 MB, the most of a pickle or picture.")
        elif size > len(head):
            refuse_unsupported(tensor_names(head), path.name)
            parse_head_layout(head, size, path.name, MAX_FOREIGN_HEADER)

    return files.read_bytes(path, MAX_FILE_BYTES, look)


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    """Return a folder's entries, hidden ones left out. Raises UserError."""
    try:
        with os.scandir(folder) as entries:
            visible = [entry for _, entry in zip(range(_MAX_FILES), entries, strict=False) if entry.name[0] != "."]
    except OSError as error:
        raise UserError(f"{printable(str(folder), 200)}: {error.strerror}.") from error
    return visible
