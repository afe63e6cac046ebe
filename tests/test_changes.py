"""Changes that are no plain LoRA: each against LyCORIS' or PEFT's own module, as a weight and through a layer."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sdpersonal import changes
from sdpersonal.concept import Lora, LoraLayer
from sdpersonal.deltas import bias_change, fits, weight_change
from sdpersonal.lora import Slots

lycoris = pytest.importorskip("lycoris")

STRENGTHS = (0.0, 0.5, 1.0, -2.0)
LAYERS = {
    "linear": lambda: nn.Linear(24, 16),
    "tall": lambda: nn.Linear(16, 48, bias=False),
    "conv": lambda: nn.Conv2d(8, 16, 3, stride=2, padding=1),
    "conv 1x1": lambda: nn.Conv2d(16, 8, 1),
}
FORMS = {  # LyCORIS' module and how it is made
    "LoHa": ("LohaModule", {"lora_dim": 3, "alpha": 2}),
    "LoHa Tucker": ("LohaModule", {"lora_dim": 2, "alpha": 1.5, "use_tucker": True}),
    "LoKr whole": ("LokrModule", {"lora_dim": 999, "alpha": 5, "factor": 4}),
    "LoKr factored": ("LokrModule", {"lora_dim": 2, "alpha": 1, "factor": 2}),
    "LoKr both factored": ("LokrModule", {"lora_dim": 1, "alpha": 0.5, "factor": 4, "decompose_both": True}),
    "LoKr Tucker": ("LokrModule", {"lora_dim": 2, "alpha": 3, "factor": 2, "use_tucker": True}),
    "Tucker": ("LoConModule", {"lora_dim": 3, "alpha": 2, "use_tucker": True}),
    "DoRA": ("LoConModule", {"lora_dim": 3, "alpha": 2, "weight_decompose": True}),
    "DoRA of columns": ("LoConModule", {"lora_dim": 3, "alpha": 2, "weight_decompose": True, "wd_on_out": False}),
    "DoRA of LoHa": ("LohaModule", {"lora_dim": 2, "alpha": 1, "weight_decompose": True}),
    "DoRA of LoKr": ("LokrModule", {"lora_dim": 2, "alpha": 1, "factor": 2, "weight_decompose": True}),
    "GLoRA": ("GLoRAModule", {"lora_dim": 3, "alpha": 2}),
    "IA3": ("IA3Module", {}),
    "IA3 on input": ("IA3Module", {"train_on_input": True}),
    "OFT": ("DiagOFTModule", {"lora_dim": 4}),
    "OFT rescaled, bound": ("DiagOFTModule", {"lora_dim": 4, "constraint": 0.01, "rescaled": True}),
    "BOFT": ("ButterflyOFTModule", {"lora_dim": 4}),
    "BOFT rescaled, bound": ("ButterflyOFTModule", {"lora_dim": 4, "constraint": 0.01, "rescaled": True}),
}


def theirs(form: str, layer: nn.Module):
    """LyCORIS' module over that layer, with random numbers, and its tensors as its files have them."""
    name, options = FORMS[form]
    module = getattr(lycoris.modules, name)("x", layer, multiplier=1.0, **options)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    state = module.custom_state_dict() or module.state_dict()
    return module, {key: value.detach().float().numpy() for key, value in state.items()}


def picture(layer: nn.Module) -> torch.Tensor:
    return torch.randn(5, layer.in_features) if isinstance(layer, nn.Linear) else torch.randn(2, layer.in_channels, 6, 6)


def applied(layer: nn.Module, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, bias)
    return F.conv2d(x, weight, bias, layer.stride, layer.padding)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("form", FORMS)
def test_a_layer_changes_as_lycoris_changes_it_at_any_strength(form, kind):
    if form.startswith("BOFT") and kind == "tall":
        pytest.skip("48 rows are no power of two of blocks of 4")
    torch.manual_seed(len(form))
    layer = LAYERS[kind]()
    module, tensors = theirs(form, layer)
    assert changes.problem(tensors) is None and fits(tensors, layer.weight.shape)
    change, bias = weight_change(tensors, layer.weight), None
    if layer.bias is not None:
        bias = bias_change(tensors, layer.bias)
    x = picture(layer)
    bare = layer(x)
    slots = Slots({"lora_unet": nn.ModuleDict({"x": layer})})
    slots.check(lora := Lora({}, {"lora_unet_x": tensors}), "<me/x>")
    for strength in STRENGTHS:
        weight = layer.weight + strength * change
        expected = applied(layer, x, weight, layer.bias if bias is None else layer.bias + strength * bias)
        with torch.no_grad(), slots.filled([(lora, strength)]):
            for _ in range(4):  # from the third use on it is in the weights
                torch.testing.assert_close(layer(x), expected, atol=3e-5, rtol=1e-4)
        assert torch.equal(layer(x), bare)
    module.apply_to()
    torch.testing.assert_close(layer(x), applied(layer, x, module.org_weight + change, layer.bias), atol=3e-5, rtol=1e-4)
