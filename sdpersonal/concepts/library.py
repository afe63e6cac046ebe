"""Keep the concept library: a folder of `<owner>/<name>-v<N>.safetensors` files, without an index to keep in sync.

The path spells the concept's token; a listing reads headers only. Every change to the folder holds its lock and
replaces one whole file at a time. Reading needs no lock and works on a read-only disk.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from .. import storage
from ..config.text_checks import check_path
from ..errors import UnknownConcept, UserError, printable
from ..prompts import Token
from .card import Card, edit_card, with_token
from .concept import Concept, check_token, describe_contents
from .concept_file import concept_from_bytes, concept_to_chunks, read_header
from .importers.read_folders import join_concepts, read_path
from .strict_safetensors import MAX_FILE_BYTES

SUFFIX = ".safetensors"
_MAX_REMEMBERED = 16_384  # entries, of 2 kB each, that a long-lived process need not read again
TAKEN_HINT = (
    "Give it another name with --as '<owner/name>', overwrite it with --replace, or keep both: "
    "--duplicates versions (or filenames)"
)
OTHER_PART_HINT = (
    "If they are one concept, import both files at once with --replace; else keep both: --duplicates filenames"
)


class TokenTaken(UserError):
    """Raised when another concept in the library has the name."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One concept in a listing. damaged: what is wrong with its file; the fields after it are then unknown."""

    token: Token
    path: Path
    size: int = 0  # bytes
    damaged: str | None = None
    card: Card | None = None
    vectors: int = 0  # embedding rows per text encoder
    lora_rank: int = 0
    kinds: str = ""  # kinds of other layer changes as text: `Lora.kinds`
    identity: str | None = None  # sha256 as stated in the header; `Library.verify` proves it

    @property
    def contents(self) -> str:
        """The contents as text."""
        return describe_contents(self.vectors, self.lora_rank, self.kinds)

    @property
    def thumbnail(self) -> bytes | None:
        """The thumbnail, read from disk on access: a listing of thousands must not hold them all."""
        with suppress(UserError):
            return read_header(self.path).thumbnail
        return None

    def as_json(self) -> dict[str, object]:
        """Return the entry as JSON with a fixed set of keys (null for the unknown fields of a damaged file).

        `lora_kinds` is added where layers are changed in other ways than by a plain LoRA.
        """
        card = self.card.model_dump(mode="json") if self.card else dict.fromkeys(Card.model_fields)
        return card | {
            "token": str(self.token),
            "vectors": self.vectors,
            "lora_rank": self.lora_rank,
            "size": self.size,
            "identity": self.identity,
            "path": str(self.path),
            "damaged": self.damaged,
            **({"lora_kinds": self.kinds} if self.kinds else {}),
        }


class Library:
    """The concepts in `folder`, which is created by the first addition. Every method raises UserError.

    It is used like a mapping from tokens to concepts: `library["<me/duck>"]`, `in`, `len`; iteration gives the tokens
    of all versions. A token may be text; without a version it means the newest one.
    """

    def __init__(self, folder: str | os.PathLike):
        check_path(folder, "library")
        self.folder = Path(folder)

    def __repr__(self) -> str:
        return f"Library({str(self.folder)!r})"

    # --- reading ------------------------------------------------------------------------------------------------------

    def __getitem__(self, token: str | Token) -> Concept:
        """Load the concept, as `get` does. Raises UnknownConcept, a KeyError that names the nearest one."""
        return self.get(token)

    def __contains__(self, token: object) -> bool:
        """Return whether there is such a concept. Text that is no token is not in any library."""
        with suppress(UserError):
            return isinstance(token, str | Token) and bool(self._matching(Token.of(token)))
        return False

    def __iter__(self) -> Iterator[Token]:
        return iter(sorted(self._tokens(), key=lambda token: (token.owner, token.name, token.version)))

    def __len__(self) -> int:
        """Return the number of concepts, with every version counted."""
        return sum(1 for _ in self._tokens())

    def __bool__(self) -> bool:
        return True  # an empty library is still a library: `if library` asks whether there is one

    def entries(self) -> list[Entry]:
        """List every concept by owner, name and version; a damaged file's entry says what is wrong with it."""
        tokens_and_files = sorted(self._files(), key=lambda pair: pair[0])
        entries = (self._entry(token, file) for token, file in tokens_and_files)
        return [entry for entry in entries if entry is not None]

    def find(self, token: str | Token) -> Entry:
        """Return the entry for `token`: the newest version, unless the token names one."""
        entry = self._entry(self._resolve(token))
        if entry is None:
            raise UnknownConcept(f"{token} was just removed by another process.")
        return entry

    def get(self, token: str | Token) -> Concept:
        """Load the concept, with its version, after verifying its checksum."""
        return self._load(self._resolve(token))

    def versions(self, token: str | Token) -> list[Token]:
        """List all versions of a concept, oldest first; empty if there is none. No file is opened."""
        return self._matching(Token.of(token).unversioned())

    def identities(self, token: str | Token) -> dict[Token, str | None]:
        """Return the identity of each version of a concept; None for a damaged one."""
        entries = (self._entry(version) for version in self._matching(Token.of(token).unversioned()))
        return {entry.token: entry.identity for entry in entries if entry is not None}

    def history(self, token: str | Token) -> list[Entry]:
        """List the entries of all versions of a concept, oldest first."""
        entries = (self._entry(version) for version in self._matching(self._resolve(token).unversioned()))
        return [entry for entry in entries if entry is not None]

    def verify(self) -> list[tuple[Entry, str]]:
        """Read every file in full and return the damaged ones, with what is wrong with each."""
        problems = []
        for entry in self.entries():
            try:
                self._load(entry.token)
            except Exception as error:  # one file must not end the check of the others
                if os.path.lexists(entry.path):  # otherwise it was removed meanwhile
                    problems.append((entry, _damage(error)))
        return problems

    def misplaced_files(self) -> list[Path]:
        """List files that look like concepts but match no token: wrong name, or in a wrong or linked folder.

        Folders that cannot be read are listed too.
        """
        known = {self._path(token) for token in self._tokens()}
        top = _scan(self.folder)
        paths = [Path(entry) for entry in top if entry.name.endswith(SUFFIX)]
        for folder in (Path(entry) for entry in top if os.path.isdir(entry)):
            try:
                paths += [Path(entry) for entry in _scan(folder) if entry.name.endswith(SUFFIX)]
            except UserError:
                paths.append(folder)
        return sorted({path for path in paths if path not in known})

    # --- changing -----------------------------------------------------------------------------------------------------

    def add(self, concept: Concept, replace: bool = False) -> Token:
        """Add a concept as a new version unless its token names one; return its token.

        If the library already has the same vectors and weights under that name, nothing is added and that token is
        returned. replace: overwrite the newest version, or the one that the token names.
        """
        with self.write_lock():
            return self._write(concept, replace, count_up=True)

    def import_(self, path: str | os.PathLike, as_: str | Token | None = None, replace: bool = False) -> Token:
        """Import a file or folder of any supported format as its token or `as_`; `replace` allows a taken one."""
        return self.add_imported(read_path(path, None if as_ is None else Token.of(as_)), replace)

    def add_imported(self, concept: Concept, replace: bool = False, count_up: bool = False) -> Token:
        """Add an imported concept like `add`, but as a new version of an existing name only with `count_up`.

        A part that an export split off is joined with the other part if that is in the library; a part of a full
        concept in the library adds nothing.
        """
        with self.write_lock():
            if not replace and (token := self._with_other_part(concept)):
                return token
            if (
                count_up
                and concept.token.version
                and self._matching(concept.token)
                and not self._find_identical(concept)
            ):
                concept = dataclasses.replace(concept, token=concept.token.unversioned())
            return self._write(concept, replace, count_up)

    def edit(self, token: str | Token, changes: Mapping[str, object]) -> Token:
        """Edit a concept's card (`card.edit_card`); version and identity stay the same. Returns its token."""
        resolved = self._resolve(token)
        with self.write_lock():
            concept = self._load(resolved)
            card = edit_card(concept.card, changes)
            if card != concept.card:
                storage.write_bytes(self._path(resolved), *concept_to_chunks(dataclasses.replace(concept, card=card)))
        return resolved

    def rename(self, old: str | Token, new: str | Token) -> list[Token]:
        """Rename all versions of a concept, or the one that `old` names. Returns the new tokens."""
        old, new = Token.of(old), Token.of(new)
        resolved = self._resolve(old)
        new = dataclasses.replace(new, owner=new.owner or resolved.owner)
        check_token(new)
        if new.version and not old.version:
            raise UserError(f"{new} names a version, {old} does not.", "Give both a version, or neither.")
        with self.write_lock():
            moves = [
                (source, dataclasses.replace(new, version=new.version or source.version))
                for source in self._matching(resolved if old.version else resolved.unversioned())
            ]
            existing = self._matching(moves[0][1] if old.version else new) if moves else []
            if existing:
                raise UserError(f"{existing[-1]} is already in the library.", "Choose another name.")
            for source, target in moves:
                self._move(source, target)
            storage.remove_empty_folder(self._path(resolved).parent)
        return [target for _, target in moves]

    def remove(self, token: str | Token, all_versions: bool = False, move_to: Library | None = None) -> list[Token]:
        """Delete the version that `token` names, or all with `all_versions`. Returns the deleted tokens.

        move_to: a library on the same disk to which the unchanged files are moved instead (`trash.Trash`).
        """
        token = Token.of(token)
        resolved = self._resolve(token)
        with self.write_lock():
            versions = self._matching(resolved if token.version else resolved.unversioned())
            if len(versions) > 1 and not all_versions:
                names = printable(", ".join(str(version) for version in versions))
                raise UserError(
                    f"{resolved.unversioned()} has several versions: {names}.",
                    "Name one, or delete all: --all-versions.",
                )
            for version in versions:
                path = self._path(version)
                storage.remove(path) if move_to is None else move_to.move_in(path, version)
            storage.remove_empty_folder(self._path(resolved).parent)
        return versions

    def move_in(self, path: Path, token: Token) -> None:
        """Move a concept's file from elsewhere on this disk to the free path of `token`, atomically."""
        target = self._path(token)
        storage.resolve_inside(self.folder, target.parent.name)  # a linked folder must not lead outside the library
        storage.make_folder(target.parent)
        storage.rename(path, target)

    def sweep(self) -> int:
        """Remove half-written files of killed processes; return how many there were."""
        return sum(
            storage.remove_leftovers(folder) for folder in [self.folder, *(Path(owner) for owner in self._owners())]
        )

    # --- internals ----------------------------------------------------------------------------------------------------

    @contextmanager
    def write_lock(self) -> Iterator[None]:
        """Lock the library against changes by other processes. Raises UserError after waiting for a minute."""
        with storage.lock(self.folder, timeout=storage.LOCK_TIMEOUT):
            self.sweep()
            yield

    def _owners(self) -> list[os.DirEntry[str]]:
        return [entry for entry in _scan(self.folder) if entry.is_dir(follow_symlinks=False) and entry.name[0] != "."]

    def _files(self) -> Iterator[tuple[Token, os.DirEntry[str]]]:
        """Yield every token that a path in this folder spells, with that path; no file is opened."""
        for owner in self._owners():
            for file in _scan_owner(owner):
                if token := _token_from_path(owner.name, file.name):
                    yield token, file

    def _tokens(self) -> Iterator[Token]:
        return (token for token, _ in self._files())

    def _path(self, token: Token) -> Path:
        """Return the path of a token with owner and version."""
        if token.owner is None:
            raise ValueError(f"{token} has no owner, so no file in a library.")
        return self.folder / token.owner / _file_name(token)

    def _matching(self, token: Token) -> list[Token]:
        """List the tokens that `token` matches, oldest version first. Only the folder of a named owner is scanned."""
        owners = [owner for owner in self._owners() if token.owner in (None, owner.name)]
        prefix = f"{token.name}-v"
        names = (
            (owner.name, file.name) for owner in owners for file in _scan_owner(owner) if file.name.startswith(prefix)
        )
        tokens = (_token_from_path(owner, name) for owner, name in names)
        return sorted(candidate for candidate in tokens if candidate and token.matches(candidate))

    def _resolve(self, token: str | Token) -> Token:
        """Return the one token that is meant, with owner and version."""
        token = Token.of(token)
        matching = self._matching(token)
        if not matching:
            raise UnknownConcept(f"No concept {token}.", self._suggestion(token))
        owners = sorted({str(match.owner) for match in matching})
        if len(owners) > 1:
            names = " or ".join(str(dataclasses.replace(token, owner=owner)) for owner in owners)
            raise UserError(f"Several concepts are called {token}.", f"Write {printable(names, 200)}.")
        return matching[-1]

    def _suggestion(self, token: Token) -> str:
        known = sorted(self._tokens())
        spellings = {
            spelling: candidate.unversioned()
            for candidate in known
            for spelling in (str(candidate.unversioned()), candidate.name)
        }
        spellings |= {str(candidate): candidate for candidate in known if token.version}
        for wanted in (str(token), token.name):
            if close := difflib.get_close_matches(wanted, spellings, n=1):
                return f"Did you mean {spellings[close[0]]}?"
        if not known:
            return f"The library {printable(str(self.folder))} is empty."
        return "See: sdpersonal concepts list"

    def _safe_path(self, token: Token, dir_entry: os.DirEntry[str] | None = None) -> Path:
        """Return a concept's path, never outside the library even if links lead there.

        dir_entry: its listing, which saves a disk access.
        """
        path = self._path(token)
        if dir_entry.is_symlink() if dir_entry else os.path.islink(path):  # linked folders are never listed
            storage.resolve_inside(self.folder, path.parent.name, path.name)
        return path

    def _entry(self, token: Token, dir_entry: os.DirEntry[str] | None = None) -> Entry | None:
        """Return the entry, or None if the file has vanished since it was listed."""
        try:
            path = self._safe_path(token, dir_entry)
            status = os.stat(path)
            return _read_entry(token, path, (status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size))
        except Exception as error:  # one file must not end the listing of the others
            with suppress(OSError):
                return Entry(token, path := self._path(token), path.lstat().st_size, _damage(error))
            return None

    def _load(self, token: Token) -> Concept:
        concept = concept_from_bytes(storage.read_bytes(self._safe_path(token), MAX_FILE_BYTES), self._path(token).name)
        return dataclasses.replace(concept, token=token)

    def _find_identical(self, concept: Concept) -> Token | None:
        """Return the newest undamaged version with exactly the same vectors and weights."""
        for token in reversed(self._matching(concept.token.unversioned())):
            with suppress(UserError):
                if read_header(self._safe_path(token)).identity == concept.identity:
                    return self._load(token).token
        return None

    def _with_other_part(self, concept: Concept) -> Token | None:
        """Return the version that contains this part, or that the part completes and that is rewritten; else None."""
        for token in reversed(self._matching(concept.token.unversioned())):
            with suppress(UserError):
                header = read_header(self._safe_path(token), thumbnail=False)
                full_identity = concept.part_of or concept.identity
                if full_identity != (header.part_of or header.identity) or not (concept.part_of or header.part_of):
                    continue
                other = self._load(token)
                joined = dataclasses.replace(join_concepts([other, concept], token), token=token)
                if joined.identity != other.identity:
                    storage.write_bytes(self._path(token), *concept_to_chunks(joined))
                return token
        return None

    def _write(self, concept: Concept, replace: bool, count_up: bool) -> Token:
        """Write a concept. count_up: add the next version if the name is taken and the token names no version."""
        if not replace and (identical := self._find_identical(concept)):
            return identical
        existing = self._matching(concept.token)  # all versions, or the one that the token names
        if existing and not replace and not (count_up and concept.token.version is None):
            raise self._already_there_error(concept, existing[-1])
        newest = (existing[-1].version or 0) if existing else 0
        version = concept.token.version or (newest if replace and newest else newest + 1)
        token = dataclasses.replace(concept.token, version=version)
        path = self._path(token)
        data = concept_to_chunks(dataclasses.replace(concept, token=token))
        try:
            storage.resolve_inside(self.folder, path.parent.name)  # as in `move_in`
            storage.make_folder(path.parent)
            storage.write_bytes(path, *data)
        except UserError:
            storage.remove_empty_folder(path.parent)
            raise
        return token

    def _move(self, old: Token, new: Token) -> None:
        """Move with a single rename: a crash leaves either the old token or the new one."""
        self.move_in(self._path(old), new)
        # The header repeats the token for other programs; on a full disk the old token stays there, which is harmless.
        with suppress(UserError):
            storage.write_bytes(self._path(new), *concept_to_chunks(self._load(new)))

    def _already_there_error(self, concept: Concept, existing: Token) -> UserError:
        entry = self._entry(existing)
        old_identity = ((entry and entry.identity) or "damaged")[:8]
        has_lora = bool(entry and (entry.lora_rank or entry.kinds))
        if entry and bool(entry.vectors) != bool(concept.vectors) and has_lora != bool(concept.lora):
            new_part, old_part = ("vectors", "a LoRA") if concept.vectors else ("a LoRA", "vectors")
            return TokenTaken(
                f"{existing} is already in the library with {old_part} alone, the new one is {new_part} alone.",
                OTHER_PART_HINT,
            )
        return TokenTaken(
            f"{existing} is already in the library with other content "
            f"(here {old_identity}, the new one {concept.identity[:8]}).",
            TAKEN_HINT,
        )


@functools.lru_cache(_MAX_REMEMBERED)
def _read_entry(token: Token, path: Path, stamp: tuple[int, ...]) -> Entry:
    """Read an entry once for each state of its file. stamp: what changes when the file does."""
    header = read_header(path, thumbnail=False)
    card = header.card
    if card.token != str(token):  # a file may have been renamed by hand
        card = with_token(card, token)
    return Entry(token, path, header.size, None, card, header.vectors, header.lora_rank, header.kinds, header.identity)


def _damage(error: Exception) -> str:
    """Return what is wrong with a file that could not be read."""
    if isinstance(error, UserError):
        return error.message
    return str(error) if isinstance(error, OSError) else f"it cannot be read ({type(error).__name__})"


def _file_name(token: Token) -> str:
    return f"{token.name}-v{token.version}{SUFFIX}"


def _token_from_path(owner: str, file_name: str) -> Token | None:
    """Return the token that a path spells, or None."""
    with suppress(UserError):
        token = Token.parse(f"<{owner}/{file_name.removesuffix(SUFFIX)}>")
        if file_name == _file_name(token):
            return token
    return None


def _scan_owner(folder: os.DirEntry[str]) -> list[os.DirEntry[str]]:
    """List a folder of the library; one that cannot be read has no concepts, and `misplaced_files` lists it."""
    with suppress(UserError):
        return _scan(folder)
    return []


def _scan(folder: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(
            f"{printable(os.fspath(folder), 200)}: {error.strerror}.", "Give the folder of a library."
        ) from error
