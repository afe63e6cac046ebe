"""Run a whole training, from settings to a concept in the library, a sample sheet and a report."""

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
from ..progress import OnProgress
from ..units import format_duration
from .build_concept import build_concept
from .checkpoint import load_step
from .control import poll
from .curves import CURVES_FILE as CURVES
from .curves import save_curves
from .dataset import PhotoDataset, fit_captions
from .distributed import check_same_start, fail_together, init_distributed
from .dry_run import COST_FILE as COST
from .dry_run import perform_dry_run
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
from .train_result import TrainResult
from .validation import Validation, Validator


def train(
    settings: TrainingSettings, log: Callable[[str], None] = print, on_progress: OnProgress | None = None
) -> TrainResult | None:
    """Train a concept and add it to the library.

    on_progress: called after each step, in place of a bar.
    Returns: the result in the main process, None in the others.
    Raises: UserError (bad photos, another run in the folder, out of memory, ...), Diverged, DiskFull, Interrupted;
    each leaves the library as it was and the newest checkpoint whole. One process raises it, the others SystemExit.
    """
    started_at = time.monotonic()
    accelerator = init_distributed()
    log = ignore_broken_pipe(log) if accelerator.is_main_process else _discard
    with fail_together(accelerator), ExitStack() as stack:
        check_tracker_installed(settings.report_to)
        run = run_folder(settings)
        check_before_loading(settings)
        check_not_finished(settings, run)
        storage.check_folder(run)
        inputs = _load(settings, accelerator, log)
        base = inputs.base
        if accelerator.is_main_process:
            stack.enter_context(storage.lock(run))
            storage.remove_leftovers(run)
            poll(run)  # drop a command that an earlier run did not read
        method_preset = chosen_preset(settings, base.kind, len(inputs.photos.photos))
        state, config, validator = _setup(settings, run, accelerator, inputs, method_preset, stack, log)
        end = _fit(settings, state, config, method_preset, validator, log, on_progress)
        if not accelerator.is_main_process:
            return None
        best = _restore_best(run, state, end, validator, log)
        with state.ema.applied():
            concept = build_concept(settings, base, state.method, method_preset, best, state.method.finish(run))
        state.method.close()
        concept, sheet = add_sample_sheet(concept, base, run, log) if settings.samples else (concept, None)
        seconds = time.monotonic() - started_at
        summary = RunSummary(
            inputs.photo_report, _ending_text(end, config, best), validator.scorer_name if validator else "", seconds
        )
        report = write_report(run, concept, validator.validations if validator else [], summary)
        token = Library(settings.library).add(concept)
        result = {"token": str(token), "sha256": concept.identity, "steps": end.step, "best": best.step}
        storage.write_json(run / RESULT_FILE, result | {"seconds": round(seconds, 1)})
    for line in explain_scores(best.scores, subject_noun(settings)) if best.scores else ():
        log(line)
    log(f"{token} is in {settings.library}, after {format_duration(seconds)}. All about it: {report}")
    return TrainResult(token, run, sheet, seconds, settings.library)


@dataclass(frozen=True)
class _Inputs:
    """The inputs of a run. judge: None unless the main process has one; said: the report on the photos, in lines."""

    base: StableDiffusion
    photos: PhotoSet
    scorer: Scorer | None
    photo_report: list[str]


def _load(settings: TrainingSettings, accelerator: Accelerator, say: Callable[[str], None]) -> _Inputs:
    with OomAdvice(accelerator.device, settings, 0, 1).translate("loading the base", "Take a smaller base."):
        base = load_base(settings.base, accelerator.device, revision=settings.revision, vae=settings.vae)
    say(describe_base(base, settings.base))
    if settings.checkpointing:
        base.enable_gradient_checkpointing(settings.checkpointing)
    photos = load_photos(settings.photos, settings.resolution or base.resolution, settings.crop, settings.kind)
    if not accelerator.is_main_process:
        return _Inputs(base, photos, None, [])
    judge = scorer_for_base(base.kind)
    check_report = check(photos, settings.kind, getattr(settings, "class_noun", None) or "", judge)
    lines = [*photos.report().splitlines(), *(check_report.lines() if check_report.findings else ())]
    say("\n".join(lines))
    return _Inputs(base, photos, judge, lines)


def _setup(
    settings: TrainingSettings,
    run: Path,
    accelerator: Accelerator,
    given: _Inputs,
    chosen: Preset,
    held: ExitStack,
    say: Callable[[str], None],
) -> tuple[TrainState, LoopConfig, Validator | None]:
    """Build method, optimizer, data and validator, and dry-run a step.

    The method's close() is pushed on `held`; only the main process gets a validator.
    """
    base, photos = given.base, given.photos
    side = settings.resolution or base.resolution
    per_step = chosen.batch * settings.accumulate * accelerator.num_processes
    identity = run_identity(settings, base, photos, chosen, per_step)
    check_no_earlier_run(settings, run, identity, chosen.steps)
    oom_advice = OomAdvice(accelerator.device, settings, side, chosen.batch)
    with oom_advice.translate("before the first step"):
        method = build_method(settings, base, chosen, accelerator, say)
        held.callback(method.close)
        usual = preset(method_name(settings), base.kind, settings.kind)
        optimizer = make_optimizer(settings.optimizer, method.param_groups(), chosen.lr, usual.lr)
        templates = CAPTION_TEMPLATES[settings.kind]
        fitted_photos, cut_notes = fit_captions(base, [method.caption_pieces, in_class(settings)], photos.photos)
        given.photo_report.extend(cut_notes)
        if cut_notes:
            say("\n".join(cut_notes))
        data = PhotoDataset(base, fitted_photos, templates, settings.seed, settings.flip, settings.noise_offset)
        validator = (
            _build_validator(settings, run, given, say) if settings.samples and accelerator.is_main_process else None
        )
        average = EMA(method.trainable_parameters(), chosen.ema_decay) if chosen.ema_decay else NoEMA()
        state = TrainState(accelerator, method, data, optimizer, oom_advice, average)
        intro = (
            f"Learning {settings.token} by {method.name} at {side} px: up to {chosen.steps} steps of {per_step} photos"
        )
        if settings.resume:
            say(f"{intro}.")
        else:
            cost = perform_dry_run(state, chosen.batch, settings.accumulate, run)
            validation_seconds = chosen.milestones * ((validator.seconds if validator else 0) + cost.checkpoint)
            seconds = chosen.steps * cost.step + validation_seconds
            if accelerator.is_main_process:
                storage.write_json(run / COST, cost.as_json() | {"steps": chosen.steps, "seconds": round(seconds, 1)})
            say(f"{intro}, about {format_duration(seconds)}; {cost.memory_text()}.")
        start = start_step(settings, run, state.checkpoint_state(), identity, chosen.steps, say)
        check_same_start(accelerator, photos, identity, start)
    if validator and validator.scorer_name:
        validator.resume_from(start)
    config = LoopConfig(
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
    return state, config, validator


def _build_validator(settings: TrainingSettings, run: Path, given: _Inputs, say: Callable[[str], None]) -> Validator:
    if given.scorer is None:
        say(f"Nobody here can judge the pictures, so the last checkpoint counts; to have a judge: {FETCH_COMMAND}")
    squares = [Image.fromarray(photo.square()) for photo in given.photos.photos]
    return Validator(run, given.base, given.scorer, settings.kind, subject_noun(settings), squares)


def _fit(
    settings: TrainingSettings,
    state: TrainState,
    config: LoopConfig,
    chosen: Preset,
    validator: Validator | None,
    say: Callable[[str], None],
    on_progress: OnProgress | None,
) -> RunEnd:
    """Train the method; return where and why the run ended."""
    milestones = plan_milestones(chosen, settings.samples, settings.early_stop)
    if not state.accelerator.is_main_process:
        end = run_milestones(state, config, milestones, NullLog(), None, say)
        state.accelerator.wait_for_everyone()
        return end
    photos = config.identity["batch"]
    facts = {"steps": config.steps, "photos": state.photos.count, "photos a step": photos, "rate": chosen.lr}
    with (
        open_tracker(settings.report_to, config.run, facts) as track,
        ProgressLog(config.run, config.start, config.steps, track, on_progress=on_progress) as log,
    ):
        end = run_milestones(state, config, milestones, log, validator, say)
    state.accelerator.wait_for_everyone()
    validations = validator.validations if validator else []
    save_curves(config.run / CURVES, log.losses, log.fixed_batch_losses, validations, milestones.pivot)
    return end


def _restore_best(
    run: Path, state: TrainState, ended: RunEnd, validator: Validator | None, say: Callable[[str], None]
) -> Validation:
    """Restore the best checkpoint and return its validation; without one, return the last step's, unscored."""
    best = validator.best if validator else None
    if best is None or best.step == ended.step:
        return best or Validation(ended.step, None)
    try:
        load_step(run, best.step, state.checkpoint_state())
        return best
    except UserError as error:
        say(f"{error.message} The last one counts.")
        load_step(run, ended.step, state.checkpoint_state())
        return next(validation for validation in validator.validations if validation.step == ended.step)


def _ending_text(ended: RunEnd, config: LoopConfig, best: Validation) -> str:
    early = f", {ended.reason}; {config.steps} were allowed" if ended.reason else ""
    restored = "" if best.step == ended.step else f" The concept is as it was after step {best.step}."
    return f"It ended after step {ended.step}{early}.{restored}"


def _discard(_: str) -> None:
    pass
