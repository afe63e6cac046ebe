"""Put images into batches: of one request or of several, with equal LoRAs or with LoRAs of their own.

Images are predicted together if all is equal that the loop of denoising has one of: size, steps, scheduler, guidance,
the guidance scales of styles, the places of subjects, and the number of contexts that a prompt takes.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from ..concepts.concept import Concept
from ..config import GenerateRequest
from ..models import StableDiffusion
from .denoise import SamplingConfig
from .img2img import InitImage, upscaled_size
from .prompt_encoding import ImagePrompts, Mix, num_chunks
from .prompt_resolution import LoraWeight


@dataclass(frozen=True)
class GenerationPlan:
    """The settings that all images of a request share. index: of the request among those generated together."""

    request: GenerateRequest
    sampling: SamplingConfig
    size: tuple[int, int]
    init_image: InitImage | None
    fast_concept: Concept | None
    index: int = 0

    @property
    def passes(self) -> int:
        return 2 if self.request.hires_scale > 1 else 1

    @property
    def final_size(self) -> tuple[int, int]:
        """The size of the last pass, (width, height)."""
        return upscaled_size(self.size, self.request.hires_scale) if self.passes == 2 else self.size

    @property
    def fast_lora(self) -> LoraWeight | None:
        """The LoRA of the request's `fast`, which is active in all steps."""
        concept = self.fast_concept
        return LoraWeight(concept.identity, 1.0, concept.lora) if concept and concept.lora else None

    @property
    def second_pass(self) -> SamplingConfig:
        return replace(self.sampling, strength=self.request.strength)

    @property
    def batch_key(self) -> tuple[Hashable, ...]:
        """What is equal for requests whose images can be in one batch."""
        init = self.init_image
        images = (init.image_sha256, init.mask_sha256) if init else None
        second = (self.request.hires_scale, self.request.strength) if self.passes == 2 else None
        return self.sampling, self.size, images, second, self.request.clip_skip


@dataclass(frozen=True)
class ImageJob:
    """One image of a request.

    template: the template that the prompt was chosen from, or ""; mixes: the LoRAs of every step, one mix for each
    part that is predicted; batch_key: jobs with equal keys can be generated in one batch, with any mixes.
    """

    plan: GenerationPlan
    prompts: ImagePrompts
    seed: int
    variation_seed: int
    template: str
    mixes: tuple[tuple[Mix, ...], ...]
    batch_key: tuple[Hashable, ...]

    @classmethod
    def of(
        cls,
        base: StableDiffusion,
        plan: GenerationPlan,
        prompts: ImagePrompts,
        seeds: tuple[int, int],
        template: str,
    ) -> ImageJob:
        """Build a job. seeds: of the image and of its variation."""
        parts = [part.prompts for part in prompts.subjects] or [prompts]
        by_part = [part.mixes_by_step(plan.sampling.steps) for part in parts]
        mixes = tuple(tuple(mix for part in step for mix in part) for step in zip(*by_part, strict=True))
        scales = tuple(part.scales_by_step(plan.sampling.steps) for part in parts)
        regions = tuple(part.subject.region for part in prompts.subjects)
        contexts = tuple(num_chunks(base, part) for part in parts)
        return cls(plan, prompts, *seeds, template, mixes, (*plan.batch_key, scales, regions, contexts))

    @property
    def num_predictions(self) -> int:
        """The number of UNet predictions for a batch of such images, over all passes."""
        second = self.plan.second_pass.num_predictions if self.plan.passes == 2 and not self.prompts.subjects else 0
        return self.plan.sampling.num_predictions + second

    @property
    def num_rows(self) -> int:
        """The number of predictions of a step, at most."""
        return self.prompts.num_rows(self.plan.sampling.has_negative)


def batches_of_request(jobs: Sequence[ImageJob], max_rows: int) -> Iterator[list[ImageJob]]:
    """Group consecutive images that can be generated together and have equal LoRAs; max_rows: see `split_batch`."""
    for _, group in groupby(jobs, key=lambda job: (job.batch_key, job.mixes)):
        yield from split_batch(list(group), max_rows)


def group_by_kind(requests: Sequence[Sequence[ImageJob]]) -> list[list[ImageJob]]:
    """Group the images of several requests, each given as its images, by what can be generated together.

    Requests are sorted by the kind and the LoRAs of their first image. Their images stay in order, so a request with
    images of several kinds is in several groups.
    """
    firsts = [jobs[0] for jobs in requests]
    kinds, mixes = dict.fromkeys(job.batch_key for job in firsts), dict.fromkeys(job.mixes for job in firsts)
    ranks = {key: rank for keys in (kinds, mixes) for rank, key in enumerate(keys)}
    in_order = sorted(requests, key=lambda jobs: (ranks[jobs[0].batch_key], ranks[jobs[0].mixes]))
    images = [job for jobs in in_order for job in jobs]
    return [list(group) for _, group in groupby(images, key=lambda job: job.batch_key)]


def split_batch(jobs: Sequence[ImageJob], max_rows: int) -> Iterator[list[ImageJob]]:
    """Split images of one kind into batches. max_rows: of a step's predictions, two an image if it has neither styles
    nor subjects."""
    count = max(1, max_rows // max(2, jobs[0].num_rows))
    yield from (list(jobs[first : first + count]) for first in range(0, len(jobs), count))


def by_mix(jobs: Sequence[ImageJob]) -> list[list[ImageJob]]:
    """Split a batch into consecutive groups of one size, each with one mix: one group if all are equal."""
    runs = [list(run) for _, run in groupby(jobs, key=lambda job: job.mixes)]
    return runs if len({len(run) for run in runs}) == 1 else [[job] for job in jobs]


def place_in_batch(jobs: Sequence[ImageJob], index: int) -> tuple[int, int]:
    """Return the batch's size and the place of an image in it, for its recipe.

    Another request cannot have the same mixed batch, so its images count as generated alone, which is the same but for
    rounding.
    """
    return (len(jobs), index) if len({job.mixes for job in jobs}) == 1 else (1, 0)
