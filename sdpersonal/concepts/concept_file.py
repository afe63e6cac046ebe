"""Write and read the file of a concept, a `.safetensors` that other programs read unchanged:

    vectors only    `emb_params` (n, dim), or for SDXL `clip_l` (n, 768) and `clip_g` (n, 1280): an embedding
    LoRA only       `<layer>.lora_down.weight`, `.lora_up.weight`, `.alpha`, named as kohya names them; of layers that
                    LyCORIS changes in other ways, LyCORIS' tensors (`layer_changes`)
    both            the LoRA, with `bundle_emb.<owner-name>.string_to_param.*` (or `.clip_l`, `.clip_g`)

The header carries ModelSpec, a thumbnail and the card. The concept's identity is the sha256 of the bytes after the
header.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from .. import storage
from ..errors import UserError, printable
from ..prompts import Token
from . import layer_changes as changes
from .card import Card, parse_card
from .concept import LAYER_NAME, Concept, Lora, LoraLayer
from .modelspec import from_data_url, kohya_metadata, modelspec_metadata
from .strict_safetensors import (
    MAX_FILE_BYTES,
    TensorLayout,
    damaged_file_error,
    header_length,
    parse_head_layout,
    parse_layout,
    read_tensor,
    serialize,
    unreadable_header_error,
)

_VERSION = "1"
_FIRST_READ_BYTES = 32_768  # bytes: nearly every header, with its thumbnail, in one call
_CHECKSUM_KEY = "sdpersonal.header_sha256"
_SHA256 = re.compile(r"[0-9a-f]{64}")
PART_OF_KEY = "sdpersonal.whole"


@dataclass(frozen=True)
class Header:
    """The header of a concept's file, read without the tensors' bytes."""

    token: Token
    card: Card
    tensors: dict[str, tuple[int, ...]]
    thumbnail_url: str  # the thumbnail as stored in the header, a data URL or ""
    size: int  # bytes of the whole file
    payload_size: int  # bytes
    identity: str  # as stated in the header; only `concept_from_bytes` proves it
    part_of: str = ""  # as in Concept

    @cached_property
    def thumbnail(self) -> bytes | None:
        """The thumbnail, decoded on demand: a listing of thousands does not need it. Raises UserError."""
        try:
            return from_data_url(self.thumbnail_url) if self.thumbnail_url else None
        except ValueError as error:
            raise damaged_file_error(self.card.token, str(error)) from error

    @property
    def vectors(self) -> int:
        """The number of vectors per text encoder; 0 without an embedding."""
        shapes = (shape for name, shape in self.tensors.items() if shape and not name.startswith("lora_"))
        return max((shape[0] for shape in shapes), default=0)

    @property
    def lora_rank(self) -> int:
        """The largest rank of the plain LoRA layers; 0 without any."""
        plain = (parts for parts in self._layers.values() if changes.is_plain(parts))
        return max(((parts.get("lora_down.weight") or (0,))[0] for parts in plain), default=0)

    @property
    def kinds(self) -> str:
        """The kinds of its other layer changes as text: "LoHa", "DoRA", ...; empty without any."""
        return changes.kinds(parts for parts in self._layers.values() if not changes.is_plain(parts))

    @cached_property
    def _layers(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """Shapes by layer, then by the part of the tensor's name after the layer's."""
        layers: dict[str, dict[str, tuple[int, ...]]] = {}
        for name, shape in self.tensors.items():
            layer, _, part = name.partition(".")
            if part in changes.SUFFIXES:
                layers.setdefault(layer, {})[part] = shape
        return layers


def concept_to_bytes(concept: Concept, notes: Mapping[str, str] | None = None) -> bytes:
    """Serialize a concept. The same concept gives the same bytes. notes: extra text for the header, by key."""
    return b"".join(concept_to_chunks(concept, notes))


def concept_to_chunks(concept: Concept, notes: Mapping[str, str] | None = None) -> list[bytes | memoryview]:
    """Serialize to chunks: the header, then the tensors uncopied, because an SDXL LoRA can exceed 1 GB."""
    chunks = serialize(concept.tensors(), _metadata(concept) | dict(notes or {}))
    head, body = bytes(chunks[0]), chunks[1:]
    head = head.replace(_checksum_entry(_EMPTY_CHECKSUM), _checksum_entry(storage.sha256(head)))
    # This refuses to write what could not be read back.
    parse_head_layout(head, len(head) + sum(map(len, body)), str(concept.token))
    return [head, *body]


def concept_from_bytes(data: bytes, name: str) -> Concept:
    """Parse the bytes of a file called `name`. Raises UserError for all that `concept_to_bytes` cannot have written."""
    layout = parse_layout(data, name)
    header = _parse_header(bytes(data[: layout.payload_start]), layout, name, len(data))
    if storage.sha256(memoryview(data)[layout.payload_start :]) != header.identity:
        raise damaged_file_error(name, "it is damaged (its sha256 is not the one in its header)")
    try:
        vectors, lora = _read_tensors(data, layout, header.token)
        return Concept(header.token, header.card, vectors, lora, header.thumbnail, header.part_of)
    except ValueError as error:
        raise damaged_file_error(name, str(error)) from error
    except UserError as error:
        raise UserError(f"{printable(name)} is refused. {error.message}", error.hint) from error


def read_header(path: Path, thumbnail: bool = True) -> Header:
    """Read only the header of the file at `path`. thumbnail: include its thumbnail. Raises UserError."""
    name = os.path.basename(path)
    head, size = storage.read_head(path, _FIRST_READ_BYTES)
    try:
        if size > MAX_FILE_BYTES:
            raise ValueError("it is larger than 4 GB, the limit")
        header_end = 8 + header_length(head, size)
    except ValueError as error:
        raise unreadable_header_error(head, size, name, str(error)) from error
    if header_end > len(head):
        head, size = storage.read_head(path, header_end)
    head = head[:header_end]
    bare = head if thumbnail else _without_thumbnail(head)
    return _parse_header(head, parse_head_layout(bare, size - len(head) + len(bare), name), name, size)


# --- writing ----------------------------------------------------------------------------------------------------------

_EMPTY_CHECKSUM = "0" * 64  # placeholder in the header while its checksum is computed


def _checksum_entry(value: str) -> bytes:
    return f'"{_CHECKSUM_KEY}":"{value}"'.encode()  # in any other header text the quotes would be escaped


def _metadata(concept: Concept) -> dict[str, str]:
    identity = concept.identity
    metadata = {
        "format": "pt",
        "sdpersonal.format": _VERSION,
        "sdpersonal.card": concept.card.model_dump_json(),
        _CHECKSUM_KEY: _EMPTY_CHECKSUM,
        **modelspec_metadata(concept.card, concept.token, concept.lora is not None, identity, concept.thumbnail),
    }
    if concept.part_of:
        metadata[PART_OF_KEY] = concept.part_of
    if concept.lora is not None:
        layers = concept.lora.layers.values()
        ranks, alphas = {layer.rank for layer in layers}, {float(layer.alpha) for layer in layers}
        metadata |= kohya_metadata(concept.card, ranks, alphas, identity, bool(concept.lora.changes))
    return metadata


# --- reading ----------------------------------------------------------------------------------------------------------

_THUMBNAIL_PREFIX = b'"modelspec.thumbnail":"'  # as `concept_to_bytes` writes it; in other text the quotes are escaped


def _without_thumbnail(head: bytes) -> bytes:
    """Return the header with an empty thumbnail, so that a listing parses 1 kB of JSON instead of 20."""
    start = head.find(_THUMBNAIL_PREFIX) + len(_THUMBNAIL_PREFIX)
    end = head.find(b'"', start)
    if start < len(_THUMBNAIL_PREFIX) or end < 0 or b"\\" in head[start:end]:
        return head
    return (len(head) - 8 - (end - start)).to_bytes(8, "little") + head[8:start] + head[end:]


def _parse_header(head: bytes, layout: TensorLayout, name: str, size: int) -> Header:
    """Parse `head`, all bytes before the payload, of a file of `size` bytes. Raises UserError."""
    metadata = layout.metadata
    if "sdpersonal.card" not in metadata:
        raise UserError(
            f"{printable(name)} is not a concept file of sdpersonal.", "Import it: sdpersonal concepts import FILE"
        )
    if metadata.get("sdpersonal.format") != _VERSION:
        raise UserError(f"{printable(name)} was made by a newer sdpersonal.", "Update sdpersonal.")
    written = metadata.get(_CHECKSUM_KEY, "")
    is_changed = not _SHA256.fullmatch(written)
    if (
        is_changed
        or storage.sha256(head.replace(_checksum_entry(written), _checksum_entry(_EMPTY_CHECKSUM))) != written
    ):
        raise damaged_file_error(name, "it is damaged (its header was changed)")
    card = parse_card(metadata["sdpersonal.card"], name)
    token = Token.parse(card.token)
    shapes = {tensor: info.shape for tensor, info in layout.tensors.items()}
    identity = metadata.get("modelspec.hash_sha256", "").removeprefix("0x")
    thumbnail_url, part_of = metadata.get("modelspec.thumbnail", ""), metadata.get(PART_OF_KEY, "")
    if part_of and not _SHA256.fullmatch(part_of):
        raise damaged_file_error(name, f"its {PART_OF_KEY} is no sha256")
    if not _SHA256.fullmatch(identity):
        raise damaged_file_error(name, "its modelspec.hash_sha256 is no sha256")
    return Header(token, card, shapes, thumbnail_url, size, size - len(head), identity, part_of)


def _read_tensors(data: bytes, layout: TensorLayout, token: Token) -> tuple[dict[str, np.ndarray], Lora | None]:
    """Return vectors and LoRA. Raises ValueError where a tensor belongs to neither."""
    vectors: dict[str, np.ndarray] = {}
    layers: dict[str, dict[str, np.ndarray]] = {}
    unknown = []
    bundle = f"bundle_emb.{token.slug}."
    for name in layout.tensors:
        layer, _, part = name.partition(".")
        if name in ("emb_params", bundle + "string_to_param.*"):
            # Vectors are few, so a writable copy is cheap.
            vectors["clip_l"] = np.array(read_tensor(data, layout, name), np.float32)
        elif name.removeprefix(bundle) in ("clip_l", "clip_g"):
            vectors[name.removeprefix(bundle)] = np.array(read_tensor(data, layout, name), np.float32)
        elif LAYER_NAME.fullmatch(layer) and part in changes.SUFFIXES:
            layers.setdefault(layer, {})[part] = read_tensor(data, layout, name)
        else:
            unknown.append(name)
    for layer, tensors in layers.items():
        if not (changes.is_plain(tensors) or changes.is_complete(tensors)):
            unknown += [f"{layer}.{part}" for part in tensors]
    if unknown:
        raise ValueError(f"it has unknown tensors {printable(', '.join(unknown[:3]))}")
    if not layers:
        return vectors, None
    plain = {name: _build_layer(name, parts) for name, parts in layers.items() if changes.is_plain(parts)}
    return vectors, Lora(plain, {name: parts for name, parts in layers.items() if name not in plain})


def _build_layer(name: str, parts: dict[str, np.ndarray]) -> LoraLayer:
    if missing := changes.PLAIN - parts.keys():
        raise ValueError(f"layer {printable(name)} lacks its {' and '.join(sorted(missing))}")
    if parts["alpha"].size != 1:
        raise ValueError(f"the alpha of layer {printable(name)} is not one number")
    return LoraLayer(parts["lora_down.weight"], parts["lora_up.weight"], float(parts["alpha"].reshape(())))
