"""What a client sends is limited before Gradio sees it, around a plain program that takes everything."""

import anyio
import httpx
import pytest

from sdpersonal.app.ui import request_bodies
from sdpersonal.app.ui.request_bodies import MAX_BODY, MAX_PARTS, RequestBodyMiddleware


async def answering(scope, receive, send):
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"in"})


@pytest.fixture
def ask(tmp_path):
    app = RequestBodyMiddleware(answering, tmp_path)

    def asked(method="GET", path="/", **more):
        async def go():
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
                return await client.request(method, path, **more)

        return anyio.run(go)

    return asked


def test_a_long_body_is_refused_by_its_announcement_and_by_what_comes(ask):
    announced = ask("POST", "/queue/join", headers={"Content-Length": "10000000000"}, content=b"x")
    assert announced.status_code == 413

    async def slowly():
        for _ in range(MAX_BODY // 100_000 + 2):
            yield b"x" * 100_000

    assert ask("POST", "/queue/join", content=slowly()).status_code == 413
    assert ask("POST", "/queue/join", headers={"Content-Length": "-1"}, content=b"").status_code == 400


@pytest.mark.parametrize("count, status", [(MAX_PARTS, 200), (MAX_PARTS + 1, 413), (1000, 413)])
def test_many_files_at_once_are_refused(ask, count, status):
    files = [("files", (f"{i}.png", b"x" * 50)) for i in range(count)]
    assert ask("POST", "/gradio_api/upload", files=files).status_code == status


def test_what_was_sent_has_an_end(ask, tmp_path, monkeypatch):
    (tmp_path / "sent").write_bytes(b"x" * 2000)
    monkeypatch.setattr(request_bodies, "MAX_UPLOAD", 1000)
    assert ask("POST", "/gradio_api/upload", content=b"x").status_code == 507
    monkeypatch.setattr(request_bodies, "MAX_UPLOAD", 1 << 30)
    monkeypatch.setattr(request_bodies, "MIN_FREE_DISK", 1 << 60)
    assert "disk is nearly full" in ask("POST", "/gradio_api/upload", content=b"x").text
