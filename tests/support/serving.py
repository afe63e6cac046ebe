"""`app.py` as a real server on the loopback, for tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import httpx

from conftest import ROOT
from support import browser as browsers
from support.ranks import start

HOSTILE = {
    "GRADIO_SERVER_NAME": "0.0.0.0",
    "GRADIO_SHARE": "True",
    "GRADIO_ALLOWED_PATHS": "/",
    "GRADIO_MCP_SERVER": "True",
    "GRADIO_ROOT_PATH": "/elsewhere",
    "GRADIO_NUM_PORTS": "1",
    "GRADIO_ANALYTICS_ENABLED": "True",
}

FORM = {
    "prompt": "a cat on grass",
    "num_images": 1,
    "steps": 2,
    "guidance": 4,
    "width": 128,
    "height": 128,
    "seed": "0",
}
_ENDED = ("done", "stopped", "failed")


class _Forked:
    """A process of `ranks`, with the methods of Popen that a server needs."""

    def __init__(self, process: ForkServerProcess):
        self._process = process

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, seconds: float) -> int | None:
        self._process.join(seconds)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self._process.pid, number)


class Server:
    """`app.py` on a free port, in a folder of its own; program: another, which does the same."""

    def __init__(self, place: Path, *flags: str, program: Path = ROOT / "app.py", **environment: str):
        self.port = browsers.free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.place = place
        self.log = place / "server.log"
        settings = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        settings |= {"PYTHONPATH": str(ROOT), "TMPDIR": str(place), "PYTHONUNBUFFERED": "1"} | environment
        command = [sys.executable, program, "--base", "tiny", "--port", str(self.port), *flags]
        self.process = self._start(command, settings)
        self.http = httpx.Client(base_url=self.url, timeout=60, trust_env=False)

    def _start(self, command: list, environment: dict[str, str]) -> subprocess.Popen | _Forked:
        with self.log.open("w") as log:
            return subprocess.Popen(command, cwd=self.place, env=environment, stdout=log, stderr=subprocess.STDOUT)

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

    def post(self, path: str, body: str) -> httpx.Response:
        """Send raw text as JSON."""
        return self.http.post(path, content=body, headers={"Content-Type": "application/json"})

    def post_json(self, path: str, body: object = None) -> httpx.Response:
        """Send a value as the page does; NaN is written as such, which is no JSON proper."""
        return self.post(path, json.dumps({} if body is None else body))

    def get_json(self, path: str, **params: object) -> dict:
        """What a route answers; other answers than 200 are errors."""
        answer = self.http.get(path, params=params)
        answer.raise_for_status()
        return answer.json()

    def upload(self, *files: tuple[str, bytes]) -> list[str]:
        """Upload files, (name, content) each; return the paths by which requests name them."""
        answer = self.http.post("/gradio_api/upload", files=[("files", file) for file in files])
        answer.raise_for_status()
        return answer.json()

    def log_in(self, name: str, password: str) -> int:
        """The status of the answer; whoever was logged in before is not any more where it is 200."""
        answer = self.http.post("/login", data={"username": name, "password": password})
        self.last_cookies = answer.headers.get_list("set-cookie")
        return answer.status_code

    def submit(self, kind: str = "generate", **form: object) -> httpx.Response:
        """Queue a job on the usual form with these fields changed."""
        return self.post_json("/app/jobs", {"kind": kind, "form": FORM | form})

    def draw(self, **form: object) -> dict:
        """The job of a small image when it has ended, or {"refused": status, "error": text}."""
        answer = self.submit(**form)
        if answer.status_code != 200:
            text = answer.json().get("error", "") if "json" in answer.headers.get("content-type", "") else answer.text
            return {"refused": answer.status_code, "error": text}
        return self.wait_for_job(answer.json()["id"])

    def wait_for_job(self, job_id: str, seconds: float = 120, client: httpx.Client | None = None) -> dict:
        """The job when it has ended. client: of the user whose job it is."""
        return self.wait_for_jobs([job_id], seconds, client)[0]

    def wait_for_jobs(self, job_ids: list[str], seconds: float = 120, client: httpx.Client | None = None) -> list[dict]:
        """The jobs when all have ended: each is asked for until then, since only the last ended ones stay listed."""
        until, ended = time.monotonic() + seconds, {}
        while time.monotonic() < until:
            jobs = (client or self.http).get("/app/jobs").json()["jobs"]
            ended |= {job["id"]: job for job in jobs if job["state"] in _ENDED}
            if all(job_id in ended for job_id in job_ids):
                return [ended[job_id] for job_id in job_ids]
            time.sleep(0.1)
        raise RuntimeError(f"{[job_id for job_id in job_ids if job_id not in ended]} did not end in {seconds} s")


class WarmServer(Server):
    """The app in a process that is forked where all but Gradio is imported: most of a start's time."""

    def _start(self, command: list, environment: dict[str, str]) -> _Forked:
        self.log.touch()
        environment |= {name: "" for name in os.environ if name.lower().endswith("_proxy")}
        child = start(["app", *command[2:]], self.place, environment, None, (self.log, self.log), self.place)
        return _Forked(child.process)
