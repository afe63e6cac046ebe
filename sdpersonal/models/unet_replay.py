"""Predict with the UNet by replaying CUDA graphs while images are generated.

A graph is captured for a shape of the batch and for everything that the prediction depends on besides the values of its
tensors: where the weights are, which hooks there are, and where the tensors of those are (`_key`). What changes any of
it, such as an adapter that is emptied, a weight that is replaced or moved, or a hook of a stranger, has another key, or
none: then the UNet is called as usual. So a graph never computes with what is no longer there.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .cuda_graphs import CapturedCall, captured_bytes
from .offload import MemoryNeed, memory_need
from .oom import drop_traceback, is_out_of_memory, release_cached_memory

if TYPE_CHECKING:
    from .cuda_graphs import Pool
    from .stable_diffusion import Conditioning, StableDiffusion

MAX_GRAPHS = 4  # they share their memory, but each also takes some of its own
_CALLS_BEFORE = 2  # predictions of a key before it is captured: capturing takes as long as four of them
_MAX_COUNTED = 64  # keys
_SPARE_BYTES = 1 << 30

log = logging.getLogger(__name__)


class Replayable(ABC):
    """Has forward hooks in the UNet that a CUDA graph may capture while it `is_replayable`."""

    @property
    def is_replayable(self) -> bool:
        return True

    @abstractmethod
    def replay_key(self) -> Hashable:
        """Return what the hooks' work depends on, besides the values of tensors."""


class ReplayedRecorder(Replayable):
    """Has hooks that also compute something from what happens in the UNet."""

    @abstractmethod
    def apart(self) -> AbstractContextManager[list[Tensor]]:
        """Record what is computed in the block in the list that is yielded, and nowhere else."""

    @abstractmethod
    def add(self, tensors: Sequence[Tensor]) -> None:
        """Record what a replayed prediction computed."""

    @abstractmethod
    def fixed_tensors(self) -> Sequence[Tensor]:
        """Return the tensors that the hooks read, which a graph keeps alive."""


def address(tensor: Tensor | None) -> Hashable:
    """Return where a tensor is and how it is laid out."""
    return None if tensor is None else (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)


class UNetReplayer:
    """The UNet of a model, called or replayed. Not thread-safe: hold the model lock.

    enabled: whether graphs are used; by default on a CUDA card only.
    """

    def __init__(self, model: StableDiffusion):
        self._model = model
        self.enabled = model.device.type == "cuda"
        self._parts: _Parts | None = None
        self._calls: OrderedDict[Hashable, int] = OrderedDict()  # calls of a key; last used last
        self._graphs: OrderedDict[Hashable, _CapturedUNet] = OrderedDict()
        self._refused: set[Hashable] = set()  # hashes of keys
        self._pool: Pool | None = None

    def predict(self, noisy: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the same as the model's own `predict`."""
        key = self._key(noisy, t, conditioning) if self._may_replay() else None
        if key is None:
            return self._model.predict(noisy, t, conditioning)
        recorders = self._recorders()
        if graph := self._graphs.get(key):
            self._graphs.move_to_end(key)
            return graph.replay(noisy, t, conditioning, recorders)
        if self._is_due(key, noisy) and (graph := self._capture(key, noisy, t, conditioning, recorders)):
            return graph.outputs(recorders)
        return self._model.predict(noisy, t, conditioning)

    def clear(self) -> None:
        """Drop all graphs and free their memory."""
        self._graphs.clear()
        self._pool = None
        if self._model.device.type == "cuda":
            release_cached_memory(self._model.device)

    @property
    def num_graphs(self) -> int:
        return len(self._graphs)

    def _may_replay(self) -> bool:
        if not self.enabled or torch.is_grad_enabled() or torch.is_autocast_enabled(self._model.device.type):
            return False
        return self._model.device.type != "cuda" or not torch.cuda.is_current_stream_capturing()

    def _key(self, noisy: Tensor, t: Tensor, conditioning: Conditioning) -> Hashable | None:
        """Return all that a graph depends on; None where it cannot be captured."""
        self._model.offloader.to_device("unet")
        self._parts = self._parts or _Parts(self._model.unet)
        parts = self._parts.key()
        if parts is None:
            return None
        inputs = (noisy, t, conditioning.prompt_embeds, *conditioning.added_cond_kwargs.values())
        layouts = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        return layouts, tuple(conditioning.added_cond_kwargs), self._model.dtype, *parts

    def _recorders(self) -> list[ReplayedRecorder]:
        owners = self._parts.owners if self._parts else None
        return [owner for owner in owners or () if isinstance(owner, ReplayedRecorder)]

    def _is_due(self, key: Hashable, noisy: Tensor) -> bool:
        """Count a call; return whether the key is to be captured now."""
        calls = self._calls[key] = self._calls.pop(key, 0) + 1
        while len(self._calls) > _MAX_COUNTED:
            self._calls.popitem(last=False)
        if calls == 1 and self._graphs and not self._has_room(noisy):
            self.clear()
        return calls > _CALLS_BEFORE and key not in self._refused

    def _has_room(self, noisy: Tensor) -> bool:
        """Return whether the activations fit twice, once in the graphs' own memory, or beside an image's decoding."""
        model = self._model
        if model.device.type != "cuda":
            return True
        need = self._need(noisy)
        step = need.step * len(noisy) // 2
        free, _ = torch.cuda.mem_get_info(model.device)
        cached = torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
        cached -= captured_bytes()  # a part of it that no other tensor gets
        return free + max(0, cached) > step + max(step, need.decoding) + _SPARE_BYTES

    def _need(self, noisy: Tensor) -> MemoryNeed:
        height, width = (side * self._model.vae_scale_factor for side in noisy.shape[2:])
        return memory_need(self._model, (width, height))

    def _capture(
        self, key: Hashable, noisy: Tensor, t: Tensor, conditioning: Conditioning, recorders: list[ReplayedRecorder]
    ) -> _CapturedUNet | None:
        """Capture a graph and compute this prediction with it; None where that is not possible."""
        while len(self._graphs) >= MAX_GRAPHS:
            self._graphs.popitem(last=False)
        if not self._has_room(noisy):
            self.clear()
            if not self._has_room(noisy):
                self._refuse(key, "memory is short")
                return None
        device = self._model.device
        try:
            if device.type == "cuda":
                self._pool = self._pool or torch.cuda.graph_pool_handle()
            graph = _CapturedUNet(self._model, noisy, t, conditioning, recorders, self._pool)
        except RuntimeError as error:
            self._refuse(key, f"it cannot be captured: {error}")
            self.enabled = is_out_of_memory(error)
            drop_traceback(error, device)
            self.clear()
            return None
        self._graphs[key] = graph
        return graph

    def _refuse(self, key: Hashable, reason: str) -> None:
        if not self._refused:
            log.info("The UNet is not replayed as a CUDA graph, since %s", reason)
        self._refused.add(key)


class _CapturedUNet:
    """One call of the UNet as a graph, with the buffers that it reads."""

    def __init__(
        self,
        model: StableDiffusion,
        noisy: Tensor,
        t: Tensor,
        conditioning: Conditioning,
        recorders: list[ReplayedRecorder],
        pool: Pool | None,
    ):
        self._unet, self._recorders = model.unet, recorders
        self._recorded_by: list[int] = []  # places of the recorders that recorded anything
        self.noisy = noisy.to(model.dtype, copy=True)
        self._t = t.clone()
        self._prompt_embeds = conditioning.prompt_embeds.to(model.dtype, copy=True)
        self._added = {name: tensor.clone() for name, tensor in conditioning.added_cond_kwargs.items()}
        self._fixed = [recorder.fixed_tensors() for recorder in recorders]
        self._call = CapturedCall(self._predict, model.device, pool)

    def replay(self, noisy: Tensor, t: Tensor, conditioning: Conditioning, recorders: list[ReplayedRecorder]) -> Tensor:
        self._recorders = recorders
        self.noisy.copy_(noisy)
        self._t.copy_(t)
        self._prompt_embeds.copy_(conditioning.prompt_embeds)
        for name, tensor in conditioning.added_cond_kwargs.items():
            self._added[name].copy_(tensor)
        self._call.replay()
        return self.outputs(recorders)

    def outputs(self, recorders: list[ReplayedRecorder]) -> Tensor:
        """Return a copy of the prediction in fp32, and give the recorders copies of theirs: the next replay of any
        graph overwrites the originals."""
        predicted, *recorded = self._call.results
        for place, tensors in zip(self._recorded_by, recorded, strict=True):
            recorders[place].add(tensors.clone().unbind())
        return predicted.to(torch.float32, copy=True)

    def _predict(self) -> tuple[Tensor, ...]:
        added = self._added or None
        with ExitStack() as stack:
            recorded = [stack.enter_context(recorder.apart()) for recorder in self._recorders]
            sample = self._unet(self.noisy, self._t, self._prompt_embeds, added_cond_kwargs=added).sample
        self._recorded_by = [place for place, tensors in enumerate(recorded) if tensors]
        return sample, *(torch.stack(recorded[place]) for place in self._recorded_by)


class _Parts:
    """The parts of a UNet that a graph depends on."""

    def __init__(self, unet: nn.Module):
        modules = list(unet.modules())
        self._unet = unet
        self._tensors = [
            (tensors, name)
            for module in modules
            for tensors in (module._parameters, module._buffers)
            for name, tensor in tensors.items()
            if tensor is not None
        ]
        self._hooks = [hooks for module in modules for hooks in (module._forward_pre_hooks, module._forward_hooks)]
        self._attention = [module for module in modules if hasattr(module, "processor")]
        self.owners: list[Replayable] | None = []

    def key(self) -> tuple[Hashable, ...] | None:
        """Return where the weights are and what hooks work with; None if there are hooks that cannot be captured.

        It sets `owners`, those of all hooks.
        """
        self.owners = self._find_owners()
        if self.owners is None:
            return None
        return (
            tuple([0 if (x := tensors[name]) is None else x.data_ptr() for tensors, name in self._tensors]),
            tuple([module.processor for module in self._attention]),
            self._unet.training,
            *[key for owner in self.owners if (key := owner.replay_key()) is not None],
        )

    def _find_owners(self) -> list[Replayable] | None:
        hooks = [hook for stored in self._hooks if stored for hook in stored.values()]
        owners: list[Replayable] = []
        for owner in dict.fromkeys(getattr(hook, "__self__", None) for hook in hooks):
            if not (isinstance(owner, Replayable) and owner.is_replayable):
                return None
            owners.append(owner)
        return owners
