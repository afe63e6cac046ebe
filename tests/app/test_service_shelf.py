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
    choices = concept_choices(workspace, "tiny")
    assert [token for _, token in choices.tiles] == ["<me/duck>", "<you/ink>"] == list(choices.tokens)
    assert Image.open(Path(choices.tiles[0][0])).getpixel((5, 5))[0] > 200  # the thumbnail's red
    assert "1 more is for other models" in choices.note and "1 damaged" in choices.note
    searched = concept_choices(workspace, "tiny", "INK")
    assert [token for _, token in searched.tiles] == ["<you/ink>"] and searched.tokens == choices.tokens


def test_an_empty_library_is_an_empty_shelf(tmp_path):
    choices = concept_choices(Workspace(Library(tmp_path / "none"), tmp_path, tmp_path, tmp_path / "shown"), "tiny")
    assert choices.tiles == [] and choices.tokens == () and choices.note == ""
