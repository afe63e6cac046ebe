"""Changes that are no plain LoRA: each against LyCORIS' or PEFT's own module, as a weight and through a layer."""

import dataclasses
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sdpersonal.concepts import layer_changes
from sdpersonal.concepts.card import Card
from sdpersonal.concepts.compare import compare
from sdpersonal.concepts.concept import Concept, Lora, LoraLayer
from sdpersonal.concepts.concept_file import concept_from_bytes, concept_to_bytes
from sdpersonal.concepts.exporters import export
from sdpersonal.concepts.exporters.readme import concept_facts
from sdpersonal.concepts.hub_transfer import files_to_push
from sdpersonal.concepts.importers import read_any
from sdpersonal.concepts.importers.read_folders import read_folder
from sdpersonal.concepts.library import Library
from sdpersonal.concepts.merge import merge
from sdpersonal.concepts.plain_lora import as_lora, plain_lora
from sdpersonal.concepts.weight_deltas import bias_change, weight_change
from sdpersonal.errors import UserError
from sdpersonal.models.lora import LoraAdapters
from sdpersonal.prompts import Token
from support.foreign import safetensors_bytes
from support.samples import embedding

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
def test_layer_changes_match_lycoris_at_every_strength(form, kind):
    if form.startswith("BOFT") and kind == "tall":
        pytest.skip("48 rows are no power of two of blocks of 4")
    torch.manual_seed(len(form))
    layer = LAYERS[kind]()
    module, tensors = theirs(form, layer)
    assert layer_changes.find_problem(tensors) is None and layer_changes.fits(tensors, layer.weight.shape)
    change, bias = weight_change(tensors, layer.weight), None
    if layer.bias is not None:
        bias = bias_change(tensors, layer.bias)
    x = picture(layer)
    bare = layer(x)
    slots = LoraAdapters({"lora_unet": nn.ModuleDict({"x": layer})})
    slots.check(lora := Lora({}, {"lora_unet_x": tensors}), "<me/x>")
    for strength in STRENGTHS:
        weight = layer.weight + strength * change
        expected = applied(layer, x, weight, layer.bias if bias is None else layer.bias + strength * bias)
        with torch.no_grad(), slots.active([(lora, strength)]):
            for _ in range(4):  # from the third use on it is in the weights
                torch.testing.assert_close(layer(x), expected, atol=3e-5, rtol=1e-4)
        assert torch.equal(layer(x), bare)
    module.apply_to()
    torch.testing.assert_close(
        layer(x), applied(layer, x, module.org_weight + change, layer.bias), atol=3e-5, rtol=1e-4
    )


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_mixed_changes_are_summed_on_the_original_weight(kind):
    torch.manual_seed(0)
    layer = LAYERS[kind]()
    parts = [
        (theirs(form, LAYERS[kind]())[1], strength) for form, strength in (("LoHa", 0.7), ("OFT", 1.2), ("DoRA", -1))
    ]
    plain = LoraLayer(np.float32(torch.randn(2, *layer.weight.shape[1:])), np.float32(torch.randn(16, 2)), 1.0)
    mix = [(Lora({}, {"lora_unet_x": tensors}), strength) for tensors, strength in parts]
    mix.append((Lora({"lora_unet_x": plain}), 0.5))
    weight = layer.weight + sum(strength * weight_change(tensors, layer.weight) for tensors, strength in parts)
    weight = weight + 0.25 * torch.tensor(plain.up @ plain.down.reshape(2, -1)).reshape(layer.weight.shape)
    slots, x = LoraAdapters({"lora_unet": nn.ModuleDict({"x": layer})}), picture(layer)
    with torch.no_grad(), slots.active(mix):
        for _ in range(4):
            torch.testing.assert_close(layer(x), applied(layer, x, weight, layer.bias), atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("terms", [0, 1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("shared", [False, True])
def test_oft_rotations_match_peft(terms, shared):
    from peft.tuners.oft.layer import OFTRotationModule

    torch.manual_seed(0)
    module = OFTRotationModule(
        1 if shared else 3, 6, 4, 12, block_share=shared, use_cayley_neumann=terms > 0, num_cayley_neumann_terms=terms
    )
    module.r = 3
    nn.init.normal_(module.weight, std=0.2)
    weight = torch.randn(5, 12)
    change = {"oft_R.weight": module.weight.detach().numpy(), "oft_terms": np.float32(terms).reshape(())}
    x = torch.randn(7, 12)
    with torch.no_grad():
        expected = F.linear(module(x), weight)
    torch.testing.assert_close(F.linear(x, weight + weight_change(change, weight)), expected, atol=1e-5, rtol=1e-4)


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
    "OFT three terms": (
        "OFTConfig",
        {"oft_block_size": 8, "target_modules": ATTENTION, "num_cayley_neumann_terms": 3},
    ),
}


def predicted(base) -> torch.Tensor:
    noise = torch.randn(1, *base.latent_shape(64, 64), generator=torch.Generator().manual_seed(1))
    return base.predict(noise, torch.tensor([500]), base.encode_captions([["a duck"]]))


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_predictions_with_peft_adapters_match_peft_merging(adapter, tiny, tmp_path):
    import copy

    import peft

    from sdpersonal.concepts.importers.read_folders import read_folder
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
        with tiny.adapters.active([(concept.lora, 1.0)]):
            ours = predicted(tiny)
        original, tiny.unet = tiny.unet, merged.eval()
        try:
            expected = predicted(tiny)
        finally:
            tiny.unet = original
        assert torch.equal(predicted(tiny), bare)
    assert (expected - bare).abs().max() > 1e-2
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-3)


# --- in files, under every naming -------------------------------------------------------------------------------------

PATH = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
NAMINGS = {  # (base whose widths, layer's name in the file, in a concept)
    "kohya": ("sd1", f"lora_unet_{PATH.replace('.', '_')}", f"lora_unet_{PATH.replace('.', '_')}"),
    "kohya xl": (
        "sdxl",
        "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q",
        "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q",
    ),
    "LyCORIS alone": ("sd1", f"lycoris_{PATH.replace('.', '_')}", f"lora_unet_{PATH.replace('.', '_')}"),
    "diffusers": ("sd1", f"unet.{PATH}", f"lora_unet_{PATH.replace('.', '_')}"),
    "diffusers, compiled": (
        "sd1",
        f"unet._orig_mod.{PATH.replace('.attn1', '._orig_mod.attn1')}",
        f"lora_unet_{PATH.replace('.', '_')}",
    ),
    "PEFT, parallel": ("sd1", f"base_model.model.module.{PATH}", f"lora_unet_{PATH.replace('.', '_')}"),
    "ComfyUI xl": (
        "sdxl",
        "diffusion_model.input_blocks.4.1.transformer_blocks.1.attn1.to_q",
        "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q",
    ),
    "text encoder": (
        "sdxl",
        "text_encoders.clip_g.transformer.text_model.encoder.layers.3.self_attn.q_proj",
        "lora_te2_text_model_encoder_layers_3_self_attn_q_proj",
    ),
}


def of_width(form: str, width: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    _, tensors = theirs(form, nn.Linear(width, width))
    return {key: torch.tensor(value) for key, value in tensors.items()}


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("form", ["LoHa", "LoKr factored", "DoRA", "OFT", "IA3"])
def test_every_adapter_kind_is_read_unchanged_in_every_naming(form, naming):
    base, name, ours = NAMINGS[naming]
    tensors = of_width(form, 1280 if naming == "text encoder" else 640)
    hint = {"format": "pt", "ss_base_model_version": {"sd1": "sd_v1", "sdxl": "sdxl_base_v1-0"}[base]}
    data = safetensors_bytes({f"{name}.{key}": value for key, value in tensors.items()}, hint)
    concept = read_any(data, "x.safetensors", Token.parse("<me/x>"))
    assert concept.card.base == base and list(concept.lora.changes) == [ours] and not concept.lora.layers
    again = concept_from_bytes(concept_to_bytes(concept), "x")
    for first in (concept, again):
        loaded = first.lora.changes[ours]
        assert loaded.keys() == tensors.keys()
        assert all(np.array_equal(loaded[key], value.numpy()) for key, value in tensors.items())
    output = {"LoKr factored": "LoKr"}.get(form, form)
    assert concept.card.method == concept.lora.kinds == output


def test_import_and_list_print_the_adapter_kind(tmp_path, capsys):
    import json

    from sdpersonal.cli.main import main

    base, name, _ = NAMINGS["kohya"]
    data = safetensors_bytes(
        {f"{name}.{key}": value for key, value in of_width("LoHa", 640).items()}, {"ss_v2": "False"}
    )
    (tmp_path / "thing.safetensors").write_bytes(data)
    library = ["--library", str(tmp_path / "concepts")]
    assert main(["concepts", "import", str(tmp_path / "thing.safetensors"), *library]) == 0
    assert capsys.readouterr().out == f"imported: <imported/thing-v1>  {base}, LoHa, exact when generating here\n"
    assert main(["concepts", "list", "--json", *library]) == 0
    [entry] = json.loads(capsys.readouterr().out)
    assert (entry["lora_kinds"], entry["lora_rank"], entry["method"]) == ("LoHa", 0, "LoHa")


def test_integer_tensors_are_read():
    tensors = {"weight": torch.ones(640), "on_input": torch.tensor(1)}
    named = {f"{NAMINGS['kohya'][1]}.{key}": value for key, value in tensors.items()}
    data = safetensors_bytes(named, {"ss_base_model_version": "sd_v1"})
    change = read_any(data, "x.safetensors", Token.parse("<me/x>")).lora.changes[NAMINGS["kohya"][2]]
    assert float(change["on_input"]) == 1.0


def test_bias_norm_and_full_weight_changes_match_replaced_weights(tiny):
    """ComfyUI's and LyCORIS' full changes, against a base whose weights are replaced by hand."""
    torch.manual_seed(0)
    paths = ("conv_in", "mid_block.resnets.0.norm1", "mid_block.attentions.0.proj_in", "time_embedding.linear_1")
    layers = {path: tiny.unet.get_submodule(path) for path in paths}
    tensors, after = {}, {}
    for path, module in layers.items():
        weight, bias = torch.randn_like(module.weight) * 0.1, torch.randn_like(module.bias) * 0.1
        norm = "norm" in path
        key = "w_norm" if norm else "set_weight" if path == "conv_in" else "diff"
        tensors |= {
            f"diffusion_model.{path}.{key}": weight,
            f"diffusion_model.{path}.{'b_norm' if norm else 'diff_b'}": bias,
        }
        after[path] = weight if key == "set_weight" else module.weight.detach() + weight, module.bias.detach() + bias
    concept = read_any(safetensors_bytes(tensors), "x.safetensors", Token.parse("<me/x>"))
    assert concept.card.base == "tiny" and len(concept.lora.changes) == 4
    with torch.no_grad():
        bare = predicted(tiny)
        with tiny.adapters.active([(concept.lora, 1.0)]):
            ours = predicted(tiny)
            with tiny.adapters.disabled():
                assert torch.equal(predicted(tiny), bare)
            torch.testing.assert_close(predicted(tiny), ours, atol=1e-5, rtol=1e-5)
        before = {path: (module.weight, module.bias) for path, module in layers.items()}
        for path, module in layers.items():
            module.weight, module.bias = (nn.Parameter(value, requires_grad=False) for value in after[path])
        try:
            expected = predicted(tiny)
        finally:
            for path, module in layers.items():
                module.weight, module.bias = before[path]
        assert torch.equal(predicted(tiny), bare)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("form", ["LoHa", "LoKr whole", "DoRA", "OFT", "GLoRA"])
def test_generated_images_match_a_base_with_changed_weights(form, tiny, tmp_path):
    """From a file in a library to pixels, beside a mix with vectors and a plain LoRA."""
    from sdpersonal.concepts.library import Library
    from sdpersonal.config import GenerateRequest
    from sdpersonal.generation import Generator

    torch.manual_seed(4)
    path = "mid_block.attentions.0.proj_in"
    layer = tiny.unet.get_submodule(path)
    copy = nn.Linear(layer.in_features, layer.out_features)
    copy.weight.data.copy_(layer.weight)
    _, tensors = theirs(form, copy)
    library = Library(tmp_path)
    name = f"lora_unet_{path.replace('.', '_')}"
    library.add(Concept(Token.parse("<me/x>"), Card(base="tiny"), {}, Lora({}, {name: tensors})))
    request = {"seed": 3, "steps": 3, "size": "64x64", "n": 1}
    [ours] = Generator(tiny, library).generate(GenerateRequest(prompt="a duck <me/x:0.8>", **request))
    original = layer.weight
    layer.weight = nn.Parameter(original + 0.8 * weight_change(tensors, original), requires_grad=False)
    try:
        [expected] = Generator(tiny, library).generate(GenerateRequest(prompt="a duck", **request))
    finally:
        layer.weight = original
    [bare] = Generator(tiny, library).generate(GenerateRequest(prompt="a duck", **request))
    difference = np.abs(np.asarray(ours.image, int) - np.asarray(expected.image, int))
    assert difference.max() <= 1
    assert np.abs(np.asarray(bare.image, int) - np.asarray(expected.image, int)).max() > 1


@pytest.mark.parametrize("form", ["LoHa", "LoKr whole", "DoRA", "OFT"])
def test_memory_bytes_equals_the_size_of_the_loaded_adapters(form, tiny):
    """A plan for a card counts it: a change that is no LoRA of a small rank is held as a whole weight."""
    paths = ("mid_block.attentions.0.proj_in", "down_blocks.1.attentions.0.proj_in", "mid_block.resnets.0.conv1")
    layers = {path: tiny.unet.get_submodule(path) for path in paths}
    slots = {path: slot for slot in tiny.adapters._adapters.values() for path in paths if slot.layer is layers[path]}
    names = {path: f"lora_unet_{path.replace('.', '_')}" for path in paths}
    torch.manual_seed(0)
    shape = layers[paths[1]].weight.shape
    plain = LoraLayer(np.ones((4, *shape[1:]), np.float32), np.ones((shape[0], 4), np.float32), 4.0)
    tensors = {names[path]: theirs(form, nn.Linear(*layers[path].weight.shape[::-1]))[1] for path in paths[:1]}
    diff = {"diff": np.ones(layers[paths[2]].weight.shape, np.float32)}
    mix = [Lora({names[paths[1]]: plain}, tensors), Lora({}, {names[paths[2]]: diff})]
    with tiny.adapters.active([(lora, 0.5) for lora in mix]):
        every = [part for slot in slots.values() for part in (slot.down, slot.up, slot.full_change)]
        assert tiny.adapters.memory_bytes(mix) == sum(part.nbytes for part in every if part is not None) > 0
    assert tiny.adapters.memory_bytes(mix[:1]) < tiny.adapters.memory_bytes(mix) and tiny.adapters.memory_bytes([]) == 0


# --- as plain LoRAs ---------------------------------------------------------------------------------------------------


def held(form: str, layer: nn.Module, name: str = "lora_unet_x") -> tuple[Concept, dict[str, np.ndarray]]:
    torch.manual_seed(2)
    _, tensors = theirs(form, layer)
    return Concept(Token.parse("<me/x>"), Card(base="tiny"), {}, Lora({}, {name: tensors})), tensors


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("form", [form for form in FORMS if form.startswith(("LoHa", "LoKr", "Tucker"))])
def test_factorized_changes_convert_to_an_equivalent_plain_lora(form, kind):
    layer = LAYERS[kind]()
    if form == "Tucker" and kind != "conv":
        pytest.skip("without a core it is a plain LoRA")
    concept, tensors = held(form, layer)
    plain = plain_lora(concept)
    [made] = plain.lora.layers.values()
    change = torch.tensor(made.up.reshape(len(made.up), -1) @ made.down.reshape(made.rank, -1))
    expected = weight_change(tensors, layer.weight).flatten(1)
    torch.testing.assert_close(change * made.alpha / made.rank, expected, atol=2e-5, rtol=1e-4)
    assert plain.energy_kept == pytest.approx(1) and plain.note == ""


def test_a_large_change_is_truncated_with_a_note_on_the_kept_energy():
    values = np.linspace(1, 0.01, 200)
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(300, 200)))[0] for _ in range(2))
    diff = {"diff": (left * values @ right.T).astype(np.float32), "diff_b": np.ones(300, np.float32)}
    plain = plain_lora(Concept(Token.parse("<me/x>"), Card(base="tiny"), {}, Lora({}, {"lora_unet_x": diff})))
    assert plain.lora.rank == 64
    assert plain.energy_kept == pytest.approx((values[:64] ** 2).sum() / (values**2).sum(), rel=1e-4)
    assert re.fullmatch(r"The LoRA holds \d\d\.\d% of the change and changes of biases .* are left out\.", plain.note)


@pytest.mark.parametrize("form", ["DoRA", "OFT", "BOFT", "IA3", "GLoRA"])
def test_base_dependent_kinds_are_refused_where_a_plain_lora_is_needed(form):
    concept, _ = held(form, nn.Linear(16, 16), "lora_unet_mid_block_attentions_0_proj_in")
    other = dataclasses.replace(held("LoHa", nn.Linear(16, 16))[0], token=Token.parse("<me/y>"))
    for refused in (
        lambda: export(concept, "diffusers"),
        lambda: export(concept, "onetrainer"),
        lambda: merge([(concept, 1.0), (other, 1.0)], Token.parse("<me/z>")),
    ):
        with pytest.raises(UserError, match=f"changes layers as {form}, which depends on the base's own weights"):
            refused()
    assert form in compare(concept, other).note and compare(concept, other).lora is None
    assert export(concept, "native").files and form in dict(concept_facts(concept))["Holds"]
    assert "pytorch_lora_weights.safetensors" not in {first.name for first in files_to_push(concept, "me/x")}


def test_convertible_kinds_can_be_merged_compared_and_exported():
    name = "lora_unet_mid_block_attentions_0_proj_in"
    first = held("LoHa", nn.Linear(16, 16), name)[0]
    two = dataclasses.replace(held("LoKr factored", nn.Linear(16, 16), name)[0], token=Token.parse("<me/y>"))
    merged = merge([(first, 1.0), (two, 0.5)], Token.parse("<me/z>")).concept.lora.layers[name]
    sums = [weight_change(item.lora.changes[name], torch.zeros(16, 16)).numpy() for item in (first, two)]
    np.testing.assert_allclose(merged.up @ merged.down, sums[0] + 0.5 * sums[1], atol=1e-5)
    cosine = (sums[0] * sums[1]).sum() / np.linalg.norm(sums[0]) / np.linalg.norm(sums[1])
    assert compare(first, two).lora == pytest.approx(cosine, abs=1e-5)
    first = dataclasses.replace(first, card=first.card.model_copy(update={"base": "sd1"}))  # whose models may be narrow
    out = read_any(export(first, "diffusers").files["pytorch_lora_weights.safetensors"], "x", first.token)
    np.testing.assert_allclose(out.lora.layers[name].up @ out.lora.layers[name].down, sums[0], atol=1e-5)


@pytest.mark.parametrize("form", ["LoHa", "LoKr factored"])
def test_adding_vectors_to_a_non_plain_lora_is_refused_with_a_message(form, tmp_path):
    library = Library(tmp_path)
    library.add(held(form, nn.Linear(16, 16))[0])
    with pytest.raises(UserError, match="already in the library with a LoRA alone, the new one is vectors alone"):
        library.add(embedding("<me/x-v1>"))


def test_a_pushed_folder_with_a_plain_lora_copy_reads_as_one_concept(tmp_path):
    original, _ = held("LoHa", nn.Linear(192, 192), "lora_unet_mid_block_attentions_0_proj_in")
    original = dataclasses.replace(original, vectors=embedding().vectors)
    for file in files_to_push(original, "me/x"):
        (tmp_path / file.name).write_bytes(file.data)
    assert (tmp_path / "pytorch_lora_weights.safetensors").exists()
    assert read_folder(tmp_path).identity == original.identity


# --- hostile ----------------------------------------------------------------------------------------------------------


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


SQUARE = ones(4, 4)
LOHA = dict.fromkeys(("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"), SQUARE)
KRON = {"lokr_w1": SQUARE, "lokr_w2": SQUARE}
BAD = {
    "half a LoHa": ({"hada_w1_a": SQUARE, "hada_w1_b": SQUARE}, "no known change"),
    "two forms": ({"diff": SQUARE, "w_norm": SQUARE[0]}, "no known change"),
    "whole and factored": (KRON | {"lokr_w1_a": SQUARE, "lokr_w1_b": SQUARE}, "do not fit"),
    "no second matrix": ({"lokr_w1": SQUARE}, "do not fit"),
    "a weight too large": ({"lokr_w1": ones(9000, 1), "lokr_w2": ones(9000, 1)}, "in no Stable"),
    "a product too large": ({"lokr_w1": ones(300, 300), "lokr_w2": ones(300, 300)}, "in no Stable"),
    "not finite": ({"diff": SQUARE * np.nan}, "not finite"),
    "alpha": (LOHA | {"alpha": np.float32([1e9])}, "out of bounds"),
    "alphas": (LOHA | {"alpha": SQUARE}, "not one number"),
    "blocks that are no squares": ({"oft_blocks": ones(2, 3, 4)}, "do not fit"),
    "stages that do not pair": ({"oft_blocks": ones(5, 2, 4, 4)}, "do not fit"),
    "no triangle": ({"oft_R.weight": ones(2, 7)}, "do not fit"),
    "a DoRA of nothing": ({"dora_scale": SQUARE}, "no known change"),
    "a scale of OFT": ({"oft_blocks": ones(2, 2, 2), "rescale": ones(5, 1)}, "do not fit"),
    "empty": ({"diff": ones(0, 4)}, "empty"),
    "doubles": ({"diff": np.ones((4, 4))}, "float32 or float16"),
    "five axes": ({"diff": ones(2, 2, 2, 2, 2)}, "do not fit"),
}  # fmt: skip


LAYER = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"  # of SD 1.x: (640, 768)
MISFITS = {  # outlines fit
    "DoRA of other rows": {"lora_up.weight": ones(640, 2), "lora_down.weight": ones(2, 768), "dora_scale": ones(77, 1)},
    "DoRA of other columns": {
        "lora_up.weight": ones(640, 2),
        "lora_down.weight": ones(2, 768),
        "dora_scale": ones(1, 77),
    },
    "blocks that are no part of a row": {"oft_R.weight": ones(1, 10)},
    "a bias of other rows": {"diff": ones(640, 640), "diff_b": ones(639)},
}


@pytest.mark.parametrize("name", MISFITS)
def test_changes_that_fit_no_layer_weight_are_refused_at_import(name):
    layer = LAYER.replace("attn2_to_k", "attn1_to_out_0") if name.startswith("a bias") else LAYER
    tensors = {f"{layer}.{key}": torch.tensor(value) for key, value in MISFITS[name].items()}
    with pytest.raises(UserError, match="does not fit a weight of"):
        read_any(safetensors_bytes(tensors, {"ss_base_model_version": "sd_v1"}), "x.safetensors", Token.parse("<me/x>"))


def test_large_tucker_cores_are_not_converted():
    """Their rank is asked for first: einsum would take minutes here."""
    rank = 2048
    empty = np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), (rank, rank, 3, 3), (0,) * 4)
    tucker = {"hada_w1_a": ones(rank, 8), "hada_w1_b": ones(rank, 2048), "hada_t1": empty}
    loha = tucker | {key.replace("1", "2"): value for key, value in tucker.items()}
    kron = {"lokr_w1": SQUARE, "lokr_w2_a": ones(rank, 8), "lokr_w2_b": ones(rank, 2048), "lokr_t2": empty}
    assert as_lora(loha, 128) is None and as_lora(kron, 128) is None


@pytest.mark.parametrize("name", BAD)
def test_invalid_layer_changes_are_refused(name):
    tensors, message = BAD[name]
    with pytest.raises(UserError, match=message):
        Concept(Token.parse("<me/x>"), Card(base="tiny"), {}, Lora({}, {"lora_unet_x": tensors}))
