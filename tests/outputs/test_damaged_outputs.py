"""Files of our own beside images, lists and models that were damaged or changed: each costs itself and nothing else."""

import io
import json
import os
import shutil

import pytest
from PIL import Image

from sdpersonal.app.backend import Workspace
from sdpersonal.app.backend.generate.gallery import Gallery
from sdpersonal.app.backend.generate.image_files import ImageFiles
from sdpersonal.cli.batch_training import _finished_token
from sdpersonal.concepts.library import Library
from sdpersonal.config import GenerateRequest, TextualInversionSettings
from sdpersonal.errors import UserError
from sdpersonal.models import load_base
from sdpersonal.models.loading import built_in_folder
from sdpersonal.outputs.facts import CACHE_NAME, load_facts
from sdpersonal.playground.endless_series import EndlessProgress
from sdpersonal.playground.xyz_grid.checkpoints import CheckpointRun
from sdpersonal.prompts import Wildcards, count_prompts, nth_prompt

HUGE = 10**400


@pytest.mark.parametrize(
    "text", ["null", "5", "[]", '["position"]', '"position"', "{}", "[" * 9999, '{"position": true}']
)
def test_a_damaged_endless_series_state_is_refused(tmp_path, text):
    progress = EndlessProgress(tmp_path, GenerateRequest(prompt="a cat"), "base")
    progress.folder.mkdir()
    (progress.folder / "state.json").write_text(text)
    with pytest.raises(UserError, match="is damaged"):
        progress.load()


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "\ud800"},
        {"width": HUGE},
        {"width": True},
        {"height": -1},
        {"facts": [["a", "\ud800"]]},
        {"width": 2.5},
    ],
    ids=str,
)
def test_an_invalid_line_of_cached_metadata_is_read_again_from_the_image(tmp_path, change):
    entry = {
        "v": 2,
        "name": "00001-abcdef12.png",
        "prompt": "old",
        "negative": "",
        "facts": [],
        "width": 1,
        "height": 1,
    }
    (tmp_path / CACHE_NAME).write_text(json.dumps(entry | change) + "\n")
    Image.new("RGB", (64, 48)).save(tmp_path / entry["name"])
    facts = load_facts(tmp_path, [entry["name"]])[entry["name"]]
    assert (facts["prompt"], facts["width"], facts["height"]) == ("", 64, 48)


def test_unreadable_images_do_not_hide_the_others(tmp_path):
    workspace = Workspace(Library(tmp_path / "c"), tmp_path / "outputs", tmp_path / "runs", tmp_path / "shown")
    day = tmp_path / "outputs" / "2026-01-02"
    day.mkdir(parents=True)
    Image.new("RGB", (64, 64), "red").save(day / "00001-abcdef12.png")
    (day / "00002-abcdef12.png").write_bytes(b"half")
    Image.new("1", (12000, 12000)).save(day / "00003-abcdef12.png")
    os.mkfifo(day / "00004-abcdef12.png")
    gallery = Gallery(workspace)
    found, files = gallery.page(None), ImageFiles(gallery)
    assert found.total == 4
    ids = [entry["id"] for entry in found.images]
    with pytest.raises(UserError, match="gone"):
        files.thumbnail(None, ids[0])  # a pipe is no file
    colours = [Image.open(io.BytesIO(files.thumbnail(None, image))).getpixel((9, 9)) for image in ids[1:]]
    assert colours[:2] == [(128, 128, 128)] * 2 and colours[2][0] > 200


def test_a_damaged_result_file_is_not_a_finished_run(tmp_path):
    settings = TextualInversionSettings(photos="x", token="<me/a>", steps=5)
    for token, steps, expected in (
        ("<me/a-v1>", 5, "<me/a-v1>"),
        ("<me/a-v1>", HUGE, None),
        ([], 5, None),
        ("\ud800\x1b[2J", 5, "\\ud800\\x1b[2J"),
        (None, 5, None),
    ):
        (tmp_path / "result.json").write_text(json.dumps({"token": token, "steps": steps}))
        assert _finished_token(tmp_path, settings) == expected


def test_lone_surrogates_in_a_wildcard_pack_are_replaced(tmp_path):
    (tmp_path / "pack.json").write_text('{"cats": ["tabby \\ud800", "grey"], "x\\udfff": ["a"]}')
    lists = Wildcards(tmp_path)
    assert sorted(nth_prompt("__cats__", i, lists) for i in range(count_prompts("__cats__", lists))) == [
        "grey",
        "tabby ?",
    ]


@pytest.mark.parametrize("settings", [{"token": [1]}, {}, {"token": "\ud800"}, {"token": "<me/a>", "base": []}])
def test_a_checkpoint_with_damaged_settings_is_refused(tmp_path, settings):
    folder = tmp_path / "step-000010"
    folder.mkdir()
    manifest = {"step": 10, "sha256": {}, "numbers": {}, "run": settings}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    base = type("Base", (), {"version": [], "kind": "tiny", "name": "tiny", "encoders": {}})()
    with pytest.raises(UserError) as refused:
        CheckpointRun.open(tmp_path).concept(10, base)
    assert str(refused.value).encode()


@pytest.mark.parametrize("file", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/dev/zero", path)], ids=["pipe", "device"])
def test_a_model_configuration_that_is_not_a_file_is_refused(tmp_path, file, make):
    base = tmp_path / "base"
    shutil.copytree(built_in_folder(), base, copy_function=os.link)
    (base / file).unlink()
    make(base / file)
    with pytest.raises(UserError, match="cannot be read"):
        load_base(str(base), "cpu")
