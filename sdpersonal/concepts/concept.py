"""A concept (token, embeddings, LoRA, card) and the single file that stores it.

The file is a `.safetensors` that other programs read unchanged:

    vectors only    `emb_params` (n, dim), or for SDXL `clip_l` (n, 768) and `clip_g` (n, 1280): an embedding
    LoRA only       `<layer>.lora_down.weight`, `.lora_up.weight`, `.alpha`, named as kohya names them; of layers that
                    LyCORIS changes in other ways, LyCORIS' tensors (`layer_changes`)
    both            the LoRA, with `bundle_emb.<owner-name>.string_to_param.*` (or `.clip_l`, `.clip_g`)

The header carries ModelSpec, a thumbnail and the card. The concept's identity is the sha256 of the bytes after the
header.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from .. import storage
from ..errors import UserError
from ..prompts import Token, printable
from . import layer_changes as changes
from .card import BaseKind, Card, parse_card
from .modelspec import from_data_url, kohya_metadata, modelspec_metadata
from .strict_safetensors import (
    MAX_FILE_BYTES,
    TensorLayout,
    damaged_file_error,
    header_length,
    not_read,
    parse_head_layout,
    parse_layout,
    read_tensor,
    serialize,
    tensor_bytes,
)
from .thumbnail import make_thumbnail, media_type

__all__ = [
    "Card",
    "Concept",
    "Header",
    "Lora",
    "LoraLayer",
    "concept_from_bytes",
    "concept_to_bytes",
    "make_thumbnail",
    "read_header",
]

MAX_VECTORS = 64
EMBEDDING_WIDTHS: dict[BaseKind, dict[str, int]] = {
    "sd1": {"clip_l": 768},
    "sd2": {"clip_l": 1024},
    "sdxl": {"clip_l": 768, "clip_g": 1280},
}  # embedding width of each text encoder

_VERSION = "1"
_FIRST_READ_BYTES = 32_768  # bytes: nearly every header, with its thumbnail, in one call
_CHECKSUM_KEY = "sdpersonal.header_sha256"
WHOLE = "sdpersonal.whole"
_LAYER = re.compile(r"lora_(unet|te|te1|te2)_[A-Za-z0-9_]{1,200}")


@dataclass(frozen=True)
class LoraLayer:
    """One layer's change: delta weight = up @ down * alpha / r. down (r, in[, k, k]), up (out, r[, 1, 1]).

    Matrices read from a file are views of its bytes, and read-only.
    """

    down: np.ndarray
    up: np.ndarray
    alpha: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]


@dataclass(frozen=True)
class Lora:
    """Layers by kohya module name, e.g. `lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q`.

    changes: other changes of layers (LoHa, LoKr, DoRA, ...), by the same names; no layer is in both.
    """

    layers: dict[str, LoraLayer]
    changes: dict[str, changes.Change] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """The largest rank of its layers; 0 where all are changed in other ways."""
        return max((layer.rank for layer in self.layers.values()), default=0)

    @property
    def kinds(self) -> str:
        """The kinds of `changes` as text; empty for a plain LoRA."""
        return changes.kinds(self.changes.values())


@dataclass(frozen=True)
class Concept:
    """A token with its vectors, LoRA, or both. Raises UserError where they could not work.

    token: owner and name; version is None until a library assigns one. vectors: float32 (n, dim), 1 to 64 rows, keyed
    `clip_l` and, for SDXL, `clip_g`. thumbnail: PNG, JPEG or WebP. The card repeats the token.
    """

    token: Token
    card: Card
    vectors: dict[str, np.ndarray] = field(default_factory=dict)
    lora: Lora | None = None
    thumbnail: bytes | None = None
    whole: str = ""  # identity of the full concept if an export split this part off; "" for a full concept

    def __post_init__(self):
        check_token(self.token)
        if self.card.token != str(self.token):
            object.__setattr__(self, "card", self.card.model_copy(update={"token": str(self.token)}))
        if not self.vectors and self.lora is None:
            raise UserError(f"{self.token} holds neither vectors nor a LoRA.")
        if self.vectors:
            _check_vectors(self.vectors, self.card.base)
        if self.lora is not None:
            _check_lora(self.lora, self.card.base)
        if self.thumbnail is not None and not media_type(self.thumbnail):
            raise UserError("The thumbnail is not a PNG, JPEG or WebP of at most 250 kB.")

    @cached_property
    def identity(self) -> str:
        """sha256 of the file's bytes after its header, 64 hexadecimal digits; it does not depend on the token."""
        return storage.sha256(*tensor_bytes(_tensors(self)))


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
    whole: str = ""  # as in Concept

    @cached_property
    def thumbnail(self) -> bytes | None:
        """The thumbnail, decoded on demand: a listing of thousands does not need it. Raises UserError."""
        try:
            return from_data_url(self.thumbnail_url) if self.thumbnail_url else None
        except ValueError as error:
            raise damaged_file_error(self.card.token, str(error)) from error

    @property
    def vectors(self) -> int:
        """The number of embedding rows per text encoder; 0 without vectors."""
        return max((shape[0] for name, shape in self.tensors.items() if not name.startswith("lora_")), default=0)

    @property
    def lora_rank(self) -> int:
        """The largest rank of the plain LoRA layers; 0 without any."""
        plain = (parts for parts in self._layers.values() if _is_plain(parts))
        return max(((parts.get("lora_down.weight") or (0,))[0] for parts in plain), default=0)

    @property
    def kinds(self) -> str:
        """The kinds of its other layer changes as text: "LoHa", "DoRA", ...; empty without any."""
        return changes.kinds(parts for parts in self._layers.values() if not _is_plain(parts))

    @cached_property
    def _layers(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """Shapes by layer, then by the part of the tensor's name after the layer's."""
        layers: dict[str, dict[str, tuple[int, ...]]] = {}
        for name, shape in self.tensors.items():
            layer, _, part = name.partition(".")
            if part in changes.SUFFIXES:
                layers.setdefault(layer, {})[part] = shape
        return layers


def describe_contents(vectors: int, lora_rank: int, kinds: str = "") -> str:
    """Describe contents as text, e.g. `2 vectors + LoRA rank 4 + norms`; 0 and "" mean none. kinds: `Lora.kinds`."""
    texts = [f"{vectors} vector{'s' * (vectors > 1)}"] if vectors else []
    texts += [f"LoRA rank {lora_rank}"] if lora_rank else []
    return " + ".join(texts + ([kinds] if kinds else []))


def _is_plain(names: Iterable[str]) -> bool:
    """Return whether a layer's tensors are those of a plain LoRA."""
    return set(names) <= changes.PLAIN


def concept_to_bytes(concept: Concept, notes: Mapping[str, str] | None = None) -> bytes:
    """Serialize a concept. The same concept gives the same bytes. notes: extra text for the header, by key."""
    return b"".join(concept_to_chunks(concept, notes))


def concept_to_chunks(concept: Concept, notes: Mapping[str, str] | None = None) -> list[bytes | memoryview]:
    """Serialize to chunks: the header, then the tensors uncopied, because an SDXL LoRA can exceed 1 GB."""
    chunks = serialize(_tensors(concept), _metadata(concept) | dict(notes or {}))
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
        raise damaged_file_error(name, "damaged (sha256 differs from the one in its header)")
    try:
        vectors, lora = _read_tensors(data, layout, header.token)
        return Concept(header.token, header.card, vectors, lora, header.thumbnail, header.whole)
    except ValueError as error:
        raise damaged_file_error(name, str(error)) from error
    except UserError as error:
        raise UserError(f"{printable(name)} is refused. {error.message}", error.hint) from error


def read_header(path: Path, thumbnail: bool = True) -> Header:
    """Read only the header of the file at `path`; picture: include its thumbnail. Raises UserError."""
    name = os.path.basename(path)
    head, size = storage.read_head(path, _FIRST_READ_BYTES)
    try:
        if size > MAX_FILE_BYTES:
            raise ValueError("it is larger than 4 GB, the most I read")
        whole = 8 + header_length(head, size)
    except ValueError as error:
        raise not_read(head, size, name, str(error)) from error
    if whole > len(head):
        head, size = storage.read_head(path, whole)
    head = head[:whole]
    bare = head if thumbnail else _without_thumbnail(head)
    return _parse_header(head, parse_head_layout(bare, size - len(head) + len(bare), name), name, size)


# --- writing ----------------------------------------------------------------------------------------------------------

_EMPTY_CHECKSUM = "0" * 64  # placeholder in the header while its checksum is computed


def _tensors(concept: Concept) -> dict[str, np.ndarray]:
    """Return every tensor under its name in the file."""
    tensors = {_vectors_name(key, concept): vectors for key, vectors in concept.vectors.items()}
    for name, layer in (concept.lora.layers if concept.lora else {}).items():
        tensors[f"{name}.lora_down.weight"] = layer.down
        tensors[f"{name}.lora_up.weight"] = layer.up
        tensors[f"{name}.alpha"] = np.array(layer.alpha, np.float32)
    for name, change in (concept.lora.changes if concept.lora else {}).items():
        tensors |= {f"{name}.{part}": value for part, value in change.items()}
    return tensors


def _vectors_name(key: str, concept: Concept) -> str:
    if concept.lora is None:
        return key if concept.card.base == "sdxl" else "emb_params"
    return f"bundle_emb.{concept.token.slug}.{key if concept.card.base == 'sdxl' else 'string_to_param.*'}"


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
    if concept.whole:
        metadata[WHOLE] = concept.whole
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
        raise UserError(f"{printable(name)} is not one of our concepts.", "Import it: sdpersonal concepts import FILE")
    if metadata.get("sdpersonal.format") != _VERSION:
        raise UserError(f"{printable(name)} was made by a newer sdpersonal.", "Update sdpersonal.")
    written = metadata.get(_CHECKSUM_KEY, "")
    if storage.sha256(head.replace(_checksum_entry(written), _checksum_entry(_EMPTY_CHECKSUM))) != written:
        raise damaged_file_error(name, "damaged (its header was changed)")
    card = parse_card(metadata["sdpersonal.card"], name)
    token = Token.parse(card.token)
    shapes = {tensor: place.shape for tensor, place in layout.tensors.items()}
    identity = metadata.get("modelspec.hash_sha256", "").removeprefix("0x")
    picture, whole = metadata.get("modelspec.thumbnail", ""), metadata.get(WHOLE, "")
    if not re.fullmatch(r"([0-9a-f]{64})?", whole):
        raise damaged_file_error(name, f"its {WHOLE} is no sha256")
    return Header(token, card, shapes, picture, size, size - len(head), identity, whole)


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
        elif _LAYER.fullmatch(layer) and part in changes.SUFFIXES:
            layers.setdefault(layer, {})[part] = read_tensor(data, layout, name)
        else:
            unknown.append(name)
    for layer, tensors in layers.items():
        if not (_is_plain(tensors) or changes.is_whole(tensors)):
            unknown += [f"{layer}.{part}" for part in tensors]
    if unknown:
        raise ValueError(f"I do not know its tensors {printable(', '.join(unknown[:3]))}")
    if not layers:
        return vectors, None
    plain = {name: _build_layer(name, parts) for name, parts in layers.items() if _is_plain(parts)}
    return vectors, Lora(plain, {name: parts for name, parts in layers.items() if name not in plain})


def _build_layer(name: str, parts: dict[str, np.ndarray]) -> LoraLayer:
    if missing := changes.PLAIN - parts.keys():
        raise ValueError(f"layer {printable(name)} lacks its {' and '.join(sorted(missing))}")
    if parts["alpha"].size != 1:
        raise ValueError(f"the alpha of layer {printable(name)} is not one number")
    return LoraLayer(parts["lora_down.weight"], parts["lora_up.weight"], float(parts["alpha"].reshape(())))


# --- validation of a concept ------------------------------------------------------------------------------------------


def check_token(token: Token) -> None:
    """Raise UserError unless the token is valid for a concept: it has an owner, and `Token.parse` reads it the same."""
    if token.owner is None:
        raise UserError(f"{token} has no owner.", f"Write it like <me/{token.name}>.")
    if Token.parse(str(token)) != token or Token.parse(str(token.unversioned())) != token.unversioned():
        raise UserError(f"{token.unversioned()} ends like a version.", "Leave out the -v and the number.")


def _check_vectors(vectors: dict[str, np.ndarray], base: BaseKind) -> None:
    encoders = {"clip_l", "clip_g"} if base == "sdxl" else {"clip_l"}
    if vectors.keys() != encoders:
        raise UserError(f"A concept for {base} has vectors {sorted(encoders)}, not {printable(str(sorted(vectors)))}.")
    for key, rows in vectors.items():
        width = EMBEDDING_WIDTHS.get(base, {}).get(key)
        if rows.dtype != np.float32 or rows.ndim != 2 or (width and rows.shape[1] != width):
            wanted = f"(n, {width or 'dim'}) float32"
            raise UserError(f"The vectors {key} for {base} must be {wanted}, not {rows.shape} {rows.dtype}.")
        if not 1 <= len(rows) <= MAX_VECTORS:
            raise UserError(f"A concept has 1 to {MAX_VECTORS} vectors, not {len(rows)}.")
        if not (finite := np.isfinite(rows).all(axis=1)).all():
            raise UserError(f"Row {finite.argmin()} of the vectors {key} holds numbers that are not finite.")
    if len({len(rows) for rows in vectors.values()}) > 1:
        raise UserError("The encoders' vectors differ in number.")


def _check_lora(lora: Lora, base: BaseKind) -> None:
    if not lora.layers and not lora.changes:
        raise UserError("The LoRA has no layers.")
    encoders = ("unet", "te1", "te2") if base == "sdxl" else ("unet", "te")
    for name in (*lora.layers, *lora.changes):
        match = _LAYER.fullmatch(name)
        if not match or match[1] not in encoders or (name in lora.layers and name in lora.changes):
            raise UserError(f"{printable(name)} is not a LoRA layer of {base}.")
        plain = name in lora.layers
        problem = _layer_problem(lora.layers[name]) if plain else _change_problem(lora.changes[name])
        if problem:
            raise UserError(f"LoRA layer {printable(name)}: {problem}.")


def _change_problem(change: changes.Change) -> str | None:
    return "it is a plain LoRA" if _is_plain(change) else changes.problem(change)


def _layer_problem(layer: LoraLayer) -> str | None:
    down, up = layer.down, layer.up
    if not {down.dtype, up.dtype} <= {np.dtype(np.float32), np.dtype(np.float16)}:
        return f"weights must be float32 or float16, not {down.dtype} and {up.dtype}"
    same_kind = down.ndim == up.ndim and down.ndim in (2, 4)
    if not same_kind or up.shape[1] != down.shape[0] or up.shape[2:] not in ((), (1, 1)):
        return f"shapes {up.shape} and {down.shape} do not multiply"
    if 0 in down.shape or 0 in up.shape:
        return "it is empty"
    if not (np.isfinite(down).all() and np.isfinite(up).all()):
        return "it holds numbers that are not finite"
    if layer.alpha == 0 and not up.any():
        return None  # PEFT's inactive layer; zeros keep it inactive in programs that read alpha 0 as the rank
    if not (math.isfinite(layer.alpha) and 0 < layer.alpha <= changes.MAX_ALPHA_PER_RANK * layer.rank):
        return f"alpha {layer.alpha:g} with rank {layer.rank} is out of bounds"
    return None
