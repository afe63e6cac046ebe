"""Trials during a run: which checkpoint is kept, that it is the one the concept is made of, and that an interrupted
run ends as an uninterrupted one."""

import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from sdpersonal.concepts.concept_file import concept_from_bytes
from sdpersonal.concepts.library import Library
from sdpersonal.config import DreamboothSettings, TextualInversionSettings
from sdpersonal.errors import UserError
from sdpersonal.evaluation import ConceptScores
from sdpersonal.evaluation.concept_score import prompts_and_seeds
from sdpersonal.models.loading import built_in_folder
from sdpersonal.prompts import Token
from sdpersonal.training import run, run_dir, run_ending, train, validation
from sdpersonal.training.checkpoint import CHECKPOINT_LIMIT, CheckpointState, load_step, save_checkpoint
from sdpersonal.training.control import Command, send
from sdpersonal.training.milestones import run_milestones
from sdpersonal.training.optim import EMA
from sdpersonal.training.own_prompts import write_own_prompts
from sdpersonal.training.progress_log import ProgressLog
from sdpersonal.training.run_dir import VALIDATIONS_FILE, read_sample_images
from sdpersonal.training.train_state import LoopHooks
from sdpersonal.training.validation import (
    SCORE_TOLERANCE,
    Validation,
    best_validation,
    read_validations,
)
from support.narrow import save_narrow, save_photos
from support.train_states import loop_config_for, settings_for, train_state_for


@pytest.fixture(scope="module")
def photos(root):
    return root / "examples" / "photos" / "teddy-bear"


@pytest.fixture
def quick(monkeypatch, tiny):
    """Pictures of two steps of denoising, one base for all runs: how good a concept is, is not the question here."""
    monkeypatch.setattr(validation, "DENOISING_STEPS", 2)
    monkeypatch.setattr(run_ending, "add_sample_sheet", lambda concept, *_: (concept, None))
    monkeypatch.setattr(run, "load_base", lambda *_, **__: tiny)


@pytest.fixture
def begin(photos, quick):
    def begin(folder, method="inversion", progress=None, **more):
        common = {"photos": photos, "token": "<me/teddy>", "base": "tiny", "steps": 4, "batch": 2, "resolution": 64}
        common |= {"library": folder / "concepts", "run": folder / "run"}
        if method == "inversion":
            settings = TextualInversionSettings(**(common | {"init": "bear", "vectors": 2} | more))
        else:
            settings = DreamboothSettings(**(common | {"class_noun": "bear", "rank": 2, "method": method} | more))
        lines = []
        train(settings, lines.append, progress)
        return Library(folder / "concepts").get(Token("me", "teddy")), lines

    return begin


def second(validations):
    """Instead of the best: the trial at step 2, as soon as it is there."""
    return next(
        (validation for validation in validations if validation.step == 2), validations[-1] if validations else None
    )


def result(folder):
    return json.loads((folder / "run" / "result.json").read_text())


def validation_lines(folder):
    return [json.loads(line) for line in (folder / "run" / VALIDATIONS_FILE).read_text().splitlines()]


def checkpoints(folder):
    return sorted(path.name for path in (folder / "run").glob("step-*"))


def scored(score, fidelity=0.5):
    """Scores whose score is this, if it is below the root of the fidelity."""
    return ConceptScores(score**2 / fidelity, fidelity, 0.0, 0.1, 0.3)


# --- which is the best ---


def best_by_brute_force(validations):
    """Of all that the one of the highest score beats by no more than the noise, the one with the most steps."""
    scored_validations = [validation for validation in validations if validation.scores]
    top = max(scored_validations, key=lambda validation: validation.scores.score, default=None)
    good = [
        a
        for a in scored_validations
        if top.scores.score - a.scores.score <= SCORE_TOLERANCE
        and top.scores.fidelity - a.scores.fidelity <= SCORE_TOLERANCE
    ]
    return max(good, key=lambda validation: validation.step, default=None)


@pytest.mark.parametrize("seed", range(50))
def test_the_best_validation_is_the_last_within_the_score_tolerance(seed):
    rng = random.Random(seed)
    spread = rng.choice([0.01, 0.05, 0.5])
    validations = [
        Validation(
            10 * i, None if rng.random() < 0.1 else scored(0.2 + spread * rng.random(), rng.choice([0.6, 0.63, 0.9]))
        )
        for i in range(rng.randint(0, 12))
    ]
    assert best_validation(validations) is best_by_brute_force(validations)


def test_a_later_validation_that_follows_prompts_less_is_not_the_best():
    """Of a teapot whose later images were more like it and all on dark backgrounds."""
    scores = ((160, 0.913, 0.841), (192, 1.138, 0.468), (224, 0.996, 0.744))
    validations = [
        Validation(step, ConceptScores(likeness, fidelity, 0, 0.1, 0.3)) for step, likeness, fidelity in scores
    ]
    assert validations[2].scores.score > validations[0].scores.score - SCORE_TOLERANCE
    assert best_validation(validations).step == 160


def test_zero_scores_are_ranked_and_missing_scores_are_not():
    validations = [Validation(1, scored(0.0)), Validation(2, scored(0.0))]
    assert (
        best_validation(validations).step == 2
        and best_validation([]) is None
        and best_validation([Validation(1, None)]) is None
    )


@pytest.mark.parametrize("seed", range(20))
def test_only_the_newest_validation_can_replace_the_best(seed):
    """So its checkpoint, kept from save to save, is always there."""
    rng, validations, previous = random.Random(seed), [], None
    for step in range(1, 30):
        validations.append(Validation(step, scored(rng.random() * 0.7, rng.choice([0.6, 0.63, 0.9]))))
        best = best_validation(validations)
        assert best in (previous, validations[-1])
        previous = best


@pytest.mark.parametrize(
    ("scores", "more"),
    [
        ([], False),
        ([0.65], False),
        ([0.65, 0.7], True),
        ([0.7, 0.71], False),
        ([0.7, 0.62, 0.65], False),
        ([0.65, 0.6, 0.7], True),
        ([0.61, 0.7, 0.65], True),  # the one before
        ([0.61, 0.7, 0.65, 0.7], False),
        ([0.5], True),  # nothing is good yet
        ([0.5, 0.4, 0.3, 0.2], True),
    ],
)
def test_a_run_is_improving_while_scores_are_low_or_rising(scores, more):
    assert validation.is_improving([Validation(step, scored(score)) for step, score in enumerate(scores, 1)]) is more


def test_out_of_domain_scores_neither_stop_a_run_nor_select_a_step(tmp_path):
    validations = [
        Validation(step, replace(scored(score), out_of_domain=True)) for step, score in enumerate([0.9, 0.7, 0.2], 1)
    ]
    assert validation.is_improving(validations) and best_validation(validations) is validations[-1]
    assert best_validation([*validations, Validation(4, None)]) is validations[-1]
    lines = [validation._to_json(entry.step, entry.scores) for entry in validations]
    (tmp_path / VALIDATIONS_FILE).write_text("\n".join(lines))
    assert read_validations(tmp_path) == validations


# --- its checkpoint ---


@pytest.mark.parametrize("method", [pytest.param("inversion", marks=pytest.mark.thorough), "lora"])
def test_the_concept_is_the_ema_of_the_selected_checkpoint(begin, tiny, tmp_path, monkeypatch, method):
    monkeypatch.setattr(validation, "best_validation", second)
    concept, _ = begin(tmp_path, method)
    assert result(tmp_path)["best"] == concept.card.steps == 2 and result(tmp_path)["steps"] == 4
    assert checkpoints(tmp_path) == ["step-000002", "step-000003", "step-000004"]
    best_values, last = (
        load_file(tmp_path / "run" / name / "state.safetensors") for name in ("step-000002", "step-000004")
    )
    table = load_file(built_in_folder() / "text_encoder" / "model.safetensors")
    table = next(value for key, value in table.items() if key.endswith("token_embedding.weight"))
    longest = np.linalg.norm(table.astype(np.float64), axis=1).max()

    def in_use(embeddings):
        return embeddings * np.minimum(1, longest / np.linalg.norm(embeddings, axis=1, keepdims=True))

    np.testing.assert_allclose(concept.vectors["clip_l"], in_use(best_values["average.rows.clip_l"]), atol=1e-6)
    for checkpoint_values in (best_values["value.rows.clip_l"], last["average.rows.clip_l"]):
        assert np.abs(concept.vectors["clip_l"] - in_use(checkpoint_values)).max() > 1e-4
    if method == "lora":
        assert sum(key.startswith("average.lora_") for key in best_values) == 2 * len(concept.lora.layers) > 100
        for name, layer in concept.lora.layers.items():
            for part in ("up", "down"):
                np.testing.assert_array_equal(getattr(layer, part), best_values[f"average.{name}.lora_{part}.weight"])
    line = next(line for line in validation_lines(tmp_path) if line["step"] == 2)
    for key, value in concept.card.scores.items():
        assert value == pytest.approx(line[key], abs=1e-4)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "The concept is as it was after step 2." in page


def test_the_checkpoint_with_the_best_score_becomes_the_concept(begin, tmp_path):
    """By no choice of ours."""
    concept, lines = begin(tmp_path, steps=5, lr=0.2)
    validations = [(line["step"], line["score"]) for line in validation_lines(tmp_path)]
    assert [step for step, _ in validations] == list(range(1, 6))
    best = max(step for step, score in validations if score >= max(score for _, score in validations) - SCORE_TOLERANCE)
    assert concept.card.steps == result(tmp_path)["best"] == best
    assert f"step-{best:06d}" in checkpoints(tmp_path)
    assert any("likeness" not in line and ("no effect" in line or "like the photos" in line) for line in lines)


class Small:
    def __init__(self):
        trained = {"rows": torch.nn.Parameter(torch.zeros(3, 2))}
        self.checkpoint_state = CheckpointState(trained, torch.optim.AdamW(trained.values()), {})

    def save(self, run, step, best=None):
        with torch.no_grad():
            self.checkpoint_state.trainable_parameters["rows"].fill_(step)
        save_checkpoint(run, step, self.checkpoint_state, {}, best)


def test_the_best_checkpoint_is_not_removed_by_later_ones(tmp_path):
    small = Small()
    for step in range(1, 13):
        small.save(tmp_path, step, best=3 if step > 3 else None)
        names = sorted(path.name for path in tmp_path.iterdir())
        expected = {3} & set(range(1, step + 1)) | set(range(max(1, step - CHECKPOINT_LIMIT + 1), step + 1))
        assert names == [f"step-{kept_step:06d}" for kept_step in sorted(expected)]
    load_step(tmp_path, 3, small.checkpoint_state)
    assert torch.equal(small.checkpoint_state.trainable_parameters["rows"], torch.full((3, 2), 3.0))
    small.save(tmp_path, 13, best=12)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000012", "step-000013"]


def test_a_missing_or_damaged_best_checkpoint_is_refused(tmp_path):
    small = Small()
    small.save(tmp_path, 2)
    with pytest.raises(UserError, match="step-000001, is damaged"):
        load_step(tmp_path, 1, small.checkpoint_state)
    state = tmp_path / "step-000002" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-1] + b"!")
    with pytest.raises(UserError, match="step-000002, is damaged"):
        load_step(tmp_path, 2, small.checkpoint_state)


def test_a_damaged_best_checkpoint_falls_back_to_the_last(begin, tmp_path, monkeypatch):
    monkeypatch.setattr(validation, "best_validation", second)
    real = run.run_milestones

    def follow(*args):
        end = real(*args)
        state = tmp_path / "run" / "step-000002" / "state.safetensors"
        state.write_bytes(state.read_bytes()[:-9])
        return end

    monkeypatch.setattr(run, "run_milestones", follow)
    concept, lines = begin(tmp_path, steps=3)
    assert concept.card.steps == result(tmp_path)["best"] == 3
    assert any("step-000002" in line and "last" in line for line in lines)
    last = load_file(tmp_path / "run" / "step-000003" / "state.safetensors")["average.rows.clip_l"]
    directions = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (concept.vectors["clip_l"], last)]
    np.testing.assert_allclose(*directions, atol=1e-5)  # their norms are limited


# --- trials.jsonl ---

GOOD = {"step": 1, "score": 0.5, "likeness": 0.5, "fidelity": 0.5, "copying": 0.0, "diversity": 0.1, "cosine": 0.3}
BAD = {
    "half a line": json.dumps(GOOD)[:-9],
    "NaN": json.dumps(GOOD | {"likeness": math.nan}),
    "infinity": json.dumps(GOOD | {"cosine": -math.inf}),
    "infinite step": json.dumps(GOOD | {"step": math.inf}),
    "missing key": json.dumps({key: value for key, value in GOOD.items() if key != "copying"}),
    "no step": json.dumps({key: value for key, value in GOOD.items() if key != "step"}),
    "text": json.dumps(GOOD | {"step": "one"}),
    "words": json.dumps(GOOD | {"likeness": "much"}),
    "nothing": json.dumps(GOOD | {"likeness": None}),
    "a list": "[1, 2]",
    "a number": "7",
    "no JSON": "step 1: good",
    "no text": b"\xff\xfe\x00".decode(errors="replace"),
    "too large": json.dumps(GOOD).replace("0.1", "1" + "0" * 400),
    "too deep": "[" * 100_000,
}


@pytest.mark.parametrize("fault", BAD)
def test_invalid_validation_lines_are_ignored(tmp_path, fault):
    whole = [GOOD, GOOD | {"step": 2}]
    (tmp_path / VALIDATIONS_FILE).write_text("\n".join([json.dumps(whole[0]), BAD[fault], json.dumps(whole[1]), ""]))
    assert [validation.step for validation in read_validations(tmp_path)] == [1, 2]
    assert read_validations(tmp_path)[0].scores == ConceptScores(0.5, 0.5, 0.0, 0.1, 0.3)


def test_a_missing_validation_file_gives_no_validations(tmp_path):
    assert read_validations(tmp_path) == []


# --- a trial leaves no trace, and an interrupted run none either ---


def test_validation_does_not_change_training(begin, tmp_path):
    ends = []
    for samples in (True, False):
        folder = tmp_path / str(samples)
        begin(folder, "lora", samples=samples, steps=3)
        state = load_file(folder / "run" / "step-000003" / "state.safetensors")
        ends.append({key: value.tobytes() for key, value in state.items()})
    assert ends[0] == ends[1]


def stopping_at(monkeypatch, call, number):
    """The run is interrupted at the number-th call there; the calls before are as ever."""
    owner, name, when = call
    real, left = getattr(owner, name), [number]

    def interrupted(*args, **named):
        left[0] -= 1
        if left[0] == 0 and when == "before":
            raise KeyboardInterrupt
        answer = real(*args, **named)
        if left[0] == 0:
            raise KeyboardInterrupt
        return answer

    monkeypatch.setattr(owner, name, interrupted)
    return lambda: monkeypatch.setattr(owner, name, real)


CALLS = {
    "after a step": (ProgressLog, "step", "after"),
    "before a trial": (validation.Validator, "run", "before"),
    "in a trial, its pictures drawn": (validation.Validator, "generate", "after"),
    "in a trial, before its line": (validation.Validator, "_save", "after"),
    "after a trial": (validation.Validator, "run", "after"),
}


@pytest.fixture
def whole(begin, tmp_path):
    return begin(tmp_path / "whole", "lora", steps=4)[0], (tmp_path / "whole" / "run" / VALIDATIONS_FILE).read_bytes()


@pytest.mark.thorough
@pytest.mark.slow
def test_a_run_interrupted_anywhere_resumes_to_the_same_result(begin, whole, tmp_path, monkeypatch):
    """Also in the middle of a trial, or of the line that it writes; twice, where the second one is as the first."""
    concept, expected_bytes = whole
    for number, (name, call) in enumerate(CALLS.items()):
        folder = tmp_path / str(number)
        undo = stopping_at(monkeypatch, call, 3)  # of the exam's first, the class noun's pictures, too
        with pytest.raises(KeyboardInterrupt):
            begin(folder, "lora", steps=4)
        undo()
        assert not list((folder / "concepts").glob("*/*")), name
        if number % 2:  # a kill within a line
            with open(folder / "run" / VALIDATIONS_FILE, "ab") as file:
                file.write(b'{"step": 99, "sco')
        again, lines = begin(folder, "lora", steps=4, resume=True)
        assert any("Resuming from step" in line for line in lines), name
        assert again.identity == concept.identity, name
        assert again.card.model_dump(exclude={"created"}) == concept.card.model_dump(exclude={"created"}), name
        assert (folder / "run" / VALIDATIONS_FILE).read_bytes() == expected_bytes, name


def test_validations_after_the_resumed_checkpoint_are_repeated(begin, whole, tmp_path, monkeypatch):
    """The newest checkpoint is damaged: the run goes on from the one before, whose trials alone count."""
    concept, expected_bytes = whole
    undo = stopping_at(monkeypatch, (validation.Validator, "run", "after"), 3)
    with pytest.raises(KeyboardInterrupt):
        begin(tmp_path / "cut", "lora", steps=4)
    undo()
    newest = tmp_path / "cut" / "run" / "step-000003" / "state.safetensors"
    newest.write_bytes(newest.read_bytes()[:-5])
    again, lines = begin(tmp_path / "cut", "lora", steps=4, resume=True)
    assert any("resuming from step 2" in line for line in lines)
    assert again.identity == concept.identity
    assert (tmp_path / "cut" / "run" / VALIDATIONS_FILE).read_bytes() == expected_bytes


def test_a_new_run_discards_validations_of_a_run_without_checkpoint(begin, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / VALIDATIONS_FILE).write_text(
        json.dumps(GOOD | {"step": 5, "likeness": 1, "fidelity": 1}) + "\n"
    )
    begin(tmp_path, steps=2)
    assert [line["step"] for line in validation_lines(tmp_path)] == [1, 2]


OWN = ("a painting of <me/teddy>", "on a bike")


def single_images(run_folder, step):
    return read_sample_images(run_dir.validation_folder(run_folder, step))


@pytest.fixture(scope="module")
def watched(photos, tiny, tmp_path_factory):
    """Two short runs that differ in the user's own prompts only: their folders."""
    folders = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "DENOISING_STEPS", 2)
        patch.setattr(run_ending, "add_sample_sheet", lambda concept, *_: (concept, None))
        patch.setattr(run, "load_base", lambda *_, **__: tiny)
        for prompts in ((), OWN):
            folder = tmp_path_factory.mktemp("watched")
            common = {"photos": photos, "token": "<me/teddy>", "base": "tiny", "steps": 3, "batch": 2, "resolution": 64}
            common |= {"library": folder / "concepts", "run": folder / "run", "sample_prompts": prompts}
            train(DreamboothSettings(**common, class_noun="bear", rank=2), lambda line: None)
            folders.append(folder)
    return folders


def test_every_validation_saves_a_sheet_of_images(watched):
    from PIL import Image

    for folder in watched:
        names = {"class-noun.png", *(f"step-00000{step}.png" for step in (1, 2, 3))}
        assert {path.name for path in (folder / "run" / "trials").glob("*.png")} == names
        for name in names:
            with Image.open(folder / "run" / "trials" / name) as picture:
                assert picture.width > 300 and len(set(picture.convert("L").tobytes())) > 20


def test_every_validation_image_is_a_file_with_its_prompt_and_seed(watched):
    """The sheet is made of the same pixels."""
    from PIL import Image

    for step in (1, 2, 3):
        images = single_images(watched[0] / "run", step)
        assert [(image.prompt, image.seed) for image in images] == prompts_and_seeds("object")
        pictures = [Image.open(image.path).convert("RGB") for image in images]
        assert {picture.size for picture in pictures} == {(64, 64)} and not any(image.is_own for image in images)
        with Image.open(watched[0] / "run" / "trials" / f"step-00000{step}.png") as sheet:
            assert sheet.convert("RGB").tobytes() == validation.validation_sheet(pictures, "object", "…").tobytes()
    class_images = read_sample_images(watched[0] / "run" / "trials" / "class-noun")
    assert [image.prompt for image in class_images[:3]] == ["a bear on the beach"] * 2 + ["a bear in the snow"]


def test_own_prompts_add_images_and_change_no_result(watched):
    plain, own = (folder / "run" for folder in watched)
    assert (plain / VALIDATIONS_FILE).read_bytes() == (own / VALIDATIONS_FILE).read_bytes()
    identities = [Library(folder / "concepts").entries()[0].identity for folder in watched]
    assert identities[0] == identities[1]
    for step in (1, 2, 3):
        first, second = single_images(plain, step), single_images(own, step)
        assert [image.path.read_bytes() for image in first] == [image.path.read_bytes() for image in second[:8]]
        assert [(image.prompt, image.seed) for image in second[8:]] == [("a painting of {}", 0), ("{} on a bike", 0)]
        assert all(image.is_own for image in second[8:])


def test_every_validation_saves_a_snapshot_of_the_concept(watched):
    folder = watched[0]
    snapshots = {}
    for step in (1, 2, 3):
        path = run_dir.snapshot_file(folder / "run", step)
        snapshots[step] = concept_from_bytes(path.read_bytes(), path.name)
    final = Library(folder / "concepts").get(Token("me", "teddy"))
    assert snapshots[final.card.steps].identity == final.identity
    assert len({concept.identity for concept in snapshots.values()}) == 3
    assert [concept.card.steps for concept in snapshots.values()] == [1, 2, 3]
    assert snapshots[1].card.scores == read_validations(folder / "run")[0].scores.to_dict()


def test_the_keep_command_makes_the_chosen_step_the_concept(begin, tmp_path):
    """The run ends where it is, with the concept as it was then; its prompts of that moment are drawn."""
    folder = tmp_path / "run"
    folder.mkdir()
    wishes = {2: lambda: write_own_prompts(folder, ["{} at sea"]), 4: lambda: send(folder, Command.KEEP, 1)}
    concept, lines = begin(tmp_path, "lora", steps=8, progress=lambda now: wishes.get(now.step, tuple)())
    assert "Ended after step" in "".join(lines)
    assert result(tmp_path)["best"] == concept.card.steps == 1 and 4 <= result(tmp_path)["steps"] < 8
    first = run_dir.snapshot_file(folder, 1)
    assert concept.identity == concept_from_bytes(first.read_bytes(), first.name).identity
    assert single_images(folder, 1)[8:] == [] and single_images(folder, 3)[-1].prompt == "{} at sea"
    assert "The concept is as it was after step 1" in (folder / "report.html").read_text()


def test_an_interrupted_validation_restores_the_trained_values(tmp_path):
    settings = settings_for("inversion", save_photos(tmp_path / "photos", 2), save_narrow("sd1", tmp_path / "sd1"))
    state = train_state_for(settings, lambda trained: EMA(trained, 0.9))
    state.step = 4
    embeddings = state.method.trainable_parameters()["rows.clip_l"]
    state.ema.values["rows.clip_l"].fill_(7)
    initial = embeddings.detach().clone()

    class FailingValidator:
        best_step = None

        def run(self, method, step, on_request):
            assert (embeddings == 7).all()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_milestones(
            state,
            loop_config_for(tmp_path, 4, milestones=(2, 4)),
            LoopHooks(ProgressLog(tmp_path, 4, 4), FailingValidator()),
        )
    assert torch.equal(embeddings, initial) and (state.ema.values["rows.clip_l"] == 7).all()
