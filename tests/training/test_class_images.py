"""Class pictures: drawn once, by whoever gets there, kept whole; nobody else's file is counted."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from sdpersonal.concepts.library import Library
from sdpersonal.config import DreamboothSettings, GenerateRequest
from sdpersonal.errors import UserError
from sdpersonal.generation import Generator
from sdpersonal.models.offload import OffloadPlan
from sdpersonal.training import class_images, train
from sdpersonal.training.class_images import class_images_folder, generate_missing, load_latents
from support.narrow import save_photos

PROMPT = "a photo of cat"


@pytest.fixture
def few_steps(monkeypatch):
    monkeypatch.setattr(class_images, "STEPS", 3)


def generate_and_log(base, numbers, prompt=PROMPT):
    lines = []
    generate_missing(base, prompt, 64, numbers, lines.append)
    return lines


def files_of(base, prompt=PROMPT):
    return {path.name: path.read_bytes() for path in sorted(class_images_folder(base, prompt, 64).iterdir())}


def test_class_images_equal_those_the_base_generates(tiny):
    generate_and_log(tiny, [7])
    [result] = Generator(tiny).generate(GenerateRequest(prompt=PROMPT, num_images=1, seed=7, size="64x64"))
    (class_images_folder(tiny, PROMPT, 64) / "00007.safetensors").rename(
        class_images_folder(tiny, PROMPT, 64) / "00000.safetensors"
    )
    [latents] = load_latents(tiny, PROMPT, 64, 1)
    decoded = tiny.decode(latents.mean)[0].astype(int)
    assert abs(decoded - np.asarray(result.image).astype(int)).max() <= 1
    assert not latents.std.any()


@pytest.mark.usefixtures("few_steps")
def test_interrupted_and_shared_generation_gives_the_same_files(tiny):
    generate_and_log(tiny, range(4))
    files = files_of(tiny)
    assert list(files) == [f"{i:05d}.safetensors" for i in range(4)]
    folder = class_images_folder(tiny, PROMPT, 64)
    (folder / "00001.safetensors").unlink()
    (folder / "00002.safetensors").write_bytes(files["00002.safetensors"][:100])
    (folder / "holiday.jpg").write_bytes(b"not ours")
    logs = [generate_and_log(tiny, range(rank, 4, 2)) for rank in range(2)]  # as two processes would
    assert [len(lines) for lines in logs] == [1, 1] and "Generating 1 class images" in logs[0][0]
    assert {name: data for name, data in files_of(tiny).items() if name != "holiday.jpg"} == files
    assert generate_and_log(tiny, range(4)) == []
    assert len(load_latents(tiny, PROMPT, 64, 4)) == 4


@pytest.mark.usefixtures("few_steps")
def test_class_images_are_generated_in_batches_on_a_gpu(tiny, monkeypatch):
    """The same pictures up to the kernels' rounding, each in its own file."""
    generate_and_log(tiny, range(5))
    alone = [latents.mean for latents in load_latents(tiny, PROMPT, 64, 5)]
    for path in class_images_folder(tiny, PROMPT, 64).iterdir():
        path.unlink()
    monkeypatch.setattr(class_images, "_place", lambda base, side: 3)
    batches, generate = [], class_images._generate
    monkeypatch.setattr(class_images, "_generate", lambda *args: batches.append(list(args[2])) or generate(*args))
    generate_and_log(tiny, range(1, 5))
    generate_and_log(tiny, range(5))
    assert batches == [[1, 2, 3], [4], [0]]
    for latents, expected in zip(load_latents(tiny, PROMPT, 64, 5), alone, strict=True):
        torch.testing.assert_close(latents.mean, expected, atol=2e-3, rtol=2e-3)


def test_the_offload_plan_sets_the_batch_size_on_a_gpu(monkeypatch):
    plan, applied = OffloadPlan("model", False, 5), []
    monkeypatch.setattr(class_images, "plan_offload", lambda base, size, most: plan)
    base = SimpleNamespace(device=torch.device("cuda"), offloader=SimpleNamespace(apply_plan=applied.append))
    assert class_images._place(base, 64) == 5 and applied == [plan]


@pytest.mark.usefixtures("few_steps")
def test_prompts_have_separate_folders_and_missing_images_are_refused(tiny):
    generate_and_log(tiny, [0])
    assert (
        class_images_folder(tiny, "a photo of dog", 64)
        != class_images_folder(tiny, PROMPT, 64)
        != class_images_folder(tiny, PROMPT, 128)
    )
    assert class_images_folder(tiny, "../../etc", 64).parent == class_images_folder(tiny, PROMPT, 64).parent
    with pytest.raises(UserError, match="1 of 2 class images are missing"):
        load_latents(tiny, PROMPT, 64, 2)


@pytest.mark.usefixtures("few_steps")
@pytest.mark.parametrize(
    "prior, method",
    [("drawn", "lora"), ("photos", "full")]
    + [pytest.param(*case, marks=pytest.mark.thorough) for case in (("drawn", "full"), ("photos", "lora"))],
)
def test_a_run_trains_with_generated_or_given_class_images(tiny, tmp_path, method, prior):
    for name in ("mine", "cats"):
        save_photos(tmp_path / name, 2)
    common = {"photos": tmp_path / "mine", "base": "tiny", "class_noun": "cat", "steps": 1, "batch": 1, "rank": 2}
    common |= {"samples": False, "library": tmp_path / "concepts", "method": method, "num_class_images": 2}
    source = "generated" if prior == "drawn" else str(tmp_path / "cats")
    train(DreamboothSettings(**common, token="<me/with>", run=tmp_path / "with", prior=source), log=lambda line: None)
    train(DreamboothSettings(**common, token="<me/without>", run=tmp_path / "without"), log=lambda line: None)
    library = Library(tmp_path / "concepts")
    assert len({entry.path.read_bytes() for entry in library.entries()}) == 2
    if prior == "drawn":
        assert len(list(class_images_folder(tiny, "a photo of cat", tiny.resolution).iterdir())) == 2


def test_unsuitable_priors_and_steps_are_refused(tmp_path):
    (tmp_path / "mine").mkdir()
    Image.new("RGB", (256, 256), "red").save(tmp_path / "mine" / "a.png")
    common = {"photos": tmp_path / "mine", "token": "<me/a>", "class_noun": "cat", "base": "tiny"}
    with pytest.raises(UserError, match="--method full changes it"):
        train(DreamboothSettings(**common, method="full", prior="predicted"), log=lambda line: None)
    with pytest.raises(UserError, match="trains the embeddings for"):
        train(DreamboothSettings(**common, method="pivotal", steps=3), log=lambda line: None)
    with pytest.raises(UserError, match="There is no folder"):
        train(DreamboothSettings(**common, prior="nowhere"), log=lambda line: None)
