"""Hashes of large weights are kept between runs, and are never those of other bytes."""

import hashlib
import json
import os
import threading
import time

import pytest

from sdpersonal import storage
from sdpersonal.errors import UserError
from sdpersonal.models.loading import weight_hashes
from sdpersonal.models.loading.weight_hashes import sha256_of_files

OLD = time.time() - 3600


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Its file, which is not there yet. Small files count as large."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(weight_hashes, "_MIN_BYTES", 10)
    return tmp_path / "cache" / "sdpersonal" / "weight-hashes.json"


@pytest.fixture
def computed(monkeypatch):
    """The names of the files that were hashed."""
    names, compute = [], weight_hashes._compute
    monkeypatch.setattr(
        weight_hashes, "_compute", lambda paths: names.append([path.name for path in paths]) or compute(paths)
    )
    return names


def write(path, data, when=OLD):
    path.write_bytes(data)
    os.utime(path, (when, when))
    return path


def sha256(*parts):
    return hashlib.sha256(b"".join(parts)).hexdigest()


def test_a_file_is_hashed_once(tmp_path, cache, computed):
    first, second = write(tmp_path / "a", b"a" * 100), write(tmp_path / "b", b"b" * 100)
    for _ in range(3):
        assert sha256_of_files([first]) == sha256(b"a" * 100)
        assert sha256_of_files([first, second]) == sha256(b"a" * 100, b"b" * 100)
        assert sha256_of_files([second, first]) == sha256(b"b" * 100, b"a" * 100)
    assert computed == [["a"], ["a", "b"], ["b", "a"]]
    link = tmp_path / "link"
    link.symlink_to(first)  # as in the Hub's cache
    assert sha256_of_files([link]) == sha256(b"a" * 100) and len(computed) == 3


def replace_it(path):
    write(path.with_name("new"), b"c" * 100)
    os.replace(path.with_name("new"), path)


def change_it(path):
    path.write_bytes(b"c" * 100)


def change_it_and_set_its_time_back(path):
    time.sleep(0.02)  # longer than a tick of the kernel's clock
    write(path, b"c" * 100)


def append_to_it(path):
    write(path, b"a" * 101)


@pytest.mark.parametrize("change", [replace_it, change_it, change_it_and_set_its_time_back, append_to_it])
def test_a_changed_file_is_hashed_again(tmp_path, cache, change):
    path = write(tmp_path / "a", b"a" * 100)
    assert sha256_of_files([path]) == sha256(b"a" * 100)
    change(path)
    assert sha256_of_files([path]) == sha256(path.read_bytes()) != sha256(b"a" * 100)


def test_the_hash_of_a_just_modified_file_is_not_cached(tmp_path, cache, computed):
    path = write(tmp_path / "a", b"a" * 100, when=time.time())
    assert sha256_of_files([path]) == sha256_of_files([path]) and len(computed) == 2


def test_the_hash_of_a_file_changed_during_hashing_is_not_cached(tmp_path, cache, monkeypatch):
    path, compute = write(tmp_path / "a", b"a" * 100), weight_hashes._compute

    def compute_slowly(paths):
        result = compute(paths)
        write(path, b"b" * 101)
        return result

    monkeypatch.setattr(weight_hashes, "_compute", compute_slowly)
    sha256_of_files([path])
    monkeypatch.setattr(weight_hashes, "_compute", compute)
    assert sha256_of_files([path]) == sha256(b"b" * 101)


DAMAGE = {
    "cut": lambda text: text[:-20],
    "no JSON": lambda text: "\0" * 100,
    "a list": lambda text: "[]",
    "deep": lambda text: "[" * 100_000,
    "no hash": lambda text: json.dumps(dict.fromkeys(json.loads(text), "f" * 63)),
    "no text": lambda text: json.dumps(dict.fromkeys(json.loads(text), 7)),
    "too large": lambda text: text + " " * (2 << 20),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_rebuilt(tmp_path, cache, computed, damage):
    path = write(tmp_path / "a", b"a" * 100)
    sha256_of_files([path])
    cache.write_text(DAMAGE[damage](cache.read_text()))
    assert [sha256_of_files([path]) for _ in range(2)] == [sha256(b"a" * 100)] * 2
    assert len(computed) == 2


def test_files_are_hashed_every_time_without_a_writable_cache(tmp_path, cache, computed, monkeypatch):
    path = write(tmp_path / "a", b"a" * 100)
    cache.parent.parent.write_bytes(b"a file where the folder would be")
    assert [sha256_of_files([path]) for _ in range(2)] == [sha256(b"a" * 100)] * 2 and len(computed) == 2
    cache.parent.parent.unlink()

    def refuse(*_):
        raise UserError("not enough space")

    monkeypatch.setattr(storage, "write_json", refuse)
    assert sha256_of_files([path]) == sha256(b"a" * 100)
    monkeypatch.setattr(weight_hashes, "_cache_folder", lambda: None)
    assert sha256_of_files([path]) == sha256(b"a" * 100) and len(computed) == 4


def test_concurrent_writers_lose_no_cache_entries(tmp_path, cache, computed):
    paths = [write(tmp_path / f"{i}", bytes([i]) * 100) for i in range(8)]
    threads = [threading.Thread(target=sha256_of_files, args=([path],)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [sha256_of_files([path]) for path in paths] == [sha256(bytes([i]) * 100) for i in range(8)]
    assert len(computed) == 8


def test_the_cache_has_a_maximum_number_of_entries(tmp_path, cache, computed, monkeypatch):
    monkeypatch.setattr(weight_hashes, "_MAX_ENTRIES", 3)
    paths = [write(tmp_path / f"{i}", bytes([i]) * 100) for i in range(5)]
    for path in paths:
        sha256_of_files([path])
    assert len(json.loads(cache.read_text())) == 3
    sha256_of_files([paths[4]])
    assert len(computed) == 5


def test_hashes_of_small_files_are_not_cached(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(weight_hashes, "_MIN_BYTES", 101)
    assert sha256_of_files([write(tmp_path / "a", b"a" * 100)]) == sha256(b"a" * 100)
    assert not cache.parent.exists()


def test_the_cache_is_in_the_users_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert weight_hashes._cache_folder() == tmp_path / ".cache" / "sdpersonal"
