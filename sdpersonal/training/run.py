"""One run, from settings to a concept in the library, with its pictures beside it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from .. import files
from ..bases import StableDiffusion, introduction, load_base
from ..card import Card
from ..concept import Concept, thumbnail_bytes
from ..config import DreamboothSettings, Request, Training
from ..errors import Diverged, PersonalError
from ..generation import Generator
from ..library import Library
from ..photos import PhotoSet, load_photos
from ..prompts import Token
from ..sheets import png, sheet
from .checkpoint import latest_step, load_checkpoint, no_checkpoint
from .dataset import TrainingPhotos
from .loop import Accelerator, Plan, learn
from .method import Method
from .methods import build, method_name
from .methods import chosen as chosen_preset
from .presets import Preset
from .progress import save_loss_curve
from .rows import longest_row
from .templates import PREVIEWS, TEMPLATES

RESULT = "result.json"
MOST_TIMES_LONGER = 50.0  # a row so much longer than the vocabulary's was not learned, it ran away


@dataclass(frozen=True)
class Result:
    """What a run leaves: the concept's token with its version, the run folder, its sample sheet if asked for."""

    token: Token
    run: Path
    sheet: Path | None
    seconds: float


def train(settings: Training, say: Callable[[str], None] = print) -> Result | None:
    """Teach a concept and add it to the library. None in every process but the first of several.

    Raises PersonalError (bad photos, another run in the folder, ...), Diverged, NoRoom, Interrupted; each leaves the
    library as it was and the newest checkpoint whole.
    """
    began = time.monotonic()
    # Told of the CPU, or processes without a card would not find each other. The masters are fp32 whatever the base is.
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="no")
    say = say if accelerator.is_main_process else _silently
    base = load_base(settings.base, accelerator.device)
    say(introduction(base, settings.base))
    photos = load_photos(settings.photos, base.resolution, settings.crop)
    say(photos.report())
    chosen = chosen_preset(settings, base)
    run = _run_folder(settings)
    if settings.resume and latest_step(run) is None:
        raise no_checkpoint(run)  # before the run's folder is made
    with ExitStack() as held:
        if accelerator.is_main_process:
            held.enter_context(files.lock(run))
            files.sweep(run)
        method = build(settings, base, chosen, accelerator, say)
        held.callback(method.close)
        plan = Plan(
            chosen.steps, chosen.batch, settings.save_every, _identity(settings, base, photos, chosen, accelerator)
        )
        optimizer = torch.optim.AdamW(method.groups(), fused=True)
        start = _start(settings, run, method, optimizer, plan, say)
        accelerator.wait_for_everyone()
        data = TrainingPhotos(base, photos.photos, TEMPLATES[settings.kind], settings.seed, settings.flip)
        at_once = plan.batch * accelerator.num_processes
        say(f"Learning {settings.token} by {method.name}: {plan.steps} steps of {at_once} photos.")
        losses = learn(accelerator, method, data, optimizer, plan, start, run)
        accelerator.wait_for_everyone()
        if not accelerator.is_main_process:
            return None
        concept = _concept(settings, base, method, chosen, method.finish(run))
        method.close()
        save_loss_curve(run / "loss.png", losses)
        concept, page = _with_pictures(concept, base, settings, run) if settings.samples else (concept, None)
        token = Library(settings.library).add(concept)
        seconds = time.monotonic() - began
        files.write_json(
            run / RESULT,
            {"token": str(token), "sha256": concept.identity, "steps": plan.steps, "seconds": round(seconds, 1)},
        )
    say(f"{token} is in {settings.library}, after {seconds:.0f} s." + (f" Pictures of it: {page}" if page else ""))
    return Result(token, run, page, seconds)


def _silently(_: str) -> None:
    pass


def _run_folder(settings: Training) -> Path:
    """The folder asked for; else the first of runs/me-duck-method, ...-2, ... that holds no finished run.

    With --resume it is the newest of those that exists.
    """
    if settings.run:
        return settings.run
    name = f"{Token.parse(settings.token).slug}-{method_name(settings)}"
    number, folder = 1, Path("runs") / name
    while folder.exists() if settings.resume else (folder / RESULT).exists():
        number += 1
        previous, folder = folder, Path("runs") / f"{name}-{number}"
    return previous if settings.resume and number > 1 else folder


def _identity(
    settings: Training, base: StableDiffusion, photos: PhotoSet, chosen: Preset, accelerator: Accelerator
) -> dict[str, object]:
    """What makes it the same run: all that its outcome depends on but the number of steps, which may grow."""
    own = settings.model_dump(
        exclude={"photos", "base", "steps", "lr", "batch", "library", "run", "resume", "save_every", "samples"}
    )
    return own | {
        "method": method_name(settings),
        "base": base.version,
        "photos": photos.identity,
        "lr": chosen.lr,
        "targets": chosen.targets,
        "batch": chosen.batch * accelerator.num_processes,
    }


def _start(
    settings: Training,
    run: Path,
    method: Method,
    optimizer: torch.optim.Optimizer,
    plan: Plan,
    say: Callable[[str], None],
) -> int:
    if settings.resume:
        resumed = load_checkpoint(run, method.trained(), optimizer, plan.identity)
        if resumed.step > plan.steps:
            raise PersonalError(
                f"The run is at step {resumed.step} already, past --steps {plan.steps}.",
                "Give more steps, or start anew.",
            )
        say(resumed.note)
        return resumed.step
    step = latest_step(run)
    if step is not None:
        raise PersonalError(
            f"{run} holds a run that is at step {step}.", "Add --resume to go on, or --run FOLDER for a new one."
        )
    return 0


def _concept(
    settings: Training, base: StableDiffusion, method: Method, chosen: Preset, figures: dict[str, float]
) -> Concept:
    _check_rows(base, method, chosen)
    token = Token.parse(settings.token)
    vectors = {key: rows.detach().float().cpu().numpy().copy() for key, rows in method.rows.items()}
    card = Card(
        kind=settings.kind,
        class_noun=getattr(settings, "class_noun", None) or getattr(settings, "init", None) or "",
        base=base.kind,
        base_name=Path(base.name).name,
        method=method.name,
        steps=chosen.steps,
        prompts=tuple(one.format(token) for one in PREVIEWS[settings.kind]),
        trigger_words=(method.trigger,) if method.trigger else (),
        recipe={"seed": settings.seed, "lr": chosen.lr, "batch": chosen.batch, "base_sha256": base.version}
        | ({"targets": chosen.targets} if isinstance(settings, DreamboothSettings) else {})
        | {key: value for key in ("rank", "prior") if (value := getattr(settings, key, None)) is not None}
        | figures,
    )
    return Concept(token, card, vectors, method.lora())


def _check_rows(base: StableDiffusion, method: Method, chosen: Preset) -> None:
    """Raises Diverged if the token's vectors ran away instead of being learned."""
    for name, rows in method.trained().items():
        if name.startswith("rows."):
            times = float(rows.detach().norm(dim=1).max()) / longest_row(base.encoders[name.removeprefix("rows.")])
            if not times < MOST_TIMES_LONGER:
                raise Diverged(
                    f"The token's vectors grew {times:.0f} times as long as a word's. No concept was made.",
                    f"Try --lr {chosen.lr / 10:g}.",
                )


def _with_pictures(concept: Concept, base: StableDiffusion, settings: Training, run: Path) -> tuple[Concept, Path]:
    """Draw the sample sheet, as a user will draw, and give the concept its first picture for a thumbnail."""
    prompts = [one.format(concept.token) for one in PREVIEWS[settings.kind]]
    generator = Generator(base, _Only(concept))
    rows = [[picture.image for picture in generator.draw(Request(prompt=prompt, n=3))] for prompt in prompts]
    page = run / "samples.png"
    files.write_bytes(page, png(sheet(rows, prompts, [f"seed {i}" for i in range(3)])))
    return replace(concept, thumbnail=thumbnail_bytes(rows[0][0])), page


class _Only:
    """A library of one concept that is not yet in any."""

    def __init__(self, concept: Concept):
        self._concept = concept

    def get(self, token: Token) -> Concept:
        return self._concept
