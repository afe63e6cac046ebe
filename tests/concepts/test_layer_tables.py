"""Which layers Stable Diffusion has, and which base a file's layers are for."""

import functools
import json
import re

import numpy as np
import pytest
import torch
from torch import nn

from sdpersonal.concepts.importers import layer_shapes, peft, read_any
from sdpersonal.concepts.importers.read_folders import read_folder
from sdpersonal.errors import UserError
from sdpersonal.prompts import Token
from support import foreign
from support.foreign import flat_name, safetensors_bytes

X = Token.parse("<me/x>")
TEXTS = {"sd1": {"te": (768, 12)}, "sd2": {"te": (1024, 23)}, "sdxl": {"te1": (768, 12), "te2": (1280, 32)}}


def real(model: nn.Module) -> dict[str, tuple[tuple[int, ...], bool]]:
    """(shape of the weight, whether there is a bias) of every layer that a file can change."""
    kinds = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm)
    modules = {path: module for path, module in model.named_modules() if isinstance(module, kinds)}
    return {path: (tuple(module.weight.shape), module.bias is not None) for path, module in modules.items()}


@functools.cache
def clip(width: int, layers: int) -> dict[str, tuple[tuple[int, ...], bool]]:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=8, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, projection_dim=width
    )
    with torch.device("meta"):
        result = real(CLIPTextModelWithProjection(config))
    return {path if path.startswith("text_") else f"text_model.{path}": facts for path, facts in result.items()}


@pytest.mark.parametrize("base", TEXTS)
def test_layer_tables_match_the_published_models(base):
    paths = foreign.originals(base) if base == "sdxl" else {}
    expected = {
        f"lora_unet_{flat_name(paths.get(path, path))}": facts for path, facts in real(foreign.unet(base)).items()
    }
    for encoder, (width, layers) in TEXTS[base].items():
        expected |= {f"lora_{encoder}_{flat_name(path)}": facts for path, facts in clip(width, layers).items()}
    table = layer_shapes.layer_table(base)
    if base == "sd2":  # the original has a layer more, which nothing reads
        table = {name: shape for name, shape in table.items() if "_layers_23_" not in name}
    assert table == {name: shape for name, (shape, _) in expected.items()}
    assert [name for name, (_, biased) in expected.items() if layer_shapes.has_bias(name) != biased] == []


def test_the_layer_table_of_the_built_in_base_matches_its_unet(tiny):
    expected = {f"lora_unet_{flat_name(path)}": shape for path, (shape, _) in real(tiny.unet).items()}
    table = layer_shapes.layer_table("tiny")
    assert {name: shape for name, shape in table.items() if name.startswith("lora_unet")} == expected
    assert {name for name in tiny.adapters.layers() if name.startswith("lora_te_")} <= table.keys()


# --- which base -------------------------------------------------------------------------------------------------------


def lora(name: str, rows: int, width: int, *kernel: int, suffixes=("lora_down.weight", "lora_up.weight")) -> dict:
    down, up = torch.ones(2, width, *kernel), torch.ones(rows, 2, *(1 for _ in kernel))
    return {f"{name}.{suffixes[0]}": down, f"{name}.{suffixes[1]}": up}


PEFTS = ("lora_A.weight", "lora_B.weight")
TE = "text_model_encoder_layers_{}_self_attn_q_proj"
PARTIAL = {
    "te1 alone": ("sdxl", lora("lora_te1_" + TE.format(0), 768, 768)),
    "te2 alone": ("sdxl", lora("lora_te2_" + TE.format(31), 1280, 1280)),
    "te alone": ("sd1", lora("lora_te_" + TE.format(0), 768, 768)),
    "te of 2.x alone": ("sd2", lora("lora_te_" + TE.format(22), 1024, 1024)),
    "text_encoder_2 alone": (
        "sdxl",
        lora("text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj", 1280, 1280, suffixes=PEFTS),
    ),
    "text_encoder alone": ("sd1", lora("text_encoder.text_model.encoder.layers.0.self_attn.q_proj", 768, 768)),
    "PEFT's second encoder": ("sdxl", lora("base_model.model.text_model.encoder.layers.30.mlp.fc1", 5120, 1280)),
    "one transformer of XL": ("sdxl", lora("unet.mid_block.attentions.0.transformer_blocks.9.attn1.to_q", 1280, 1280)),
    "the first level": ("sd1", lora("lora_unet_down_blocks_0_attentions_0_proj_in", 320, 320, 1, 1)),
    "a convolution of XL": ("sdxl", lora("lora_unet_input_blocks_4_0_in_layers_2", 640, 320, 3, 3)),
    "up, by width": ("sdxl", lora("unet.up_blocks.2.resnets.0.conv1", 320, 960, 3, 3)),
    "sizes": ("sdxl", lora("unet.add_embedding.linear_1", 1280, 2816)),
    "kohya's own OFT": (
        "sdxl",
        {"oft_unet_input_blocks_4_1_proj_in.oft_blocks": torch.zeros(80, 8, 8),
         "oft_unet_input_blocks_8_1_transformer_blocks_9_attn1_to_q.oft_blocks": torch.zeros(160, 8, 8)},
    ),
    "LyCORIS alone, text": ("sd1", {"lycoris_text_model_encoder_layers_0_mlp_fc1.diff": torch.ones(3072, 768)}),
    "inpainting": ("sd1", lora("unet.conv_in", 320, 9, 3, 3) | lora("lora_te_" + TE.format(0), 768, 768)),
}  # fmt: skip


@pytest.mark.parametrize("name", PARTIAL)
def test_the_base_is_inferred_from_a_few_layers(name):
    base, tensors = PARTIAL[name]
    concept = read_any(safetensors_bytes(tensors), "x.safetensors", X)
    assert concept.card.base == base
    assert concept.lora.layers.keys() | concept.lora.changes.keys() <= layer_shapes.layer_table(base).keys()


FLAT = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
DOTS = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (lora(DOTS.replace("blocks.0.attentions.0", "blocks.9.attentions.7"), 320, 768), "down_blocks_9_.*is not in"),
        (lora(FLAT, 999, 768), "999 x 768 numbers, where that has 640 x 768"),
        (lora(FLAT, 640, 1024) | lora("lora_te_" + TE.format(0), 768, 768), "where that has"),
        (lora("lora_te1_" + TE.format(0), 1024, 1024), "1024 x 1024 numbers, where that has 768 x 768"),
        (lora("lora_te2_" + TE.format(32), 1280, 1280), "layers_32_self_attn_q_proj is not in it"),
        (lora("lora_te_" + TE.format(12), 768, 768), "layers_12"),
        (lora(FLAT.replace("down_blocks_1_attentions_0_transformer_blocks_0", "input_blocks_4_1_transformer_blocks_2"),
              640, 2048), "transformer_blocks_2_attn2_to_k is not in it"),
        (lora("unet.conv_in", 320, 7, 3, 3), "320 x 63 numbers"),
        ({f"{FLAT}.oft_blocks": torch.zeros(8, 8, 8)}, "64 x any numbers, where that has 640 x 768"),
        ({f"{DOTS}.diff": torch.ones(320, 768), f"{DOTS}.diff_b": torch.ones(320)}, "bias, and layer .*to_k has none"),
        ({"lora_unet_down_blocks_0_attentions_0_proj_in.w_norm": torch.ones(320)}, "320 x 1 numbers"),
    ],
)  # fmt: skip
def test_layers_of_no_known_base_are_refused_by_name(tensors, message):
    with pytest.raises(UserError, match=message) as caught:
        read_any(safetensors_bytes(tensors), "x.safetensors", X)
    assert caught.value.hint


def test_the_header_identifies_a_lora_for_the_built_in_base():
    """Its header says which base; without that it might be for a model built like SD 1.x, a quarter as wide."""
    tensors = lora("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", 16, 32, suffixes=PEFTS)
    assert read_any(safetensors_bytes(tensors), "x.safetensors", X).card.base == "sd1"
    output = {"modelspec.architecture": "sdpersonal-tiny/lora"}
    assert read_any(safetensors_bytes(tensors, output), "x.safetensors", X).card.base == "tiny"


WRAPPED = [
    "unet._orig_mod.{}", "_orig_mod.{}", "_orig_mod.unet.{}", "module.unet.{}", "unet.module.{}", "module._orig_mod.{}",
    "base_model.model.{}", "base_model.model.unet.{}", "unet.base_model.model.{}", "base_model.model._orig_mod.{}",
]  # fmt: skip


@pytest.mark.parametrize("wrap", WRAPPED)
@pytest.mark.parametrize("adapter", ["", ".default", ".my-style_2"])
def test_wrapper_prefixes_in_layer_names_are_ignored(wrap, adapter):
    ends = tuple(f"lora_{which}{adapter}.weight" for which in "AB")
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    concept = read_any(safetensors_bytes(lora(wrap.format(path), 320, 768, suffixes=ends)), "x.safetensors", X)
    assert list(concept.lora.layers) == [f"lora_unet_{flat_name(path)}"] and concept.card.base == "sd1"
    inside = lora(f"unet.{path}".replace(".attn2", "._orig_mod.attn2"), 320, 768, suffixes=ends)
    kohya = lora(f"lora_unet__orig_mod_{flat_name(path)}", 320, 768)
    for tensors in (inside, kohya):
        assert read_any(safetensors_bytes(tensors), "x.safetensors", X).lora.layers.keys() == concept.lora.layers.keys()


# --- PEFT's scale -----------------------------------------------------------------------------------------------------

PATH = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
SCALES = {
    "nothing": ({}, 8 / 4),
    "null": ({"lora_alpha": None, "alpha_pattern": None, "rank_pattern": None, "use_rslora": None}, 8 / 4),
    "zero": ({"lora_alpha": 0}, 0.0),
    "less": ({"lora_alpha": -6}, -1.5),
    "rsLoRA": ({"lora_alpha": 6, "use_rslora": True}, 3.0),
    "rsLoRA's default": ({"use_rslora": True}, 4.0),
    "a pattern": ({"lora_alpha": 6, "alpha_pattern": {"attn2.to_k": 2}}, 0.5),
    "a pattern of zero": ({"lora_alpha": 6, "alpha_pattern": {r"down_blocks\..*\.to_k": 0}}, 0.0),
    "the first of two": ({"alpha_pattern": {r"^down_blocks\.\d+\..*to_[kv]": 12, "to_k": 2}}, 3.0),
    "none that fits": ({"lora_alpha": 2, "alpha_pattern": {"o_k": 12, "attn2": 4, r"(attn1|ff)\.to_k": 5}}, 0.5),
}


def pefts_scale(config: dict, folder) -> float:
    """By PEFT itself, on a model that has the one layer at its path."""
    import peft

    model = nn.Module()
    place = model
    for name in PATH.split(".")[:-1]:
        setattr(place, name, nn.Module())
        place = getattr(place, name)
    place.to_k = nn.Linear(768, 320, bias=False)
    before = place.to_k.weight.detach().clone()
    config = {key: value for key, value in config.items() if value is not None}
    made = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["to_k"], **config))
    layer = next(module for module in made.modules() if hasattr(module, "lora_A") and hasattr(module, "scaling"))
    layer.lora_B["default"].weight.data.fill_(0.1)
    expected = (layer.lora_B["default"].weight @ layer.lora_A["default"].weight).detach()
    made.save_pretrained(folder)
    merged = made.merge_and_unload()
    changed = merged.get_submodule(PATH).weight.detach() - before
    return float((changed * expected).sum() / (expected * expected).sum())


@pytest.mark.parametrize("name", SCALES)
def test_the_adapter_scale_matches_peft(name, tmp_path):
    config, expected = SCALES[name]
    assert pefts_scale(config, tmp_path / "thing") == pytest.approx(expected, abs=1e-5)
    place = tmp_path / "thing" / "adapter_config.json"
    full = json.loads(place.read_text())
    for key in ("lora_alpha", "alpha_pattern", "rank_pattern", "use_rslora"):
        full.pop(key, None)
    place.write_text(json.dumps(full | config))
    [layer] = read_folder(tmp_path / "thing", X).lora.layers.values()
    assert scale_of(layer) == pytest.approx(expected)
    tensors = lora(f"unet.{PATH}", 320, 768, suffixes=("lora_A.weight", "lora_B.weight"))
    tensors = {key: torch.cat([value] * 2, 1 if "lora_B" in key else 0) for key, value in tensors.items()}  # rank 4
    header = {"lora_adapter_metadata": json.dumps({f"unet.{key}": value for key, value in {"r": 4, **config}.items()})}
    [layer] = read_any(safetensors_bytes(tensors, header), "x.safetensors", X).lora.layers.values()
    assert scale_of(layer) == pytest.approx(expected)


def scale_of(layer) -> float:
    """The factor, in which a negative alpha may stand in `up`, whose numbers are positive here."""
    sign = -1.0 if (layer.up < 0).all() else 1.0
    size = float(np.abs(layer.up).max()) if layer.alpha else 0.0
    known = 0.1 if 0 < size < 0.5 else 1.0
    return sign * size / known * layer.alpha / layer.rank


@pytest.mark.parametrize("alpha", [None, 0.0, 3.0])
def test_kohya_loras_without_alpha_have_scale_one(alpha):
    name = f"lora_unet_{flat_name(PATH)}"
    tensors = lora(name, 320, 768) | ({f"{name}.alpha": torch.tensor(alpha)} if alpha is not None else {})
    [layer] = read_any(safetensors_bytes(tensors), "x.safetensors", X).lora.layers.values()
    assert layer.alpha / layer.rank == (1.5 if alpha else 1.0)


@pytest.mark.parametrize(
    "pattern", ["(.*)*x", "(a+)+$", ".*.*.*x", "(?=a)", "[", "a" * 300, "(a|b)+", r"\w+\w+\w+x", "a{9}"]
)
def test_slow_regular_expressions_are_refused(pattern):
    with pytest.raises(UserError, match="patterns in its alpha_pattern that are not read"):
        peft.module_alpha({"lora_alpha": 1, "alpha_pattern": {pattern: 2}}, PATH, 4, "x")


def test_alpha_patterns_match_the_same_layers_as_in_peft():
    from peft.utils.other import get_pattern_key

    rng = np.random.default_rng(0)
    words = [
        "down_blocks",
        r"\.",
        ".",
        r"\d+",
        ".*",
        "attn2",
        "to_k",
        "to_[kq]",
        "(attn1|attn2)",
        "0",
        "^",
        "$",
        "transformer_blocks",
    ]
    read = 0
    for _ in range(500):
        pattern = "".join(rng.choice(words) for _ in range(rng.integers(1, 6)))
        try:
            re.compile(pattern)
            ours = peft.module_alpha({"lora_alpha": 1, "alpha_pattern": {pattern: 2}}, PATH, 4, "x")
        except (UserError, re.error):
            continue
        read += 1
        assert (ours == 2) == (get_pattern_key([pattern], PATH) == pattern), pattern
    assert read > 200
