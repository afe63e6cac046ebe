"""LoRAs that diffusers and PEFT saved themselves change a base as much when we read them as when they load them."""

import numpy as np
import pytest
import torch

from narrow import save_narrow
from sdpersonal.formats.folders import read_folder

SCALE = 1.5  # alpha / rank


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def saved(request, tmp_path_factory):
    """(folder of the base, class of its pipeline, folder with the LoRA): their writer throughout."""
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig, get_peft_model_state_dict

    place = tmp_path_factory.mktemp("saved")
    base = save_narrow(request.param, place / "base")
    kind = StableDiffusionXLPipeline if request.param == "sdxl" else StableDiffusionPipeline
    pipe = kind.from_pretrained(base)
    torch.manual_seed(3)
    config = {"r": 2, "lora_alpha": 3, "init_lora_weights": "gaussian"}
    pipe.unet.add_adapter(LoraConfig(target_modules=["to_q", "to_k", "to_v", "to_out.0"], **config))
    encoders = [pipe.text_encoder] + ([pipe.text_encoder_2] if request.param == "sdxl" else [])
    for encoder in encoders:
        encoder.add_adapter(LoraConfig(target_modules=["q_proj", "k_proj", "v_proj", "out_proj"], **config))
    for model in (pipe.unet, *encoders):
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    names = ("text_encoder_lora_layers", "text_encoder_2_lora_layers")
    texts = {
        name: convert_state_dict_to_diffusers(get_peft_model_state_dict(encoder))
        for name, encoder in zip(names, encoders, strict=False)
    }
    metadata = {"unet_lora_adapter_metadata": pipe.unet.peft_config["default"].to_dict()}
    metadata |= {
        name.replace("_layers", "_adapter_metadata"): encoder.peft_config["default"].to_dict()
        for name, encoder in zip(names, encoders, strict=False)
    }
    unet = convert_state_dict_to_diffusers(get_peft_model_state_dict(pipe.unet))
    kind.save_lora_weights(place / "my thing", unet_lora_layers=unet, **texts, **metadata)
    return base, kind, place / "my thing"


def test_our_reading_changes_the_base_as_theirs_does(saved):
    folder, kind, lora = saved
    theirs = kind.from_pretrained(folder)
    theirs.load_lora_weights(lora)
    theirs.fuse_lora()
    theirs.unload_lora_weights()
    bare = kind.from_pretrained(folder)
    found = read_folder(lora)
    assert {layer.alpha for layer in found.lora.layers.values()} == {3.0}

    compared = 0
    models = {"lora_unet": "unet", "lora_te": "text_encoder", "lora_te1": "text_encoder", "lora_te2": "text_encoder_2"}
    for prefix, model in models.items():
        if not hasattr(bare, model):
            continue
        for path, module in getattr(bare, model).named_modules():
            name = f"{prefix}_{_flat(path, prefix)}"
            layer = found.lora.layers.get(_sgm(name) if found.card.base == "sdxl" else name)
            if layer is None:
                continue
            changed = (
                getattr(theirs, model).get_submodule(path).weight.detach().numpy() - module.weight.detach().numpy()
            )
            ours = layer.up.astype(np.float64) @ layer.down * SCALE
            np.testing.assert_allclose(ours, changed, atol=2e-6)
            assert np.abs(changed).max() > 1e-3
            compared += 1
    assert compared == len(found.lora.layers) >= 16


def _flat(path: str, prefix: str) -> str:
    if prefix != "lora_unet" and not path.startswith("text_model"):
        path = f"text_model.{path}"
    return path.replace(".", "_")


def _sgm(name: str) -> str:
    from sdpersonal.formats.layers import unet_name

    return f"lora_unet_{unet_name(name.removeprefix('lora_unet_'), 'sdxl')}" if name.startswith("lora_unet_") else name
