"""Find the files that one concept is read from: in a folder, in the Hub's cache, or among the parts of our exports.

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
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ... import storage
from ...errors import UserError, printable
from ...prompts import Token, to_token_word
from ...storage.file_types import SAFETENSORS, recognise
from ..card import parse_card
from ..concept_file import PART_OF_KEY
from ..strict_safetensors import MAX_FOREIGN_HEADER, TensorLayout, parse_head_layout
from . import is_native
from .contents import DEFAULT_OWNER, MAX_PICKLE_BYTES
from .embedding_images import holds_embedding
from .embeddings import DIFFUSERS_FILES
from .origin import read_origin

SAFETENSORS_SUFFIXES = (".safetensors", ".pti")
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
_IMAGE_SUFFIXES = (".png", ".webp")
UNFINISHED = (".part", ".crdownload", ".download", ".aria2", ".partial", ".incomplete", ".opdownload", ".!qb", ".!ut")
TEXT_FILES = {"token_identifier.txt", "type_of_concept.txt", "special_params.json"}
_GENERIC = re.compile(r"(learned_embeds(_2)?|pytorch_lora_weights|adapter_model)\.(safetensors|bin)|lora_weight.*\.pt")
CHECKPOINT = re.compile(r"checkpoint-(\d{1,9})", re.IGNORECASE)
STEPS = re.compile(r"(learned_embeds(?:_2)?)-steps-(\d{1,9})\.(safetensors|bin)")
_COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
MODEL_INDEX = "model_index.json"  # of a whole model in diffusers' layout
_OTHER_FOLDERS = re.compile(r"checkpoint-\d+|.*-state|concept_images|__macosx|samples?|logs?", re.IGNORECASE)
DROPPED = "dropped"  # a folder without a name of its own, for files dropped on the page together
_CACHED = re.compile(
    r"models--(?P<owner>.+?)--(?P<name>.+)", re.DOTALL
)  # a repository in the Hub's cache; snapshots/SHA in it
_MAX_FILES, _MAX_DEPTH = 100_000, 4  # the Hub's cache has models--OWNER--NAME/snapshots/SHA/FOLDER
_FIRST_READ_BYTES = 32_768  # nearly every header in one call


@dataclass(frozen=True)
class Source:
    """The files that one concept is read from.

    path: the file or folder that names it; files: those with its tensors, none where `path` is a file or is read as a
    whole (PEFT, a base); owner, folder_name: the owner and name of its token, where the files say neither.
    """

    path: Path
    files: tuple[Path, ...] = ()
    owner: str = DEFAULT_OWNER
    folder_name: str = ""

    @property
    def all_files(self) -> tuple[Path, ...]:
        return self.files or (self.path,)

    @property
    def label(self) -> str:
        """Return its label for the user: its one file, or the folder of several."""
        return str(self.files[0] if len(self.files) == 1 else self.path)


def find_concepts(path: Path, owner: str = DEFAULT_OWNER, folder_name: str = "", steps: bool = False) -> list[Source]:
    """Find the concepts in a file or folder, which may be one itself. Raises UserError.

    steps: include the checkpoints of diffusers' training beside its last.
    """
    return list(_walk(path, 0, owner, folder_name, steps)) if path.is_dir() else [Source(path, (), owner, folder_name)]


def _walk(folder: Path, depth: int, owner: str, folder_name: str, steps: bool) -> Iterator[Source]:
    names = list_folder(folder)
    if MODEL_INDEX in names or adapter_folders(folder, names):
        yield Source(folder, (), owner, folder_name)
        return
    owner, folder_name = _cached_repository(folder) or (owner, folder_name)
    files = {name: path for name, path in names.items() if not path.is_dir()}
    sources = list(_concepts_in(folder, files, owner, folder_name, steps))
    checkpoints = _checkpoints(folder, names, owner, folder_name)
    yield from checkpoints if steps else () if sources else checkpoints[-1:]
    yield from sources
    for name, path in names.items():
        skipped = (sources or checkpoints) and _OTHER_FOLDERS.fullmatch(name)
        if path.is_dir() and depth < _MAX_DEPTH and not path.is_symlink() and not skipped:  # links may lead in circles
            yield from _walk(path, depth + 1, owner, folder_name, steps)


def _checkpoints(folder: Path, names: Mapping[str, Path], owner: str, folder_name: str) -> list[Source]:
    """Return the checkpoints of diffusers' training in `checkpoint-N/`, by N: files with generic names, or PEFT."""
    numbered = [(int(match[1]), path) for name, path in names.items() if (match := CHECKPOINT.fullmatch(name))]
    sources = []
    for _, path in sorted((number, path) for number, path in numbered if path.is_dir() and not path.is_symlink()):
        inside = list_folder(path)
        weights = _weight_files({name: inside[name] for name in inside if _GENERIC.fullmatch(name.lower())})
        if adapter_folders(path, inside):
            sources.append(Source(path, (), owner, folder_name or folder_name_of(folder)))
        elif weights:
            sources.append(Source(path, tuple(weights.values()), owner, folder_name or folder_name_of(folder)))
    return sources


def _cached_repository(folder: Path) -> tuple[str, str] | None:
    """Return owner and name of the repository if this folder is its snapshot in the Hub's cache."""
    parts = folder.absolute().parts[-3:]
    match = len(parts) == 3 and parts[1] == "snapshots" and _CACHED.fullmatch(parts[0])
    if not match:
        return None
    owner, name = map(to_token_word, match.group("owner", "name"))
    return owner or DEFAULT_OWNER, name


def _concepts_in(
    folder: Path, names: Mapping[str, Path], owner: str, folder_name: str, steps: bool
) -> Iterator[Source]:
    """Yield the concepts in the files directly in a folder, its own one first."""
    weights = _weight_files(names)
    main_names = _main_files(folder, names, weights)
    if main_names:
        yield Source(
            folder, tuple(weights.pop(name) for name in main_names), owner, folder_name or folder_name_of(folder)
        )
    for paths in _checkpoint_steps(weights):
        if steps:
            yield Source(paths[0], paths, owner, folder_name or folder_name_of(folder))
    groups: dict[str, list[Path]] = {}
    for name, path in weights.items():
        groups.setdefault(_stem(name), []).append(path)
    for stem, members in groups.items():
        if len(members) > 1:
            yield Source(folder, tuple(members), owner, folder_name or stem.removesuffix(" safe"))
        else:
            yield Source(members[0], (), owner)


def folder_name_of(folder: Path) -> str:
    """Return the name that a folder gives to its concept."""
    name = folder.absolute().name
    return "" if name == DROPPED else name


def _checkpoint_steps(weights: dict[str, Path]) -> Iterator[tuple[Path, ...]]:
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
    if name.endswith(SAFETENSORS_SUFFIXES):
        return name.rpartition(".")[0].removesuffix("_emb") + " safe"
    return name.rpartition(".")[0].removesuffix(".text_encoder") if name.endswith(PICKLE_SUFFIXES) else name


def _weight_files(names: Mapping[str, Path]) -> dict[str, Path]:
    """Return the files that may hold a concept's tensors; no pickle beside a safetensors file of its name."""
    safe_stems = {name.lower().rpartition(".")[0] for name in names if name.lower().endswith(SAFETENSORS_SUFFIXES)}
    weights = {}
    for name, path in names.items():
        lowered = name.lower()
        if lowered.endswith(PICKLE_SUFFIXES) and lowered.rpartition(".")[0] in safe_stems:
            continue
        if _may_be_concept(lowered, path):
            weights[name] = path
    return weights


def _main_files(folder: Path, names: Mapping[str, Path], weights: Mapping[str, Path]) -> list[str]:
    """Return the names of the files of the folder's own concept: those with generic names and their companions."""
    lower = {name: name.lower() for name in weights}
    picked = [name for name in lower if _GENERIC.fullmatch(lower[name])]
    if not any(lower[name].startswith("learned_embeds") for name in picked):
        picked += _latest_checkpoints(weights)
    others = list(lower.keys() - set(picked))
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
    elif (
        not picked
        and len(embeds) == 1
        and len([name for name in lower if lower[name].endswith(SAFETENSORS_SUFFIXES)]) == 2
    ):
        picked = [name for name in lower if lower[name].endswith(SAFETENSORS_SUFFIXES)]
    if not picked and len(weights) == 1 and TEXT_FILES & names.keys():
        picked = list(weights)
    return picked


def _latest_checkpoints(weights: Mapping[str, Path]) -> list[str]:
    """Return the names of the last of training's step files, one for each text encoder."""
    checkpoints = sorted((int(match[2]), name) for name in weights if (match := STEPS.fullmatch(name.lower())))
    return [name for steps, name in checkpoints if steps == checkpoints[-1][0]]


def _may_be_concept(name: str, path: Path) -> bool:
    """Return whether a file may hold a concept. name: its name in lower case."""
    if ".preview." in name:
        return False
    if name.endswith(_IMAGE_SUFFIXES):  # most images are previews of the file beside them
        try:
            return holds_embedding(storage.read_bytes(path, MAX_PICKLE_BYTES))
        except UserError:
            return False
    suffixes = SAFETENSORS_SUFFIXES + PICKLE_SUFFIXES
    return name.endswith(suffixes + tuple(f"{suffix}{more}" for suffix in suffixes for more in UNFINISHED))


def adapter_folders(folder: Path, names: Mapping[str, Path]) -> dict[str, Path]:
    """Return the folders with an adapter_config.json by component; "" where only the tensors name it."""
    if "adapter_config.json" in names:
        return {"": folder}
    return {
        part: names[part] for part in _COMPONENTS if part in names and (names[part] / "adapter_config.json").is_file()
    }


def list_folder(folder: Path) -> dict[str, Path]:
    """Return a folder's files and folders by name, sorted, without hidden ones. Raises UserError."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in itertools.islice(entries, _MAX_FILES) if entry.name[0] != ".")
    except OSError as error:
        raise UserError(f"{printable(str(folder), 200)}: {error.strerror}.") from error
    return {name: folder / name for name in names}


# --- headers of safetensors files -------------------------------------------------------------------------------------


def _read_header_bytes(path: Path) -> tuple[bytes, int]:
    """Return a file's first bytes, with the whole header of a safetensors file, and its size. Raises UserError."""
    head, size = storage.read_head(path, _FIRST_READ_BYTES)
    header_end = 8 + int.from_bytes(head[:8], "little")
    if len(head) < header_end <= 8 + MAX_FOREIGN_HEADER and recognise(head, size) is SAFETENSORS:
        head, size = storage.read_head(path, header_end)
    return head, size


def _read_layout(path: Path) -> TensorLayout:
    """Read the header of a safetensors file. Raises UserError for other files too."""
    head, size = _read_header_bytes(path)
    return parse_head_layout(head, size, path.name, MAX_FOREIGN_HEADER)


def _is_native_file(path: Path) -> bool:
    try:
        head, size = _read_header_bytes(path)
        return is_native(head, path.name, size)
    except UserError:
        return False


def _are_copies(paths: Sequence[Path], native: Path) -> bool:
    """Return whether the files at `paths` are the export for diffusers of `native`, a file of ours."""
    has_standard_names = {path.name.lower() for path in paths} <= DIFFUSERS_FILES
    if not has_standard_names or not _is_native_file(native) or any(map(_is_native_file, paths)):
        return False
    tokens = {_unversioned_token(path) for path in (native, *paths)}
    return len(tokens) == 1 and None not in tokens


def _unversioned_token(path: Path) -> Token | None:
    """Return the token that a file of ours states; None for other files."""
    header = _read_part_header(path)
    return Token.parse(header.token).unversioned() if header and header.token else None


# --- parts of our exports ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _PartHeader:
    """The facts of a safetensors file's header.

    concept_identity: that of the full concept whose part or whole the file is; "" where the file is not of ours.
    """

    concept_identity: str
    is_part: bool
    token: str
    has_lora: bool

    @property
    def is_native(self) -> bool:
        return bool(self.concept_identity)


def join_parts(sources: Sequence[Source]) -> list[Source]:
    """Merge the sources that are parts of one concept.

    Headers of our exports say so, whatever the names and folders of the files; without them, an embedding and a LoRA
    of one name are merged.
    """
    if len(sources) < 2:
        return list(sources)
    headers = [_first_header(source) for source in sources]
    keys = [
        (header.concept_identity, header.token) if header and header.concept_identity else None for header in headers
    ]
    split_keys = {key for key, header in zip(keys, headers, strict=True) if header and header.is_part}
    groups: dict[object, list[int]] = {}
    for number, (source, header, key) in enumerate(zip(sources, headers, keys, strict=True)):
        if key in split_keys:
            groups.setdefault(key, []).append(number)
        elif header and not header.is_native and len(source.all_files) == 1:
            groups.setdefault(source.path.stem.lower(), []).append(number)
        else:
            groups[number] = [number]
    return [source for group in groups.values() for source in _merge_group(group, sources, headers)]


def _merge_group(
    group: list[int], sources: Sequence[Source], headers: Sequence[_PartHeader | None]
) -> Iterator[Source]:
    members = [sources[number] for number in group]
    first = headers[group[0]]
    have_lora = [header.has_lora for number in group if (header := headers[number])]
    if len(group) == 1 or (not (first and first.is_native) and sorted(have_lora) != [False, True]):
        yield from members
        return
    paths = tuple(dict.fromkeys(path for source in members for path in source.all_files))
    yield dataclasses.replace(members[0], path=_common_folder(paths), files=paths)


def _common_folder(paths: Sequence[Path]) -> Path:
    """Return the folder that holds all of them."""
    try:
        return Path(os.path.commonpath([path.parent for path in paths]))
    except ValueError:  # absolute and relative paths, or two drives
        return paths[0].parent


def _first_header(source: Source) -> _PartHeader | None:
    """Return the header of its first file that is of ours, or of its only file; None where there is neither."""
    headers = [header for path in source.all_files if path.is_file() and (header := _read_part_header(path))]
    if ours := next((header for header in headers if header.is_native), None):
        return ours
    return headers[0] if len(headers) == len(source.all_files) == 1 else None


def _read_part_header(path: Path) -> _PartHeader | None:
    try:
        layout = _read_layout(path)
    except UserError:
        return None
    metadata, has_lora = layout.metadata, any("lora" in name for name in layout.tensors)
    if claim := read_origin(metadata, path.name):
        is_half = claim.card.base == "sdxl" and len(layout.tensors) == 1  # embeddings for one of two text encoders
        is_part = bool(claim.part_of) or is_half
        return _PartHeader(claim.part_of or claim.identity, is_part, str(claim.token), has_lora)
    if "sdpersonal.card" in metadata:
        try:
            token = str(Token.parse(parse_card(metadata["sdpersonal.card"], path.name).token))
        except UserError:
            return None
        part_of, identity = metadata.get(PART_OF_KEY, ""), metadata.get("modelspec.hash_sha256", "").removeprefix("0x")
        return _PartHeader(part_of or identity, bool(part_of), token, has_lora)
    return _PartHeader("", False, "", has_lora)
