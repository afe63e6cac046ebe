"""axe-core, which finds what keeps people with disabilities from using a page, in a real browser."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from support.browser import Browser

# Rules of WCAG 2.2 AA and axe's own best practices.
_TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


def violations(window: Browser) -> list[str]:
    """Return what axe finds on the page as it is now: the rule, and the elements that break it."""
    if not window.run("return Boolean(window.axe)"):
        window.run(_source())
    found = window.run(
        "return axe.run(document, {runOnly: {type: 'tag', values: arguments[0]}, resultTypes: ['violations']})"
        ".then(result => result.violations.map(rule => `${rule.id}: ${rule.help}: `"
        " + rule.nodes.slice(0, 5).map(node => `${node.target.join(' ')} ${node.any.map(a => a.message).join(' ')}`)"
        ".join(' | ')))",
        _TAGS,
    )
    return list(found)


def _source() -> str:
    spec = importlib.util.find_spec("axe_playwright_python")
    assert spec and spec.submodule_search_locations
    return (Path(spec.submodule_search_locations[0]) / "axe.min.js").read_text()
