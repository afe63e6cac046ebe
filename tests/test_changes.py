"""Changes that are no plain LoRA: each against LyCORIS' or PEFT's own module, as a weight and through a layer."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sdpersonal import changes
from sdpersonal.concept import Lora
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
    return (
        torch.randn(5, layer.in_features) if isinstance(layer, nn.Linear) else torch.randn(2, layer.in_channels, 6, 6)
    )


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
    torch.testing.assert_close(
        layer(x), applied(layer, x, module.org_weight + change, layer.bias), atol=3e-5, rtol=1e-4
    )


# --- PEFT's own files, drawn with on a whole base ---------------------------------------------------------------------

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0", "proj_in"]
WITH_CONVOLUTIONS = [*ATTENTION, "conv1", "downsamplers.0.conv"]
ADAPTERS = {
    "DoRA": ("LoraConfig", {"r": 3, "lora_alpha": 5, "use_dora": True, "target_modules": WITH_CONVOLUTIONS}),
    "LoRA with biases": ("LoraConfig", {"r": 3, "lora_alpha": 5, "lora_bias": True, "target_modules": ["to_out.0"]}),
    "no alpha": ("LoraConfig", {"r": 4, "target_modules": ATTENTION}),
    "rsLoRA": ("LoraConfig", {"r": 4, "lora_alpha": 3, "use_rslora": True, "target_modules": WITH_CONVOLUTIONS}),
    "patterns": (
        "LoraConfig",
        {
            "r": 2,
            "lora_alpha": 3,
            "target_modules": ATTENTION,
            "rank_pattern": {r"^down_blocks\.\d+\..*attn1\.to_[qk]": 4},
            "alpha_pattern": {r"(attn1|attn2)\.to_k": 9, "up_blocks.*to_v": 1},
        },
    ),
    "LoHa": ("LoHaConfig", {"r": 2, "alpha": 3, "target_modules": WITH_CONVOLUTIONS}),
    "LoHa Tucker": ("LoHaConfig", {"r": 2, "target_modules": WITH_CONVOLUTIONS, "use_effective_conv2d": True}),
    "LoKr": ("LoKrConfig", {"r": 2, "alpha": 3, "target_modules": WITH_CONVOLUTIONS}),
    "LoKr whole": ("LoKrConfig", {"r": 400, "alpha": 300, "target_modules": ATTENTION}),
    "LoKr Tucker": (
        "LoKrConfig",
        {"r": 2, "target_modules": WITH_CONVOLUTIONS, "use_effective_conv2d": True, "decompose_both": True},
    ),
    "IA3": ("IA3Config", {"target_modules": ["to_k", "to_out.0", "ff.net.2"], "feedforward_modules": ["ff.net.2"]}),
    "OFT": ("OFTConfig", {"oft_block_size": 8, "target_modules": WITH_CONVOLUTIONS}),
    "OFT exact": (
        "OFTConfig",
        {"oft_block_size": 8, "target_modules": ATTENTION, "use_cayley_neumann": False},
    ),
    "OFT three terms, shared": (
        "OFTConfig",
        {"oft_block_size": 8, "target_modules": ATTENTION, "num_cayley_neumann_terms": 3, "block_share": True},
    ),
}


def predicted(base) -> torch.Tensor:
    noise = torch.randn(1, *base.latent_shape(64, 64), generator=torch.Generator().manual_seed(1))
    return base.predict(noise, torch.tensor([500]), base.condition([["a duck"]]))


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_base_predicts_with_pefts_file_as_peft_merges_it(adapter, tiny, tmp_path):
    import copy

    import peft

    from sdpersonal.formats.folders import read_folder
    from sdpersonal.prompts import Token

    torch.manual_seed(3)
    name, options = ADAPTERS[adapter]
    wrapped = peft.get_peft_model(copy.deepcopy(tiny.unet), getattr(peft, name)(**options))
    with torch.no_grad():
        for key, parameter in wrapped.named_parameters():
            if any(part in key for part in ("lora_", "hada_", "lokr_", "ia3_", "oft_")):
                parameter.add_(torch.randn_like(parameter) * 0.05)
    wrapped.save_pretrained(tmp_path / "thing")
    merged = peft.PeftModel.from_pretrained(copy.deepcopy(tiny.unet), tmp_path / "thing").merge_and_unload()
    concept = read_folder(tmp_path / "thing", Token.parse("<me/thing>"))
    assert concept.card.base == "tiny"
    with torch.no_grad():
        bare = predicted(tiny)
        with tiny.slots.filled([(concept.lora, 1.0)]):
            ours = predicted(tiny)
        own, tiny.unet = tiny.unet, merged.eval()
        try:
            expected = predicted(tiny)
        finally:
            tiny.unet = own
        assert torch.equal(predicted(tiny), bare)
    assert (expected - bare).abs().max() > 1e-2
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-3)
