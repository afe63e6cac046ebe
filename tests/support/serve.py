"""A fleet's server in this process, over replicas that a test controls or over the real worker."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import threading
from contextlib import closing, contextmanager

import httpx
import uvicorn

from sdpersonal.app.server.connections import BoundedProtocol
from sdpersonal.fleet.generation_worker import GenerationOptions
from sdpersonal.fleet.serving.http_server import build_server
from sdpersonal.fleet.serving.messages import Made, PoolHealth, Step
from sdpersonal.fleet.serving.replica import Replica
from sdpersonal.fleet.store import LocalStore
from sdpersonal.fleet.worker import MARKER
from sdpersonal.generation import Generator

_LIMITS = httpx.Limits(max_connections=200)
KEYS = {"anna": "a" * 30, "ben": "b" * 30}


class FakePool:
    """Replicas that answer at once with bytes that name the image, or do what `behave` says: an async generator."""

    def __init__(self, slots=1, behave=None):
        self.batches, self.ended, self._slots, self.behave = [], 0, slots, behave
        self.gate = threading.Event()  # a batch waits for it
        self.gate.set()

    def health(self):
        return PoolHealth(self._slots, 0, {"name": "fake"})

    def slots(self):
        return self._slots

    async def generate(self, tasks):
        number = len(self.batches)
        self.batches.append([(task.request.prompt, task.request.seed) for task in tasks])
        try:
            yield Step(1, 2)
            while not self.gate.is_set():
                await asyncio.sleep(0.01)
            if self.behave:
                async for event in self.behave(number, tasks):
                    yield event
                return
            for index, task in enumerate(tasks):
                yield Made(index, f"{task.request.prompt} {task.request.seed}".encode())
        finally:
            self.ended += 1


class LocalPool:
    """One real replica, in this process, with a model that is loaded already. batches: the sizes of its batches."""

    def __init__(self, store, model, **options):
        store.write_new_json(MARKER, {"id": "marker"})
        self.store = store
        self.replica = Replica(GenerationOptions(store.uri, "marker", base="tiny", patience=1.0, **options))
        self.replica._worker._loaded = Generator(model)
        self.batches = []

    def health(self):
        return PoolHealth(1, 0, self.replica.facts())

    def slots(self):
        return 1

    async def generate(self, tasks):
        self.batches.append(len(tasks))
        async for event in self.replica.generate(tasks):
            yield event


@contextmanager
def open_server(pool, folder, keys=KEYS):
    """Serve a server on a free port; yields its URL."""
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        config = uvicorn.Config(
            build_server(pool, LocalStore(folder), keys),
            http=BoundedProtocol,
            log_config=None,
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)


def client(url, user="anna"):
    headers = {"Authorization": f"Bearer {KEYS[user]}"} if user else {}
    return httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False, verify=False, limits=_LIMITS)


def form(*prompts, **fields):
    return {"requests": [{"request": {"prompt": prompt, "num_images": 1, **fields}} for prompt in prompts]}


def ask(http, content):
    """Send a form; return its events, with images as bytes."""
    answer = http.post("/generate", json=content)
    if answer.status_code != 200:
        return answer
    return [decode(line) for line in answer.text.splitlines()]


def decode(line):
    event = json.loads(line)
    if "png" in event:
        event["png"] = base64.b64decode(event["png"])
    return event


def images(events):
    return {event["index"]: event["png"] for event in events if event["event"] == "image"}
