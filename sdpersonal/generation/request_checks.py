"""Check requests before a model is loaded for them: loading can take minutes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from ..config import MAX_IMAGES, SEEDS, GenerateRequest, check_total_work
from ..errors import UserError
from ..prompts import (
    ConceptRef,
    Mention,
    Token,
    Wildcards,
    all_prompts,
    count_prompts,
    has_alternatives,
    nth_prompt,
    parse,
    sample_prompt,
)
from ..prompts.concept_syntax import BRACKETED, parse_concept_ref
from .img2img import mask_note
from .prompt_resolution import ConceptSource, check_kind, check_makes_few_steps_enough

_MAX_CHOICES = 100  # of one pair of brackets


def check_requests(
    requests: Sequence[GenerateRequest],
    concepts: ConceptSource,
    wildcards: Path | None = None,
    kind: str | None = None,
    elsewhere: Iterable[Token] = (),
) -> str:
    """Check requests without loading their model; return a note about their mask, or "".

    Args:
        kind: of the model that will be loaded, None if it is known only after loading.
        elsewhere: tokens that need not be in `concepts`.

    Raises:
        UserError: as `Generator.generate` would later, for missing wildcard lists and concepts, concepts of another
            kind of model, and init images and masks that cannot be read.
    """
    wildcard_lists, note = Wildcards(wildcards), ""
    tokens = tokens_of(text for request in requests for text in _texts(request, wildcard_lists))
    check_tokens([token for token in tokens if token not in set(elsewhere)], concepts, kind)
    for fast in dict.fromkeys(request.fast for request in requests if request.fast):
        check_makes_few_steps_enough(concepts.get(Token.parse(fast)))
        check_tokens([Token.parse(fast)], concepts, kind)
    for request in {(request.init_image, request.mask): request for request in requests}.values():
        note = mask_note(request) or note
    return note


def tokens_of(texts: Iterable[str]) -> list[Token]:
    """Return the concepts in prompts whose alternatives are chosen, without repetition. Raises UserError."""
    return list(dict.fromkeys(mention.token for text in dict.fromkeys(texts) for mention in parse(text).mentions))


@contextmanager
def naming_request(index: int, count: int) -> Iterator[None]:
    """Say in a UserError which of several requests it is about."""
    try:
        yield
    except UserError as error:
        if count > 1:
            error.message = f"Request {index + 1} of {count}: {error.message}"
        raise


def check_template(
    request: GenerateRequest, concepts: ConceptSource, wildcards: Path | None = None, kind: str | None = None
) -> str:
    """Check a request whose alternatives will all be used at some time; wildcard lists are not searched for tokens."""
    for text in (request.prompt, request.negative):
        count_prompts(text, Wildcards(wildcards))
        check_tokens([mention.token for mention in named(text)], concepts, kind)
    return check_requests([request.model_copy(update={"prompt": "", "negative": ""})], concepts, wildcards, kind)


def named(template: str) -> list[Mention]:
    """Return the concepts in a template's own text, without repetition, chosen or not. Raises UserError."""
    parts = (part for reference in references_in(template) for part in reference.parts)
    return list({str(part.token): part for part in parts}.values())


def references_in(template: str) -> list[ConceptRef]:
    """Return the references in a template's own text, chosen or not. Raises UserError."""
    return [parse_concept_ref(choice) for word in BRACKETED.findall(template) for choice in _choices(word)]


def _choices(word: str) -> list[str]:
    """Return what can stand in a concept's brackets, `me/duck:{0.5|1}`; nothing where a wildcard list decides."""
    if not has_alternatives(word):
        return [word]
    try:
        return list(islice(all_prompts(word, Wildcards(None)), _MAX_CHOICES))
    except UserError:
        return []


def check_tokens(tokens: Iterable[Token], concepts: ConceptSource, kind: str | None) -> None:
    """Raise UserError if a concept does not exist, or was made for another kind of model."""
    for token in tokens:
        concept = concepts.get(token)
        if kind is not None:
            check_kind(concept, kind)


@dataclass(frozen=True)
class ImageRequest:
    """What one image of a request has of its own. template: the prompt it was chosen from, "" if that is the same."""

    prompt: str
    negative: str
    seed: int
    variation_seed: int
    template: str


def images_of(request: GenerateRequest, wildcards: Wildcards) -> Iterator[ImageRequest]:
    """Yield what each image of a request has of its own, alternatives chosen. Raises UserError for too many images."""
    for i, prompt in enumerate(prompts_of(request, wildcards)):
        number = i % request.num_images
        seed = (request.seed + (number if request.variation_strength is None else 0)) % SEEDS
        negative = sample_prompt(request.negative, seed, wildcards)
        template = request.prompt if prompt != request.prompt else ""
        yield ImageRequest(prompt, negative, seed, (request.variation_seed + number) % SEEDS, template)


def prompts_of(request: GenerateRequest, wildcards: Wildcards) -> Iterator[str]:
    """Yield the prompt of each image, alternatives chosen. Raises UserError for too many images."""
    template = request.prompt
    if not request.all_combinations:
        first = getattr(request, request.seed_field)
        yield from (sample_prompt(template, first + i, wildcards) for i in range(request.num_images))
        return
    number = count_prompts(template, wildcards)
    if number * request.num_images > MAX_IMAGES:
        raise UserError(
            f"The prompt has {number:,} alternatives, generated {request.num_images} times each; "
            f"up to {MAX_IMAGES} images are allowed.",
            "Ask for fewer, or leave out --all-combinations: each image then gets a random alternative.",
        )
    check_total_work(request, number * request.num_images)
    for i in range(number):
        yield from [nth_prompt(template, i, wildcards)] * request.num_images


def _texts(request: GenerateRequest, wildcards: Wildcards) -> Iterator[str]:
    """Yield the prompts and negative prompts of the request's images."""
    for image in images_of(request, wildcards):
        yield from (image.prompt, image.negative)
