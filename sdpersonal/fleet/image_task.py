"""Describe images to generate so that any machine understands it: concepts by identity, init images by content.

The driver looks concepts up in a library, puts their files into the store, and pins what it has seen: whatever happens
to the library afterwards, the image is that of the moment of the request. Two people's `<me/duck>` may be two concepts.

    concepts/IDENTITY-CARD.safetensors     a concept, by the sha256 of its tensors and of its card
    inputs/SESSION/SHA256                  an init image or a mask, by the sha256 of its file
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from .. import storage
from ..concepts.card import Card
from ..concepts.concept import Concept
from ..concepts.concept_file import concept_from_bytes, concept_to_chunks
from ..concepts.library import Entry
from ..concepts.strict_safetensors import MAX_FILE_BYTES
from ..config import GenerateRequest
from ..errors import UserError, printable
from ..generation.img2img import mask_note
from ..generation.prompt_resolution import check_kind, check_makes_few_steps_enough
from ..generation.request_checks import images_of, tokens_of
from ..prompts import Token, Wildcards
from .store import Store

CONCEPTS, INPUTS = "concepts", "inputs"
FILE_FIELDS = ("init_image", "mask")
MAX_INPUT_BYTES = 100 << 20
# Fields of a request that are equal for all images of a batch.
_SHARED_FIELDS = [
    name
    for name in GenerateRequest.model_fields
    if name not in {"prompt", "negative", "num_images", "all_combinations", "seed", "variation_seed"}
]
_PINNED = re.compile(r"([0-9a-f]{64})-([0-9a-f]{16})")
_INPUT = re.compile(rf"{INPUTS}/[0-9a-f]{{16}}/([0-9a-f]{{64}})")


@dataclass(frozen=True)
class PinnedConcept:
    """A concept as it was when its image was asked for. identity: of its tensors; card: of all that its card says."""

    identity: str
    card: str

    @classmethod
    def of(cls, concept: Concept) -> PinnedConcept:
        return cls(concept.identity, _card_mark(concept.card))

    @classmethod
    def parse(cls, name: object) -> PinnedConcept:
        match = _PINNED.fullmatch(name) if isinstance(name, str) else None
        if not match:
            raise UserError(f"{printable(repr(name), 60)} names no concept of a fleet.")
        return cls(*match.groups())

    def __str__(self) -> str:
        return f"{self.identity}-{self.card}"

    @property
    def key(self) -> str:
        """The key of its file in the store."""
        return f"{CONCEPTS}/{self}.safetensors"


@dataclass(frozen=True)
class ImageTask:
    """One image. request: for it alone, with its alternatives chosen, and with keys of the store as paths; number: of
    the image among those of the user's request; template: the prompt that its own was chosen from, or "";
    concepts: by token as the prompts have it."""

    request: GenerateRequest
    number: int
    template: str
    concepts: Mapping[str, PinnedConcept]

    def as_json(self) -> dict[str, Any]:
        concepts = {token: str(pinned) for token, pinned in self.concepts.items()}
        request = self.request.model_dump(mode="json")
        return {"request": request, "number": self.number, "template": self.template, "concepts": concepts}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> ImageTask:
        """Read a task of the store. Raises UserError for anything that `as_json` cannot have written."""
        try:
            request = GenerateRequest(**content["request"])
            concepts = {str(token): PinnedConcept.parse(name) for token, name in content["concepts"].items()}
            task = cls(request, int(content["number"]), str(content["template"]), concepts)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise UserError("A task of the fleet is damaged in the storage.", "Give the command again.") from None
        for path in filter(None, (request.init_image, request.mask)):
            input_sha256(path)
        return task

    @property
    def batch_key(self) -> Hashable:
        """What is equal for images that one batch can hold, as far as it is known without the base."""
        return tuple(getattr(self.request, name) for name in _SHARED_FIELDS)

    def identity(self, *context: object) -> str:
        """Return what is equal for equal images. context: what else they depend on, such as the base."""
        content = self.as_json()
        for name in FILE_FIELDS:  # their keys name the session too
            content["request"][name] = content["request"][name] and content["request"][name].rpartition("/")[2]
        return storage.sha256(json.dumps([content, *context], sort_keys=True).encode())[:32]


def input_sha256(path: Path) -> str:
    """Return the sha256 that an input's key in the store ends with. Raises UserError for any other path."""
    match = _INPUT.fullmatch(path.as_posix())
    if not match:
        raise UserError(f"{printable(str(path), 200)} is no input of a fleet.")
    return match[1]


def _card_mark(card: Card) -> str:
    return storage.sha256(card.model_dump_json().encode())[:16]


def split_request(
    request: GenerateRequest,
    wildcards: Wildcards,
    pin: Callable[[Token, bool], PinnedConcept],
    put_input: Callable[[Path], Path],
) -> list[ImageTask]:
    """Return the images of a request, with their alternatives chosen.

    Args:
        pin: pin(token, is_fast) returns the concept that a token means; is_fast: it makes few steps enough.
        put_input: returns what stands for the path of an init image or mask in the tasks. It is called once all
            concepts are known.
    """
    images = list(images_of(request, wildcards))
    texts = [text for image in images for text in (image.prompt, image.negative)]
    tokens = {text: tokens_of([text]) for text in dict.fromkeys(texts)}
    pinned = {token: pin(token, False) for token in dict.fromkeys(chain.from_iterable(tokens.values()))}
    fast = [Token.parse(request.fast)] if request.fast else []
    pinned |= {token: pin(token, True) for token in fast}
    inputs = {name: put_input(path) for name in FILE_FIELDS if (path := getattr(request, name))}
    common = request.model_dump() | inputs | {"num_images": 1, "all_combinations": False}
    tasks = []
    for number, image in enumerate(images):
        own: dict[str, Any] = {"prompt": image.prompt, "negative": image.negative}
        own |= {"seed": image.seed, "variation_seed": image.variation_seed}
        concepts = {str(token): pinned[token] for token in [*tokens[image.prompt], *tokens[image.negative], *fast]}
        tasks.append(ImageTask(GenerateRequest(**common | own), number, image.template, concepts))
    return tasks


class TaskMaker:
    """Makes the tasks of requests, and puts what they need into the store.

    kind: of the base that will be loaded, None if it is not known yet; session: 16 hexadecimal digits, of the caller.
    """

    def __init__(self, store: Store, session: str, wildcards: Path | None = None, kind: str | None = None):
        self._store, self._session, self._kind = store, session, kind
        self._wildcards = Wildcards(wildcards)
        self._stored: set[str] | None = None  # keys in the store
        self._loaded: dict[tuple[Path, str], PinnedConcept] = {}
        self._checked: set[tuple[Path | None, Path | None]] = {(None, None)}

    def tasks(self, request: GenerateRequest, find: Callable[[Token], Entry]) -> list[ImageTask]:
        """Return a request's images. find: `find` of the library that its tokens are meant in.

        Raises:
            UserError: as `Generator.generate` would, for all that can be known before the base is loaded; StoreError.
        """
        self._check_inputs(request)
        return split_request(
            request, self._wildcards, lambda token, is_fast: self._pin(token, find, is_fast), self._put_input
        )

    def inputs(self) -> str:
        """Return the folder of this session's inputs, which are nobody else's."""
        return f"{INPUTS}/{self._session}"

    # --- internals ----------------------------------------------------------------------------------------------------

    def _pin(self, token: Token, find: Callable[[Token], Entry], is_fast: bool) -> PinnedConcept:
        """Look a concept up, check it, and put it into the store unless it is there."""
        entry = find(token)
        mark = _card_mark(entry.card) if entry.card else ""
        known = self._loaded.get((entry.path, f"{entry.identity}-{mark}"))
        if known and not is_fast:
            return known
        concept = concept_from_bytes(storage.read_bytes(entry.path, MAX_FILE_BYTES), entry.path.name)
        concept = replace(concept, token=entry.token)
        if self._kind:
            check_kind(concept, self._kind)
        if is_fast:
            check_makes_few_steps_enough(concept)
        pinned = PinnedConcept.of(concept)
        if pinned.key not in self._keys():
            self._store.write(pinned.key, b"".join(concept_to_chunks(concept)))
            self._keys().add(pinned.key)
        self._loaded[entry.path, str(pinned)] = pinned
        return pinned

    def _check_inputs(self, request: GenerateRequest) -> None:
        pair = request.init_image, request.mask
        if pair not in self._checked:
            mask_note(request)  # for its errors; the note is a warning
            self._checked.add(pair)

    def _put_input(self, path: Path) -> Path:
        data = storage.read_bytes(path, MAX_INPUT_BYTES)
        key = f"{self.inputs()}/{storage.sha256(data)}"
        if key not in self._keys():
            self._store.write(key, data)
            self._keys().add(key)
        return Path(key)

    def _keys(self) -> set[str]:
        if self._stored is None:
            self._stored = {f"{CONCEPTS}/{name}" for name in self._store.names(CONCEPTS)}
        return self._stored


def read_inputs(read: Callable[[str], bytes | None], task: ImageTask, folder: Path) -> GenerateRequest:
    """Write a task's init image and mask into a folder of this machine; return its request with their paths.

    read: of the store. Raises UserError if one is not there.
    """
    paths: dict[str, Path] = {}
    for name, key in _inputs(task):
        sha256 = input_sha256(key)
        path = paths[name] = folder / sha256
        if path.exists():
            continue
        data = read(key.as_posix())
        if data is None or storage.sha256(data) != sha256:
            raise UserError(f"The {name} of an image is not in the storage any more.", "Give the command again.")
        storage.make_folder(folder)
        storage.write_bytes(path, data)
    return task.request.model_copy(update=paths) if paths else task.request


def _inputs(task: ImageTask) -> Iterator[tuple[str, Path]]:
    for name in FILE_FIELDS:
        if path := getattr(task.request, name):
            yield name, path
