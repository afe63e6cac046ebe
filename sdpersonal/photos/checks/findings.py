"""Define the findings: what can be wrong with a set of photos, and the advice for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

FindingName = Literal[
    "few",
    "small",
    "near-duplicates",
    "blurred",
    "sideways",
    "dark",
    "burnt-out",
    "washed-out",
    "one-background",
    "two-subjects",
    "wrong-class",
    "no-captions",
    "photographs",
]
_MAX_NAMES = 6  # photos listed by name in a line; the others are counted

# The effect on the concept, and what to change.
_ADVICE: dict[FindingName, tuple[str, str]] = {
    "few": ("What else is in them will be learned as part of it.", "Use 4 to 10, each in another place."),
    "small": ("Enlarged photos make generated images soft.", "Take larger photos, or train at a lower --resolution."),
    "near-duplicates": (
        "What they share counts twice, and images will copy it.",
        "Keep the best one; take the others from another side or in another place.",
    ),
    "blurred": ("Images of it will be blurred too.", "Leave them out, or take them again with more light."),
    "sideways": (
        "It will sometimes be generated lying on its side.",
        "Turn them upright, or leave them if they were meant so.",
    ),
    "dark": ("It will be generated in the dark, without detail.", "Brighten them, or take them again with more light."),
    "burnt-out": ("Where all is white there is nothing to learn.", "Take them again with less light."),
    "washed-out": ("It will be generated as if in fog.", "Raise their contrast, or take them again."),
    "one-background": (
        "The background will be learned as part of it.",
        "Take some elsewhere, or name the background: 01.txt beside 01.jpg with '{} on a white wall' in it.",
    ),
    "two-subjects": (
        "One token cannot mean both: images will show a mixture.",
        "Put each subject in a folder of its own and train two concepts. Ignore this if it is the same one.",
    ),
    "wrong-class": (
        "What the base knows of that class will be mixed into it.",
        "Check --class: the most ordinary word for what the photos show.",
    ),
    "photographs": (
        "Of photographs it will keep colours and rough shapes.",
        "For a likeness, train on Stable Diffusion: --base sd15.",
    ),
    "no-captions": (
        "The things in the photos will come along with the style.",
        "Say what is in each: 01.txt beside 01.jpg with 'a house in the style of {}' in it.",
    ),
}


@dataclass(frozen=True)
class Finding:
    """One problem of a set of photos.

    name: the kind of problem; photos: names of the photos concerned; message: what is wrong; effect: the consequence
    for the concept; hint: what to change.
    """

    name: FindingName
    photos: tuple[str, ...]
    message: str
    effect: str
    hint: str

    def as_json(self) -> dict[str, Any]:
        """Return the finding as JSON. Programs read these keys, so they must not change."""
        return {
            "name": self.name,
            "photos": self.photos,
            "problem": self.message,
            "effect": self.effect,
            "fix": self.hint,
        }


@dataclass(frozen=True)
class Report:
    """All findings in a set of `count` photos; none means that the set is ready for training."""

    count: int
    findings: tuple[Finding, ...] = ()

    def lines(self) -> list[str]:
        """Format for a terminal: a summary, then two lines for each finding."""
        photos = "1 photo" if self.count == 1 else f"{self.count} photos"
        if not self.findings:
            return [f"{photos}: nothing to change."]
        count = "one thing" if len(self.findings) == 1 else f"{len(self.findings)} things"
        lines = [f"{photos}, {count} to look at before training:"]
        for finding in self.findings:
            lines += [f"  {finding.name}: {finding.message} {finding.effect}", f"    {finding.hint}"]
        return lines

    def as_json(self) -> dict[str, Any]:
        """Return {"photos": count, "findings": [{"name", "photos", "problem", "effect", "fix"}]}."""
        return {"photos": self.count, "findings": [finding.as_json() for finding in self.findings]}


def make_finding(name: FindingName, photos: Sequence[str], problem: str) -> Finding:
    """Make a finding with the advice for `name`. `{}` in `problem` becomes the photos' names."""
    return Finding(name, tuple(photos), problem.replace("{}", _join_names(photos)), *_ADVICE[name])


def _join_names(names: Sequence[str]) -> str:
    """Format "a, b and c"; of many, the first six and the number of the others."""
    if len(names) > _MAX_NAMES:
        return f"{', '.join(names[:_MAX_NAMES])} and {len(names) - _MAX_NAMES} more"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
