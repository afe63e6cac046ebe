"""AUTOMATIC1111's web UI: `EmbeddingDatabase.load_from_file`, `networks.load_network` and each module's `calc_updown`.

Its models (Stability AI's `ldm`, `sgm`) are third parties' and stand in as trees of layers under their own names.
"""

import os
import sys
import tempfile
from types import SimpleNamespace

import frame
import torch
from torch import nn

job = frame.job("gradio", "ldm", "sgm", "k_diffusion")
place = tempfile.mkdtemp()
for file in (
    "sd/ldm/models/diffusion/ddpm.py",
    "generative-models/sgm/x.py",
    "BLIP/models/blip.py",
    "k-diffusion/x.py",
):
    os.makedirs(os.path.dirname(f"{place}/{file}"))
    open(f"{place}/{file}", "w").close()  # only whether it is there is asked
os.chdir(f"{place}/sd")
sys.path.insert(0, f"{job.checkout}/extensions-builtin/Lora")
sys.argv[1:] = ["--data-dir", place, "--use-cpu", "all", "--no-half", "--skip-torch-cuda-test"]
import modules.shared as shared  # noqa: E402
import modules.shared_init  # noqa: E402

modules.shared_init.initialize()
import modules.processing  # noqa: E402 - as its own start does: the others import each other in a ring
import modules.textual_inversion.textual_inversion as textual_inversion  # noqa: E402
import network  # noqa: E402
import networks  # noqa: E402

from support import original  # noqa: E402


def tree(paths: dict[str, nn.Module]) -> nn.Module:
    """Modules at dotted paths."""
    top = nn.Module()
    for path, module in sorted(paths.items(), key=lambda item: item[0].count(".")):
        at = top
        *above, last = path.split(".")
        for part in above:
            if part not in at._modules:
                at.add_module(part, nn.Module())
            at = at._modules[part]
        at.add_module(last, module)
    return top


def original_paths(part: nn.Module, rename) -> dict[str, nn.Module]:
    """Each layer by its path in the original layout."""
    renamed = list(rename(part))
    ours = list(part.state_dict())
    modules = dict(part.named_modules())
    return {
        new.removesuffix(".weight"): modules[old.removesuffix(".weight")]
        for old, new in zip(ours, renamed, strict=True)
        if old.endswith(".weight") and isinstance(modules[old.removesuffix(".weight")], nn.Linear | nn.Conv2d)
    }


def clip(part: nn.Module) -> nn.Module:
    """transformers' own layout."""
    model = nn.Module()
    model.wrapped = nn.Module()
    model.wrapped.transformer = frame.as_it_was(part)
    return model


def open_clip(part: nn.Module) -> nn.Module:
    """One attention for q, k and v, as torch has it."""
    inner = getattr(part, "text_model", part)
    paths = {}
    for number, layer in enumerate(inner.encoder.layers):
        block = f"model.transformer.resblocks.{number}."
        paths[block + "attn"] = nn.MultiheadAttention(part.config.hidden_size, part.config.num_attention_heads)
        paths[block + "mlp.c_fc"], paths[block + "mlp.c_proj"] = layer.mlp.fc1, layer.mlp.fc2
    model = nn.Module()
    model.wrapped = tree(paths)
    return model


parts = frame.narrow(job.base)
unet = nn.Module()
unet.diffusion_model = tree(original_paths(parts["unet"], original._unet))
model = SimpleNamespace(model=unet, is_sdxl=job.base == "sdxl")
if job.base == "sdxl":
    model.conditioner = SimpleNamespace(embedders=[clip(parts["text_encoder"]), open_clip(parts["text_encoder_2"])])
else:
    model.cond_stage_model = (clip if job.base == "sd1" else open_clip)(parts["text_encoder"])
shared.sd_model = model
networks.assign_network_names_to_compvis_modules(model)

# the embedding, as it reads a folder of them
tokens = frame.tokenizer()
words = SimpleNamespace(tokenize=lambda texts: [tokens(text, add_special_tokens=False).input_ids for text in texts])
shared.sd_model = SimpleNamespace(cond_stage_model=words)
database = textual_inversion.EmbeddingDatabase()
database.load_from_file(job.embedding, os.path.basename(job.embedding))
((name, held),) = database.word_embeddings.items()
ids = words.tokenize([f"a photo of {name} here"])[0]
at = next(i for i in range(len(ids)) if database.find_embedding_at_position(ids, i)[0])
for key, rows in (held.vec if isinstance(held.vec, dict) else {"clip_l": held.vec}).items():
    job.rows(key, rows)

# the LoRA
shared.sd_model = model
shared.opts.data["lora_preferred_name"] = "Alias from file"  # the default, which its own page of settings adds
disk = network.NetworkOnDisk(name, job.lora)
net = networks.load_network(name, disk)
frame.told(name=name, at=at, version=disk.sd_version.name, alias=disk.get_alias(), bundled=list(net.bundle_embeddings))
for bundled in net.bundle_embeddings.values():
    for key, rows in (bundled.vec if isinstance(bundled.vec, dict) else {"clip_l": bundled.vec}).items():
        job.rows(f"bundled_{key}", rows)
net.te_multiplier = net.unet_multiplier = 1.0
for module in net.modules.values():
    layer = module.network_key.partition(".")[0]
    weight = torch.zeros(module.shape)
    if isinstance(module.sd_module, nn.MultiheadAttention):
        weight = torch.zeros(module.sd_module.embed_dim, module.sd_module.embed_dim)
    job.change(layer, module.calc_updown(weight)[0])
job.done()
