"""The fleet's storage: files whole or not at all, one winner of several writers, errors in a sentence."""

import errno
import multiprocessing
import os
import uuid

import pytest

from sdpersonal import storage
from sdpersonal.errors import DiskFull, UserError
from sdpersonal.fleet.store import FsspecStore, LocalStore, StoreError, keep_trying, open_store


@pytest.fixture(params=["local", "memory"])
def store(request, tmp_path):
    if request.param == "local":
        return open_store(str(tmp_path / "fleet"))
    pytest.importorskip("fsspec")
    return open_store(f"memory://{uuid.uuid4().hex}")


def test_files_are_written_read_listed_and_removed(store):
    assert store.read("jobs/a/x.json") is None and store.names("jobs") == store.files("jobs") == []
    store.write("jobs/a/x.json", b"1")
    store.write("jobs/a/x.json", b"22")
    store.write("jobs/a/run/1/step-000010/state.safetensors", b"3")
    store.write("jobs/b/y", b"")
    assert (store.read("jobs/a/x.json"), store.read("jobs/b/y")) == (b"22", b"")
    assert store.names("jobs") == ["a", "b"] and store.names("jobs/a") == ["run", "x.json"]
    assert store.files("jobs/a") == ["jobs/a/run/1/step-000010/state.safetensors", "jobs/a/x.json"]
    store.remove("jobs/a/run")
    store.remove("jobs/a/run")
    assert store.files("jobs") == ["jobs/a/x.json", "jobs/b/y"]


def test_write_new_never_replaces_a_file(store):
    assert store.write_new("jobs/a/trained.json", b"first") and not store.write_new("jobs/a/trained.json", b"second")
    assert store.read("jobs/a/trained.json") == b"first"


def test_invalid_json_is_read_as_none(store):
    for content in (b"", b"[1]", b"{", b'{"a": 1}'):
        store.write("x", content)
        assert store.read_json("x") == ({"a": 1} if content == b'{"a": 1}' else None)


def _claim(folder, number, start, winners):
    start.wait()
    if LocalStore(folder).write_new("attempts/1.json", str(number).encode()):
        winners.put(number)


def test_only_a_single_process_wins_a_concurrent_write_new(tmp_path):
    context = multiprocessing.get_context("fork")
    start, winners = context.Barrier(8), context.Queue()
    processes = [context.Process(target=_claim, args=(tmp_path, n, start, winners)) for n in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    winner = winners.get(timeout=10)
    assert winners.empty() and LocalStore(tmp_path).read("attempts/1.json") == str(winner).encode()
    assert os.listdir(tmp_path / "attempts") == ["1.json"]


def test_write_new_on_a_full_disk_leaves_no_files(tmp_path, monkeypatch):
    def fail(handle, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage.atomic, "_write", fail)
    with pytest.raises(DiskFull):
        LocalStore(tmp_path).write_new("x", b"1")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("uri", ["nosuch://bucket/x", "s3nosuch://", "http://127.0.0.1:1/x"])
def test_unusable_storage_uris_are_refused_with_a_message(uri):
    with pytest.raises(UserError) as caught:
        open_store(uri).write("x", b"1")
    assert len(str(caught.value).splitlines()) <= 2 and uri.partition("/x")[0].rstrip("/x") in str(caught.value)


def test_file_system_errors_become_store_errors_in_a_single_line(monkeypatch):
    store = open_store(f"memory://{uuid.uuid4().hex}")
    assert isinstance(store, FsspecStore)
    monkeypatch.setattr(store, "_system", Broken())
    for act in (lambda: store.read("x"), lambda: store.write("x", b""), lambda: store.names("x")):
        with pytest.raises(StoreError, match="503 slow down") as caught:
            act()
        assert "\n" not in str(caught.value)


class Broken:
    def __getattr__(self, name):
        raise RuntimeError("503 slow down\nrequest id 7")


def test_keep_trying_doubles_its_pauses_until_success():
    tries, pauses = [], []

    def act():
        tries.append(1)
        if len(tries) < 5:
            raise StoreError("no")
        return "done"

    assert keep_trying(act, 1000, pauses.append) == "done" and pauses == [1, 2, 4, 8]
    with pytest.raises(StoreError):
        keep_trying(lambda: tries.clear() or act(), 0.5, pauses.append)
