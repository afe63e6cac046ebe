"""The app ends when it is asked to, whatever is open and whoever waits; open pages are told."""

import _thread
import threading
import time
from contextlib import suppress
from types import SimpleNamespace

import gradio as gr
import httpx
import pytest

from sdpersonal.app.backend import EventHub
from sdpersonal.app.routes import events
from sdpersonal.app.server.auth import Access
from sdpersonal.app.server.server import serve
from support import browser as browsers


@pytest.fixture
def server(monkeypatch):
    """A server with the stream of events, and an endpoint that ends when it is told to."""
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")  # as `isolate_gradio` does
    stop, hub = threading.Event(), EventHub()
    server = gr.Server(docs_url=None, openapi_url=None)
    server.include_router(events.router(SimpleNamespace(events=hub)))

    @server.api(name="endless")
    def endless(start: int) -> int:
        number = start
        while not stop.wait(0.05):
            yield (number := number + 1)

    def end_jobs():
        hub.publish_to_all("closing", {})
        stop.set()

    server.end_jobs = end_jobs
    return server


def test_the_app_ends_despite_open_pages_streams_and_jobs(server, tmp_path):
    """Ctrl-C; SIGTERM is the same to the program."""
    port, opened, told = browsers.free_port(), [], []

    def watch(http, ready):
        with suppress(httpx.HTTPError), http.stream("GET", "/app/events") as stream:
            for line in stream.iter_lines():
                told.append(line)
                ready.set()

    def visit():
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False) as http:
            ready = threading.Event()
            threading.Thread(target=watch, args=(http, ready), daemon=True).start()
            event = http.post("/gradio_api/call/endless", json={"data": [1]}).json()["event_id"]
            with (
                http.stream("GET", "/gradio_api/heartbeat/a") as heartbeat,
                http.stream("GET", f"/gradio_api/call/endless/{event}") as stream,
                http.stream("GET", "/gradio_api/heartbeat/b"),
            ):
                opened.append(heartbeat.status_code)
                opened.append(next(line for line in stream.iter_lines() if line.startswith("data: [")))
                ready.wait(10)
                began = time.monotonic()
                _thread.interrupt_main()
                server.get_blocks().server.thread.join(30)
                opened.append(time.monotonic() - began < 4)

    visitor = threading.Thread(target=visit, daemon=True)
    serve(server, Access(port), tmp_path, [], lambda line: visitor.start(), server.end_jobs)
    visitor.join(10)
    assert not server.get_blocks().server.thread.is_alive()
    assert opened[0] == 200 and opened[1].startswith("data: [") and opened[2]
    assert told[:2] == ["event: hello", "data: {}"] and "event: closing" in told
