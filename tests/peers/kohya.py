"""kohya's sd-scripts: `load_weights` of both trainers of textual inversion; `create_network_from_weights` on its own
UNets of the published sizes, and `LoRAInfModule.get_weight`. Then `save_weights` of all, to be read back."""

import sys
from pathlib import Path

import frame
import torch

job = frame.job()
transformers = sys.modules["transformers"]  # which puts other modules in its own place: only their class stays
type(transformers).CLIPFeatureExtractor = transformers.CLIPImageProcessor  # its name before transformers 5
from networks.lora import create_network_from_weights  # noqa: E402

parts = frame.published(job.base)
if job.base == "sdxl":
    from library.sdxl_original_unet import SdxlUNet2DConditionModel
    from sdxl_train_textual_inversion import SdxlTextualInversionTrainer

    trainer = SdxlTextualInversionTrainer()
    held = trainer.load_weights(job.embedding)
    for key, rows in zip(("clip_l", "clip_g"), held, strict=True):
        job.rows(key, rows)
    with torch.device("meta"):
        unet = SdxlUNet2DConditionModel()
    encoders = [frame.as_it_was(parts["text_encoder"]), frame.as_it_was(parts["text_encoder_2"])]
else:
    from library.original_unet import UNet2DConditionModel

    from train_textual_inversion import TextualInversionTrainer

    trainer = TextualInversionTrainer()
    held = trainer.load_weights(job.embedding)
    job.rows("clip_l", held[0])
    width = parts["text_encoder"].config.hidden_size
    with torch.device("meta"):
        heads = [5, 10, 20, 20] if job.base == "sd2" else 8  # as its library/model_util.py has them
        unet = UNet2DConditionModel(64, heads, width, job.base == "sd2", False)
    encoders = frame.as_it_was(parts["text_encoder"])
network, weights = create_network_from_weights(1.0, job.lora, None, encoders, unet, for_inference=True)
network.apply_to(encoders, unet)
answer = network.load_state_dict(weights, strict=False)
frame.told(unexpected=answer.unexpected_keys, missing=answer.missing_keys)
for layer in network.text_encoder_loras + network.unet_loras:
    job.change(layer.lora_name, layer.get_weight())
place = Path(job.out).parent
trainer.save_weights(str(place / "their-words.safetensors"), held, None, {})
trainer.save_weights(str(place / "their-words.pt"), held, None, {})
network.save_weights(str(place / "their-lora.safetensors"), None, {"ss_output_name": "their-lora"})
job.done()
