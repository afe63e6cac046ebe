"""What a client sends is limited before Gradio sees it: around a plain program, and around Gradio's own uploads."""

import contextlib
import json
import os
import re
import time
from pathlib import Path
from types import SimpleNamespace

import anyio
import fastapi
import httpx
import pytest
from gradio.route_utils import upload_fn

from sdpersonal.app.routes.requests import USER_KEY
from sdpersonal.app.server import request_bodies, uploads
from sdpersonal.app.server.request_bodies import FILE, LOGIN, MAX_BODY, MAX_FORM_PARTS, UPLOAD, RequestBodyMiddleware
from sdpersonal.app.server.uploads import MAX_PARTS, UploadDir

JOIN, CANCEL = "/gradio_api/queue/join", "/gradio_api/cancel"
JOBS = "/app/jobs"  # a route of the page


@pytest.fixture
def served(tmp_path):
    (tmp_path / "served").mkdir()
    return tmp_path / "served"


@pytest.fixture
def guarded(served):
    """Gradio's own reading of an upload, and a program that takes anything else, behind the limits."""
    inner, folder = fastapi.FastAPI(), UploadDir(served)

    @inner.post(UPLOAD)
    async def upload(request: fastapi.Request):
        return (await upload_fn(request, folder, 1 << 30, None, force_move=False))[0]

    @inner.api_route("/{path:path}", methods=["GET", "POST"])
    async def anything(request: fastapi.Request):
        return {"bytes": len(await request.body()), "range": request.headers.get("range")}

    inner.add_middleware(RequestBodyMiddleware, uploads=uploads.UploadFolders(served))
    return inner


def run(app, work):
    async def go():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x", timeout=20) as client:
            return await work(client)

    return anyio.run(go)


@pytest.fixture
def ask(guarded):
    def asked(method="GET", path="/", user="ann", **more):
        async def by_user(scope, receive, send):  # as `SecurityMiddleware` has it
            await guarded({**scope, USER_KEY: user}, receive, send)

        return run(by_user, lambda client: client.request(method, path, **more))

    return asked


async def talk(app, *messages, path=UPLOAD, content_type="multipart/form-data; boundary=B", length=None):
    """Send these messages, then nothing more; return the status, or None if there is no answer."""
    answers, pending = [], [*messages]

    async def receive():
        if pending:
            message = pending.pop(0)
            return message() if callable(message) else message
        await anyio.sleep_forever()

    async def send(message):
        answers.append(message)

    headers = [(b"content-type", content_type.encode())]
    headers += [(b"content-length", str(length).encode())] if length else []
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
    scope |= {"headers": headers, "scheme": "http", "server": ("x", 80), "client": ("10.0.0.9", 1), "root_path": ""}
    with anyio.move_on_after(5):
        await app(scope, receive, send)
    return next((answer["status"] for answer in answers if "status" in answer), None)


def stored(folder):
    return [Path(parent, name) for parent, _, names in os.walk(folder) for name in names]


def bytes_in(folder):
    total = 0
    for path in stored(folder):
        with contextlib.suppress(FileNotFoundError):  # deleted in another thread
            total += path.stat().st_size
    return total


def chunk(body, more=True):
    return {"type": "http.request", "body": body, "more_body": more}


GONE = {"type": "http.disconnect"}


def file_part(content=b"x", name="a.png", field="files"):
    head = f'--B\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'
    return head.encode() + content + b"\r\n"


END = b"--B--\r\n"


# --- bodies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [JOIN, JOBS, "/gradio_api/call/v2/generate"])
def test_long_bodies_are_refused_by_content_length_and_by_actual_size(ask, path):
    announced = ask("POST", path, headers={"Content-Length": "10000000000"}, content=b"x")
    assert announced.status_code == 413

    async def slowly():
        for _ in range(MAX_BODY // 50_000 + 2):
            yield b"1" * 50_000

    assert ask("POST", path, content=slowly()).status_code == 413
    for wrong in ("-1", "\u00b2", "9" * 5000):
        assert ask("POST", path, headers={"Content-Length": wrong.encode("utf-8")}, content=b"").status_code in (
            400,
            413,
        )
    assert ask("POST", path, content=b'{"data": ["' + b"x" * 100_000 + b'"]}').json()["bytes"] > 100_000
    assert ask("POST", path, content=b"1" * (MAX_BODY + 1)).status_code == 413


@pytest.mark.parametrize(
    "path, body",
    [
        (JOIN, b'{"data": [' + b"{}," * 80_000 + b"0]}"),
        (JOIN, b'{"data": [' + b"0," * 100_000 + b"0]}"),
        (JOIN, b'{"data": ' + b"[" * 100_000),
        (JOBS, b'{"form": [' + b"0," * 100_000 + b"0]}"),
        (CANCEL, b'{"data": {' + b'"a":[],' * 30_000 + b'"b":0}}'),
        (LOGIN, b"a&" * 100_000),
    ],
)
def test_bodies_with_too_many_values_are_refused(ask, path, body):
    assert ask("POST", path, content=body).status_code == 413


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/json", "multipart/x; boundary=B"])
def test_bodies_are_checked_as_json_whatever_their_content_type(ask, content_type):
    headers = {"Content-Type": content_type}
    assert ask("POST", JOIN, content=b"[" + b"{}," * 80_000 + b"0]", headers=headers).status_code == 413
    assert ask("POST", JOIN, json=file_data("/etc/passwd"), headers=headers).status_code == 400


@pytest.mark.parametrize(
    "path",
    [
        "component_server",
        "process_recording",
        "run/x",
        "stream/x",
        "vibe-edit",
        "profiling/clear",
        "upload/x",
        "x/upload",
        "reset",
        "call/x/y",
    ],
)
def test_other_routes_and_methods_accept_no_body(ask, path):
    for method in ("POST", "PUT", "DELETE"):
        assert ask(method, f"/gradio_api/{path}", content=b"{}").status_code == 404
    for method in ("PUT", "DELETE", "PATCH"):
        assert ask(method, JOBS, content=b"{}").status_code == 404
    assert ask("POST", JOBS, content=b"").status_code == 200


def test_incomplete_bodies_never_reach_the_app(guarded, monkeypatch):
    assert anyio.run(lambda: talk(guarded, chunk(b"{"), GONE, path=JOIN)) is None
    monkeypatch.setattr(request_bodies, "RECEIVE_SECONDS", 0.05)
    assert anyio.run(lambda: talk(guarded, chunk(b"{"), path=JOIN)) == 408
    assert anyio.run(lambda: talk(guarded, chunk(file_part()))) == 408


def test_the_total_size_of_pending_bodies_is_limited(guarded, monkeypatch):
    monkeypatch.setattr(request_bodies, "_MAX_PENDING", 1000)
    assert anyio.run(lambda: talk(guarded, chunk(b"1" * 1001, more=False), path=JOIN)) == 503
    for _ in range(3):
        assert anyio.run(lambda: talk(guarded, chunk(b"1" * 900, more=False), path=JOIN)) == 200


@pytest.mark.parametrize("range_", ["bytes=0-1", "bytes=5-", "bytes=-5"])
def test_a_single_range_is_passed_on(ask, range_):
    assert ask(headers={"Range": range_}).json()["range"] == range_


@pytest.mark.parametrize("range_", ["bytes=" + "0-1," * 3000 + "5-6", "bytes=0-1,3-4", "bytes=a-b", "bytes=1-2-3", "x"])
def test_invalid_or_multiple_ranges_are_ignored(ask, range_):
    assert ask(headers={"Range": range_}).json()["range"] is None


# --- paths ------------------------------------------------------------------------------------------------------------


def file_data(path):
    return {"data": [None, [{"path": path, "meta": {"_type": "gradio.FileData"}}]], "fn_index": 1}


# How a body names an uploaded file.
NAMED = {
    "an event": (JOIN, file_data),
    "a call": ("/gradio_api/call/v2/generate", lambda path: {"prompt": "a cat", "init_image": {"path": path}}),
    "a job": (JOBS, lambda path: {"kind": "generate", "form": {"init": {"upload": path}}}),
    "photos": ("/app/drafts/x/photos", lambda path: {"uploads": [path]}),
    "deep": (JOBS, lambda path: [[{"a": {"uploads": [path]}}]]),
}


def sent(answer):
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("how", NAMED)
def test_bodies_may_name_only_uploads_of_the_same_user(ask, served, tmp_path, how):
    address, body = NAMED[how]
    files = {"files": ("a.png", b"ann's")}
    (mine,), (same,) = sent(ask("POST", UPLOAD, files=files)), sent(ask("POST", UPLOAD, files=files))
    assert mine != same  # the names tell nothing about another's upload of the same file
    (served / "page").mkdir()
    (served / "page" / "result.png").write_bytes(b"x")
    folder = re.sub("[^/]*/[^/]*$", "", mine)
    Path(folder, "link.png").symlink_to(tmp_path / "outside")
    (tmp_path / "outside").write_bytes(b"x")
    assert ask("POST", address, json=body(mine)).status_code == 200
    assert ask("POST", address, json=body(None)).status_code == ask("POST", address, json=body("")).status_code == 200
    for other in ("bob", ""):
        assert ask("POST", address, json=body(mine), user=other).status_code == 400
    refused = [str(served), str(served / "page"), folder, f"{folder}/../page/result.png", str(tmp_path / "outside")]
    refused += [str(served / "page" / "result.png"), str(Path(folder, "link.png")), f"{folder}/../{Path(folder).name}"]
    refused += ["http://127.0.0.1/x.png", "https://example.org/x.png", "a\0b", "x" * 100_000, "/etc/passwd", "page"]
    refused += [
        str(served / "page" / "gone.png"),
        f"{served}/{'x' * 5000}",
        "/" * 5000 + mine,
        7,
        {"a": 1},
        [mine],
        True,
    ]
    for path in refused:
        assert ask("POST", address, json=body(path)).status_code == 400, path
    escaped = json.dumps(body(str(served / "page")))
    for name in ("path", "upload", "uploads"):
        escaped = escaped.replace(f'"{name}"', f'"\\u00{ord(name[0]):02x}{name[1:]}"')
    assert ask("POST", address, content=escaped.encode()).status_code == 400
    assert ask("POST", address, content=b'{"data":').status_code == 400


def test_an_uploaded_file_is_served_only_to_its_user(ask, served):
    (mine,) = sent(ask("POST", UPLOAD, files={"files": ("a b.png", b"ann's")}))
    (served / "other.png").write_bytes(b"x")
    assert ask(path=f"{FILE}{mine}").status_code == 200
    assert ask(path=f"{FILE}{mine}", user="bob").status_code == ask(path=f"{FILE}{mine}", user="").status_code == 404
    for path in (served / "other.png", served, Path(mine).parent, "/etc/passwd", "http://127.0.0.1/", "", "C:\\x"):
        assert ask(path=f"{FILE}{path}").status_code == 404


# --- uploads ----------------------------------------------------------------------------------------------------------


def many(count):
    return [("files", (f"{i}.png", b"x" * 50)) for i in range(count)]


@pytest.mark.parametrize("count, status", [(MAX_PARTS - 1, 200), (MAX_PARTS, 200), (MAX_PARTS + 1, 413), (1000, 413)])
def test_uploads_of_too_many_files_are_refused(ask, served, count, status):
    assert ask("POST", UPLOAD, files=many(count)).status_code == status
    assert len(stored(served)) == (count if status == 200 else 0)


@pytest.mark.parametrize("count", [60, 61, 62])
@pytest.mark.parametrize("size", [1, 3, 1000, 1 << 20])
def test_the_file_count_is_checked_for_any_chunk_size(guarded, count, size):
    """The part too many may come in the last message, after which there is nothing to wait for."""
    body = file_part() * count + END
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    messages = [chunk(part, more=number < len(parts)) for number, part in enumerate(parts, 1)]
    assert anyio.run(lambda: talk(guarded, *messages)) == (200 if count <= MAX_PARTS else 413)


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data; BOUNDARY=B",
        "multipart/form-data; boundary =B",
        "multipart/form-data;xboundary=zzz; boundary=B",
        'Multipart/Form-Data; boundary="B"; boundary*=zzz',
        "multipart/form-data; boundary=zzz; boundary=B",
    ],
)
def test_files_are_counted_for_every_spelling_of_the_boundary(guarded, served, content_type):
    body = chunk(file_part() * 200 + END, more=False)
    assert anyio.run(lambda: talk(guarded, body, content_type=content_type)) in (400, 413)
    assert not list(served.iterdir())


@pytest.mark.parametrize("content_type", ["multipart/form-data", "text/plain", "", 'multipart/form-data; boundary=""'])
def test_uploads_without_a_multipart_boundary_are_refused(guarded, content_type):
    assert anyio.run(lambda: talk(guarded, chunk(file_part() + END, more=False), content_type=content_type)) == 400


FIELD = b'--B\r\nContent-Disposition: form-data; name="files"\r\n\r\nx\r\n'


@pytest.mark.parametrize(
    "body",
    [
        FIELD + END,  # Gradio keeps it in memory
        file_part() + FIELD + END,
        file_part(b"--B--") + FIELD + END,  # in the middle of a line this ends nothing
        file_part(b"--Bx") + FIELD + END,
        file_part(field="x") + END,  # which Gradio stores and forgets
        file_part().replace(b"\r\n\r\n", b"\r\n" + b"X: y\r\n" * 5000 + b"\r\n"),
        b"--B\r\n\r\n" + END,
    ],
)
def test_upload_parts_that_are_not_valid_files_are_refused(guarded, served, body):
    assert anyio.run(lambda: talk(guarded, chunk(body, more=False))) == 400
    assert not list(served.iterdir())


def test_a_login_form_of_too_many_parts_is_refused(guarded):
    """The login has two."""
    for parts, status in ((MAX_FORM_PARTS, 200), (MAX_FORM_PARTS + 1, 413)):
        body = chunk(file_part() * parts + END, more=False)
        assert anyio.run(lambda body=body: talk(guarded, body, path=LOGIN)) == status


@pytest.mark.parametrize("ending", [GONE, {"type": "http.request", "body": b"", "more_body": False}])
def test_an_interrupted_upload_leaves_no_files(guarded, served, ending):
    part = file_part(b"x" * 300_000)

    def look():
        assert bytes_in(served) > 200_000
        return ending

    anyio.run(lambda: talk(guarded, chunk(part[:250_000]), look))
    assert not list(served.iterdir())


def test_concurrent_uploads_cannot_exceed_the_total_limit(guarded, served, monkeypatch):
    monkeypatch.setattr(uploads, "MAX_UPLOAD", 1_000_000)
    largest = 0

    def look(message):
        def measure():
            nonlocal largest
            largest = max(largest, bytes_in(served))
            return message

        return measure

    async def together():
        statuses = []

        async def one():
            head = [file_part(b"")[:-2], *[b"x" * 50_000] * 10]
            statuses.append(await talk(guarded, *(look(chunk(part)) for part in head), look(GONE), length=900_000))

        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(one)
        return statuses

    statuses = anyio.run(together)
    assert 507 in statuses and 0 < largest <= 1_000_000
    assert not list(served.iterdir())
    sent(run(guarded, lambda client: client.post(UPLOAD, files={"files": ("a", b"x" * 900_000)})))
    assert run(guarded, lambda client: client.post(UPLOAD, files={"files": ("a", b"x" * 900_000)})).status_code == 507


def test_upload_space_is_freed_when_a_file_is_used_or_expires(ask, served, monkeypatch):
    monkeypatch.setattr(uploads, "MAX_UPLOAD", 1_000_000)
    big, small = {"files": ("a", b"x" * 900_000)}, {"files": ("a", b"x" * 200_000)}
    (path,) = sent(ask("POST", UPLOAD, files=big))
    assert ask("POST", UPLOAD, files=small, user="bob").status_code == 507
    Path(path).unlink()
    (theirs,) = sent(ask("POST", UPLOAD, files=small, user="bob"))
    sent(ask("POST", UPLOAD, files={"files": ("a", b"x" * 700_000)}))
    clock = time.monotonic() + 100
    monkeypatch.setattr(uploads, "time", SimpleNamespace(monotonic=lambda: clock))
    sent(ask("POST", UPLOAD, files=small, user="bob"))  # whoever has most makes room
    assert Path(theirs).exists()
    clock += 4000
    sent(ask("POST", UPLOAD, files=small, user="bob"))
    assert len(stored(served)) == 1


def test_running_and_unused_uploads_of_a_user_are_limited(served, monkeypatch):
    monkeypatch.setattr(uploads, "_MAX_RUNNING", 2)
    monkeypatch.setattr(uploads, "_MAX_ENDED", 3)
    folders = uploads.UploadFolders(served)
    running = [folders.begin("ann") for _ in range(2)]
    with pytest.raises(uploads.Refusal, match="Too many uploads"):
        folders.begin("ann")
    folders.begin("bob")
    for upload in running:
        folders.end(upload, succeeded=False)
    for _ in range(6):
        upload = folders.begin("ann")
        (upload.folder / "sum").mkdir()
        (upload.folder / "sum" / "a.png").write_bytes(b"x")
        folders.end(upload, succeeded=True)
    assert len(stored(served)) == 3 and upload.folder.exists() and len(list(served.iterdir())) == 4


def test_uploads_are_refused_when_the_disk_is_nearly_full(ask, served, monkeypatch):
    monkeypatch.setattr(uploads, "MIN_FREE_DISK", 1 << 60)
    assert "disk is nearly full" in ask("POST", UPLOAD, files=many(1)).text
    assert not list(served.iterdir())


def test_an_empty_file_can_be_uploaded(ask):
    (path,) = sent(ask("POST", UPLOAD, files={"files": ("empty.png", b"")}))
    assert ask("POST", JOIN, json=file_data(path)).status_code == 200


def test_upload_progress_is_deleted_after_it_is_read(ask, monkeypatch):
    from gradio.routes import file_upload_statuses

    file_upload_statuses.track("short")
    ask("GET", "/gradio_api/upload_progress?upload_id=short")
    assert "short" not in file_upload_statuses._statuses and "short" not in file_upload_statuses._signals
    assert ask("POST", UPLOAD + "?upload_id=" + "x" * 1000, files=many(1)).status_code == 400
