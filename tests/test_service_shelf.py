"""The concepts that a page offers."""

from sdpersonal.library import Library
from sdpersonal.service.shelf import shelf
from stock import stocked


def test_a_shelf_shows_what_the_base_can_draw(tmp_path):
    library = stocked(tmp_path)
    (tmp_path / "me" / "cut-v1.safetensors").write_bytes(b"not a concept")
    found = shelf(library, "tiny")
    assert [token for _, token in found.tiles] == ["<me/duck>", "<you/ink>"]
    assert found.tiles[0][0].getpixel((5, 5))[0] > 200  # the thumbnail's red
    assert "1 more is for another base" in found.note and "1 damaged" in found.note


def test_an_empty_library_is_an_empty_shelf(tmp_path):
    found = shelf(Library(tmp_path / "none"), "tiny")
    assert found.tiles == [] and found.note == ""
