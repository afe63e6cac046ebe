"""The app ends when it is asked to, whatever is open and whoever waits."""

import _thread
import json
import threading

import gradio as gr
import httpx
import pytest

from sdpersonal.app.server.auth import Access
from sdpersonal.app.server.server import serve
from support import browser as browsers


@pytest.fixture
def page():
    """A page with a job that ends when it is told to."""
    stop = threading.Event()

    def on_endless():
        for number in range(10**6):
            if stop.wait(0.05):
                return
            yield str(number)

    with gr.Blocks(analytics_enabled=False) as page:
        box = gr.Textbox()
        gr.Button().click(on_endless, None, box)
    page.end_jobs = stop.set
    yield page
    page.close(verbose=False)


def test_the_app_ends_beside_open_heartbeats_streams_and_jobs(page, tmp_path):
    """Ctrl-C; SIGTERM is the same to the program."""
    port, opened = browsers.free_port(), []

    def visit():
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False) as http:
            (number,) = (entry["id"] for entry in http.get("/config").json()["dependencies"])
            http.post("/gradio_api/queue/join", json={"data": [], "fn_index": number, "session_hash": "a"})
            with (
                http.stream("GET", "/gradio_api/heartbeat/a") as heartbeat,
                http.stream("GET", "/gradio_api/queue/data", params={"session_hash": "a"}) as stream,
                http.stream("GET", "/gradio_api/heartbeat/b"),
            ):
                opened.append(heartbeat.status_code)
                for line in stream.iter_lines():
                    if "process_generating" in line:
                        opened.append(json.loads(line[6:])["success"])
                        break
                _thread.interrupt_main()
                page.server.thread.join(30)

    visitor = threading.Thread(target=visit, daemon=True)
    serve(page, Access(port), tmp_path, [], lambda line: visitor.start(), page.end_jobs)
    assert opened == [200, True] and not page.server.thread.is_alive()
    visitor.join(10)
