"""Run the commands `hub ...`: share concepts on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from ...concepts.library import Library
from ...config import TokenText
from ...prompts import Token
from ..terminal import print_json, report_done, say
from .concepts_list import ListArgs


class PushArgs(ListArgs):
    """Upload a concept to the Hugging Face Hub. Without --yes, only show every file that would be sent, and why."""

    token: Annotated[TokenText, tyro.conf.Positional, tyro.conf.arg(metavar="TOKEN")]
    """For example '<me/duck>'."""
    hub_id: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="HUB_ID")]
    """Repository, for example karpathy/cool-object; created if it does not exist."""
    images: tuple[Path, ...] = ()
    """Images generated with the concept, for a grid on its page. Default: its thumbnail."""
    public: bool = False
    """Make a new repository public instead of private."""
    to: Path | None = None
    """Write the files into this new folder instead of sending them."""
    yes: bool = False
    """Send the files."""
    dry_run: bool = False
    """Only show the files, even with --yes."""


class PullArgs(ListArgs):
    """Download a concept from the Hugging Face Hub."""

    hub_id: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="HUB_ID")]
    """Repository, for example sd-concepts-library/cat-toy."""
    as_: Annotated[TokenText | None, tyro.conf.arg(name="as")] = None
    """Token for the concept, for example '<me/duck>'. Default: the one in its files."""
    replace: bool = False
    """Replace the concept that has this token."""
    duplicates: Literal["refuse", "versions"] = "refuse"
    """If another concept has the token: `refuse` the new one, or add it as the next of the `versions`."""


def push_concept(settings: PushArgs) -> int:
    from ... import storage
    from ...concepts import hub_transfer

    concept = Library(settings.library).get(Token.parse(settings.token))
    sent = hub_transfer.files_to_push(concept, settings.hub_id, settings.images)
    facts = {"files": [{"name": file.name, "size": len(file.data), "purpose": file.purpose} for file in sent]}
    if not settings.json_:
        width = max(len(file.name) for file in sent)
        say("\n".join(f"{file.name:{width}}  {len(file.data) / 1e3:10.1f} kB  {file.purpose}" for file in sent))
        if not concept.card.license:
            say("The concept has no licence, so nobody may use it. Set one:")
            say(f"  sdpersonal concepts edit '{concept.token}' --licence CC-BY-4.0")
    if settings.to:
        with storage.new_folder(settings.to) as folder:
            for file in sent:
                storage.write_bytes(folder / file.name, file.data)
    address = None
    if settings.yes and not settings.dry_run:
        address = hub_transfer.push(concept, sent, settings.hub_id, settings.public)
    if settings.json_:
        print_json(facts | {"pushed": address})
    else:
        say(f"pushed: {address}" if address else "Nothing was sent. Add --yes to send it.")
    return 0


def pull_concept(settings: PullArgs) -> int:
    from ...concepts import hub_transfer

    as_ = Token.parse(settings.as_) if settings.as_ else None
    concept = hub_transfer.pull(settings.hub_id, as_)
    token = Library(settings.library).add_imported(
        concept, settings.replace, count_up=settings.duplicates == "versions"
    )
    return report_done(settings.json_, [token], "pulled")


COMMANDS = {
    "hub push": (push_concept, PushArgs),
    "hub pull": (pull_concept, PullArgs),
}
