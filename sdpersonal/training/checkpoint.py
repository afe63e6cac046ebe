"""Save and load checkpoints: folders `step-000100` with `state.safetensors` (`state-1.safetensors`, ... for large
models) and, written last, `manifest.json`.

The state is the trained parameters and the optimizer's: tensors in safetensors, plain numbers in the manifest. Random
values are computed (rng.py), so there is nothing else. No pickle is written or read.

The manifest has the SHA-256 of each file of the state, and of itself (those of former versions have not). These find
what a disk or a copy damaged; checkpoint_checks.py finds what does not fit the run, before anything is loaded.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from .. import storage
from ..config import FORMER_FIELDS, FORMER_PRIORS
from ..errors import UserError, printable
from ..storage.reading import parse_strict_json
from .checkpoint_checks import TensorSpec, check_fits, check_values, plain_numbers, read_specs
from .run_dir import MANIFEST_FILE, checkpoint_folder, checkpoint_folders, is_shallow

CHECKPOINT_LIMIT = 2
_SHARD_BYTES = 1 << 30  # bytes of tensors in a file, which limits the additional memory for writing
_MAX_BYTES = 8 << 30
_MAX_HEADER_BYTES = 64 << 20
_MANIFEST_SUM = "manifest_sha256"
_STATE_FILE = re.compile(r"state(-[0-9]+)?\.safetensors")
READ_ERRORS = (  # what a damaged checkpoint raises
    UserError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    SafetensorError,
    RecursionError,
)

TrainableParameters = dict[str, nn.Parameter]


@dataclass(frozen=True)
class CheckpointState:
    """The content of a checkpoint: parameters, optimizer with its state, average of the parameters ({} without)."""

    trainable_parameters: TrainableParameters
    optimizer: torch.optim.Optimizer
    ema: dict[str, Tensor]

    def size(self) -> int:
        """Return the bytes of its checkpoint."""
        return sum(tensor.nbytes for _, tensor in _state_tensors(self))


@dataclass(frozen=True)
class ResumePoint:
    """The step from which a run resumes, and a note about it for the user."""

    step: int
    note: str


def save_checkpoint(
    run: Path, step: int, state: CheckpointState, identity: dict[str, object], best: int | None = None
) -> None:
    """Write the checkpoint of a step; once it is durable, delete old ones except the best step's. Raises DiskFull with
    the others intact."""
    folder = checkpoint_folder(run, step)
    if folder.exists():  # it is damaged, or the run would have resumed from it
        storage.remove(folder)
    with storage.new_folder(folder) as temporary_folder:
        digests = {}
        for number, part in enumerate(_shards(_state_tensors(state))):
            name = f"state-{number}.safetensors" if number else "state.safetensors"
            data = save(part)
            storage.write_bytes(temporary_folder / name, data)
            digests[name] = storage.sha256(data)
        manifest = {"step": step, "sha256": digests, "numbers": _optimizer_numbers(state), "run": identity}
        storage.write_json(temporary_folder / MANIFEST_FILE, manifest | {_MANIFEST_SUM: _manifest_sum(manifest)})
    folders = checkpoint_folders(run)
    recent = [old_step for old_step in folders if old_step <= step][-CHECKPOINT_LIMIT:]
    for old_step, old_folder in folders.items():
        if old_step not in (*recent, best):  # later ones too: damaged, or this run would have resumed from them
            storage.remove(old_folder)


def latest_identity(run: Path) -> dict[str, object] | None:
    """Return the identity of the run of the newest readable checkpoint, or None."""
    for folder in reversed(checkpoint_folders(run).values()):
        try:
            return read_manifest(folder)["run"]
        except READ_ERRORS:
            continue
    return None


def load_checkpoint(run: Path, state: CheckpointState, identity: dict[str, object]) -> ResumePoint:
    """Load the newest whole checkpoint into `state`.

    Raises UserError if there is none, or if it belongs to a run with other settings (naming up to three).
    """
    damaged = ""
    for folder in reversed(checkpoint_folders(run).values()):
        try:
            manifest = read_manifest(folder)
        except READ_ERRORS:
            damaged = f"The checkpoint of {folder.name} is damaged; "
            continue
        check_same_run(identity, manifest["run"])
        try:
            _restore(folder, manifest, state)
        except READ_ERRORS:
            damaged = f"The checkpoint of {folder.name} is damaged; "
            continue
        resuming = "resuming" if damaged else "Resuming"
        return ResumePoint(manifest["step"], f"{damaged}{resuming} from step {manifest['step']}.")
    raise no_checkpoint_error(run)


def load_step(run: Path, step: int, state: CheckpointState) -> None:
    """Load the checkpoint of a step into `state`. Raises UserError if it is missing or damaged."""
    folder = checkpoint_folder(run, step)
    try:
        _restore(folder, read_manifest(folder), state)
    except READ_ERRORS:
        raise UserError(
            f"The best checkpoint, {printable(folder.name)}, is damaged.", "Start anew with another --run folder."
        ) from None


def no_checkpoint_error(run: Path) -> UserError:
    return UserError(
        f"There is no checkpoint in {printable(str(run))} to resume from.",
        "Leave --resume out to start from the beginning, or give the --run folder.",
    )


def check_same_run(now: dict[str, object], then: dict[str, object]) -> None:
    """Raise UserError if settings differ, with a line for each of the first three."""
    now = json.loads(json.dumps(now))  # in JSON a tuple and a list are the same
    then = {FORMER_FIELDS.get(name, name): value for name, value in then.items()}
    then |= {"prior": FORMER_PRIORS.get(str(then["prior"]), then["prior"])} if "prior" in then else {}
    changed = [key for key in sorted(now.keys() | then.keys()) if now.get(key) != then.get(key)]
    if changed:
        lines = [
            f"  {printable(key, 40)} was {_format_value(then.get(key))}, is {_format_value(now.get(key))}"
            for key in changed[:3]
        ]
        omitted = [f"  and {len(changed) - 3} more"] if len(changed) > 3 else []
        raise UserError(
            "\n".join(["The run in this folder was started with other settings:", *lines, *omitted]),
            "Give the same settings again, or start anew with another --run folder.",
        )


def _format_value(value: object) -> str:
    return printable(str(value), 40)


def read_manifest(folder: Path, check_sum: bool = True) -> dict:
    """Read what a checkpoint is, and check that it is what was written for this folder. Raises READ_ERRORS.

    check_sum: False to only ask which run it is of; nothing may be loaded then.
    """
    manifest = parse_strict_json(storage.read_bytes(folder / MANIFEST_FILE, 4 << 20).decode())
    types = {"step": int, "sha256": dict, "numbers": dict, "run": dict}
    if not isinstance(manifest, dict) or not is_shallow(manifest):
        raise ValueError("not a manifest")
    if not all(type(manifest[key]) is expected_type for key, expected_type in types.items()):
        raise ValueError("not a manifest")
    if folder.name != checkpoint_folder(folder.parent, manifest["step"]).name:
        raise ValueError("the manifest of another step")
    if check_sum and manifest.get(_MANIFEST_SUM, _manifest_sum(manifest)) != _manifest_sum(manifest):
        raise ValueError("not the manifest that was written")
    return manifest


def _manifest_sum(manifest: dict) -> str:
    content = {key: value for key, value in manifest.items() if key != _MANIFEST_SUM}
    return storage.sha256(json.dumps(content, sort_keys=True).encode())


def read_tensors(folder: Path, manifest: dict) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a checkpoint by their names in it. Raises READ_ERRORS if it is not what was written."""
    for shard in _read_shards(folder, manifest, _MAX_BYTES):
        yield from shard.items()


def _read_shards(folder: Path, manifest: dict, limit: int) -> Iterator[dict[str, Tensor]]:
    """Yield the tensors of each file. limit: bytes of a file."""
    for file, digest in manifest["sha256"].items():
        data = storage.read_bytes(_state_path(folder, file), limit)
        if storage.sha256(data) != digest:
            raise ValueError("not the state that was written")
        yield load(data)


def _state_path(folder: Path, file: str) -> Path:
    if not _STATE_FILE.fullmatch(file):
        raise ValueError("not a file of a checkpoint")
    return folder / file


# --- parameters and optimizer, as tensors and numbers ---


def _state_tensors(state: CheckpointState) -> Iterator[tuple[str, Tensor]]:
    optimizer = state.optimizer
    for name, parameter in state.trainable_parameters.items():
        yield f"value.{name}", parameter
        if state.ema:
            yield f"average.{name}", state.ema[name]
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                yield f"state.{key}.{name}", value
    for number, group in enumerate(optimizer.param_groups):
        for key, value in group.items():
            if isinstance(value, Tensor):
                yield f"group.{number}.{key}", value


def _optimizer_numbers(state: CheckpointState) -> dict[str, object]:
    trained, optimizer = state.trainable_parameters, state.optimizer
    states = {name: plain_numbers(optimizer.state.get(parameter, {})) for name, parameter in trained.items()}
    return {
        "state": {name: numbers for name, numbers in states.items() if numbers},
        "groups": [plain_numbers(group) for group in optimizer.param_groups],
    }


def _shards(tensors: Iterator[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    part: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors:
        if part and size + tensor.nbytes > _SHARD_BYTES:
            yield part
            part, size = {}, 0
        part[name] = tensor.detach().to("cpu", copy=True).contiguous()  # a tensor may be shared
        size += tensor.nbytes
    yield part


def _restore(folder: Path, manifest: dict, state: CheckpointState) -> None:
    """Load a checkpoint. Raises READ_ERRORS, before anything is loaded if the checkpoint is a single file."""
    trained, optimizer, numbers = state.trainable_parameters, state.optimizer, manifest["numbers"]
    specs: dict[str, TensorSpec] = {}
    for file in manifest["sha256"]:
        specs |= read_specs(_state_path(folder, file))
    check_fits(specs, numbers, trained, state.ema, optimizer)
    limit = sum(math.prod(spec.shape) * spec.dtype.itemsize for spec in specs.values()) + _MAX_HEADER_BYTES
    for number, shard in enumerate(_read_shards(folder, manifest, limit)):
        for name, tensor in shard.items():
            check_values(name, tensor)
        if number == 0:
            optimizer.state.clear()
        for name, tensor in shard.items():
            _load_tensor(name, tensor, state)
    for name, values in numbers["state"].items():
        optimizer.state[trained[name]].update(values)
    for group, values in zip(optimizer.param_groups, numbers["groups"], strict=True):
        group.update(values)


@torch.no_grad()
def _load_tensor(name: str, tensor: Tensor, state: CheckpointState) -> None:
    """Load a tensor that `check_fits` has accepted."""
    trained, optimizer = state.trainable_parameters, state.optimizer
    kind, _, rest = name.partition(".")
    if kind in ("value", "average"):
        target = trained[rest] if kind == "value" else state.ema[rest]
        target.copy_(tensor)
    elif kind == "state":
        key, _, owner = rest.partition(".")
        optimizer.state[trained[owner]][key] = tensor.to(trained[owner].device)
    else:
        number, _, key = rest.partition(".")
        group = optimizer.param_groups[int(number)]
        group[key] = tensor.to(group["params"][0].device)
