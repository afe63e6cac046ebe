"""Generate the images of requests: choose each image's prompt, group images into batches, and run the passes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from ..concepts.concept import Concept
from ..config import GenerateRequest
from ..config.scheduler_table import Scheduler, named
from ..errors import FieldError, Interrupted, UserError, printable
from ..image_metadata import Presence, Recipe, RecipeBase, RecipeConcept
from ..models import SizeConditioning, StableDiffusion, check_scheduler
from ..models.attention_maps import AttentionMaps
from ..models.model_info import ModelInfo
from ..models.offload import OffloadPlan, bytes_per_step, plan_offload
from ..models.oom import translate_oom
from ..models.safety_checker import grey_image
from ..prompts import Mention, Token, Wildcards
from ..version import __version__
from .batching import (
    GenerationPlan,
    ImageJob,
    batches_of_request,
    by_mix,
    group_by_kind,
    place_in_batch,
    split_batch,
)
from .composition import Box, SharedBackground, arrange, box_of, join, token_positions
from .denoise import ConditioningAt, InitLatents, SamplingConfig, denoise, noise_from_seed, slerp
from .image import GeneratedImage
from .img2img import encode_image, load_init_image, upscale
from .presence import MAX_CONCEPTS, PresenceMeter, named_concepts
from .previews import OnPrediction, Previews
from .prompt_encoding import ImagePrompts, Mix, PromptEmbedsCache, StepConditioner, SubjectPrompts
from .prompt_resolution import (
    ConceptSource,
    NoConcepts,
    PromptResolver,
    ResolvedPrompt,
    check_makes_few_steps_enough,
)
from .request_checks import images_of, naming_request

MAX_BATCH_SIZE = 4  # images in one batch, fewer if memory is short; more saves little time on a CPU
OOM_HINT = "Use a smaller --size, --num-images 1 or --no-compose, or close other programs."


def _ignore_prediction(predict_x0: Callable[[], Tensor]) -> None:
    """Show no preview."""


class ImageGenerator(Protocol):
    """What the playground needs of a `Generator`; the app's takes turns with other jobs."""

    @property
    def base(self) -> StableDiffusion | ModelInfo: ...

    def generate(
        self,
        request: GenerateRequest,
        progress: Callable[[int, int], None] = ...,
        cancelled: Callable[[], bool] = ...,
    ) -> Iterator[GeneratedImage]: ...


class Generator:
    """Generates images with one base and the concepts of one library.

    wildcards: folder of lists for `__name__` in prompts.
    """

    def __init__(self, base: StableDiffusion, concepts: ConceptSource | None = None, wildcards: Path | None = None):
        if isinstance(base, str | Path):
            raise UserError(
                f"Generator needs a loaded model, not its name {printable(str(base))}.",
                f"Use sdpersonal.load({str(base)!r}), or Generator(load_base({str(base)!r}), ...).",
            )
        if isinstance(concepts, str | Path):
            raise UserError(
                f"Generator needs a library, not the folder {printable(str(concepts))}.",
                f"Use Generator(base, Library({str(concepts)!r})).",
            )
        self.base = base
        self.concepts = NoConcepts() if concepts is None else concepts
        self._wildcards = Wildcards(wildcards)
        self._embeds_cache = PromptEmbedsCache(base)

    def with_concepts(self, concepts: ConceptSource) -> Generator:
        """Return the same generator with other concepts; the cache of prompt embeddings is shared."""
        other = copy(self)
        other.concepts = concepts
        return other

    def generate(
        self,
        request: GenerateRequest,
        progress: Callable[[int, int], None] = lambda done, total: None,
        cancelled: Callable[[], bool] = lambda: False,
        preview: Callable[[list[Image.Image]], None] | None = None,
    ) -> Iterator[GeneratedImage]:
        """Generate the images of a request; yield them in order as they are ready.

        Args:
            progress: progress(done, total) counts the UNet's predictions over all images, for most schedulers one per
                step.
            cancelled: when it returns true, the next prediction raises Interrupted.
            preview: preview(pictures) is called now and then with small previews of a batch's images; previews take a
                few percent of the time.

        Raises:
            UserError: for an unknown concept, one of another base, or an init image that is no image.
            OutOfMemory: the memory is released, so the next request has all of it again.
        """
        jobs = self._jobs(request, PromptResolver(self.base, self.concepts))
        placement = self._plan_memory(jobs)
        batches = [(placement, batch) for batch in batches_of_request(jobs, 2 * placement.batch_size)]
        show = None if preview is None else lambda indices, pictures: preview(pictures)
        for _, image in self._generate_batches(batches, progress, cancelled, show):
            yield image

    def generate_many(
        self,
        requests: Sequence[GenerateRequest],
        progress: Callable[[int, int], None] = lambda done, total: None,
        cancelled: Callable[[], bool] = lambda: False,
        preview: Callable[[list[int], list[Image.Image]], None] | None = None,
        sources: Sequence[ConceptSource] | None = None,
    ) -> Iterator[tuple[int, GeneratedImage]]:
        """Generate the images of several requests; yield each with the index of its request as it is ready.

        Images with different prompts and concepts share batches: each has the LoRAs of its own prompt. Those that
        differ in size, steps, scheduler, guidance, clip_skip, initial image or the length of the prompt are in batches
        of their own, as are those with other places of subjects, or with other scales or windows of styles. The images
        of a request come in order, and differ from those of `generate` by rounding only.

        Args:
            progress, cancelled: as of `generate`.
            preview: preview(indices, pictures) is called like that of `generate`, with the request's index of each
                picture.
            sources: where each request's concepts are looked up: the same token may be another concept in another
                request. Default: the generator's own for all.

        Raises:
            UserError, OutOfMemory: as of `generate`. An error of a request says which one it is.
        """
        batches: list[tuple[OffloadPlan, list[ImageJob]]] = []
        for jobs in group_by_kind(self._jobs_of_each(requests, sources)):
            placement = self._plan_memory(jobs, MAX_BATCH_SIZE)
            batches += [(placement, batch) for batch in split_batch(jobs, 2 * placement.batch_size)]
        yield from self._generate_batches(batches, progress, cancelled, preview)

    def _generate_batches(
        self,
        batches: Sequence[tuple[OffloadPlan, list[ImageJob]]],
        progress: Callable[[int, int], None],
        cancelled: Callable[[], bool],
        preview: Callable[[list[int], list[Image.Image]], None] | None,
    ) -> Iterator[tuple[int, GeneratedImage]]:
        counts = [batch[0].num_predictions for _, batch in batches]
        total = sum(counts)
        for number, (placement, batch) in enumerate(batches):

            def on_step(step: int, before: int = sum(counts[:number])) -> None:
                if cancelled():
                    raise Interrupted("Stopped.")
                progress(before + step, total)

            action = f"generating {len(batch)} images at once"
            with translate_oom(action, OOM_HINT, self.base.device), self.base.exclusive():
                self.base.offloader.apply_plan(placement)  # other requests run between the batches
                meter = self._meter(batch)
                show = None if preview is None else partial(preview, [job.plan.index for job in batch])
                images = self._generate_batch(batch, meter, on_step, show)
                flags = self._flag_unsafe(images)
            for index, (job, image, hidden) in enumerate(zip(batch, images, flags, strict=True)):
                presences = meter.presences(index) if meter and not hidden else {}
                recipe = self._recipe(job, hidden, place_in_batch(batch, index), presences)
                yield job.plan.index, GeneratedImage(grey_image(image.size) if hidden else image, recipe)

    def _plan_memory(self, jobs: Sequence[ImageJob], mixes_in_batch: int = 1) -> OffloadPlan:
        """Plan where the models are while these images are generated, and the size of their batches."""
        plan = jobs[0].plan
        with self.base.exclusive(), translate_oom("before generating", OOM_HINT, self.base.device):
            if self.base.safety_checker:
                self.base.safety_checker.load()  # errors in its files are raised before any computing
            lora_bytes = sorted(self._lora_bytes(mixes) for mixes in {job.mixes for job in jobs})[-mixes_in_batch:]
            sizes = [plan.final_size, *(self._native_size for job in jobs if job.prompts.subjects)]
            size = max(sizes, key=math.prod)
            # A step is planned for two predictions an image; styles and subjects take more.
            more = max((job.num_rows for job in jobs), default=2) - 2
            more_bytes = max(0, more) * bytes_per_step(self.base, size) // 2
            return plan_offload(self.base, size, MAX_BATCH_SIZE, sum(lora_bytes) + more_bytes)

    def _lora_bytes(self, mixes_by_step: Iterable[Iterable[Mix]]) -> int:
        """Return the memory that an image's LoRAs take in the step with the most."""
        steps = set(mixes_by_step)
        loras = ({id(weight.lora): weight.lora for mix in mixes for weight in mix}.values() for mixes in steps)
        return max(map(self.base.adapters.memory_bytes, loras), default=0)

    @property
    def _native_size(self) -> tuple[int, int]:
        """The (width, height) that subjects of a composition are generated at."""
        return self.base.resolution, self.base.resolution

    def _flag_unsafe(self, images: Sequence[Image.Image]) -> list[bool]:
        with self.base.exclusive():
            return self.base.safety_checker.flag(images) if self.base.safety_checker else [False] * len(images)

    def _plan(self, request: GenerateRequest, resolver: PromptResolver, index: int) -> GenerationPlan:
        """Build a request's plan."""
        base, source = self.base, load_init_image(request, self.base)
        fast = self._fast_lora(request, resolver)
        self._check_clip_skip(request)
        guidance = request.guidance or (1.0 if fast else base.guidance)
        rescale = base.rescale if request.rescale is None else request.rescale
        strength = request.strength if source else 1.0
        scheduler, restarts = _scheduler_of(request, fast)
        check_scheduler(base.scheduler_config, scheduler, request.denoising_steps)
        sampling = SamplingConfig(request.denoising_steps, guidance, rescale, strength, scheduler, restarts)
        size = source.image.size if source else request.width_height or (base.resolution,) * 2
        return GenerationPlan(request, sampling, size, source, fast, index)

    def _check_clip_skip(self, request: GenerateRequest) -> None:
        max_clip_skip = self.base.max_clip_skip
        if request.clip_skip > max_clip_skip:
            raise FieldError(
                "clip_skip",
                f"clip_skip must be at most {max_clip_skip} for this base, got {request.clip_skip}.",
                f"Its text encoder has {self.base.encoders['clip_l'].layers} layers; 1 skips none.",
            )

    def _fast_lora(self, request: GenerateRequest, resolver: PromptResolver) -> Concept | None:
        if request.fast is None:
            return None
        concept = resolver.concept(Mention(Token.parse(request.fast)))
        check_makes_few_steps_enough(concept)
        return concept

    def _jobs_of_each(
        self, requests: Sequence[GenerateRequest], sources: Sequence[ConceptSource] | None
    ) -> list[list[ImageJob]]:
        resolver, by_request = PromptResolver(self.base, self.concepts), []
        for index, request in enumerate(requests):
            with naming_request(index, len(requests)):
                own = resolver if sources is None else PromptResolver(self.base, sources[index])
                by_request.append(self._jobs(request, own, index))
        return by_request

    def _jobs(self, request: GenerateRequest, resolver: PromptResolver, index: int = 0) -> list[ImageJob]:
        """Return the images of a request. All its errors are raised here, before any computing."""
        plan, resolved = self._plan(request, resolver, index), dict[str, ResolvedPrompt]()

        def resolve(text: str) -> ResolvedPrompt:
            if text not in resolved:
                resolved[text] = resolver.resolve(text)
            return resolved[text]

        jobs = []
        for image in images_of(request, self._wildcards):
            prompts = ImagePrompts.of(resolve(image.prompt), resolve(image.negative), plan.fast_lora, request.compose)
            if plan.init_image:
                prompts = replace(prompts, subjects=())  # the init image is the layout
            seeds = image.seed, image.variation_seed
            jobs.append(ImageJob.of(self.base, plan, prompts, seeds, image.template))
        return jobs

    def _generate_batch(
        self,
        jobs: Sequence[ImageJob],
        meter: PresenceMeter | None,
        on_step: Callable[[int], None],
        preview: Callable[[list[Image.Image]], None] | None,
    ) -> list[Image.Image]:
        base, plan = self.base, jobs[0].plan
        with base.exclusive(), base.adapters.active(()):
            init = plan.init_image.latents(base) if plan.init_image else None
            on_prediction = Previews(base, preview).update if preview else _ignore_prediction
            if jobs[0].prompts.subjects:
                return self._compose_batch(jobs, meter, on_step, on_prediction)
            images = self._run_pass(plan.sampling, jobs, plan.size, init, on_step, on_prediction, meter)
            if plan.init_image:
                return [plan.init_image.composite(image) for image in images]
            if plan.passes == 1:
                return images
            upscaled = [upscale(image, plan.request.hires_scale) for image in images]
            init = InitLatents(torch.cat([encode_image(base, image) for image in upscaled]))
            first = plan.sampling.num_predictions
            return self._run_pass(plan.second_pass, jobs, plan.final_size, init, lambda step: on_step(first + step))

    def _meter(self, jobs: Sequence[ImageJob]) -> PresenceMeter | None:
        """Return a meter of where the concepts are; None where no image of the batch has several."""
        if not any(1 < len(named_concepts(job.prompts)) <= MAX_CONCEPTS for job in jobs):
            return None
        plan, subjects = jobs[0].plan, jobs[0].prompts.subjects
        parts = [[job.prompts for job in jobs]]
        if subjects:
            parts = [[job.prompts.subjects[k].prompts for job in jobs] for k in range(len(subjects))]
        boxes = _boxes(jobs)
        size = self._native_size if subjects else plan.size
        return PresenceMeter(self.base, parts, self.base.latent_shape(*size)[1:], plan.sampling, boxes, plan.final_size)

    def _compose_batch(
        self,
        jobs: Sequence[ImageJob],
        meter: PresenceMeter | None,
        on_step: Callable[[int], None],
        on_prediction: OnPrediction,
    ) -> list[Image.Image]:
        """Generate every subject at the base's own size, and join them in images of the final size."""
        plan = jobs[0].plan
        groups = [[job.prompts.subjects[k] for job in jobs] for k in range(len(jobs[0].prompts.subjects))]
        boxes = _boxes(jobs)

        def show(predict_x0: Callable[[], Tensor]) -> None:
            on_prediction(
                lambda: arrange(_by_subject(predict_x0(), groups), boxes, plan.final_size, self.base.vae_scale_factor)
            )

        latents, masks = self._denoise_subjects(jobs, groups, meter, on_step, show)
        images = [self.base.decode(latent[None])[0] for latent in latents]
        masks = _by_subject(masks, groups)
        return [
            Image.fromarray(join(images[i :: len(jobs)], masks[:, i], boxes, plan.final_size)) for i in range(len(jobs))
        ]

    def _denoise_subjects(
        self,
        jobs: Sequence[ImageJob],
        groups: Sequence[Sequence[SubjectPrompts]],
        meter: PresenceMeter | None,
        on_step: Callable[[int], None],
        on_prediction: OnPrediction,
    ) -> tuple[Tensor, Tensor]:
        """Return the latents of the subjects, (K B, C, h, w), subject by subject, and where each is, (K B, 1, h, w)."""
        base, plan, size = self.base, jobs[0].plan, self._native_size
        subjects = [part for group in groups for part in group]
        first_row = len(subjects) if plan.sampling.has_negative else 0
        positions = {
            first_row + i: token_positions(base, part.prompts.base, part.reference) for i, part in enumerate(subjects)
        }
        maps = AttentionMaps(base, positions, base.latent_shape(*size)[1:])
        background = SharedBackground(maps, len(groups))
        noise = torch.stack([self._initial_noise(job, size) for job in jobs]).to(base.device)
        noise = noise.repeat(len(groups), 1, 1, 1)
        prompts = [
            [job.prompts.subjects[k].prompts for job in equal] for k in range(len(groups)) for equal in by_mix(jobs)
        ]
        conditioner = self._conditioner(plan, prompts, size)
        seeds = [job.seed for job in jobs] * len(groups)
        with maps.recording(), _recorded(meter, conditioner) as conditioning_at:
            options = conditioning_at, noise, plan.sampling, None, seeds, on_step, on_prediction
            latents = denoise(base, *options, edit_x0=background, num_subjects=len(groups))
        return latents, background.masks

    def _conditioner(
        self,
        plan: GenerationPlan,
        prompts: Sequence[Sequence[ImagePrompts]],
        size: tuple[int, int],
    ) -> StepConditioner:
        width, height = size
        full = SizeConditioning.full(height, width)
        skip = plan.request.clip_skip
        return StepConditioner(self.base, self._embeds_cache, prompts, full, skip, plan.sampling.has_negative)

    def _run_pass(
        self,
        sampling: SamplingConfig,
        jobs: Sequence[ImageJob],
        size: tuple[int, int],
        init: InitLatents | None,
        on_step: Callable[[int], None],
        on_prediction: OnPrediction = _ignore_prediction,
        meter: PresenceMeter | None = None,
    ) -> list[Image.Image]:
        base = self.base
        noise = torch.stack([self._initial_noise(job, size) for job in jobs]).to(base.device)
        prompts = [[job.prompts for job in equal] for equal in by_mix(jobs)]
        conditioner = self._conditioner(jobs[0].plan, prompts, size)
        seeds = [job.seed for job in jobs]
        with _recorded(meter, conditioner) as conditioning_at:
            latents = denoise(base, conditioning_at, noise, sampling, init, seeds, on_step, on_prediction)
        # One at a time: an image must not depend on the others in its batch, nor the memory on their number.
        return [Image.fromarray(base.decode(latent[None])[0]) for latent in latents]

    def _initial_noise(self, job: ImageJob, size: tuple[int, int]) -> Tensor:
        shape = self.base.latent_shape(*size)
        noise, near = noise_from_seed(job.seed, shape), job.plan.request.variation_strength
        return noise if near is None else slerp(noise, noise_from_seed(job.variation_seed, shape), near)

    def _recipe(
        self,
        job: ImageJob,
        hidden: bool,
        batch: tuple[int, int],
        presences: Mapping[str, Presence],
    ) -> Recipe:
        base, plan = self.base, job.plan
        request, sampling = plan.request, plan.sampling
        return Recipe(
            sdpersonal=__version__,
            prompt=job.prompts.prompt.prompt.text,
            template=job.template,
            negative=job.prompts.negative.prompt.text,
            seed=job.seed,
            variation_strength=request.variation_strength,
            variation_seed=job.variation_seed if request.variation_strength else 1,
            steps=sampling.steps,
            guidance=sampling.guidance,
            rescale=sampling.rescale,
            size="{}x{}".format(*plan.size),
            hires_scale=request.hires_scale,
            strength=request.strength,
            init_image=plan.init_image.image_sha256 if plan.init_image else "",
            mask=plan.init_image.mask_sha256 if plan.init_image else "",
            sampler=type(base.make_scheduler(sampling.scheduler)).__name__.removesuffix("Scheduler"),
            fast=request.fast or "",
            scheduler=request.scheduler or "",
            clip_skip=request.clip_skip,
            compose=request.compose,
            hidden=hidden,
            base=RecipeBase(name=Path(base.name).name, kind=base.kind, sha256=base.version),
            concepts=_recipe_concepts(job, presences),
            batch=batch[0],
            place=batch[1],
        )


def _recipe_concepts(job: ImageJob, presences: Mapping[str, Presence]) -> tuple[RecipeConcept, ...]:
    """Return the concepts of an image's prompts, each with its highest strength and its presence by its token."""
    plan, prompts = job.plan, job.prompts
    used = prompts.negative.strongest_uses() | prompts.prompt.strongest_uses()
    if plan.fast_concept:
        used[str(plan.fast_concept.token)] = plan.fast_concept, 1.0
    active = {lora.identity for mixes in prompts.mixes_by_step(plan.sampling.steps) for mix in mixes for lora in mix}
    return tuple(
        RecipeConcept(
            token=token,
            sha256=concept.identity,
            strength=strength,
            vectors=bool(concept.vectors),
            lora=concept.identity in active,
            words="" if concept.vectors else " ".join(concept.card.trigger_words),
            presence=presences.get(token),
        )
        for token, (concept, strength) in used.items()
    )


def _recorded(meter: PresenceMeter | None, conditioning_at: ConditioningAt) -> AbstractContextManager[ConditioningAt]:
    """Have the meter, if any, record the predictions with this conditioning."""
    return meter.recording(conditioning_at) if meter else nullcontext(conditioning_at)


def _boxes(jobs: Sequence[ImageJob]) -> list[Box]:
    """Return the boxes of the subjects, which are the same in all images of a batch."""
    return [box_of(part.subject.region, jobs[0].plan.final_size) for part in jobs[0].prompts.subjects]


def _by_subject(rows: Tensor, groups: Sequence[Sequence[SubjectPrompts]]) -> Tensor:
    """Reshape (K B, ...) to (K, B, ...), for B images of each of K subjects."""
    return rows.unflatten(0, (len(groups), len(groups[0])))


def _scheduler_of(request: GenerateRequest, fast: Concept | None) -> tuple[Scheduler | None, bool]:
    """Return the scheduler, None for the default, and whether its noise restarts.

    A scheduler in the request takes precedence over that of `fast`: LCM (Luo et al. 2023, arXiv 2310.04378) or TCD
    (Zheng et al. 2024, arXiv 2402.19159).
    """
    if request.scheduler:
        return named(request.scheduler), False
    if fast is None:
        return None, False
    words = f"{fast.token} {fast.card.title} {fast.card.description}".lower()
    return named("TCD" if "tcd" in words else "LCM"), True
