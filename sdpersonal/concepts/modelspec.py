"""Build header metadata for other programs: ModelSpec 1.0.1 and the `ss_*` keys that kohya's readers expect.

Sources: Stability AI's ModelSpec document; kohya-ss sd-scripts `library/sai_model_spec.py` and `train_network.py`.
"""

from __future__ import annotations

import base64
import binascii

from ..display.html import data_url
from ..prompts import Token
from .card import Card
from .thumbnail import media_type

_ARCHITECTURE = {
    "tiny": "sdpersonal-tiny",
    "sd1": "stable-diffusion-v1",
    "sd2": "stable-diffusion-v2-512",
    "sdxl": "stable-diffusion-xl-v1-base",
}
_KOHYA_BASE = {"tiny": "sdpersonal_tiny", "sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}
_RESOLUTION = {"tiny": 128, "sd1": 512, "sd2": 512, "sdxl": 1024}  # pixels per side, if the card has no resolution


def modelspec_metadata(
    card: Card, token: Token, has_lora: bool, payload_sha256: str, thumbnail: bytes | None
) -> dict[str, str]:
    """Build the `modelspec.*` keys."""
    velocity = card.recipe.get("prediction_type") in ("v", "v_prediction")
    architecture = _ARCHITECTURE[card.base]
    if card.base == "sd2" and velocity:
        architecture = "stable-diffusion-v2-768-v"
    stability = card.base == "sdxl" or not has_lora  # kohya's rule for `implementation`
    side = card.recipe.get("resolution") or _RESOLUTION[card.base]
    fields = {
        "sai_model_spec": "1.0.1",
        "architecture": f"{architecture}/{'lora' if has_lora else 'textual-inversion'}",
        "implementation": "https://github.com/Stability-AI/generative-models" if stability else "diffusers",
        "title": card.title or str(token),
        "description": card.description,
        "author": card.author,
        "date": card.created,
        "license": card.license,
        "resolution": f"{side}x{side}",
        "prediction_type": "v" if velocity else "epsilon",
        "trigger_phrase": ", ".join(card.trigger_words) or token.slug,
        "hash_sha256": f"0x{payload_sha256}",
        "thumbnail": to_data_url(thumbnail) if thumbnail else "",
    }
    return {f"modelspec.{key}": value for key, value in fields.items() if value}


def kohya_metadata(
    card: Card, ranks: set[int], alphas: set[float], payload_sha256: str, lycoris: bool = False
) -> dict[str, str]:
    """Build the smallest set of `ss_*` keys by which kohya, A1111 and ComfyUI recognise a LoRA.

    ranks, alphas: of all its layers; lycoris: some layers can only be read by LyCORIS.
    """
    velocity = card.recipe.get("prediction_type") in ("v", "v_prediction")
    return {
        "ss_v2": str(card.base == "sd2"),
        "ss_base_model_version": _KOHYA_BASE[card.base] + ("_v" if card.base == "sd2" and velocity else ""),
        "ss_network_module": "lycoris.kohya" if lycoris else "networks.lora",
        "ss_network_dim": str(min(ranks)) if len(ranks) == 1 else "Dynamic",
        "ss_network_alpha": f"{min(alphas):g}" if len(alphas) == 1 else "Dynamic",
        "ss_network_args": "{}",
        "sshs_model_hash": payload_sha256,
    }


def to_data_url(data: bytes) -> str:
    """Return the image as a data URL."""
    return data_url(data, media_type(data) or "")


def from_data_url(url: str) -> bytes:
    """Decode the image in a data URL. Raises ValueError unless `media_type` supports it."""
    try:
        image = base64.b64decode(url.partition(";base64,")[2], validate=True)
    except (ValueError, binascii.Error) as error:
        raise ValueError("its thumbnail is not base64") from error
    if not media_type(image):
        raise ValueError("its thumbnail is not a small PNG, JPEG or WebP image")
    return image
