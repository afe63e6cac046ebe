"""Fuzzing: a damaged or hostile file of any format is read, or refused in one sentence, within bounds.

Mutation i of seed S is the same file wherever it is made, so (S, i) repeats it; every failing file is also saved, with
what went wrong, and can be read again with --replay. Each worker process may use 2 seconds of CPU time for a file,
after which the system ends it, and 500 MB more memory than it starts with.
"""

from __future__ import annotations

import mmap
import os
import random
import re
import resource
import shutil
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from sdpersonal.errors import UserError

from .formats import Format, all_formats, sentence
from .hostile_files import hostile_files
from .outcomes import Report

CPU_SECONDS, MEMORY = 2.0, 500_000_000
COUNT = 1_000_000
FAILURES = Path("attack-failures")
_SAVED_PER_CAUSE = 2  # files saved for one cause by one worker
_MAX_KILLED = 30  # files that end a worker, after which the attack gives up
_INDEX, _READ, _REFUSED, _FAILED, _WORST = range(5)  # a worker's numbers: file, accepted, refused, failed, microseconds
_NUMBERS = 8  # of 64 bits for each worker


def attack_files(
    report: Report,
    seed: int = 0,
    count: int = COUNT,
    seconds: float = 3600.0,
    workers: int = 0,
    only: Sequence[str] = (),
    formats: Sequence[Format] = (),
) -> None:
    """Read `count` damaged files, and all hostile files made by hand.

    workers: processes, 0 for one on each core; only: names of formats, all without any; formats: in place of all.
    """
    import torch

    torch.set_num_threads(1)  # a worker is a fork, which has no team of threads
    formats = [format for format in formats or all_formats() if not only or format.name in only]
    workers = workers or max(1, min(len(os.sched_getaffinity(0)), 8))
    began, before = time.monotonic(), sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    fuzz = _Fuzz(list(formats), seed, count, began + seconds)
    causes = fuzz.run(workers)
    took = time.monotonic() - began
    numbers = fuzz.numbers()
    done = sum(sum(row[_READ : _FAILED + 1]) for row in numbers)
    accepted, refused, failed = (sum(row[kind] for row in numbers) for kind in (_READ, _REFUSED, _FAILED))
    worst = max(row[_WORST] for row in numbers) / 1e6
    for cause, number in causes.most_common(40):
        report.add(f"a damaged file ({number} of this kind)", cause, False)
    came = f"{accepted:,} read, {refused:,} refused in a sentence, {failed:,} failed; the longest took {worst:.2f} s"
    report.add(
        f"{done:,} files (seed {seed}), {len(fuzz.hostile)} of them made by hand", came, not failed and not causes
    )
    spent = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]) - before
    speed = f"{done / took:,.0f} files a second, {done / spent:,.0f} a second of CPU time"
    report.note(f"{took:.0f} s, {workers} processes: {speed}")


def replay(report: Report, case: Path) -> None:
    """Read a saved failing file again, in a process of its own."""
    name = (case / "name").read_text()
    chosen = {format.name: format for format in all_formats()}[case.name.partition("-")[0]]
    cause = _read_alone(chosen, name, (case / "data").read_bytes())
    report.add(f"{case.name}", cause or "read, or refused in a sentence", not cause)


def _read_alone(format: Format, name: str, data: bytes) -> str:
    """Read one file in a fork with the limits; return what went wrong, "" for nothing."""
    with _Place(format.files) as place:
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.close(reader)
            with suppress(BaseException), os.fdopen(writer, "w") as pipe:
                _limit_memory()
                pipe.write(_cause(format, name, data, place)[1])
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            cause = pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return cause or ("" if status == 0 else _killed_by(-status))


def _killed_by(number: int) -> str:
    if number == signal.SIGPROF:
        return f"more than {CPU_SECONDS:g} s of CPU time"
    return f"the process ended by signal {number}" + (
        ", out of memory" if number in (signal.SIGKILL, signal.SIGABRT) else ""
    )


class _Place:
    """A folder in memory with the files of a format, which is the working directory meanwhile."""

    def __init__(self, files: dict[str, bytes], parent: Path | None = None):
        self._files, self._parent = files, parent or _memory_folder()

    def __enter__(self) -> Path:
        self.path = Path(tempfile.mkdtemp(prefix="sdpersonal-attack-", dir=self._parent))
        for name, data in self._files.items():
            path = self.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return self.path

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def _memory_folder() -> Path:
    """Return a folder in memory where there is one."""
    return Path("/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir())


def _cause(format: Format, name: str, data: bytes, place: Path) -> tuple[int, str]:
    """Read a file; return which number to count, and what went wrong, "" for nothing."""
    path = place / name if name else None
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # no handler: it ends even a search in a regular expression
    try:
        format.read(name, data, place)
        return _READ, ""
    except UserError as error:
        if sentence(str(error)):
            return _REFUSED, ""
        return _FAILED, f"{format.name}: no sentence: {str(error)[:200]!r}"
    except BaseException as error:
        return _FAILED, f"{format.name}: {_where(error)}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        if path:
            _restore(path, format.files.get(name))


def _restore(path: Path, data: bytes | None) -> None:
    if data is None:
        path.unlink(missing_ok=True)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _where(error: BaseException) -> str:
    """Name an exception and the last line of the package that it came through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "sdpersonal" in frame.filename]
    place = f"{frames[-1].filename.rpartition('sdpersonal/')[2]}:{frames[-1].lineno}" if frames else "?"
    return f"{type(error).__name__} in {place}: {re.sub('[0-9]+', 'N', str(error))[:100]}"


def _limit_memory() -> None:
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _save(format: Format, mark: str, name: str, data: bytes, cause: str) -> None:
    case = FAILURES.absolute() / f"{format.name}-{mark}"
    case.mkdir(parents=True, exist_ok=True)
    (case / "data").write_bytes(data)
    (case / "name").write_bytes(name.encode("utf-8", "surrogateescape"))
    (case / "cause").write_text(cause, errors="backslashreplace")


class _Fuzz:
    """The workers and what they share: numbers in memory, causes through pipes."""

    def __init__(self, formats: list[Format], seed: int, count: int, until: float):
        self._formats, self._seed, self._count, self._until = formats, seed, count, until
        known = {format.name: format for format in formats}
        self.hostile = [(known[kind], file, data) for kind, file, _, data in hostile_files(known)]
        self._shares = [format.share for format in formats]
        self._memory = mmap.mmap(-1, 64 * _NUMBERS * 8)
        self._shared = memoryview(self._memory).cast("q")
        self._workers = 0

    def case(self, index: int) -> tuple[Format, str, bytes]:
        """Return the format, name and bytes of a mutation; below 0, of a hostile file made by hand."""
        if index < 0:
            return self.hostile[index]
        rng = random.Random(self._seed * 1_000_003 + index)
        format = rng.choices(self._formats, self._shares)[0]
        return format, *format.make(rng)

    def numbers(self) -> list[list[int]]:
        return [list(self._shared[row * _NUMBERS : (row + 1) * _NUMBERS]) for row in range(self._workers)]

    def run(self, workers: int) -> Counter[str]:
        """Run the workers until all files are read or the time is over; start one again where a file ended it."""
        self._workers = workers
        causes: Counter[str] = Counter()
        folder = Path(tempfile.mkdtemp(prefix="sdpersonal-attack-", dir=_memory_folder()))  # for all workers
        running = {self._start(number, number - len(self.hostile), folder): number for number in range(workers)}
        while running:
            child, status = os.waitpid(-1, 0)
            if (number := running.pop(child, None)) is None:
                continue
            code = os.waitstatus_to_exitcode(status)
            if code == 0:
                continue
            if code > 0:
                causes[f"a worker of this tool ended with status {code} at file {self._shared[number * _NUMBERS]}"] += 1
                continue
            row = number * _NUMBERS
            index = self._shared[row + _INDEX]
            self._shared[row + _FAILED] += 1
            format, name, data = self.case(index)
            cause = f"{format.name}: {_killed_by(-code)}"
            causes[cause] += 1
            if causes[cause] <= _SAVED_PER_CAUSE:
                _save(format, f"{self._seed}-{index}", name, data, cause)
            if sum(causes.values()) < _MAX_KILLED:
                running[self._start(number, index + workers, folder)] = number
        for lines in folder.glob("causes-*"):
            causes.update(lines.read_text(errors="replace").splitlines())
        shutil.rmtree(folder)
        return causes

    def _start(self, number: int, first: int, folder: Path) -> int:
        child = os.fork()
        if child:
            return child
        code = 1
        try:
            self._work(number, first, folder / f"causes-{number}")
            code = 0
        except BaseException as error:
            with suppress(BaseException):
                (folder / f"causes-{number}-end").write_text(f"a worker of this tool: {error!r}"[:300])
        finally:
            os._exit(code)

    def _work(self, number: int, first: int, log: Path) -> None:
        os.setsid()  # nothing that it starts outlives it unseen
        saved: Counter[str] = Counter()
        failures = FAILURES.absolute()
        with ExitStack() as stack, log.open("a", buffering=1, errors="backslashreplace") as causes:
            places = {format.name: stack.enter_context(_Place(format.files, log.parent)) for format in self._formats}
            empty = stack.enter_context(_Place({}, log.parent))
            os.chdir(empty)
            with open(os.devnull, "w") as nothing:
                os.dup2(nothing.fileno(), 2)  # decoders write warnings of C libraries there
            for index in self._indexes(number, first):
                if (index - first) // self._workers % 500 == 0:
                    _limit_memory()  # anew, since what a file may take is counted from what is there before it
                cause, case = self._one(number, index, places)
                if cause:
                    causes.write(" ".join(cause.split()) + "\n")
                    saved[cause] += 1
                    if saved[cause] <= _SAVED_PER_CAUSE:
                        os.chdir(failures.parent)
                        _save(case[0], f"{self._seed}-{index}", case[1], case[2], cause)
                        os.chdir(empty)
            if os.listdir(empty):
                causes.write(f"something ran: {os.listdir(empty)}\n")

    def _indexes(self, number: int, first: int) -> Iterator[int]:
        for index in range(first, self._count, self._workers):
            if time.monotonic() > self._until:
                return
            self._shared[number * _NUMBERS + _INDEX] = index
            yield index

    def _one(self, number: int, index: int, places: dict[str, Path]) -> tuple[str, tuple[Format, str, bytes]]:
        case = self.case(index)
        began = time.process_time()
        kind, cause = _cause(*case, places[case[0].name])
        row = number * _NUMBERS
        self._shared[row + kind] += 1
        spent = int((time.process_time() - began) * 1e6)
        self._shared[row + _WORST] = max(self._shared[row + _WORST], spent)
        return cause, case
