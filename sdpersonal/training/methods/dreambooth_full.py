"""DreamBooth as in the paper (Ruiz et al. 2022, arXiv 2208.12242): every weight of the UNet trains on "a [V] dog".

It writes two results: the whole model, a folder in diffusers layout that answers to the trigger words, and a concept
that approximates it in a thousandth of the size: each layer's change, cut to its largest singular values.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from ... import storage
from ...concepts.concept import Lora, LoraLayer
from ...config import IDENTIFIER
from ...models import StableDiffusion
from ...models.backends import full_fp32
from ..dataset import Batch, CaptionPieces
from ..loss_inputs import CaptionTokenizer, LossInputs
from ..objective import autocast, batch_loss
from ..presets import Preset
from ..run_dir import MODEL_FOLDER
from .prior_preservation import PriorLoss


class DreamboothFull:
    """Trains all weights of the UNet.

    text: train those of the text encoders too; rank: of the LoRA that approximates the result.
    """

    name = "dreambooth-full"

    def __init__(
        self,
        base: StableDiffusion,
        class_noun: str,
        rank: int,
        text: bool,
        preset: Preset,
        prior: PriorLoss | None = None,
        prior_weight: float = 1.0,
    ):
        self._base, self._preset, self._rank = base, preset, rank
        self._prior, self._prior_weight = prior, prior_weight
        self.trigger = f"{IDENTIFIER} {class_noun}"
        self._tokenizer = CaptionTokenizer(base, self.caption_pieces)
        # The weights train in fp32; on a card products are computed in the base's own, faster precision.
        fast = base.device.type == "cuda" and base.dtype != torch.float32
        self.autocast_dtype = base.dtype if fast else None
        modules = base.modules()
        self._models = {"unet": modules["unet"]} | ({key: modules[key] for key in base.encoders} if text else {})
        self._dtypes = {name: next(model.parameters()).dtype for name, model in self._models.items()}
        self._initial = {name: _copy_to_cpu(value) for name, value in self.trainable_parameters().items()}
        for model in self._models.values():
            _cast(model, torch.float32)  # master weights: in bf16 a small step is rounded away
            model.requires_grad_(True)

    @property
    def embeddings(self) -> dict[str, Tensor]:
        return {}

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        return {
            f"{name}.{key}": parameter
            for name, model in self._models.items()
            for key, parameter in model.named_parameters()
        }

    def param_groups(self) -> list[dict]:
        return [{"params": list(self.trainable_parameters().values()), "lr": self._preset.lr, "weight_decay": 1e-2}]

    def learning_rates(self, step: int) -> list[float]:
        return [self._preset.lr]

    def inputs(self, batch: Batch) -> LossInputs:
        return self._tokenizer.inputs(batch, self._prior.inputs(batch) if self._prior else None)

    def phase(self, step: int) -> int:
        return 0

    def loss(self, inputs: LossInputs, step: int) -> Tensor:
        base = self._base
        with autocast(base.device, self.autocast_dtype):
            loss = batch_loss(base, {}, inputs, self._preset.snr_gamma)
            if self._prior is None or inputs.prior is None:
                return loss
            return loss + self._prior_weight * self._prior.loss(inputs.prior)

    def caption_pieces(self, caption: str) -> CaptionPieces:
        return [caption.replace("{}", self.trigger)]

    def lora(self) -> Lora:
        """Return the change of every layer, at the rank of the settings."""
        return self._extraction[0]

    def finish(self, run: Path) -> dict[str, float]:
        """Write the model; return the share of the change's squared norm that the concept keeps: 1 is all."""
        if (run / MODEL_FOLDER).exists():  # from a run that was ended while it finished
            storage.remove(run / MODEL_FOLDER)
        self._base.save(run / MODEL_FOLDER)
        return {"kept": self._extraction[1]}

    @cached_property  # used twice at the end, and minutes of work for a large base on a CPU
    def _extraction(self) -> tuple[Lora, float]:
        """Return the LoRA nearest to the change, and the share that it keeps.

        It is computed one layer at a time: all changes of SDXL at once are 10 GB. Layers have kohya's names; norms and
        biases get no LoRA.
        """
        adapted = {id(module.weight): layer for layer, module in self._base.adapters.layers().items()}
        layers: dict[str, LoraLayer] = {}
        total = 0.0
        for name, weight in self.trainable_parameters().items():
            change = self._change(name, weight)
            total += float(change.square().sum())
            if layer := adapted.get(id(weight)):
                layers[layer] = extract_lora_layer(change, self._rank)
        layers = {layer: layers[layer] for layer in adapted.values() if layer in layers}
        # The norm of a row of `down` is the root of its singular value.
        downs = [layer.down.reshape(len(layer.down), -1) for layer in layers.values()]
        kept_norm = sum(float(((down**2).sum(1) ** 2).sum()) for down in downs)
        return Lora(layers), round(kept_norm / total, 4) if total else 1.0

    def _change(self, name: str, weight: Tensor) -> Tensor:
        """Return the change of a weight, fp32 on the base's device."""
        device = self._base.device
        initial = self._initial[name].to(device, non_blocking=True)
        return weight.detach().to(device, torch.float32) - initial.float()

    @torch.no_grad()
    def close(self) -> None:
        for name, model in self._models.items():
            _cast(model, self._dtypes[name])
            model.requires_grad_(False)
        for name, weight in self.trainable_parameters().items():
            weight.copy_(self._initial[name])


def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Convert the weights as `model.to(dtype)` does, about which diffusers warns each time."""
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)


def _copy_to_cpu(tensor: Tensor) -> Tensor:
    """Return a copy, in pinned memory if the tensor is on a card: it goes back there several times faster."""
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda")
    return copy.copy_(tensor.detach())


def extract_lora_layer(change: Tensor, rank: int) -> LoraLayer:
    """Return the rank-`rank` LoRA nearest to a layer's change (out, in[, k, k]) (Eckart and Young 1936)."""
    matrix = change.flatten(1)
    rank = min(rank, *matrix.shape)
    if change.device.type == "cuda":
        with full_fp32():
            u, s, v = largest_singular_vectors(matrix, rank)
    else:
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    half = s[:rank].sqrt()  # split evenly, so that fp16 files lose no more of one factor than of the other
    down = (half[:, None] * v[:rank]).reshape(rank, *change.shape[1:])
    up = (u[:, :rank] * half).reshape(-1, rank, *[1] * (change.ndim - 2))
    return LoraLayer(down.cpu().numpy(), up.cpu().numpy(), float(rank))


def largest_singular_vectors(matrix: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the `count` largest singular values of a matrix (m, n), with their vectors: (m, count), (count,) and
    (count, n).

    They are eigenvectors of the smaller of its Gram matrices, which takes a tenth of the time of its decomposition.
    Only values thousands of times below the largest, which hardly count, are less exact.
    """
    if matrix.shape[0] > matrix.shape[1]:
        u, s, v = largest_singular_vectors(matrix.T, count)
        return v.T, s, u.T
    u = torch.linalg.eigh(matrix @ matrix.T).eigenvectors[:, -count:].flip(1)
    projected = u.T @ matrix
    s = projected.norm(dim=1)
    return u, s, projected / s.clamp(min=torch.finfo(s.dtype).tiny)[:, None]
