"""What the Library tab does, without the page: tiles, cards, versions, files in and out, deleting and undoing."""

import io
import json
import math
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from sdpersonal.app.backend.error_text import value_or_error
from sdpersonal.app.backend.library.comparison import check_conflicts, compare_concepts
from sdpersonal.app.backend.library.concept_details import (
    concept_details,
    delete,
    deletion_question,
    empty_trash,
    list_deletions,
    rename_all_versions,
    save_card,
    token_choices,
    undo_deletion,
)
from sdpersonal.app.backend.library.import_export import PROGRAMS, import_uploads, make_export_download
from sdpersonal.app.backend.library.tiles import concept_tiles, thumbnail_data_url
from sdpersonal.app.backend.workspace import Workspace
from sdpersonal.concepts.concept import Concept
from sdpersonal.concepts.concept_file import concept_to_bytes
from sdpersonal.concepts.library import Library
from sdpersonal.concepts.thumbnail import make_thumbnail
from sdpersonal.errors import UserError
from sdpersonal.prompts import Token
from support.samples import card, concept, lora, vectors
from support.stock import small_library

T = Token.parse
HOSTILE = [
    None,
    "",
    3,
    math.nan,
    True,
    [],
    ["<me/duck>"],
    {},
    "../../etc/passwd",
    "/etc/passwd",
    "<me/duck",
    "a" * 9999,
]


@pytest.fixture
def workspace(tmp_path):
    return Workspace(small_library(tmp_path / "concepts"), tmp_path / "out", tmp_path / "runs", tmp_path / "shown")


# --- tiles ------------------------------------------------------------------------------------------------------------


def test_tiles_are_small_files_made_once(workspace):
    tiles = concept_tiles(workspace, loaded="tiny")
    assert tiles.tokens == ("<me/duck>", "<me/photo>", "<you/ink>") and tiles.match_count == 3
    assert [caption for _, caption in tiles.thumbnails] == ["<me/duck>", "<me/photo> sd1", "<you/ink>"]
    places = [Path(path) for path, _ in tiles.thumbnails]
    assert all(workspace.served_dir in path.parents and path.stat().st_size < 20_000 for path in places)
    assert Image.open(places[0]).getpixel((5, 5))[0] > 200  # the thumbnail's red
    assert max(Image.open(places[0]).size) <= 160
    before = [path.stat().st_mtime_ns for path in places]
    assert [Path(path) for path, _ in concept_tiles(workspace).thumbnails] == places
    assert [path.stat().st_mtime_ns for path in places] == before
    places[0].unlink()  # the page's cache is cleared now and then
    concept_tiles(workspace)
    assert places[0].exists()


def test_a_changed_file_gets_another_tile(workspace):
    (old, _), *_ = concept_tiles(workspace).thumbnails
    blue = make_thumbnail(Image.new("RGB", (64, 64), "blue"))
    workspace.library.add(Concept(T("<me/duck>"), card(), {"clip_l": vectors(0)}, None, blue), replace=True)
    (new, _), *_ = concept_tiles(workspace).thumbnails
    assert new != old and Image.open(new).getpixel((5, 5))[2] > 200


@pytest.mark.parametrize(
    "asked, tokens",
    [
        ({"search": "ME/DUCK tiny"}, ["<me/duck>"]),
        ({"search": "me stable"}, ["<me/photo>"]),
        ({"search": "nothing"}, []),
        ({"kind": "style"}, ["<you/ink>"]),
        ({"base": "sd1"}, ["<me/photo>"]),
        ({"base": "tiny", "kind": "object"}, ["<me/duck>"]),
        ({"limit": 1}, ["<me/duck>"]),
        ({"limit": -5}, []),
    ],
)
def test_what_is_asked_for_is_shown(workspace, asked, tokens):
    assert list(concept_tiles(workspace, **asked).tokens) == tokens


def test_what_is_damaged_is_shown_and_told(workspace):
    (workspace.library.folder / "me" / "cut-v1.safetensors").write_bytes(b"half")
    tiles = concept_tiles(workspace)
    assert "<me/cut>" in tiles.tokens and "1 damaged" in tiles.note
    details = concept_details(workspace.library, "<me/cut>")
    assert details.card is None and details.facts[0][0] == "Damaged"
    assert "<me/cut>" not in concept_tiles(workspace, kind="object").tokens


def test_a_hundred_concepts_are_shown_a_page_at_a_time(tmp_path):
    library = Library(tmp_path / "concepts")
    for number in range(100):
        library.add(concept(f"<me/thing-{number}>", seed=number))
    tiles = concept_tiles(Workspace(library, tmp_path, tmp_path, tmp_path / "shown"))
    assert len(tiles.tokens) == 48 and tiles.match_count == 100 and "The first 48 are shown" in tiles.note


def test_no_library_is_no_tiles(tmp_path):
    tiles = concept_tiles(Workspace(Library(tmp_path / "none"), tmp_path, tmp_path, tmp_path / "shown"))
    assert (tiles.thumbnails, tiles.note) == ([], "")
    (tmp_path / "file").write_text("x")
    assert "file" in concept_tiles(Workspace(Library(tmp_path / "file"), tmp_path, tmp_path, tmp_path / "shown")).note


def test_what_is_no_picture_gets_a_plain_tile(workspace, monkeypatch):
    entry = workspace.library.find(T("<me/duck>"))
    monkeypatch.setattr(type(entry), "thumbnail", b"\x89PNG\r\n\x1a\nbroken")
    assert concept_tiles(workspace).thumbnails[0][0].endswith(".webp") and thumbnail_data_url(entry) == ""


# --- the card ---------------------------------------------------------------------------------------------------------


def test_a_card_in_words(workspace):
    scores = {"likeness": 0.86, "fidelity": 0.9, "copying": 0.0, "diversity": 0.3, "cosine": 0.7, "score": 0.88}
    facts = {"title": "Our duck", "steps": 1200, "method": "LoRA", "scores": scores, "prompts": ("<me/duck> at sea",)}
    workspace.library.edit(T("<me/duck>"), facts)
    details = concept_details(workspace.library, "<duck>")
    known = dict(details.facts)
    assert (details.token, details.prompt_token, details.title) == ("<me/duck-v2>", "<me/duck>", "Our duck")
    assert known["Method"] == "LoRA in 1,200 steps" and known["Model"].startswith("the built-in model")
    assert "likeness 0.86" in known["Scores"] and details.quality == (
        "It is like the photos, and the places that prompts ask for are there.",
    )
    assert details.prompts == ("<me/duck> at sea",) and details.versions == ("<me/duck-v1>", "<me/duck-v2>")
    assert details.thumbnail.startswith("data:image/webp;base64,")
    old = concept_details(workspace.library, "<me/duck-v1>")
    assert old.prompt_token == "<me/duck-v1>" and old.prompts == ("a photo of <me/duck-v1> on the beach",)


def test_the_card_is_filled_in(workspace):
    values = {
        "title": "A duck",
        "description": "Yellow.\nSmall.",
        "kind": "object",
        "class_noun": "toy duck",
        "license": "cc-by-4.0",
        "author": "Jo",
        "consent": "unknown",
        "consent_note": None,
        "prompts": "one <me/duck>\n\n  two <me/duck>  ",
    }
    identity = workspace.library.find(T("<me/duck>")).identity
    assert save_card(workspace.library, "<me/duck-v2>", values) == T("<me/duck-v2>")
    entry = workspace.library.find(T("<me/duck>"))
    assert entry.card.license == "CC-BY-4.0" and entry.card.prompts == ("one <me/duck>", "two <me/duck>")
    assert (entry.card.title, entry.card.description, entry.identity) == ("A duck", "Yellow. Small.", identity)


@pytest.mark.parametrize(
    "values, says",
    [
        ({"license": "do what you want"}, "is not a known licence"),
        ({"title": "x" * 101}, "title is not valid"),
        ({"kind": "<script>"}, "kind is not valid"),
        ({"title": 3}, "title must be text"),
        ({"prompts": "a\n" * 17}, "prompts is not valid"),
        ({"description": ["x"]}, "description must be text"),
    ],
)
def test_what_cannot_be_on_a_card_is_refused_in_words(workspace, values, says):
    before = workspace.library.find(T("<me/duck>")).card
    with pytest.raises(UserError, match=says):
        save_card(workspace.library, "<me/duck>", values)
    assert workspace.library.find(T("<me/duck>")).card == before


def test_other_fields_are_not_a_pages_to_write(workspace):
    save_card(
        workspace.library, "<me/duck>", {"title": "x", "scores": {"likeness": 1}, "base": "sdxl", "token": "<a/b>"}
    )
    assert workspace.library.find(T("<me/duck>")).card.scores == {}


def test_a_rename_takes_all_versions(workspace):
    assert rename_all_versions(workspace.library, "<me/duck-v2>", "<me/goose>") == T("<me/goose-v2>")
    assert concept_details(workspace.library, "<goose>").versions == ("<me/goose-v1>", "<me/goose-v2>")
    with pytest.raises(UserError, match="has no version"):
        rename_all_versions(workspace.library, "<me/goose>", "<me/swan-v3>")
    with pytest.raises(UserError, match="is already in the library"):
        rename_all_versions(workspace.library, "<me/goose>", "<you/ink>")


# --- beside each other ------------------------------------------------------------------------------------------------


def test_two_versions_beside_each_other(workspace):
    workspace.library.edit(T("<me/duck-v1>"), {"steps": 100})
    comparison = compare_concepts(workspace.library, "<me/duck-v1>", "<me/duck-v2>")
    a, b = (workspace.library.get(T(f"<me/duck-v{n}>")).vectors["clip_l"].astype(np.float64) for n in (1, 2))
    cosine = np.mean([x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(a, b, strict=True)])
    assert f"cosine {cosine:.2f}" in comparison.sentences[0]
    assert ("Method", "in 100 steps", "") in comparison.rows and all(
        thumbnail.startswith("data:") for thumbnail in comparison.thumbnails
    )
    others = compare_concepts(workspace.library, "<me/duck>", "<me/photo>")
    assert "different kinds of models" in others.sentences[0]


def test_several_are_checked(workspace):
    assert "no base can generate both" in check_conflicts(workspace.library, ["<me/duck>", "<me/photo>"])
    assert (
        check_conflicts(workspace.library, ["<me/duck>", "<you/ink>"]) == "<me/duck-v2> and <you/ink-v1>: "
        "The style has guidance of its own, so that the subject does not outweigh it.\n"
        "No conflicts: they can be used in one prompt."
    )
    workspace.library.add(Concept(T("<me/twin>"), card(), workspace.library.get(T("<me/duck>")).vectors))
    assert "Try <me/duck-v2:1> <me/twin-v1:0>" in check_conflicts(workspace.library, ["<me/duck>", "<me/twin>"])


def test_choices(workspace):
    (tokens, first, second), newest = token_choices(workspace.library, "<me/duck-v2>")
    assert tokens == ["<me/duck-v1>", "<me/duck-v2>", "<me/photo-v1>", "<you/ink-v1>"]
    assert (first, second, newest) == ("<me/duck-v2>", "<me/duck-v1>", ["<me/duck>", "<me/photo>", "<you/ink>"])


# --- files in ---------------------------------------------------------------------------------------------------------


def drop(workspace, **content: bytes) -> list[str]:
    """Files as an upload leaves them: each in a folder of its own."""
    paths = []
    for number, (name, data) in enumerate(content.items()):
        place = workspace.served_dir / f"upload{number}"
        place.mkdir(parents=True)
        (place / name).write_bytes(data)
        paths.append(str(place / name))
    return paths


def tensors(**content) -> bytes:
    path = Path("tensors.safetensors")
    save_file(content, path)
    return path.read_bytes()


def test_files_are_imported_and_go(workspace):
    rows = tensors(**{"<cat>": vectors(7, width=768)})
    paths = drop(workspace, **{"learned_embeds.safetensors": rows, "a.txt": b"hello", "b.safetensors": b"not one"})
    came = {entry.name: entry for entry in import_uploads(workspace, "page", paths)}
    assert came["b.safetensors"].status == "refused" and came["a.txt"].status == "refused"
    assert not any(Path(path).exists() for path in paths) and list(workspace.session_dir("page").iterdir()) == []
    np.testing.assert_array_equal(workspace.library.get(T("<imported/cat>")).vectors["clip_l"], vectors(7, width=768))


def test_a_lora_and_its_words_dropped_together_are_one(workspace):
    made = Concept(T("<me/both>"), card(), {"clip_l": 0.02 * vectors(4)}, lora())
    from sdpersonal.concepts.exporters import export

    content = export(made, "diffusers").files
    del content["README.md"]
    came = import_uploads(workspace, "page", drop(workspace, **content), as_="<me/both>")
    assert [entry.token for entry in came] == ["<me/both-v1>"] and " + " in came[0].name
    assert workspace.library.get(T("<me/both>")).lora and workspace.library.get(T("<me/both>")).vectors


def test_a_name_that_is_taken_asks_what_to_do(workspace):
    data = concept_to_bytes(concept("<me/duck>", seed=9))
    (came,) = import_uploads(workspace, "page", drop(workspace, **{"duck.safetensors": data}))
    assert came.status == "refused" and "is already in the library with other content" in came.message
    assert "another name" in came.message and "--" not in came.message
    shutil_again = drop(
        Workspace(workspace.library, workspace.outputs, workspace.runs, workspace.served_dir / "2"),
        **{"x.safetensors": data},
    )
    (came,) = import_uploads(workspace, "page", shutil_again, as_="goose")
    assert came.token == "<me/goose-v1>"
    again = drop(
        Workspace(workspace.library, workspace.outputs, workspace.runs, workspace.served_dir / "3"),
        **{"x.safetensors": data},
    )
    (came,) = import_uploads(workspace, "page", again, replace=True)
    assert (came.status, came.token) == ("imported", "<me/duck-v2>")


def test_a_pickle_that_runs_code_runs_nothing(workspace):
    evil = b"\x80\x02cos\nmkdir\nq\x00X\x05\x00\x00\x00PWNEDq\x01\x85q\x02Rq\x03."
    (came,) = import_uploads(workspace, "page", drop(workspace, **{"evil.bin": evil}))
    assert came.status == "refused" and "os.mkdir; refused" in came.message and not Path("PWNED").exists()


@pytest.mark.parametrize("paths", [*HOSTILE, ["/etc/passwd"], ["../x"], [3], ["x"] * 41, [None], ["\0"]])
def test_only_uploads_are_taken(workspace, paths):
    before = [str(entry.token) for entry in workspace.library.entries()]
    with pytest.raises(UserError):
        import_uploads(workspace, "page", paths)
    assert Path("/etc/passwd").exists() and [str(entry.token) for entry in workspace.library.entries()] == before


def test_a_linked_upload_is_not_followed(workspace, tmp_path):
    (tmp_path / "secret.safetensors").write_bytes(concept_to_bytes(concept("<a/secret>")))
    workspace.served_dir.mkdir()
    (workspace.served_dir / "x.safetensors").symlink_to(tmp_path / "secret.safetensors")
    with pytest.raises(UserError, match="is not inside"):
        import_uploads(workspace, "page", [str(workspace.served_dir / "x.safetensors")])


# --- files out --------------------------------------------------------------------------------------------------------


def test_the_native_file_is_one_and_comes_back(workspace):
    made = make_export_download(workspace, "page", "<me/duck>", "native")
    assert made.path.name == "me-duck.safetensors" and made.path.parent == workspace.session_dir("page")
    np.testing.assert_array_equal(load_file(made.path)["emb_params"], 0.02 * vectors(1))
    assert made.typed == "<me/duck>"


@pytest.mark.parametrize("program", sorted(PROGRAMS.keys() - {"native"}))
def test_other_programs_get_a_zip_with_a_readme(workspace, program):
    made = make_export_download(workspace, "page", "<me/photo>", program)
    with zipfile.ZipFile(io.BytesIO(made.path.read_bytes())) as archive:
        names = archive.namelist()
        stem = f"me-photo-{program}/"
        assert all(name.startswith(stem) for name in names) and f"{stem}README.md" in names
        assert {name.removeprefix(stem) for name in names} >= {name for name, _ in made.places}
        assert "Type" in archive.read(f"{stem}README.md").decode()


@pytest.mark.parametrize("program", [None, "", "../x", "evil", 3, [], "NATIVE"])
def test_only_programs_we_know(workspace, program):
    with pytest.raises(UserError, match="Choose a program"):
        make_export_download(workspace, "page", "<me/duck>", program)


# --- deleting ---------------------------------------------------------------------------------------------------------


def test_delete_and_undo(workspace):
    message, versions = deletion_question(workspace.library, "<me/duck-v2>", others=False)
    assert message == "Delete <me/duck-v2>? It can be restored for 30 days." and versions == 2
    assert "deleted for all users" in deletion_question(workspace.library, "<me/duck>", others=True)[0]
    before = {entry.token: entry.path.read_bytes() for entry in workspace.library.entries()}
    message, name = delete(workspace.library, "<me/duck-v1>", False)
    assert message == "Deleted: <me/duck-v1>." and undo_deletion(workspace.library, name) == (
        "Restored: <me/duck-v1>.",
        "<me/duck-v1>",
    )
    message, name = delete(workspace.library, "<me/duck-v2>", True)
    assert message == "Deleted: <me/duck> (2 versions)." and [
        label for _, label in list_deletions(workspace.library)
    ] == [name]
    assert undo_deletion(workspace.library, name)[1] == "<me/duck-v2>"
    assert {entry.token: entry.path.read_bytes() for entry in workspace.library.entries()} == before
    delete(workspace.library, "<you/ink>", False)
    assert (
        empty_trash(workspace.library) == "Deleted for good: 1 concept."
        and empty_trash(workspace.library) == "The trash was empty."
    )


# --- anything at all --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", HOSTILE)
def test_whatever_a_page_sends_ends_in_words(workspace, word, caplog):
    library = workspace.library
    before = {entry.token: entry.path.read_bytes() for entry in library.entries()}
    for work, arguments in [
        (concept_details, (word,)),
        (save_card, (word, {"title": "x"})),
        (rename_all_versions, (word, "<me/x>")),
        (rename_all_versions, ("<me/duck>", word)),
        (compare_concepts, (word, "<me/duck>")),
        (compare_concepts, ("<me/duck>", word)),
        (check_conflicts, (word,)),
        (check_conflicts, ([word, "<me/duck>"],)),
        (deletion_question, (word, False)),
        (delete, (word, True)),
        (undo_deletion, (word,)),
    ]:
        done, message = value_or_error(work, library, *arguments)
        assert done is None and message and not re.search("failure|Traceback", message), (work, message)
    assert value_or_error(make_export_download, workspace, "page", word, "native")[0] is None
    assert {entry.token: entry.path.read_bytes() for entry in library.entries()} == before
    assert caplog.text == "" and json.dumps(str(concept_tiles(workspace, search=word).tokens))
