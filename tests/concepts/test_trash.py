"""The trash of a library: what was deleted comes back to the bit, whatever happened meanwhile."""

import errno
import json
import shutil
from datetime import UTC, datetime, timedelta

import pytest

from sdpersonal.cli.main import main
from sdpersonal.concepts.library import Library
from sdpersonal.concepts.trash import Trash
from sdpersonal.errors import UserError
from sdpersonal.prompts import Token
from support.crash import CALLS, DIED, DONE, NO_ROOM, REFUSED, calls_made, die_at, fail_at
from support.samples import concept, embedding

T = Token.parse


@pytest.fixture
def library(tmp_path):
    return filled(tmp_path / "concepts")


def filled(folder) -> Library:
    library = Library(folder)
    for seed in (0, 1):
        library.add(concept(seed=seed))
    library.add(embedding("<you/ink>"))
    return library


def here(library) -> dict[str, bytes]:
    return {str(entry.token): entry.path.read_bytes() for entry in library.entries()}


def gone(library) -> dict[str, bytes]:
    return {str(e.token): e.path.read_bytes() for deletion in Trash(library).deletions() for e in deletion.entries}


def test_restored_concepts_are_bit_identical(library):
    before, trash = here(library), Trash(library)
    deletion = trash.delete(T("<me/duck>"), all_versions=True)
    assert [str(token) for token in deletion.tokens] == ["<me/duck-v1>", "<me/duck-v2>"]
    assert list(here(library)) == ["<you/ink-v1>"] and not (library.folder / "me").exists()
    assert library.verify() == [] and library.misplaced_files() == []
    assert [item.name for item in trash.deletions()] == [deletion.name]
    assert trash.restore(deletion.name) == deletion.tokens
    assert here(library) == before and trash.deletions() == []


def test_restoring_never_overwrites_another_concept(library):
    trash = Trash(library)
    deletion = trash.delete(T("<me/duck>"), all_versions=True)
    library.add(concept("<me/duck-v2>", seed=9))
    with pytest.raises(UserError, match=r"<me/duck-v2> cannot be restored: another concept"):
        trash.restore(deletion.name)
    assert list(here(library)) == ["<me/duck-v2>", "<you/ink-v1>"] and len(gone(library)) == 2
    library.rename(T("<me/duck>"), T("<me/other>"))
    trash.restore(deletion.name)
    assert list(here(library)) == ["<me/duck-v1>", "<me/duck-v2>", "<me/other-v2>", "<you/ink-v1>"]


def test_deleting_one_of_several_versions_requires_its_number(library):
    with pytest.raises(UserError, match="has several versions"):
        Trash(library).delete(T("<me/duck>"))
    assert len(here(library)) == 3 and gone(library) == {}
    Trash(library).delete(T("<me/duck-v1>"))
    assert list(gone(library)) == ["<me/duck-v1>"]


def test_a_damaged_file_can_be_deleted_and_restored(library):
    path = library.folder / "me" / "cut-v1.safetensors"
    path.write_bytes(b"half")
    deletion = Trash(library).delete(T("<me/cut>"))
    Trash(library).restore(deletion.name)
    assert path.read_bytes() == b"half"


def test_deletions_expire_after_thirty_days(library):
    trash = Trash(library)
    old = trash.delete(T("<you/ink>")).name
    long_ago = f"{datetime.now(UTC) - timedelta(days=31):%Y%m%dT%H%M%SZ}-00000000"
    (trash.folder / old).rename(trash.folder / long_ago)
    new = trash.delete(T("<me/duck-v1>")).name
    assert [item.name for item in trash.deletions()] == [new]
    assert trash.empty() == 1 and trash.deletions() == [] and list(trash.folder.iterdir()) == []


@pytest.fixture
def clock(monkeypatch):
    """Set how far the clock is ahead: clock(days)."""

    def set_clock(days):
        class Clock(datetime):
            @classmethod
            def now(cls, tz=None):
                return datetime.now(tz) + timedelta(days=days)

        monkeypatch.setattr("sdpersonal.concepts.trash.datetime", Clock)

    return set_clock


@pytest.mark.parametrize("days", [40, 4000])
def test_a_clock_temporarily_set_ahead_loses_nothing(library, clock, days):
    trash = Trash(library)
    before = here(library)
    trash.delete(T("<you/ink>"))
    for ahead, token in ((days, "<me/duck-v1>"), (days + 1, "<me/duck-v2>"), (0, None)):
        clock(ahead)
        if token:
            trash.delete(T(token))
        assert "<you/ink-v1>" in gone(library)
    library.add(concept("<me/new>"))
    trash.delete(T("<me/new>"))
    assert all(deletion.deleted_at <= datetime.now(UTC) for deletion in trash.deletions())
    for deletion in trash.deletions():
        trash.restore(deletion.name)
    assert before.items() <= here(library).items()


def test_a_deletion_dated_in_the_future_expires_after_thirty_days(library, clock):
    trash = Trash(library)
    clock(4000)
    trash.delete(T("<you/ink>"))
    clock(0)
    trash.delete(T("<me/duck-v1>"))
    assert all(deletion.deleted_at <= datetime.now(UTC) for deletion in trash.deletions()) and len(gone(library)) == 2
    clock(20)
    library.add(concept("<me/new>"))
    trash.delete(T("<me/new>"))
    clock(40)
    trash.delete(T("<me/duck-v2>"))
    assert list(gone(library)) == ["<me/duck-v2>", "<me/new-v1>"]


def test_a_clock_set_back_expires_no_deletion(library, clock):
    trash = Trash(library)
    deletion = trash.delete(T("<you/ink>"))
    clock(-10_000)
    trash.delete(T("<me/duck-v1>"))
    assert deletion.name in [item.name for item in trash.deletions()] and len(gone(library)) == 2
    assert trash.empty() == 2 and gone(library) == {}


def test_expiry_after_a_long_absence_takes_another_week(library, clock):
    trash = Trash(library)
    trash.delete(T("<you/ink>"))
    clock(60)
    trash.delete(T("<me/duck-v1>"))
    assert len(gone(library)) == 2
    clock(68)
    trash.delete(T("<me/duck-v2>"))
    assert list(gone(library)) == ["<me/duck-v2>", "<me/duck-v1>"]


@pytest.mark.parametrize(
    "name", ["", "..", "../me", "/etc", "20260131T120000Z-0123456", "99999999T999999Z-00000000", 3]
)
def test_invalid_deletion_names_are_refused(library, name):
    with pytest.raises(UserError, match="is not in the trash any more"):
        Trash(library).restore(name)


def test_a_symlinked_trash_folder_is_refused(library, tmp_path):
    (tmp_path / "outside").mkdir()
    (library.folder / ".trash").symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match="is not inside"):
        Trash(library).delete(T("<you/ink>"))
    assert list((tmp_path / "outside").iterdir()) == [] and len(here(library)) == 3


def put(library):
    Trash(library).delete(T("<me/duck>"), all_versions=True)


def restore(library):
    trash = Trash(library)
    trash.restore(trash.deletions()[0].name)


def empty(library):
    Trash(library).empty()


@pytest.mark.parametrize("change", [put, restore, empty])
def test_a_crash_or_disk_error_at_any_call_loses_nothing(change, tmp_path):
    """Each file is here or in the trash, whole; only emptying the trash ends any."""
    library = filled(tmp_path / "before")
    if change is not put:
        put(library)
    everything, rounds = here(library) | gone(library), 0
    for how, end in [(die_at, (DIED,)), (fail_at, (DONE, REFUSED, NO_ROOM))]:
        counting = _copy(tmp_path, "counting")
        for n in range(1, calls_made(lambda counting=counting: change(counting), CALLS) + 1):
            tried = _copy(tmp_path, f"{how.__name__} {n}")
            extra = (errno.EIO,) if how is fail_at else ()
            assert how(n, *extra, lambda tried=tried: change(tried)) in end
            remaining, lost = here(tried), gone(tried)
            assert not remaining.keys() & lost.keys() and tried.verify() == [] and tried.misplaced_files() == []
            assert remaining | lost == everything or (change is empty and remaining == here(library))
            if lost:
                restore(tried)  # and it goes on working
                assert here(tried) == everything or change is empty
            rounds += 1
        shutil.rmtree(tmp_path / "counting")
    assert rounds > 10


def _copy(place, name: str) -> Library:
    return Library(shutil.copytree(place / "before", place / name))


def test_the_command_line_deletes_and_restores(library, capsys):
    place = ["--library", str(library.folder)]
    before = here(library)
    assert main(["concepts", "remove", "<you/ink>", *place]) == 0
    assert main(["concepts", "restore", "--json", *place]) == 0
    assert json.loads(capsys.readouterr().out.partition("\n")[2])[0]["token"] == "<you/ink-v1>"
    assert main(["concepts", "restore", "<ink>", *place]) == 0 and here(library) == before
    assert main(["concepts", "remove", "<you/ink>", "--for-good", *place]) == 0
    assert main(["concepts", "restore", "<you/ink>", *place]) == 2
    assert "No <you/ink> was deleted here" in capsys.readouterr().err
