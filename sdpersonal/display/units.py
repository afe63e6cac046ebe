"""Format bytes and durations for people, in the same words on the command line and in the app.

`humanize` is not used: it has neither "1:05 min" for a line that is updated in place nor "less than a minute", and says
"Bytes".
"""

from __future__ import annotations

GB = 1e9  # bytes


def format_bytes(count: int) -> str:
    """Format a number of bytes: 300 bytes, 1.2 kB, 3.1 MB, 2.0 GB."""
    if count < 1000:
        return f"{count} bytes"
    size, unit = (1e3, "kB") if count < 1e6 else (1e6, "MB") if count < GB else (GB, "GB")
    return f"{count / size:,.1f} {unit}"


def format_duration(seconds: float) -> str:
    """Format a duration exactly: 8 s, 1:05 min, 2:10 h."""
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded} s"
    unit, name = (60, "h") if rounded >= 3600 else (1, "min")
    large, small = divmod(round(seconds / unit), 60)
    return f"{large}:{small:02d} {name}"


def format_minutes(seconds: float) -> str:
    """Format an estimated duration: "less than a minute", "4 minutes", "2 hours"."""
    if seconds < 50:
        return "less than a minute"
    if seconds < 90:
        return "a minute"
    return f"{round(seconds / 60)} minutes" if seconds < 5400 else f"{round(seconds / 3600)} hours"
