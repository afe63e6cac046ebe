"""One run, from settings to a concept in the library, with its pictures beside it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from .. import files
from ..bases import StableDiffusion, introduction, load_base
from ..card import Card
from ..concept import Concept
from ..config import DreamboothSettings, Training
from ..errors import Diverged
from ..library import Library
from ..photos import PhotoSet, load_photos
from ..prompts import Token
from .dataset import TrainingPhotos
from .distributed import check_same_start, join, together
from .loop import Accelerator, Plan, Silent, learn
from .memory import Room
from .method import Method
from .methods import build, method_name
from .methods import chosen as chosen_preset
from .optimizers import make_optimizer, rate_factor
from .pictures import with_pictures
from .presets import Preset, preset
from .progress import Journal, save_loss_curve, while_heard
from .resuming import RESULT, first_step, identity_of, run_folder
from .rows import longest_row
from .templates import PREVIEWS, TEMPLATES
from .tracking import check_installed, tracked

MOST_TIMES_LONGER = 50.0  # a row so much longer than the vocabulary's was not learned, it ran away


@dataclass(frozen=True)
class Result:
    """What a run leaves: the concept's token with its version, the run folder, its sample sheet if there is one."""

    token: Token
    run: Path
    sheet: Path | None
    seconds: float


def train(settings: Training, say: Callable[[str], None] = print) -> Result | None:
    """Teach a concept and add it to the library. None in every process but the first of several.

    Raises PersonalError (bad photos, another run in the folder, out of memory, ...), Diverged, NoRoom, Interrupted;
    each leaves the library as it was and the newest checkpoint whole. Of several processes one raises it, the others
    SystemExit.
    """
    began = time.monotonic()
    accelerator = join()
    say = while_heard(say) if accelerator.is_main_process else _silently
    with together(accelerator), ExitStack() as held:
        check_installed(settings.report_to)
        run = run_folder(settings)
        base, photos = _loaded(settings, accelerator, say)
        if accelerator.is_main_process:
            held.enter_context(files.lock(run))
            files.sweep(run)
        chosen = chosen_preset(settings, base)
        method = _teach(settings, run, accelerator, base, photos, chosen, held, say)
        if method is None:
            return None
        concept = _concept(settings, base, method, chosen, method.finish(run))
        method.close()
        concept, page = with_pictures(concept, base, run, say) if settings.samples else (concept, None)
        token = Library(settings.library).add(concept)
        seconds = time.monotonic() - began
        result = {"token": str(token), "sha256": concept.identity, "steps": chosen.steps, "seconds": round(seconds, 1)}
        files.write_json(run / RESULT, result)
    say(f"{token} is in {settings.library}, after {seconds:.0f} s." + (f" Pictures of it: {page}" if page else ""))
    return Result(token, run, page, seconds)


def _loaded(
    settings: Training, accelerator: Accelerator, say: Callable[[str], None]
) -> tuple[StableDiffusion, PhotoSet]:
    with Room(accelerator.device, settings, 0, 1).at("loading the base", "Take a smaller base."):
        base = load_base(settings.base, accelerator.device, revision=settings.revision, vae=settings.vae)
    say(introduction(base, settings.base))
    if settings.checkpointing:
        base.checkpoint_gradients(settings.checkpointing)
    photos = load_photos(settings.photos, settings.resolution or base.resolution, settings.crop)
    say(photos.report())
    return base, photos


def _teach(
    settings: Training,
    run: Path,
    accelerator: Accelerator,
    base: StableDiffusion,
    photos: PhotoSet,
    chosen: Preset,
    held: ExitStack,
    say: Callable[[str], None],
) -> Method | None:
    """The method when it has learned; None in every process but the first. Its close() is left to `held`."""
    room = Room(accelerator.device, settings, settings.resolution or base.resolution, chosen.batch)
    at_once = chosen.batch * settings.accumulate * accelerator.num_processes
    with room.at("before the first step"):
        method = build(settings, base, chosen, accelerator, say)
        held.callback(method.close)
        usual = preset(method_name(settings), base.kind, settings.kind)
        optimizer = make_optimizer(settings.optimizer, method.groups(), chosen.lr, usual.lr)
        identity = identity_of(settings, base, photos, chosen, at_once)
        start = first_step(settings, run, method, optimizer, identity, chosen.steps, say)
        check_same_start(accelerator, photos, identity, start)
        templates = TEMPLATES[settings.kind]
        data = TrainingPhotos(base, photos.photos, templates, settings.seed, settings.flip, settings.noise_offset)
    plan = Plan(
        run=run,
        start=start,
        steps=chosen.steps,
        batch=chosen.batch,
        accumulate=settings.accumulate,
        save_every=settings.save_every,
        lr=settings.lr or chosen.lr,
        factor=rate_factor(settings, chosen),
        identity=identity,
    )
    say(f"Learning {settings.token} by {method.name}: {plan.steps} steps of {at_once} photos.")
    if not accelerator.is_main_process:
        learn(accelerator, method, data, optimizer, plan, Silent(), room)
        accelerator.wait_for_everyone()
        return None
    facts = {"steps": plan.steps, "photos": len(photos.photos), "photos a step": at_once, "rate": chosen.lr}
    with tracked(settings.report_to, run, facts) as track:
        journal = Journal(run, start, plan.steps, track)
        learn(accelerator, method, data, optimizer, plan, journal, room)
    accelerator.wait_for_everyone()
    save_loss_curve(run / "loss.png", journal.losses)
    return method


def _silently(_: str) -> None:
    pass


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
        | {"prediction_type": base.schedule.prediction, "resolution": settings.resolution or base.resolution}
        | ({"targets": chosen.targets} if isinstance(settings, DreamboothSettings) else {})
        | {key: value for key in ("rank",) if (value := getattr(settings, key, None)) is not None}
        | ({"prior": _prior_kind(settings.prior)} if isinstance(settings, DreamboothSettings) else {})
        | figures,
    )
    return Concept(token, card, vectors, method.lora())


def _prior_kind(prior: str) -> str:
    return prior if prior in ("none", "predicted", "drawn") else "photos"  # a folder's name stays here


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
