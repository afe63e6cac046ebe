"""Gradient checkpointing (Chen et al. 2016, arXiv 1604.06174) of every n-th block of a UNet.

diffusers can checkpoint all blocks or none. The cases between are the most useful: memory falls by the activations of
the chosen blocks, and only these blocks are computed twice.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from torch.utils.checkpoint import checkpoint


def checkpoint_blocks(model: nn.Module, every_nth: int) -> None:
    """Checkpoint every n-th transformer block and every n-th resnet block; 1: all, 0: none."""
    for kind in (BasicTransformerBlock, ResnetBlock2D):
        blocks = [module for module in model.modules() if isinstance(module, kind)]
        for number, block in enumerate(blocks):
            block.__dict__.pop("forward", None)  # an earlier call may have shadowed the class's method
            if every_nth and number % every_nth == 0:
                block.forward = partial(_recompute_in_backward, block.forward)


def _recompute_in_backward(forward: Any, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)  # no block is random
