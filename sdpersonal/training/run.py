"""One run, from settings to a concept in the library, with its pictures and its report beside it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from .. import storage
from ..concepts.library import Library
from ..config import TrainingSettings
from ..errors import UserError
from ..evaluation import Scorer, explain_scores, scorer_for_base
from ..evaluation.scorers import FETCH_COMMAND
from ..models import StableDiffusion, describe_base, load_base
from ..photos.checks import check
from ..photos.loading import PhotoSet, load_photos
from ..prompts import Token
from .build_concept import build_concept
from .checkpoint import load_step
from .control import poll
from .curves import CURVES_FILE as CURVES
from .curves import save_curves
from .dataset import PhotoDataset, fit_captions
from .distributed import check_same_start, fail_together, init_distributed
from .dry_run import COST_FILE as COST
from .dry_run import format_duration, perform_dry_run
from .early_stopping import fixed_batch
from .ema import EMA, NoEMA
from .loop import Accelerator, LoopConfig, NullLog, TrainState
from .methods.factory import build_method, check_before_loading, in_class, method_name, subject_noun
from .methods.factory import resolve_preset as chosen_preset
from .milestones import RunEnd, plan_milestones, run_milestones
from .oom_advice import OomAdvice
from .optim import lr_factor, make_optimizer
from .presets import Preset, preset
from .progress_log import ProgressLog, ignore_broken_pipe
from .prompt_templates import CAPTION_TEMPLATES
from .report import RunSummary, write_report
from .run_dir import RESULT_FILE, check_no_earlier_run, check_not_finished, run_folder, run_identity, start_step
from .sample_sheet import add_sample_sheet
from .trackers import check_tracker_installed, open_tracker
from .validation import Validation, Validator


@dataclass(frozen=True)
class TrainResult:
    """What a run leaves: the concept's token with its version, the run folder, its sample sheet if there is one."""

    token: Token
    run: Path
    sheet: Path | None
    seconds: float


def train(settings: TrainingSettings, say: Callable[[str], None] = print) -> TrainResult | None:
    """Teach a concept and add it to the library. None in every process but the first of several.

    Raises UserError (bad photos, another run in the folder, out of memory, ...), Diverged, DiskFull, Interrupted;
    each leaves the library as it was and the newest checkpoint whole. Of several processes one raises it, the others
    SystemExit.
    """
    began = time.monotonic()
    accelerator = init_distributed()
    say = ignore_broken_pipe(say) if accelerator.is_main_process else _discard
    with fail_together(accelerator), ExitStack() as held:
        check_tracker_installed(settings.report_to)
        run = run_folder(settings)
        check_before_loading(settings)
        check_not_finished(settings, run)
        storage.check_folder(run)
        given = _load(settings, accelerator, say)
        base = given.base
        if accelerator.is_main_process:
            held.enter_context(storage.lock(run))
            storage.remove_leftovers(run)
            poll(run)  # what was asked of a run that ended before it heard is not asked of this one
        chosen = chosen_preset(settings, base, len(given.photos.photos))
        lesson, plan, exam = _setup(settings, run, accelerator, given, chosen, held, say)
        ended = _fit(settings, lesson, plan, chosen, exam, say)
        if not accelerator.is_main_process:
            return None
        best = _restore_best(run, lesson, ended, exam, say)
        with lesson.average.applied():
            concept = build_concept(settings, base, lesson.method, chosen, best, lesson.method.finish(run))
        lesson.method.close()
        concept, page = add_sample_sheet(concept, base, run, say) if settings.samples else (concept, None)
        seconds = time.monotonic() - began
        story = RunSummary(given.said, _ending_text(ended, plan, best), exam.judge if exam else "", seconds)
        report = write_report(run, concept, exam.held if exam else [], story)
        token = Library(settings.library).add(concept)
        result = {"token": str(token), "sha256": concept.identity, "steps": ended.step, "best": best.step}
        storage.write_json(run / RESULT_FILE, result | {"seconds": round(seconds, 1)})
    for line in explain_scores(best.scores, subject_noun(settings)) if best.scores else ():
        say(line)
    say(f"{token} is in {settings.library}, after {format_duration(seconds)}. All about it: {report}")
    return TrainResult(token, run, page, seconds)


@dataclass(frozen=True)
class _Inputs:
    """What a run is made of. judge: in the first process, if there is one; said: what there is to say of the photos."""

    base: StableDiffusion
    photos: PhotoSet
    judge: Scorer | None
    said: list[str]


def _load(settings: TrainingSettings, accelerator: Accelerator, say: Callable[[str], None]) -> _Inputs:
    with OomAdvice(accelerator.device, settings, 0, 1).at("loading the base", "Take a smaller base."):
        base = load_base(settings.base, accelerator.device, revision=settings.revision, vae=settings.vae)
    say(describe_base(base, settings.base))
    if settings.checkpointing:
        base.enable_gradient_checkpointing(settings.checkpointing)
    photos = load_photos(settings.photos, settings.resolution or base.resolution, settings.crop, settings.kind)
    if not accelerator.is_main_process:
        return _Inputs(base, photos, None, [])
    judge = scorer_for_base(base.kind)
    found = check(photos, settings.kind, getattr(settings, "class_noun", None) or "", judge)
    said = [*photos.report().splitlines(), *(found.lines() if found.findings else ())]
    say("\n".join(said))
    return _Inputs(base, photos, judge, said)


def _setup(
    settings: TrainingSettings,
    run: Path,
    accelerator: Accelerator,
    given: _Inputs,
    chosen: Preset,
    held: ExitStack,
    say: Callable[[str], None],
) -> tuple[TrainState, LoopConfig, Validator | None]:
    """All that a run needs, tried out once. The method's close() is left to `held`; the exam is the first process's."""
    base, photos = given.base, given.photos
    side = settings.resolution or base.resolution
    at_once = chosen.batch * settings.accumulate * accelerator.num_processes
    identity = run_identity(settings, base, photos, chosen, at_once)
    check_no_earlier_run(settings, run, identity, chosen.steps)
    room = OomAdvice(accelerator.device, settings, side, chosen.batch)
    with room.at("before the first step"):
        method = build_method(settings, base, chosen, accelerator, say)
        held.callback(method.close)
        usual = preset(method_name(settings), base.kind, settings.kind)
        optimizer = make_optimizer(settings.optimizer, method.groups(), chosen.lr, usual.lr)
        templates = CAPTION_TEMPLATES[settings.kind]
        learned_from, cut = fit_captions(base, [method.words, in_class(settings)], photos.photos)
        given.said.extend(cut)
        if cut:
            say("\n".join(cut))
        data = PhotoDataset(base, learned_from, templates, settings.seed, settings.flip, settings.noise_offset)
        exam = _build_validator(settings, run, given, say) if settings.samples and accelerator.is_main_process else None
        average = EMA(method.trainable_parameters(), chosen.average) if chosen.average else NoEMA()
        lesson = TrainState(accelerator, method, data, optimizer, room, average)
        what = (
            f"Learning {settings.token} by {method.name} at {side} px: up to {chosen.steps} steps of {at_once} photos"
        )
        if settings.resume:
            say(f"{what}.")
        else:
            cost = perform_dry_run(lesson, chosen.batch, settings.accumulate, run)
            trials = chosen.milestones * ((exam.seconds if exam else 0) + cost.checkpoint)
            seconds = chosen.steps * cost.step + trials
            if accelerator.is_main_process:
                storage.write_json(run / COST, cost.as_json() | {"steps": chosen.steps, "seconds": round(seconds, 1)})
            say(f"{what}, about {format_duration(seconds)}; {cost.memory()}.")
        start = start_step(settings, run, lesson.checkpoint_state(), identity, chosen.steps, say)
        check_same_start(accelerator, photos, identity, start)
    if exam and exam.judge:
        exam.resume_from(start)
    plan = LoopConfig(
        run=run,
        start=start,
        steps=chosen.steps,
        batch=chosen.batch,
        accumulate=settings.accumulate,
        save_every=settings.save_every,
        lr=settings.lr or chosen.lr,
        usual_lr=1.0 if settings.optimizer == "prodigy" else usual.lr,
        lr_factor=lr_factor(settings, chosen),
        identity=identity,
        fixed_batch=fixed_batch(data) if accelerator.is_main_process and chosen.steps >= chosen.measure_every else None,
        measure_every=chosen.measure_every,
    )
    return lesson, plan, exam


def _build_validator(settings: TrainingSettings, run: Path, given: _Inputs, say: Callable[[str], None]) -> Validator:
    if given.judge is None:
        say(f"Nobody here can judge the pictures, so the last checkpoint counts; to have a judge: {FETCH_COMMAND}")
    squares = [Image.fromarray(photo.square()) for photo in given.photos.photos]
    return Validator(run, given.base, given.judge, settings.kind, subject_noun(settings), squares)


def _fit(
    settings: TrainingSettings,
    lesson: TrainState,
    plan: LoopConfig,
    chosen: Preset,
    exam: Validator | None,
    say: Callable[[str], None],
) -> RunEnd:
    """Teach; where and why the run ended."""
    course = plan_milestones(chosen, settings.samples, settings.early_stop)
    if not lesson.accelerator.is_main_process:
        ended = run_milestones(lesson, plan, course, NullLog(), None, say)
        lesson.accelerator.wait_for_everyone()
        return ended
    photos = plan.identity["batch"]
    facts = {"steps": plan.steps, "photos": lesson.photos.count, "photos a step": photos, "rate": chosen.lr}
    with (
        open_tracker(settings.report_to, plan.run, facts) as track,
        ProgressLog(plan.run, plan.start, plan.steps, track) as journal,
    ):
        ended = run_milestones(lesson, plan, course, journal, exam, say)
    lesson.accelerator.wait_for_everyone()
    trials = exam.held if exam else []
    save_curves(plan.run / CURVES, journal.losses, journal.fixed_batch_losses, trials, course.pivot)
    return ended


def _restore_best(
    run: Path, lesson: TrainState, ended: RunEnd, exam: Validator | None, say: Callable[[str], None]
) -> Validation:
    """The best trial, with the lesson as it was then; without any, the end."""
    best = exam.best if exam else None
    if best is None or best.step == ended.step:
        return best or Validation(ended.step, None)
    try:
        load_step(run, best.step, lesson.checkpoint_state())
        return best
    except UserError as error:
        say(f"{error.message} The last one counts.")
        load_step(run, ended.step, lesson.checkpoint_state())
        return next(trial for trial in exam.held if trial.step == ended.step)


def _ending_text(ended: RunEnd, plan: LoopConfig, best: Validation) -> str:
    early = f", {ended.reason}; {plan.steps} were allowed" if ended.reason else ""
    kept = "" if best.step == ended.step else f" The concept is as it was after step {best.step}."
    return f"It ended after step {ended.step}{early}.{kept}"


def _discard(_: str) -> None:
    pass
