"""What the Models tab does, without the page: what is loaded, what can be chosen, and who may choose."""

import math
import re
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from sdpersonal.app.backend import App, GenerationService, Workspace
from sdpersonal.app.backend.models.hardware import (
    MODEL_SIZES,
    SIZES_BY_KIND,
    Hardware,
    ModelSize,
    check_fit,
    training_memory_text,
)
from sdpersonal.app.backend.models.picker import (
    ModelDownload,
    find_download,
    list_models,
    model_facts,
    models_page,
    switch_model,
)
from sdpersonal.app.backend.models.switching import ModelSwitcher
from sdpersonal.app.backend.train.training_cost import memory_text
from sdpersonal.concepts.library import Library
from sdpersonal.config import DreamboothSettings
from sdpersonal.errors import UserError
from sdpersonal.generation import Generator
from sdpersonal.models import load_base
from sdpersonal.models.loading import built_in_folder
from sdpersonal.models.offload import memory_need, weight_bytes
from sdpersonal.training.presets import preset
from support.hub_server import Repo, hub_server

GB = 10**9


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of bases: a whole one, one that lacks a file, a file that is none, and what is no model at all."""
    place = tmp_path_factory.mktemp("bases")
    shutil.copytree(built_in_folder(), place / "mine")
    shutil.copytree(built_in_folder(), place / "shelf" / "yours")
    shutil.copytree(built_in_folder(), place / "cut")
    next((place / "cut" / "unet").glob("*.safetensors")).unlink()
    (place / "fake.safetensors").write_bytes(b"\0" * 1000)
    (place / "notes.txt").write_text("x")
    return place


@pytest.fixture
def app(tiny, folder, tmp_path):
    library = Library(tmp_path / "concepts")
    workspace = Workspace(library, tmp_path / "out", tmp_path / "runs", tmp_path / "shown")

    def load(name):
        return Generator(tiny if name in (None, "tiny") else load_base(name, device="cpu"), library)

    return App(workspace, GenerationService(load, workspace, "tiny"), bases=folder)


def test_the_models_page_describes_the_loaded_model(app, tiny):
    known = dict(model_facts(app.generation.base))
    assert (known["Model"], known["Architecture"]) == ("tiny", "the built-in model of sdpersonal")
    assert known["Image size"] == "128 x 128 pixels" and known["Device"] == "CPU" and "fp32" in known["Parameters"]
    assert known["Safety checker"] == tiny.safety_note
    page = models_page(app)
    assert [model["name"] for model in page["models"] if model["is_loaded"]] == ["tiny"]
    assert page["fixed"] == "" and page["reproducing"][0][1] == tiny.version and "no CUDA GPU" in page["machine"]


def test_available_models_are_listed_with_their_requirements(app):
    offers = {offer.name: offer for offer in list_models(app)}
    assert list(offers) == ["tiny", "sd15", "sd21", "sdxl", "mine", str(Path("shelf/yours"))]
    assert offers["tiny"].fits and offers["tiny"].download_gb == 0
    assert offers["sd15"].download_gb == 2.8 and "2.8 GB to download." in offers["sd15"].requirements
    assert "in the folder of models" in offers["mine"].requirements[0]


def test_switching_loads_another_model(app):
    assert find_download(app, "mine") is None
    message = switch_model(app, "mine")
    assert message.startswith("Model: mine, ") and app.generation.base.name.endswith("mine")
    assert [model["name"] for model in models_page(app)["models"] if model["is_loaded"]] == ["mine"]
    assert dict(model_facts(app.generation.base))["Model"] == "mine"  # and not its folder
    assert switch_model(app, "tiny").startswith("Model: tiny")


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_large_downloads_need_confirmation(app, name):
    question = find_download(app, name).question
    assert "Download " in question and "GB from the Hugging Face Hub?" in question
    with pytest.raises(UserError, match="Nothing was downloaded"):
        switch_model(app, name)
    assert ModelSwitcher(app).start(name, False) == {"question": question}
    assert app.generation.base.name == "tiny"


class Watcher:
    """Takes the place of the events' hub."""

    def __init__(self):
        self.told, self.ended = [], threading.Event()

    def publish_to_all(self, kind, data):
        self.told.append(data)
        if data["loading"] is None:
            self.ended.set()


def watched(app):
    """The app's parts that a switch needs, with a watcher."""
    parts = {name: getattr(app, name) for name in ("workspace", "generation", "bases", "fixed_base")}
    return SimpleNamespace(**parts, events=Watcher())


def test_a_model_switch_runs_in_the_background_and_sends_events(app):
    app, may_end = watched(app), threading.Event()

    def switch(app, name, agreed):
        assert may_end.wait(30)
        return switch_model(app, name, agreed)

    switcher = ModelSwitcher(app, switch)
    assert switcher.start("mine", False) == {"loading": "mine"} and switcher.status.is_loading
    with pytest.raises(UserError, match="mine is being loaded"):
        switcher.start("tiny", False)
    may_end.set()
    assert app.events.ended.wait(60)
    assert [told["loading"] for told in app.events.told] == ["mine", None]
    assert app.events.told[-1]["message"] == "Loaded: mine." and app.events.told[-1]["model"]["name"] == "mine"


def test_a_failed_model_switch_reports_its_cause(app):
    def switch(app, name, agreed):
        raise UserError("No memory.")

    app = watched(app)
    ModelSwitcher(app, switch).start("mine", False)
    assert app.events.ended.wait(30)
    assert (app.events.told[-1]["error"], app.events.told[-1]["model"]["name"]) == ("No memory.", "tiny")


def test_the_progress_of_a_download_is_reported(app, monkeypatch, tmp_path):
    """Bytes that have arrived, of those that will."""
    arrived, half = threading.Event(), tmp_path / "blobs"
    half.mkdir()
    (half / "a.incomplete").write_bytes(bytes(1_400_000))
    monkeypatch.setattr(
        "sdpersonal.app.backend.models.switching.find_download", lambda *_: ModelDownload("sd15", 0.0028, half)
    )
    monkeypatch.setattr("sdpersonal.app.backend.models.switching._REPORT_SECONDS", 0.01)
    app = watched(app)
    app.events.publish_to_all = lambda kind, data: (app.events.told.append(data), data["share"] and arrived.set())
    ModelSwitcher(app, lambda *_: str(arrived.wait(30))).start("sd15", True)
    assert arrived.wait(30)
    told = next(data for data in app.events.told if data["share"])
    assert told["share"] == pytest.approx(0.5) and told["message"].startswith("Downloading sd15: 0.0 of 0.0 GB")


@pytest.mark.tries_network
def test_the_loaded_model_stays_loaded_without_the_hub(app):
    with pytest.raises(UserError, match="The Hub cannot be reached: someone/some-model"):
        find_download(app, "someone/some-model")
    with pytest.raises(UserError, match="Hub cannot be reached"):
        switch_model(app, "sd15", agreed=True)
    assert app.generation.base.name == "tiny"


NO_BASES = [
    None,
    "",
    "  ",
    3,
    math.nan,
    True,
    [],
    {},
    "mine/",
    "../mine",
    "/etc",
    "/etc/passwd",
    "~",
    "a/../b",
    "a/..",
    "x",
]
NO_BASES += [
    "shelf",
    "fake.safetensors",
    "cut",
    "someone/model.ckpt",
    "a" * 200 + "/b",
    "http://a/b",
    "a/b/c",
    "-a/b",
    "a/b\0",
]


@pytest.mark.parametrize("name", NO_BASES)
def test_paths_and_invalid_model_names_are_refused(app, name, folder, monkeypatch):
    monkeypatch.chdir(folder)  # where all of these are
    for work in (find_download, switch_model):
        with pytest.raises(UserError, match="No model"):
            work(app, name)
    with pytest.raises(UserError, match="No model"):
        switch_model(app, name, agreed=True)


def test_a_folder_that_looks_like_a_hub_id_is_not_read(app, folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    with pytest.raises(UserError, match="No model named"):
        switch_model(app, f"{folder.name}/cut", agreed=True)


def test_a_fixed_model_cannot_be_switched(app):
    fixed = App(app.workspace, app.generation, fixed_base=True)
    for agreed in (False, True):
        with pytest.raises(UserError, match="Whoever started this app chose the model"):
            switch_model(fixed, "tiny", agreed)


def test_model_memory_estimates_match_the_loaded_model(tiny):
    """The same sums as for a base that is loaded."""
    known = memory_need(tiny, (128, 128))
    width = tiny.unet.config.block_out_channels[0] / 320, tiny.vae.config.block_out_channels[0] / 128
    ours = ModelSize(0, weight_bytes(tiny.unet) / 4e6, 0, 128).generation_memory(4)
    assert ours.unet == pytest.approx(known.unet, abs=4)
    assert (ours.step * width[0], ours.decoding * width[1]) == pytest.approx((known.step, known.decoding), rel=1e-3)


@pytest.mark.parametrize(
    "name, memory, fits, says",
    [
        ("sd15", 8 * GB, True, "it fits."),
        ("sdxl", 24 * GB, True, "it fits."),
        ("sdxl", 8 * GB, True, "with offloading"),
        ("sdxl", 3 * GB, False, "too little"),
        ("sd15", 1 * GB, False, "too little"),
    ],
)
def test_gpu_memory_decides_whether_a_model_fits(name, memory, fits, says):
    result, words = check_fit(MODEL_SIZES[name], Hardware("a card", memory, memory, 100 * GB))
    assert result is fits and says in words


def test_a_missing_gpu_is_reported(tmp_path):
    machine = Hardware("", 64 * GB, 64 * GB, GB)
    assert "Without a GPU" in check_fit(MODEL_SIZES["sd15"], machine)[1] and "hours on a CPU" in training_memory_text(
        MODEL_SIZES["sd15"], machine
    )
    assert "no CUDA GPU" in machine.describe()


@pytest.mark.parametrize(
    "kind, number, method, images, side, measured",
    [  # peak GB of single steps, docs/performance.md
        ("sd1", 4, "lora", 1, 256, 5.45),
        ("sd1", 4, "textual-inversion", 1, 256, 5.27),
        ("tiny", 4, "lora", 4, 128, 0.77),
    ],
)
def test_training_memory_estimates_match_measurements(kind, number, method, images, side, measured):
    assert SIZES_BY_KIND[kind].training_memory(number, method, images, side) == pytest.approx(measured, rel=0.1)


def test_full_training_needs_18_bytes_per_weight_on_a_gpu_and_16_on_a_cpu():
    """fp32 weight, gradient and two moments; a card computes with a copy in 2 bytes."""
    unet = ModelSize(text=0, unet=1000, vae=0, side=512)
    nothing = ModelSize(text=0, unet=0, vae=0, side=512)
    for number, expected in ((2, 18), (4, 16)):
        overhead = nothing.training_memory(number, "full", 1)
        assert unet.training_memory(number, "full", 1) - overhead == pytest.approx(expected)
        assert unet.training_memory(number, "lora", 1) - overhead == pytest.approx(number)


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_both_tabs_show_the_same_training_memory(name, tmp_path):
    """The Models tab says it for a LoRA, the Train tab for what is chosen there."""
    size = MODEL_SIZES[name]
    base = SimpleNamespace(kind=size.kind, device="cpu", resolution=size.side)
    common = {"photos": tmp_path, "token": "<me/it>", "class_noun": "cat"}
    settings, with_prior = (DreamboothSettings(**common, prior=prior) for prior in ("none", "predicted"))
    batch = preset("dreambooth-lora", size.kind).batch
    text = memory_text(None, base, settings, batch)
    needed = re.search(r"about ([0-9.]+ GB)", text)[1]
    assert f"about {needed}" in training_memory_text(size, Hardware("", 64 * GB, 64 * GB, GB))
    assert text != memory_text(None, base, with_prior, batch)


def test_the_download_question_states_the_size_on_the_hub(app, monkeypatch):
    from huggingface_hub import constants

    with hub_server() as hub:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        files = {
            "model_index.json": b"{}",
            "unet/diffusion_pytorch_model.safetensors": bytes(400_000_000),
            "x.bin": bytes(9),
        }
        hub.repos["someone/small"], hub.repos["someone/lora"] = Repo(files), Repo({"lora.safetensors": b"x"})
        assert find_download(app, "someone/small").question == "someone/small is not on this machine. " + (
            "Download 0.4 GB from the Hugging Face Hub?"
        )
        for name, says in (
            ("someone/none", "has no such model"),
            ("someone/lora", "is not a model in diffusers' layout"),
        ):
            with pytest.raises(UserError, match=says):
                find_download(app, name)
