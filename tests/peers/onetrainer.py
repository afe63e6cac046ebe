"""OneTrainer: `EmbeddingLoaderMixin`, both `_setup_embeddings`, `LoRALoaderMixin`, `LoRAModuleWrapper.load_state_dict`,
on narrow models."""

from types import SimpleNamespace

import frame
import torch

job = frame.job()
from modules.module.LoRAModule import LoRAModuleWrapper  # noqa: E402
from modules.util.config.TrainConfig import TrainConfig  # noqa: E402
from modules.util.enum.ModelType import ModelType  # noqa: E402
from modules.util.ModelNames import EmbeddingName, ModelNames  # noqa: E402

XL = job.base == "sdxl"
if XL:
    from modules.model.StableDiffusionXLModel import StableDiffusionXLModel as Model
    from modules.modelLoader.stableDiffusionXL.StableDiffusionXLEmbeddingLoader import (
        StableDiffusionXLEmbeddingLoader as EmbeddingLoader,
    )
    from modules.modelLoader.stableDiffusionXL.StableDiffusionXLLoRALoader import (
        StableDiffusionXLLoRALoader as LoRALoader,
    )
    from modules.modelSetup.BaseStableDiffusionXLSetup import BaseStableDiffusionXLSetup as Setup
else:
    from modules.model.StableDiffusionModel import StableDiffusionModel as Model
    from modules.modelLoader.stableDiffusion.StableDiffusionEmbeddingLoader import (
        StableDiffusionEmbeddingLoader as EmbeddingLoader,
    )
    from modules.modelLoader.stableDiffusion.StableDiffusionLoRALoader import StableDiffusionLoRALoader as LoRALoader
    from modules.modelSetup.BaseStableDiffusionSetup import BaseStableDiffusionSetup as Setup

kind = {
    "sd1": ModelType.STABLE_DIFFUSION_15,
    "sd2": ModelType.STABLE_DIFFUSION_21_BASE,
    "sdxl": ModelType.STABLE_DIFFUSION_XL_10_BASE,
}[job.base]
parts = frame.narrow(job.base)
model = Model(kind)
model.unet = parts["unet"]
if XL:
    model.text_encoder_1, model.text_encoder_2 = map(frame.as_it_was, (parts["text_encoder"], parts["text_encoder_2"]))
    model.tokenizer_1, model.tokenizer_2 = frame.tokenizer(), frame.tokenizer()
else:
    model.text_encoder, model.tokenizer = frame.as_it_was(parts["text_encoder"]), frame.tokenizer()
for encoder in ("text_encoder", "text_encoder_1"):
    if isinstance(getattr(model, encoder, None), frame.AsItWas):
        wrapped = getattr(model, encoder)
        wrapped.get_input_embeddings = wrapped.text_model.get_input_embeddings

# the embedding
name = EmbeddingName("some-uuid", job.embedding)
EmbeddingLoader().load(model, "", ModelNames(embedding=name))
wanted = SimpleNamespace(uuid="some-uuid", placeholder="<me/toy-duck>", is_output_embedding=False)
config = SimpleNamespace(all_embedding_configs=lambda: [wanted], embedding=wanted)
setup = SimpleNamespace(train_device="cpu", temp_device="cpu")
setup._add_embeddings_to_tokenizer = lambda *given: Setup._add_embeddings_to_tokenizer(setup, *given)
Setup._setup_embeddings(setup, model, config)
if XL:
    job.rows("clip_l", model.embedding.text_encoder_1_embedding.vector)
    job.rows("clip_g", model.embedding.text_encoder_2_embedding.vector)
else:
    job.rows("clip_l", model.embedding.text_encoder_embedding.vector)

# the LoRA
LoRALoader().load(model, ModelNames(lora=job.lora))
settings = TrainConfig.default_values()
settings.lora_rank, settings.lora_alpha = 3, 1.0  # as the export says
FILTER = ["attentions", "resnets", "samplers"]
names = frame.our_names(job.base, parts)
where = {"unet": "unet", "text_encoder": "text_encoder"} | ({"text_encoder_1": "text_encoder"} if XL else {})
prefixes = {"lora_te1": "text_encoder_1", "lora_te2": "text_encoder_2"}
for prefix, component in frame.components(job.base).items():
    inside = frame.as_it_was(parts[component])
    top = "unet" if prefix == "lora_unet" else model.lora_text_encoders()[prefix.endswith("2")][1]
    top = top if isinstance(top, str) else next(value for key, value in top.items() if key.name == "DIFFUSERS_LORA")
    state = {key: value for key, value in model.lora_state_dict.items() if key.startswith(f"{top}.")}
    if not state:
        continue
    wrapper = LoRAModuleWrapper(inside, top, settings, FILTER if top == "unet" else None)
    wrapper.load_state_dict(model.lora_state_dict)
    for path, module in wrapper.lora_modules.items():
        if f"{top}.{path}.lora_down.weight" in state:
            matrix = module.lora_up.weight.flatten(1) @ module.lora_down.weight.flatten(1)
            job.change(names[component, path], matrix * (module.alpha / module.rank))
strangers = [
    key
    for key in model.lora_state_dict
    if key.split(".")[0] not in ("unet", "text_encoder", "text_encoder_1", "text_encoder_2")
]
frame.told(strangers=strangers)
torch.set_grad_enabled(False)
job.done()
