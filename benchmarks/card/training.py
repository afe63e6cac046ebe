"""A training step: diffusers' scripts and this project, in turns, in one process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from sdpersonal.training.train_state import TrainState

from .ceilings import peak_flops
from .clocks import Times, interleaved, peak_memory, profiled, wait, waits
from .own_step import ARMS, our_step, settings_for, train_state
from .script_step import step_of
from .session import Session, free_memory

# FLOPs of a step with one photo at full size, as benchmarks.steps.work counts them (a test counts them again).
STEP_FLOPS = {
    ("sd15", "lora"): 1.754e12,
    ("sd15", "textual-inversion"): 1.696e12,
    ("sd15", "full"): 2.420e12,
    ("sdxl", "lora"): 14.62e12,
    ("sdxl", "textual-inversion"): 14.50e12,
}
SD15_CASES = (("lora", 4), ("lora", 1), ("textual-inversion", 4), ("full", 2))
SDXL_CASES = (("lora", 1), ("lora", 2), ("textual-inversion", 2))
_DRY_SD15 = (("lora", 1), ("textual-inversion", 1), ("full", 1))
_WARM_UP = 3


def train_sd15(session: Session) -> None:
    for method, batch in _DRY_SD15 if session.dry else SD15_CASES:
        work = partial(_compare, kind="sd15", method=method, batch=batch)
        session.guarded(f"sd15 {method} batch {batch}", 15, work)


def train_sdxl(session: Session) -> None:
    for method, batch in SDXL_CASES[:1] if session.dry else SDXL_CASES:
        work = partial(_compare, kind="sdxl", method=method, batch=batch)
        session.guarded(f"sdxl {method} batch {batch}", 25, work)


def list_waits(session: Session) -> None:
    """List the source lines at which training waits for the device."""
    for method in ("lora",) if session.dry else ("lora", "textual-inversion"):
        base = session.base("sd15")
        state = train_state(base, settings_for(method, 2), session.side("sd15"))
        step = our_step(state, 2, ARMS[-1])
        for _ in range(2):
            step()
        lines = waits(session, lambda step=step: [step() for _ in range(3)])
        report_waits(session, f"3 training steps, {method}", lines)
        state.method.close()
        del base, state, step
        free_memory(session)


def report_waits(session: Session, name: str, lines: dict[str, int]) -> None:
    session.check(f"waits in {name}", not lines, f"{sum(lines.values())} at {len(lines)} lines")
    session.store(f"waits in {name}", dict(lines))
    for line, count in sorted(lines.items(), key=lambda item: -item[1]):
        session.say(f"  {count:3} x {line}")


@dataclass
class _Arm:
    step: Callable[[], object]
    state: TrainState | None  # ours
    taken: int = 0  # bytes that it takes beyond the weights of the frozen base


def _compare(session: Session, kind: str, method: str, batch: int) -> None:
    side = session.side(kind)
    arms: dict[str, _Arm] = {}
    weights: dict[str, int] = {}
    for name in ("script", *(ARMS[-1:] if session.dry else ARMS)):
        try:
            arms[name], weights[name] = _make_arm(session, name, kind, method, batch, side)
        except Exception as error:  # the others are measured all the same
            session.row("FAIL", f"{kind} {method} b{batch} {name}", f"{type(error).__name__}: {error}"[:200])
            free_memory(session)
    count = session.steps(10 if kind == "sd15" else 5)
    times = interleaved(session, {name: arm.step for name, arm in arms.items()}, count)
    for name, arm in arms.items():
        _report(session, (kind, method, batch, name), times, weights[name] + arm.taken)
    if "graph" in arms and not arms["graph"].state.gradients._passes:
        session.row("FAIL", f"{kind} {method} b{batch}", "the step was not captured in a graph")
    for arm in arms.values():
        if arm.state:
            arm.state.method.close()


def _make_arm(session: Session, name: str, kind: str, method: str, batch: int, side: int) -> tuple[_Arm, int]:
    """Build an arm on a base of its own and take its first steps; return it and the bytes of its base."""
    base = session.base(kind)
    weights = sum(w.numel() * w.element_size() for model in base.modules().values() for w in model.parameters())
    with peak_memory(session) as peak:
        if name == "script":
            use_plain_blocks(base.unet)
            arm = _Arm(step_of(base, method, side, batch, session.dtype), None)
        else:
            state = train_state(base, settings_for(method, batch), side)
            arm = _Arm(our_step(state, batch, name), state)
        for _ in range(1 if session.dry else _WARM_UP):
            arm.step()
        wait(session)
        arm.taken = peak()
    free_memory(session)
    return arm, weights


def use_plain_blocks(unet: torch.nn.Module) -> None:
    """Make a UNet of this project diffusers' own again: each block, of the class that ours is derived from."""
    for module in unet.modules():
        for part in (module, getattr(module, "processor", None)):
            if part is not None and type(part).__module__.startswith("sdpersonal."):
                part.__class__ = next(c for c in type(part).__mro__ if not c.__module__.startswith("sdpersonal."))


def profile_steps(session: Session) -> None:
    """Count launches and list the longest kernels of a step; last of all, since a profiler may upset what follows."""
    for kind, batch in (("sd15", 1),) if session.dry else (("sd15", 4), ("sdxl", 1)):
        for name in ARMS[-1:] if session.dry else (*ARMS, "script"):
            session.guarded(f"profile of {kind} {name}", 10, partial(_profile, kind=kind, batch=batch, name=name))


def _profile(session: Session, kind: str, batch: int, name: str) -> None:
    arm, _ = _make_arm(session, name, kind, "lora", batch, session.side(kind))
    profile = profiled(session, arm.step, 1 if session.dry else 2, f"{kind} lora b{batch} {name}")
    numbers = f"{profile['launches']:.0f} launches, {profile['kernels']:.0f} kernels"
    numbers += f" of {profile['kernel seconds'] * 1e3:.1f} ms"
    session.row(name, f"{kind} lora b{batch} profile", numbers)
    session.store(f"{kind} lora b{batch} {name} profile", profile)
    if arm.state:
        arm.state.method.close()


def _report(session: Session, key: tuple[str, str, int, str], times: dict[str, Times], size: int) -> None:
    kind, method, batch, name = key
    seconds, flops = times[name].wall, STEP_FLOPS[kind, method] * batch
    share = flops / seconds / peak_flops(session)
    gain = times["script"].wall / seconds if "script" in times else 1.0
    session.row(
        name,
        f"{kind} {method} b{batch}",
        f"{seconds * 1e3:.1f} ms, by events {times[name].device * 1e3:.1f}",
        f"{flops / seconds / 1e12:.0f} TFLOP/s, {share:.1%} of the matmul",
        f"{gain:.2f}x, {size / 1e9:.1f} GB",
    )
    session.store(
        f"{kind} {method} b{batch} {name}",
        {"wall": seconds, "device": times[name].device, "share": share, "bytes": size, "gain": gain},
    )
