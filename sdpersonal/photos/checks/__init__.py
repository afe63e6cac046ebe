"""Looks at a set of photos before anything is learned from it, and says what is wrong with it in plain words.

`examine` finds, `Report` tells, `contact_sheet` shows. Every threshold was set on real and on made sets, so that good
sets pass in silence; docs/photos.md has the figures. No torch: whoever has a CLIP hands it in as `Eyes`.
"""

from .clip_features import ClipFeatures
from .contact_sheet import contact_sheet
from .findings import Finding, FindingName, Report
from .run import check

__all__ = ["ClipFeatures", "Finding", "FindingName", "Report", "check", "contact_sheet"]
