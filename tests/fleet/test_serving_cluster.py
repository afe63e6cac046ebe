"""Real replicas of Ray Serve: one is killed while it generates for several users, and every image is there once."""

import signal
import threading
import time
from contextlib import ExitStack

import numpy as np
import pytest
from PIL import Image

from sdpersonal.config import GenerateRequest
from sdpersonal.fleet.cluster import Needs, connect
from sdpersonal.fleet.generation_worker import GenerationOptions
from sdpersonal.fleet.image_task import PinnedConcept
from sdpersonal.fleet.run import mark
from sdpersonal.fleet.store import LocalStore
from sdpersonal.generation import Generator
from support import fleet, serve
from support.mixing import shelf_of

fleet.require_ray()
pytest.importorskip("grpc_reflection", reason="Ray Serve's packages are not installed: pip install 'sdpersonal[fleet]'")
pytest.importorskip("psutil")
REQUESTS, IMAGES, STEPS = 8, 2, 10  # of each user
PROMPTS = ("a <me/fox> on grass", "<me/cat> in the snow", "a red ball", "<me/fox> and a house")


def replicas():
    import psutil

    processes = []
    for process in psutil.Process().children(recursive=True):
        try:
            if " ".join(process.cmdline()).startswith(("ray::ServeReplica", "ray::SERVE_REPLICA")):
                processes.append(process)
        except psutil.Error:
            continue
    return processes


def kill_one(http, killed, until):
    """Kill a replica in the middle of the load, while it generates."""
    while http.get("/health").json()["queue"]["waiting"] > until:
        time.sleep(0.05)
    while not killed and http.get("/health").json()["queue"]["generating"]:
        if busy := [process for process in replicas() if process.cpu_percent(0.2) > 2]:
            busy[0].send_signal(signal.SIGKILL)
            killed.append((busy[0].pid, http.get("/health").json()["queue"]))


@pytest.mark.thorough
@pytest.mark.timeout(1200)
def test_a_killed_replica_changes_no_image(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_worker_niceness", "0")  # Ray's 15 would starve them beside other work
    from sdpersonal.concepts.concept_file import concept_to_bytes
    from sdpersonal.fleet.serving.ray_serve import Scale, run_replicas

    shelf = shelf_of(tiny)
    concepts = {f"<me/{name}>": shelf[name] for name in ("fox", "cat")}
    names = {token: str(PinnedConcept.of(concept)) for token, concept in concepts.items()}
    store = LocalStore(tmp_path)
    options = GenerationOptions(store.uri, mark(store), patience=5.0, base="tiny")
    results, killed = {}, []

    def ask(http, user, number):
        content = serve.form(PROMPTS[number % 4], num_images=IMAGES, steps=STEPS, seed=100 * number, size="64x64")
        content["requests"][0]["concepts"] = names
        results[user, number] = serve.ask(http, content)

    with ExitStack() as stack:
        stack.enter_context(connect(None, cpus=3))
        pool = stack.enter_context(run_replicas(options, Scale(3, 3, Needs(1.0, 0.0, 1.0)), True))
        url = stack.enter_context(serve.open_server(pool, tmp_path))
        anna, ben = (stack.enter_context(serve.client(url, user)) for user in serve.KEYS)
        while pool.health().running < 3:
            time.sleep(0.2)
        for http in (anna, ben):
            for token, name in names.items():
                assert http.put(f"/concepts/{name}", content=concept_to_bytes(concepts[token])).status_code == 200
        began = time.monotonic()
        threads = [
            threading.Thread(target=ask, args=(http, user, number))
            for number in range(REQUESTS)
            for user, http in (("anna", anna), ("ben", ben))
        ]
        threads.append(threading.Thread(target=kill_one, args=(anna, killed, REQUESTS * IMAGES)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(600)
        seconds = time.monotonic() - began
        while pool.health().running < 3 and time.monotonic() < began + 600:
            time.sleep(0.2)
        back = time.monotonic() - began
    print(
        f"killed {killed}; {2 * REQUESTS * IMAGES} images in {seconds:.1f} s, three replicas again after {back:.1f} s"
    )
    assert len(killed) == 1 and len(results) == 2 * REQUESTS
    worst = 0
    for (_, number), events in results.items():
        assert events[-1] == {"event": "done", "images": IMAGES}
        sent = [event for event in events if event["event"] == "image"]
        assert sorted(event["index"] for event in sent) == list(range(IMAGES))
        request = GenerateRequest(
            prompt=PROMPTS[number % 4], num_images=IMAGES, steps=STEPS, seed=100 * number, size="64x64"
        )
        alone = list(Generator(tiny, Shelf(concepts)).generate(request))
        for event in sent:
            worst = max(worst, difference(event["png"], alone[event["index"]]))
    print(f"largest difference {worst}/255")
    assert worst <= 1


@pytest.mark.thorough
@pytest.mark.timeout(600)
def test_the_kubernetes_application_serves_requests_through_ray_serve(tmp_path, monkeypatch):
    import httpx

    from sdpersonal.fleet.serving.ray_serve import application
    from support.browser import free_port

    monkeypatch.setenv("RAY_worker_niceness", "0")
    keys, port = tmp_path / "keys", free_port()
    keys.write_text("".join(f"{name}:{key}\n" for name, key in serve.KEYS.items()))
    keys.chmod(0o600)
    with connect(None, cpus=1):
        from ray import serve as ray_serve

        ray_serve.start(http_options={"host": "127.0.0.1", "port": port})
        args = {"storage": str(tmp_path / "fleet"), "base": "tiny", "keys": str(keys), "memory": 1.0}
        ray_serve.run(application(args), name="fleet", route_prefix="/")
        url = f"http://127.0.0.1:{port}"
        with serve.client(url) as http:
            while not http.get("/health").json().get("replicas", {}).get("running"):
                time.sleep(0.2)
            assert httpx.post(url + "/generate", content=b"{}", trust_env=False).status_code == 401
            assert len(serve.images(serve.ask(http, serve.form("a cat", num_images=2, steps=2)))) == 2
            with http.stream("POST", "/generate", json=serve.form("a cat", num_images=50, steps=100)) as answer:
                lines = answer.iter_lines()
                next(lines)
                assert sum(http.get("/health").json()["queue"].values()) == 50
            while sum(http.get("/health").json()["queue"].values()):
                time.sleep(0.2)


class Shelf:
    def __init__(self, concepts):
        self._concepts = concepts

    def get(self, token):
        return self._concepts[str(token)]


def difference(png, image):
    import io

    made = np.asarray(Image.open(io.BytesIO(png)), np.int16)
    return int(np.abs(made - np.asarray(image.image, np.int16)).max())
