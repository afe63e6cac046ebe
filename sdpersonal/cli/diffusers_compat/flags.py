"""List every flag of diffusers' training scripts for Stable Diffusion, and how it is translated.

Source: `parse_args` in diffusers' examples of August 2026: train_dreambooth{,_lora,_lora_sdxl,_sd3,_lora_sd3}.py,
textual_inversion{,_sdxl}.py and train_dreambooth_lora_{sd15,sdxl}_advanced.py. For readers:
docs/from-diffusers.md.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RenamedFlag:
    """`--max_train_steps 400` is our `--steps 400`."""

    ours: str


@dataclass(frozen=True)
class SwitchFlag:
    """`--gradient_checkpointing` is our `--checkpointing 1`; without a value, our switch of that name."""

    ours: str
    value: str | None = None


@dataclass(frozen=True)
class SameFlag:
    """A flag with the same name and meaning here."""


@dataclass(frozen=True)
class RuleFlag:
    """A flag that rules.py translates together with others."""


@dataclass(frozen=True)
class IgnoredFlag:
    """A flag without effect here; `reason` is printed, unless the value is a usual one, which means the same here."""

    reason: str
    accepted: tuple[str, ...] = ()


@dataclass(frozen=True)
class RefusedFlag:
    """A flag that would change the result and is not supported, for this `reason`. Usual values are accepted."""

    reason: str
    accepted: tuple[str, ...] = ()


DiffusersFlag = RenamedFlag | SwitchFlag | SameFlag | RuleFlag | IgnoredFlag | RefusedFlag

_NO_UPLOAD = "nothing is uploaded; the concept stays in your library."
_PRECISION = "precision follows the device: the model in bf16 on CUDA, in fp32 on a CPU; what is trained, in fp32."
_PREVIEWS = (
    "sample images are generated at the end (samples.png in the run's folder); the loss is logged at every step."
)
_OBSOLETE = "PyTorch does this by itself."
_ADAM = "AdamW here has betas 0.9 and 0.999, epsilon 1e-8."
_DECAY = "weight decay is 1e-2 for weights and 0 for the token's embeddings."
_PRODIGY = "Prodigy runs with its own usual settings."
_DEEPFLOYD = "is for DeepFloyd IF, which cannot be trained here."
_SD3 = "is for Stable Diffusion 3, which cannot be trained here."
_HUB_DATA = "photos are read from a folder: download the data set and give the folder as --instance_data_dir."
_HUB_CAPTIONS = "captions are read from a .txt beside each photo."

DIFFUSERS_FLAGS: dict[str, DiffusersFlag] = {
    # the model
    "pretrained_model_name_or_path": RenamedFlag("base"),
    "revision": SameFlag(),
    "variant": IgnoredFlag("a model is read in whichever variant it has."),
    "pretrained_vae_model_name_or_path": RenamedFlag("vae"),
    "tokenizer_name": RefusedFlag("the tokenizer is always the model's own."),
    "tokenizer_max_length": RefusedFlag(_DEEPFLOYD, accepted=("77",)),
    "text_encoder_use_attention_mask": RefusedFlag(_DEEPFLOYD),
    "class_labels_conditioning": RefusedFlag(_DEEPFLOYD),
    "max_sequence_length": RefusedFlag(_SD3, accepted=("77",)),
    "clip_skip": RefusedFlag("all layers of the text encoder are used.", accepted=("0",)),
    "cache_dir": IgnoredFlag("the Hub's usual cache is used; HF_HOME moves it."),
    "use_auth_token": IgnoredFlag("the Hub's own login is used."),
    # photos
    "instance_data_dir": RenamedFlag("photos"),
    "train_data_dir": RenamedFlag("photos"),
    "dataset_name": RefusedFlag(_HUB_DATA),
    "dataset_config_name": RefusedFlag(_HUB_DATA),
    "image_column": IgnoredFlag(_HUB_CAPTIONS, accepted=("image",)),
    "caption_column": IgnoredFlag(_HUB_CAPTIONS),
    "resolution": SameFlag(),
    "center_crop": SwitchFlag("crop", "center"),
    "random_flip": SwitchFlag("flip"),
    "image_interpolation_mode": IgnoredFlag("photos are scaled with Lanczos.", accepted=("lanczos",)),
    "repeats": RuleFlag(),
    "dataloader_num_workers": IgnoredFlag(
        "photos are encoded once, before the first step; there is no data loader.", accepted=("0",)
    ),
    "cache_latents": IgnoredFlag("latents are always cached."),
    # the subject
    "instance_prompt": RuleFlag(),
    "class_prompt": RuleFlag(),
    "placeholder_token": RuleFlag(),
    "token_abstraction": IgnoredFlag("the token is found in --instance_prompt without it.", accepted=("tok",)),
    "initializer_token": RenamedFlag("init"),
    "learnable_property": RenamedFlag("kind"),
    "num_vectors": RenamedFlag("vectors"),
    "num_new_tokens_per_abstraction": IgnoredFlag("the token gets as many vectors as its class noun has."),
    # the method
    "rank": SameFlag(),
    "train_text_encoder": SwitchFlag("text_encoder"),
    "train_text_encoder_ti": SwitchFlag("method", "pivotal"),
    "train_text_encoder_ti_frac": IgnoredFlag(
        "the presets decide when the embeddings are trained and the LoRA begins."
    ),
    "train_text_encoder_frac": IgnoredFlag("the text encoder is trained to the end.", accepted=("1",)),
    "text_encoder_lr": IgnoredFlag("the text encoder's learning rate follows --lr."),
    "lora_dropout": RefusedFlag("there is no dropout in our LoRA.", accepted=("0",)),
    "use_dora": RefusedFlag(
        "DoRA is not supported: few programs could read the file. --rank alone trains a plain LoRA."
    ),
    "use_blora": RefusedFlag("B-LoRA is not supported; --targets chooses the trained layers."),
    "lora_unet_blocks": RefusedFlag("--targets chooses the trained layers: attention, transformer or all."),
    "lora_layers": RefusedFlag("--targets chooses the trained layers: attention, transformer or all."),
    "lora_blocks": RefusedFlag("--targets chooses the trained layers: attention, transformer or all."),
    "do_edm_style_training": RefusedFlag(
        "the EDM formulation is not supported; models made with it cannot be trained here."
    ),
    # prior preservation
    "with_prior_preservation": RuleFlag(),
    "class_data_dir": RuleFlag(),
    "prior_loss_weight": RenamedFlag("prior_weight"),
    "num_class_images": SameFlag(),
    "sample_batch_size": IgnoredFlag(
        "class images are generated one at a time, and once for all concepts of the class."
    ),
    "prior_generation_precision": IgnoredFlag(_PRECISION),
    # steps and learning rate
    "max_train_steps": RenamedFlag("steps"),
    "num_train_epochs": RuleFlag(),
    "train_batch_size": RenamedFlag("batch"),
    "gradient_accumulation_steps": RenamedFlag("accumulate"),
    "gradient_checkpointing": SwitchFlag("checkpointing", "1"),
    "learning_rate": RuleFlag(),
    "scale_lr": RuleFlag(),
    "lr_scheduler": RuleFlag(),
    "lr_warmup_steps": RuleFlag(),
    "lr_num_cycles": IgnoredFlag("the cosine schedule has one cycle.", accepted=("1",)),
    "lr_power": IgnoredFlag("there is no polynomial schedule.", accepted=("1",)),
    "optimizer": RuleFlag(),
    "use_8bit_adam": RuleFlag(),
    "adam_beta1": IgnoredFlag(_ADAM, accepted=("0.9",)),
    "adam_beta2": IgnoredFlag(_ADAM, accepted=("0.999",)),
    "adam_epsilon": IgnoredFlag(_ADAM, accepted=("1e-8",)),
    "adam_weight_decay": IgnoredFlag(_DECAY, accepted=("1e-2",)),
    "adam_weight_decay_text_encoder": IgnoredFlag(_DECAY, accepted=("1e-2",)),
    "max_grad_norm": IgnoredFlag("gradients are clipped to norm 1.", accepted=("1",)),
    "prodigy_beta3": IgnoredFlag(_PRODIGY),
    "prodigy_decouple": IgnoredFlag(_PRODIGY),
    "prodigy_use_bias_correction": IgnoredFlag(_PRODIGY),
    "prodigy_safeguard_warmup": IgnoredFlag(_PRODIGY),
    # the objective
    "snr_gamma": SameFlag(),
    "offset_noise": SwitchFlag("noise_offset", "0.1"),  # its strength in diffusers' script
    "noise_offset": SameFlag(),
    "weighting_scheme": RefusedFlag(_SD3),
    "logit_mean": RefusedFlag(_SD3),
    "logit_std": RefusedFlag(_SD3),
    "mode_scale": RefusedFlag(_SD3),
    "precondition_outputs": RefusedFlag(_SD3),
    # saving
    "output_dir": RenamedFlag("run"),
    "checkpointing_steps": RenamedFlag("save_every"),
    "checkpoints_total_limit": IgnoredFlag("the newest two checkpoints are kept.", accepted=("2",)),
    "resume_from_checkpoint": RuleFlag(),
    "save_steps": IgnoredFlag(
        "--checkpointing_steps (our --save-every) says how often; the concept is written at the end."
    ),
    "save_as_full_pipeline": IgnoredFlag("a concept is a file of its own; the model stays as it is."),
    "no_safe_serialization": IgnoredFlag("files are always safetensors."),
    "skip_save_text_encoder": IgnoredFlag("what is not trained is not changed."),
    "output_kohya_format": IgnoredFlag("the concept's file is always in kohya's layout."),
    "upcast_before_saving": IgnoredFlag("trained weights are always fp32."),
    "push_to_hub": IgnoredFlag(_NO_UPLOAD),
    "hub_token": IgnoredFlag(_NO_UPLOAD),
    "hub_model_id": IgnoredFlag(_NO_UPLOAD),
    # logging and validation
    "report_to": RuleFlag(),
    "logging_dir": IgnoredFlag("everything of a run is in its own folder."),
    "validation_prompt": RuleFlag(),
    "num_validation_images": IgnoredFlag(_PREVIEWS),
    "validation_steps": IgnoredFlag(_PREVIEWS),
    "validation_epochs": IgnoredFlag(_PREVIEWS),
    "validation_scheduler": IgnoredFlag(_PREVIEWS),
    "validation_images": RefusedFlag(_DEEPFLOYD),
    "seed": SameFlag(),
    # the machine
    "mixed_precision": IgnoredFlag(_PRECISION),
    "allow_tf32": IgnoredFlag("there is nothing to gain: the model runs in bf16 on CUDA."),
    "enable_xformers_memory_efficient_attention": IgnoredFlag(_OBSOLETE),
    "set_grads_to_none": IgnoredFlag(_OBSOLETE),
    "pre_compute_text_embeddings": IgnoredFlag(
        "the text encoder is needed in every step, since the token's embeddings pass through it."
    ),
    "local_rank": IgnoredFlag("accelerate and torchrun set it in the environment.", accepted=("-1", "0")),
}


def _split_names(text: str) -> frozenset[str]:
    return frozenset(text.split())


SWITCHES = _split_names(
    """
    allow_tf32 cache_latents center_crop do_edm_style_training enable_xformers_memory_efficient_attention
    gradient_checkpointing no_safe_serialization offset_noise output_kohya_format pre_compute_text_embeddings
    push_to_hub random_flip save_as_full_pipeline scale_lr set_grads_to_none skip_save_text_encoder
    text_encoder_use_attention_mask train_text_encoder train_text_encoder_ti upcast_before_saving use_8bit_adam
    use_auth_token use_blora use_dora with_prior_preservation
    """
)
"""Flags that take no value."""

LORA_ONLY = _split_names(
    """
    adam_weight_decay_text_encoder image_interpolation_mode lora_dropout noise_offset optimizer output_kohya_format
    pretrained_vae_model_name_or_path prodigy_beta3 prodigy_decouple prodigy_safeguard_warmup
    prodigy_use_bias_correction random_flip rank repeats text_encoder_lr validation_epochs
    """
)
"""Flags of diffusers' DreamBooth LoRA scripts that its full DreamBooth script does not have."""

FULL_ONLY = frozenset(["offset_noise", "set_grads_to_none", "skip_save_text_encoder", "validation_scheduler"])
"""Flags of the full script only. (`validation_steps` is one too, but people mix the two up.)"""
