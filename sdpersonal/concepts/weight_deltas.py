"""Compute the fp32 change of a layer's weight and bias for changes that are not a plain LoRA.

Strength is not applied here: generation uses W + s (W' - W), as A1111 and ComfyUI do, for every form. The formulas are
those of LyCORIS (`functional/*.py`, `modules/*.py`) and PEFT (`tuners/oft/layer.py`, `tuners/lora/dora.py`), from the
papers that `layer_changes` names. Where programs differ, DoRA of rows takes the norm of the changed weight, as LyCORIS
and PEFT do (ComfyUI takes the bare weight's).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .layer_changes import Change, block_size, form, scalar, scale_of

_NEUMANN = 5  # terms of PEFT's Neumann series where a file does not give a number


def weight_change(change: Change, weight: Tensor) -> Tensor | None:
    """Return W' - W, fp32, in the shape of `weight` and on its device; None where only the bias changes.

    The tensors must have passed `layer_changes.find_problem` and fit the weight (`layer_changes.fits`).
    """
    name = form(change)
    if name == "bias":
        return None
    weight = weight.detach().float()
    parts = {key: torch.tensor(value, dtype=torch.float32, device=weight.device) for key, value in change.items()}
    if build := _PLAIN.get(name):
        plain = build(parts).reshape(weight.shape) * scale_of(change)
        return _dora(weight, plain, parts["dora_scale"]) if "dora_scale" in parts else plain
    return _BUILD[name](weight, parts, change)


def bias_change(change: Change, bias: Tensor) -> Tensor | None:
    """Return the fp32 change of the bias; None where the bias stays the same."""
    values = next((change[key] for key in ("diff_b", "b_norm") if key in change), None)
    if values is not None:
        return torch.tensor(values, dtype=torch.float32, device=bias.device)
    if scalar(change, "on_bias"):
        scale = torch.tensor(change["weight"], dtype=torch.float32, device=bias.device)
        return bias.detach().float() * scale.flatten()
    return None


# --- changes that do not depend on the weight -------------------------------------------------------------------------


def _lora(parts: dict[str, Tensor]) -> Tensor:
    up, down = parts["lora_up.weight"].flatten(1), parts["lora_down.weight"].flatten(1)
    if "lora_mid.weight" in parts:
        return torch.einsum("om,mnxy,ni->oixy", up, parts["lora_mid.weight"], down)
    return up @ down


def _loha(parts: dict[str, Tensor]) -> Tensor:
    def factor(i: int) -> Tensor:
        a, b = parts[f"hada_w{i}_a"], parts[f"hada_w{i}_b"]
        if f"hada_t{i}" in parts:
            return torch.einsum("ijxy,jc,io->ocxy", parts[f"hada_t{i}"], b, a)
        return a @ b.flatten(1)

    return factor(1) * factor(2)


def _lokr(parts: dict[str, Tensor]) -> Tensor:
    first = parts["lokr_w1"] if "lokr_w1" in parts else parts["lokr_w1_a"] @ parts["lokr_w1_b"]
    if "lokr_w2" in parts:
        second = parts["lokr_w2"].flatten(1)
    elif "lokr_t2" in parts:
        core = parts["lokr_t2"]
        second = torch.einsum("ijxy,ip,jq->pqxy", core, parts["lokr_w2_a"], parts["lokr_w2_b"]).flatten(1)
    else:
        second = parts["lokr_w2_a"] @ parts["lokr_w2_b"].flatten(1)
    return torch.kron(first, second.contiguous())


_PLAIN = {"LoRA": _lora, "LoHa": _loha, "LoKr": _lokr, "full": lambda parts: parts["diff"],
          "norm": lambda parts: parts["w_norm"]}  # fmt: skip


def _dora(weight: Tensor, plain: Tensor, scale: Tensor) -> Tensor:
    """Apply DoRA. scale (1, in[, 1, 1]): norms of columns, over all axes but the input's; (out, ...): norms of rows."""
    changed = weight + plain
    if scale.shape[0] == 1 and weight.shape[0] != 1:
        axes = [axis for axis in range(weight.ndim) if axis != 1]
        shape = (1, -1, *(1 for _ in weight.shape[2:]))
    else:
        axes, shape = list(range(1, weight.ndim)), (-1, *(1 for _ in weight.shape[1:]))
    lengths = changed.square().sum(axes, keepdim=True).sqrt()
    return changed * (scale.reshape(shape) / (lengths + torch.finfo(torch.float32).eps)) - weight


# --- changes that depend on the weight --------------------------------------------------------------------------------


def _set(weight: Tensor, parts: dict[str, Tensor], change: Change) -> Tensor:
    return parts["set_weight"].reshape(weight.shape) - weight


def _ia3(weight: Tensor, parts: dict[str, Tensor], change: Change) -> Tensor:
    scale = parts["weight"].flatten()
    if scalar(change, "on_input"):
        return weight * scale.view(1, -1, *(1 for _ in weight.shape[2:]))
    return weight * scale.view(-1, *(1 for _ in weight.shape[1:]))


def _glora(weight: Tensor, parts: dict[str, Tensor], change: Change) -> Tensor:
    a1, a2, b1, b2 = (parts[f"{key}.weight"].flatten(1) for key in ("a1", "a2", "b1", "b2"))
    rotated = torch.einsum("oi...,ir,rj->oj...", weight, a1, a2)
    return ((b1 @ b2).reshape(weight.shape) + rotated) * scale_of(change)


def _oft(weight: Tensor, parts: dict[str, Tensor], change: Change) -> Tensor:
    """Rotate the outputs: R^T W by blocks; BOFT does so in stages that pair rows further and further apart."""
    blocks = parts["oft_blocks"]  # (n, b, b), or (m, n, b, b)
    rotations = _cayley(_bounded(blocks - blocks.mT, scalar(change, "alpha") * len(weight)))
    rotated = weight.flatten(1)
    if blocks.ndim == 3:
        rotated = (rotations.mT @ rotated.view(*blocks.shape[:2], -1)).reshape(rotated.shape)
    else:
        for stage, rotation in enumerate(rotations):
            rotated = _butterfly(rotated, rotation, blocks.shape[-1] // 2 << stage)
    rotated = rotated.view(weight.shape)
    if "rescale" in parts:
        rotated = rotated * parts["rescale"].view(-1, *(1 for _ in weight.shape[1:]))
    return rotated - weight


def _butterfly(rows: Tensor, rotation: Tensor, distance: int) -> Tensor:
    """Apply one BOFT stage: rotation (n, b, b) of rows (out, in), permuted so that rows `distance` apart adjoin."""
    order = torch.arange(len(rows), device=rows.device).view(-1, 2, distance).transpose(1, 2).flatten()
    rotated = (rotation @ rows[order].view(*rotation.shape[:2], -1)).reshape(rows.shape)
    unpermuted = torch.empty_like(rotated)
    unpermuted[order] = rotated
    return unpermuted


def _bounded(skew: Tensor, max_norm: float) -> Tensor:
    """Scale skew matrices to a joint norm of at most `max_norm`; 0 means no bound (kohya's and LyCORIS' constraint)."""
    norm = float(torch.linalg.vector_norm(skew)) + 1e-8
    return skew * (max_norm / norm) if 0 < max_norm < norm else skew


def _cayley(skew: Tensor) -> Tensor:
    """Return the Cayley transform (I + Q) (I - Q)^-1."""
    eye = torch.eye(skew.shape[-1], device=skew.device)
    return torch.linalg.solve(eye - skew, eye + skew, left=False)


def _inner_oft(weight: Tensor, parts: dict[str, Tensor], change: Change) -> Tensor:
    """Rotate the inputs, x R by blocks: W R^T. A single block is used for all.

    PEFT's Neumann series approximates (I + Q) (I - Q)^-1; without it PEFT uses the inverse, (I - Q) (I + Q)^-1.
    """
    triangles = parts["oft_R.weight"]
    size = block_size(triangles.shape[1])
    skew = triangles.new_zeros(len(triangles), size, size)
    rows, columns = torch.triu_indices(size, size, 1, device=skew.device)
    skew[:, rows, columns] = triangles
    skew = skew - skew.mT
    terms = round(scalar(change, "oft_terms", _NEUMANN))
    rotations = _neumann(skew, terms) if terms else _cayley(-skew)
    flat = weight.reshape(len(weight), -1, size)
    rotated = torch.einsum("onk,nck->onc" if len(rotations) > 1 else "onk,zck->onc", flat, rotations)
    return rotated.reshape(weight.shape) - weight


def _neumann(skew: Tensor, terms: int) -> Tensor:
    """Return I + 2 Q + 2 Q^2 + ... + Q^(terms - 1). As in PEFT the last power counts once and is the third at least."""
    total = torch.eye(skew.shape[-1], device=skew.device).expand_as(skew).clone()
    if terms > 1:
        total = total + 2 * skew
    power, last = skew, max(terms - 1, 3) if terms > 2 else 1
    for i in range(2, last + 1):
        power = power @ skew
        total = total + (power if i == last else 2 * power)
    return total


_BUILD = {"set": _set, "IA3": _ia3, "GLoRA": _glora, "OFT": _oft, "OFT of inputs": _inner_oft}
