"""files/: whole or not there, whatever happens meanwhile."""

import errno
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from conftest import ROOT
from sdpersonal import storage
from sdpersonal.errors import DiskFull, UserError
from support.crash import CALLS, DIED, DONE, NO_ROOM, REFUSED, die_at, fail_at, in_child


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MB of its own."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting needs root")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def content(folder):
    """Every path under `folder` with its bytes, but for lock files."""
    paths = [path for path in folder.rglob("*") if path.name != storage.LOCK_NAME]
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in paths}


# --- reading ----------------------------------------------------------------------------------------------------------


def test_read_bytes_reads_files_up_to_the_limit(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert storage.read_bytes(path, 5) == b"12345"
    with pytest.raises(UserError, match="larger than"):
        storage.read_bytes(path, 4)


def test_read_bytes_refuses_pipes_devices_folders_and_missing_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "dangling").symlink_to("nowhere")
    for path in (tmp_path / "pipe", tmp_path / "zero", tmp_path, tmp_path / "dangling", tmp_path / "missing"):
        with pytest.raises(UserError) as caught:
            storage.read_bytes(path, 100)
        assert "\n" not in caught.value.message


@pytest.mark.parametrize("part", ["../x", "/etc/passwd", "..", ".", "", "a/../../x", "a\0b", "out", "out/x"])
def test_resolve_inside_refuses_paths_outside_the_root(tmp_path, part):
    root = tmp_path / "root"
    root.mkdir()
    (root / "out").symlink_to(tmp_path)
    with pytest.raises(UserError, match="not inside"):
        storage.resolve_inside(root, part)


def test_resolve_inside_follows_links_inside_the_root(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert storage.resolve_inside(tmp_path, "link", "x") == tmp_path.resolve() / "real" / "x"


# --- writing ----------------------------------------------------------------------------------------------------------


def test_write_bytes_syncs_the_data_before_the_rename_and_the_folder_after(tmp_path, monkeypatch):
    path, order = tmp_path / "a", []

    def synced(handle, real=os.fsync):
        real(handle)
        order.append("folder" if os.path.samestat(os.fstat(handle), os.stat(tmp_path)) else "data")

    def replaced(old, new, real=os.replace):
        real(old, new)
        order.append("name")

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    storage.write_bytes(path, b"x")
    assert order == ["data", "name", "folder"]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_file_modes_follow_the_umask(tmp_path, mask, mode):
    def work():
        os.umask(mask)
        storage.write_bytes(tmp_path / "a", b"x")
        storage.append_line(tmp_path / "b", "x")

    assert in_child(work) == DONE
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in "ab"] == [mode, mode]


def test_write_bytes_replaces_a_link_without_following_it(tmp_path):
    (tmp_path / "far").write_bytes(b"old")
    (tmp_path / "a").symlink_to("far")
    storage.write_bytes(tmp_path / "a", b"new")
    assert content(tmp_path) == {"far": b"old", "a": b"new"}
    assert not (tmp_path / "a").is_symlink()


def test_write_json_refuses_nan(tmp_path):
    with pytest.raises(ValueError):
        storage.write_json(tmp_path / "a", {"loss": float("nan")})
    assert content(tmp_path) == {}


def test_an_interrupted_write_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(storage.atomic, "_write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        storage.write_bytes(tmp_path / "a", b"x")
    assert content(tmp_path) == {}


def test_long_names_can_be_written(tmp_path):
    storage.write_bytes(tmp_path / ("n" * 255), b"x")
    assert content(tmp_path) == {"n" * 255: b"x"}


@pytest.mark.parametrize("path", ["missing/a", "file/a", "folder"])
def test_an_impossible_write_is_refused_and_changes_nothing(tmp_path, path):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    before = content(tmp_path)
    with pytest.raises(UserError) as caught:
        storage.write_bytes(tmp_path / path, b"x")
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    assert content(tmp_path) == before


def test_append_line_starts_a_new_line_after_a_truncated_one(tmp_path):
    path = tmp_path / "progress.jsonl"
    storage.append_line(path, '{"step": 1}')
    with path.open("ab") as file:
        file.write(b'{"st')  # a kill
    storage.append_line(path, '{"step": 2}')
    storage.append_line(path, '{"step": 3}')
    assert path.read_text().splitlines() == ['{"step": 1}', '{"st', '{"step": 2}', '{"step": 3}']


def test_free_bytes_accepts_a_folder_that_does_not_exist(tmp_path):
    assert storage.free_bytes(tmp_path / "not" / "yet") > 0


# --- full disks -------------------------------------------------------------------------------------------------------


def test_a_full_disk_keeps_the_old_file_and_leaves_no_others(small_disk):
    storage.write_bytes(small_disk / "a", b"old")
    with pytest.raises(DiskFull) as caught:
        storage.write_bytes(small_disk / "a", bytes(3_100_000))
    assert content(small_disk) == {"a": b"old"}
    text = str(caught.value)
    assert text.startswith(f"not enough space in {small_disk}: need 3.1 MB, ") and text.endswith(
        " free. Nothing was changed."
    )


def test_a_full_disk_removes_the_staged_folder(small_disk):
    with pytest.raises(DiskFull), storage.new_folder(small_disk / "step-1") as staged:
        storage.write_bytes(staged / "state", bytes(600_000))
        storage.write_bytes(staged / "more", bytes(600_000))
    assert content(small_disk) == {}


def test_a_file_size_limit_is_reported_as_a_full_disk(tmp_path):
    (tmp_path / "a").write_bytes(b"old")

    def work():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        storage.write_bytes(tmp_path / "a", bytes(5000))

    assert in_child(work) == NO_ROOM
    assert content(tmp_path) == {"a": b"old"}


# --- folders ----------------------------------------------------------------------------------------------------------


def test_a_new_folder_appears_complete_or_not_at_all(tmp_path):
    with storage.new_folder(tmp_path / "runs" / "f") as staged:
        (staged / "sub").mkdir()
        (staged / "sub" / "a").write_bytes(b"1")
        assert not (tmp_path / "runs" / "f").exists()
    assert content(tmp_path / "runs") == {"f": None, "f/sub": None, "f/sub/a": b"1"}
    with pytest.raises(RuntimeError), storage.new_folder(tmp_path / "runs" / "g") as staged:
        (staged / "a").write_bytes(b"1")
        raise RuntimeError
    assert not any(path.name != "f" for path in (tmp_path / "runs").iterdir())


def test_new_folder_and_make_folder_refuse_existing_paths(tmp_path):
    (tmp_path / "f").mkdir()
    with pytest.raises(UserError, match="already exists"), storage.new_folder(tmp_path / "f"):
        pass
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(UserError, match="a file, not a folder"):
        storage.make_folder(tmp_path / "a")


def test_new_folder_passes_on_errors_about_other_files(tmp_path):
    with pytest.raises(FileNotFoundError), storage.new_folder(tmp_path / "f"):
        (tmp_path / "photo.jpg").read_bytes()


def test_remove_deletes_a_link_and_keeps_its_target(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a").write_bytes(b"1")
    (tmp_path / "link").symlink_to("real")
    storage.remove(tmp_path / "link")
    assert content(tmp_path) == {"real": None, "real/a": b"1"}
    storage.remove(tmp_path / "real")
    assert content(tmp_path) == {}
    with pytest.raises(UserError):
        storage.remove(tmp_path / "real")


def test_remove_deletes_a_folder_of_which_another_deletes_a_part_meanwhile(tmp_path, monkeypatch):
    """As when a training is discarded while its photos are being deleted."""
    folder, real = tmp_path / "run", os.unlink
    (folder / "photos").mkdir(parents=True)
    for name in ("1.jpg", "2.jpg"):
        (folder / "photos" / name).write_bytes(b"x")
    both = []

    def unlink(path, **options):
        if not both:
            both.append(path)
            real(path, **options)  # the other comes first
        real(path, **options)

    monkeypatch.setattr(os, "unlink", unlink)
    storage.remove(folder)
    assert both and content(tmp_path) == {}


def test_rename_refuses_to_overwrite(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"2")
    with pytest.raises(UserError, match="already exists"):
        storage.rename(tmp_path / "a", tmp_path / "b")
    storage.rename(tmp_path / "a", tmp_path / "c")
    assert content(tmp_path) == {"b": b"2", "c": b"1"}


# --- crashes ----------------------------------------------------------------------------------------------------------


def replace_a(place):
    storage.write_bytes(place / "a", b"new" * 1000)


def stage(place):
    with storage.new_folder(place / "step-2") as staged:
        storage.write_bytes(staged / "state", b"2" * 1000)
        storage.write_json(staged / "manifest.json", {"step": 2})


def drop(place):
    storage.remove(place / "step-1")


def move(place):
    storage.rename(place / "a", place / "b")


def start(place):
    place.mkdir()
    storage.write_bytes(place / "a", b"old")
    with storage.new_folder(place / "step-1") as staged:
        storage.write_bytes(staged / "state", b"1")
        storage.write_json(staged / "manifest.json", {"step": 1})


@pytest.mark.parametrize("change", [replace_a, stage, drop, move])
def test_a_crash_at_any_call_leaves_the_old_or_the_new_content(tmp_path, change):
    start(tmp_path / "before")
    start(tmp_path / "after")
    change(tmp_path / "after")
    allowed = [content(tmp_path / "before"), content(tmp_path / "after")]
    for n in range(1, 100):
        place = tmp_path / str(n)
        start(place)
        status = die_at(n, lambda place=place: change(place))
        storage.remove_leftovers(place)
        assert content(place) in allowed, n
        if status == DONE:
            break
        assert status == DIED
    assert n > 2 and content(place) == allowed[1]


@pytest.mark.parametrize("change", [replace_a, stage, move])
def test_a_full_disk_at_any_call_changes_nothing(tmp_path, change):
    start(tmp_path / "before")
    before = content(tmp_path / "before")
    writing = [call for call in CALLS if call[1] in ("_write", "mkdir", "replace", "rename")]
    for n in range(1, 100):
        place = tmp_path / str(n)
        start(place)
        status = fail_at(n, errno.ENOSPC, lambda place=place: change(place), writing)
        if status == DONE:
            break
        assert (status, content(place)) == (NO_ROOM, before)
    assert n > 1


@pytest.mark.parametrize("change", [replace_a, stage, drop, move])
def test_an_io_error_at_any_call_leaves_the_old_or_the_new_content(tmp_path, change):
    start(tmp_path / "before")
    start(tmp_path / "after")
    change(tmp_path / "after")
    allowed = [content(tmp_path / "before"), content(tmp_path / "after")]
    for n in range(1, 100):
        place = tmp_path / str(n)
        start(place)
        status = fail_at(n, errno.EIO, lambda place=place: change(place))
        storage.remove_leftovers(place)
        assert status in (DONE, REFUSED) and content(place) in allowed, n
        if status == DONE:
            break


# --- leftovers --------------------------------------------------------------------------------------------------------


def test_remove_leftovers_deletes_only_unlocked_temporary_files(tmp_path):
    ours = storage.atomic.temporary_path(tmp_path / "a")
    ours.write_bytes(b"half")
    folder = storage.atomic.temporary_path(tmp_path / "f")
    folder.mkdir()
    (folder / "x").write_bytes(b"half")
    temporary, guard = storage.atomic.create_temporary(tmp_path / "b")
    link = storage.atomic.temporary_path(tmp_path / "l")
    link.symlink_to(tmp_path / "kept")
    foreign = [".tmpXYZ123", "a.tmp", ".x.staged", "kept", f"a{storage.atomic.TEMPORARY_SUFFIX}"]
    for name in foreign:
        (tmp_path / name).write_bytes(b"")
    assert storage.remove_leftovers(tmp_path) == 2
    assert sorted(content(tmp_path)) == sorted([*foreign, temporary.name, link.name])
    os.close(guard)
    assert storage.remove_leftovers(tmp_path) == 1
    assert storage.remove_leftovers(tmp_path / "missing") == 0


# --- locks ------------------------------------------------------------------------------------------------------------

HOLD = """
import sys, time
sys.path[:0] = {path!r}
from sdpersonal import storage as files
with files.lock({folder!r}):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of tmp_path."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(path=sys.path, folder=str(tmp_path))], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_the_lock_error_names_the_holding_process(tmp_path, holder):
    named = rf"in use by process {holder.pid} since \d\d:\d\d\."
    with pytest.raises(UserError, match=named), storage.lock(tmp_path):
        pass
    with pytest.raises(UserError, match=r"^The run is in use"), storage.lock(tmp_path, label="The run"):
        pass


def test_a_killed_process_releases_its_lock_to_a_waiting_process(tmp_path, holder):
    began = time.monotonic()
    threading.Timer(0.3, holder.kill).start()
    with storage.lock(tmp_path, timeout=10):
        assert 0.2 < time.monotonic() - began < 9
    assert (tmp_path / storage.LOCK_NAME).exists()  # and does not hinder the next
    with storage.lock(tmp_path):
        pass


def test_one_process_cannot_lock_a_folder_twice(tmp_path):
    with (
        storage.lock(tmp_path),
        pytest.raises(UserError, match=f"by process {os.getpid()}"),
        storage.lock(tmp_path),
    ):
        pass


@pytest.mark.parametrize("note", [b"", b"\xff\xfe\x00 \x1b[31m", b"1 2 3 4", b"9" * 5000])
def test_a_damaged_lock_file_does_not_prevent_locking(tmp_path, note):
    (tmp_path / storage.LOCK_NAME).write_bytes(note)
    with storage.lock(tmp_path):
        pass


# --- private folders --------------------------------------------------------------------------------------------------

MAKE_FOLDER = """
import sys, tempfile, time
from sdpersonal import storage
folder = storage.private_folder("sdpersonal-test-")
(folder / "photo").write_text("x")
print(folder, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(os.name == "nt", reason="folders are locked on POSIX only")
def test_private_folder_removes_only_folders_of_killed_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen([sys.executable, "-c", MAKE_FOLDER], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    killed, living = (Path(process.stdout.readline().strip()) for process in processes)
    processes[0].kill()
    processes[0].wait()
    assert (killed / "photo").exists()
    (tmp_path / "sdpersonal-other").mkdir()
    (tmp_path / "target").mkdir()
    (tmp_path / "sdpersonal-test-link").symlink_to(tmp_path / "target")
    mine = storage.private_folder("sdpersonal-test-")
    assert not killed.exists() and (living / "photo").exists() and (tmp_path / "target").exists()
    assert mine.stat().st_mode & 0o777 == 0o700 and (tmp_path / "sdpersonal-other").exists()
    assert storage.private_folder("sdpersonal-test-") != mine and mine.exists()  # two of one process
    processes[1].kill()
    for process in processes:
        process.wait()
        process.stdout.close()
