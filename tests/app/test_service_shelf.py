"""The concepts that the Generate tab offers."""

from pathlib import Path

from PIL import Image

from sdpersonal.app.backend.generate.prompt import concept_choices
from sdpersonal.app.backend.workspace import Workspace
from sdpersonal.concepts.library import Library
from support.stock import small_library


def test_a_shelf_shows_what_the_base_can_draw(tmp_path):
    workspace = Workspace(small_library(tmp_path / "concepts"), tmp_path, tmp_path, tmp_path / "shown")
    (tmp_path / "concepts" / "me" / "cut-v1.safetensors").write_bytes(b"not a concept")
    found = concept_choices(workspace, "tiny")
    assert [token for _, token in found.tiles] == ["<me/duck>", "<you/ink>"] == list(found.tokens)
    assert Image.open(Path(found.tiles[0][0])).getpixel((5, 5))[0] > 200  # the thumbnail's red
    assert "1 more is for other models" in found.note and "1 damaged" in found.note
    searched = concept_choices(workspace, "tiny", "INK")
    assert [token for _, token in searched.tiles] == ["<you/ink>"] and searched.tokens == found.tokens


def test_an_empty_library_is_an_empty_shelf(tmp_path):
    found = concept_choices(Workspace(Library(tmp_path / "none"), tmp_path, tmp_path, tmp_path / "shown"), "tiny")
    assert found.tiles == [] and found.tokens == () and found.note == ""
