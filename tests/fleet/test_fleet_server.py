"""The fleet's server: who may ask, how much is read, whose turn it is, and what happens when a replica dies."""

import base64
import hashlib
import socket
import threading
import time
from dataclasses import replace

import httpx
import pytest

from sdpersonal.concepts.concept_file import concept_to_bytes
from sdpersonal.fleet.image_task import PinnedConcept
from sdpersonal.fleet.serving import dispatcher, forms, http_server, uploaded_concepts
from sdpersonal.fleet.serving.messages import Failed, Made, Preview, ReplicaLost
from sdpersonal.fleet.store import LocalStore
from sdpersonal.generation import MAX_BATCH_SIZE
from support import samples, serve


@pytest.fixture
def pool():
    return serve.FakePool()


@pytest.fixture
def url(pool, tmp_path):
    with serve.open_server(pool, tmp_path) as url:
        yield url


@pytest.fixture
def anna(url):
    with serve.client(url) as http:
        yield http


def test_images_of_all_alternatives_are_sent_as_events(anna):
    events = serve.ask(anna, serve.form("a {cat|dog} <b", "a hat", num_images=2, seed=3, all_combinations=True))
    assert events[-1] == {"event": "done", "images": 6}
    made = {index: png.decode() for index, png in serve.images(events).items()}
    assert made == dict(enumerate(["a cat <b 3", "a cat <b 4", "a dog <b 3", "a dog <b 4", "a hat 3", "a hat 4"]))


def test_the_server_sends_server_sent_events_on_request(anna):
    answer = anna.post("/generate", json=serve.form("a cat"), headers={"Accept": "text/event-stream"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    blocks = answer.text.strip().split("\n\n")
    assert blocks[-1] == 'event: done\ndata: {"event": "done", "images": 1}'


@pytest.mark.parametrize("path", ["/generate", "/concepts/" + "0" * 64, "/health"])
@pytest.mark.parametrize("header", ["", "Bearer x", "Bearer " + "c" * 30, "Basic " + "a" * 30, "a" * 30, "Bearer \xe4"])
def test_requests_without_a_valid_key_are_refused(url, path, header):
    with httpx.Client(base_url=url, headers={"Authorization": header.encode("latin-1")}, trust_env=False) as http:
        if path == "/health":
            assert http.get(path).json() == {"status": "ready"}
            return
        for method in ("GET", "PUT") if "concepts" in path else ("POST",):
            assert http.request(method, path, content=b"x").status_code == 401


def test_a_request_without_a_key_is_refused_before_its_body_is_read(url):
    """The body is announced and never sent."""
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as stranger:
        stranger.settimeout(5)
        stranger.sendall(b"PUT /concepts/%s HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n" % (b"0" * 64))
        assert stranger.recv(100).startswith(b"HTTP/1.1 401")


def test_requests_from_browser_pages_are_refused(url, tmp_path):
    assert httpx.get(url + "/health", headers={"Origin": "http://evil.example"}).json() == {"status": "ready"}
    with serve.client(url) as http:
        assert http.post("/generate", json=serve.form("a cat"), headers={"Origin": "null"}).status_code == 403
    with (
        serve.open_server(serve.FakePool(), tmp_path / "open", {}) as local,
        serve.client(local, None) as http,
    ):
        assert serve.ask(http, serve.form("a cat"))[-1]["event"] == "done"
        assert http.post("/generate", json=serve.form("a cat"), headers={"Host": "evil.example"}).status_code == 403
        assert http.post("/generate", json=serve.form("a cat"), headers={"Origin": local}).status_code == 403


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[" * 300_000, "more than"),
        (b"[]", "object with requests"),
        (b'{"requests": []}', "1 to 1000"),
        (b'{"requests": [1]}', "An entry"),
        (b'{"requests": [{"request": {"prompt": 3}}]}', "must be text"),
        (b'{"requests": [{"request": {"prompt": "a", "evil": 1}}]}', "evil"),
        (b'{"requests": [{"request": {"prompt": "a", "init_image": "/etc/passwd"}}]}', "init_image must be the sha256"),
        (b'{"requests": [{"request": {"prompt": "a <me/duck>"}}]}', "<me/duck>"),
        (b'{"requests": [{"request": {"prompt": "a <me/duck>"}, "concepts": {"<me/duck>": "../x"}}]}', "../x"),
        (b'{"requests": [{"request": {"prompt": "a __list__"}}]}', "list"),
        (
            b'{"requests": [{"request": {"prompt": "a", "num_images": 100, "steps": 150, "size": "2048x2048"}}]}',
            "limit",
        ),
        (b'{"requests": [{"request": {"prompt": "a"}}], "files": {"0": "!"}}', "not base64"),
        (b'{"requests": [{"request": {"prompt": "a"}}], "files": {"0": "AAAA"}}', "another sha256"),
        (b'{"requests": [{"request": {"prompt": "\\ud800"}}]}', "prompt"),
    ],
)
def test_invalid_request_bodies_are_refused_with_a_message(anna, pool, body, message):
    answer = anna.post("/generate", content=body)
    assert answer.status_code == 400 and message in answer.json()["message"], answer.text
    assert len(answer.json()["message"]) < 300 and pool.batches == []


def test_too_large_request_bodies_are_refused(anna, monkeypatch):
    monkeypatch.setattr(http_server, "MAX_BODY", 1000)
    assert anna.post("/generate", content=b"x" * 1001).status_code == 413
    chunks = iter([b"x"])
    assert anna.post("/generate", content=chunks).status_code == 411
    monkeypatch.setattr(http_server, "MAX_CONCEPT_BYTES", 1000)
    assert anna.put("/concepts/" + "0" * 64, content=b"x" * 1001).status_code == 413


def test_an_init_image_is_deleted_after_generation(tmp_path):
    sha256, seen = hashlib.sha256(b"image").hexdigest(), []

    async def behave(number, tasks):
        path = tmp_path / tasks[0].request.init_image
        seen.append(path.read_bytes())
        yield Made(0, b"png")

    with (
        serve.open_server(serve.FakePool(behave=behave), tmp_path) as url,
        serve.client(url) as http,
    ):
        content = serve.form("a cat", init_image=sha256) | {"files": {sha256: base64.b64encode(b"image").decode()}}
        assert serve.ask(http, content)[-1]["event"] == "done"
        assert seen == [b"image"]
        until = time.monotonic() + 5
        while [path for path in (tmp_path / "inputs").rglob("*") if path.is_file()] and time.monotonic() < until:
            time.sleep(0.01)
        assert not [path for path in (tmp_path / "inputs").rglob("*") if path.is_file()]


# --- concepts ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def duck():
    return samples.concept("<me/duck-v1>")


def test_an_uploaded_concept_is_visible_only_to_its_owner(url, anna, pool, duck, tmp_path):
    name = str(PinnedConcept.of(duck))
    asked = serve.form("a <me/duck>")
    asked["requests"][0]["concepts"] = {"<me/duck>": name}
    refused = serve.ask(anna, asked)
    assert refused.status_code == 409 and refused.json()["missing"] == [name]
    assert anna.get(f"/concepts/{name}").status_code == 404
    data = concept_to_bytes(duck)
    assert anna.put(f"/concepts/{duck.identity}", content=data).json()["name"] == name
    assert anna.get(f"/concepts/{name}").json() == {"name": name, "bytes": len(data)}
    assert serve.ask(anna, asked)[-1]["event"] == "done" and len(pool.batches) == 1
    assert LocalStore(tmp_path).read(f"concepts/{name}.safetensors") == data
    with serve.client(url, "ben") as ben:  # he knows the identity, which is not enough
        assert ben.get(f"/concepts/{name}").status_code == 404
        assert serve.ask(ben, asked).status_code == 409
        assert ben.put(f"/concepts/{name}", content=data).status_code == 200
        assert serve.ask(ben, asked)[-1]["event"] == "done"
    with (
        serve.open_server(pool, tmp_path) as again,
        serve.client(again) as http,
    ):  # another server of the same storage
        assert http.get(f"/concepts/{name}").status_code == 200


def test_mismatched_and_damaged_concept_uploads_are_refused(anna, duck, tmp_path):
    data = concept_to_bytes(duck)
    other = replace(duck, card=duck.card.model_copy(update={"class_noun": "boat"}))
    name = str(PinnedConcept.of(duck))
    for content, path in [
        (data, "0" * 64),
        (concept_to_bytes(other), name),
        (data[:-1], duck.identity),
        (data[:-1] + bytes([data[-1] ^ 1]), duck.identity),
        (b"", duck.identity),
        (b"x" * 1000, duck.identity),
    ]:
        answer = anna.put(f"/concepts/{path}", content=content)
        assert answer.status_code == 400 and answer.json()["message"], answer.text
    assert anna.put("/concepts/..%2f..%2fx", content=data).status_code == 404
    assert anna.put(f"/concepts/{name.upper()}", content=data).status_code == 404
    assert not (tmp_path / "concepts").exists() and not (tmp_path / "users").exists()


def test_concept_uploads_over_the_user_limit_are_refused(anna, duck, monkeypatch):
    monkeypatch.setattr(uploaded_concepts, "MAX_USER_CONCEPTS", 1)
    assert anna.put(f"/concepts/{duck.identity}", content=concept_to_bytes(duck)).status_code == 200
    answer = anna.put(f"/concepts/{duck.identity}", content=concept_to_bytes(duck))
    assert answer.status_code == 400 and "You have 1 concepts" in answer.json()["message"]


# --- whose turn it is -------------------------------------------------------------------------------------------------


@pytest.fixture
def ben(url):
    with serve.client(url, "ben") as http:
        yield http


def in_background(http, user, content, results):
    def work():
        results.append((user, serve.ask(http, content)))

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def test_many_requests_of_a_user_do_not_delay_another_user(pool, anna, ben):
    pool.gate.clear()
    results = []
    threads = [in_background(anna, "anna", serve.form(f"anna {i}"), results) for i in range(100)]
    until(lambda: sum(anna.get("/health").json()["queue"].values()) == 100)
    threads.append(in_background(ben, "ben", serve.form("ben"), results))
    until(lambda: sum(anna.get("/health").json()["queue"].values()) == 101)
    pool.gate.set()
    for thread in threads:
        thread.join(60)
    assert len(results) == 101 and all(events[-1]["event"] == "done" for _, events in results)
    order = [prompt for batch in pool.batches for prompt, _ in batch]
    assert len(order) == 101 and order.index("ben") <= 2 * MAX_BATCH_SIZE
    assert "ben" in [prompt for prompt, _ in pool.batches[1]]  # in the first batch that was put together after he asked
    assert max(map(len, pool.batches)) == MAX_BATCH_SIZE


def test_waiting_images_with_equal_settings_form_a_batch(pool, anna, ben):
    pool.gate.clear()
    results = []
    threads = [in_background(ben, "ben", serve.form("first"), results)]
    until(lambda: pool.batches)
    mixed = {
        "requests": [
            *serve.form("a", "b", steps=5)["requests"],
            *serve.form("c", "d", "e", steps=6)["requests"],
        ]
    }
    threads.append(in_background(ben, "ben", mixed, results))
    until(lambda: anna.get("/health").json()["queue"]["waiting"] == 5)
    pool.gate.set()
    for thread in threads:
        thread.join(20)
    assert pool.batches == [[("first", 0)], [("a", 0), ("b", 0)], [("c", 0), ("d", 0), ("e", 0)]]


def test_too_many_requests_are_refused_with_a_message(pool, anna, ben, monkeypatch):
    monkeypatch.setattr(dispatcher, "MAX_USER_REQUESTS", 2)
    pool.gate.clear()
    results = []
    threads = [in_background(anna, "anna", serve.form("a"), results) for _ in range(2)]
    until(lambda: sum(anna.get("/health").json()["queue"].values()) == 2)
    refused = serve.ask(anna, serve.form("a"))
    assert refused.status_code == 429 and refused.json()["message"] == "You have 2 requests waiting already."
    threads.append(in_background(ben, "ben", serve.form("b"), results))
    until(lambda: sum(ben.get("/health").json()["queue"].values()) == 3)
    pool.gate.set()
    for thread in threads:
        thread.join(20)
    assert len(results) == 3


def test_a_disconnected_client_cancels_its_request(pool, anna, ben):
    pool.gate.clear()
    with ben.stream("POST", "/generate", json=serve.form("a", num_images=20)) as answer:
        lines = answer.iter_lines()
        next(lines)
        until(lambda: pool.batches)
        until(lambda: anna.get("/health").json()["queue"] == {"waiting": 16, "generating": 4})
    until(lambda: pool.ended == 1)
    until(lambda: anna.get("/health").json()["queue"] == {"waiting": 0, "generating": 0})


def test_a_disconnected_client_does_not_stop_other_requests(pool, anna, ben):
    pool.gate.clear()
    results = []
    thread = in_background(anna, "anna", serve.form("blocks"), results)
    until(lambda: pool.batches)
    with ben.stream("POST", "/generate", json=serve.form("goes")) as answer:
        lines = answer.iter_lines()
        next(lines)
        stays = in_background(anna, "anna", serve.form("stays"), results)
        until(lambda: anna.get("/health").json()["queue"]["waiting"] == 2)
    until(lambda: anna.get("/health").json()["queue"]["waiting"] == 1)
    pool.gate.set()
    thread.join(20)
    stays.join(20)
    assert [events[-1]["event"] for _, events in results] == ["done", "done"]
    assert len(pool.batches) == 2 and pool.ended == 2


# --- replicas that die ------------------------------------------------------------------------------------------------


def test_a_lost_replica_neither_loses_nor_repeats_images(tmp_path):
    async def behave(number, tasks):
        if number == 0:
            yield Made(1, b"1")
            yield Made(0, b"0")
            raise ReplicaLost("dead")
        for index, task in enumerate(tasks):
            yield Made(index, str(task.request.seed).encode())

    pool = serve.FakePool(behave=behave)
    with serve.open_server(pool, tmp_path) as url, serve.client(url) as http:
        events = serve.ask(http, serve.form("a", num_images=4))
    sent = [(event["index"], event["png"].decode()) for event in events if event["event"] == "image"]
    assert sorted(sent) == [(i, str(i)) for i in range(4)]
    assert [len(batch) for batch in pool.batches] == [4, 1, 1]  # each that was lost is tried alone


def test_a_request_that_kills_replicas_fails_without_failing_others(tmp_path):
    async def behave(number, tasks):
        if any(task.request.prompt == "poison" for task in tasks):
            raise ReplicaLost("dead")
        for index, _ in enumerate(tasks):
            yield Made(index, b"png")

    pool = serve.FakePool(behave=behave)
    pool.gate.clear()
    results = []
    with (
        serve.open_server(pool, tmp_path) as url,
        serve.client(url) as http,
        serve.client(url, "ben") as ben,
    ):
        clients = {"anna": http, "ben": ben}
        threads = [in_background(ben, "ben", serve.form("blocks"), results)]
        until(lambda: pool.batches)
        threads += [
            in_background(clients[user], user, serve.form(prompt), results)
            for user, prompt in [("anna", "good"), ("ben", "poison")]
        ]
        until(lambda: http.get("/health").json()["queue"]["waiting"] == 2)
        pool.gate.set()
        for thread in threads:
            thread.join(20)
    endings = {(user, events[-1].get("message", "done")) for user, events in results}
    assert ("anna", "done") in endings and len(endings) == 3
    [message] = [text for user, text in endings if text != "done"]
    assert message == "3 machines failed one after the other at this image."


def test_user_errors_are_sent_and_internal_errors_are_only_logged(tmp_path, caplog):
    async def behave(number, tasks):
        if number == 1:
            raise ValueError("secret")
        yield Failed(0, "It has no LoRA.", "Choose another.")
        yield Made(1, b"png")
        yield Preview({0: b"jpeg"})

    pool = serve.FakePool(behave=behave)
    with serve.open_server(pool, tmp_path) as url, serve.client(url) as http:
        assert serve.ask(http, serve.form("a", "b"))[-1] == {
            "event": "error", "message": "It has no LoRA.", "hint": "Choose another.",
        }  # fmt: skip
        assert "secret" not in str(serve.ask(http, serve.form("a"))) and "secret" in caplog.text


def test_an_unresponsive_replica_is_treated_as_lost(tmp_path, monkeypatch):
    import asyncio

    monkeypatch.setattr(dispatcher, "SILENCE_SECONDS", 0.2)

    async def behave(number, tasks):
        if number == 0:
            await asyncio.sleep(60)
        yield Made(0, b"png")

    pool = serve.FakePool(behave=behave)
    with serve.open_server(pool, tmp_path) as url, serve.client(url) as http:
        assert serve.ask(http, serve.form("a"))[-1]["event"] == "done" and len(pool.batches) == 2


def test_generation_pauses_for_a_slow_client(monkeypatch):
    monkeypatch.setattr(dispatcher, "MAX_UNREAD", 2)
    form = forms.parse_form(b'{"requests": [{"request": {"prompt": "a", "num_images": 8}}]}', "0" * 16)
    generation = dispatcher.Generation("anna", form.tasks)
    queue = dispatcher.Dispatcher(serve.FakePool())
    queue.submit(generation)
    assert len(queue._take()) == 4
    for image in generation.images[:2]:
        generation.add(image, b"png")
    other = dispatcher.Generation("anna", form.tasks[:1])
    queue.submit(other)
    assert queue._take() == other.images  # another request of the same user is not held up
    generation._take_images()
    assert len(queue._take()) == 4
