"""Files of other programs, laid out as their own writers do, from tensors that the test knows."""

from __future__ import annotations

import functools
import io
import json

import numpy as np
import safetensors.torch
import torch

from sdpersonal.models.loading.ldm_keys import unet_paths

UNETS = {
    "sd1": {"cross_attention_dim": 768, "attention_head_dim": 8},
    "sd2": {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
    "sdxl": {
        "cross_attention_dim": 2048,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
        "use_linear_projection": True,
    },
}
TEXT = "text_model.encoder.layers.{}.self_attn.{}"


def torch_saved(content: object, **layout) -> bytes:
    out = io.BytesIO()
    torch.save(content, out, **layout)
    return out.getvalue()


def safetensors_bytes(tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> bytes:
    return safetensors.torch.save({key: value.contiguous().clone() for key, value in tensors.items()}, metadata)


def rows(count: int = 2, width: int = 768, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    return (torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) * 0.02).to(dtype)


@functools.cache
def unet(kind: str):
    """Stable Diffusion's own UNet without its numbers."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(sample_size=64, **UNETS[kind])


@functools.cache
def layers(kind: str, every: int = 1) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights of the transformers' linear layers, by diffusers' path; every n-th, the first included."""
    result = {
        path: tuple(module.weight.shape)
        for path, module in unet(kind).named_modules()
        if path.endswith(("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "proj_in"))
    }
    return dict(list(result.items())[::every])


def originals(kind: str) -> dict[str, str]:
    """Every module's path in the original code."""
    return unet_paths(unet(kind))


def matrices(shapes: dict[str, tuple[int, ...]], rank: int = 2, seed: int = 0, dtype=torch.float32):
    """(down, up) for every layer."""
    chance = torch.Generator().manual_seed(seed)
    return {
        path: (
            torch.randn(rank, *shape[1:], generator=chance).to(dtype),
            torch.randn(shape[0], rank, *(1 for _ in shape[2:]), generator=chance).to(dtype),
        )
        for path, shape in shapes.items()
    }


def text_layers(width: int, count: int = 2) -> dict[str, tuple[int, int]]:
    return {
        TEXT.format(i, which): (width, width)
        for i in range(count)
        for which in ("q_proj", "k_proj", "v_proj", "out_proj")
    }


def flat_name(path: str) -> str:
    return path.replace(".", "_")


def kohya(kind: str, dtype=torch.float16, alpha: float = 1.0, every: int = 7, rank: int = 2, **header: str) -> bytes:
    """`networks/lora.py`: sgm names for SDXL's UNet."""
    paths = originals(kind) if kind == "sdxl" else {}
    named = {
        f"lora_unet_{flat_name(paths.get(path, path))}": pair
        for path, pair in matrices(layers(kind, every), rank, dtype=dtype).items()
    }
    encoders = {"lora_te1": 768, "lora_te2": 1280} if kind == "sdxl" else {"lora_te": {"sd1": 768, "sd2": 1024}[kind]}
    for prefix, width in encoders.items():
        pairs = matrices(text_layers(width), rank, seed=width, dtype=dtype)
        named |= {f"{prefix}_{flat_name(path)}": pair for path, pair in pairs.items()}
    tensors = {}
    for name, (down, up) in named.items():
        tensors |= {
            f"{name}.lora_down.weight": down,
            f"{name}.lora_up.weight": up,
            f"{name}.alpha": torch.tensor(alpha).to(dtype),
        }
    return safetensors_bytes(tensors, {"ss_network_module": "networks.lora", "ss_output_name": "kohya_duck"} | header)


def diffusers_lora(kind: str = "sd1", naming: str = "peft", every: int = 7, prefix: str = "unet.") -> bytes:
    """naming: "processor" (until 0.22), "lora" (later) or "peft"."""
    tensors = {}
    for path, (down, up) in matrices(layers(kind, every)).items():
        if naming == "processor":
            before, _, which = path.removesuffix(".0").rpartition(".")
            if not which.startswith("to_"):
                continue
            tensors[f"{prefix}{before}.processor.{which}_lora.down.weight"] = down
            tensors[f"{prefix}{before}.processor.{which}_lora.up.weight"] = up
        else:
            a, b = ("lora.down", "lora.up") if naming == "lora" else ("lora_A", "lora_B")
            tensors |= {f"{prefix}{path}.{a}.weight": down, f"{prefix}{path}.{b}.weight": up}
    return safetensors_bytes(tensors, {"format": "pt"})


def cloneofsimo(order: str = "old", embeds: int = 2) -> dict[str, torch.Tensor]:
    """Tensors of cloneofsimo's file for SD 1.x; order: GEGLU before ("old") or after the cross attention."""
    shapes = layers("sd1")
    starts = [f"down_blocks.{i}.attentions.{j}" for i in range(3) for j in range(2)]
    starts += [f"up_blocks.{i}.attentions.{j}" for i in range(1, 4) for j in range(3)] + ["mid_block.attentions.0"]
    tensors = {}
    for number, path in enumerate(item for start in starts for item in cloneofsimo_paths(start, order)):
        tensors |= _numbered("unet", number, shapes[path])
    for number in range(12 * 4):
        tensors |= _numbered("text_encoder", number, (768, 768))
    return tensors | {f"<s{i + 1}>": rows(1, seed=i)[0] for i in range(embeds)}


def cloneofsimo_paths(start: str, order: str) -> list[str]:
    block = f"{start}.transformer_blocks.0"
    attention = [[f"{block}.{a}.{w}" for w in ("to_q", "to_k", "to_v", "to_out.0")] for a in ("attn1", "attn2")]
    feed = [f"{block}.ff.net.0.proj"]
    return [*attention[0], *feed, *attention[1]] if order == "old" else [*attention[0], *attention[1], *feed]


def _numbered(model: str, number: int, shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    chance = torch.Generator().manual_seed(number)
    up, down = torch.randn(shape[0], 1, generator=chance), torch.randn(1, shape[1], generator=chance)
    return {f"{model}:{number}:up": up.half(), f"{model}:{number}:down": down.half()}


def cloneofsimo_safetensors(order: str = "old", embeds: int = 2) -> bytes:
    tensors = cloneofsimo(order, embeds)
    metadata = {"unet": json.dumps(["CrossAttention", "Attention", "GEGLU"]), "text_encoder": '["CLIPAttention"]'}
    metadata |= {f"{key.rpartition(':')[0]}:rank": "1" for key in tensors if key.endswith(":up")}
    return safetensors_bytes(tensors, metadata | {key: "<embed>" for key in tensors if key.startswith("<")})


def cloneofsimo_list(model: str, order: str = "old") -> bytes:
    tensors = cloneofsimo(order)
    count = sum(key.startswith(f"{model}:") for key in tensors) // 2
    return torch_saved([tensors[f"{model}:{i}:{piece}"] for i in range(count) for piece in ("up", "down")])


def a1111(vectors: torch.Tensor, name: str = "Duck", **more) -> dict[str, object]:
    """What `Embedding.save` gives to torch.save."""
    return {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": vectors},
        "name": name,
        "step": 3000,
        "sd_checkpoint": "cc6cb27103",
        "sd_checkpoint_name": "v1-5-pruned-emaonly",
    } | more


def rinongal(vectors: torch.Tensor, placeholder: str = "*") -> dict[str, object]:
    """What `EmbeddingManager.save` gives to torch.save: a token that is a view of 77, an nn.ParameterDict."""
    ids = torch.arange(77).reshape(1, 77)
    params = torch.nn.ParameterDict({placeholder: torch.nn.Parameter(vectors)})
    return {"string_to_token": {placeholder: ids[0, 1]}, "string_to_param": params}


def numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().float().numpy()
