"""The checks of a running server. Each asks for what it should not get, and says what came."""

from __future__ import annotations

import io
import json
import socket
import struct
import time
import zlib
from collections import Counter
from contextlib import suppress
from typing import Any

import httpx

from .http_server import (
    ANN,
    BOB,
    MEMORY,
    PASSWORD,
    STRANGER,
    Target,
    all_at_once,
    answer_time,
    code,
    first_line,
    multipart,
    session_hash,
)
from .outcomes import Report

FORM = "Content-Type: application/x-www-form-urlencoded"
JSON = {"Content-Type": "application/json"}
MULTIPART = "Content-Type: multipart/form-data; boundary=B"
TRIED, GUESSES = 5, 300
PATIENCE = 5.0  # seconds that others may wait, on a machine that is busy with other tests too


_APP_GETS = "state events jobs gallery concepts models trainings drafts images/2026-01-01/1.png x ../app/state"
_APP_POSTS = "jobs jobs/stop gallery/delete drafts models/switch concepts/import"
_API_GETS = """config info openapi.json queue/status queue/data?session_hash={0} startup-events file=x heartbeat/{0}
    user stream/{0}/1/1/playlist.m3u8 upload_progress?upload_id=x app_id deep_link file/x proxy=http://127.0.0.1:22/
    token call/generate/x call/v2/generate/x vibe-code runs dev/reload %68eartbeat/x"""
_API_POSTS = """queue/join cancel reset upload component_server stream/x stream/x/close run/generate api/generate
    call/generate call/v2/generate process_recording vibe-edit run-history/connect /queue/join queue/join/ ./reset"""
_OTHER_GETS = """/config /config/ /monitoring /monitoring/summary /docs /openapi.json //app/state /APP/state
    /app%2fstate /logout"""


def _split(start: str, names: str) -> list[str]:
    return [start + name for name in names.split()]


def strangers_get_nothing(target: Target, report: Report) -> None:
    """Everything but the login page needs a login."""
    hash_ = session_hash()
    gets = [*_split("/app/", _APP_GETS), *_split("/gradio_api/", _API_GETS.format(hash_)), *_split("", _OTHER_GETS)]
    posts = [*_split("/app/", _APP_POSTS), *_split("/gradio_api/", _API_POSTS), "/GRADIO_API/reset"]
    got = {}
    with target.client() as client:
        for path in gets:
            got[path] = _status_of(client, "GET", path)
        for path in posts:
            body = json.dumps({"session_hash": hash_, "fn_index": 0, "event_id": "x", "data": []})
            got[path] = _status_of(client, "POST", path, content=body, headers=JSON)
    opened = {path: status for path, status in got.items() if status not in (307, 400, 401, 403, 404, 405)}
    report.add(f"{len(got)} paths without a login", opened or "all refused", not opened)


def _status_of(client: httpx.Client, method: str, path: str, **more: object) -> int:
    """Return an answer's status; 200 of a stream that does not end is noticed at its head."""
    try:
        with client.stream(method, path, timeout=10, **more) as answer:  # type: ignore[arg-type]  # what httpx takes
            return answer.status_code
    except httpx.HTTPError:
        return 0


def anonymous_streams(target: Target, report: Report) -> None:
    """300 streams without a login are refused, and others are answered meanwhile."""
    connections = [target.connect() for _ in range(300)]
    for number, connection in enumerate(connections):
        path = "/app/events" if number % 2 else f"/gradio_api/heartbeat/anon{number}"
        connection.sendall(target.head("GET", path))
    during = max(answer_time(target) for _ in range(3))
    answers = Counter(code(first_line(connection, 5)) for connection in connections)
    for connection in connections:
        connection.close()
    after = max(answer_time(target) for _ in range(3))
    report.add("300 streams without a login", f"{dict(answers)}", set(answers) <= {401, 403})
    report.add("others meanwhile and after", f"{during:.2f} s, {after:.2f} s", max(during, after) <= PATIENCE)


def many_pages_of_one_user(target: Target, report: Report) -> None:
    """Open pages of one user are bounded, and another user's go on."""
    with target.client(ANN, "ann") as ann, target.client(BOB, "bob") as bob:
        connections = [target.connect(BOB) for _ in range(120)]
        for connection in connections:
            connection.sendall(target.head("GET", "/app/events", client=bob))
        waited = max(answer_time(target) for _ in range(3))
        answers = Counter(code(first_line(connection, 5)) for connection in connections)
        stream = _status_of(ann, "GET", "/app/events")
        job = draw(ann)
        for connection in connections:
            connection.close()
        time.sleep(0.5)
        came = f"{dict(answers)}, others after {waited:.2f} s"
        report.add("120 open pages of one user", came, waited <= PATIENCE and answers == {200: 100, 429: 20})
        works = stream == 200 and job["state"] == "done"
        report.add("another user meanwhile", f"{stream}, {job['message']}", works)


def draw(client: httpx.Client, **form: object) -> dict[str, Any]:
    """Generate a small image as a page does; return the job when it has ended, or its refusal as its message."""
    fields = {"prompt": "a cat on grass", "num_images": 1, "steps": 2, "width": 128, "height": 128, "seed": "0"}
    answer = client.post("/app/jobs", json={"kind": "generate", "form": fields | form})
    if answer.status_code != 200:
        return {"state": "refused", "message": f"{answer.status_code} {answer.text[:200]}", "images": []}
    job_id, until = answer.json()["id"], time.monotonic() + 120
    while time.monotonic() < until:
        jobs = client.get("/app/jobs").json()["jobs"]
        job = next((job for job in jobs if job["id"] == job_id), None)
        if job and job["state"] in ("done", "stopped", "failed"):
            return dict(job)
        time.sleep(0.2)
    return {"state": "lost", "message": "no end in 120 s", "images": []}


def foreign_things(target: Target, report: Report) -> None:
    """Jobs, images, uploads and sessions belong to the user whose they are."""
    hash_ = session_hash()
    with target.client(ANN, "ann") as ann, target.client(BOB, "bob") as bob:
        job = draw(ann)
        (image,) = job["images"]
        (upload,) = ann.post("/gradio_api/upload", files={"files": ("a.png", b"x" * 100)}).json()
        join = {"data": ["images", "", 1], "fn_index": 4, "session_hash": hash_}
        ann.post("/gradio_api/queue/join", json=join)
        event = ann.post("/gradio_api/call/v2/list", json={"what": "images"}).json()["event_id"]
        form = {"kind": "generate", "form": {"prompt": "x", "init": {"upload": upload}}}
        cancel = {"session_hash": hash_, "fn_index": 4, "event_id": event}
        got = {
            "image": _status_of(bob, "GET", image["url"]),
            "thumb": _status_of(bob, "GET", image["thumb"]),
            "facts": _status_of(bob, "GET", f"/app/gallery/image?id={image['id']}"),
            "redo": bob.post("/app/jobs", json={"kind": "redo", "image": image["id"]}).status_code,
            "cancel a job": bob.post(f"/app/jobs/{job['id']}/cancel").status_code,
            "upload": bob.post("/app/jobs", json=form).status_code,
            "file": _status_of(bob, "GET", f"/gradio_api/file={upload}"),
            "answer": _status_of(bob, "GET", f"/gradio_api/call/list/{event}"),
            "join": bob.post("/gradio_api/queue/join", json=join).status_code,
            "data": _status_of(bob, "GET", f"/gradio_api/queue/data?session_hash={hash_}"),
            "heartbeat": _status_of(bob, "GET", f"/gradio_api/heartbeat/{hash_}"),
            "cancel": bob.post("/gradio_api/cancel", json=cancel).status_code,
        }
        bob.post("/app/gallery/delete", json={"ids": [image["id"]]})
        bob.post("/app/jobs/stop")
        report.add("what is ann's, by bob", got, all(status in (400, 403, 404) for status in got.values()))
        hers = ann.get(image["url"]).status_code
        answer = ann.get(f"/gradio_api/call/list/{event}").text
        report.add("ann's own afterwards", hers, hers == 200 and "complete" in answer)


def odd_session_hashes(target: Target, report: Report) -> None:
    """Names of sessions that no page makes up are refused or harmless."""
    with target.client(BOB, "bob") as bob:
        values: list[object] = [None, 1, [], {}, "", "a" * 100_000, "\ud800", "../../x", "a/b", True, "a\0b"]
        got: Counter[str] = Counter()
        bodies: list[dict[str, object]] = [{"data": [], "fn_index": 0, "session_hash": value} for value in values]
        for index in (-1, "x", None, 10**30, {}, 1.5, 10**6):
            bodies.append({"data": [], "fn_index": index, "session_hash": session_hash()})
        for body in bodies:
            status = _status_of(bob, "POST", "/gradio_api/queue/join", content=json.dumps(body), headers=JSON)
            got["an error of the server" if status >= 500 else "no answer" if not status else "refused or ignored"] += 1
        asked = f"{len(bodies)} odd session hashes and numbers of handlers"
        report.add(asked, dict(got), set(got) == {"refused or ignored"})


# --- uploads ----------------------------------------------------------------------------------------------------------


def cut_uploads(target: Target, report: Report) -> None:
    """What was sent of an upload that ends early is gone, and does not count."""
    with target.client(BOB, "bob") as bob, target.client(ANN, "ann") as ann:
        before = target.uploaded_bytes()
        start = b'--B\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'

        def cut(announced: int, sent: int) -> None:
            with target.connect(BOB) as connection:
                head = target.head("POST", "/gradio_api/upload", MULTIPART, f"Content-Length: {announced}", client=bob)
                connection.sendall(head + start)
                piece = bytes(1 << 20)
                try:
                    for _ in range(sent >> 20):
                        connection.sendall(piece)
                    time.sleep(0.3)
                except OSError:
                    pass

        cut(90_000_000, 2 << 20)
        all_at_once([lambda: cut(1_000_000_000, 20 << 20)] * 5)
        left = _settled(target, before)
        report.add("six uploads that were cut", f"{left / 1e6:.1f} MB stay", left < 100_000)
        others = {
            "under another field": multipart(1, 3_000_000, field="x"),
            "without a file name": multipart(1, 3_000_000).replace(b'; filename="0.png"', b""),
            "without its end": multipart(2, 1_500_000)[:-40],
            "with text after it": multipart(1, 3_000_000) + b"x" * 1000,
        }
        for name, body in others.items():
            before = target.uploaded_bytes()
            headers = {"Content-Type": "multipart/form-data; boundary=B"}
            status = _status_of(bob, "POST", "/gradio_api/upload", content=body, headers=headers)
            taken = status == 200 and name in ("without its end", "with text after it")  # whole files are in those
            left = 0 if taken else _settled(target, before)
            right = (taken or 400 <= status < 500) and left < 100_000
            report.add(f"an upload {name}", f"{status}, {left / 1e6:.1f} MB stay", right)
        sent = ann.post("/gradio_api/upload", files={"files": ("a.png", b"x" * 1000)})
        report.add("another user's upload afterwards", sent.status_code, sent.status_code == 200)


def _settled(target: Target, before: int) -> int:
    """Return by how many bytes the uploaded files have grown, after a few seconds at the most."""
    end = time.monotonic() + 8
    while (left := target.uploaded_bytes() - before) > 100_000 and time.monotonic() < end:
        time.sleep(0.2)
    return left


def sixty_one_files(target: Target, report: Report) -> None:
    """Too many files at once are answered, whatever their number and size."""
    with target.client(BOB, "bob") as bob:
        got = {}
        headers = {"Content-Type": "multipart/form-data; boundary=B"}
        for count, size in ((60, 100), (61, 100), (62, 100), (70, 100), (61, 3000), (62, 50_000), (200, 10)):
            began = time.monotonic()
            status = _status_of(bob, "POST", "/gradio_api/upload", content=multipart(count, size), headers=headers)
            got[f"{count} of {size} bytes"] = (status, round(time.monotonic() - began, 1))
        right = all(
            status == 200 if name.startswith("60 ") else status in (400, 413) for name, (status, _) in got.items()
        )
        report.add("60, 61, 62, 70 and 200 files", got, right)


def odd_boundaries(target: Target, report: Report) -> None:
    """The parts are counted by the boundary that the parser uses, however it is written."""
    with target.client(BOB, "bob") as bob:
        types = [
            "multipart/form-data; BOUNDARY=B",
            "multipart/form-data; boundary =B",
            "multipart/form-data;boundary=B",
        ]
        types += ["multipart/form-data; xboundary=zzz; boundary=B", 'multipart/form-data; boundary="B"; boundary=C']
        types += ['multipart/form-data; a="boundary=zzz"; boundary=B', "multipart/form-data; boundary=B; charset=x"]
        types += [
            "Multipart/Form-Data; Boundary=B",
            "multipart/form-data; boundary*=utf-8''B",
            "multipart/mixed; boundary=B",
        ]
        types += [
            "multipart/form-data",
            "multipart/form-data; boundary=",
            "multipart/form-data; boundary=" + "B" * 5000,
        ]
        types += ["multipart/form-data; boundary=\xe9", "application/json", "text/plain; boundary=B"]
        body = multipart(200, 10)
        got = {}
        for kind in types:
            headers = {"Content-Type": kind.encode("latin-1")}
            got[kind[:60]] = _status_of(bob, "POST", "/gradio_api/upload", content=body, headers=headers)
        report.add(
            f"200 files with {len(types)} odd boundaries", got, all(400 <= status < 500 for status in got.values())
        )


# --- memory -----------------------------------------------------------------------------------------------------------


def images_of_many_pixels(target: Target, report: Report) -> None:
    """A small file of many pixels is refused by its size, before it is decoded."""
    with target.client(BOB, "bob") as bob:
        big = _black_png(13_300)
        sent = bob.post("/gradio_api/upload", files=[("files", ("big.png", big))] * 2)
        if sent.status_code != 200:
            report.add("an image of 13,300 x 13,300", f"refused: {sent.status_code}", True)
            return
        image, mask = sent.json()
        with target.peak() as grown:
            job = draw(bob, init={"upload": image}, mask={"upload": mask})
            read = bob.post("/app/settings/read", json={"upload": image})
            peak = grown()
        came = f"memory +{peak / 1e6:.0f} MB, {job['message'][:90]}, {read.status_code}"
        report.add("an image of 13,300 x 13,300 with a mask", came, peak < 2 * MEMORY and job["state"] == "refused")


def _black_png(side: int) -> bytes:
    """Return a PNG of one colour, made row by row."""
    packer, out = zlib.compressobj(9), io.BytesIO()
    row = bytes(1 + side * 3)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    out.write(b"\x89PNG\r\n\x1a\n")
    for kind, content in (
        (b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)),
        (b"IDAT", data),
        (b"IEND", b""),
    ):
        out.write(struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content)))
    return out.getvalue()


def big_json(target: Target, report: Report) -> None:
    """A request of 2 MB costs at most 50 MB, and nothing of it stays; nor does one that is small enough to be read."""
    with target.client(BOB, "bob") as bob:
        rest = target.memory
        for share in (1.0, 0.1):
            for name, body in _json_bodies(share).items():
                path = "/app/jobs" if len(name) % 2 else "/gradio_api/queue/join"
                with target.peak() as grown:
                    began = time.monotonic()
                    status = _status_of(bob, "POST", path, content=body, headers=JSON)
                    took, peak = time.monotonic() - began, grown()
                right = 0 < status < 500 and peak < MEMORY and took < 3
                came = f"{status} after {took:.1f} s, memory +{peak / 1e6:.0f} MB"
                report.add(f"{len(body) // 1000:,} kB of JSON, {name}", came, right)
        time.sleep(1)
        stayed = target.memory - rest
        report.add("what stays of them", f"{stayed / 1e6:.0f} MB", stayed < MEMORY)


def _json_bodies(share: float) -> dict[str, str]:
    """Return bodies that are costly to parse, of 2 MB at a share of 1."""
    end = '],"fn_index":0,"session_hash":"%s"}'

    def times(count: int) -> int:
        return round(count * share)

    return {
        "nested": '{"data":' + "[" * times(900_000) + "]" * times(900_000) + "}",
        "keys": '{"data":[{' + ",".join(f'"{i}":1' for i in range(times(150_000))) + "}" + end % session_hash(),
        "numbers": '{"data":[' + ",".join(["1"] * times(900_000)) + end % session_hash(),
        "lists": '{"data":[' + ",".join(["[]"] * times(600_000)) + end % session_hash(),
        "a long number": '{"data":[' + "9" * times(1_900_000) + end % session_hash(),
        "one text": '{"data":["' + "a" * times(1_900_000) + '"' + end % session_hash(),
        "escapes": '{"data":["' + "\\ud800" * times(300_000) + '"' + end % session_hash(),
        "no JSON": "x" * times(1_900_000),
    }


# --- HTTP -------------------------------------------------------------------------------------------------------------


def smuggling(target: Target, report: Report) -> None:
    """A request whose length is in doubt is refused; a second one is never hidden in it."""
    hidden = f"GET /config HTTP/1.1\r\nHost: 127.0.0.1:{target.port}\r\n\r\n".encode()
    post, host = b"POST /login HTTP/1.1\r\n", f"Host: 127.0.0.1:{target.port}\r\n".encode()
    long_ = str(len(hidden)).encode()
    requests = {
        "two lengths": post + host + b"Content-Length: 0\r\nContent-Length: " + long_ + b"\r\n\r\n" + hidden,
        "a length and chunks": post
        + host
        + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        + hidden,
        "chunks twice": post + host + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n" + hidden,
        "odd chunks": post + host + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + hidden,
        "a bad chunk": post + host + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n" + hidden,
        "a chunk of 2^64": post + host + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 17 + b"\r\n\r\n" + hidden,
        "two hosts": b"GET /config HTTP/1.1\r\n" + host + b"Host: evil.example\r\n\r\n",
        "no host": b"GET /config HTTP/1.1\r\n\r\n",
        "another host": b"GET /config HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        "an absolute target": b"GET http://evil.example/config HTTP/1.1\r\n" + host + b"\r\n",
        "a space before the colon": post + host + b"Content-Length : 5\r\n\r\nhello" + hidden,
        "a folded header": post + host + b"X: a\r\n Content-Length: 5\r\n\r\n",
        "a bare line end": post + host + b"X: a\nContent-Length: 5\r\n\r\nhello",
        "a length with a sign": post + host + b"Content-Length: +5\r\n\r\nhello",
        "a length of digits elsewhere": post + host + b"Content-Length: \xd9\xa3\r\n\r\nhel",
        "a head of 200 kB": b"GET / HTTP/1.1\r\n" + host + b"X: " + b"a" * 200_000 + b"\r\n\r\n",
        "1,000 headers": b"GET /config HTTP/1.1\r\n"
        + host
        + b"".join(b"X%d: a\r\n" % i for i in range(1000))
        + b"\r\n",
    }

    def answers(raw: bytes) -> list[int]:
        with target.connect() as connection:
            connection.sendall(raw)
            lines = _all_of(connection).split(b"\r\n")
            return [int(line.split()[1]) for line in lines if line.startswith(b"HTTP/1.1 ")]

    results = all_at_once([lambda raw=raw: answers(raw) for raw in requests.values()])
    got = {name: result if isinstance(result, list) else [] for name, result in zip(requests, results, strict=True)}
    opened = {
        name: codes for name, codes in got.items() if 200 in codes or len(codes) > 1 or any(c >= 500 for c in codes)
    }
    report.add(f"{len(requests)} requests whose length or host is in doubt", opened or "all refused", not opened)


def other_sites(target: Target, report: Report) -> None:
    """Another site's page can neither read, nor send, nor frame."""
    with target.client(ANN, "ann") as ann:
        origins = ["http://evil.example", "null", f"https://127.0.0.1:{target.port}", "http://127.0.0.1:1", "file://"]
        paths = ("/config", "/app/state", "/app/events", "/app/gallery")
        got = {
            f"{path} {origin}": ann.get(path, headers={"Origin": origin}).status_code
            for origin in origins
            for path in paths
        }
        page = ann.get("/")
        names = ("x-frame-options", "content-security-policy", "x-content-type-options")
        missing = [name for name in names if name not in page.headers]
        report.add("requests of other sites", got, set(got.values()) == {403})
        report.add("headers against frames", f"missing: {missing}" if missing else "all there", not missing)


def half_open_connections(target: Target, report: Report) -> None:
    """200 connections that send half a head do not keep others waiting."""
    connections = [target.connect() for _ in range(200)]
    for connection in connections:
        connection.sendall(b"POST /login HTTP/1.1\r\nHost: 127")
    waited = max(answer_time(target) for _ in range(3))
    for connection in connections:
        connection.close()
    report.add("200 half-open connections", f"others after {waited:.2f} s", waited <= 2 * PATIENCE)


def _all_of(connection: socket.socket) -> bytes:
    """Return everything that is answered until the connection ends or 2 seconds are over."""
    connection.settimeout(2)
    data = b""
    with suppress(OSError):
        while part := connection.recv(65536):
            data += part
    return data


def parallel_guesses(target: Target, report: Report) -> None:
    """Of 300 guesses at once from one address at most five are tried; others can log in."""
    right = PASSWORD.format("ann").replace(" ", "+")
    bodies = [f"username=ann&password=guess+{i:04d}" for i in range(GUESSES - 1)] + [f"username=ann&password={right}"]
    connections = [target.connect(STRANGER) for _ in bodies]
    for number, (connection, body) in enumerate(zip(connections, bodies, strict=True)):
        more = [f"X-Forwarded-For: 10.1.2.{number % 250}", f"Forwarded: for=10.1.3.{number % 250}"]
        connection.sendall(target.head("POST", "/login", FORM, f"Content-Length: {len(body)}", *more))
    time.sleep(0.5)
    for connection, body in zip(connections, bodies, strict=True):
        try:
            connection.sendall(body.encode())
        except OSError:
            continue
    answers = Counter(code(first_line(connection)) for connection in connections)
    for connection in connections:
        connection.close()
    tried = answers[400] + answers[200] + answers[401]
    report.add(f"{GUESSES} parallel guesses from one address", f"{tried} tried: {dict(answers)}", tried <= TRIED)
    forms = {}
    body = "username=ann&password=wrong"
    for path in (
        "/login",
        "/login/",
        "//login",
        "///login",
        "/login?x",
        "/%6cogin",
        "/./login",
        "/x/../login",
        "/LOGIN",
    ):
        with target.connect(STRANGER) as connection:
            more = ["X-Forwarded-For: 10.9.9.9", f"Content-Length: {len(body)}", "Connection: close"]
            connection.sendall(target.head("POST", path, FORM, *more) + body.encode())
            forms[path] = "tried" if b"credentials" in _all_of(connection) else "not tried"
    report.add("the next ones, in other spellings", forms, set(forms.values()) == {"not tried"})
    with target.client(ANN) as elsewhere:
        sent = elsewhere.post("/login", data={"username": "ann", "password": PASSWORD.format("ann")})
        report.add("the right password from another address", sent.status_code, sent.status_code == 200)


CHECKS = [
    strangers_get_nothing,
    anonymous_streams,
    many_pages_of_one_user,
    foreign_things,
    odd_session_hashes,
    cut_uploads,
    sixty_one_files,
    odd_boundaries,
    images_of_many_pixels,
    big_json,
    smuggling,
    other_sites,
    half_open_connections,
    parallel_guesses,
]
