"""Rules for flags that cannot be translated singly: each reads several of diffusers' flags and sets some of ours."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable

from ...config import IDENTIFIER
from ...errors import UserError
from ...prompts import printable
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


def _set_subject(reading: TranslationState) -> None:
    """Set the token, the class noun and the kind from the prompts."""
    flags = reading.diffusers_flags
    if "placeholder_token" in flags:
        token = token_from_words(flags["placeholder_token"], "--placeholder_token")
        reading.set_flag("token", token, by="placeholder_token")
        if token != flags["placeholder_token"]:
            reading.note(f"{printable(flags['placeholder_token'])} is {token} here: tokens have an owner.")
    if not reading.has_flag("class"):
        return
    if "instance_prompt" in flags:
        prompt, class_prompt = flags["instance_prompt"], flags.get("class_prompt")
        reading.subject = parse_subject(prompt, class_prompt, reading.flags.get("class"))
        _note_subject(reading, reading.subject)
    elif reading.is_diffusers and not {"token", "class"} <= reading.flags.keys():
        raise UserError(
            "--instance_prompt is missing; it names what is on the photos.",
            "For example --instance_prompt 'a photo of sks dog', or --token '<me/my-dog>' --class dog.",
        )


def _note_subject(reading: TranslationState, subject: Subject) -> None:
    if "token" not in reading.flags:
        reading.set_default("token", subject.token)
        reading.note(
            f"{printable(subject.phrase)!r} is {subject.token} here, a {printable(subject.noun)}: write "
            f"{subject.token} in "
            "prompts. It is taught in many sentences, not in one."
        )
    reading.set_default("class", subject.noun)
    if subject.kind != "object":
        reading.set_default("kind", subject.kind)
    if subject.rest:
        reading.note(
            f"{printable(subject.rest)!r} in --instance_prompt is not used: say it in a .txt beside each photo it is "
            f"true of, like '{{}} {printable(subject.rest)}'."
        )


def _set_method(reading: TranslationState) -> None:
    """Infer the method from the flags, since diffusers has a script for each method."""
    flags, our_flags = reading.diffusers_flags, reading.flags
    if not reading.is_diffusers or not reading.has_flag("method") or "method" in our_flags:
        return
    named = flags.keys() | reading.typed.keys()
    rate = parse_number(flags.get("learning_rate"))
    if names := sorted(LORA_ONLY & named):
        method, why = "lora", f"--{names[0]} is a flag of diffusers' LoRA scripts"
    elif names := sorted(FULL_ONLY & named):
        method, why = "full", f"--{names[0]} is a flag of diffusers' script for whole models"
    elif "xl" in os.path.basename(our_flags.get("base") or "").lower():
        method, why = "lora", "diffusers teaches SDXL by LoRA"
    elif rate is not None:
        method = "lora" if rate >= MIN_LORA_LR else "full"
        why = f"--learning_rate {rate:g} is one for {'LoRA' if method == 'lora' else 'whole models'}"
    else:
        method, why = "full", "so does diffusers' script of this name"
    reading.set_default("method", method)
    other = "--method full teaches the whole model" if method == "lora" else "--method lora leaves a small file"
    reading.note(f"method {method}: {why}; {other}.")
    if method == "full":
        name = f"{IDENTIFIER} {printable(our_flags.get('class') or '')}".strip()
        reading.note(
            f"the whole model, for diffusers, will be in model/ in the run's folder, and knows it as {name!r}; "
            "the concept goes into your library."
        )


def _set_prior(reading: TranslationState) -> None:
    flags = reading.diffusers_flags
    folder = flags.get("class_data_dir")
    if "with_prior_preservation" not in flags:
        if folder:
            reading.note("--class_data_dir: is used with --with_prior_preservation only, as in diffusers.")
        return
    count = reading.flags.get("class_pictures") or str(DIFFUSERS_CLASS_IMAGES)
    if folder and (num_photos := _count_photos(reading, folder)):
        folder = folder if os.path.dirname(folder) else os.path.join(".", folder)  # "drawn" is one of our words
        reading.set_flag("prior", folder, by="with_prior_preservation")
        if num_photos < (parse_number(count) or 0):
            reading.note(
                f"--num_class_images: the {num_photos} photos in {printable(folder)} are used, and none drawn."
            )
        return
    reading.set_flag("prior", "drawn", by="with_prior_preservation")
    reading.set_default("class_pictures", count)
    prompt = f"a photo of {printable(reading.flags.get('class') or '')}"
    reading.note(
        f"{printable(count)} class pictures of {prompt!r} are drawn once and kept for every concept of that class; "
        "--class_data_dir stays as it is."
    )


def _count_photos(reading: TranslationState, folder: str) -> int:
    try:
        return reading.environment.count_photos(folder)
    except UserError:  # the folder need not exist: diffusers creates it
        return 0


def _set_schedule(reading: TranslationState) -> None:
    scheduler, warmup = reading.diffusers_flags.get("lr_scheduler"), reading.diffusers_flags.get("lr_warmup_steps")
    schedule = "constant"
    if scheduler is not None:
        if scheduler not in _SCHEDULES:
            raise UserError(f"--lr_scheduler {printable(scheduler, 40)} is not known here.", "Take constant or cosine.")
        schedule = _SCHEDULES[scheduler]
        reading.set_flag("schedule", schedule, by="lr_scheduler")
        if schedule != scheduler:
            reading.note(f"--lr_scheduler {scheduler}: the nearest here is {schedule}.")
    if warmup is not None and parse_number(warmup) != 0:
        also = "; diffusers' constant ignores it too" if scheduler in (None, "constant") else ""
        reading.note(f"--lr_warmup_steps: there is no warm-up here{also}.")


def _set_optimizer(reading: TranslationState) -> None:
    name, small = reading.diffusers_flags.get("optimizer"), "use_8bit_adam" in reading.diffusers_flags
    optimizer = (name or "adamw").lower()
    if small and optimizer == "adamw":
        optimizer = "adamw8bit"
    elif small:
        reading.note(f"--use_8bit_adam: has no effect on {printable(optimizer, 40)}.")
    if name or small:
        reading.set_flag("optimizer", optimizer, by="optimizer" if name else "use_8bit_adam")


def _set_resume(reading: TranslationState) -> None:
    checkpoint, run = reading.diffusers_flags.get("resume_from_checkpoint"), reading.flags.get("run")
    if checkpoint is None:
        return
    if checkpoint != "latest":
        raise UserError(
            f"--resume_from_checkpoint {printable(checkpoint, 60)}: a run goes on from its newest checkpoint only.",
            "Give --resume_from_checkpoint latest, with the same --output_dir.",
        )
    if run and not reading.environment.has_checkpoint(run):
        reading.note(f"--resume_from_checkpoint: {printable(run)} has no checkpoint yet, so this is the start.")
    else:
        reading.set_flag("resume", None, by="resume_from_checkpoint")


def _set_report_to(reading: TranslationState) -> None:
    trackers = reading.diffusers_flags.get("report_to")
    if trackers in ("tensorboard", "wandb"):
        reading.set_flag("report_to", trackers, by="report_to")
    elif trackers == "all":
        reading.set_flag("report_to", "tensorboard", by="report_to")
        reading.note("--report_to all: TensorBoard gets it; wandb is the other that is known here.")
    elif trackers not in (None, "none"):
        raise UserError(f"--report_to {printable(trackers, 40)} is not known here.", "Take tensorboard, wandb or none.")


def _note_validation(reading: TranslationState) -> None:
    prompt, token = reading.diffusers_flags.get("validation_prompt"), reading.flags.get("token")
    if prompt is None:
        return
    words = reading.diffusers_flags.get("placeholder_token") or (reading.subject.phrase if reading.subject else "")
    if words and token:
        prompt = re.sub(re.escape(words), lambda _: token, prompt, flags=re.I)
    base = f" --base {shlex.quote(printable(reading.flags['base']))}" if reading.flags.get("base") else ""
    reading.note(
        "--validation_prompt: samples.png is drawn at the end, of prompts of ours; for yours: "
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
