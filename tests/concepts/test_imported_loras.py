"""LoRAs that diffusers and PEFT saved themselves change a base as much when we read them as when they load them."""

import copy

import numpy as np
import pytest
import torch

from sdpersonal.concepts.importers.read_folders import read_folder
from sdpersonal.errors import UserError
from support.narrow import save_narrow

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


def test_imported_loras_change_the_base_the_same_as_in_diffusers(saved):
    folder, kind, lora = saved
    reference = kind.from_pretrained(folder)
    reference.load_lora_weights(lora)
    reference.fuse_lora()
    reference.unload_lora_weights()
    bare = kind.from_pretrained(folder)
    imported = read_folder(lora)
    assert {layer.alpha for layer in imported.lora.layers.values()} == {3.0}

    compared = 0
    models = {"lora_unet": "unet", "lora_te": "text_encoder", "lora_te1": "text_encoder", "lora_te2": "text_encoder_2"}
    for prefix, model in models.items():
        if not hasattr(bare, model):
            continue
        for path, module in getattr(bare, model).named_modules():
            name = f"{prefix}_{_flat(path, prefix)}"
            layer = imported.lora.layers.get(_sgm(name) if imported.card.base == "sdxl" else name)
            if layer is None:
                continue
            changed = (
                getattr(reference, model).get_submodule(path).weight.detach().numpy() - module.weight.detach().numpy()
            )
            ours = layer.up.astype(np.float64) @ layer.down * SCALE
            np.testing.assert_allclose(ours, changed, atol=2e-6)
            assert np.abs(changed).max() > 1e-3
            compared += 1
    assert compared == len(imported.lora.layers) >= 16


def _flat(path: str, prefix: str) -> str:
    if prefix != "lora_unet" and not path.startswith("text_model"):
        path = f"text_model.{path}"
    return path.replace(".", "_")


def _sgm(name: str) -> str:
    from sdpersonal.concepts.importers.layers import unet_name

    return f"lora_unet_{unet_name(name.removeprefix('lora_unet_'), 'sdxl')}" if name.startswith("lora_unet_") else name


# --- PEFT alone -------------------------------------------------------------------------------------------------------

PLAIN = {"r": 4, "lora_alpha": 6, "init_lora_weights": "gaussian"}
ATTENTION = {"unet": ["to_q", "to_k", "to_v", "to_out.0"], "text_encoder": ["q_proj", "k_proj", "v_proj", "out_proj"]}


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(save_narrow("sd1", tmp_path_factory.mktemp("narrow") / "base"))


def adapted(model, part: str, folder, **options):
    """A folder as PEFT's `save_pretrained` leaves it, and each weight's change, by PEFT's own merging."""
    from peft import LoraConfig, PeftModel, get_peft_model

    torch.manual_seed(5)
    wrapped = get_peft_model(copy.deepcopy(model), LoraConfig(target_modules=ATTENTION[part], **(PLAIN | options)))
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    wrapped.save_pretrained(folder)
    merged = PeftModel.from_pretrained(copy.deepcopy(model), folder).merge_and_unload()
    before = dict(model.named_parameters())
    return {
        name.removesuffix(".weight"): (after - before[name]).detach().numpy()
        for name, after in merged.named_parameters()
        if name.endswith(".weight") and not torch.equal(after, before[name])
    }


@pytest.mark.parametrize("parts", [("unet",), ("text_encoder",), ("unet", "text_encoder")])
@pytest.mark.parametrize("options", ["plain", "rslora", "patterns"])
def test_peft_folders_change_the_base_the_same_as_in_peft(pipe, tmp_path, parts, options):
    folder = tmp_path / "my thing"
    changes = {}
    for part in parts:
        first = "attn2.to_k" if part == "unet" else "self_attn.q_proj"
        more = {"rslora": {"use_rslora": True}, "patterns": {"rank_pattern": {first: 2}, "alpha_pattern": {first: 9}}}
        place = folder / part if len(parts) > 1 else folder
        prefix = "lora_unet" if part == "unet" else "lora_te"
        reference = adapted(getattr(pipe, part), part, place, **more.get(options, {}))
        changes |= {f"{prefix}_{_flat(path, prefix)}": change for path, change in reference.items()}
    imported = read_folder(folder)
    assert str(imported.token) == "<imported/my-thing>" and imported.card.base == "sd1"
    assert changes.keys() == imported.lora.layers.keys() and len(changes) >= 8
    for name, layer in imported.lora.layers.items():
        ours = layer.up.astype(np.float64) @ layer.down * (layer.alpha / layer.rank)
        np.testing.assert_allclose(ours, changes[name], atol=2e-6, err_msg=name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init_lora_weights": "pissa"}, "was initialized from the base .PEFT's pissa."),
        ({"init_lora_weights": "olora"}, "was initialized from the base .PEFT's olora."),
        ({"modules_to_save": ["conv_out"]}, "it has unknown tensors"),
    ],
)
def test_unsupported_peft_variants_are_refused_by_name(pipe, tmp_path, options, message):
    adapted(pipe.unet, "unet", tmp_path / "unet", **options)
    with pytest.raises(UserError, match=message):
        read_folder(tmp_path)
