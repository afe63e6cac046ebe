"""Check a set of photos before training on it, and describe what is wrong with it in plain words.

`check` returns a `Report`, which `contact_sheet` draws. Every threshold was set on real and synthetic sets, so that
good sets have no findings; docs/photos.md has the figures. No torch: the caller passes a CLIP as `ClipFeatures`.
"""

from .clip_checks import ClipFeatures
from .contact_sheet import contact_sheet
from .examined import ExaminedPhoto
from .findings import Finding, FindingName, Report
from .run_checks import check, check_examined

__all__ = [
    "ClipFeatures",
    "ExaminedPhoto",
    "Finding",
    "FindingName",
    "Report",
    "check",
    "check_examined",
    "contact_sheet",
]
