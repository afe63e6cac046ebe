"""Looks at a set of photos before anything is learned from it, and says what is wrong with it in plain words.

`examine` finds, `Verdict` tells, `contact_sheet` shows. Every threshold was set on real and on made sets, so that good
sets pass in silence; docs/photos.md has the figures. No torch: whoever has a CLIP hands it in as `Eyes`.
"""

from .clip_features import Eyes
from .contact_sheet import contact_sheet
from .findings import Finding, Name, Verdict
from .run import examine

__all__ = ["Eyes", "Finding", "Name", "Verdict", "contact_sheet", "examine"]
