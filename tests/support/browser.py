"""A real browser for tests, spoken to in W3C WebDriver: JSON over HTTP, so no library is needed."""

from __future__ import annotations

import base64
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the standard's own key
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]


def missing() -> str:
    """Why there is no browser here, or nothing."""
    lacking = [name for name in ("chromium", "chromedriver") if not shutil.which(name)]
    return f"{' and '.join(lacking)} not installed" if lacking else ""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def browser(profile: Path, width: int = 1280, height: int = 900) -> Iterator[Browser]:
    """Chromium with a profile of its own in a window of that size, closed at the end."""
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    driver = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, env=environment)
    try:
        # trust_env: a proxy set for the outside must not be asked for the loopback.
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            _wait_for(client)
            flags = [*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"]
            options = {"binary": shutil.which("chromium"), "args": flags}
            wanted = {
                "browserName": "chrome",
                "goog:chromeOptions": options,
                "goog:loggingPrefs": {"performance": "ALL"},
            }
            answer = client.post("/session", json={"capabilities": {"alwaysMatch": wanted}}).json()["value"]
            window = Browser(client, f"/session/{answer['sessionId']}")
            try:
                window.resize(width, height)
                yield window
            finally:  # else Chromium outlives a failed test
                client.delete(window.path)
    finally:
        driver.terminate()
        driver.wait(10)


def _wait_for(client: httpx.Client) -> None:
    for _ in range(600):
        try:
            client.get("/status")
            return
        except httpx.TransportError:
            time.sleep(0.1)
    raise TimeoutError("chromedriver does not answer")


class Browser:
    """One window. CSS selectors find things; every wait is bounded."""

    def __init__(self, client: httpx.Client, path: str):
        self.client, self.path = client, path

    def call(self, command: str, **body):
        answer = self.client.post(f"{self.path}/{command}", json=body).json()["value"]
        if isinstance(answer, dict) and "error" in answer:
            raise RuntimeError(f"{answer['error']}: {answer['message']}")
        return answer

    def resize(self, width: int, height: int) -> None:
        """The page's own width, which a desktop window cannot make as small as a phone's."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("goog/cdp/execute", cmd="Emulation.setDeviceMetricsOverride", params=size)

    def set_theme(self, name: str) -> None:
        """The theme that the system asks for: "light" or "dark"."""
        features = [
            {"name": "prefers-color-scheme", "value": name},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        self.call("goog/cdp/execute", cmd="Emulation.setEmulatedMedia", params={"features": features})

    def set_network(self, bytes_per_second: float, latency_ms: float) -> None:
        """Slow the network down; -1 is no limit."""
        speed = {"downloadThroughput": bytes_per_second, "uploadThroughput": bytes_per_second}
        self.call("goog/cdp/execute", cmd="Network.enable", params={})
        limits = {"offline": False, "latency": latency_ms, **speed}
        self.call("goog/cdp/execute", cmd="Network.emulateNetworkConditions", params=limits)

    def open(self, url: str) -> None:
        self.call("url", url=url)

    def run(self, script: str, *args):
        """What the JavaScript returns."""
        return self.call("execute/sync", script=script, args=list(args))

    def wait(self, script: str, seconds: float = 60):
        """What the JavaScript expression is once it is true."""
        until = time.monotonic() + seconds
        while not (value := self.run(f"return {script}")):
            if time.monotonic() > until:
                raise TimeoutError(f"not true within {seconds} s: {script}")
            time.sleep(0.1)
        return value

    def click(self, selector: str) -> None:
        self.click_element(self.call("element", using="css selector", value=selector))

    def click_element(self, element: dict, seconds: float = 10) -> None:
        """Click an element of `run` once nothing lies over it, as after a change of the layout or under a message."""
        until = time.monotonic() + seconds
        while True:
            try:
                self.call(f"element/{element[ELEMENT]}/click")
                return
            except RuntimeError as error:
                if "click intercepted" not in str(error) or time.monotonic() > until:
                    raise
            time.sleep(0.1)

    def type(self, selector: str, text: str) -> None:
        element = self.call("element", using="css selector", value=selector)[ELEMENT]
        self.call(f"element/{element}/value", text=text)

    def upload(self, selector: str, path: Path) -> None:
        """Give a file to a file field, seen or not."""
        element = self.call("element", using="css selector", value=selector)[ELEMENT]
        self.call(f"element/{element}/value", text=str(path))

    def text(self, selector: str) -> str:
        return self.run("const e = document.querySelector(arguments[0]); return e.value ?? e.innerText", selector)

    def requests(self) -> list[str]:
        """Addresses that the page has asked for so far."""
        return self.run("return performance.getEntriesByType('resource').map(e => e.name)")

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.client.get(f"{self.path}/screenshot").json()["value"]))
