"""Text from outside, made safe to print."""

from __future__ import annotations


def show(text: str, limit: int = 80) -> str:
    """Text from outside, safe to print: control, bidirectional and undecodable characters escaped, length bounded.

    >>> show("a\\x1b[31mb")
    'a\\\\x1b[31mb'
    """
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in cut)
