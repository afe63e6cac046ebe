"""Refuse what no concept can hold, recognised by its tensors' names, and say what to do instead."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ...errors import UserError, printable

_PLAIN = (
    "Ask its author for a plain LoRA, or extract one from a merged model (kohya: networks/extract_lora_from_models.py)."
)
_FOLDER = "Its folder may be a base: --base FOLDER."
_OTHER = "Use one for Stable Diffusion 1.x, 2.x or XL."
_WHOLE = "is a whole model, not a concept"
_MODEL = "To generate with it or train on it, give it as the base: --base FILE."

# The order matters: a DoRA for Flux is refused as for Flux, which no conversion mends.
_UNSUPPORTED: tuple[tuple[str, str, str], ...] = (
    (r"(^|\.)(model\.diffusion_model|first_stage_model|cond_stage_model|conditioner\.embedders)\.",
     _WHOLE, _MODEL),
    (r"^control_model\.|^controlnet_|^input_hint_block\.|^lllite_", "is a ControlNet", "A concept cannot hold it."),
    (r"^(image_proj|ip_adapter)\.", "is an IP-Adapter", "A concept cannot hold it."),
    (r"(^|[._])(motion_modules|temporal_transformer)[._]", "is for AnimateDiff's motion module", _OTHER),
    (r"(^|[._])(double_blocks|single_blocks|single_transformer_blocks)[._]", "is for Flux or a model like it", _OTHER),
    (r"(^|[._])joint_(transformer_)?blocks[._]|^lora_te3_|^text_encoder_3\.", "is for Stable Diffusion 3", _OTHER),
    (r"^lora_prior_|^prior\.|^lora_transformer_|^(diffusion_model\.)?(transformer|transformer_blocks|blocks|layers)\.|"
     r"^lora_unet_(blocks|layers|transformer_blocks|adaln|t_embedder)_|^lora_te_(llama|gemma|qwen|t5)",
     "is for a diffusion transformer or another model that is not Stable Diffusion 1.x, 2.x or XL", _OTHER),
    (r"^t5(_out)?$|^bundle_emb\.[^.]+\.t5", "is for Stable Diffusion 3 or another with a T5", _OTHER),
    (r"(^|\.)(clip_[lg]|emp_params)_out$", "holds output embeddings, which take the place of what a text encoder says",
     "Ask its author for input embeddings: in OneTrainer, leave 'output embedding' off."),
    (r"\.(boft_[Rs]|oft_[rs]|oft_diag)(\.|$)", "is a BOFT or an old OFT of PEFT, whose files lack what they need",
     _PLAIN),
    (r"\.(vera_lambda_[bd]|randlora_\w+|hra_u|fourierft_spectrum|waveft_spectrum|road_(theta|alpha)|"
     r"delora_\w+|miss_block|bone_block|c3a_kernel|gralora_[AB]\w*|shira_weight|poly_lora_[AB])(\.|$)",
     "is an adapter of PEFT that no other program reads", _PLAIN),
    (r"\.lora_embedding_[AB]", "is a LoRA of a token table", "Ask its author for its vectors as an embedding."),
    (r"(^|\.)to_[kv]_custom_diffusion|_custom_diffusion\.", "is a Custom Diffusion file", _PLAIN),
    (r"^\d+\.[01]\.linear(\d|\.\d+)\.(weight|bias)$", "is a hypernetwork",
     "No program trains these any more; look for a LoRA or an embedding of the same thing."),
    (r"^(unet\.)?(conv_in|time_embedding\.linear_1|down_blocks\.0\.resnets\.0\.conv1)\.weight$",
     "is a whole UNet, not a concept", _FOLDER),
    (r"^(encoder|decoder)\.(conv_in|mid)\.", "is an autoencoder (VAE)", "A concept cannot hold it."),
    (r"^(transformer\.)?text_model\.embeddings\.", "is a text encoder, not a concept", _FOLDER),
)  # fmt: skip
_PATTERNS = tuple((re.compile(pattern), what, fix) for pattern, what, fix in _UNSUPPORTED)


def refuse_unsupported(names: Iterable[str], file_name: str) -> None:
    """Raise UserError, saying what it is, where the tensors' names show that it cannot be a concept."""
    names = tuple(names)
    for pattern, what, fix in _PATTERNS:
        if any(pattern.search(name) for name in names):
            raise UserError(f"{printable(file_name)} {what}.", fix)
