"""Every flag of diffusers' training scripts for Stable Diffusion, and what becomes of it here.

Source: `parse_args` in diffusers' examples of August 2026: train_dreambooth{,_lora,_lora_sdxl,_sd3,_lora_sd3}.py,
textual_inversion{,_sdxl}.py and train_dreambooth_lora_{sd15,sdxl}_advanced.py. For readers:
docs/from-diffusers.md.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Renamed:
    """`--max_train_steps 400` is our `--steps 400`."""

    ours: str


@dataclass(frozen=True)
class Switch:
    """`--gradient_checkpointing` is our `--checkpointing 1`; without a value, our switch of that name."""

    ours: str
    value: str | None = None


@dataclass(frozen=True)
class Kept:
    """Called and meant the same here."""


@dataclass(frozen=True)
class Read:
    """Read together with other flags, in rules.py."""


@dataclass(frozen=True)
class Noted:
    """Changes nothing here; `why` is said, unless the value is a usual one, which means the same here."""

    why: str
    usual: tuple[str, ...] = ()


@dataclass(frozen=True)
class Refused:
    """Would change the result and cannot be honoured; `why` is the reason. A usual value is what happens anyway."""

    why: str
    usual: tuple[str, ...] = ()


Habit = Renamed | Switch | Kept | Read | Noted | Refused

_NO_UPLOAD = "nothing is uploaded; the concept stays in your library."
_PRECISION = "precision follows the device: the base in bf16 on CUDA, in fp32 on a CPU; what is trained, in fp32."
_PREVIEWS = "pictures are drawn at the end (samples.png in the run's folder); the loss is there at every step."
_OBSOLETE = "has been what PyTorch does by itself for years."
_ADAM = "AdamW here has betas 0.9 and 0.999, epsilon 1e-8."
_DECAY = "weight decay is 1e-2 for weights and none for the token's own vectors."
_PRODIGY = "Prodigy runs with its own usual settings."
_DEEPFLOYD = "is for DeepFloyd IF, which cannot be taught here."
_SD3 = "is for Stable Diffusion 3, which cannot be taught here."
_HUB_DATA = "photos are read from a folder: fetch the data set and give the folder as --instance_data_dir."
_HUB_CAPTIONS = "captions are read from a .txt beside each photo."

HABITS: dict[str, Habit] = {
    # the base
    "pretrained_model_name_or_path": Renamed("base"),
    "revision": Kept(),
    "variant": Noted("a base is read in whichever variant it has."),
    "pretrained_vae_model_name_or_path": Renamed("vae"),
    "tokenizer_name": Refused("the tokenizer is always the base's own."),
    "tokenizer_max_length": Refused(_DEEPFLOYD, usual=("77",)),
    "text_encoder_use_attention_mask": Refused(_DEEPFLOYD),
    "class_labels_conditioning": Refused(_DEEPFLOYD),
    "max_sequence_length": Refused(_SD3, usual=("77",)),
    "clip_skip": Refused("all layers of the text encoder are used.", usual=("0",)),
    "cache_dir": Noted("the Hub's usual cache is used; HF_HOME moves it."),
    "use_auth_token": Noted("the Hub's own login is used."),
    # photos
    "instance_data_dir": Renamed("photos"),
    "train_data_dir": Renamed("photos"),
    "dataset_name": Refused(_HUB_DATA),
    "dataset_config_name": Refused(_HUB_DATA),
    "image_column": Noted(_HUB_CAPTIONS, usual=("image",)),
    "caption_column": Noted(_HUB_CAPTIONS),
    "resolution": Kept(),
    "center_crop": Switch("crop", "center"),
    "random_flip": Switch("flip"),
    "image_interpolation_mode": Noted("photos are scaled with Lanczos.", usual=("lanczos",)),
    "repeats": Read(),
    "dataloader_num_workers": Noted(
        "photos are encoded once, before the first step; there is no loader.", usual=("0",)
    ),
    "cache_latents": Noted("is what happens anyway."),
    # the subject
    "instance_prompt": Read(),
    "class_prompt": Read(),
    "placeholder_token": Read(),
    "token_abstraction": Noted("the word is found in --instance_prompt without it.", usual=("tok",)),
    "initializer_token": Renamed("init"),
    "learnable_property": Renamed("kind"),
    "num_vectors": Renamed("vectors"),
    "num_new_tokens_per_abstraction": Noted("the token gets as many vectors as its class noun has."),
    # the method
    "rank": Kept(),
    "train_text_encoder": Switch("text_encoder"),
    "train_text_encoder_ti": Switch("method", "pivotal"),
    "train_text_encoder_ti_frac": Noted("when the word is learned and the LoRA begins is in our presets."),
    "train_text_encoder_frac": Noted("the text encoder is taught to the end.", usual=("1",)),
    "text_encoder_lr": Noted("the text encoder's rate follows --lr."),
    "lora_dropout": Refused("there is no dropout in our LoRA.", usual=("0",)),
    "use_dora": Refused("DoRA is not built: few programs could read the file. A plain LoRA is --rank alone."),
    "use_blora": Refused("B-LoRA is not built; --targets says which layers learn."),
    "lora_unet_blocks": Refused("--targets says which layers learn: attention, transformer or all."),
    "lora_layers": Refused("--targets says which layers learn: attention, transformer or all."),
    "lora_blocks": Refused("--targets says which layers learn: attention, transformer or all."),
    "do_edm_style_training": Refused("the EDM formulation is not built; bases made with it cannot be taught here."),
    # prior preservation
    "with_prior_preservation": Read(),
    "class_data_dir": Read(),
    "prior_loss_weight": Renamed("prior_weight"),
    "num_class_images": Renamed("class_pictures"),
    "sample_batch_size": Noted("class pictures are drawn one at a time, and once for all concepts of the class."),
    "prior_generation_precision": Noted(_PRECISION),
    # how long and how fast
    "max_train_steps": Renamed("steps"),
    "num_train_epochs": Read(),
    "train_batch_size": Renamed("batch"),
    "gradient_accumulation_steps": Renamed("accumulate"),
    "gradient_checkpointing": Switch("checkpointing", "1"),
    "learning_rate": Read(),
    "scale_lr": Read(),
    "lr_scheduler": Read(),
    "lr_warmup_steps": Read(),
    "lr_num_cycles": Noted("the cosine falls once.", usual=("1",)),
    "lr_power": Noted("there is no polynomial schedule.", usual=("1",)),
    "optimizer": Read(),
    "use_8bit_adam": Read(),
    "adam_beta1": Noted(_ADAM, usual=("0.9",)),
    "adam_beta2": Noted(_ADAM, usual=("0.999",)),
    "adam_epsilon": Noted(_ADAM, usual=("1e-8",)),
    "adam_weight_decay": Noted(_DECAY, usual=("1e-2",)),
    "adam_weight_decay_text_encoder": Noted(_DECAY, usual=("1e-2",)),
    "max_grad_norm": Noted("gradients are cut to norm 1.", usual=("1",)),
    "prodigy_beta3": Noted(_PRODIGY),
    "prodigy_decouple": Noted(_PRODIGY),
    "prodigy_use_bias_correction": Noted(_PRODIGY),
    "prodigy_safeguard_warmup": Noted(_PRODIGY),
    # the objective
    "snr_gamma": Kept(),
    "offset_noise": Switch("noise_offset", "0.1"),  # its strength in diffusers' script
    "noise_offset": Kept(),
    "weighting_scheme": Refused(_SD3),
    "logit_mean": Refused(_SD3),
    "logit_std": Refused(_SD3),
    "mode_scale": Refused(_SD3),
    "precondition_outputs": Refused(_SD3),
    # what is kept
    "output_dir": Renamed("run"),
    "checkpointing_steps": Renamed("save_every"),
    "checkpoints_total_limit": Noted("the newest two checkpoints are kept.", usual=("2",)),
    "resume_from_checkpoint": Read(),
    "save_steps": Noted("--checkpointing_steps (our --save-every) says how often; the concept is written at the end."),
    "save_as_full_pipeline": Noted("a concept is a file of its own; the base stays as it is."),
    "no_safe_serialization": Noted("files are always safetensors."),
    "skip_save_text_encoder": Noted("what is not taught is not changed."),
    "output_kohya_format": Noted("the concept's file is in kohya's layout anyway."),
    "upcast_before_saving": Noted("what is trained is fp32 all along."),
    "push_to_hub": Noted(_NO_UPLOAD),
    "hub_token": Noted(_NO_UPLOAD),
    "hub_model_id": Noted(_NO_UPLOAD),
    # looking on
    "report_to": Read(),
    "logging_dir": Noted("everything of a run is in its own folder."),
    "validation_prompt": Read(),
    "num_validation_images": Noted(_PREVIEWS),
    "validation_steps": Noted(_PREVIEWS),
    "validation_epochs": Noted(_PREVIEWS),
    "validation_scheduler": Noted(_PREVIEWS),
    "validation_images": Refused(_DEEPFLOYD),
    "seed": Kept(),
    # the machine
    "mixed_precision": Noted(_PRECISION),
    "allow_tf32": Noted("nothing is left to gain: the base runs in bf16 on CUDA."),
    "enable_xformers_memory_efficient_attention": Noted(_OBSOLETE),
    "set_grads_to_none": Noted(_OBSOLETE),
    "pre_compute_text_embeddings": Noted("the text encoder stays, since the token's vectors pass through it."),
    "local_rank": Noted("accelerate and torchrun say it in the environment.", usual=("-1", "0")),
}


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


SWITCHES = _names(
    """
    allow_tf32 cache_latents center_crop do_edm_style_training enable_xformers_memory_efficient_attention
    gradient_checkpointing no_safe_serialization offset_noise output_kohya_format pre_compute_text_embeddings
    push_to_hub random_flip save_as_full_pipeline scale_lr set_grads_to_none skip_save_text_encoder
    text_encoder_use_attention_mask train_text_encoder train_text_encoder_ti upcast_before_saving use_8bit_adam
    use_auth_token use_blora use_dora with_prior_preservation
    """
)
"""Flags that take no value."""

LORA_ONLY = _names(
    """
    adam_weight_decay_text_encoder image_interpolation_mode lora_dropout noise_offset optimizer output_kohya_format
    pretrained_vae_model_name_or_path prodigy_beta3 prodigy_decouple prodigy_safeguard_warmup
    prodigy_use_bias_correction random_flip rank repeats text_encoder_lr validation_epochs
    """
)
"""Flags that diffusers' DreamBooth LoRA scripts have and its full DreamBooth script has not."""

FULL_ONLY = frozenset(["offset_noise", "set_grads_to_none", "skip_save_text_encoder", "validation_scheduler"])
"""The other way round. (`validation_steps` too, but there people mix the two up.)"""
