"""Render HTML pages of one file each, which need no server and no network.

Texts on a page are untrusted: Jinja2 escapes every value, and the page's own policy allows its one style sheet and its
one script by their sha256, and nothing to be sent. A page's template extends `base.html`, or `search.html`, which has a
field to search in; its style and script are the shared ones and then its own.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

_SHARED = Path(__file__).parent


def render_template(template: Path, **values: object) -> str:
    """Render the template, which finds `base.html`, `search.html` and the files beside it. The same values give the
    same text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    loader = FileSystemLoader([template.parent, _SHARED])
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals["source"] = lambda name: Markup(loader.get_source(environment, name)[0])  # ours, as it is
    environment.filters["csp_hash"] = _csp_hash
    return environment.get_template(template.name).render(values)


def data_url(data: bytes, media_type: str) -> str:
    """Return a file's content as a URL, for pages that load nothing."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def _csp_hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
