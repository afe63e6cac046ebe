"""Define the `Export` of a concept for one program, and what all exporters share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Set
from dataclasses import dataclass

import numpy as np

from ... import storage
from ...errors import UserError
from ..concept import Concept
from ..concept_file import concept_to_bytes
from ..importers.origin import ORIGIN, origin_json
from ..layer_changes import form, kind
from ..modelspec import modelspec_metadata
from ..strict_safetensors import tensor_bytes
from ..thumbnail import reencode_thumbnail

HUB_MODELS = {  # on the Hub
    "sd1": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd2": "stabilityai/stable-diffusion-2-1",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
}


@dataclass(frozen=True)
class Export:
    """Files for one program, and how they are used there.

    files: path in the export's folder -> content; destinations: the same paths -> where in the program they go;
    trigger_word: what stands for the concept in a prompt, "" where nothing does; lora_tag: what loads the LoRA in a
    prompt, if anything; install: the steps of installation, a sentence each; notes: what this program cannot read or
    does otherwise; python, terminal: an example, in which {prompt} is to be replaced by a prompt in quotes.
    """

    program: str
    files: dict[str, bytes]
    destinations: dict[str, str]
    trigger_word: str
    lora_tag: str = ""
    install: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    python: str = ""
    terminal: str = ""

    @property
    def prompt_text(self) -> str:
        """All that is typed in a prompt."""
        return f"{self.trigger_word} {self.lora_tag}".strip()


def trigger_words(concept: Concept, name: str) -> str:
    """Return what stands for the concept in a prompt: `name` if it has vectors, else its trigger words, if any."""
    return name if concept.vectors else " ".join(concept.card.trigger_words)


def example_prompt(concept: Concept, export: Export) -> str:
    """Return an example prompt."""
    if not export.trigger_word:
        prompt = f"a photo of a {concept.card.class_noun}" if concept.card.class_noun else "a photo"
    elif concept.card.kind == "style":
        prompt = f"a lighthouse in the style of {export.trigger_word}"
    else:
        prompt = f"a photo of {export.trigger_word}"
    return f"{prompt} {export.lora_tag}".strip()


def native_file(concept: Concept, notes: Mapping[str, str] | None = None) -> bytes:
    """Build our own file, under the unversioned token, its thumbnail re-encoded from pixels. notes: for its header."""
    thumbnail = reencode_thumbnail(concept.thumbnail) if concept.thumbnail else None
    return concept_to_bytes(dataclasses.replace(concept, token=concept.token.unversioned(), thumbnail=thumbnail), notes)


def embedding_file(concept: Concept) -> bytes:
    """Build our own file of the vectors alone."""
    return native_file(vectors_of(concept))


def lora_file(concept: Concept) -> bytes:
    """Build our own file of the LoRA alone."""
    return native_file(lora_of(concept))


def vectors_of(concept: Concept) -> Concept:
    """Return its vectors as a part that names the full concept, so that an import can join the parts again."""
    return dataclasses.replace(concept, lora=None, part_of=concept.identity) if concept.lora else concept


def lora_of(concept: Concept) -> Concept:
    """Return its LoRA, likewise."""
    return dataclasses.replace(concept, vectors={}, part_of=concept.identity) if concept.vectors else concept


def modelspec_header(part: Concept, tensors: dict[str, np.ndarray], trigger: str) -> dict[str, str]:
    """Build the header of a file in another program's layout, for a prompt's word `trigger` and these tensors.

    part: the vectors or the LoRA that the tensors belong to, of both encoders where each has a file.
    """
    has_lora = part.lora is not None
    thumbnail = reencode_thumbnail(part.thumbnail) if part.thumbnail else None
    metadata = modelspec_metadata(
        part.card, part.token.unversioned(), has_lora, storage.sha256(*tensor_bytes(tensors)), thumbnail
    )
    metadata |= {"format": "pt", ORIGIN: origin_json(part)}
    return metadata | ({"modelspec.trigger_phrase": trigger} if trigger else {})


def reads(concept: Concept, unread: Set[str]) -> bool:
    """Return whether a program reads all of the concept's layer changes. unread: the forms that it does not read."""
    changes = concept.lora.changes.values() if concept.lora else ()
    return not any(unread & {form(change), kind(change)} for change in changes)


def refuse_unread(concept: Concept, program: str, unread: Set[str]) -> None:
    """Raise UserError where a program does not read all of the concept's layer changes. unread: as for `reads`."""
    for change in concept.lora.changes.values() if concept.lora else ():
        if unread & {form(change), kind(change)}:
            reason = f"it changes layers as {kind(change)}, which that program does not read"
            raise not_exportable_error(
                concept, program, reason, "Export it with --format native, and generate with it here."
            )


def not_exportable_error(concept: Concept, program: str, reason: str, hint: str) -> UserError:
    return UserError(f"{concept.token} cannot be exported for {program}: {reason}.", hint)
