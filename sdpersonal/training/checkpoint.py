"""Checkpoints: a folder `step-000100` with `state.safetensors` and, written last, `manifest.json`.

The state is what trains and the optimiser's moments; chance is computed, so there is nothing else to keep. No pickle is
written or read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from .. import files
from ..errors import PersonalError
from ..prompts import show

KEEP = 2
_MAX_BYTES = 8 << 30
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Resumed:
    """Where a run goes on, and what the user should know about it."""

    step: int
    note: str


def save_checkpoint(
    run: Path, step: int, trained: dict[str, nn.Parameter], optimizer, identity: dict[str, object]
) -> None:
    """Write the checkpoint of a step; older ones go only once it is durable. Raises NoRoom with the old ones intact."""
    folder = run / f"step-{step:06d}"
    if folder.exists():
        return
    data = save(_state(trained, optimizer))
    with files.new_folder(folder) as staged:
        files.write_bytes(staged / "state.safetensors", data)
        files.write_json(staged / "manifest.json", {"step": step, "sha256": files.sha256(data), "run": identity})
    for old in _folders(run)[:-KEEP]:
        files.remove(old)


def latest_step(run: Path) -> int | None:
    """The newest step with a checkpoint that looks complete, or None."""
    steps = [int(folder.name[5:]) for folder in _folders(run) if (folder / "manifest.json").exists()]
    return max(steps, default=None)


def load_checkpoint(run: Path, trained: dict[str, nn.Parameter], optimizer, identity: dict[str, object]) -> Resumed:
    """Fill `trained` and the optimiser from the newest checkpoint that is whole.

    Raises PersonalError where there is none, or where it belongs to a run with other settings (naming up to three).
    """
    damaged = ""
    for folder in reversed(_folders(run)):
        try:
            manifest, data = _read(folder)
        except (PersonalError, ValueError, KeyError, TypeError, SafetensorError, RecursionError):
            damaged = f"The checkpoint of {folder.name} is damaged; "
            continue
        _check_same_run(identity, manifest["run"])
        _restore(load(data), manifest["step"], trained, optimizer)
        return Resumed(manifest["step"], f"{damaged}going on from step {manifest['step']}.")
    raise no_checkpoint(run)


def no_checkpoint(run: Path) -> PersonalError:
    return PersonalError(
        f"There is no checkpoint in {show(str(run))} to go on from.",
        "Leave --resume out to start from the beginning.",
    )


def _folders(run: Path) -> list[Path]:
    return sorted(path for path in run.glob("step-*") if path.name[5:].isdigit() and path.is_dir())


def _read(folder: Path) -> tuple[dict, bytes]:
    manifest = json.loads(files.read_bytes(folder / "manifest.json", 1 << 20))
    data = files.read_bytes(folder / "state.safetensors", _MAX_BYTES)
    if files.sha256(data) != manifest["sha256"]:
        raise ValueError("the state is not the one that was written")
    if not isinstance(manifest["step"], int) or not isinstance(manifest["run"], dict):
        raise ValueError("not a manifest")
    return manifest, data


def _check_same_run(now: dict[str, object], then: dict[str, object]) -> None:
    # Through JSON, where a tuple and a list are one.
    now = json.loads(json.dumps(now))
    changed = [key for key in sorted(now.keys() | then.keys()) if now.get(key) != then.get(key)]
    if changed:
        lines = "; ".join(
            f"{key} was {show(str(then.get(key)), 40)}, is {show(str(now.get(key)), 40)}" for key in changed[:3]
        )
        raise PersonalError(
            f"This run was started with other settings: {lines}.",
            "Give the same again, or start anew with another --run.",
        )


def _state(trained: dict[str, nn.Parameter], optimizer) -> dict[str, Tensor]:
    state = {f"value.{name}": parameter.detach().cpu().contiguous() for name, parameter in trained.items()}
    for name, parameter in trained.items():
        for moment in _MOMENTS:
            state[f"{moment}.{name}"] = optimizer.state[parameter][moment].cpu().contiguous()
    return state


def _restore(state: dict[str, Tensor], step: int, trained: dict[str, nn.Parameter], optimizer) -> None:
    for name, parameter in trained.items():
        with torch.no_grad():
            parameter.copy_(state[f"value.{name}"])
        moments = {moment: state[f"{moment}.{name}"].to(parameter.device) for moment in _MOMENTS}
        # The fused kernel counts steps on the device; every trained tensor has had every step.
        optimizer.state[parameter] = {"step": torch.tensor(float(step), device=parameter.device), **moments}
