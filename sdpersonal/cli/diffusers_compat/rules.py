"""Translate flags that depend on others: each rule reads several of diffusers' flags and sets some of ours."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable

from ...config import IDENTIFIER
from ...errors import UserError, printable
from .flags import FULL_ONLY, LORA_ONLY
from .instance_prompt import Subject, parse_subject, token_from_words
from .state import TranslationState
from .steps_and_rates import DIFFUSERS_CLASS_IMAGES, parse_number, set_learning_rate, set_steps

MIN_LORA_LR = 5e-5  # diffusers' recipes take 1e-6 to 1e-5 for whole models, 1e-4 and more for LoRA
_SCHEDULES = {
    "constant": "constant",
    "cosine": "cosine",
    "constant_with_warmup": "constant",
    "linear": "cosine",
    "polynomial": "cosine",
    "cosine_with_restarts": "cosine",
}


def _set_subject(state: TranslationState) -> None:
    """Set the token, the class noun and the kind from the prompts."""
    flags = state.diffusers_flags
    if "placeholder_token" in flags:
        token = token_from_words(flags["placeholder_token"], "--placeholder_token")
        state.set_flag("token", token, by="placeholder_token")
        if token != flags["placeholder_token"]:
            state.note(f"{printable(flags['placeholder_token'])} is {token} here: tokens have an owner.")
    if not state.has_flag("class"):
        return
    if "instance_prompt" in flags:
        prompt, class_prompt = flags["instance_prompt"], flags.get("class_prompt")
        state.subject = parse_subject(prompt, class_prompt, state.flags.get("class"))
        _note_subject(state, state.subject)
    elif state.is_diffusers and not {"token", "class"} <= state.flags.keys():
        raise UserError(
            "--instance_prompt is missing; it names what the photos show.",
            "For example --instance_prompt 'a photo of sks dog', or --token '<me/my-dog>' --class dog.",
        )


def _note_subject(state: TranslationState, subject: Subject) -> None:
    if "token" not in state.flags:
        state.set_default("token", subject.token)
        state.note(
            f"{printable(subject.phrase)!r} is {subject.token} here, a {printable(subject.noun)}: write "
            f"{subject.token} in "
            "prompts. It is trained with many captions, not with one."
        )
    state.set_default("class", subject.noun)
    if subject.kind != "object":
        state.set_default("kind", subject.kind)
    if subject.rest:
        state.note(
            f"{printable(subject.rest)!r} in --instance_prompt is not used: write it in a .txt beside each photo that "
            f"shows it, like '{{}} {printable(subject.rest)}'."
        )


def _set_method(state: TranslationState) -> None:
    """Infer the method from the flags, since diffusers has a script for each method."""
    flags, our_flags = state.diffusers_flags, state.flags
    if not state.is_diffusers or not state.has_flag("method") or "method" in our_flags:
        return
    named = flags.keys() | state.typed.keys()
    rate = parse_number(flags.get("learning_rate"))
    if names := sorted(LORA_ONLY & named):
        method, why = "lora", f"--{names[0]} is a flag of diffusers' LoRA scripts"
    elif names := sorted(FULL_ONLY & named):
        method, why = "full", f"--{names[0]} is a flag of diffusers' script for whole models"
    elif "xl" in os.path.basename(our_flags.get("base") or "").lower():
        method, why = "lora", "diffusers trains SDXL by LoRA"
    elif rate is not None:
        method = "lora" if rate >= MIN_LORA_LR else "full"
        why = f"--learning_rate {rate:g} is one for {'LoRA' if method == 'lora' else 'whole models'}"
    else:
        method, why = "full", "so does diffusers' script of this name"
    state.set_default("method", method)
    other = "--method full trains the whole model" if method == "lora" else "--method lora leaves a small file"
    state.note(f"method {method}: {why}; {other}.")
    if method == "full":
        name = f"{IDENTIFIER} {printable(our_flags.get('class') or '')}".strip()
        state.note(
            f"the whole model, for diffusers, will be in model/ in the run's folder; its prompt is {name!r}; "
            "the concept goes into your library."
        )


def _set_prior(state: TranslationState) -> None:
    flags = state.diffusers_flags
    folder = flags.get("class_data_dir")
    if "with_prior_preservation" not in flags:
        if folder:
            state.note("--class_data_dir: is used with --with_prior_preservation only, as in diffusers.")
        return
    count = state.flags.get("num_class_images") or str(DIFFUSERS_CLASS_IMAGES)
    if folder and (num_photos := _count_photos(state, folder)):
        folder = folder if os.path.dirname(folder) else os.path.join(".", folder)  # "generated" is a value of --prior
        state.set_flag("prior", folder, by="with_prior_preservation")
        if num_photos < (parse_number(count) or 0):
            state.note(
                f"--num_class_images: the {num_photos} photos in {printable(folder)} are used, and none is generated."
            )
        return
    state.set_flag("prior", "generated", by="with_prior_preservation")
    state.set_default("num_class_images", count)
    prompt = f"a photo of {printable(state.flags.get('class') or '')}"
    state.note(
        f"{printable(count)} class images of {prompt!r} are generated once and kept for every concept of that class; "
        "--class_data_dir stays unchanged."
    )


def _count_photos(state: TranslationState, folder: str) -> int:
    try:
        return state.environment.count_photos(folder)
    except UserError:  # the folder need not exist: diffusers creates it
        return 0


def _set_schedule(state: TranslationState) -> None:
    scheduler, warmup = state.diffusers_flags.get("lr_scheduler"), state.diffusers_flags.get("lr_warmup_steps")
    schedule = "constant"
    if scheduler is not None:
        if scheduler not in _SCHEDULES:
            raise UserError(f"--lr_scheduler {printable(scheduler, 40)} is not supported.", "Use constant or cosine.")
        schedule = _SCHEDULES[scheduler]
        state.set_flag("schedule", schedule, by="lr_scheduler")
        if schedule != scheduler:
            state.note(f"--lr_scheduler {scheduler}: the nearest here is {schedule}.")
    if warmup is not None and parse_number(warmup) != 0:
        also = "; diffusers' constant ignores it too" if scheduler in (None, "constant") else ""
        state.note(f"--lr_warmup_steps: there is no warm-up here{also}.")


def _set_optimizer(state: TranslationState) -> None:
    name, small = state.diffusers_flags.get("optimizer"), "use_8bit_adam" in state.diffusers_flags
    optimizer = (name or "adamw").lower()
    if small and optimizer == "adamw":
        optimizer = "adamw8bit"
    elif small:
        state.note(f"--use_8bit_adam: has no effect on {printable(optimizer, 40)}.")
    if name or small:
        state.set_flag("optimizer", optimizer, by="optimizer" if name else "use_8bit_adam")


def _set_resume(state: TranslationState) -> None:
    checkpoint, run = state.diffusers_flags.get("resume_from_checkpoint"), state.flags.get("run")
    if checkpoint is None:
        return
    if checkpoint != "latest":
        raise UserError(
            f"--resume_from_checkpoint {printable(checkpoint, 60)}: a run resumes from its newest checkpoint only.",
            "Use --resume_from_checkpoint latest, with the same --output_dir.",
        )
    if run and not state.environment.has_checkpoint(run):
        state.note(f"--resume_from_checkpoint: {printable(run)} has no checkpoint yet, so this is the start.")
    else:
        state.set_flag("resume", None, by="resume_from_checkpoint")


def _set_report_to(state: TranslationState) -> None:
    trackers = state.diffusers_flags.get("report_to")
    if trackers in ("tensorboard", "wandb"):
        state.set_flag("report_to", trackers, by="report_to")
    elif trackers == "all":
        state.set_flag("report_to", "tensorboard", by="report_to")
        state.note("--report_to all: TensorBoard is used; wandb is supported too.")
    elif trackers not in (None, "none"):
        raise UserError(f"--report_to {printable(trackers, 40)} is not supported.", "Use tensorboard, wandb or none.")


def _note_validation(state: TranslationState) -> None:
    prompt, token = state.diffusers_flags.get("validation_prompt"), state.flags.get("token")
    if prompt is None:
        return
    words = state.diffusers_flags.get("placeholder_token") or (state.subject.phrase if state.subject else "")
    if words and token:
        prompt = re.sub(re.escape(words), lambda _: token, prompt, flags=re.I)
    base = f" --base {shlex.quote(printable(base_name))}" if (base_name := state.flags.get("base")) else ""
    state.note(
        "--validation_prompt: samples.png is generated at the end, from built-in prompts; for yours: "
        f"sdpersonal generate {shlex.quote(printable(prompt, 200))}{base}"
    )


RULES: tuple[Callable[[TranslationState], None], ...] = (
    _set_subject,
    _set_method,
    _set_prior,
    set_learning_rate,
    set_steps,
    _set_schedule,
    _set_optimizer,
    _set_resume,
    _set_report_to,
    _note_validation,
)
"""The order matters: a later rule reads what an earlier one set."""
