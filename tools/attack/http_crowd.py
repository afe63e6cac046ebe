"""Forty honest clients who draw, beside ten who attack: every honest image comes, and the memory goes back."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections import Counter
from contextlib import suppress

import httpx

from .http_checks import FORM, JSON, MULTIPART, draw
from .http_server import HONEST, HOSTILE, Target, session_hash
from .outcomes import Report

_STAYS = 120_000_000  # bytes that allocators keep after a crowd
_BUSY = ("queue is full", "jobs waiting", "Too many of your requests")


def crowd(target: Target, report: Report, seconds: float) -> None:
    """Let honest and hostile clients use the server at the same time, then look at what came and what stayed."""
    warm = time.monotonic() + min(10.0, seconds)  # the honest ones alone: then all buffers are there
    _run_all(
        [(_honest, number, f"127.0.0.{30 + number}") for number in range(HONEST)], target, warm, Counter(), Counter()
    )
    before = target.memory
    until = time.monotonic() + seconds
    counts: Counter[str] = Counter()
    problems: Counter[str] = Counter()
    works = [(_honest, number, f"127.0.0.{30 + number}") for number in range(HONEST)]
    works += [(_hostile, number, f"127.0.0.{100 + number}") for number in range(HOSTILE)]
    all_ended = _run_all(works, target, until, counts, problems)
    report.add(
        f"{HONEST} honest clients beside {HOSTILE} hostile ones, {seconds:.0f} s",
        f"{counts['drawn']} images drawn, {counts['busy']} times busy and tried again, {counts['attacks']} attacks, "
        f"{sum(problems.values())} honest requests failed",
        counts["drawn"] > 0 and not problems and all_ended,
    )
    for problem, number in problems.most_common(5):
        report.add(f"an honest client ({number} times)", problem, False)
    end = time.monotonic() + 20
    while (stayed := target.memory - before) > _STAYS and time.monotonic() < end:
        time.sleep(1)
    report.add("memory after the crowd", f"{before / 1e6:.0f} MB before, +{stayed / 1e6:.0f} MB after", stayed < _STAYS)
    began = time.monotonic()
    with target.client("127.0.0.30", "h0") as first:
        job = draw(first)
    came = f"{job['message'][:60]} after {time.monotonic() - began:.1f} s"
    report.add("an image after the crowd", came, job["state"] == "done")


def _run_all(works: list, target: Target, until: float, counts: Counter, problems: Counter) -> bool:
    """Run the clients in a thread each; return whether all of them ended."""
    threads = [
        threading.Thread(target=work, args=(target, number, address, until, counts, problems), daemon=True)
        for work, number, address in works
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0, until - time.monotonic()) + 180)
    return not any(thread.is_alive() for thread in threads)


def _honest(target: Target, number: int, address: str, until: float, counts: Counter, problems: Counter) -> None:
    rng = random.Random(number)
    try:
        with target.client(address, f"h{number}") as client:
            while time.monotonic() < until:
                job = draw(client)
                if job["state"] == "done" and len(job["images"]) == 1:
                    counts["drawn"] += 1
                elif any(word in job["message"] for word in _BUSY):
                    counts["busy"] += 1
                else:
                    problems[f"{job['state']}: {job['message'][:200]}"] += 1
                time.sleep(rng.uniform(0.5, 3))
    except (httpx.HTTPError, AssertionError, StopIteration, ValueError) as error:
        problems[f"{type(error).__name__}: {str(error)[:120]}"] += 1


def _hostile(target: Target, number: int, address: str, until: float, counts: Counter, problems: Counter) -> None:
    """Attack in turn in every way that the checks know; what comes of it does not matter here."""
    rng = random.Random(1000 + number)
    while time.monotonic() < until:
        refused = suppress(httpx.HTTPError, OSError, AssertionError, KeyError, StopIteration, ValueError)
        with refused, target.client(address, f"x{number}") as client:
            while time.monotonic() < until:
                counts["attacks"] += 1
                with suppress(httpx.HTTPError, OSError):
                    _attack(target, client, address, rng)
                time.sleep(0.05)


def _attack(target: Target, client: httpx.Client, address: str, rng: random.Random) -> None:
    match rng.randrange(9):
        case 0:
            _streams(target, client, address, rng)
        case 1:
            with target.connect(address) as connection:
                head = target.head("POST", "/gradio_api/upload", MULTIPART, "Content-Length: 900000000", client=client)
                connection.sendall(head + os.urandom(1 << 20))
        case 2:
            path = rng.choice(["/app/jobs", "/gradio_api/queue/join", "/app/drafts"])
            client.post(path, content='{"data":[' + "[" * 500_000, headers=JSON, timeout=20)
        case 3:
            value = rng.choice([None, {"upload": "/etc/passwd"}, -1, 1e308, [["x"]], "x" * 10_000])
            body = {"kind": rng.choice(["generate", "grid", "redo", "x"]), "form": value, "image": value}
            client.post(rng.choice(["/app/jobs", "/app/prompt/check", "/app/gallery/zip"]), json=body, timeout=20)
        case 4:
            body = {"data": [], "fn_index": rng.randrange(60), "session_hash": session_hash()}
            client.post("/gradio_api/queue/join", json=body, timeout=20)
        case 5:
            with target.connect(address) as connection:
                connection.sendall(
                    target.head("POST", "/login", FORM, "Content-Length: 30") + b"username=h1&password=x"
                )
        case 6:
            files = [("files", (f"{i}.png", b"x" * 100)) for i in range(61)]
            client.post("/gradio_api/upload", files=files, timeout=20)
        case 7:
            name = rng.choice(["generate", "train", "progress", "list", "import", "export", "cancel"])
            value = rng.choice([None, {"path": "/etc/passwd"}, -1, 1e308, [["x"]], "x" * 10_000])
            names = ("prompt", "files", "photos", "name", "id", "what", "token", "settings")
            body = {key: value for key in rng.sample(names, 2)}
            client.post(f"/gradio_api/call/v2/{name}", content=json.dumps(body), headers=JSON, timeout=20)
        case _:
            for _ in range(60):  # more than a share of the queue
                form = {"prompt": "x", "num_images": 8, "steps": 20, "width": 128, "height": 128}
                client.post("/app/jobs", json={"kind": "generate", "form": form}, timeout=20)
            client.post("/app/jobs/stop", timeout=20)


def _streams(target: Target, client: httpx.Client, address: str, rng: random.Random) -> None:
    connections = [target.connect(address) for _ in range(20)]
    for connection in connections:
        known = client if rng.random() < 0.5 else None
        path = rng.choice(["/app/events", f"/gradio_api/heartbeat/{session_hash()}"])
        connection.sendall(target.head("GET", path, client=known))
    time.sleep(0.2)
    for connection in connections:
        connection.close()
