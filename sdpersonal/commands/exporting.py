"""`concepts export`."""

from __future__ import annotations

from collections.abc import Callable

from ..config import Settings

COMMANDS: dict[str, tuple[Callable, type[Settings]]] = {}
