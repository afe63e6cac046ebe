"""Keep the concepts that users upload, and remember whose they are.

concepts/IDENTITY-CARD.safetensors     the file, once for all who uploaded it
users/NAME/IDENTITY-CARD.json          that this user uploaded it
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

from ...concepts.concept_file import concept_from_bytes, concept_to_bytes
from ...errors import UserError, printable
from ..image_task import PinnedConcept
from ..store import Store

MAX_CONCEPT_BYTES = 512 << 20
MAX_USER_CONCEPTS = 1000
MAX_USER_BYTES = 20 << 30
USERS = "users"


class UploadedConcepts:
    """The concepts of all users. Methods may be called from any thread, and raise UserError."""

    def __init__(self, store: Store):
        self._store = store
        self._sizes: dict[str, dict[str, int]] = {}  # by user and name
        self._lock = threading.Lock()

    def size(self, user: str, name: str) -> int | None:
        """Return the bytes of a concept that the user uploaded, None if there is none of that name."""
        with self._lock:
            return self._of(user).get(name)

    def missing(self, user: str, concepts: Iterable[PinnedConcept]) -> list[str]:
        """Return the names of those that the user has not uploaded."""
        with self._lock:
            uploaded = self._of(user)
            return sorted(str(pinned) for pinned in concepts if str(pinned) not in uploaded)

    def check_room(self, user: str, size: int) -> None:
        """Raise UserError if the user cannot upload so many bytes more."""
        with self._lock:
            sizes = self._of(user)
            if len(sizes) >= MAX_USER_CONCEPTS or sum(sizes.values()) + size > MAX_USER_BYTES:
                raise UserError(
                    f"You have {len(sizes)} concepts of {sum(sizes.values()) / 1e9:.1f} GB on the fleet; up to "
                    f"{MAX_USER_CONCEPTS} and {MAX_USER_BYTES / 1e9:.0f} GB are kept.",
                    "Ask who runs the fleet to remove some.",
                )

    def add(self, user: str, name: str, data: bytes) -> str:
        """Check and keep a concept file; return its name. name: its identity, or its whole name.

        Raises: UserError for a file that is damaged, no concept of this program, or another one.
        """
        concept = concept_from_bytes(data, "The concept")
        pinned = PinnedConcept.of(concept)
        if name not in (pinned.identity, str(pinned)):
            raise UserError(f"The file is the concept {pinned}, not {printable(name, 100)}.")
        written = concept_to_bytes(concept)  # without what a stranger's header may have besides
        self._store.write_new(pinned.key, written)
        self._store.write_json(f"{USERS}/{user}/{pinned}.json", {"bytes": len(written)})
        with self._lock:
            self._of(user)[str(pinned)] = len(written)
        return str(pinned)

    def _of(self, user: str) -> dict[str, int]:
        """Return the user's concepts, read once: nobody else writes them."""
        if user not in self._sizes:
            sizes: dict[str, int] = {}
            for name in self._store.names(f"{USERS}/{user}"):
                content = self._store.read_json(f"{USERS}/{user}/{name}") or {}
                size = content.get("bytes")
                sizes[name.removesuffix(".json")] = size if isinstance(size, int) else 0
            self._sizes[user] = sizes
        return self._sizes[user]
