"""The list of concepts that every tab of the page shows."""

import pytest

from sdpersonal.app.backend.library.listing import concept_list
from sdpersonal.concepts.library import Library
from sdpersonal.errors import UserError
from sdpersonal.prompts import Token
from support.samples import concept
from support.stock import small_library

T = Token.parse


def by_token(library: Library, loaded: str = "tiny") -> dict[str, dict]:
    return {concept["token"]: concept for concept in concept_list(library.entries(), loaded)["concepts"]}


def test_the_newest_version_of_a_concept_is_listed_with_its_model_fit(tmp_path):
    library = small_library(tmp_path / "concepts")
    concepts = by_token(library)
    assert list(concepts) == ["<me/duck>", "<me/photo>", "<you/ink>"]
    duck, photo, ink = concepts.values()
    assert (duck["versions"], duck["title"], duck["kind"], duck["noun"]) == (2, "Toy duck", "object", "duck")
    assert (duck["fits"], photo["fits"], photo["model"], ink["kind"]) == (True, False, "SD 1.x", "style")
    assert duck["created"] == 1769860800.0  # 2026-01-31T12:00:00Z
    assert [concept["fits"] for concept in by_token(library, "sd1").values()] == [False, True, False]


@pytest.mark.parametrize(
    "words, tokens",
    [
        ("me/duck built-in", ["<me/duck>"]),
        ("me stable", ["<me/photo>"]),
        ("style ink", ["<you/ink>"]),
        ("jo", ["<you/ink>"]),
        ("nothing", []),
    ],
)
def test_concepts_are_searched_by_the_text_of_their_cards(tmp_path, words, tokens):
    library = small_library(tmp_path / "concepts")
    library.edit(T("<you/ink>"), {"author": "Jo"})
    concepts = by_token(library)
    assert [token for token, concept in concepts.items() if all(w in concept["text"] for w in words.split())] == tokens


def test_a_damaged_concept_is_listed_with_its_cause(tmp_path):
    library = small_library(tmp_path / "concepts")
    (library.folder / "me" / "cut-v1.safetensors").write_bytes(b"half")
    listed = concept_list(library.entries(), "tiny")
    (cut,) = (concept for concept in listed["concepts"] if concept["token"] == "<me/cut>")
    assert "it is text" in cut["damaged"] and not cut["fits"] and listed["note"] == "1 is damaged."


def test_a_missing_library_is_an_empty_list(tmp_path):
    assert concept_list(Library(tmp_path / "none").entries(), "tiny") == {"concepts": [], "note": ""}
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="file"):
        Library(tmp_path / "file").entries()


def test_only_changed_concept_files_are_read_again(tmp_path, monkeypatch):
    """Five hundred concepts are listed in 20 ms, since unchanged files are not read again."""
    library = small_library(tmp_path / "concepts")
    library.entries()
    from sdpersonal.concepts import library as module

    read = []
    header = module.read_header
    monkeypatch.setattr(module, "read_header", lambda path, **named: read.append(path) or header(path, **named))
    library.entries()
    assert read == []
    library.edit(T("<me/photo>"), {"title": "A photo"})
    read.clear()
    assert by_token(library)["<me/photo>"]["title"] == "A photo"
    assert {path.name for path in read} == {"photo-v1.safetensors"}
    library.add(concept("<me/photo>", seed=5), replace=True)
    assert by_token(library)["<me/photo>"]["fits"]
