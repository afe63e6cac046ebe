"""The page's own file areas and image editor: a client's files are handed on, neither decoded nor copied."""

from pathlib import Path

import gradio as gr
import pytest
from gradio.components.image_editor import EditorData
from gradio.data_classes import FileData, ListFiles

from sdpersonal.app.ui import file_inputs
from sdpersonal.app.ui.file_inputs import FileButton, FileDrop, InitImageEditor


@pytest.fixture(scope="module")
def components():
    with gr.Blocks(analytics_enabled=False) as page:
        made = InitImageEditor(layers=False), FileDrop(file_count="multiple"), FileButton(file_count="multiple")
    return page, made


def test_the_browser_knows_them(components):
    page, _ = components
    assert [part["type"] for part in page.get_config_file()["components"]] == ["imageeditor", "file", "uploadbutton"]
    assert not list(Path(file_inputs.__file__).parent.glob("*.pyi"))  # which Gradio would write


def test_files_are_paths_and_leave_nothing_behind(components, tmp_path):
    for part in components[1][1:]:
        part.GRADIO_CACHE = str(tmp_path)
        paths = part.preprocess(ListFiles(root=[FileData(path=f"{tmp_path}/{name}.png") for name in "ab"]))
        assert paths == [f"{tmp_path}/a.png", f"{tmp_path}/b.png"] and not list(tmp_path.iterdir())


def test_an_edited_image_is_files_that_nobody_has_opened(components, tmp_path):
    editor = components[1][0]
    files = [FileData(path=str(tmp_path / f"{n}.png")) for n in range(4)]  # which do not exist
    value = editor.preprocess(EditorData(background=files[0], layers=files[1:3], composite=files[3]))
    paths = [Path(file.path) for file in files]
    assert value == {"background": paths[0], "layers": paths[1:3], "composite": paths[3]}
    empty = {"background": None, "layers": [], "composite": None}
    assert editor.preprocess(EditorData(background=None, layers=[], composite=None)) == empty
    assert editor.preprocess(None) is None
    assert editor.preprocess(EditorData(background=None, layers=[], composite=None, id="x")) is None


def test_the_editor_keeps_nothing_of_what_a_client_sends_outside_an_event(components):
    editor = components[1][0]
    assert not getattr(editor.accept_blobs, "_is_server_fn", False)
    assert editor.get_config()["server_fns"] == [] if "server_fns" in editor.get_config() else True
