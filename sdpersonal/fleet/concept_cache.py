"""Cache a worker's concepts by identity: they are read from the store at first use, and stay while there is room."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from ..concepts.concept import Concept
from ..concepts.concept_file import concept_from_bytes
from ..errors import UserError
from ..prompts import Token
from .image_task import PinnedConcept
from .store import Store, keep_trying

MAX_CACHE_BYTES = 2_000_000_000  # of concept files: about 50 LoRAs of rank 16 for SDXL, or thousands for SD 1.5


@dataclass(frozen=True)
class PinnedConcepts:
    """The concepts of one image by token, as a generator looks them up."""

    concepts: Mapping[str, Concept]

    def get(self, token: Token) -> Concept:
        if str(token) not in self.concepts:  # the driver has resolved the same prompts
            raise UserError(f"No concept {token}.", "See: sdpersonal concepts list")
        return self.concepts[str(token)]


class ConceptCache:
    """Least recently used concepts are dropped first; what a running request holds stays valid. Thread-safe.

    max_bytes: of the files of all together; patience: seconds for which a store that fails is tried again.
    """

    def __init__(self, store: Store, max_bytes: int = MAX_CACHE_BYTES, patience: float = 900.0):
        self._store, self._max_bytes, self._patience = store, max_bytes, patience
        self._concepts: OrderedDict[PinnedConcept, tuple[Concept, int]] = OrderedDict()
        self._lock = threading.Lock()
        self.misses = 0

    @property
    def num_bytes(self) -> int:
        with self._lock:
            return sum(size for _, size in self._concepts.values())

    def resolve(self, concepts: Mapping[str, PinnedConcept]) -> PinnedConcepts:
        """Return the concepts of an image. Raises UserError if one is not in the store, or damaged; StoreError."""
        return PinnedConcepts({token: self.get(pinned) for token, pinned in concepts.items()})

    def get(self, pinned: PinnedConcept) -> Concept:
        with self._lock:
            if pinned in self._concepts:
                self._concepts.move_to_end(pinned)
                return self._concepts[pinned][0]
        concept, size = self._read(pinned)
        with self._lock:
            self.misses += 1
            self._concepts[pinned] = concept, size
            total = sum(size for _, size in self._concepts.values())
            while total > self._max_bytes and len(self._concepts) > 1:
                total -= self._concepts.popitem(last=False)[1][1]
        return concept

    def _read(self, pinned: PinnedConcept) -> tuple[Concept, int]:
        """Read a concept from the store, and prove that it is the one that was pinned."""
        data = keep_trying(lambda: self._store.read(pinned.key), self._patience)
        if data is None:
            raise UserError(f"The concept {pinned.identity[:8]} is not in the storage any more.", _AGAIN)
        concept = concept_from_bytes(data, pinned.key)  # checks the tensors' sha256
        if PinnedConcept.of(concept) != pinned:
            raise UserError(f"The concept {pinned.identity[:8]} is another one in the storage.", _AGAIN)
        return concept, len(data)


_AGAIN = "Give the command again."
