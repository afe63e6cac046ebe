"""Operations on a disk that is full, or becomes full in the middle: each is done, or refused with nothing changed."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sdpersonal import storage
from sdpersonal.errors import DiskFull, UserError
from sdpersonal.outputs import Outputs
from support import crash

from .outcomes import Report
from .work import LibraryWork, _png, leftovers

OPERATIONS = 400
_DISK_BYTES = 700_000
_WRITING = [call for call in crash.CALLS if call[1] in ("_write", "mkdir", "replace", "rename", "fsync")]


def attack_disk(report: Report, seed: int = 0, count: int = OPERATIONS, seconds: float = 3600.0) -> None:
    """Do `count` operations on a small disk that is nearly full, where one can be mounted, and with injected errors."""
    import torch

    torch.set_num_threads(1)
    until, rng = time.monotonic() + seconds, random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="sdpersonal-attack-") as place:
        disk = Path(place) / "disk"
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "tmpfs", str(disk)]
        mounted = not subprocess.run(mount, capture_output=True).returncode
        try:
            if mounted:
                _on_disk(report, disk, rng, count * 3 // 4, until)
        finally:
            if mounted:
                subprocess.run(["umount", "-l", str(disk)], check=True)
    if not mounted:
        report.note("mounting needs root, so every error is injected where the package calls the system")
    with tempfile.TemporaryDirectory(prefix="sdpersonal-attack-") as place:
        _injected(report, Path(place), rng, count // 4 if mounted else count, until)


class _Operations:
    """Operations on a library, outputs and checkpoints in one folder, and what must hold between them."""

    def __init__(self, folder: Path):
        self.folder, self.library, self.outputs = folder, LibraryWork(folder), Outputs(folder / "outputs")
        self.library.prepare()
        self.images: set[bytes] = set()
        self.step = 0
        self.save(random.Random(0))()

    def choose(self, rng: random.Random) -> tuple[Callable[[], object], list[str], list[str]]:
        """Return an operation, and the identities of concepts that it adds and may remove for good."""
        kind = rng.random()
        if kind < 0.7:
            adds, loses, do = self.library._operation(rng)
            return do, adds, loses
        return (self.save(rng) if kind < 0.85 else self.checkpoint), [], []

    def save(self, rng: random.Random) -> Callable[[], object]:
        data = _png(rng) + rng.randbytes(rng.choice((10, 60_000)))

        def save() -> None:
            self.outputs.save(data)
            self.images.add(data)

        return save

    def checkpoint(self) -> None:
        from sdpersonal.training.checkpoint import save_checkpoint

        from .formats import _train_state

        save_checkpoint(self.folder / "run", self.step + 1, _train_state(), {"token": "<me/duck>"})
        self.step += 1

    def problems(self, adds: list[str], loses: list[str], done: bool) -> list[str]:
        """Return what is wrong after an operation."""
        from sdpersonal.training.checkpoint import read_manifest, read_tensors
        from sdpersonal.training.run_dir import checkpoint_folders

        before, now = self.library.known, self.library.identities()
        wanted = (before | set(adds)) - (set(loses) - set(adds)) if done else before
        problems = [] if before - set(loses) <= now <= before | set(adds) else ["a concept was lost or made up"]
        problems += ["what was done is not there"] if done and not now <= wanted | set(loses) else []
        self.library.known = now
        library = self.library.library
        problems += [f"damaged: {why}" for _, why in library.verify()]
        problems += [f"misplaced: {path.name}" for path in library.misplaced_files()]
        saved = {path.read_bytes() for path in self.outputs.folder.rglob("*.png")}
        problems += ["an image was lost or half-written"] if not self.images <= saved else []
        for folder in checkpoint_folders(self.folder / "run").values():
            try:
                dict(read_tensors(folder, read_manifest(folder)))
            except Exception as error:
                problems.append(f"a checkpoint is damaged: {type(error).__name__}")
        return problems + [f"left over: {path}" for path in leftovers(self.folder)]


def _on_disk(report: Report, disk: Path, rng: random.Random, count: int, until: float) -> None:
    """Work on a real small file system; a file that grows and shrinks takes the room away."""
    work = _Operations(disk)
    filler = disk / "filler"
    results: Counter[str] = Counter()
    problems: Counter[str] = Counter()
    while results.total() < count and time.monotonic() < until:
        filler.unlink(missing_ok=True)
        _fill(filler, storage.free_bytes(disk) - rng.choice((0, 0, 4096, 8192, 20_000, 60_000, 10**9)))
        do, adds, loses = _chosen(work, rng, filler)
        result = _result(do)
        results[result] += 1
        filler.unlink(missing_ok=True)
        found = work.problems(adds, loses, result == "done")
        problems.update({f"{result}: {problem}" for problem in found})
        if result.startswith("failed"):
            problems[result] += 1
    _tell(report, f"{results.total()} operations on a full disk", results, problems, count)


def _chosen(work: _Operations, rng: random.Random, filler: Path) -> tuple[Callable[[], object], list[str], list[str]]:
    """Choose an operation; the file that it imports was there before the disk became full."""
    with suppress(OSError):
        return work.choose(rng)
    filler.unlink(missing_ok=True)
    return work.choose(rng)


def _fill(path: Path, size: int) -> None:
    with path.open("wb") as file, suppress(OSError):
        for _ in range(max(0, size) // 4096):
            os.write(file.fileno(), bytes(4096))


def _result(do: Callable[[], object]) -> str:
    try:
        do()
    except DiskFull:
        return "no room"
    except UserError:
        return "refused in a sentence"
    except BaseException as error:
        return f"failed with {type(error).__name__}: {str(error)[:80]}"
    return "done"


def _injected(report: Report, place: Path, rng: random.Random, count: int, until: float) -> None:
    """Let the n-th call to the system say that there is no room, in a child."""
    work = _Operations(place)
    results: Counter[str] = Counter()
    problems: Counter[str] = Counter()
    names = {crash.DONE: "done", crash.NO_ROOM: "no room", crash.REFUSED: "refused in a sentence"}
    while results.total() < count and time.monotonic() < until:
        do, adds, loses = work.choose(rng)
        images, step = set(work.images), work.step
        status = crash.fail_at(rng.randrange(1, 9), errno.ENOSPC, do, _WRITING)
        result = names.get(status, f"failed with status {status}")
        results[result] += 1
        work.images, work.step = images, max(step, *_steps(work))
        problems.update({f"{result}: {problem}" for problem in work.problems(adds, loses, False)})
        if result.startswith("failed"):
            problems[result] += 1
    _tell(report, f"{results.total()} operations with an error injected", results, problems, count)


def _steps(work: _Operations) -> list[int]:
    from sdpersonal.training.run_dir import checkpoint_folders

    return [0, *checkpoint_folders(work.folder / "run")]


def _tell(report: Report, attack: str, results: Counter[str], problems: Counter[str], count: int) -> None:
    for problem, number in problems.most_common(8):
        report.add(f"a full disk ({number} times)", problem, False)
    summary = ", ".join(f"{number} {name}" for name, number in results.most_common())
    report.add(
        attack,
        f"{summary}; nothing lost, damaged or left over" if not problems else summary,
        not problems and results.total() >= count,
    )
