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
from ..config import Training
from ..errors import PersonalError
from ..evaluation import Judge, judge_for, verdict
from ..evaluation.scorers import FETCH
from ..models import StableDiffusion, introduction, load_base
from ..photos.checks import examine
from ..photos.loading import PhotoSet, load_photos
from ..prompts import Token
from .build_concept import make_concept
from .checkpoint import load_step
from .control import heard
from .curves import FILE as CURVES
from .curves import save_curves
from .dataset import TrainingPhotos, fit_captions
from .distributed import check_same_start, join, together
from .dry_run import FILE as COST
from .dry_run import clock, rehearse
from .early_stopping import fixed_batch
from .ema import Average, NoAverage
from .loop import Accelerator, Lesson, Plan, Silent
from .methods.factory import build, check_before_loading, in_class, method_name, noun_of
from .methods.factory import chosen as chosen_preset
from .milestones import End, course_of, follow
from .oom_advice import Room
from .optim import make_optimizer, rate_factor
from .presets import Preset, preset
from .progress_log import Journal, while_heard
from .prompt_templates import TEMPLATES
from .report import Story, write_report
from .run_dir import RESULT, check_free, check_not_finished, first_step, identity_of, run_folder
from .sample_sheet import with_pictures
from .trackers import check_installed, tracked
from .validation import Exam, Trial


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
        check_before_loading(settings)
        check_not_finished(settings, run)
        storage.check_folder(run)
        given = _loaded(settings, accelerator, say)
        base = given.base
        if accelerator.is_main_process:
            held.enter_context(storage.lock(run))
            storage.sweep(run)
            heard(run)  # what was asked of a run that ended before it heard is not asked of this one
        chosen = chosen_preset(settings, base, len(given.photos.photos))
        lesson, plan, exam = _prepared(settings, run, accelerator, given, chosen, held, say)
        ended = _taught(settings, lesson, plan, chosen, exam, say)
        if not accelerator.is_main_process:
            return None
        best = _best(run, lesson, ended, exam, say)
        with lesson.average.put_in():
            concept = make_concept(settings, base, lesson.method, chosen, best, lesson.method.finish(run))
        lesson.method.close()
        concept, page = with_pictures(concept, base, run, say) if settings.samples else (concept, None)
        seconds = time.monotonic() - began
        story = Story(given.said, _how_it_ended(ended, plan, best), exam.judge if exam else "", seconds)
        report = write_report(run, concept, exam.held if exam else [], story)
        token = Library(settings.library).add(concept)
        result = {"token": str(token), "sha256": concept.identity, "steps": ended.step, "best": best.step}
        storage.write_json(run / RESULT, result | {"seconds": round(seconds, 1)})
    for line in verdict(best.scores, noun_of(settings)) if best.scores else ():
        say(line)
    say(f"{token} is in {settings.library}, after {clock(seconds)}. All about it: {report}")
    return Result(token, run, page, seconds)


@dataclass(frozen=True)
class _Given:
    """What a run is made of. judge: in the first process, if there is one; said: what there is to say of the photos."""

    base: StableDiffusion
    photos: PhotoSet
    judge: Judge | None
    said: list[str]


def _loaded(settings: Training, accelerator: Accelerator, say: Callable[[str], None]) -> _Given:
    with Room(accelerator.device, settings, 0, 1).at("loading the base", "Take a smaller base."):
        base = load_base(settings.base, accelerator.device, revision=settings.revision, vae=settings.vae)
    say(introduction(base, settings.base))
    if settings.checkpointing:
        base.checkpoint_gradients(settings.checkpointing)
    photos = load_photos(settings.photos, settings.resolution or base.resolution, settings.crop, settings.kind)
    if not accelerator.is_main_process:
        return _Given(base, photos, None, [])
    judge = judge_for(base.kind)
    found = examine(photos, settings.kind, getattr(settings, "class_noun", None) or "", judge)
    said = [*photos.report().splitlines(), *(found.lines() if found.findings else ())]
    say("\n".join(said))
    return _Given(base, photos, judge, said)


def _prepared(
    settings: Training,
    run: Path,
    accelerator: Accelerator,
    given: _Given,
    chosen: Preset,
    held: ExitStack,
    say: Callable[[str], None],
) -> tuple[Lesson, Plan, Exam | None]:
    """All that a run needs, tried out once. The method's close() is left to `held`; the exam is the first process's."""
    base, photos = given.base, given.photos
    side = settings.resolution or base.resolution
    at_once = chosen.batch * settings.accumulate * accelerator.num_processes
    identity = identity_of(settings, base, photos, chosen, at_once)
    check_free(settings, run, identity, chosen.steps)
    room = Room(accelerator.device, settings, side, chosen.batch)
    with room.at("before the first step"):
        method = build(settings, base, chosen, accelerator, say)
        held.callback(method.close)
        usual = preset(method_name(settings), base.kind, settings.kind)
        optimizer = make_optimizer(settings.optimizer, method.groups(), chosen.lr, usual.lr)
        templates = TEMPLATES[settings.kind]
        learned_from, cut = fit_captions(base, [method.words, in_class(settings)], photos.photos)
        given.said.extend(cut)
        if cut:
            say("\n".join(cut))
        data = TrainingPhotos(base, learned_from, templates, settings.seed, settings.flip, settings.noise_offset)
        exam = _exam(settings, run, given, say) if settings.samples and accelerator.is_main_process else None
        average = Average(method.trained(), chosen.average) if chosen.average else NoAverage()
        lesson = Lesson(accelerator, method, data, optimizer, room, average)
        what = (
            f"Learning {settings.token} by {method.name} at {side} px: up to {chosen.steps} steps of {at_once} photos"
        )
        if settings.resume:
            say(f"{what}.")
        else:
            cost = rehearse(lesson, chosen.batch, settings.accumulate, run)
            trials = chosen.milestones * ((exam.seconds if exam else 0) + cost.checkpoint)
            seconds = chosen.steps * cost.step + trials
            if accelerator.is_main_process:
                storage.write_json(run / COST, cost.as_json() | {"steps": chosen.steps, "seconds": round(seconds, 1)})
            say(f"{what}, about {clock(seconds)}; {cost.memory()}.")
        start = first_step(settings, run, lesson.learned(), identity, chosen.steps, say)
        check_same_start(accelerator, photos, identity, start)
    if exam and exam.judge:
        exam.go_on_from(start)
    plan = Plan(
        run=run,
        start=start,
        steps=chosen.steps,
        batch=chosen.batch,
        accumulate=settings.accumulate,
        save_every=settings.save_every,
        lr=settings.lr or chosen.lr,
        usual_lr=1.0 if settings.optimizer == "prodigy" else usual.lr,
        factor=rate_factor(settings, chosen),
        identity=identity,
        watched=fixed_batch(data) if accelerator.is_main_process and chosen.steps >= chosen.measure_every else None,
        measure_every=chosen.measure_every,
    )
    return lesson, plan, exam


def _exam(settings: Training, run: Path, given: _Given, say: Callable[[str], None]) -> Exam:
    if given.judge is None:
        say(f"Nobody here can judge the pictures, so the last checkpoint counts; to have a judge: {FETCH}")
    squares = [Image.fromarray(photo.square()) for photo in given.photos.photos]
    return Exam(run, given.base, given.judge, settings.kind, noun_of(settings), squares)


def _taught(
    settings: Training, lesson: Lesson, plan: Plan, chosen: Preset, exam: Exam | None, say: Callable[[str], None]
) -> End:
    """Teach; where and why the run ended."""
    course = course_of(chosen, settings.samples, settings.early_stop)
    if not lesson.accelerator.is_main_process:
        ended = follow(lesson, plan, course, Silent(), None, say)
        lesson.accelerator.wait_for_everyone()
        return ended
    photos = plan.identity["batch"]
    facts = {"steps": plan.steps, "photos": lesson.photos.count, "photos a step": photos, "rate": chosen.lr}
    with (
        tracked(settings.report_to, plan.run, facts) as track,
        Journal(plan.run, plan.start, plan.steps, track) as journal,
    ):
        ended = follow(lesson, plan, course, journal, exam, say)
    lesson.accelerator.wait_for_everyone()
    trials = exam.held if exam else []
    save_curves(plan.run / CURVES, journal.losses, journal.measured, trials, course.pivot)
    return ended


def _best(run: Path, lesson: Lesson, ended: End, exam: Exam | None, say: Callable[[str], None]) -> Trial:
    """The best trial, with the lesson as it was then; without any, the end."""
    best = exam.best if exam else None
    if best is None or best.step == ended.step:
        return best or Trial(ended.step, None)
    try:
        load_step(run, best.step, lesson.learned())
        return best
    except PersonalError as error:
        say(f"{error.problem} The last one counts.")
        load_step(run, ended.step, lesson.learned())
        return next(trial for trial in exam.held if trial.step == ended.step)


def _how_it_ended(ended: End, plan: Plan, best: Trial) -> str:
    early = f", {ended.why}; {plan.steps} were allowed" if ended.why else ""
    kept = "" if best.step == ended.step else f" The concept is as it was after step {best.step}."
    return f"It ended after step {ended.step}{early}.{kept}"


def _silently(_: str) -> None:
    pass
