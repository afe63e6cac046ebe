"""Compute the gradients of a step by autograd, or on a card by replaying a CUDA graph of the same computation.

A step launches thousands of kernels. On an H200 a step of Stable Diffusion 1.5's LoRA with four photos took 184 ms, of
which the card computed 46 (docs/performance.md); captured in a graph, all of them are one launch. What comes after the
gradients (clipping, the optimizer, the average) is a dozen launches, which are queued while the card still computes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..models.cuda_graphs import CapturedCall
from ..models.oom import drop_traceback, is_out_of_memory
from .distributed import Accelerator
from .loss_inputs import LossInputs
from .methods.protocol import Method

if TYPE_CHECKING:
    from ..models.cuda_graphs import Pool

MAX_GRAD_NORM = 1.0
_INITIAL_SCALE = 1024.0  # of the loss in fp16: without one 0.7 % of a LoRA's gradients were rounded to 0, with it none
_SPARE_BYTES = 1 << 30  # beside a graph's own copy of a step's activations: images of a validation need some


def loss_scaler(dtype: torch.dtype, device: torch.device) -> torch.amp.GradScaler:
    """Return the scaler of the loss for a frozen model of this precision; it does nothing unless that is fp16."""
    return torch.amp.GradScaler(device.type, init_scale=_INITIAL_SCALE, enabled=dtype == torch.float16)


@dataclass(frozen=True)
class _CapturedPass:
    """A captured pass, the inputs that it reads, and the parameters to whose gradients it adds."""

    call: CapturedCall
    inputs: LossInputs
    trained: frozenset[nn.Parameter]

    def replay(self, inputs: LossInputs) -> Tensor:
        self.inputs.copy_(inputs)
        (loss,) = self.call.replay()
        return loss.clone()  # the next replay overwrites it


class Gradients:
    """Adds up the gradients of a step's batches, and takes the step.

    captures: whether to capture passes in CUDA graphs; None: on a card, if memory has room for it.
    """

    def __init__(
        self,
        method: Method,
        accelerator: Accelerator,
        scaler: torch.amp.GradScaler,
        say: Callable[[str], None] = print,
        captures: bool | None = None,
    ):
        self._method, self._accelerator, self._scaler, self._say = method, accelerator, scaler, say
        self._parameters = list(method.trainable_parameters().values())
        self._captures = accelerator.device.type == "cuda" if captures is None else captures
        self._passes: dict[object, _CapturedPass] = {}
        self._fixed: dict[nn.Parameter, Tensor] = {}  # gradients that captured passes add to
        self._pool: Pool | None = None

    def add(self, inputs: LossInputs, step: int, share: float = 1.0) -> Tensor:
        """Add the gradients of a batch's mean loss, times `share`; return the loss, a scalar on the device."""
        if captured := self._find_pass(inputs, step, share):
            self._attach(captured.trained)
            return captured.replay(inputs)
        return self._compute(inputs.to(self._accelerator.device), step, share)

    @torch.no_grad()
    def loss(self, inputs: LossInputs, step: int) -> Tensor:
        """Return a batch's loss per sample, (B,), without gradients. With a graph, the parameters must be where they
        were in the first call: both times those of the average, or both times not."""
        if captured := self._find_pass(inputs, step, None):
            return captured.replay(inputs)
        return self._method.loss(inputs.to(self._accelerator.device), step)

    def apply(self, optimizer: torch.optim.Optimizer) -> Tensor:
        """Clip the gradients, take the optimizer's step and forget them; return their norm before, a scalar on the
        device. In fp16 a step whose gradients overflow is left out, with norm 0, and the loss is scaled less."""
        self._scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(self._parameters, MAX_GRAD_NORM)
        self._scaler.step(optimizer)
        self._scaler.update()
        self.clear(optimizer)
        return norm.nan_to_num(0.0, 0.0, 0.0) if self._scaler.is_enabled() else norm

    def are_finite(self) -> bool:
        """Return whether no gradient is NaN or infinite; the device is waited for."""
        return all(bool(torch.isfinite(p.grad).all()) for p in self._parameters if p.grad is not None)

    def clear(self, optimizer: torch.optim.Optimizer) -> None:
        """Forget the gradients of a step."""
        optimizer.zero_grad(set_to_none=not self._fixed)

    def _compute(self, inputs: LossInputs, step: int, share: float | None) -> Tensor:
        """Return the loss, with its gradients times `share`; None: the loss per sample, without gradients."""
        if share is None:
            return self._method.loss(inputs, step)
        loss = self._method.loss(inputs, step).mean()
        self._accelerator.backward(self._scaler.scale(loss * share))
        return loss.detach()

    def _attach(self, trained: Collection[nn.Parameter]) -> None:
        """Give these parameters their fixed gradients, and the others none: the optimizer leaves those out."""
        for parameter in self._parameters:
            if (parameter.grad is not None) != (parameter in trained):
                parameter.grad = self._fixed[parameter] if parameter in trained else None

    def _find_pass(self, inputs: LossInputs, step: int, share: float | None) -> _CapturedPass | None:
        """Return the captured pass for inputs of these shapes; capture it in the first call."""
        if not self._captures:
            return None
        key = self._method.phase(step), inputs.shapes, share
        if key not in self._passes:
            before = {p: p.grad.clone() for p in self._parameters if p.grad is not None}
            self._try_capture(key, inputs, step, share)
            for parameter in self._parameters:
                parameter.grad = self._restored(parameter, before.get(parameter))
        return self._passes.get(key)

    def _restored(self, parameter: nn.Parameter, gradient: Tensor | None) -> Tensor | None:
        """Return a parameter's gradient as it was before a capture, where captured passes add to it."""
        if gradient is None or not self._captures:
            return gradient
        return self._fixed.setdefault(parameter, gradient).copy_(gradient)

    def _try_capture(self, key: object, inputs: LossInputs, step: int, share: float | None) -> None:
        device = self._accelerator.device
        try:
            self._passes[key] = self._capture(inputs, step, share)
        except RuntimeError as error:
            self._captures = False
            self._passes.clear()
            self._fixed.clear()
            reason = "memory is short" if is_out_of_memory(error) else str(error).splitlines()[0]
            self._say(f"The step is not captured in a CUDA graph, so it takes longer: {reason}.")
            drop_traceback(error, device)

    def _capture(self, inputs: LossInputs, step: int, share: float | None) -> _CapturedPass:
        device = self._accelerator.device
        fixed = inputs.to(device).map(torch.clone)
        for parameter in self._parameters:
            parameter.grad = None
        self._compute(fixed, step, share)  # which parameters get a gradient depends on the phase
        _check_memory(device)
        for parameter in self._parameters:
            if parameter.grad is not None:
                parameter.grad = self._fixed.setdefault(parameter, parameter.grad)
        trained = frozenset(parameter for parameter in self._parameters if parameter.grad is not None)
        if device.type == "cuda" and self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        call = CapturedCall(lambda: (self._compute(fixed, step, share),), device, self._pool)
        for gradient in self._fixed.values():
            gradient.zero_()
        return _CapturedPass(call, fixed, trained)


def _check_memory(device: torch.device) -> None:
    """Raise torch.OutOfMemoryError unless a step's activations fit twice: a graph keeps its own."""
    if device.type != "cuda":
        return
    in_use = torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - in_use
    if 2 * (torch.cuda.max_memory_allocated(device) - in_use) + _SPARE_BYTES > free:
        raise torch.OutOfMemoryError("a graph would take the memory that validation needs")
