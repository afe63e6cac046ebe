"""The training step of diffusers' example scripts, as their loops do it with --mixed_precision=bf16.

What is as in train_dreambooth_lora.py, train_dreambooth.py, textual_inversion.py and their SDXL versions (0.42): the
photos are encoded in every step, the autoencoder of SDXL DreamBooth in fp32; peft's LoRA with the UNet under autocast;
AdamW as it comes; the whole table of embeddings trains, and its other rows are put back; every step reads its loss.

What favours them here: the photos are decoded and cropped beforehand, and nothing is logged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F

from sdpersonal.models import StableDiffusion

RANK, VECTORS = 16, 4
_TARGETS = ["to_k", "to_q", "to_v", "to_out.0"]


@dataclass
class ScriptStep:
    """A script's models and its step; `step` is called until it is enough.

    base: gives the models; its UNet must be a plain one that nothing else uses. dtype: of what is frozen.
    """

    base: StableDiffusion
    method: str
    side: int
    batch: int
    dtype: torch.dtype

    def __post_init__(self) -> None:
        base = self.base
        self.device = base.device
        self.unet: UNet2DConditionModel = base.unet
        self.vae: AutoencoderKL = base.vae
        self.is_xl = base.kind == "sdxl"
        config = {key: value for key, value in base.scheduler_config.items() if not key.startswith("_")}
        self.scheduler = DDPMScheduler.from_config(config)
        self._vae_dtype = torch.float32 if self.is_xl and self.method != "textual-inversion" else self.dtype
        self.vae.to(self._vae_dtype)
        self.encoders = [encoder.model for encoder in base.encoders.values()]
        generator = torch.Generator().manual_seed(0)
        shape = (self.batch, 3, self.side, self.side)
        self.pixels = torch.rand(shape, generator=generator) * 2 - 1
        self.ids = torch.randint(1000, 2000, (self.batch, 77), generator=generator)
        self.ids[:, 0], self.ids[:, 20:] = 49406, 49407
        self.ids %= self.encoders[0].get_input_embeddings().num_embeddings
        self._prepare()
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, weight_decay=1e-2)
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1.0)

    def _prepare(self) -> None:
        self.unet.train()
        if self.method == "lora":
            from peft import LoraConfig

            self.unet.add_adapter(
                LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=_TARGETS)
            )
            self.parameters = [weight for weight in self.unet.parameters() if weight.requires_grad]
        elif self.method == "full":
            _cast(self.unet, torch.float32)
            self.unet.requires_grad_(True)
            self.parameters = list(self.unet.parameters())
        else:
            self._train_embeddings()
        if self.is_xl and self.method != "textual-inversion":
            with torch.no_grad():
                self._encoded = self._encode_xl(self.ids.to(self.device))

    def _train_embeddings(self) -> None:
        self.parameters, self._original = [], []
        for encoder in self.encoders:
            _cast(encoder, torch.float32)
            encoder.train()
            weight = encoder.get_input_embeddings().weight
            weight.requires_grad_(True)
            self.parameters.append(weight)
            self._original.append(weight.detach().clone())
        self._stays = torch.ones(len(self._original[0]), dtype=torch.bool)
        self._stays[1000 : 1000 + VECTORS] = False

    def step(self) -> None:
        pixels = self.pixels.to(self.device, self._vae_dtype)
        latents = self.vae.encode(pixels).latent_dist.sample().detach() * self.vae.config["scaling_factor"]
        latents = latents.to(self.dtype)
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, 1000, (self.batch,), device=self.device).long()
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        prediction = self._predict(noisy, timesteps)
        loss = F.mse_loss(prediction.float(), noise.float(), reduction="mean")
        loss.backward()
        if self.method != "textual-inversion":
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.lr_scheduler.step()
        self.optimizer.zero_grad()
        if self.method == "textual-inversion":
            with torch.no_grad():
                for weight, original in zip(self.parameters, self._original, strict=True):
                    weight[self._stays] = original[self._stays]
        loss.detach().item()

    def _predict(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        if self.method == "textual-inversion":  # there the text encoder is what accelerate wraps
            with self._autocast():
                states, added = self._encode(self.ids.to(self.device))
            states = states.to(self.dtype)
            return self.unet(noisy, timesteps, states, added_cond_kwargs=added, return_dict=False)[0]
        if self.is_xl:
            states, added = self._encoded
        else:
            with torch.no_grad():
                states, added = self._encode(self.ids.to(self.device))
        with self._autocast():
            return self.unet(noisy, timesteps, states, added_cond_kwargs=added, return_dict=False)[0]

    def _autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    def _encode(self, ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        if self.is_xl:
            return self._encode_xl(ids)
        return self.encoders[0](ids, return_dict=False)[0], {}

    def _encode_xl(self, ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        first, second = (encoder(ids, output_hidden_states=True) for encoder in self.encoders)
        states = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        sizes = [self.side, self.side, 0, 0, self.side, self.side]
        time_ids = torch.tensor([sizes] * self.batch, device=self.device, dtype=self.dtype)
        return states, {"text_embeds": second.text_embeds.to(self.dtype), "time_ids": time_ids}


def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)


def step_of(base: StableDiffusion, method: str, side: int, batch: int, dtype: torch.dtype) -> Callable[[], None]:
    return ScriptStep(base, method, side, batch, dtype).step
