"""Is the card right? The same weights in bf16 on the card and in fp32 on the CPU: outputs, loss and gradients."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from benchmarks.steps.geometry import build
from sdpersonal.models import StableDiffusion, load_base

from .own_step import settings_for, train_state
from .session import Session, cast

KINDS = ("tiny", "narrow", "narrow-v", "narrow-sdxl")
METHODS = ("lora", "textual-inversion", "pivotal", "full")
# Of outputs, relative to their norm: bf16 has 8 bits. The encoder's is that of noise, its hardest image.
MAX_ERRORS = {"text": 2e-2, "prediction": 2e-2, "encoded": 4e-2, "decoded": 2e-2}
MAX_LOSS_ERROR = 1e-2
MIN_COSINE = 0.999
_SIDE = 128


def check_exactness(session: Session) -> None:
    for kind in ("narrow-sdxl",) if session.dry else KINDS:
        session.guarded(f"exactness of {kind}", 5, lambda _, kind=kind: _check(session, kind))


def pair(kind: str, device: str) -> tuple[StableDiffusion, StableDiffusion]:
    """Return a base in fp32 on the CPU and in bf16 on a device, with the same weights."""
    if kind == "tiny":
        return load_base("tiny", "cpu"), cast(load_base("tiny", device), torch.bfloat16)
    torch.manual_seed(0)
    reference, base = build(kind, "cpu"), build(kind, device)
    for name, model in base.modules().items():
        model.load_state_dict(reference.modules()[name].state_dict())
    return reference, cast(base, torch.bfloat16)


def relative_error(value: Tensor, reference: Tensor) -> float:
    value, reference = value.detach().float().cpu(), reference.detach().float().cpu()
    return float((value - reference).norm() / reference.norm())


def loss_and_gradients(base: StableDiffusion, method: str, more: dict[str, object]) -> tuple[float, Tensor]:
    """Return the loss of two samples, and all gradients in one vector, on the CPU."""
    state = train_state(base, settings_for(method, 2, **more), _SIDE)
    try:
        loss = state.method.loss(state.method.inputs(state.photos.batch(range(2))).to(base.device), 0).mean()
        loss.backward()
        parameters = state.method.trainable_parameters()
        gradients = [parameters[name].grad for name in sorted(parameters)]
        return float(loss.detach()), torch.cat([g.detach().float().cpu().flatten() for g in gradients if g is not None])
    finally:
        state.optimizer.zero_grad()
        state.method.close()


def _check(session: Session, kind: str) -> None:
    reference, base = pair(kind, session.device)
    errors = output_errors(reference, base)
    session.store(f"errors of {kind}", errors)
    detail = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
    session.check(f"{kind} outputs", all(error <= MAX_ERRORS[name] for name, error in errors.items()), detail)
    for method in METHODS[:2] if session.dry else METHODS:
        more: dict[str, object] = {"text_encoder": True} if method == "lora" else {}
        (loss, gradients), (expected, reference_gradients) = (
            loss_and_gradients(model, method, more) for model in (base, reference)
        )
        cosine = float(torch.nn.functional.cosine_similarity(gradients, reference_gradients, dim=0))
        error = abs(loss - expected) / expected
        passed = cosine >= MIN_COSINE and error <= MAX_LOSS_ERROR
        session.check(f"{kind} {method}", passed, f"loss {loss:.5f} ({error:.1e} off), gradient cosine {cosine:.6f}")


@torch.no_grad()
def output_errors(reference: StableDiffusion, base: StableDiffusion) -> dict[str, float]:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, *base.latent_shape(_SIDE, _SIDE), generator=generator)
    pixels = np.random.default_rng(0).integers(0, 255, (1, _SIDE, _SIDE, 3), np.uint8)
    results = []
    for model in (base, reference):
        conditioning = model.encode_captions([["a photo of a dog"], ["an ink drawing"]])
        t = torch.tensor([100, 800]).to(model.device)
        prediction = model.predict(latents.to(model.device), t, conditioning)
        decoded = torch.from_numpy(model.decode(latents.to(model.device)).astype(np.float32))
        results.append((conditioning.prompt_embeds, prediction, model.encode(pixels).mean, decoded))
    return {name: relative_error(*values) for name, values in zip(MAX_ERRORS, zip(*results, strict=True), strict=True)}
