"""`app.py` as a real server on the loopback, for tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx

from conftest import ROOT
from support import browser as browsers

HOSTILE = {
    "GRADIO_SERVER_NAME": "0.0.0.0",
    "GRADIO_SHARE": "True",
    "GRADIO_ALLOWED_PATHS": "/",
    "GRADIO_MCP_SERVER": "True",
    "GRADIO_ROOT_PATH": "/elsewhere",
    "GRADIO_NUM_PORTS": "1",
    "GRADIO_ANALYTICS_ENABLED": "True",
}


LABELS = {"Prompt": "prompt", "Negative prompt": "negative", "Images": "num_images", "Steps": "steps"}
LABELS |= {"Guidance scale": "guidance", "Size": "size", "Seed": "seed"}
LABELS |= {"Init image": "init_image", "New seed each time": "fresh"}


class Server:
    """`app.py` on a free port, in a folder of its own."""

    def __init__(self, place: Path, *flags: str, **environment: str):
        self.port = browsers.free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.place = place
        self.log = place / "server.log"
        settings = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        settings |= {"PYTHONPATH": str(ROOT), "TMPDIR": str(place), "PYTHONUNBUFFERED": "1"} | environment
        command = [sys.executable, ROOT / "app.py", "--base", "tiny", "--port", str(self.port), *flags]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, cwd=place, env=settings, stdout=log, stderr=subprocess.STDOUT)
        self.http = httpx.Client(base_url=self.url, timeout=60, trust_env=False)

    def wait(self) -> None:
        until = time.monotonic() + 300  # on a machine with other work
        while "Open http" not in self.log.read_text():
            if self.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(self.log.read_text())
            time.sleep(0.1)

    def __enter__(self) -> Server:
        try:
            self.wait()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *_) -> None:
        self.end()

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def config(self) -> dict:
        return self.http.get("/config").json()

    def handler(self, name: str) -> dict:
        return _handler(self.config(), name)

    def join(self, session: str, handler: str = "on_generate", **form: str) -> httpx.Response:
        """Ask as the page does. form: raw JSON by the labels of what the handler takes, because JSON proper has no NaN;
        of the rest what stands there when the page opens."""
        config = self.config()
        called = _handler(config, handler)
        parts = {part["id"]: part["props"] for part in config["components"]}
        given = [(parts[number].get("label"), json.dumps(parts[number].get("value"))) for number in called["inputs"]]
        data = ", ".join(form.get(LABELS.get(label, label), usual) for label, usual in given)
        body = f'{{"data": [{data}], "fn_index": {called["id"]}, "session_hash": "{session}"}}'
        return self.post("/gradio_api/queue/join", body)

    def post(self, path: str, body: str) -> httpx.Response:
        return self.http.post(path, content=body, headers={"Content-Type": "application/json"})

    def log_in(self, name: str, password: str) -> int:
        """The status of the answer; whoever was logged in before is not any more where it is 200."""
        answer = self.http.post("/login", data={"username": name, "password": password})
        self.last_cookies = answer.headers.get_list("set-cookie")
        return answer.status_code

    def ask(self, handler: str, **form: str) -> str:
        """What a handler answers, as text."""
        session = f"a{time.monotonic_ns()}"
        self.join(session, handler, **form)
        return self.ending(session)

    def draw(self, **form: str) -> dict:
        """The last message about a drawing, or {"refused": status}."""
        session = f"s{time.monotonic_ns()}"
        usual = {
            "prompt": '"a cat on grass"',
            "num_images": "1",
            "steps": "2",
            "guidance": "4",
            "size": '"128x128"',
            "seed": "0",
        }
        joined = self.join(session, **(usual | {"fresh": "false"} | form))
        if joined.status_code != 200:
            return {"refused": joined.status_code}
        return self.last(session)

    def last(self, session: str) -> dict:
        """The last message that a session gets."""
        with self.http.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as stream:
            for line in stream.iter_lines():
                message = json.loads(line[6:]) if line.startswith("data: ") else {}
                if message.get("msg") == "process_completed":
                    return message
        raise RuntimeError("the stream ended early")

    def ending(self, session: str) -> str:
        """As text."""
        return json.dumps(self.last(session))


def _handler(config: dict, name: str) -> dict:
    return next(handler for handler in config["dependencies"] if handler["api_name"].startswith(name))
