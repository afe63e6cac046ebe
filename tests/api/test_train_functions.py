"""`train_dreambooth` and `train_textual_inversion`: what they return, how they stop, and what they refuse."""

import io
import logging
import signal

import numpy as np
import pytest
from PIL import Image

import sdpersonal as sp
from sdpersonal.errors import FieldError
from support.narrow import save_photos

SHORT = {"base": "tiny", "samples": False, "quiet": True}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return save_photos(tmp_path_factory.mktemp("photos"), 3)


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    """A run of three steps, and the progress that it reported."""
    folder, seen = tmp_path_factory.mktemp("trained"), []
    token = sp.Token.of("<me/duck>")
    settings = SHORT | {"steps": 3, "rank": 2, "library": str(folder / "concepts"), "run": folder / "run"}
    return sp.train_dreambooth(photos, token, "toy  duck", on_progress=seen.append, **settings), seen


def test_the_result_contains_the_concept_the_losses_and_the_report(trained, tmp_path):
    result, _ = trained
    assert str(result.token) == "<me/duck-v1>" and result.token in sp.Library(result.library)
    assert result.concept.card.class_noun == "toy duck" and result.concept.lora.rank == 2
    assert len(result.losses) == 3 and np.isfinite(result.losses).all() and result.seconds > 0
    assert result.report.read_text().startswith("<!") and result.run == result.report.parent


def test_progress_is_reported_after_every_step(trained):
    result, seen = trained
    assert [(progress.step, progress.steps) for progress in seen] == [(1, 3), (2, 3), (3, 3)]
    assert [progress.loss for progress in seen] == pytest.approx(result.losses, abs=1e-6)
    assert seen[-1].seconds_left == 0


def test_a_notebook_shows_the_loss_if_there_are_no_samples(trained):
    picture = trained[0]._repr_png_()
    assert picture == (trained[0].run / "loss.png").read_bytes()
    with Image.open(io.BytesIO(picture)) as image:
        assert image.format == "PNG"


def test_a_notebook_shows_the_sample_sheet(trained, tmp_path):
    import dataclasses

    Image.new("RGB", (7, 5)).save(tmp_path / "samples.png")
    with Image.open(io.BytesIO(dataclasses.replace(trained[0], sheet=tmp_path / "samples.png")._repr_png_())) as image:
        assert image.size == (7, 5)
    assert dataclasses.replace(trained[0], sheet=tmp_path / "removed.png")._repr_png_() is None


def test_the_trained_concept_can_be_used_in_a_prompt(trained, tiny):
    sd = sp.Pipeline(tiny, sp.Library(trained[0].library))
    (image,) = sd.generate("a photo of <me/duck>", num_images=1, steps=2, quiet=True)
    assert image.recipe.concepts[0].token == str(trained[0].token)


def test_messages_go_to_the_logger_and_nothing_is_printed(photos, tmp_path, caplog, capfd):
    settings = {"base": "tiny", "samples": False, "steps": 1, "library": tmp_path / "concepts", "run": tmp_path / "run"}
    with caplog.at_level(logging.INFO, "sdpersonal"):
        result = sp.train_textual_inversion(photos, "<me/ink>", kind="style", **settings)
    assert result.concept.vectors and result.concept.lora is None and capfd.readouterr() == ("", "")
    assert any("3 photos" in message for message in caplog.messages)


def test_interrupted_training_resumes_from_its_checkpoint(photos, tmp_path):
    def interrupt(progress: sp.Progress) -> None:
        if progress.step == 1:
            signal.raise_signal(signal.SIGINT)

    settings = SHORT | {"steps": 5, "library": tmp_path / "concepts", "run": tmp_path / "run"}
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(sp.Interrupted, match="of 5") as caught:
        sp.train_textual_inversion(photos, "<me/ink>", on_progress=interrupt, **settings)
    assert "resume=True" in caught.value.hint and signal.getsignal(signal.SIGINT) is handler
    assert len(sp.Library(tmp_path / "concepts")) == 0
    seen = []
    result = sp.train_textual_inversion(photos, "<me/ink>", resume=True, on_progress=seen.append, **settings)
    assert seen[0].step > 1 and seen[-1].step == 5 and len(result.losses) == 5


def test_an_exception_in_the_callback_ends_the_run(photos, tmp_path):
    def fail(progress: sp.Progress) -> None:
        raise ZeroDivisionError

    settings = SHORT | {"steps": 3, "library": tmp_path / "concepts", "run": tmp_path / "run"}
    with pytest.raises(ZeroDivisionError):
        sp.train_textual_inversion(photos, "<me/ink>", on_progress=fail, **settings)
    assert not (tmp_path / "concepts").exists()
    assert len(sp.train_textual_inversion(photos, "<me/ink>", **settings).losses) == 3  # the run folder is free again


@pytest.mark.parametrize(
    ("settings", "message", "hint"),
    [
        ({"token": "My Duck"}, "My Duck", "<me/my-duck>"),
        ({"token": "<duck>"}, "no owner", "<me/duck>"),
        ({"class_noun": ""}, "class_noun", ""),
        ({"class_noun": None}, "class_noun", ""),
        ({"steps": 0}, "steps must be a whole number from 1", ""),
        ({"rank": 2.5}, "rank must be a whole number", ""),
        ({"optimizer": "sgd"}, "optimizer must be one of adamw", ""),
        ({"step": 3}, "step", "steps"),
        ({"photos": "nowhere"}, "nowhere", ""),
        ({"base": "tinny"}, "tinny", "sdxl"),
        ({"resume": True, "run": "no-run"}, "no-run", ""),
    ],
)
def test_invalid_arguments_are_refused_before_training(photos, settings, message, hint):
    started = []
    arguments = {"photos": photos, "token": "<me/duck>", "class_noun": "duck", "on_progress": started.append} | SHORT
    with pytest.raises(sp.UserError) as caught:
        sp.train_dreambooth(**arguments | settings)
    assert message in caught.value.message and hint in caught.value.hint and not started
    assert "--" not in str(caught.value)


def test_a_field_error_names_its_keyword(photos):
    with pytest.raises(FieldError) as caught:
        sp.train_dreambooth(photos, "<me/duck>", "", base="tiny")
    assert caught.value.field == "class_noun"


def test_a_finished_run_is_refused_with_a_hint_how_to_resume(photos, trained):
    with pytest.raises(sp.UserError, match="finished run") as caught:
        sp.train_dreambooth(photos, "<me/duck>", "toy duck", run=trained[0].run, steps=3, **SHORT)
    assert "resume=True early_stop=False" in caught.value.hint


def test_several_processes_are_refused(photos, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(sp.UserError, match="one process") as caught:
        sp.train_dreambooth(photos, "<me/duck>", "duck", **SHORT)
    assert "accelerate launch" in caught.value.hint
