"""kill -9 at random moments over what writes files; and sixteen processes that race for one library."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import suppress
from pathlib import Path

from sdpersonal.errors import UserError

from .outcomes import Report
from .work import AppWork, LibraryWork, TrainingWork, Work, leftovers

KILLS, PROCESSES, OPERATIONS = 1000, 16, 12
_SHARES = ((LibraryWork, 0.6, 0.12), (AppWork, 0.25, 0.25), (TrainingWork, 0.15, 1.5))  # kills; seconds until a kill


def attack_kills(
    report: Report, seed: int = 0, count: int = KILLS, seconds: float = 3600.0, operations: int = OPERATIONS
) -> None:
    """Kill processes `count` times, and let sixteen race, each with so many operations."""
    import torch

    torch.set_num_threads(1)  # the children are forks
    began = time.monotonic()
    for kind, share, longest in _SHARES:
        with tempfile.TemporaryDirectory(prefix="sdpersonal-attack-") as place:
            work, until = kind(Path(place)), began + seconds
            _kill_often(report, work, random.Random(seed), round(count * share), longest, until)
    with tempfile.TemporaryDirectory(prefix="sdpersonal-attack-") as place:
        _race(report, Path(place), seed, PROCESSES, operations)
    report.note(f"{time.monotonic() - began:.0f} s")


def _kill_often(report: Report, work: Work, rng: random.Random, count: int, longest: float, until: float) -> None:
    began = time.monotonic()
    work.prepare()
    problems: Counter[str] = Counter()
    killed = ended = 0
    while killed < count and time.monotonic() < until:
        lines, status = _killed(work, rng.randrange(2**31), rng.uniform(0.002, longest))
        killed += status == -signal.SIGKILL
        ended += status != -signal.SIGKILL
        if status > 0:
            problems["a child ended with a traceback, printed above"] += 1
        problems.update(set(work.problems(lines)))
        if ended > 3 * count + 20:
            break
    took = time.monotonic() - began
    for problem, number in problems.most_common(12):
        report.add(f"{work.name}, after {number} of {killed} kills", problem, False)
    finished = f", {work.finished} runs finished" if isinstance(work, TrainingWork) else ""
    came = f"{sum(problems.values())} problems{finished}; {took:.0f} s, {killed / took:.1f} a second"
    report.add(f"kill -9 over {work.name}, {killed} times", came, killed >= count and not problems)


def _killed(work: Work, seed: int, after: float) -> tuple[list[dict], int]:
    """Let the work go on in a child and kill it; return the lines of its log and its exit status."""
    with tempfile.TemporaryFile() as log:
        child = os.fork()
        if not child:
            _work_on(work, seed, log.fileno())
        time.sleep(after)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        log.seek(0)
        return [json.loads(line) for line in log.read().splitlines()], status


def _work_on(work: Work, seed: int, log: int) -> None:
    status = 1
    try:
        for _ in work.steps(
            random.Random(seed), lambda line: os.write(log, json.dumps(line).encode() + b"\n") and None
        ):
            pass
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _race(report: Report, place: Path, seed: int, processes: int, operations: int) -> None:
    """Let processes change one library at the same time; each ends every operation well or with a sentence."""
    work = LibraryWork(place)
    work.prepare()
    gate, opener = os.pipe()
    children = [_racer(gate, place, seed * 1000 + number, operations) for number in range(processes)]
    began = time.monotonic()
    os.write(opener, b"x" * processes)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    done, failed = sum(status for status in statuses if 0 <= status < 100), [s for s in statuses if not 0 <= s < 100]
    problems = work.state_problems() + [f"left over: {path}" for path in leftovers(place)]
    for problem in problems[:8]:
        report.add("a race", problem, False)
    came = f"{done} done, {processes * operations - done} refused in a sentence, {len(failed)} processes failed"
    took = time.monotonic() - began
    report.add(
        f"{processes} processes race, {processes * operations} operations",
        f"{came}; {took:.0f} s",
        not failed and not problems,
    )
    os.close(gate)
    os.close(opener)


def _racer(gate: int, place: Path, seed: int, operations: int) -> int:
    """Start a child that does some operations once the gate opens; its status is how many were not refused."""
    child = os.fork()
    if child:
        return child
    status = 100
    try:
        os.read(gate, 1)
        rng, done = random.Random(seed), 0
        work = LibraryWork(place)
        for _ in range(operations):
            with suppress(UserError):
                work._operation(rng)[2]()
                done += 1
        status = done
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)
