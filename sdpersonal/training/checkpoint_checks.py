"""Check that a checkpoint fits the parameters and the optimizer that it is loaded into, before anything is loaded.

What an optimizer keeps for a parameter is not written down here: another one of the same class takes a step on a copy,
and its state tells the names, shapes and types. So optimizers of other packages are checked as well.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import storage

_MAX_HEADER = 64 << 20  # bytes
_MAX_COUNT = 1 << 31  # of steps
_MAX_VALUE = 1e9  # of a number of a group; --lr allows as much
_NON_NEGATIVE = ("lr", "weight_decay", "eps", "own_rate", "d")
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
}


@dataclass(frozen=True)
class TensorSpec:
    """The shape and the type of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> TensorSpec:
        return cls(tuple(tensor.shape), tensor.dtype)


StateSpec = dict[str, TensorSpec | type]
"""What an optimizer keeps for a parameter: for each name a tensor's shape and type, or the type of a number."""


def plain_numbers(values: Mapping[str, object]) -> dict[str, int | float]:
    """Return the finite numbers among the values."""
    return {key: value for key, value in values.items() if isinstance(value, int | float) and math.isfinite(value)}


def check_fits(
    tensors: Mapping[str, TensorSpec],
    numbers: Mapping[str, object],
    parameters: Mapping[str, nn.Parameter],
    averages: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Raise ValueError, KeyError or TypeError unless a checkpoint has every parameter and average, and for the
    optimizer only what it keeps itself: for each parameter all of its state or none.

    tensors: those of the checkpoint by name; numbers: the rest of the optimizer's state,
    {"state": {parameter: {name: number}}, "groups": [{name: number}]}.
    """
    expected = {f"value.{name}": TensorSpec.of(parameter) for name, parameter in parameters.items()}
    expected |= {f"average.{name}": TensorSpec.of(average) for name, average in averages.items()}
    if not expected.keys() <= tensors.keys():
        raise ValueError("a part is missing")
    states, groups = numbers["state"], numbers["groups"]
    if not isinstance(states, dict) or not states.keys() <= parameters.keys():
        raise ValueError("it holds the state of an unknown parameter")
    for name, state_spec in _state_specs(parameters, optimizer).items():
        expected |= _check_state(name, state_spec, tensors.keys(), states.get(name, {}))
    if not isinstance(groups, list) or len(groups) != len(optimizer.param_groups):
        raise ValueError("it has another number of groups")
    for number, (group, saved) in enumerate(zip(optimizer.param_groups, groups, strict=True)):
        _check_group(group, saved)
        group_tensors = {key: value for key, value in group.items() if isinstance(value, Tensor)}
        expected |= {f"group.{number}.{key}": TensorSpec.of(value) for key, value in group_tensors.items()}
    for name, spec in tensors.items():
        if spec != expected[name]:
            raise ValueError("a tensor has another shape or type")


def check_values(name: str, tensor: Tensor) -> None:
    """Raise ValueError if a tensor holds a number that no training makes."""
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise ValueError("a tensor holds a number that is not finite")
    kind, _, rest = name.partition(".")
    is_second_moment = kind == "state" and rest.startswith(("exp_avg_sq.", "step."))
    if (is_second_moment or (kind == "group" and rest.endswith(".d"))) and bool((tensor < 0).any()):
        raise ValueError("a tensor holds a negative number")


def read_specs(path: Path) -> dict[str, TensorSpec]:
    """Return the tensors of a safetensors file by name, from its header alone. Raises UserError, ValueError, KeyError,
    TypeError."""
    with storage.open_to_read(path) as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= _MAX_HEADER:
            raise ValueError("not a safetensors file")
        header = json.loads(file.read(length))
    return {
        name: TensorSpec(tuple(entry["shape"]), _DTYPES[entry["dtype"]])
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _state_specs(parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, StateSpec]:
    """Return what the optimizer keeps for each parameter. Parameters of one group and shape are tried once."""
    known: dict[tuple[int, TensorSpec], StateSpec] = {}
    specs = {}
    names = {parameter: name for name, parameter in parameters.items()}
    for number, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            if parameter not in names:
                continue
            key = (number, TensorSpec.of(parameter))
            if key not in known:
                known[key] = _try_step(optimizer, group, parameter)
            specs[names[parameter]] = known[key]
    return specs


def _try_step(optimizer: torch.optim.Optimizer, group: Mapping[str, object], parameter: nn.Parameter) -> StateSpec:
    """Return what another optimizer of this class keeps for such a parameter after a step."""
    copy = nn.Parameter(parameter.detach().clone())
    copy.grad = torch.full_like(copy, 1e-3)
    other = type(optimizer)([{**group, "params": [copy]}])  # type: ignore[call-arg]  # every class takes groups
    other.step()
    state = other.state[copy]
    specs = {key: TensorSpec.of(value) for key, value in state.items() if isinstance(value, Tensor)}
    return specs | {key: type(value) for key, value in plain_numbers(state).items()}


def _check_state(name: str, spec: StateSpec, tensors: Collection[str], numbers: object) -> dict[str, TensorSpec]:
    """Return the tensors of a parameter's state by their names in the checkpoint, if it has any; check its numbers."""
    named = {f"state.{key}.{name}": shape for key, shape in spec.items() if isinstance(shape, TensorSpec)}
    counts = {key: kind for key, kind in spec.items() if not isinstance(kind, TensorSpec)}
    saved = {name for name in named if name in tensors}
    if not isinstance(numbers, dict):
        raise ValueError("a state of the optimizer is none")
    if not saved and not numbers:
        return named
    if saved != named.keys() or numbers.keys() != counts.keys():
        raise ValueError("a part of the optimizer's state is missing")
    for key, value in numbers.items():
        if type(value) not in (counts[key], int) or not 0 <= value <= _MAX_COUNT:
            raise ValueError("a number of the optimizer is none")
    return named


def _check_group(group: Mapping[str, object], saved: object) -> None:
    """Check the numbers of a group: a switch must be as it is now, since it says how the optimizer works."""
    if not isinstance(saved, dict):
        raise ValueError("a group of the optimizer is none")
    known = plain_numbers(group)
    for key, value in saved.items():
        now = known[key]
        if isinstance(now, bool) or isinstance(value, bool):
            fits = value is now
        else:
            fits = isinstance(value, int | float) and abs(value) <= _MAX_VALUE
            fits = fits and ((isinstance(value, int) and value >= 0) or isinstance(now, float))
            fits = fits and not (key in _NON_NEGATIVE and value < 0)
        if not fits:
            raise ValueError("a number of the optimizer's groups is none")
