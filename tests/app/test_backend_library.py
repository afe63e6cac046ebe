"""What the Library tab does, without the page: tiles, cards, versions, files in and out, deleting and undoing."""

import io
import json
import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from sdpersonal.app.backend.library.card_text import reproducing_facts, settings_facts
from sdpersonal.app.backend.library.comparison import check_conflicts, compare_concepts
from sdpersonal.app.backend.library.concept_details import concept_details, rename_concept, save_card
from sdpersonal.app.backend.library.deletion import delete, empty_trash, list_deletions, undo_deletion
from sdpersonal.app.backend.library.import_export import PROGRAMS, import_message, import_uploads, make_export
from sdpersonal.app.backend.library.listing import token_choices
from sdpersonal.app.backend.library.thumbnails import ThumbnailStore, thumb_url
from sdpersonal.app.backend.workspace import Workspace
from sdpersonal.concepts.concept import Concept
from sdpersonal.concepts.concept_file import concept_to_bytes
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


def details(workspace, token: str) -> dict:
    return concept_details(workspace.library, token, "tiny")


# --- thumbnails -------------------------------------------------------------------------------------------------------


def key_of(workspace, token: str) -> str:
    return thumb_url(workspace.library.find(T(token))).split("/")[-1].removesuffix(".webp")


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def test_thumbnails_are_small_and_made_once(workspace):
    store, key = ThumbnailStore(workspace), key_of(workspace, "<me/duck>")
    data = store.get(key)
    assert opened(data).getpixel((5, 5))[0] > 200  # the thumbnail's red
    assert len(data) < 20_000 and max(opened(data).size) <= 256
    (made,) = workspace.served_dir.rglob("*.webp")
    before = made.stat().st_mtime_ns
    assert store.get(key) == data and made.stat().st_mtime_ns == before
    made.unlink()  # the served folder may be cleared at any time
    assert store.get(key) == data and ThumbnailStore(workspace).get(key) == data


def test_a_changed_concept_gets_a_new_thumbnail_address(workspace):
    old, store = key_of(workspace, "<me/duck>"), ThumbnailStore(workspace)
    blue = make_thumbnail(Image.new("RGB", (64, 64), "blue"))
    workspace.library.add(Concept(T("<me/duck>"), card(), {"clip_l": vectors(0)}, None, blue), replace=True)
    new = key_of(workspace, "<me/duck>")
    assert new != old and opened(store.get(new)).getpixel((5, 5))[2] > 200
    with pytest.raises(UserError, match="no such thumbnail"):
        store.get(old)


@pytest.mark.parametrize("key", ["", "x", "../../etc/passwd", "\0", "a" * 5000])
def test_unknown_thumbnails_are_refused(workspace, key):
    for size in ("small", "large", "../x"):
        with pytest.raises(UserError, match="no such thumbnail"):
            ThumbnailStore(workspace).get(key, size)


def test_concepts_without_a_usable_thumbnail_get_a_plain_tile(workspace, monkeypatch):
    plain = opened(ThumbnailStore(workspace).get(key_of(workspace, "<you/ink>")))
    assert len(set(plain.get_flattened_data())) > 1  # its letter
    monkeypatch.setattr(type(workspace.library.find(T("<me/duck>"))), "thumbnail", b"\x89PNG\r\n\x1a\nbroken")
    assert opened(ThumbnailStore(workspace).get(key_of(workspace, "<me/duck>"))).size == (256, 256)


# --- the card ---------------------------------------------------------------------------------------------------------


def test_a_concept_is_shown_with_its_facts_scores_and_versions(workspace):
    scores = {"likeness": 0.86, "fidelity": 0.9, "copying": 0.0, "diversity": 0.3, "cosine": 0.7, "score": 0.88}
    facts = {"title": "Our duck", "steps": 1200, "method": "dreambooth-lora", "scores": scores}
    workspace.library.edit(T("<me/duck>"), facts | {"prompts": ("<me/duck> at sea",)})
    shown = details(workspace, "<duck>")
    assert (shown["token"], shown["name"], shown["title"]) == ("<me/duck-v2>", "<me/duck>", "Our duck")
    assert dict(shown["facts"])["Made for"].startswith("the built-in model")
    assert dict(shown["settings"]) == {"Method": "DreamBooth LoRA", "Steps": "1,200"}
    assert dict(shown["scores"])["Likeness to the photos"] == "86%"
    assert shown["verdict"] == ["It is like the photos, and the places that prompts ask for are there."]
    assert shown["prompts"] == ["<me/duck> at sea"] and shown["method"] == "lora"
    assert [version["token"] for version in shown["versions"]] == ["<me/duck-v1>", "<me/duck-v2>"]
    assert shown["image"].endswith("?size=large") and json.dumps(shown)
    old = details(workspace, "<me/duck-v1>")
    assert old["name"] == "<me/duck-v1>" and old["prompts"] == ["a photo of <me/duck-v1> on the beach"]


def test_training_settings_are_shown_with_the_labels_of_the_page(workspace):
    recipe = {"seed": 7, "lr": 1e-4, "batch": 4, "base_sha256": "ab" * 32, "prediction_type": "v_prediction"}
    recipe |= {"resolution": 512, "targets": "attention", "rank": 16, "prior": "predicted", "other_thing": True}
    workspace.library.edit(T("<me/duck>"), {"recipe": recipe, "method": "textual-inversion"})
    entry = workspace.library.find(T("<me/duck>"))
    assert dict(settings_facts(entry.card)) == {
        "Method": "Textual inversion",
        "Resolution": "512 x 512 pixels",
        "Learning rate": "0.0001",
        "Photos in a step": "4",
        "LoRA rank": "16",
        "Prior preservation": "predicted by the model",
        "Trained layers": "the attention layers",
    }
    others = dict(reproducing_facts(entry))
    assert others["Seed"] == "7" and others["The model predicts"] == "the velocity (v)"
    assert others["Other thing"] == "yes" and entry.identity in others.values()
    assert not [name for name in others if "_" in name]


def test_a_verdict_names_no_flags(workspace):
    scores = {"likeness": 0.1, "fidelity": 0.9, "copying": 0.0, "diversity": 0.3, "cosine": 0.7}
    workspace.library.edit(T("<me/duck>"), {"scores": scores})
    (sentence,) = details(workspace, "<me/duck>")["verdict"]
    assert "Training had no effect" in sentence and "--" not in sentence and "learning rate" in sentence


def test_no_likeness_is_shown_for_photos_outside_the_scorers_domain(workspace):
    workspace.library.edit(T("<me/duck>"), {"scores": {"copying": 0.0, "out_of_domain": 1.0}})
    shown = details(workspace, "<me/duck>")
    assert dict(shown["scores"]) == {"Photos copied": "0%"} and "cannot be scored" in shown["verdict"][0]
    assert "Stable Diffusion: choose it on the page Models." in shown["verdict"][1] and "--" not in shown["verdict"][1]


def test_a_damaged_concept_shows_its_cause(workspace):
    (workspace.library.folder / "me" / "cut-v1.safetensors").write_bytes(b"half")
    shown = details(workspace, "<me/cut>")
    assert shown["card"] is None and shown["facts"][0][0] == "Damaged" and "text" in shown["damaged"]


def test_an_edited_card_is_saved(workspace):
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
    assert details(workspace, "<me/duck>")["card"]["prompts"] == "one <me/duck>\ntwo <me/duck>"


@pytest.mark.parametrize(
    "values, says",
    [
        ({"license": "do what you want"}, "is not a known licence"),
        ({"title": "x" * 101}, "Title is not valid"),
        ({"kind": "<script>"}, "Kind is not valid"),
        ({"title": 3}, "Title must be text"),
        ({"prompts": "a\n" * 17}, "Prompts to try is not valid"),
        ({"description": ["x"]}, "Description must be text"),
    ],
)
def test_invalid_card_values_are_refused_with_a_message(workspace, values, says):
    before = workspace.library.find(T("<me/duck>")).card
    with pytest.raises(UserError, match=says):
        save_card(workspace.library, "<me/duck>", values)
    assert workspace.library.find(T("<me/duck>")).card == before


def test_only_editable_card_fields_are_saved(workspace):
    save_card(
        workspace.library, "<me/duck>", {"title": "x", "scores": {"likeness": 1}, "base": "sdxl", "token": "<a/b>"}
    )
    assert workspace.library.find(T("<me/duck>")).card.scores == {}


def test_a_rename_changes_all_versions_and_their_prompts(workspace):
    for version in (1, 2):
        workspace.library.edit(T(f"<me/duck-v{version}>"), {"prompts": ("a <me/duck:0.8> at sea", "<duck>")})
    token, message = rename_concept(workspace.library, "<me/duck-v2>", "<me/goose>")
    assert token == T("<me/goose-v2>")
    assert message == "<me/duck> is now <me/goose>, in all 2 versions; its prompts to try have the new name."
    for version in (1, 2):
        assert details(workspace, f"<me/goose-v{version}>")["prompts"] == ["a <me/goose:0.8> at sea", "<me/goose>"]
    with pytest.raises(UserError, match="has no version"):
        rename_concept(workspace.library, "<me/goose>", "<me/swan-v3>")
    with pytest.raises(UserError, match="is already in the library"):
        rename_concept(workspace.library, "<me/goose>", "<you/ink>")


@pytest.mark.parametrize(
    "typed, token",
    [("me/goose", "<me/goose-v1>"), ("goose", "<you/goose-v1>"), ("Rex the Dog", "<you/rex-the-dog-v1>")],
)
def test_a_token_is_made_from_the_typed_name(workspace, typed, token):
    assert str(rename_concept(workspace.library, "<you/ink>", typed)[0]) == token


# --- beside each other ------------------------------------------------------------------------------------------------


def test_two_versions_are_compared(workspace):
    workspace.library.edit(T("<me/duck-v1>"), {"steps": 100})
    comparison = compare_concepts(workspace.library, "<me/duck-v1>", "<me/duck-v2>")
    a, b = (workspace.library.get(T(f"<me/duck-v{n}>")).vectors["clip_l"].astype(np.float64) for n in (1, 2))
    cosine = np.mean([x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(a, b, strict=True)])
    assert f"cosine {cosine:.2f}" in comparison["sentences"][0]
    assert ("Steps", "100", "") in comparison["rows"] and all(comparison["images"])
    others = compare_concepts(workspace.library, "<me/duck>", "<me/photo>")
    assert "different kinds of models" in others["sentences"][0]


def test_concepts_are_checked_for_conflicts(workspace):
    assert "no base can generate both" in check_conflicts(workspace.library, ["<me/duck>", "<me/photo>"])[0]
    assert check_conflicts(workspace.library, ["<me/duck>", "<you/ink>"]) == [
        "<me/duck-v2> and <you/ink-v1>: The style has guidance of its own, so that the subject does not outweigh it.",
        "No conflicts: they can be used in one prompt.",
    ]
    workspace.library.add(Concept(T("<me/twin>"), card(), workspace.library.get(T("<me/duck>")).vectors))
    assert "Try <me/duck-v2:1> <me/twin-v1:0>" in check_conflicts(workspace.library, ["<me/duck>", "<me/twin>"])[0]


def test_token_choices_list_all_versions_and_mark_the_newest(workspace):
    versions = token_choices(workspace.library)
    assert [version["token"] for version in versions] == [
        "<me/duck-v1>",
        "<me/duck-v2>",
        "<me/photo-v1>",
        "<you/ink-v1>",
    ]
    assert [version["newest"] for version in versions] == [False, True, True, True]


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


def test_imported_files_are_deleted_and_invalid_files_are_refused(workspace):
    rows = tensors(**{"<cat>": vectors(7, width=768)})
    paths = drop(workspace, **{"learned_embeds.safetensors": rows, "a.txt": b"hello", "b.safetensors": b"not one"})
    came = {entry.name: entry for entry in import_uploads(workspace, paths)}
    assert came["b.safetensors"].status == "refused" and came["a.txt"].status == "refused"
    assert not any(file.name_helps for file in came.values())
    assert not any(path.exists() for path in workspace.served_dir.iterdir())
    assert import_message(list(came.values())) == "1 imported, 2 not imported."
    np.testing.assert_array_equal(workspace.library.get(T("<imported/cat>")).vectors["clip_l"], vectors(7, width=768))


def test_a_lora_and_its_embedding_are_imported_as_a_single_concept(workspace):
    made = Concept(T("<me/both>"), card(), {"clip_l": 0.02 * vectors(4)}, lora())
    from sdpersonal.concepts.exporters import export

    content = export(made, "diffusers").files
    del content["README.md"]
    came = import_uploads(workspace, drop(workspace, **content), as_="<me/both>")
    assert [entry.token for entry in came] == ["<me/both-v1>"] and " + " in came[0].name
    assert workspace.library.get(T("<me/both>")).lora and workspace.library.get(T("<me/both>")).vectors


def test_an_import_with_a_used_name_is_refused_renamed_or_replaced(workspace):
    data = concept_to_bytes(concept("<me/duck>", seed=9))
    (came,) = import_uploads(workspace, drop(workspace, **{"duck.safetensors": data}))
    assert came.status == "refused" and "is already in the library with other content" in came.message
    assert "another name" in came.message and "--" not in came.message and came.name_helps
    shutil_again = drop(
        Workspace(workspace.library, workspace.outputs, workspace.runs, workspace.served_dir / "2"),
        **{"x.safetensors": data},
    )
    (came,) = import_uploads(workspace, shutil_again, as_="goose")
    assert came.token == "<me/goose-v1>"
    again = drop(
        Workspace(workspace.library, workspace.outputs, workspace.runs, workspace.served_dir / "3"),
        **{"x.safetensors": data},
    )
    (came,) = import_uploads(workspace, again, duplicates="replace")
    assert (came.status, came.token) == ("imported", "<me/duck-v2>")


def test_a_pickle_with_code_is_refused_and_runs_nothing(workspace):
    evil = b"\x80\x02cos\nmkdir\nq\x00X\x05\x00\x00\x00PWNEDq\x01\x85q\x02Rq\x03."
    (came,) = import_uploads(workspace, drop(workspace, **{"evil.bin": evil}))
    assert came.status == "refused" and "os.mkdir; refused" in came.message and not Path("PWNED").exists()


@pytest.mark.parametrize("paths", [*HOSTILE, ["/etc/passwd"], ["../x"], [3], ["x"] * 41, [None], ["\0"]])
def test_only_uploaded_files_are_imported(workspace, paths):
    before = [str(entry.token) for entry in workspace.library.entries()]
    with pytest.raises(UserError):
        import_uploads(workspace, paths)
    assert Path("/etc/passwd").exists() and [str(entry.token) for entry in workspace.library.entries()] == before


def test_a_link_among_the_uploads_is_refused(workspace, tmp_path):
    (tmp_path / "secret.safetensors").write_bytes(concept_to_bytes(concept("<a/secret>")))
    workspace.served_dir.mkdir()
    (workspace.served_dir / "x.safetensors").symlink_to(tmp_path / "secret.safetensors")
    with pytest.raises(UserError, match="not an uploaded file"):
        import_uploads(workspace, [str(workspace.served_dir / "x.safetensors")])


# --- files out --------------------------------------------------------------------------------------------------------


def test_a_native_export_is_a_single_file_with_the_embedding(workspace, tmp_path):
    made = make_export(workspace.library, "<me/duck>", "native")
    (tmp_path / made.name).write_bytes(made.data)
    assert made.name == "me-duck.safetensors"
    np.testing.assert_array_equal(load_file(tmp_path / made.name)["emb_params"], 0.02 * vectors(1))
    assert made.typed == "<me/duck>" and "sdpersonal concepts" not in " ".join(made.steps)


@pytest.mark.parametrize("program", sorted(PROGRAMS.keys() - {"native"}))
def test_other_programs_get_a_zip_with_a_readme(workspace, program):
    made = make_export(workspace.library, "<me/photo>", program)
    with zipfile.ZipFile(io.BytesIO(made.data)) as archive:
        names = archive.namelist()
        stem = f"me-photo-{program}/"
        assert all(name.startswith(stem) for name in names) and f"{stem}README.md" in names
        assert {name.removeprefix(stem) for name in names} >= {name for name, _ in made.places}
        assert "Type" in archive.read(f"{stem}README.md").decode()
    assert json.dumps(made.as_json()) and made.steps


@pytest.mark.parametrize("program", [None, "", "../x", "evil", 3, [], "NATIVE"])
def test_unsupported_programs_are_refused(workspace, program):
    with pytest.raises(UserError, match="Choose a program"):
        make_export(workspace.library, "<me/duck>", program)


# --- deleting ---------------------------------------------------------------------------------------------------------


def test_deleted_concepts_can_be_restored_or_deleted_for_good(workspace):
    library = workspace.library
    before = {entry.token: entry.path.read_bytes() for entry in library.entries()}
    deletion = delete(library, "<me/duck-v1>", False)
    assert deletion["message"] == "Deleted: <me/duck-v1>."
    assert undo_deletion(library, deletion["undo"]) == {"message": "Restored: <me/duck-v1>.", "token": "<me/duck-v1>"}
    deletion = delete(library, "<me/duck-v2>", True)
    assert deletion["message"] == "Deleted: <me/duck> (2 versions)."
    listed = list_deletions(library)
    assert [entry["undo"] for entry in listed["deletions"]] == [deletion["undo"]] and listed["days"] == 30
    assert undo_deletion(library, deletion["undo"])["token"] == "<me/duck-v2>"
    assert {entry.token: entry.path.read_bytes() for entry in library.entries()} == before
    delete(library, "<you/ink>", False)
    assert empty_trash(library) == "Deleted for good: 1 concept." and empty_trash(library) == "The trash was empty."


# --- anything at all --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", HOSTILE)
def test_hostile_values_are_refused_and_change_nothing(workspace, word, caplog):
    library = workspace.library
    before = {entry.token: entry.path.read_bytes() for entry in library.entries()}
    for work, arguments in [
        (concept_details, (word, "tiny")),
        (save_card, (word, {"title": "x"})),
        (rename_concept, (word, "<me/x>")),
        *([] if isinstance(word, str) and word else [(rename_concept, ("<me/duck>", word))]),
        (compare_concepts, (word, "<me/duck>")),
        (compare_concepts, ("<me/duck>", word)),
        (check_conflicts, (word,)),
        (check_conflicts, ([word, "<me/duck>"],)),
        (delete, (word, True)),
        (undo_deletion, (word,)),
    ]:
        with pytest.raises(UserError):
            work(library, *arguments)
    with pytest.raises(UserError):
        make_export(workspace.library, word, "native")
    assert {entry.token: entry.path.read_bytes() for entry in library.entries()} == before
    assert caplog.text == ""
