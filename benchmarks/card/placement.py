"""Does it fit? Generation and training with the memory of smaller cards, by a limit on this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from sdpersonal.config import GenerateRequest
from sdpersonal.errors import OutOfMemory
from sdpersonal.generation import Generator
from sdpersonal.models import StableDiffusion
from sdpersonal.models.offload import OffloadPlan

from .clocks import timed
from .own_step import our_step, settings_for, train_state
from .session import Session, free_memory

LIMITS = (12, 8, 6)  # GB
_GB = 1 << 30


@contextmanager
def memory_limit(session: Session, size: float) -> Iterator[None]:
    """Let this process allocate `size` GB at most, and tell so to what asks how much is free."""
    if session.dry:
        yield
        return
    free_memory(session)
    free_now = torch.cuda.mem_get_info
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory

    def limited(device=None) -> tuple[int, int]:
        free, _ = free_now(device)
        return min(free, int(size * _GB) - torch.cuda.memory_reserved(device)), int(size * _GB)

    torch.cuda.set_per_process_memory_fraction(size * _GB / total)
    torch.cuda.mem_get_info = limited
    try:
        yield
    finally:
        torch.cuda.mem_get_info = free_now
        torch.cuda.set_per_process_memory_fraction(1.0)


def check_placement(session: Session) -> None:
    for kind in ("sd15", "sdxl"):
        session.guarded(f"{kind} on smaller cards", 10, lambda _, kind=kind: _generate(session, kind))
        free_memory(session)
    session.guarded("sdxl lora on smaller cards", 12, _train)


def _generate(session: Session, kind: str) -> None:
    base = session.base(kind)
    for limit in LIMITS[:1] if session.dry else LIMITS:
        with memory_limit(session, limit):
            _try(session, f"{kind} generates in {limit} GB", base, lambda: _draw(session, base, session.side(kind), 2))
    base.offloader.apply_plan(OffloadPlan("sequential", False, 1))
    if not session.dry:
        _check_message(session, kind, base)


def _check_message(session: Session, kind: str, base: StableDiffusion) -> None:
    """Generate in 1.5 GB less than the UNet alone takes: that must end in a sentence."""
    size = max(0.3, sum(w.numel() * w.element_size() for w in base.unet.parameters()) / _GB - 1.5)
    with memory_limit(session, size):
        try:
            _draw(session, base, session.side(kind), 1)
        except OutOfMemory as error:
            session.check(f"{kind} out of memory", True, str(error))
        else:
            session.check(f"{kind} out of memory", False, f"it generated in {size:.1f} GB")


def _draw(session: Session, base: StableDiffusion, side: int, n: int) -> None:
    request = GenerateRequest(prompt="a dog", num_images=n, steps=3, size=f"{side}x{side}")
    list(Generator(base).generate(request))


def _try(session: Session, name: str, base: StableDiffusion, work: Callable[[], None], must_fit: bool = True) -> None:
    if not session.dry:
        torch.cuda.reset_peak_memory_stats()
    try:
        taken = timed(session, work).wall
    except OutOfMemory as error:
        session.check(name, not must_fit, str(error))
        return
    peak = 0 if session.dry else torch.cuda.max_memory_allocated()
    session.check(name, True, f"{taken:.1f} s, {peak / _GB:.1f} GB at most, mode {base.offloader._mode}")


def _train(session: Session) -> None:
    base, side = session.base("sdxl"), session.side("sdxl")
    base.enable_gradient_checkpointing(1)
    base.offloader.apply_plan(OffloadPlan("training", False, 1))
    base.offloader.to_device("unet")  # so that the autoencoder leaves, as while photos train
    for limit in LIMITS[:1] if session.dry else LIMITS:
        name, must_fit = f"sdxl lora b1, checkpointing, in {limit} GB", limit == max(LIMITS)
        with memory_limit(session, limit):
            _try(session, name, base, lambda: _two_steps(base, side), must_fit)
        free_memory(session)


def _two_steps(base: StableDiffusion, side: int) -> None:
    state = train_state(base, settings_for("lora", 1, checkpointing=1), side)
    try:
        with state.oom_advice.translate("at step 1"):
            step = our_step(state, 1)
            step(), step()
    finally:
        state.method.close()
