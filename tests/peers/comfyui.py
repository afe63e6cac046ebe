"""ComfyUI: `load_embed` as its tokenizers call it, `model_lora_keys_unet`, `model_lora_keys_clip`, `load_lora` and
`calculate_weight`, on its own models of the published sizes."""

import os
import sys

import frame
import torch

job = frame.job()
import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()
sys.argv[1:] = ["--cpu"]
import comfy.lora  # noqa: E402
import comfy.lora_convert  # noqa: E402
import comfy.model_detection  # noqa: E402
import comfy.sd1_clip  # noqa: E402
import comfy.sdxl_clip  # noqa: E402
import comfy.text_encoders.sd2_clip  # noqa: E402
import comfy.utils  # noqa: E402

from support import original  # noqa: E402

folder, name = os.path.split(job.embedding.removesuffix(".safetensors"))
tokenizer = {
    "sd1": comfy.sd1_clip.SD1Tokenizer,
    "sd2": comfy.text_encoders.sd2_clip.SD2Tokenizer,
    "sdxl": comfy.sdxl_clip.SDXLTokenizer,
}[job.base](embedding_directory=folder)
for encoder, groups in tokenizer.tokenize_with_weights(f"a photo of embedding:{name} here").items():
    held = [token for token, *_ in groups[0] if isinstance(token, torch.Tensor)]
    job.rows({"l": "clip_l", "h": "clip_l", "g": "clip_g"}[encoder], torch.stack(held))

sizes = original.checkpoint(frame.published(job.base))
if job.base == "sd2":  # asked for its spread, to tell velocity from noise
    sizes["model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"] = torch.zeros(320)
meta = torch.device("meta")
found = comfy.model_detection.model_config_from_unet(sizes, "model.diffusion_model.")
model = found.get_model(sizes, "model.diffusion_model.", device=meta)
text = {
    "sd1": comfy.sd1_clip.SD1ClipModel,
    "sd2": comfy.text_encoders.sd2_clip.SD2ClipModel,
    "sdxl": comfy.sdxl_clip.SDXLClipModel,
}[job.base](device=meta, dtype=torch.float32)
keys = comfy.lora.model_lora_keys_unet(model, {})
keys = comfy.lora.model_lora_keys_clip(text, keys)
tensors = comfy.lora_convert.convert_lora(comfy.utils.load_torch_file(job.lora, safe_load=True))
patches = comfy.lora.load_lora(tensors, keys)
shapes = {key: value.shape for module in (model, text) for key, value in module.state_dict().items()}
names = {key.rpartition(".alpha")[0] for key in tensors if key.endswith(".alpha")}
for layer in names & keys.keys():
    key = keys[layer]
    if key in patches:
        job.change(
            layer, comfy.lora.calculate_weight([(1.0, patches[key], 1.0, None, None)], torch.zeros(shapes[key]), key)
        )
frame.told(
    aliases={
        layer: [
            alias for alias, key in keys.items() if key == keys[layer] and alias.startswith(("diffusion_", "text_"))
        ]
        for layer in names & keys.keys()
    }
)
job.done()
