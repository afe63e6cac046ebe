"""Attacks on a running server with passwords, over the loopback: strangers come from an address of their own.

Linux answers on all of 127.0.0.0/8, so that what one address does can be told from what it does to others.
"""

from __future__ import annotations

import os
import re
import resource
import secrets
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from support.serving import Server
from support.stock import small_library

from .outcomes import Report

HONEST, HOSTILE = 40, 10  # clients of the crowd
ANN, BOB, STRANGER = "127.0.0.2", "127.0.0.3", "127.0.0.9"
MEMORY = 50_000_000  # bytes that a request may cost
PASSWORD = "correct horse {}"
_MOST_MEMORY = 8_000_000_000  # bytes that the server can have, so that an attack that succeeds ends it, not the machine


class Target:
    """The server under attack, with users ann, bob, h0... and x0...: honest and hostile ones."""

    def __init__(self, server: Server):
        self.server, self.port = server, server.port

    @contextmanager
    def client(self, address: str = STRANGER, user: str | None = None) -> Iterator[httpx.Client]:
        """Yield a client at an address, logged in as a user if one is named."""
        transport = httpx.HTTPTransport(local_address=address)
        with httpx.Client(base_url=self.server.url, transport=transport, timeout=60, trust_env=False) as made:
            if user:
                sent = made.post("/login", data={"username": user, "password": PASSWORD.format(user)})
                assert sent.status_code == 200, f"{user} cannot log in: {sent.status_code} {sent.text[:100]}"
            yield made

    def connect(self, address: str = STRANGER) -> socket.socket:
        """Return an open connection from an address."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=30, source_address=(address, 0))

    def head(self, method: str, path: str, *lines: str, client: httpx.Client | None = None) -> bytes:
        """Return the head of a request, with a client's cookies."""
        cookies = "; ".join(f"{name}={value}" for name, value in client.cookies.items()) if client else ""
        more = [f"Cookie: {cookies}"] if cookies else []
        return "\r\n".join(
            [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{self.port}", *more, *lines, "", ""]
        ).encode()

    @property
    def memory(self) -> int:
        """Return the bytes that the server has in memory."""
        return _status(self.server.process.pid, "VmRSS")

    @contextmanager
    def peak(self) -> Iterator[Callable[[], int]]:
        """Yield a function that returns by how many bytes the server grew at the most since."""
        pid, before = self.server.process.pid, self.memory
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak begins anew
        yield lambda: _status(pid, "VmHWM") - before

    @property
    def folders(self) -> list[Path]:
        """Return the folders that the server keeps in its folder for temporary files."""
        return list(self.server.place.glob("sdpersonal-*"))

    def uploaded_bytes(self) -> int:
        """Return the bytes of all files in those folders."""
        sizes = []
        for folder in self.folders:
            for path in folder.rglob("*"):
                with open_or_gone(path) as size:
                    sizes.append(size)
        return sum(sizes)


@contextmanager
def open_or_gone(path: Path) -> Iterator[int]:
    """Yield a file's size, 0 where it is gone or a folder."""
    try:
        size = path.stat().st_size if path.is_file() else 0
    except OSError:
        size = 0
    yield size


def _status(pid: int, field: str) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(rf"^{field}:\s+(\d+)", text, re.MULTILINE)[1]) * 1024  # type: ignore[index]  # always there


@contextmanager
def started() -> Iterator[Target]:
    """Start a server in a folder of its own, and end it."""
    with tempfile.TemporaryDirectory(prefix="attack-") as name:
        place = Path(name)
        small_library(place / "concepts")
        users = ["ann", "bob", *(f"h{i}" for i in range(HONEST)), *(f"x{i}" for i in range(HOSTILE))]
        passwords = place / "passwords"
        passwords.write_text("".join(f"{user}:{PASSWORD.format(user)}\n" for user in users))
        passwords.chmod(0o600)
        with Server(place, "--listen", "--password-file", str(passwords), OMP_NUM_THREADS="1") as server:
            resource.prlimit(server.process.pid, resource.RLIMIT_DATA, (_MOST_MEMORY, _MOST_MEMORY))
            try:
                yield Target(server)
            except BaseException:
                server.process.kill()
                raise


def attack_server(
    report: Report, seed: int = 0, count: int = 1, seconds: float = 120.0, only: list[str] | None = None
) -> None:
    """Run every check; the last is a crowd of honest and hostile clients for `seconds` (0: none)."""
    from . import http_checks
    from .http_crowd import crowd

    checks: list[Callable[[Target, Report], None]] = [
        check for check in http_checks.CHECKS if not only or check.__name__ in only
    ]
    with started() as target:
        for check in checks:
            began = time.monotonic()
            run_check(check, target, report)
            if (took := time.monotonic() - began) > 5:
                report.note(f"{check.__name__} took {took:.0f} s")
        if seconds and (not only or "crowd" in only):
            crowd(target, report, seconds)
        report.add("the server ends when it is asked to", *_ended(target.server))
        report.note(f"errors in the server's log: {_errors(target.server.log.read_text(errors='replace')) or 'none'}")


def _ended(server: Server) -> tuple[str, bool]:
    """End the server; return its status, and whether it ended by itself within half a minute."""
    try:
        return f"status {server.end()}", True
    except subprocess.TimeoutExpired:
        server.process.kill()
        return "not within 30 s", False


def run_check(check: Callable[[Target, Report], None], target: Target, report: Report) -> None:
    """Run one check; an answer that it did not expect at all is a failure of its own."""
    try:
        check(target, report)
    except (httpx.HTTPError, OSError, AssertionError, KeyError, ValueError, StopIteration) as error:
        report.add(check.__name__.replace("_", " "), f"{type(error).__name__}: {str(error)[:200]}", False)


def _errors(log: str) -> str:
    return "; ".join(sorted({line[:120] for line in re.findall(r"^\w*(?:Error|Exception)\b.*", log, re.MULTILINE)}))[
        :600
    ]


def first_line(connection: socket.socket, seconds: float = 10.0) -> str:
    """Return the first line of an answer, "closed" or "no answer"."""
    connection.settimeout(seconds)
    data = b""
    try:
        while b"\r\n" not in data:
            part = connection.recv(4096)
            if not part:
                return "closed"
            data += part
    except TimeoutError:
        return "no answer"
    except OSError:
        return "closed"
    return data.partition(b"\r\n")[0].decode("latin-1")


def code(line: str) -> int:
    """Return the status of an answer's first line, 0 without one."""
    match = re.match(r"HTTP/1\.[01] (\d{3})", line)
    return int(match[1]) if match else 0


def all_at_once(works: list[Callable[[], object]]) -> list[object]:
    """Run functions in a thread each; return what they return, or the exception."""
    results: list[object] = [None] * len(works)

    def run(number: int, work: Callable[[], object]) -> None:
        try:
            results[number] = work()
        except Exception as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=pair, daemon=True) for pair in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return results


def session_hash() -> str:
    """Return a session's name as a page makes one up."""
    return secrets.token_hex(6)


def multipart(count: int, size: int, boundary: str = "B", field: str = "files", name: str = "{}.png") -> bytes:
    """Return the body of an upload of some files."""
    part = '--{b}\r\nContent-Disposition: form-data; name="{f}"; filename="{n}"\r\nContent-Type: image/png\r\n\r\n'
    parts = [
        part.format(b=boundary, f=field, n=name.format(i)).encode() + os.urandom(size) + b"\r\n" for i in range(count)
    ]
    return b"".join(parts) + f"--{boundary}--\r\n".encode()


def answer_time(target: Target) -> float:
    """Return the seconds that a stranger elsewhere waits for a small answer."""
    with target.client(ANN) as client:
        began = time.monotonic()
        client.get("/robots.txt")
        return time.monotonic() - began
