"""Pipelines of Stable Diffusion with narrow layers and random weights, and the same as one file in the layout of the
original training code, written by rules that owe nothing to the reader under test: those of diffusers' own script
`convert_diffusers_to_original_stable_diffusion.py` and of its SDXL sister, for any number of levels."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors.torch import save_file

KINDS = ("sd1", "sd2", "sd2 v", "sdxl")
NARROW = {  # text width, text layers, UNet widths, depth of each level
    "sd1": (768, 2, (32, 64, 64, 64), (1, 1, 1, 0)),
    "sd2": (1024, 2, (64, 64, 128, 128), (1, 1, 1, 0)),
    "sdxl": (2048, 2, (64, 64, 128), (0, 1, 2)),
}
FULL = {
    "sd1": (768, 12, (320, 640, 1280, 1280), (1, 1, 1, 0)),
    "sd2": (1024, 23, (320, 640, 1280, 1280), (1, 1, 1, 0)),
    "sdxl": (2048, 12, (320, 640, 1280), (0, 2, 10)),
}


def models(kind: str, table=NARROW, vocabulary: int = 49408) -> dict[str, torch.nn.Module]:
    """unet, vae, text_encoder and, of SDXL, text_encoder_2: configurations as published, but for the widths."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    width, layers, widths, depths = table[kind]
    full = table is FULL
    unet = {
        "sample_size": {"sd1": 64, "sd2": 96, "sdxl": 128}[kind] if full else 16,
        "block_out_channels": widths,
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths],
        "up_block_types": ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)],
        "transformer_layers_per_block": [depth or depths[-1] or 1 for depth in depths],
        "layers_per_block": 2,
        "cross_attention_dim": width,
        "attention_head_dim": 8 if kind == "sd1" else [w // 64 for w in widths],
        "use_linear_projection": kind != "sd1",
    }
    if kind == "sdxl":
        unet |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        }
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512) if full else (32, 32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        sample_size=512,
        scaling_factor=0.13025 if kind == "sdxl" else 0.18215,
    )
    made = {"unet": UNet2DConditionModel(**unet), "vae": vae}
    if kind == "sdxl":
        made["text_encoder"] = CLIPTextModel(_text(768, layers, "quick_gelu", vocabulary, full))
        second = _text(1280, 32 if full else 2, "gelu", vocabulary, full)
        made["text_encoder_2"] = CLIPTextModelWithProjection(second)
    else:
        made["text_encoder"] = CLIPTextModel(
            _text(width, layers, "quick_gelu" if kind == "sd1" else "gelu", vocabulary, full)
        )
    return made


def pipeline(kind: str, tokenizers, seed: int = 0):
    """A pipeline of diffusers with random weights that fp16 holds exactly. tokenizers: one for each text encoder."""
    from diffusers import DDPMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

    torch.manual_seed(seed)
    name = kind.split()[0]
    parts = models(name, vocabulary=len(tokenizers[0]))
    for model in parts.values():
        for parameter in model.parameters():
            parameter.data = parameter.data.half().float()
    scheduler = DDPMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        steps_offset=1,
        timestep_spacing="leading",
        clip_sample=False,
        prediction_type="v_prediction" if kind.endswith(" v") else "epsilon",
    )
    parts |= {"scheduler": scheduler, "tokenizer": tokenizers[0]}
    if name == "sdxl":
        pipe = StableDiffusionXLPipeline(**parts, tokenizer_2=tokenizers[1])
    else:
        pipe = StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def checkpoint(parts: dict[str, torch.nn.Module]) -> dict[str, torch.Tensor]:
    """The tensors of the models of one pipeline, under the names of the original layout."""
    tensors = {f"model.diffusion_model.{key}": value for key, value in _unet(parts["unet"]).items()}
    tensors |= {f"first_stage_model.{key}": value for key, value in _vae(parts["vae"]).items()}
    text = parts["text_encoder"].state_dict()
    if second := parts.get("text_encoder_2"):
        tensors |= {f"conditioner.embedders.0.transformer.text_model.{key}": value for key, value in text.items()}
        tensors |= {f"conditioner.embedders.1.model.{key}": value for key, value in _open_clip(second).items()}
    elif parts["text_encoder"].config.hidden_size == 768:
        tensors |= {f"cond_stage_model.transformer.text_model.{key}": value for key, value in text.items()}
        tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    else:
        tensors |= {f"cond_stage_model.model.{key}": v for key, v in _open_clip(parts["text_encoder"]).items()}
    return tensors


def write(pipe, path: Path, metadata: dict[str, str] | None = None, extra: dict[str, torch.Tensor] | None = None):
    """One `.safetensors` in fp16, as people share them, with some of what training leaves in such files."""
    tensors = checkpoint({name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)})
    tensors |= {"alphas_cumprod": torch.ones(1000), "model_ema.decay": torch.tensor(0.99)} | (extra or {})
    half = {key: (value.half() if value.is_floating_point() else value) for key, value in tensors.items()}
    save_file({key: value.clone().contiguous() for key, value in half.items()}, path, metadata)
    return path


def _text(width: int, layers: int, activation: str, vocabulary: int, full: bool):
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=4 * width if full else 128,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        projection_dim=width,
        hidden_act=activation,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
    )


def _unet(unet) -> dict[str, torch.Tensor]:
    """By pairs (diffusers, original), replaced in turn, as the script does."""
    levels = len(unet.config.block_out_channels)
    pairs = []
    for i in range(levels):
        for j in range(2):
            pairs.append((f"down_blocks.{i}.resnets.{j}.", f"input_blocks.{3 * i + j + 1}.0."))
            pairs.append((f"down_blocks.{i}.attentions.{j}.", f"input_blocks.{3 * i + j + 1}.1."))
        for j in range(3):
            pairs.append((f"up_blocks.{i}.resnets.{j}.", f"output_blocks.{3 * i + j}.0."))
            pairs.append((f"up_blocks.{i}.attentions.{j}.", f"output_blocks.{3 * i + j}.1."))
        pairs.append((f"down_blocks.{i}.downsamplers.0.conv.", f"input_blocks.{3 * (i + 1)}.0.op."))
        plain = unet.config.up_block_types[i] == "UpBlock2D"
        pairs.append((f"up_blocks.{i}.upsamplers.0.", f"output_blocks.{3 * i + 2}.{1 if plain else 2}."))
    pairs.append(("mid_block.attentions.0.", "middle_block.1."))
    pairs += [(f"mid_block.resnets.{j}.", f"middle_block.{2 * j}.") for j in range(2)]
    pairs += [
        ("time_embedding.linear_1.", "time_embed.0."),
        ("time_embedding.linear_2.", "time_embed.2."),
        ("add_embedding.linear_1.", "label_emb.0.0."),
        ("add_embedding.linear_2.", "label_emb.0.2."),
        ("conv_in.", "input_blocks.0.0."),
        ("conv_norm_out.", "out.0."),
        ("conv_out.", "out.2."),
    ]
    inside = [
        ("norm1", "in_layers.0"),
        ("conv1", "in_layers.2"),
        ("norm2", "out_layers.0"),
        ("conv2", "out_layers.3"),
        ("time_emb_proj", "emb_layers.1"),
        ("conv_shortcut", "skip_connection"),
    ]
    renamed = {}
    for key, value in unet.state_dict().items():
        if "resnets" in key:
            for ours, original in inside:
                key = key.replace(ours, original)
        for ours, original in pairs:
            if key.startswith(ours):
                key = original + key.removeprefix(ours)
                break
        renamed[key] = value
    return renamed


def _vae(vae) -> dict[str, torch.Tensor]:
    pairs = [
        ("conv_shortcut", "nin_shortcut"),
        ("conv_norm_out", "norm_out"),
        ("mid_block.attentions.0.", "mid.attn_1."),
    ]
    for i in range(4):
        pairs += [(f"encoder.down_blocks.{i}.resnets.{j}.", f"encoder.down.{i}.block.{j}.") for j in range(2)]
        pairs += [(f"decoder.up_blocks.{i}.resnets.{j}.", f"decoder.up.{3 - i}.block.{j}.") for j in range(3)]
        pairs.append((f"down_blocks.{i}.downsamplers.0.", f"down.{i}.downsample."))
        pairs.append((f"up_blocks.{i}.upsamplers.0.", f"up.{3 - i}.upsample."))
    pairs += [(f"mid_block.resnets.{i}.", f"mid.block_{i + 1}.") for i in range(2)]
    attention = [
        ("group_norm.", "norm."),
        ("to_q.", "q."),
        ("to_k.", "k."),
        ("to_v.", "v."),
        ("to_out.0.", "proj_out."),
    ]
    renamed = {}
    for key, value in vae.state_dict().items():
        if "attentions" in key:
            for ours, original in attention:
                key = key.replace(ours, original)
        for ours, original in pairs:
            key = key.replace(ours, original)
        if re.search(r"attn_1\.(q|k|v|proj_out)\.weight", key):
            value = value[:, :, None, None]  # the original has 1x1 convolutions there
        renamed[key] = value
    return renamed


def _open_clip(text) -> dict[str, torch.Tensor]:
    state = {key.removeprefix("text_model."): value for key, value in text.state_dict().items()}
    renamed = {
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
        "logit_scale": torch.tensor(4.6),
        "text_projection": state["text_projection.weight"].T
        if "text_projection.weight" in state
        else torch.eye(text.config.hidden_size),
    }
    names = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    for i in range(text.config.num_hidden_layers):
        ours, original = f"encoder.layers.{i}.", f"transformer.resblocks.{i}."
        for end in ("weight", "bias"):
            joint = [state[f"{ours}self_attn.{item}_proj.{end}"] for item in "qkv"]
            renamed[f"{original}attn.in_proj_{end}"] = torch.cat(joint)
            renamed[f"{original}attn.out_proj.{end}"] = state[f"{ours}self_attn.out_proj.{end}"]
            for name, reference in names.items():
                renamed[f"{original}{reference}.{end}"] = state[f"{ours}{name}.{end}"]
    return renamed
