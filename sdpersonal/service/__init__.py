"""What the app's page can ask for, without the page: every button's work is a function or a method here."""

from __future__ import annotations

from dataclasses import dataclass

from .drawing import Studio, View
from .house import House


@dataclass(frozen=True)
class App:
    """house: where things are kept; studio: draws, and knows which base is loaded."""

    house: House
    studio: Studio


__all__ = ["App", "House", "Studio", "View"]
