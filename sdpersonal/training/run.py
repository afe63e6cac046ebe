"""Run a whole training, from settings to a concept in the library, a sample sheet and a report."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from PIL import Image

from .. import storage
from ..config import TrainingSettings
from ..display.progress import OnProgress
from ..display.units import format_duration
from ..evaluation import Scorer, explain_scores, scorer_for_base
from ..evaluation.scorers import FETCH_COMMAND
from ..models import describe_base, load_base
from ..photos.checks import check
from ..photos.loading import load_photos
from .control import poll
from .curves import save_curves
from .dataset import PhotoDataset, fit_captions
from .distributed import Accelerator, check_same_start, init_distributed
from .dry_run import perform_dry_run
from .early_stopping import can_converge, fixed_inputs
from .gradients import loss_scaler
from .methods.factory import (
    build_method,
    check_before_loading,
    insert_class_noun,
    resolve_preset,
    subject_noun,
)
from .methods.protocol import Method
from .milestones import RunEnd, milestone_steps, run_milestones
from .oom_advice import OomAdvice
from .optim import EMA, NoEMA, lr_factor, make_optimizer
from .own_prompts import read_own_prompts
from .process_failures import fail_together
from .progress_log import ProgressLog, ignore_broken_pipe
from .prompt_templates import CAPTION_TEMPLATES
from .resume import check_no_earlier_run, check_not_finished, run_folder, run_identity, start_step
from .run_dir import (
    COST_FILE,
    CURVES_FILE,
    VALIDATIONS_FOLDER,
)
from .run_ending import restore_best, save_concept, save_snapshot
from .run_inputs import RunInputs
from .trackers import check_tracker_installed, open_tracker
from .train_result import TrainResult
from .train_state import LoopConfig, LoopHooks, SharedTraining, TrainState
from .validation import Validator


def train(
    settings: TrainingSettings,
    log: Callable[[str], None] = print,
    on_progress: OnProgress | None = None,
    joint: SharedTraining | None = None,
) -> TrainResult | None:
    """Train a concept and add it to the library.

    on_progress: called after each step, in place of a bar.
    joint: what it shares with other runs that are trained in the same batch.
    Returns: the result in the main process, None in the others.
    Raises: UserError (bad photos, another run in the folder, out of memory, ...), Diverged, DiskFull, Interrupted;
    each leaves the library as it was and the newest checkpoint whole. One process raises it, the others SystemExit.
    """
    started_at = time.monotonic()
    accelerator = init_distributed()
    say = ignore_broken_pipe(log) if accelerator.is_main_process else _discard
    with fail_together(accelerator), ExitStack() as stack:
        check_tracker_installed(settings.report_to)
        run = run_folder(settings)
        check_before_loading(settings)
        check_not_finished(settings, run)
        storage.check_folder(run)
        inputs = _load(settings, run, accelerator, say, joint)
        if accelerator.is_main_process:
            stack.enter_context(storage.lock(run))
            for folder in (run, run / VALIDATIONS_FOLDER):
                if folder.exists():
                    storage.remove_leftovers(folder)
            poll(run)  # drop a command that an earlier run did not read
        state, config, validator = _setup(inputs, stack, captures=False if joint else None)
        if joint:
            joint.join(state)  # only now: the dry run measures this run's own steps
        end = _fit(inputs, state, config, validator, on_progress)
        if not accelerator.is_main_process:
            return None
        best = restore_best(inputs, state, end, validator)
        result = save_concept(inputs, state, validator, end, best, started_at)
    for line in explain_scores(best.scores, subject_noun(settings), settings.kind) if best.scores else ():
        say(line)
    duration = format_duration(result.seconds)
    say(f"{result.token} was added to {settings.library} after {duration}. Report: {result.report}")
    return result


def _load(
    settings: TrainingSettings,
    run: Path,
    accelerator: Accelerator,
    say: Callable[[str], None],
    joint: SharedTraining | None,
) -> RunInputs:
    with OomAdvice(accelerator.device, settings, 0, 1).translate("while loading the model", "Use a smaller --base."):
        base = (
            joint.base
            if joint
            else load_base(settings.base, accelerator.device, revision=settings.revision, vae=settings.vae)
        )
    say(describe_base(base, settings.base))
    if settings.checkpointing:
        base.enable_gradient_checkpointing(settings.checkpointing)
    photos = load_photos(settings.photos, settings.resolution or base.resolution, settings.crop, settings.kind)
    scorer, lines = None, []
    if accelerator.is_main_process:
        scorer = joint.scorer if joint else scorer_for_base(base.kind)
        if scorer:
            scorer.use_device(base.device)
        clip = scorer if base.kind == "tiny" else Scorer()  # the limits of the checks are those of the built-in CLIP
        findings = check(photos, settings.kind, getattr(settings, "class_noun", None) or "", clip, base.kind)
        lines = [*photos.report().splitlines(), *(findings.lines() if findings.findings else ())]
        say("\n".join(lines))
    resolved = resolve_preset(settings, base.kind, len(photos.photos))
    return RunInputs(settings, run, accelerator, base, photos, scorer, lines, resolved, say)


def _setup(
    inputs: RunInputs, stack: ExitStack, captures: bool | None
) -> tuple[TrainState, LoopConfig, Validator | None]:
    """Build method, optimizer, data and validator, and dry-run a step.

    The method's close() is pushed on `stack`; only the main process gets a validator. captures: see `TrainState`; the
    passes of a run that shares them with others are computed elsewhere.
    """
    settings, run, preset, accelerator = inputs.settings, inputs.run, inputs.preset, inputs.accelerator
    identity = run_identity(settings, inputs.base, inputs.photos, preset, inputs.photos_per_step)
    check_no_earlier_run(settings, run, identity, preset.steps)
    oom_advice = OomAdvice(accelerator.device, settings, inputs.resolution, preset.batch)
    with oom_advice.translate("before the first step"):
        state = _build_state(inputs, oom_advice, stack, captures)
        validator = _build_validator(inputs, state.method) if settings.samples and accelerator.is_main_process else None
        intro = (
            f"Training {settings.token} with {state.method.name} at {inputs.resolution} px: up to {preset.steps} steps "
            f"of {inputs.photos_per_step} photos"
        )
        inputs.say(f"{intro}." if settings.resume else f"{intro}, {_dry_run(inputs, state, validator)}.")
        state.step = start_step(settings, run, state.checkpoint_state(), identity, preset.steps, inputs.say)
        check_same_start(accelerator, inputs.photos, identity, state.step)
    if validator:
        validator.resume_from(state.step)
    return state, _loop_config(inputs, state, identity), validator


def _build_state(inputs: RunInputs, oom_advice: OomAdvice, stack: ExitStack, captures: bool | None) -> TrainState:
    settings, base, resolved = inputs.settings, inputs.base, inputs.preset
    method = build_method(settings, base, resolved, inputs.accelerator, inputs.say)
    stack.callback(method.close)
    optimizer = make_optimizer(settings.optimizer, method.param_groups(), resolved.lr, inputs.preset_lr)
    photos, notes = fit_captions(base, [method.caption_pieces, insert_class_noun(settings)], inputs.photos.photos)
    inputs.photo_report.extend(notes)
    if notes:
        inputs.say("\n".join(notes))
    templates = CAPTION_TEMPLATES[settings.kind]
    data = PhotoDataset(base, photos, templates, settings.seed, settings.flip, settings.noise_offset)
    ema = EMA(method.trainable_parameters(), resolved.ema_decay) if resolved.ema_decay else NoEMA()
    scaler = loss_scaler(method.autocast_dtype or base.dtype, base.device)
    return TrainState(
        inputs.accelerator,
        method,
        data,
        optimizer,
        oom_advice,
        ema,
        scaler=scaler,
        say=inputs.say,
        captures=captures,
    )


def _build_validator(inputs: RunInputs, method: Method) -> Validator:
    settings = inputs.settings
    if inputs.scorer is None:
        inputs.say(f"No CLIP model found to score samples, so the last checkpoint is used. To get one: {FETCH_COMMAND}")
    squares = [Image.fromarray(photo.square()) for photo in inputs.photos.photos]
    noun = subject_noun(settings)
    validator = Validator(
        inputs.run,
        inputs.base,
        inputs.scorer,
        settings.kind,
        noun,
        squares,
        method.autocast_dtype,
        own_prompts=lambda: read_own_prompts(inputs.run, settings.sample_prompts, settings.token, settings.kind),
        save_snapshot=partial(save_snapshot, inputs),
    )
    if validator.evaluation and validator.evaluation.out_of_domain:
        inputs.say(
            "The built-in CLIP cannot score photographs, so the run has all its steps and the last checkpoint is used."
        )
    return validator


def _dry_run(inputs: RunInputs, state: TrainState, validator: Validator | None) -> str:
    """Measure the cost of the run and save it; return it in words."""
    preset = inputs.preset
    cost = perform_dry_run(state, preset.batch, inputs.settings.accumulate, inputs.run)
    milestone_seconds = (validator.seconds if validator else 0) + cost.checkpoint
    seconds = preset.steps * cost.step + preset.milestones * milestone_seconds
    if inputs.accelerator.is_main_process:
        measurements = cost.as_json() | {"steps": preset.steps, "seconds": round(seconds, 1)}
        storage.write_json(inputs.run / COST_FILE, measurements)
    return f"about {format_duration(seconds)}; {cost.memory_text()}"


def _loop_config(inputs: RunInputs, state: TrainState, identity: dict[str, object]) -> LoopConfig:
    settings, resolved = inputs.settings, inputs.preset
    early_stop = settings.early_stop and can_converge(resolved.steps, resolved.measure_every)
    measures = inputs.accelerator.is_main_process and resolved.steps >= resolved.measure_every
    return LoopConfig(
        run=inputs.run,
        steps=resolved.steps,
        batch=resolved.batch,
        accumulate=settings.accumulate,
        save_every=settings.save_every,
        lr=inputs.lr,
        lr_factor=lr_factor(settings, resolved),
        identity=identity,
        milestones=milestone_steps(resolved.steps, resolved.milestones if settings.samples or early_stop else 1),
        early_stop=early_stop,
        pivot_steps=resolved.pivot_steps,
        fixed_batch=fixed_inputs(state.method, state.photos, resolved.batch, inputs.base.device) if measures else (),
        measure_every=resolved.measure_every,
        usual_lr=inputs.usual_lr,
    )


def _fit(
    inputs: RunInputs,
    state: TrainState,
    config: LoopConfig,
    validator: Validator | None,
    on_progress: OnProgress | None,
) -> RunEnd:
    """Train the method; return where and why the run ended."""
    if not state.accelerator.is_main_process:
        end = run_milestones(state, config, LoopHooks(say=inputs.say))
        state.accelerator.wait_for_everyone()
        return end
    facts: dict[str, float] = {"steps": config.steps, "photos": state.photos.count}
    facts |= {"photos a step": inputs.photos_per_step, "rate": inputs.preset.lr}
    with (
        open_tracker(inputs.settings.report_to, config.run, facts) as tracker,
        ProgressLog(config.run, state.step, config.steps, tracker, on_progress=on_progress) as log,
    ):
        end = run_milestones(state, config, LoopHooks(log, validator, inputs.say))
    state.accelerator.wait_for_everyone()
    validations = validator.validations if validator else []
    save_curves(config.run / CURVES_FILE, log.losses, log.fixed_batch_losses, validations, config.pivot_steps)
    return end


def _discard(_: str) -> None:
    pass
