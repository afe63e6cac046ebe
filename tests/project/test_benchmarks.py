"""The benchmarks run. Beside diffusers' scripts where SDPERSONAL_DIFFUSERS_EXAMPLES names their folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro
from PIL import Image

from benchmarks.steps.cases import ON_CPU, ON_CUDA, Arm, Case, command, copy_photos
from benchmarks.steps.chart import save_chart
from sdpersonal.config import DreamboothSettings, TextualInversionSettings
from support.narrow import save_photos

PEERS = "SDPERSONAL_DIFFUSERS_EXAMPLES"


def module(name, *arguments, root, cwd):
    """Run a part of the benchmark as the benchmark does; the result it wrote."""
    result = cwd / "result.json"
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", f"benchmarks.steps.{name}", str(result), *map(str, arguments)]
    done = subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True, timeout=200)
    assert result.exists(), done.stderr[-2000:]
    return json.loads(result.read_text())


@pytest.mark.slow
@pytest.mark.timeout(1000)
@pytest.mark.skipif(PEERS not in os.environ, reason=f"{PEERS} does not name diffusers' folder of examples")
@pytest.mark.parametrize("method", ["textual-inversion", "lora"])
def test_the_training_benchmark_measures_both_sides_on_a_narrow_model(root, tmp_path, method):
    photos = save_photos(tmp_path / "photos", 2)
    line = [sys.executable, root / "benchmarks" / "training_step.py", "--scripts", os.environ[PEERS]]
    line += ["--photos", photos, "--work", tmp_path / "work", "--out", tmp_path / "out.json"]
    line += ["--chart", tmp_path / "chart.png", "--cases", f"narrow:{method}:64:1", "--rounds", "1", "--steps", "2"]
    line += ["--peak-tflops", "0.1"]
    done = subprocess.run(list(map(str, line)), cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    (case,) = json.loads((tmp_path / "out.json").read_text())["cases"]
    assert list(case["arms"]) == ["script fp32", "sdpersonal fp32"]
    for arm in case["arms"].values():
        assert len(arm["rounds"][0]["wall"]) == 2 and arm["seconds"] > 0
        assert arm["rounds"][0]["threads"] == 1 and arm["peak"] > case["weights"]
    assert case["arms"]["script fp32"]["gflop"] > case["arms"]["sdpersonal fp32"]["gflop"]
    assert "sdpersonal fp32" in done.stdout and Image.open(tmp_path / "chart.png").width > 300


@pytest.mark.thorough  # the test below starts the same clock
def test_the_clock_measures_training_steps_of_sdpersonal(root, tmp_path):
    case = Case("tiny", "textual-inversion", 64, 2)
    photos = copy_photos(save_photos(tmp_path / "photos", 3), 2, tmp_path / "taken")
    line = command(case, Arm("sdpersonal", "bf16"), Path(), Path(), photos, tmp_path / "run", root)
    measured = module("clock", 2, 3, "bf16-base", *line, root=root, cwd=tmp_path)
    assert len(measured["wall"]) == len(measured["cpu"]) == 3
    assert measured["peak"] >= measured["peak_while_stepping"] > measured["libraries"] / 2 > 0
    assert not (tmp_path / "concepts").exists()  # the clock ended the run


def test_a_failing_script_reports_its_error(root, tmp_path):
    (tmp_path / "bad.py").write_text("raise ValueError('no such photo')")
    with pytest.raises(AssertionError, match="no such photo"):
        module("clock", 2, 3, "as-is", tmp_path / "bad.py", root=root, cwd=tmp_path)


@pytest.mark.parametrize(
    "kind, method, side, teraflops",
    [  # forward passes as published for these models, times what their backward passes take
        ("sd15", "lora", 512, {"step": 1.754, "encode": 1.117}),
        ("sd15", "full", 512, {"step": 3 * 0.803 + 0.0133, "encode": 1.117}),
        pytest.param("sdxl", "textual-inversion", 1024, {"step": 14.5, "encode": 4.879}, marks=pytest.mark.thorough),
    ],
)
def test_flops_of_real_models_match_published_counts(kind, method, side, teraflops):
    from benchmarks.card.training import STEP_FLOPS
    from benchmarks.steps.work import count_flops

    counted = count_flops(kind, method, side, batch=1, rank=16, vectors=4)
    for part, expected in teraflops.items():
        assert sum(counted[part].values()) / 1e12 == pytest.approx(expected, rel=0.02)
    # What the check on a card divides by its seconds.
    assert sum(counted["step"].values()) == pytest.approx(STEP_FLOPS[kind, method], rel=0.01)


def test_flops_grow_with_the_batch_size_and_the_method():
    from benchmarks.steps.work import count_flops

    one, four = (count_flops("tiny", "lora", 128, batch, 16, 4) for batch in (1, 4))
    assert sum(four["step"].values()) == pytest.approx(4 * sum(one["step"].values()), rel=0.01)
    sums = [
        sum(count_flops("tiny", method, 128, 1, 16, 4)["step"].values()) for method in ("textual-inversion", "lora")
    ]
    assert sums[0] < sums[1]


def test_only_complete_batches_of_photos_are_copied(tmp_path):
    photos = save_photos(tmp_path / "photos", 5)
    (photos / "notes.txt").write_text("not a photo")
    assert len(list(copy_photos(photos, 4, tmp_path / "four").iterdir())) == 4
    assert len(list(copy_photos(photos, 2, tmp_path / "two").iterdir())) == 4
    with pytest.raises(SystemExit, match="holds 5 photos; a batch of 8 needs 8"):
        copy_photos(photos, 8, tmp_path / "eight")


@pytest.mark.parametrize("case", [*ON_CPU, *ON_CUDA])
def test_both_command_lines_have_equal_settings(case, root):
    places = {"scripts": Path("examples"), "base": Path("model"), "photos": Path("photos"), "out": Path("out")}
    script = command(case, Arm("script", "bf16"), **places, here=root)
    ours = command(case, Arm("sdpersonal", "bf16"), **places, here=root)
    assert f"--resolution={case.side}" in script and f"--resolution={case.side}" in ours
    assert f"--train_batch_size={case.batch}" in script and f"--batch={case.batch}" in ours
    assert ("sdxl" in script[0]) == (case.base == "sdxl") and "--mixed_precision=bf16" in script
    if case.method == "lora":
        assert "--rank=16" in script and "--rank=16" in ours and "--targets=attention" in ours
    kind = TextualInversionSettings if case.method == "textual-inversion" else DreamboothSettings
    settings = tyro.cli(kind, args=ours[1:])
    assert settings.resolution == case.side and settings.batch == case.batch and not settings.samples


@pytest.mark.parametrize("text", ["tiny:lora:128", "tiny:magic:128:1", "tiny:lora:wide:1"])
def test_an_invalid_benchmark_case_is_refused(text):
    with pytest.raises(ValueError):
        Case.parse(text)


def test_the_chart_is_not_blank(tmp_path):
    arms = {"script fp32": {"seconds": 2.0}, "sdpersonal fp32": {"seconds": 1.0}}
    save_chart({"cases": [{"case": "tiny lora 128 px batch 4", "arms": arms}]}, tmp_path / "chart.png")
    assert np.asarray(Image.open(tmp_path / "chart.png").convert("L")).std() > 5


def test_the_stand_in_behaves_as_torchvision_defines(monkeypatch):
    """Shapes and values by hand, since torchvision is what may be missing."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks" / "stand_in")
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    from torchvision import transforms

    pixels = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
    picture = Image.fromarray(pixels)
    whole = transforms.Compose([transforms.CenterCrop(4), transforms.ToTensor(), transforms.Normalize([0.5], [0.5])])
    expected = torch.from_numpy(pixels[1:5, 2:6].astype(np.float32) / 127.5 - 1).permute(2, 0, 1)
    torch.testing.assert_close(whole(picture), expected)
    assert transforms.Resize(3)(picture).size == (4, 3) and transforms.Resize(6)(picture) is picture
    assert np.array_equal(transforms.RandomHorizontalFlip(p=1.0)(picture), pixels[:, ::-1])
    crop = transforms.RandomCrop(4)
    top, left, height, width = crop.get_params(picture, (4, 4))
    assert 0 <= top <= 2 and 0 <= left <= 4 and (height, width) == (4, 4) and crop(picture).size == (4, 4)
    modes = [name for name in dir(transforms.InterpolationMode) if not name.startswith("__")]
    assert {"BILINEAR", "LANCZOS", "BICUBIC"} <= set(modes)


# --- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.timeout(1000)
def test_the_generation_benchmark_gives_equal_images_on_both_sides(root, tmp_path):
    """Both sides draw the same picture and say what it took."""
    line = [sys.executable, root / "benchmarks" / "generation.py", "--cases", "tiny:64:2", "--rounds", "1"]
    line += ["--switches", "1", "--images", "2", "--work", tmp_path / "work", "--out", tmp_path / "out.json"]
    done = subprocess.run(list(map(str, line)), cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    (case,) = json.loads((tmp_path / "out.json").read_text())["cases"]
    assert case["same"] < 0.01
    for row in case["draws"]:
        assert row["steps"] == 2 and 0 < row["unet"][1] < row["seconds"][1] and row["peak"] > 1e8
    for row in case["switches"]:
        assert 0 <= row["ready"][1] <= row["step"][1]
    assert done.stdout.count("| tiny 64 px") == 2 + 8 + 1 + 1


def test_seconds_per_image_are_scaled_to_all_steps():
    from benchmarks.generation import _seconds_per_image

    assert (
        _seconds_per_image({"seconds": [10.0, 9.0], "unet": [4.0, 3.0], "n": 2}, clock=1, steps=5)
        == (9 - 3 + 3 * 5) / 2
    )


def test_the_table_compares_the_medians_of_both_sides():
    from benchmarks.generation import markdown_table

    def generation(who, mix, seconds):
        return {"who": who, "mix": mix, "n": 8, "seconds": [0, seconds], "unet": [0, 0.0], "peak": 2e9, "cuda": None}

    def switch(who, mix, source, ready):
        return {"who": who, "mix": mix, "from": source, "ready": [0, ready], "step": [0, 2 * ready]}

    seconds = {"diffusers": (24.0, 8.0, 16.0), "sdpersonal": (8.0, 8.0, 1.0)}
    generations = [
        generation(who, mix, value) for who, values in seconds.items() for mix in ("one", "two") for value in values
    ]
    switches = [
        switch(who, mix, source, 3.0) for who in seconds for mix in ("one", "two") for source in ("files", "loaded")
    ]
    first = [{"who": who, "since_start": [0, 9.0]} for who in seconds]
    case = {"case": "tiny 128 px", "steps": 25, "clock": 1, "draws": generations, "switches": switches, "first": first}
    lines = markdown_table({"machine": "two cores", "cases": [case]}).splitlines()
    assert "| tiny 128 px: two LoRAs, 8 at once, an image in 25 steps | 2 s | 1 s | 2.00x |" in lines
    assert "| tiny 128 px: switch to two LoRAs from files, until first step | 6 s | 6 s | 1.00x |" in lines
    assert "| tiny 128 px: memory at most | 2.00 GB | 2.00 GB | 1.00x |" in lines


def test_a_concept_mix_has_a_prompt_for_each_side():
    from benchmarks.images.concepts import ConceptMix

    assert ConceptMix.of("one", 3).our_prompt == "a photo of a <bench/word3> on the beach, soft light<bench/lora3:0.7>"
    assert ConceptMix.of("two", 3).our_prompt.endswith("<bench/lora3:0.7><bench/lora4:0.4>")
    assert ConceptMix.of("two", 3).prompt == "a photo of a duck on the beach, soft light"
