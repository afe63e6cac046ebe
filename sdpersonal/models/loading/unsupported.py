"""Recognise files that users pass as a base but that are something else, and say what to do instead."""

from __future__ import annotations

from ...errors import UserError
from ...prompts import printable
from .architecture import Shapes

_LORA_MARKS = (
    *("lora_down", "lora_up", ".lora_A.", ".lora_B.", "_lora.down", "lora.down", "hada_w1", "lokr_w", "oft_", ".ia3_l"),
    *(".on_input", ".w_norm", ".set_weight", ".diff_b"),
)
_SUPPORTED = "I work with Stable Diffusion 1.x, 2.x and XL."


def refuse_unsupported(shapes: Shapes, name: str) -> None:
    """Raise UserError unless these weights may be a whole checkpoint of Stable Diffusion."""
    if reason := _unsupported_reason(shapes):
        problem, fix = reason
        raise UserError(f"{printable(name)} is {problem}.", fix)


def _unsupported_reason(shapes: Shapes) -> tuple[str, str] | None:
    def some(*marks: str) -> bool:
        return any(mark in key for key in shapes for mark in marks)

    if some(*_LORA_MARKS):
        return "a LoRA, not a base", "Bring it into the library: sdpersonal concepts import FILE"
    if shapes.keys() <= {"emb_params", "emp_params", "clip_l", "clip_g"} or (
        len(shapes) == 1 and not some(".weight", ".scale") and all(len(shape) <= 2 for shape in shapes.values())
    ):
        return "an embedding, not a base", "Bring it into the library: sdpersonal concepts import FILE"
    if some("joint_blocks."):
        return "Stable Diffusion 3", f"{_SUPPORTED} Use sd15, sd21 or sdxl."
    if some("double_blocks.", "double_stream"):
        return "FLUX or one of its kind", f"{_SUPPORTED} Use sd15, sd21 or sdxl."
    if some("control_model.", "controlnet_cond_embedding", "controlnet_down_blocks", "zero_convs."):
        return "a ControlNet, not a base", "Give the model that it was made for."
    if some("motion_modules.", "temporal_transformer"):
        return "a motion module, not a base", "Give the model that it was made for."
    if shapes.get("conditioner.embedders.0.model.ln_final.weight") == (1280,):
        return "the refiner of SDXL, which only finishes pictures", "Use the base: sdxl, or its file."
    if any(key.startswith("model.diffusion_model.input_blocks.") for key in shapes):
        return None
    if "input_blocks.0.0.weight" in shapes:
        return "a UNet alone, without text encoder and autoencoder", "Use a whole checkpoint."
    if "conv_in.weight" in shapes and some("down_blocks."):
        return "a part of a diffusers folder", "Give the folder that has model_index.json."
    if "decoder.conv_in.weight" in shapes or "first_stage_model.decoder.conv_in.weight" in shapes:
        return "an autoencoder (VAE), not a base", "Give it beside a base: --vae FILE"
    return (
        "not a checkpoint that I know",
        f"{_SUPPORTED} Give a whole checkpoint, a folder in diffusers layout or a Hub id.",
    )
