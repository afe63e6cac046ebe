"""The library: one file per concept, found by its word, whole whatever happens."""

import contextlib
import dataclasses
import errno
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from sdpersonal import storage
from sdpersonal.concepts.concept_file import concept_from_bytes, concept_to_bytes
from sdpersonal.concepts.library import Entry, Library
from sdpersonal.errors import DiskFull, UnknownConcept, UserError
from sdpersonal.prompts import Token
from support.crash import CALLS, DIED, DONE, NO_ROOM, REFUSED, calls_made, die_at, fail_at, in_child
from support.samples import card, concept, embedding, vectors

T = Token.parse


@pytest.fixture
def library(tmp_path):
    return Library(tmp_path / "concepts")


def tokens(library) -> list[str]:
    return [str(entry.token) for entry in library.entries()]


def state(library) -> dict[str, str]:
    """What a user can get: token -> identity and title."""
    return {name: (loaded := library.get(T(name))).identity + loaded.card.title for name in tokens(library)}


def tree(folder: Path) -> dict[str, bytes]:
    result = (path for path in folder.rglob("*") if path.is_file() and path.name != storage.LOCK_NAME)
    return {str(path.relative_to(folder)): path.read_bytes() for path in result}


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.name.startswith(".") and path.name != storage.LOCK_NAME]


# --- as a mapping -----------------------------------------------------------------------------------------------------


def test_a_library_is_used_like_a_mapping_from_tokens(library):
    assert len(library) == 0 and list(library) == [] and "<me/duck>" not in library and library
    first, second = library.add(embedding("<me/duck>", 1)), library.add(embedding("<me/duck>", 2))
    library.add(concept("<me/cat>", 3))
    assert len(library) == 3 and [str(token) for token in library] == ["<me/cat-v1>", "<me/duck-v1>", "<me/duck-v2>"]
    assert library["<me/duck>"].token == second and library["<me/duck-v1>"].token == first
    assert library[first].identity == library.get(first).identity and library["duck"].token == second
    for token in ("<me/duck>", "duck", "<me/duck-v2>", first):
        assert token in library
    for token in ("<me/duck-v3>", "<you/duck>", "", "<not a token>", 3, None):
        assert token not in library


def test_an_unknown_token_raises_a_key_error_that_names_the_nearest(library):
    library.add(embedding("<me/duck>", 1))
    with pytest.raises(UnknownConcept) as caught:
        library["<me/dukc>"]
    assert isinstance(caught.value, KeyError) and isinstance(caught.value, UserError) and caught.value.exit_code == 2
    assert str(caught.value) == "No concept <me/dukc>.\nDid you mean <me/duck>?"
    with pytest.raises(UserError, match="not a token"):
        library["<not a token>"]
    with pytest.raises(UserError, match="text like"):
        library[3]


def test_every_method_accepts_a_token_as_text(library, tmp_path):
    library.add(embedding("<me/duck>", 1))
    assert library.find("<me/duck>").token == T("<me/duck-v1>") == library.versions("<me/duck>")[0]
    assert [entry.token for entry in library.history("<me/duck>")] == [*library.identities("<me/duck>")]
    library.edit("<me/duck>", {"title": "A duck"})
    assert library.get("<me/duck>").card.title == "A duck"
    assert library.rename("<me/duck>", "<me/drake>") == [T("<me/drake-v1>")]
    copy = Library(tmp_path / "copy")
    assert copy.import_(library.find("<me/drake>").path, as_="<me/duck>") == T("<me/duck-v1>")
    assert library.remove("<me/drake>") == [T("<me/drake-v1>")] and len(library) == 0


# --- adding and finding -----------------------------------------------------------------------------------------------


def test_a_missing_folder_is_an_empty_library(library):
    assert (
        library.entries() == [] and library.verify() == [] and library.misplaced_files() == [] and library.sweep() == 0
    )
    with pytest.raises(UserError, match=r"No concept <duck>.\nThe library .* is empty"):
        library.get(T("<duck>"))
    assert not library.folder.exists()


def test_versions_count_up_and_equal_content_is_not_added_again(library):
    assert [str(library.add(concept(seed=seed))) for seed in (0, 1, 0, 2, 1)] == [
        "<me/duck-v1>",
        "<me/duck-v2>",
        "<me/duck-v1>",
        "<me/duck-v3>",
        "<me/duck-v2>",
    ]
    assert str(library.add(concept("<you/duck>"))) == "<you/duck-v1>"
    assert sorted(tree(library.folder)) == [
        "me/duck-v1.safetensors",
        "me/duck-v2.safetensors",
        "me/duck-v3.safetensors",
        "you/duck-v1.safetensors",
    ]
    library.remove(T("<me/duck-v2>"))
    assert str(library.add(concept(seed=4))) == "<me/duck-v4>"  # a version once used is not given again
    assert library.get(T("<me/duck>")).identity == concept(seed=4).identity


def test_versions_are_sorted_as_numbers(library):
    for seed in range(11):
        library.add(embedding(seed=seed))
    assert tokens(library)[-2:] == ["<me/duck-v10>", "<me/duck-v11>"]
    assert library.find(T("<duck>")).token == T("<me/duck-v11>")


def test_get_returns_the_added_concept(library):
    first = concept()
    token = library.add(first)
    loaded = library.get(token)
    assert loaded.token == token and loaded.card.token == "<me/duck-v1>"
    assert np.array_equal(loaded.vectors["clip_l"], first.vectors["clip_l"])
    assert (loaded.identity, loaded.thumbnail) == (first.identity, first.thumbnail)
    assert concept_from_bytes((library.folder / "me/duck-v1.safetensors").read_bytes(), "x").token == token


def test_a_version_never_changes_its_content(library):
    assert str(library.add(concept("<me/duck-v7>"))) == "<me/duck-v7>"
    assert str(library.add(concept("<me/duck-v7>"))) == "<me/duck-v7>"
    with pytest.raises(UserError, match=r"<me/duck-v7> is already in the library .*here \w{8}, the new one \w{8}"):
        library.add(concept("<me/duck-v7>", seed=1))
    assert str(library.add(concept("<me/duck-v2>", seed=2))) == "<me/duck-v2>"
    assert library.find(T("<me/duck>")).token.version == 7


def test_replacing_keeps_the_version(library):
    for seed in (0, 1):
        library.add(concept(seed=seed))
    assert str(library.add(concept(seed=5), replace=True)) == "<me/duck-v2>"
    assert str(library.add(concept("<me/duck-v1>", seed=6), replace=True)) == "<me/duck-v1>"
    assert [library.get(T(name)).identity for name in tokens(library)] == [
        concept(seed=seed).identity for seed in (6, 5)
    ]
    assert str(library.add(concept("<me/new>"), replace=True)) == "<me/new-v1>"
    retitled = concept("<me/new>", card=card(title="New title"))
    assert str(library.add(retitled, replace=True)) == "<me/new-v1>"
    assert library.find(T("<new>")).card.title == "New title"


@pytest.fixture
def shelf(library):
    for token in ("<me/my-cat>", "<me/toy>", "<you/toy>", "<coolperson/trippystyle>"):
        library.add(embedding(token))
    library.add(embedding("<me/my-cat>", 1))
    return library


@pytest.mark.parametrize(
    ("locations", "says"),
    [
        ("<my-cta>", "No concept <my-cta>.\nDid you mean <me/my-cat>?"),
        ("<me/my-cta>", "No concept <me/my-cta>.\nDid you mean <me/my-cat>?"),
        ("<em/my-cat>", "No concept <em/my-cat>.\nDid you mean <me/my-cat>?"),
        ("<trippy-style>", "No concept <trippy-style>.\nDid you mean <coolperson/trippystyle>?"),
        ("<me/my-cat-v9>", "No concept <me/my-cat-v9>.\nDid you mean <me/my-cat-v2>?"),
        ("<qqqq>", "No concept <qqqq>.\nSee: sdpersonal concepts list"),
        ("<toy>", "Several concepts are called <toy>.\nWrite <me/toy> or <you/toy>."),
        ("<toy-v1>", "Several concepts are called <toy-v1>.\nWrite <me/toy-v1> or <you/toy-v1>."),
    ],
)
def test_unknown_and_ambiguous_tokens_are_refused_with_a_hint(shelf, locations, says):
    for method in (shelf.get, shelf.find, shelf.remove, lambda token: shelf.rename(token, T("<me/x>"))):
        with pytest.raises(UserError) as caught:
            method(T(locations))
        assert str(caught.value) == says


def test_a_unique_name_is_found_without_its_owner(shelf):
    assert shelf.find(T("<my-cat>")).token == T("<me/my-cat-v2>")
    assert shelf.find(T("<my-cat-v1>")).token == T("<me/my-cat-v1>")


def test_an_entry_as_json_has_fixed_keys(shelf):
    entries = [entry.as_json() for entry in shelf.entries()]
    keys = (
        "token title description kind class_noun base base_name method steps created author license consent"
        " consent_note trigger_words prompts recipe scores vectors lora_rank size identity path damaged"
    )
    assert all(list(entry) == keys.split() for entry in entries)
    assert json.loads(json.dumps(entries))[0]["token"] == "<coolperson/trippystyle-v1>"
    assert (entries[0]["vectors"], entries[0]["lora_rank"], entries[0]["damaged"]) == (2, 0, None)
    lost = Entry(T("<me/x-v1>"), Path("x"), 3, "cut").as_json()
    assert list(lost) == keys.split() and (lost["token"], lost["title"], lost["damaged"]) == ("<me/x-v1>", None, "cut")


# --- renaming and removing --------------------------------------------------------------------------------------------


def test_renaming_moves_every_version_and_keeps_identity(library):
    for seed in (0, 1):
        library.add(concept(seed=seed))
    before = [entry.identity for entry in library.entries()]
    assert [str(item) for item in library.rename(T("<duck>"), T("<you/toy>"))] == ["<you/toy-v1>", "<you/toy-v2>"]
    assert [entry.identity for entry in library.entries()] == before
    data = (library.folder / "you/toy-v2.safetensors").read_bytes()
    assert concept_from_bytes(data, "x").token == T("<you/toy-v2>") and b"bundle_emb.you-toy." in data
    assert not (library.folder / "me").exists()
    assert library.verify() == []


def test_renaming_renames_the_concept_in_its_prompts(library):
    """Else the prompts to try would name a concept that is gone."""
    prompts = ("a <me/duck:0.8> and <me/duckling>", "<me/cat+me/duck@0-0.5> at home/duck", "<me/duck-v1> <duck>")
    library.add(dataclasses.replace(concept(), card=card(prompts=prompts)))
    library.rename(T("<duck>"), T("<you/toy>"))
    renamed = ("a <you/toy:0.8> and <me/duckling>", "<me/cat+you/toy@0-0.5> at home/duck", "<you/toy-v1> <you/toy>")
    assert library["<you/toy>"].card.prompts == library.entries()[0].card.prompts == renamed


def test_prompts_that_would_become_too_long_are_not_renamed(library):
    prompts = (f"<me/duck> {'x' * 490}",)
    library.add(dataclasses.replace(concept(), card=card(prompts=prompts)))
    library.rename(T("<duck>"), T("<me/a-longer-name>"))
    assert library["<a-longer-name>"].card.prompts == prompts


def test_prompts_follow_a_manually_renamed_file(library):
    library.add(dataclasses.replace(concept(), card=card(prompts=("<me/duck> at sea",))))
    (library.folder / "me/duck-v1.safetensors").rename(library.folder / "me/goose-v1.safetensors")
    (entry,) = library.entries()
    assert entry.card.prompts == library["<me/goose>"].card.prompts == ("<me/goose> at sea",)


def test_a_single_version_can_be_renamed(library):
    for seed in (0, 1):
        library.add(concept(seed=seed))
    assert library.rename(T("<me/duck-v1>"), T("<old-duck>")) == [T("<me/old-duck-v1>")]
    assert library.rename(T("<me/duck-v2>"), T("<me/duck-v9>")) == [T("<me/duck-v9>")]
    assert tokens(library) == ["<me/duck-v9>", "<me/old-duck-v1>"]


def test_renaming_to_an_existing_token_is_refused(shelf):
    before = tree(shelf.folder)
    for old, new in (("<my-cat>", "<me/toy>"), ("<my-cat-v1>", "<me/my-cat-v2>"), ("<my-cat>", "<my-cat>")):
        with pytest.raises(UserError, match="is already in the library"):
            shelf.rename(T(old), T(new))
    with pytest.raises(UserError, match="names a version"):
        shelf.rename(T("<my-cat>"), T("<me/cat-v3>"))
    assert tree(shelf.folder) == before


def test_removing_several_versions_requires_all_versions(library):
    for seed in (0, 1):
        library.add(concept(seed=seed))
    with pytest.raises(UserError, match="several versions: <me/duck-v1>, <me/duck-v2>"):
        library.remove(T("<duck>"))
    assert library.remove(T("<duck>"), all_versions=True) == [T("<me/duck-v1>"), T("<me/duck-v2>")]
    assert library.entries() == [] and not (library.folder / "me").exists()


def test_a_loaded_concept_outlives_its_file(library):
    token = library.add(concept())
    loaded = library.get(token)
    library.add(concept(seed=1), replace=True)
    library.remove(token)
    assert loaded.identity == concept().identity


# --- names and links --------------------------------------------------------------------------------------------------

BAD_NAMES = [
    "../../app",
    "/etc/x",
    "a/b/c",
    "..",
    "con",
    "x.",
    ".git",
    "a\0b",
    "x" * 300,
    "Duck",
    "Mу",
    "ｄuck",
    "a_b",
    "",
]


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("owner", ["me", None])
def test_invalid_names_never_reach_outside_the_library(library, tmp_path, name, owner):
    """Tokens made by hand: `Token.parse` would not let these through to begin with."""
    library.add(embedding())
    before = tree(tmp_path)
    bad = Token(owner or name, name if owner else "duck")
    doings = [
        lambda: library.add(dataclasses.replace(embedding(), token=bad)),
        lambda: library.get(bad),
        lambda: library.find(dataclasses.replace(bad, version=1)),
        lambda: library.remove(bad),
        lambda: library.rename(T("<duck>"), bad),
        lambda: library.import_(library.folder / "me/duck-v1.safetensors", as_=bad),
    ]
    for doing in doings:
        with pytest.raises(UserError):
            doing()
    assert {path: data for path, data in tree(tmp_path).items()} == before


def test_symlinked_folders_are_not_followed(library, tmp_path):
    outside = tmp_path / "home"
    other = Library(outside)
    other.add(embedding("<me/secret>"))
    library.add(embedding("<me/duck>"))
    (library.folder / "x").symlink_to(outside / "me")
    before = tree(outside)
    assert tokens(library) == ["<me/duck-v1>"]
    assert library.misplaced_files() == [library.folder / "x" / "secret-v1.safetensors"]
    for doing in (
        lambda: library.get(T("<x/secret>")),
        lambda: library.remove(T("<x/secret>")),
        lambda: library.add(embedding("<x/new>")),
        lambda: library.rename(T("<duck>"), T("<x/duck>")),
    ):
        with pytest.raises(UserError):
            doing()
    assert tree(outside) == before and tokens(library) == ["<me/duck-v1>"]


def test_a_symlinked_file_is_refused_and_remove_deletes_only_the_link(library, tmp_path):
    library.add(embedding())
    secret = tmp_path / "secret.safetensors"
    secret.write_bytes(concept_to_bytes(embedding("<me/secret-v1>")))
    (library.folder / "me" / "link-v1.safetensors").symlink_to(secret)
    [_, entry] = library.entries()
    assert "not inside" in entry.damaged
    with pytest.raises(UserError, match="not inside"):
        library.get(T("<link>"))
    library.remove(T("<link>"))
    assert tokens(library) == ["<me/duck-v1>"] and secret.exists()


def test_manually_renamed_files_are_found_by_their_path(library):
    library.add(concept())
    folder = library.folder / "me"
    (folder / "duck-v1.safetensors").rename(folder / "goose-v4.safetensors")
    loaded = library.get(T("<goose>"))
    assert loaded.token == T("<me/goose-v4>") and loaded.card.token == "<me/goose-v4>"
    assert library.entries()[0].card.token == "<me/goose-v4>" and library.verify() == []


# --- importing --------------------------------------------------------------------------------------------------------


@pytest.fixture
def shared(tmp_path):
    path = tmp_path / "from a friend.safetensors"
    path.write_bytes(concept_to_bytes(concept("<friend/duck-v7>")))
    return path


def test_imported_native_files_keep_their_token(library, shared):
    assert library.import_(shared) == T("<friend/duck-v7>")
    assert library.import_(shared) == T("<friend/duck-v7>")
    assert library.import_(shared, as_=T("<me/duck>")) == T("<me/duck-v1>")
    assert [entry.identity for entry in library.entries()] == [concept().identity] * 2
    assert library.find(T("<friend/duck>")).thumbnail


def test_an_import_of_an_existing_token_is_refused_with_a_hint(library, shared, tmp_path):
    library.add(concept("<friend/duck-v7>", seed=1))
    before = tree(library.folder)
    with pytest.raises(UserError, match=r"(?s)<friend/duck-v7> is already in .* with other content.*--as .*--replace"):
        library.import_(shared)
    foreign = tmp_path / "learned_embeds.bin"
    torch = pytest.importorskip("torch")
    torch.save({"<duck>": torch.ones(768)}, foreign)
    assert library.import_(foreign) == T("<imported/duck-v1>")
    torch.save({"<duck>": torch.zeros(768)}, foreign)
    with pytest.raises(UserError, match="is already in the library"):
        library.import_(foreign)
    library.remove(T("<imported/duck>"))
    assert tree(library.folder) == before
    assert library.import_(shared, replace=True) == T("<friend/duck-v7>")
    assert library.get(T("<friend/duck>")).identity == concept().identity


def test_a_broken_file_is_not_replaced_by_the_pickle_beside_it(library, tmp_path):
    torch = pytest.importorskip("torch")

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "PWNED"),)

    torch.save({"<a>": Evil()}, tmp_path / "learned_embeds.bin")
    with pytest.raises(UserError, match=r"learned_embeds.bin asks to run os.mkdir"):
        library.import_(tmp_path)
    torch.save({"<a>": torch.ones(768)}, tmp_path / "learned_embeds.bin")
    (tmp_path / "learned_embeds.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"learned_embeds.safetensors is refused"):
        library.import_(tmp_path)
    (tmp_path / "learned_embeds.safetensors").unlink()
    assert library.import_(tmp_path) == T("<imported/a-v1>")
    assert not (tmp_path / "PWNED").exists()


def test_an_imported_file_is_opened_once(library, shared, monkeypatch):
    opened = []

    def counted(path, *rest, real=os.open, **named):
        opened.append(str(path))
        return real(path, *rest, **named)

    monkeypatch.setattr(os, "open", counted)
    library.import_(shared)
    assert opened.count(str(shared)) == 1


def test_a_file_replaced_during_import_is_never_read_as_a_mixture(library, tmp_path):
    path, good, bad = tmp_path / "x", concept_to_bytes(embedding("<me/x>")), b"PK\x03\x04" + bytes(50)
    path.write_bytes(good)
    done = threading.Event()

    def swap():
        while not done.is_set():
            for data in (bad, good):
                storage.write_bytes(path, data)

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        for number in range(30):
            with contextlib.suppress(UserError):
                library.import_(path, as_=Token("me", f"x{number}"))
    finally:
        done.set()
        swapper.join()
    assert library.verify() == [] and {entry.identity for entry in library.entries()} <= {embedding().identity}


def test_unreadable_files_are_refused_with_a_message(library, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "odd\x1b[31m.bin").write_bytes(b"\x80\x02N.")
    for name in ("missing", "pipe", "folder", "odd\x1b[31m.bin"):
        with pytest.raises(UserError) as caught:
            library.import_(tmp_path / name)
        assert "\x1b" not in str(caught.value)
    assert library.entries() == []


# --- damage -----------------------------------------------------------------------------------------------------------


def test_damaged_files_are_listed_and_never_deleted(library):
    for name in ("<me/a>", "<me/b>", "<me/c>", "<me/d>"):
        library.add(concept(name))
    paths = {entry.token.name: entry.path for entry in library.entries()}
    data = bytearray(paths["b"].read_bytes())
    data[-5] ^= 1  # one bit of a weight
    paths["b"].write_bytes(data)
    paths["c"].write_bytes(paths["c"].read_bytes()[:-10])
    paths["d"].write_bytes(b"")
    (library.folder / "me" / "README.md").write_text("hello")
    (library.folder / "x" / "deeper").mkdir(parents=True)
    (library.folder / "x" / "notes.txt").write_text("hello")
    (library.folder / "My Cat.safetensors").write_bytes(b"")
    (library.folder / "me" / "cat.safetensors").write_bytes(b"")
    before = tree(library.folder)
    assert {entry.token.name: bool(entry.damaged) for entry in library.entries()} == {
        "a": False,
        "b": False,
        "c": True,
        "d": True,
    }
    problems = {entry.token.name: problem for entry, problem in library.verify()}
    assert problems.keys() == {"b", "c", "d"}
    assert "sha256 is not the one" in problems["b"] and "ends early" in problems["c"] and "empty" in problems["d"]
    assert [path.name for path in library.misplaced_files()] == ["My Cat.safetensors", "cat.safetensors"]
    with pytest.raises(UserError, match="sha256 is not the one"):
        library.get(T("<b>"))
    assert library.get(T("<a>")).identity == concept().identity
    library.add(embedding("<me/e>"))
    assert tree(library.folder).items() >= before.items()


def _forge(data: bytes, change) -> bytes:
    """Return the file with another header, whose sum is right."""
    length = int.from_bytes(data[:8], "little")
    header, payload = json.loads(data[8 : 8 + length]), data[8 + length :]
    header["__metadata__"]["sdpersonal.header_sha256"] = "0" * 64
    payload = change(header) or payload
    text = json.dumps(header, separators=(",", ":"), sort_keys=True).encode()
    head = len(text).to_bytes(8, "little") + text
    return head.replace(b"0" * 64, storage.sha256(head).encode()) + payload


def _number_for_vectors(header: dict) -> bytes:
    header.pop("emb_params")
    header["x"] = {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}
    return bytes(4)


def _fact(key: str, value: str):
    return lambda header: header["__metadata__"].update({key: value})


FORGED = {
    "checksum": _fact("sdpersonal.header_sha256", "\ud800"),
    "identity": _fact("modelspec.hash_sha256", "\ud800"),
    "whole": _fact("sdpersonal.whole", "\ud800"),
    "format": _fact("sdpersonal.format", "\ud800"),
    "card": _fact("sdpersonal.card", "\ud800"),
    "number": _number_for_vectors,
}


def test_a_bad_file_does_not_stop_the_listing_of_the_others(library):
    good = library.add(embedding("<me/good>"))
    for name, change in FORGED.items():
        data = _forge(concept_to_bytes(embedding(f"<me/{name}>")), change)
        (library.folder / "me" / f"{name}-v1.safetensors").write_bytes(data)
    os.symlink("loop", library.folder / "loop")
    os.symlink("cycle-v1.safetensors", library.folder / "me" / "cycle-v1.safetensors")
    os.mkfifo(library.folder / "me" / "pipe-v1.safetensors")
    (library.folder / "me" / "folder-v1.safetensors").mkdir()
    bad = {*FORGED, "cycle", "pipe", "folder"}
    listed = {entry.token.name: entry.damaged for entry in library.entries()}
    assert listed.keys() == bad | {"good"} and listed["good"] is None
    assert all(listed[name] for name in bad - {"number"})  # its header alone could be right
    problems = {entry.token.name: problem for entry, problem in library.verify()}
    assert problems.keys() == bad and all(text.isprintable() for text in problems.values())
    assert library.misplaced_files() == []
    assert library.get(good).identity == embedding().identity
    assert library.add(embedding("<me/other>")) == T("<me/other-v1>")


def test_an_unreadable_folder_is_reported_and_hides_no_other(library, monkeypatch):
    for name in ("<a/x>", "<b/y>"):
        library.add(embedding(name))
    real = os.scandir

    def scandir(folder):
        if os.path.basename(folder) == "a":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    assert tokens(library) == ["<b/y-v1>"]
    assert library.misplaced_files() == [library.folder / "a"]
    assert library.add(embedding("<b/z>")) == T("<b/z-v1>")


def test_a_damaged_file_can_be_replaced_renamed_and_removed(library):
    token = library.add(concept())
    path = library.find(token).path
    path.write_bytes(path.read_bytes()[:-1])
    assert library.add(concept()) == T("<me/duck-v2>")  # the same content, but v1 does not hold it any more
    library.rename(T("<duck-v1>"), T("<me/broken>"))
    assert library.entries()[0].damaged
    library.remove(T("<broken>"))
    assert library.verify() == []


def test_a_library_path_that_is_a_file_is_refused_with_a_message(tmp_path):
    (tmp_path / "file").write_text("")
    library = Library(tmp_path / "file")
    for doing in (library.entries, lambda: library.get(T("<x>")), lambda: library.add(concept())):
        with pytest.raises(UserError) as caught:
            doing()
        assert str(tmp_path / "file") in caught.value.message and "\n" not in caught.value.message


def test_a_read_only_library_can_be_read(tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("mounting needs root")
    try:
        library = Library(place / "concepts")
        token = library.add(concept())
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        assert library.get(token).identity == concept().identity
        assert library.verify() == [] and tokens(library) == ["<me/duck-v1>"]
        for doing in (lambda: library.add(concept(seed=1)), lambda: library.remove(token)):
            with pytest.raises(UserError, match="Read-only"):
                doing()
    finally:
        subprocess.run(["umount", "-l", place], check=True)


# --- crashes and full disks -------------------------------------------------------------------------------------------


def add_first(library):
    library.add(concept("<new/goose>", seed=3))


def add_version(library):
    library.add(concept(seed=3))


def replace_one(library):
    library.add(concept(seed=3), replace=True)


def rename_one(library):
    library.rename(T("<me/cat>"), T("<you/lion>"))


def remove_one(library):
    library.remove(T("<me/cat>"))


def edit_one(library):
    library.edit(T("<me/cat>"), {"title": "Lion"})


def import_one(library):
    library.import_(library.folder.parent / "shared.safetensors")


CHANGES = [add_first, add_version, replace_one, rename_one, edit_one, remove_one, import_one]


def start(place: Path) -> Library:
    """Two concepts of one owner, and a file to import."""
    library = Library(place / "concepts")
    library.add(concept())
    library.add(concept("<me/cat>", seed=1))
    (place / "shared.safetensors").write_bytes(concept_to_bytes(concept("<friend/duck-v7>", seed=5)))
    return library


class Rounds:
    """Fresh copies of one library, and what it may look like after a change that something interrupted."""

    def __init__(self, change, place: Path):
        self.place, self.change = place, change
        self.before = state(start(place / "before"))
        after = self.fresh("after")
        change(after)
        self.after = state(after)
        assert self.before != self.after

    def fresh(self, name: object) -> Library:
        shutil.copytree(self.place / "before", self.place / str(name))
        return Library(self.place / str(name) / "concepts")

    def calls(self, calls=CALLS) -> int:
        library = self.fresh(f"counting {len(calls)}")
        return calls_made(lambda: self.change(library), calls)


@pytest.fixture(params=CHANGES)
def rounds(request, tmp_path):
    return Rounds(request.param, tmp_path)


def test_a_crash_at_any_call_leaves_each_concept_old_or_new(rounds):
    for n in range(1, rounds.calls() + 1):
        library = rounds.fresh(n)
        assert die_at(n, lambda library=library: rounds.change(library)) == DIED
        assert state(library) in (rounds.before, rounds.after), n
        assert library.verify() == [] and library.misplaced_files() == []
        library.sweep()
        assert leftovers(library.folder) == []
        library.add(embedding("<me/next>"))  # and it goes on working
    assert n > 3


def test_a_full_disk_at_any_call_changes_nothing(rounds):
    writing = [item for item in CALLS if item[1] in ("_write", "mkdir", "replace", "rename")]
    refused = 0
    for n in range(1, rounds.calls(writing) + 1):
        library = rounds.fresh(n)
        status = fail_at(n, errno.ENOSPC, lambda library=library: rounds.change(library), writing)
        # A renamed file whose header could not be brought up to date is renamed all the same.
        assert (status, state(library)) in ((NO_ROOM, rounds.before), (DONE, rounds.after)), n
        assert library.verify() == [] and leftovers(library.folder) == []
        refused += status == NO_ROOM
    assert refused or rounds.change is remove_one


def test_a_failing_disk_leaves_each_concept_old_or_new(rounds):
    for n in range(1, rounds.calls() + 1):
        library = rounds.fresh(n)
        status = fail_at(n, errno.EIO, lambda library=library: rounds.change(library))
        assert status in (DONE, REFUSED) and state(library) in (rounds.before, rounds.after), n
        assert status == REFUSED or state(library) == rounds.after
        assert library.verify() == []


def test_a_concept_over_the_file_size_limit_changes_nothing(tmp_path):
    library = start(tmp_path)
    before = tree(library.folder)

    def work():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        library.add(concept("<new/goose>", seed=3))

    assert in_child(work) == NO_ROOM
    assert tree(library.folder) == before and not (library.folder / "new").exists()


def test_the_full_disk_message_states_the_missing_space(tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("mounting needs root")
    try:
        library = Library(place / "concepts")
        library.add(concept())
        before = tree(library.folder)
        large = concept("<me/large>", vectors={"clip_l": vectors(0, 64, 12_000)})
        with pytest.raises(
            DiskFull, match=r"not enough space in .*: need 3.1 MB, \d\.\d MB free. Nothing was changed."
        ):
            library.add(large)
        assert tree(library.folder) == before
    finally:
        subprocess.run(["umount", "-l", place], check=True)


CHANGES = """
import dataclasses, os, sys
sys.path.insert(0, {tests!r})
from support.samples import embedding
from sdpersonal.concepts.library import Library
from sdpersonal.prompts import Token
library, T = Library({folder!r}), Token.parse
def step(name, work):
    work()
    os.mkdir({marks!r} + name)
library.add(embedding("<you/old>"))
step("before", lambda: None)
step("add", lambda: library.add(embedding("<me/duck>")))
step("replace", lambda: library.add(embedding("<me/duck>", 1), replace=True))
step("edit", lambda: library.edit(T("<me/duck>"), {{"title": "Our duck"}}))
step("rename", lambda: library.rename(T("<me/duck>"), T("<me/goose>")))
step("remove", lambda: library.remove(T("<me/goose>")))
"""


@pytest.mark.slow
def test_files_and_folders_are_flushed_in_an_order_that_survives_power_loss(tmp_path, root):
    """As the system saw it: a file's data are flushed before it gets its name, and the folder after each change."""
    if not shutil.which("strace") or subprocess.run(["strace", "-o", "/dev/null", "true"]).returncode:
        pytest.skip("strace is not here, or may not look")
    folder, marks = tmp_path / "concepts", tmp_path / "mark-"
    work = CHANGES.format(tests=str(root / "tests"), folder=str(folder), marks=str(marks))
    calls = "trace=fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir"
    log = tmp_path / "calls"
    subprocess.run(["strace", "-f", "-y", "-e", calls, "-o", log, sys.executable, "-c", work], check=True, cwd=root)
    done: dict[str, list[tuple[str, str]]] = {}
    step = []
    for name, path in _calls(log.read_text()):
        if path.startswith(str(marks)):
            done[path.removeprefix(str(marks))] = step
            step = []
        elif path.startswith(str(folder)) and storage.LOCK_NAME not in path:
            step.append((name, os.path.relpath(path, folder)))
    original, duck, goose = "me", "me/duck-v1.safetensors", "me/goose-v1.safetensors"
    written = [("fsync", "temporary"), ("rename", duck), ("fsync", original)]
    assert done["add"] == [("mkdir", original), ("fsync", "."), *written]
    assert done["replace"] == done["edit"] == written
    again = [("fsync", "temporary"), ("rename", goose), ("fsync", original)]  # the header's token, for other programs
    assert done["rename"] == [("rename", goose), ("fsync", original), *again]
    assert done["remove"] == [("unlink", goose), ("fsync", original), ("rmdir", original), ("fsync", ".")]


def _calls(log: str):
    """(call, path) of each that succeeded, in order; for a renaming the new path, for our temporary files one name."""
    for line in log.splitlines():
        match = re.match(r"\d+ +(\w+)\((.*)\) += 0$", line)
        if not match:
            continue
        call = {"renameat": "rename", "renameat2": "rename", "mkdirat": "mkdir", "fdatasync": "fsync"}.get(
            match[1], "rmdir" if "AT_REMOVEDIR" in match[2] else match[1].removesuffix("at")
        )
        path = re.search(r"<(.*)>$", match[2])[1] if call == "fsync" else re.findall(r'"([^"]*)"', match[2])[-1]
        folder, _, name = path.rpartition("/")
        yield (
            call,
            f"{folder.partition('/concepts')[0]}/concepts/temporary"
            if name.endswith(storage.atomic.TEMPORARY_SUFFIX)
            else path,
        )


def test_sweep_removes_only_temporary_files_of_dead_processes(library):
    library.add(concept())
    dead = storage.atomic.temporary_path(library.folder / "me" / "duck-v1.safetensors")
    dead.write_bytes(b"half")
    living, guard = storage.atomic.create_temporary(library.folder / "me" / "other")
    foreign = library.folder / "me" / ".tmpAbCdEf"
    foreign.write_bytes(b"")
    assert library.sweep() == 1 and living.exists() and foreign.exists() and not dead.exists()
    os.close(guard)
    library.add(concept(seed=1))  # the next change sweeps, too
    assert not living.exists() and library.verify() == [] and library.misplaced_files() == []


# --- several processes ------------------------------------------------------------------------------------------------


def together(*works) -> list[int]:
    """Run each in a child of its own, all starting at once; their exit states."""
    start_gate, opener = os.pipe()
    children = []
    for work in works:
        child = os.fork()
        if not child:
            os.close(opener)
            os.read(start_gate, 1)  # until the parent closes its end
            os._exit(in_child(work))
        children.append(child)
    os.close(opener)
    os.close(start_gate)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def test_eight_processes_can_create_the_same_folder(tmp_path):
    def work():
        for number in range(500):  # in step with the others: without its second look seven of eight end in an error
            storage.make_folder(tmp_path / f"{number}")

    assert together(*[work] * 8) == [DONE] * 8


@pytest.mark.parametrize("round_", range(5))
def test_eight_processes_adding_one_concept_add_it_once(library, round_):
    assert together(*[lambda: library.add(concept())] * 8) == [DONE] * 8
    assert tokens(library) == ["<me/duck-v1>"] and library.verify() == [] and leftovers(library.folder) == []


def test_eight_processes_adding_different_concepts_add_them_all(library):
    same_name = [lambda seed=seed: library.add(embedding(seed=seed)) for seed in range(4)]
    other_names = [lambda name=name: library.add(embedding(f"<me/{name}>")) for name in "abcd"]
    assert together(*same_name, *other_names) == [DONE] * 8
    assert len(tokens(library)) == 8 and library.verify() == []
    assert {entry.identity for entry in library.entries() if entry.token.name == "duck"} == {
        embedding(seed=seed).identity for seed in range(4)
    }


def test_eight_processes_importing_different_files_under_one_name_import_one(library, tmp_path):
    for seed in range(8):
        (tmp_path / f"{seed}").write_bytes(concept_to_bytes(embedding("<me/duck-v1>", seed)))
    done = together(*[lambda seed=seed: library.import_(tmp_path / f"{seed}") for seed in range(8)])
    assert sorted(done) == [DONE] + [REFUSED] * 7
    assert tokens(library) == ["<me/duck-v1>"] and library.verify() == []


def test_concurrent_removing_and_replacing_leaves_a_valid_library(library):
    chance = random.Random(0)
    for _ in range(10):
        library.add(embedding())
        works = [
            lambda: library.remove(T("<me/duck-v1>")),
            lambda: library.add(embedding("<me/duck-v1>", 1), replace=True),
            lambda: [library.entries() for _ in range(5)],
            lambda: library.verify(),
        ]
        chance.shuffle(works)
        assert set(together(*works)) <= {DONE, REFUSED}
        assert library.verify() == [] and tokens(library) in ([], ["<me/duck-v1>"])
        for token in tokens(library):
            library.remove(T(token))


# --- size -------------------------------------------------------------------------------------------------------------


def test_a_thousand_concepts_are_listed_without_torch(library):
    data = concept_to_bytes(concept("<me/duck-v1>"))
    for owner in range(10):
        folder = library.folder / f"owner{owner}"
        folder.mkdir(parents=True)
        for number in range(100):
            (folder / f"concept-{number}-v1.safetensors").write_bytes(data)
    program = (
        "import sys, sdpersonal.concepts.library as l\n"
        f"entries = l.Library({str(library.folder)!r}).entries()\n"
        "assert len(entries) == 1000 and not any(entry.damaged for entry in entries)\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'gradio', 'PIL', 'scipy'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    subprocess.run(
        [sys.executable, "-c", program], check=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    )


def test_ten_thousand_concepts_are_listed_within_time_and_memory_limits(tmp_path):
    """Generous bounds for a busy machine, in the process's own time: docs/performance.md has the figures."""
    data = concept_to_bytes(concept("<me/duck-v1>"))
    folder = tmp_path / "concepts"
    for owner in range(20):
        (folder / f"owner{owner}").mkdir(parents=True)
        for number in range(500):
            (folder / f"owner{owner}" / f"thing-{number}-v1.safetensors").write_bytes(data)
    program = (
        "import sys, time, sdpersonal.concepts.library as l\n"
        "from sdpersonal.prompts import Token\n"
        f"library, began = l.Library({str(folder)!r}), time.process_time()\n"
        "assert len(library.entries()) == 10_000\n"
        "listed = time.process_time() - began\n"
        "for word in ('<owner7/thing-67>', '<owner7/thing-67-v1>'):\n"
        "    began = time.process_time()\n"
        "    library.get(Token.parse(word))\n"
        "    assert time.process_time() - began < 0.02 * 3, 'get'\n"
        "assert listed < 2 * 3, listed\n"
        # Not ru_maxrss, which the parent's size at the fork counts into.
        "peak = int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) / 1024\n"
        "assert peak < 200, peak\n"
        "assert not {'torch', 'PIL'} & sys.modules.keys()"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_file_dates_do_not_affect_versions(library):
    """Versions are counted, not dated; equal and future dates of files mean nothing."""
    for seed in (0, 1):
        library.add(concept(seed=seed, card=card(created="2030-01-01T00:00:00Z")))
    for entry in library.entries():
        os.utime(entry.path, (0, 0))
    library.add(concept(seed=2, card=card(created="1999-01-01T00:00:00Z")))
    assert library.find(T("<duck>")).token.version == 3
    old = library.find(T("<duck>")).path
    replaced = concept_to_bytes(concept("<me/duck-v3>", seed=4))
    old.write_bytes(replaced)
    os.utime(old, (0, 0))  # nothing is remembered by date, so the new content is seen
    assert library.get(T("<duck>")).identity == concept(seed=4).identity


def test_a_killed_process_releases_the_lock(library):
    library.add(concept())
    program = (
        "import sys, time; from sdpersonal import storage as files; from pathlib import Path\n"
        "with files.lock(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(library.folder)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        assert holder.stdout.readline() == "held\n"
        assert library.get(T("<duck>")).identity == concept().identity  # readers do not wait
        holder.send_signal(signal.SIGKILL)
        holder.wait(10)
        library.edit(T("<duck>"), {"title": "Freed"})
        assert library.find(T("<duck>")).card.title == "Freed"
    finally:
        holder.kill()
        holder.stdout.close()


def test_eight_processes_editing_a_concept_leave_it_consistent(library):
    library.add(concept())
    done = together(*[lambda n=n: library.edit(T("<duck>"), {"title": f"t{n}", "author": f"a{n}"}) for n in range(8)])
    assert done == [DONE] * 8
    made = library.get(T("<duck>"))
    assert made.card.title[1:] == made.card.author[1:] and made.identity == concept().identity
    assert library.verify() == [] and leftovers(library.folder) == []


def test_the_mode_of_a_concepts_file_follows_the_umask(library):
    for mask, mode in ((0o022, 0o644), (0o077, 0o600), (0o002, 0o664)):
        before = os.umask(mask)
        try:
            token = library.add(concept(seed=mask))
            library.edit(token, {"title": "x"})
        finally:
            os.umask(before)
        assert library.find(token).path.stat().st_mode & 0o777 == mode
