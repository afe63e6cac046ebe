"""Hold the version, which packaging reads without importing anything."""

__version__ = "0.1.0"
