"""Check licences against SPDX's list and the RAIL licences of models, which SPDX does not list."""

from __future__ import annotations

import difflib
from contextlib import suppress

from ..errors import UserError, printable

# Spelled as on the Hugging Face Hub. The first is Stable Diffusion 1.x's own, the third SDXL's.
RAIL_LICENCES = ("creativeml-openrail-m", "openrail", "openrail++", "bigscience-openrail-m", "bigcode-openrail-m")
_COMMON = ("CC0-1.0", "CC-BY-4.0", "CC-BY-NC-4.0", "CC-BY-SA-4.0", "MIT", "Apache-2.0")
# The licences on the Hub's list that are common for images and small models; others are `other` there, with a name.
_HUB_LICENCES = {
    *("apache-2.0", "mit", "cc0-1.0", "cc-by-4.0", "cc-by-3.0", "cc-by-sa-4.0", "cc-by-sa-3.0", "cc-by-nc-4.0"),
    *("cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0", "cc-by-nd-4.0", "gpl-3.0", "agpl-3.0", "bsd-3-clause", "unlicense"),
    *RAIL_LICENCES,
}


def spdx_name(text: str) -> str:
    """Return the licence in SPDX spelling: `mit` is `MIT`, `apache-2.0 or mit` is `Apache-2.0 OR MIT`; "" stays "".

    Raises UserError for what is neither on SPDX's list nor a RAIL licence nor `LicenseRef-...`.
    """
    from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

    if not text or text.lower() in RAIL_LICENCES:
        return text.lower()
    try:
        return canonicalize_license_expression(text)
    except InvalidLicenseExpression:
        raise UserError(f"{printable(text)} is not a known licence.", _suggestion(text)) from None


def hub_licence(licence: str) -> dict[str, str]:
    """Return a model card's front matter: {"license": ...}, with "license_name" where the Hub has no such id."""
    word = licence.lower().removesuffix("-only").removesuffix("-or-later")
    if not licence or word in _HUB_LICENCES:
        return {"license": word} if licence else {}
    return {"license": "other", "license_name": licence}


def _suggestion(text: str) -> str:
    names = {name: name for name in RAIL_LICENCES}
    with suppress(ImportError):  # the list is private to packaging, and only the hint needs it
        from packaging.licenses._spdx import LICENSES

        names |= {name: entry["id"] for name, entry in LICENSES.items()}
    if close := difflib.get_close_matches(text.lower().replace(" ", "-"), names, n=3):
        return f"Did you mean {' or '.join(names[name] for name in close)}? All names: spdx.org/licenses"
    return f"For example {', '.join(_COMMON)}, or LicenseRef-SomeName for one of your own."
