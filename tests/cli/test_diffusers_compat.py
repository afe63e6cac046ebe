"""diffusers' command lines, read as ours."""

import os
import re
import runpy
import shlex
import sys

import pytest
import tyro
from hypothesis import given
from hypothesis import strategies as st

from conftest import ROOT
from sdpersonal.cli.diffusers_compat import Environment, translate
from sdpersonal.cli.diffusers_compat.flags import (
    DIFFUSERS_FLAGS,
    FULL_ONLY,
    LORA_ONLY,
    SWITCHES,
    RenamedFlag,
    SameFlag,
    SwitchFlag,
)
from sdpersonal.cli.diffusers_compat.instance_prompt import parse_subject, token_from_words
from sdpersonal.cli.main import main
from sdpersonal.concepts.library import Library
from sdpersonal.config import DreamboothSettings, TextualInversionSettings
from sdpersonal.errors import UserError

# What the training scripts of diffusers take, by their parse_args in August 2026.
COMMON = """adam_beta1 adam_beta2 adam_epsilon adam_weight_decay allow_tf32 center_crop checkpointing_steps
    checkpoints_total_limit dataloader_num_workers gradient_accumulation_steps gradient_checkpointing hub_model_id
    hub_token learning_rate local_rank logging_dir lr_num_cycles lr_scheduler lr_warmup_steps max_train_steps
    mixed_precision num_train_epochs num_validation_images output_dir pretrained_model_name_or_path push_to_hub
    report_to resolution resume_from_checkpoint revision scale_lr seed train_batch_size validation_prompt variant"""
DREAMBOOTH = """class_data_dir class_prompt instance_data_dir instance_prompt lr_power max_grad_norm num_class_images
    prior_generation_precision prior_loss_weight sample_batch_size train_text_encoder use_8bit_adam
    with_prior_preservation"""
DEEPFLOYD = """class_labels_conditioning pre_compute_text_embeddings text_encoder_use_attention_mask
    tokenizer_max_length tokenizer_name validation_images"""
PRODIGY = """adam_weight_decay_text_encoder optimizer prodigy_beta3 prodigy_decouple prodigy_safeguard_warmup
    prodigy_use_bias_correction repeats text_encoder_lr"""
DATASET = "cache_dir caption_column dataset_config_name dataset_name image_column"
XFORMERS = "enable_xformers_memory_efficient_attention"
SCRIPTS = {
    "train_dreambooth": f"""{COMMON} {DREAMBOOTH} {DEEPFLOYD} {XFORMERS} offset_noise set_grads_to_none
        skip_save_text_encoder snr_gamma validation_scheduler validation_steps""",
    "train_dreambooth_lora": f"""{COMMON} {DREAMBOOTH} {DEEPFLOYD} {XFORMERS} image_interpolation_mode lora_dropout rank
        validation_epochs""",
    "train_dreambooth_lora_sdxl": f"""{COMMON} {DREAMBOOTH} {PRODIGY} {DATASET} {XFORMERS} do_edm_style_training
        image_interpolation_mode lora_dropout output_kohya_format pretrained_vae_model_name_or_path random_flip rank
        snr_gamma use_dora validation_epochs""",
    "train_dreambooth_lora_advanced": f"""{COMMON} {DREAMBOOTH} {PRODIGY} {DATASET} {XFORMERS} cache_latents clip_skip
        do_edm_style_training image_interpolation_mode lora_dropout lora_unet_blocks noise_offset
        num_new_tokens_per_abstraction pretrained_vae_model_name_or_path random_flip rank snr_gamma token_abstraction
        train_text_encoder_frac train_text_encoder_ti train_text_encoder_ti_frac use_blora use_dora
        validation_epochs""",
    "train_dreambooth_sd3": f"""{COMMON} {DREAMBOOTH} {PRODIGY} {DATASET} cache_latents logit_mean logit_std lora_blocks
        lora_dropout lora_layers max_sequence_length mode_scale precondition_outputs random_flip rank
        upcast_before_saving validation_epochs weighting_scheme""",
    "textual_inversion": f"""{COMMON} {XFORMERS} initializer_token learnable_property no_safe_serialization num_vectors
        placeholder_token repeats save_as_full_pipeline save_steps tokenizer_name train_data_dir use_8bit_adam
        validation_epochs validation_steps""",
}

MACHINE = Environment(
    processes=1, count_photos=lambda folder: 5 if folder == "dog" else 0, has_checkpoint=lambda run: False
)

# The commands of the READMEs of diffusers' examples, each with the settings it has to come to.
SD14, SD15 = "CompVis/stable-diffusion-v1-4", "stable-diffusion-v1-5/stable-diffusion-v1-5"
XL = "stabilityai/stable-diffusion-xl-base-1.0"
PLAIN = f"""--pretrained_model_name_or_path={SD14} --instance_data_dir=dog --output_dir=path-to-save-model
    --instance_prompt="a photo of sks dog" --resolution=512 --train_batch_size=1 --lr_scheduler="constant"
    --lr_warmup_steps=0 --push_to_hub"""
PRIOR = f"""{PLAIN} --class_data_dir=path-to-class-images --with_prior_preservation --prior_loss_weight=1.0
    --class_prompt="a photo of dog" --num_class_images=200 --max_train_steps=800"""
XL_LORA = """--instance_data_dir=dog --mixed_precision="fp16" --instance_prompt="a photo of sks dog" --resolution=1024
    --train_batch_size=1 --gradient_accumulation_steps=4 --learning_rate=1e-4 --report_to="wandb"
    --lr_scheduler="constant" --lr_warmup_steps=0 --max_train_steps=500
    --validation_prompt="A photo of sks dog in a bucket" --validation_epochs=25 --seed="0" --push_to_hub"""
CAT = """--train_data_dir=./cat --learnable_property="object" --placeholder_token="<cat-toy>" --initializer_token="toy"
    --train_batch_size=1 --gradient_accumulation_steps=4 --learning_rate=5.0e-04 --scale_lr --lr_scheduler="constant"
    --lr_warmup_steps=0"""
DOG = {"token": "<me/sks-dog>", "class_noun": "dog", "photos": "dog", "resolution": 512, "batch": 1}
FULL = DOG | {"method": "full", "base": SD14, "lr": 5e-6, "run": "path-to-save-model", "schedule": "constant"}
DRAWN = FULL | {"prior": "generated", "prior_weight": 1.0, "num_class_images": 200, "steps": 800}
TOY = {"token": "<me/cat-toy>", "init": "toy", "kind": "object", "photos": "cat", "lr": 0.002, "batch": 1}
README = {
    "whole model": (
        f"{PLAIN} --gradient_accumulation_steps=1 --learning_rate=5e-6 --max_train_steps=400",
        FULL | {"steps": 400, "accumulate": 1, "prior": "none"},
    ),
    "prior preservation": (f"{PRIOR} --gradient_accumulation_steps=1 --learning_rate=5e-6", DRAWN),
    "16 GB": (
        f"{PRIOR} --gradient_accumulation_steps=2 --gradient_checkpointing --use_8bit_adam --learning_rate=5e-6",
        DRAWN | {"accumulate": 2, "checkpointing": 1, "optimizer": "adamw8bit"},
    ),
    "12 GB": (
        f"""{PRIOR} --gradient_accumulation_steps=1 --gradient_checkpointing --use_8bit_adam --learning_rate=2e-6
        --enable_xformers_memory_efficient_attention --set_grads_to_none""",
        DRAWN | {"checkpointing": 1, "optimizer": "adamw8bit", "lr": 2e-6},
    ),
    "8 GB": (
        f"""{PRIOR} --sample_batch_size=1 --gradient_accumulation_steps=1 --gradient_checkpointing
        --learning_rate=5e-6""",
        DRAWN | {"checkpointing": 1, "optimizer": "adamw"},
    ),
    "text encoder": (
        f"{PRIOR} --train_text_encoder --use_8bit_adam --gradient_checkpointing --learning_rate=2e-6",
        DRAWN | {"text_encoder": True, "optimizer": "adamw8bit", "lr": 2e-6},
    ),
    "LoRA": (
        f"""--pretrained_model_name_or_path={SD15} --instance_data_dir=dog --output_dir=path-to-save-model
        --instance_prompt="a photo of sks dog" --resolution=512 --train_batch_size=1 --gradient_accumulation_steps=1
        --checkpointing_steps=100 --learning_rate=1e-4 --report_to="wandb" --lr_scheduler="constant"
        --lr_warmup_steps=0 --max_train_steps=500 --validation_prompt="A photo of sks dog in a bucket"
        --validation_epochs=50 --seed="0" --push_to_hub""",
        DOG
        | {
            "method": "lora",
            "base": SD15,
            "lr": 1e-4,
            "steps": 500,
            "save_every": 100,
            "report_to": "wandb",
            "seed": 0,
        },
    ),
    "SDXL LoRA": (
        f"""{XL_LORA} --pretrained_model_name_or_path={XL} --output_dir=lora-trained-xl
        --pretrained_vae_model_name_or_path=madebyollin/sdxl-vae-fp16-fix""",
        DOG
        | {"method": "lora", "base": XL, "vae": "madebyollin/sdxl-vae-fp16-fix", "resolution": 1024, "accumulate": 4}
        | {"lr": 1e-4, "steps": 500, "run": "lora-trained-xl", "report_to": "wandb"},
    ),
    "SDXL LoRA, 16 GB": (
        f"""{XL_LORA} --pretrained_model_name_or_path={XL} --output_dir=lora-trained-xl
        --enable_xformers_memory_efficient_attention --gradient_checkpointing --use_8bit_adam""",
        DOG | {"method": "lora", "resolution": 1024, "checkpointing": 1, "optimizer": "adamw8bit"},
    ),
    "textual inversion": (
        f"""{CAT} --pretrained_model_name_or_path={SD15} --resolution=512 --max_train_steps=3000 --push_to_hub
        --output_dir=textual_inversion_cat""",
        TOY | {"base": SD15, "steps": 3000, "accumulate": 4, "resolution": 512, "run": "textual_inversion_cat"},
    ),
    "textual inversion, earlier": (
        f"""--pretrained_model_name_or_path={SD14} --use_auth_token {CAT} --resolution=512 --max_train_steps=3000
        --output_dir="textual_inversion_cat" """,
        TOY | {"base": SD14, "steps": 3000},
    ),
    "SDXL textual inversion": (
        f"""{CAT} --pretrained_model_name_or_path={XL} --mixed_precision="bf16" --resolution=768 --max_train_steps=500
        --save_as_full_pipeline --output_dir="./textual_inversion_cat_sdxl" """,
        TOY | {"base": XL, "steps": 500, "resolution": 768},
    ),
}


def read(command, trainer=None, machine=MACHINE):
    """(settings, notes) of a command line."""
    argv = shlex.split(command) if isinstance(command, str) else command
    trainer = trainer or (TextualInversionSettings if "train_data_dir" in "".join(argv) else DreamboothSettings)
    ours = translate(trainer, argv, machine)
    return tyro.cli(trainer, args=ours.argv), ours.notes


def says(notes, *parts):
    return any(all(part in note for part in parts) for note in notes)


DOGS = "--instance_data_dir dog --instance_prompt 'a photo of sks dog'"
CATS = "--train_data_dir cat --placeholder_token '<cat-toy>' --initializer_token toy"


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_diffusers_flag_is_in_the_table(script):
    assert set(SCRIPTS[script].split()) - DIFFUSERS_FLAGS.keys() == set()


def test_the_table_has_only_flags_of_the_diffusers_scripts():
    everything = {flag for flags in SCRIPTS.values() for flag in flags.split()}
    assert DIFFUSERS_FLAGS.keys() - everything == {"use_auth_token"}  # of older READMEs
    assert (SWITCHES | LORA_ONLY | FULL_ONLY) - DIFFUSERS_FLAGS.keys() == set()


def test_method_specific_flags_belong_to_one_kind_of_script():
    full, lora = (set(SCRIPTS[name].split()) for name in ("train_dreambooth", "train_dreambooth_lora"))
    sdxl = set(SCRIPTS["train_dreambooth_lora_sdxl"].split()) | set(SCRIPTS["train_dreambooth_lora_advanced"].split())
    assert LORA_ONLY - ((lora | sdxl) - full) == set()
    assert FULL_ONLY - (full - lora - sdxl) == set()


def test_every_target_in_the_table_is_a_setting():
    known = DreamboothSettings.model_fields.keys() | TextualInversionSettings.model_fields.keys()
    for name, habit in DIFFUSERS_FLAGS.items():
        assert not isinstance(habit, RenamedFlag | SwitchFlag) or habit.ours in known, name
        assert not isinstance(habit, SameFlag) or name in known, name


@pytest.mark.parametrize("name", README)
def test_commands_of_the_diffusers_readmes_are_translated(name):
    command, expected = README[name]
    settings, notes = read(command)
    got = {key: str(value) if isinstance(expected[key], str) else value for key, value in settings if key in expected}
    assert got == expected
    assert all("\n" not in note for note in notes)


def test_both_spellings_of_a_flag_give_the_same_settings():
    result = read("--instance_data_dir=dog --instance_prompt 'a photo of sks dog' --max_train_steps 7 --random_flip")
    other = read("--instance-data-dir dog --instance-prompt='a photo of sks dog' --max-train-steps=7 --random-flip")
    assert result == other and result[0].steps == 7 and result[0].flip


def test_native_flags_are_not_translated():
    argv = shlex.split("--photos dog --token '<me/a>' --class dog --rank 4 --seed=3 --lr 1e-3 --snr_gamma 5 --flip")
    assert translate(DreamboothSettings, argv, MACHINE) == type(translate(DreamboothSettings, [], MACHINE))(argv, [])
    argv = shlex.split("--photos dog --token '<me/a>' --class dog --optimizer prodigy --report-to wandb")
    settings, notes = read(argv)
    assert (settings.optimizer, settings.report_to, settings.method, notes) == ("prodigy", "wandb", "lora", [])


def test_the_equivalent_command_gives_the_same_settings():
    settings, notes = read(README["SDXL LoRA"][0])
    shown = next(note for note in notes if note.startswith("the same in this program's flags: "))
    assert tyro.cli(DreamboothSettings, args=shlex.split(shown.partition(": ")[2])) == settings


# --- which method -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "method"),
    [
        ("--learning_rate 5e-6", "full"),
        ("--learning_rate 1e-4", "lora"),
        ("", "full"),
        ("--learning_rate 5e-6 --rank 8", "lora"),
        ("--validation_epochs 5", "lora"),
        ("--set_grads_to_none --learning_rate 1e-4", "full"),
        ("--offset_noise", "full"),
        ("--learning_rate 5e-6 --method pivotal", "pivotal"),
        (f"--pretrained_model_name_or_path {XL}", "lora"),
        ("--train_text_encoder_ti --learning_rate 1e-4", "pivotal"),
    ],
)
def test_the_method_follows_from_the_flags(flags, method):
    settings, notes = read(f"{DOGS} {flags}")
    assert settings.method == method
    assert says(notes, f"method {method}: ") == (method != "pivotal")


def test_native_commands_default_to_the_lora_method():
    assert read("--photos dog --token '<me/a>' --class dog --learning_rate 5e-6")[0].method == "lora"


# --- the subject ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "class_prompt", "token", "noun", "kind", "around"),
    [
        ("a photo of sks dog", None, "<me/sks-dog>", "dog", "object", ""),
        ("a photo of a sks dog", "a photo of a dog", "<me/sks-dog>", "dog", "object", ""),
        ("photo of ohwx woman, portrait", None, "<me/ohwx-woman>", "woman", "person", "portrait"),
        (
            "a close-up photo of zwx golden retriever",
            None,
            "<me/zwx-golden-retriever>",
            "golden retriever",
            "object",
            "",
        ),
        ("a photo of sks", "a photo of dog", "<me/sks>", "dog", "object", ""),
        ("a sks dog", None, "<me/sks-dog>", "dog", "object", ""),
        ("A PHOTO OF TOK Dog", None, "<me/tok-dog>", "Dog", "object", ""),
        ("a photo of a [V] dog on white background", None, "<me/v-dog>", "dog", "object", "on white background"),
        ("a 3d icon in the style of TOK", None, "<me/tok>", "3d icon", "style", ""),
        ("a painting in the style of sks", "a painting", "<me/sks>", "painting", "style", ""),
        ("a photo of sks bottle of water", None, "<me/sks-bottle-of-water>", "bottle of water", "object", ""),
        ("  a   photo of\tsks  dog  ", None, "<me/sks-dog>", "dog", "object", ""),
    ],
)
def test_instance_prompts_give_token_class_noun_and_kind(prompt, class_prompt, token, noun, kind, around):
    subject = parse_subject(prompt, class_prompt)
    assert (subject.token, subject.noun, subject.kind, subject.rest) == (token, noun, kind, around)


# Instance prompts as people have them in scripts, notebooks and issues: token, class noun, kind, what is around it.
REAL = {
    "photo of a dog sks": ("sks-dog", "dog", "object"),
    "photo of man sks": ("sks-man", "man", "person"),
    "a photo of a man named sks": ("sks-man", "man", "person"),
    "a photo of a dog named sks": ("sks-dog", "dog", "object"),
    "a photo of a woman called ohwx": ("ohwx-woman", "woman", "person"),
    'close-up photo of a cat called "milo"': ("milo-cat", "cat", "object"),
    "a photo of a golden retriever named Max in the park": ("max-golden-retriever", "golden retriever", "object"),
    "photo collage of sks dog": ("sks-dog", "dog", "object"),
    "collage of sks dog": ("sks-dog", "dog", "object"),
    "a photo of a person, ohwx": ("ohwx-person", "person", "person"),
    "sks, dog": ("sks-dog", "dog", "object"),
    "sks dog": ("sks-dog", "dog", "object"),
    "sks person": ("sks-person", "person", "person"),
    "portrait of ohwx man, best quality": ("ohwx-man", "man", "person"),
    "ohwx man wearing a suit": ("ohwx-man", "man", "person"),
    "a picture of xyz woman smiling": ("xyz-woman", "woman", "person"),
    "masterpiece, best quality, sks 1girl, aqua eyes, aqua hair": ("sks-1girl", "1girl", "person"),
    "portrait of male HighCWu": ("highcwu-male", "male", "person"),
    "a photo of zwx style": ("zwx-style", "style", "style"),
    "sks style": ("sks-style", "style", "style"),
    "an anime drawing in sks style": ("sks-style", "style", "style"),
    "a TOK-style illustration of a cat": ("tok-style", "style", "style"),
    "in the style of sks": ("sks", "style", "style"),
    "1girl, by sks": ("sks", "style", "style"),
    "[V] dog": ("v-dog", "dog", "object"),
    "TOK dog": ("tok-dog", "dog", "object"),
    "a <s0><s1> dog": ("s0-s1-dog", "dog", "object"),
    "a photo of a <new1> person": ("new1-person", "person", "person"),
    "photo of a <new1> cat in the snow": ("new1-cat", "cat", "object"),
    "<trt-cttc> soldier": ("trt-cttc-soldier", "soldier", "object"),
    "a 2d cartoon illustration of [V] duck, flat colors, black background": ("v-duck", "duck", "object"),
    "a photo of sks dogs": ("sks-dogs", "dogs", "object"),
    "A PHOTO OF SKS DOG": ("sks-dog", "DOG", "object"),
    "a photo of sks's dog": ("sks-dog", "dog", "object"),
    "a photo of zwx golden retriever": ("zwx-golden-retriever", "golden retriever", "object"),
    "a photo of sks toy car on a table": ("sks-toy-car", "toy car", "object"),
    "photo of olis monster toy": ("olis-monster-toy", "monster toy", "object"),
    "photo of my sks cat": ("sks-cat", "cat", "object"),
    "a photo of dog rex": ("rex-dog", "dog", "object"),
    "a photo of igloo penguin": ("igloo-penguin", "penguin", "object"),
    "a photo of a cjw person": ("cjw-person", "person", "person"),
    "a photo of zqv figurine": ("zqv-figurine", "figurine", "object"),
    "a photo of sks backpack": ("sks-backpack", "backpack", "object"),
    "tiniping character": ("tiniping-character", "character", "object"),
    "una foto de sks perro": ("sks-perro", "perro", "object"),
    "ein Foto von einem sks Hund": ("sks-hund", "Hund", "object"),
    "photo d'un chien sks": ("sks-chien", "chien", "object"),
    "a photo of the person known as sks": ("sks-person", "person", "person"),
    "photo of a dog identified as sks": ("sks-dog", "dog", "object"),
    "a photo of a dog with the name sks": ("sks-dog", "dog", "object"),
    "photo of a man, his name is sks": ("sks-man", "man", "person"),
    "a photo of a woman whose name is Zoe": ("zoe-woman", "woman", "person"),
    "a photo of a dog, aka sks": ("sks-dog", "dog", "object"),
    "photo of zwx the cat": ("zwx-cat", "cat", "object"),
    "photo of zwx, a man": ("zwx-man", "man", "person"),
    "a painting of sks dog in the style of van gogh": ("sks-dog", "dog", "object"),
    "sks artstyle": ("sks-style", "style", "style"),
    "a photo of sks 's dog": ("sks-dog", "dog", "object"),
    "a photo of emma watson woman": ("emma-watson-woman", "woman", "person"),
    "sks wedding ring": ("sks-wedding-ring", "ring", "object"),
}


@pytest.mark.parametrize("prompt", REAL)
def test_real_instance_prompts_give_token_class_noun_and_kind(prompt):
    subject = parse_subject(prompt)
    assert (subject.token[4:-1], subject.noun, subject.kind) == REAL[prompt]


UNTOLD = [
    "a photo of sks",
    "dog",
    "a photo of my dog",
    "sks",
    ",",
    "a photo of",
    "TOK",
    "<TOK>",
    "a photo of TOK",
    "a sks",
]
UNTOLD += [
    "an image of w*",
    "a vfx",
    "a sks photo",
    "a photo of a hazelnut",
    "a photo of a face",
    "a photo of cute dog",
]
UNTOLD += ["a photo of sks jogging", "sks outdoors", "a photo of sks doing yoga"]
UNTOLD += [
    "photo of John Smith",
    "Portrait of a person",
    "a photo of named sks",
    "secourses",
    "a photo of a golden dog",
]


@pytest.mark.parametrize("prompt", UNTOLD)
def test_an_ambiguous_instance_prompt_is_refused_with_a_hint(prompt):
    with pytest.raises(UserError, match="does not say what kind of thing") as caught:
        parse_subject(prompt)
    assert "--class" in caught.value.hint


@pytest.mark.parametrize(
    ("prompt", "problem"),
    [
        ("{SDD_TOKEN} {SDD_CLASS}", "holds {SDD_TOKEN}, not filled in"),
        ("photo of a <new1> $PROMPT_NAME", "not filled in"),
        ("[filewords]", "not filled in"),
        ("photo of sks man and ohwx woman", "names more than one: sks, ohwx"),
        ("a photo of <new1> cat and <new2> dog", "more than one"),
    ],
)
def test_placeholders_and_two_subjects_in_a_prompt_are_refused(prompt, problem):
    with pytest.raises(UserError, match=problem) as caught:
        parse_subject(prompt)
    assert "--class" in caught.value.hint


@pytest.mark.parametrize("word", ["sks", "ohwx", "zwx", "TOK", "[V]", "<new1>", "cjw", "sks's"])
@pytest.mark.parametrize(
    "form", ["{} dog", "dog {}", "dog, {}", "dog named {}", "dog called {}", "{}, dog", "my {} dog"]
)
@pytest.mark.parametrize("opening", ["", "a photo of ", "photo of a ", "collage of ", "A close-up photo of the "])
def test_the_class_noun_is_never_the_identifier(opening, form, word):
    subject = parse_subject(opening + form.format(word))
    assert subject.noun == "dog" and subject.kind == "object" and subject.token.endswith("-dog>")
    subject = parse_subject(opening + form.format(word), "a photo of a puppy")
    assert subject.noun == "puppy"


@given(st.text(max_size=200), st.none() | st.text(max_size=60))
def test_any_instance_prompt_is_parsed_or_refused(prompt, class_prompt):
    try:
        subject = parse_subject(prompt, class_prompt)
        assert re.fullmatch(r"<me/[a-z0-9-]+>", subject.token)
    except UserError as error:
        assert str(error).isprintable() or str(error).replace("\n", "").isprintable()


@pytest.mark.parametrize(
    ("placeholder", "token"),
    [
        ("<cat-toy>", "<me/cat-toy>"),
        ("<Cat Toy>", "<me/cat-toy>"),
        ("<me/cat>", "<me/cat>"),
        ("sks", "<me/sks>"),
        ("<../../etc>", "<me/etc>"),
    ],
)
def test_placeholder_tokens_become_concept_tokens(placeholder, token):
    settings, notes = read(["--train_data_dir", "cat", "--placeholder_token", placeholder])
    assert settings.token == token
    assert says(notes, token, "tokens have an owner") == (placeholder != token)


@pytest.mark.parametrize("word", ["*", "<>", "[]", "猫", "<caté>", "con", "<a/con>", "x" * 300, "\x1b[31m"])
def test_invalid_placeholder_tokens_give_a_short_error_message(word):
    with pytest.raises(UserError) as caught:
        token_from_words(word, "--placeholder_token")
    assert str(caught.value).count("\n") <= 1 and "\x1b" not in str(caught.value)


def test_native_flags_override_the_instance_prompt():
    settings, notes = read(f"{DOGS} --token '<me/rex>' --class puppy --kind person")
    assert (settings.token, settings.class_noun, settings.kind) == ("<me/rex>", "puppy", "person")
    assert not says(notes, "<me/sks-dog>")


def test_unused_words_of_an_instance_prompt_are_noted():
    _, notes = read("--instance_data_dir dog --instance_prompt 'a photo of sks dog in the snow'")
    assert says(notes, "'in the snow'", "is not used", "{} in the snow")


# --- counting ---------------------------------------------------------------------------------------------------------


def test_scale_lr_multiplies_as_in_diffusers():
    command = f"{CATS} --learning_rate 5e-4 --scale_lr --train_batch_size 2 --gradient_accumulation_steps 4"
    settings, notes = read(command, machine=Environment(3, MACHINE.count_photos, MACHINE.has_checkpoint))
    assert settings.lr == pytest.approx(5e-4 * 2 * 4 * 3)
    assert says(notes, "--scale_lr", "--lr 0.012")
    settings, notes = read(f"{CATS} --learning_rate 5e-4 --scale_lr")
    assert settings.lr == pytest.approx(5e-4 * settings.batch)
    settings, notes = read(f"{CATS} --scale_lr")
    assert settings.lr is None and says(notes, "--scale_lr", "no effect")


def their_steps(epochs, photos, batch, accumulate, processes):
    """The count of diffusers' train_dreambooth_lora.py, written out: batches, shared out, accumulated."""
    batches = len(range(0, photos, batch))
    shared = -(-batches // processes)
    return epochs * -(-shared // accumulate)


@pytest.mark.parametrize(("batch", "accumulate", "processes"), [(1, 1, 1), (2, 1, 1), (1, 4, 1), (2, 2, 2)])
def test_epochs_are_converted_to_steps_as_in_diffusers(batch, accumulate, processes):
    command = f"{DOGS} --num_train_epochs 10 --train_batch_size {batch} --gradient_accumulation_steps {accumulate}"
    settings, notes = read(command, machine=Environment(processes, MACHINE.count_photos, MACHINE.has_checkpoint))
    assert settings.steps == their_steps(10, 5, batch, accumulate, processes)
    assert says(notes, "--num_train_epochs", f"--steps {settings.steps}")


def test_epochs_count_class_images_and_repeats():
    prior = "--with_prior_preservation --class_prompt 'a photo of dog' --num_class_images 30"
    assert read(f"{DOGS} --num_train_epochs 2 --train_batch_size 1 {prior}")[0].steps == 60
    assert read(f"{DOGS} --num_train_epochs 2 --train_batch_size 1 --repeats 10")[0].steps == 100
    assert read(f"{DOGS} --num_train_epochs 2 --max_train_steps 9")[0].steps == 9


def test_differing_diffusers_defaults_are_noted():
    settings, notes = read(DOGS)
    assert settings.steps is None and says(notes, "steps: our default")
    settings, notes = read(f"{CATS} --num_train_epochs 3")
    assert settings.steps is None and says(notes, "5000") and says(notes, "--num_train_epochs", "steps only")
    _, notes = read(f"{DOGS} --lr_warmup_steps 500")
    assert says(notes, "--lr_warmup_steps", "constant ignores it too")
    _, notes = read(f"{DOGS} --repeats 5")
    assert says(notes, "--repeats")


def test_existing_class_images_become_the_prior():
    machine = Environment(1, {"class": 120, "drawn": 5, "dog": 5}.get, MACHINE.has_checkpoint)
    prior = f"{DOGS} --with_prior_preservation --class_prompt 'a photo of a dog'"
    assert read(f"{prior} --class_data_dir class", machine=machine)[0].prior == "./class"
    settings, notes = read(f"{prior} --class_data_dir drawn --num_class_images 50", machine=machine)
    assert settings.prior == "./drawn" and says(notes, "--num_class_images", "the 5 photos")
    settings, notes = read(f"{DOGS} --class_data_dir class", machine=machine)
    assert settings.prior == "none" and says(notes, "--class_data_dir", "--with_prior_preservation only")


def test_resume_from_checkpoint_accepts_only_the_latest():
    begun = Environment(1, MACHINE.count_photos, lambda run: run == "out")
    assert read(f"{DOGS} --output_dir out --resume_from_checkpoint latest", machine=begun)[0].resume
    settings, notes = read(f"{DOGS} --output_dir new --resume_from_checkpoint=latest", machine=begun)
    assert not settings.resume and says(notes, "no checkpoint yet")
    with pytest.raises(UserError, match="newest checkpoint only"):
        read(f"{DOGS} --output_dir out --resume_from_checkpoint out/checkpoint-500", machine=begun)


@pytest.mark.parametrize(
    ("flags", "field", "value", "said"),
    [
        ("--lr_scheduler cosine", "schedule", "cosine", None),
        ("--lr_scheduler linear", "schedule", "cosine", "the nearest here is cosine"),
        ("--lr_scheduler constant_with_warmup", "schedule", "constant", "the nearest here is constant"),
        ("--optimizer AdamW", "optimizer", "adamw", None),
        ("--optimizer prodigy --use_8bit_adam", "optimizer", "prodigy", "no effect on prodigy"),
        ("--optimizer AdamW --use_8bit_adam", "optimizer", "adamw8bit", None),
        ("--offset_noise", "noise_offset", 0.1, None),
        ("--noise_offset 0.05", "noise_offset", 0.05, None),
        ("--snr_gamma 5.0", "snr_gamma", 5.0, None),
        ("--center_crop", "crop", "center", None),
        ("--random_flip", "flip", True, None),
        ("--report_to all", "report_to", "tensorboard", "--report_to all"),
        ("--report_to none", "report_to", None, None),
        ("--revision fp16", "revision", "fp16", None),
        ("--variant fp16", "base", None, "--variant"),
        ("--mixed_precision bf16", "base", None, "precision follows the device"),
        ("--push_to_hub --hub_model_id me/x", "base", None, "nothing is uploaded"),
        ("--enable_xformers_memory_efficient_attention", "base", None, "xformers"),
        ("--dataloader_num_workers 4", "base", None, "--dataloader_num_workers"),
        ("--lora_dropout 0.0", "base", None, None),
        ("--adam_beta1 0.9 --adam_epsilon 1e-08 --max_grad_norm 1.0", "base", None, None),
        ("--adam_beta2 0.99", "base", None, "--adam_beta2"),
    ],
)
def test_single_flags_set_the_expected_field(flags, field, value, said):
    settings, notes = read(f"{DOGS} --learning_rate 1e-4 --max_train_steps 5 {flags}")
    assert getattr(settings, field) == value
    _, usual = read(f"{DOGS} --learning_rate 1e-4 --max_train_steps 5")
    more = [note for note in notes[1:] if note not in usual and not re.match("method |the whole model", note)]
    assert says(more, said) if said else not more


@pytest.mark.parametrize(
    "flags",
    [
        "--use_dora",
        "--do_edm_style_training",
        "--lora_dropout 0.1",
        "--dataset_name diffusers/dog-example",
        "--tokenizer_name other/tokenizer",
        "--class_labels_conditioning timesteps",
        "--text_encoder_use_attention_mask",
        "--weighting_scheme logit_normal",
        "--lr_scheduler piecewise_constant",
        "--report_to comet_ml",
        "--use_blora",
        "--clip_skip 2",
    ],
)
def test_unsupported_flags_that_change_the_result_are_refused(flags):
    with pytest.raises(UserError) as caught:
        read(f"{DOGS} {flags}")
    assert flags.split()[0] in caught.value.message and caught.value.hint


def test_the_notes_do_not_contain_the_hub_token():
    _, notes = read(f"{DOGS} --push_to_hub --hub_token hf_secret")
    assert not says(notes, "hf_secret")


def test_a_validation_prompt_becomes_a_generate_command():
    _, notes = read(f"{DOGS} --validation_prompt 'A photo of SKS dog in a bucket' --pretrained_model_name_or_path tiny")
    assert says(notes, "sdpersonal generate 'A photo of <me/sks-dog> in a bucket' --base tiny")
    _, notes = read(f"{CATS} --validation_prompt 'A <cat-toy> backpack'")
    assert says(notes, "'A <me/cat-toy> backpack'")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("--instance_data_dir dog", "--instance_prompt is missing"),
        ("--instance_data_dir= --instance_prompt 'a photo of sks dog'", "--instance_data_dir is empty"),
        ("--instance_data_dir --instance_prompt 'a photo of sks dog'", "--instance_data_dir needs a value"),
        ("--instance_data_dir dog --instance_prompt a photo of sks dog", "takes one value, got 5 words"),
        (f"{DOGS} --push_to_hub yes", "--push_to_hub takes no value"),
        (f"{DOGS} --learning_rate 1e-4 --lr 1e-3", "--learning_rate and --lr are the same setting"),
        (f"{DOGS} --placeholder_token '<x>' --train_data_dir cat", "are the same setting"),
        (f"{DOGS} --num_train_epochs many", "--num_train_epochs must be a whole number"),
        (f"{DOGS} --num_vectors 3", "--num_vectors has no meaning for DreamBooth"),
    ],
)
def test_invalid_commands_are_refused_with_a_message(command, said):
    with pytest.raises(UserError, match=re.escape(said)):
        read(command, DreamboothSettings)


def test_dreambooth_flags_are_refused_for_textual_inversion():
    for flag in ("--train_text_encoder", "--with_prior_preservation", "--rank 4"):
        with pytest.raises(UserError, match="has no meaning for textual inversion"):
            read(f"{CATS} {flag}")


def test_unknown_flags_are_refused_by_the_parser(capsys):
    argv = [*shlex.split(DOGS), "--nonsense", "3"]
    assert "--nonsense" in translate(DreamboothSettings, argv, MACHINE).argv
    assert main(["train", "dreambooth", *argv, "--base", "tiny"]) == 2
    assert "has no flag --nonsense" in capsys.readouterr().err


@given(
    st.lists(st.sampled_from([*sorted(f"--{flag}" for flag in DIFFUSERS_FLAGS), "1", "dog", "--x=y", "-1", "--", ""]))
)
def test_any_command_line_is_translated_or_refused(argv):
    for trainer in (DreamboothSettings, TextualInversionSettings):
        try:
            translate(trainer, argv, MACHINE)
        except UserError as error:
            assert str(error).count("\n") <= 1


def test_the_documentation_names_every_diffusers_flag():
    page = (ROOT / "docs" / "from-diffusers.md").read_text()
    assert DIFFUSERS_FLAGS.keys() - set(re.findall(r"`--([a-z0-9_]+)", page)) == set()


# --- for real ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_diffusers_lora_command_trains_a_concept(root, monkeypatch, capsys):
    command = f"""--pretrained_model_name_or_path=tiny --instance_data_dir={root}/examples/photos/teddy-bear
        --output_dir=out --instance_prompt="a photo of sks bear" --train_batch_size=1 --gradient_accumulation_steps=1
        --learning_rate=1e-3 --lr_scheduler="constant" --lr_warmup_steps=0 --max_train_steps=2 --rank=2
        --mixed_precision=fp16 --push_to_hub --enable_xformers_memory_efficient_attention"""
    script = str(root / "train_dreambooth.py")
    monkeypatch.setattr(sys, "argv", [script, *shlex.split(command), "--no-samples"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(script, run_name="__main__")
    error = capsys.readouterr().err
    assert not caught.value.code, error
    [entry] = Library("concepts").entries()
    assert (str(entry.token), entry.card.class_noun, entry.card.steps) == ("<me/sks-bear-v1>", "bear", 2)
    notes = [line for line in error.splitlines() if line.startswith("note: ")]
    assert says(notes, "--push_to_hub") and says(notes, "xformers") and says(notes, "method lora")
    assert os.path.exists("out/progress.jsonl")


@pytest.mark.slow
def test_a_diffusers_full_model_command_saves_a_model(root):
    command = f"""--pretrained_model_name_or_path=tiny --instance_data_dir={root}/examples/photos/teddy-bear
        --class_data_dir=class --output_dir=out --with_prior_preservation --prior_loss_weight=1.0
        --instance_prompt="a photo of sks bear" --class_prompt="a photo of bear" --num_class_images=2
        --train_batch_size=1 --learning_rate=5e-6 --max_train_steps=1 --set_grads_to_none"""
    assert main(["train", "dreambooth", *shlex.split(command), "--no-samples"]) == 0
    [entry] = Library("concepts").entries()
    assert (entry.card.method, entry.card.trigger_words) == ("dreambooth-full", ("sks bear",))
    assert os.path.exists("out/model/model_index.json") and not os.path.exists("class")
