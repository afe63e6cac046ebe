"""Run folders that were damaged or changed by somebody: a checkpoint that does not fit is said to be damaged and the
one before is used, and one bad number costs no other."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sdpersonal import storage
from sdpersonal.config import TextualInversionSettings
from sdpersonal.errors import UserError
from sdpersonal.prompts import Token
from sdpersonal.training import run_dir
from sdpersonal.training.checkpoint import CheckpointState, latest_identity, load_checkpoint, save_checkpoint
from sdpersonal.training.optim import make_optimizer
from sdpersonal.training.progress_log import ProgressLog
from sdpersonal.training.resume import check_no_earlier_run
from sdpersonal.training.train_result import TrainResult
from sdpersonal.training.validation import best_validation, read_validations

HUGE = 10**400
DEEP = [[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]


class Run:
    """A run of a parameter in two groups, whose checkpoints after steps 20 and 40 are in `folder`."""

    def __init__(self, folder, optimizer="adamw"):
        self.folder, self.optimizer_name = folder, optimizer
        for step in (20, 40):
            state = self.state(step // 20)
            save_checkpoint(folder, step, state, {"token": "<me/a>", "steps": None})
        self.newest = folder / "step-000040"

    def state(self, steps=0):
        rows, lora = nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.zeros(2, 2))
        groups = [
            {"params": [rows], "lr": 1e-3, "weight_decay": 0.0},
            {"params": [lora], "lr": 1e-2, "weight_decay": 0.1},
        ]
        optimizer = make_optimizer(self.optimizer_name, groups, 1e-3, 1e-3)
        for step in range(steps):
            rows.grad, lora.grad = torch.full_like(rows, 0.5 + step), torch.ones_like(lora)
            optimizer.step()
        averages = {"rows": rows.detach().clone(), "lora": lora.detach().clone()}
        return CheckpointState({"rows": rows, "lora": lora}, optimizer, averages)

    def load(self):
        """Load what can be, take a step, which must work, and return the step and the note."""
        state = self.state()
        point = load_checkpoint(self.folder, state, {"token": "<me/a>", "steps": None})
        for parameter in state.trainable_parameters.values():
            parameter.grad = torch.ones_like(parameter)
        state.optimizer.step()
        assert all(bool(torch.isfinite(parameter).all()) for parameter in state.trainable_parameters.values())
        return point.step, point.note

    def manifest(self):
        return json.loads((self.newest / "manifest.json").read_text())

    def change_manifest(self, change, whole=False):
        """Change the manifest; whole: with a sum that fits, as somebody who knows the format would."""
        manifest = self.manifest()
        change(manifest)
        if whole:
            del manifest["manifest_sha256"]
        (self.newest / "manifest.json").write_text(json.dumps(manifest))

    def change_tensors(self, change):
        """Change the state, with sums that fit."""
        path = self.newest / "state.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)
        self.change_manifest(lambda m: m["sha256"].update({path.name: storage.sha256(path.read_bytes())}), whole=True)

    def assert_damaged(self):
        step, note = self.load()
        assert step == 20 and note == "The checkpoint of step-000040 is damaged; resuming from step 20."


def test_complete_checkpoints_of_present_and_former_versions_load(tmp_path):
    run = Run(tmp_path)
    assert run.load() == (40, "Resuming from step 40.")
    run.change_manifest(lambda manifest: None, whole=True)  # former versions wrote no sum of the manifest
    assert run.load()[0] == 40


@pytest.mark.parametrize("name", ["step", "sha256", "numbers", "run"])
def test_a_manifest_that_does_not_match_its_checksum_is_damaged(tmp_path, name):
    run = Run(tmp_path)

    def change(manifest):
        if name == "step":
            manifest["step"] = 41
        else:
            manifest[name] = dict(reversed(manifest[name].items())) | {"x": {}}

    run.change_manifest(change)
    run.assert_damaged()
    assert latest_identity(tmp_path) == {"token": "<me/a>", "steps": None}


@pytest.mark.parametrize("step", [900, -5, True, 40.0, "40", None, HUGE, [40], 20])
def test_a_manifest_with_a_step_other_than_its_folders_is_damaged(tmp_path, step):
    run = Run(tmp_path)
    run.change_manifest(lambda manifest: manifest.update(step=step), whole=True)
    run.assert_damaged()


GROUPS = [
    {"params": [1]},
    {"lr": "x"},
    {"lr": [1]},
    {"lr": -1.0},
    {"lr": 1e30},
    {"lr": HUGE},
    {"lr": True},
    {"lr": None},
    {"eps": -1},
    {"weight_decay": {}},
    {"foreach": True},
    {"fused": False},
    {"fused": 1},
    {"amsgrad": True},
    {"unknown": 1},
]


@pytest.mark.parametrize("numbers", GROUPS, ids=lambda numbers: json.dumps(numbers)[:30])
def test_invalid_param_group_values_make_a_checkpoint_damaged(tmp_path, numbers):
    run = Run(tmp_path)
    run.change_manifest(lambda manifest: manifest["numbers"]["groups"][1].update(numbers), whole=True)
    run.assert_damaged()


@pytest.mark.parametrize(
    "numbers",
    [
        {},
        {"state": {}, "groups": []},
        {"state": {}, "groups": [{}]},
        {"state": {}, "groups": [{}, {}, {}]},
        {"state": {}, "groups": [[], {}]},
        {"state": {}, "groups": {"0": {}, "1": {}}},
        {"state": [], "groups": [{}, {}]},
        {"state": {"rows": {"step": 3}}, "groups": [{}, {}]},
        {"state": {"other": {}}, "groups": [{}, {}]},
        {"state": {"rows": []}, "groups": [{}, {}]},
        {"state": DEEP, "groups": [{}, {}]},
        None,
    ],
    ids=lambda numbers: json.dumps(numbers)[:40],
)
def test_optimizer_numbers_of_another_layout_make_a_checkpoint_damaged(tmp_path, numbers):
    run = Run(tmp_path)
    run.change_manifest(lambda manifest: manifest.update(numbers=numbers), whole=True)
    run.assert_damaged()


NAN, INF = torch.tensor(float("nan")), torch.tensor(float("inf"))
TENSORS = {
    "another shape": lambda t: t.update({"state.exp_avg.rows": torch.zeros(3, 4)}),
    "a scalar": lambda t: t.update({"state.exp_avg.rows": torch.zeros(())}),
    "another type": lambda t: t.update({"state.exp_avg.rows": torch.zeros(4, 3, dtype=torch.int64)}),
    "a double": lambda t: t.update({"state.exp_avg_sq.rows": torch.zeros(4, 3, dtype=torch.float64)}),
    "a value's shape": lambda t: t.update({"value.rows": torch.zeros(4)}),
    "an average's shape": lambda t: t.update({"average.rows": torch.zeros(1, 3)}),
    "a part of a state": lambda t: t.pop("state.exp_avg.rows"),
    "no value": lambda t: t.pop("value.lora"),
    "no average": lambda t: t.pop("average.lora"),
    "another parameter": lambda t: t.update({"value.other": torch.zeros(1)}),
    "an unknown state": lambda t: t.update({"state.max_exp_avg_sq.rows": torch.zeros(4, 3)}),
    "a last group": lambda t: t.update({"group.-1.lr": torch.zeros(())}),
    "parameters of a group": lambda t: t.update({"group.0.params": torch.zeros(1)}),
    "a rate": lambda t: t.update({"group.0.lr": torch.zeros(())}),
    "an unknown kind": lambda t: t.update({"x": torch.zeros(1)}),
    "a step below zero": lambda t: t.update({"state.step.rows": torch.tensor(-5.0)}),
    "a second moment below zero": lambda t: t["state.exp_avg_sq.rows"].neg_(),
    "NaN in a value": lambda t: t["value.rows"][0].copy_(NAN),
    "infinity in an average": lambda t: t["average.rows"][0].copy_(INF),
    "NaN in a moment": lambda t: t["state.exp_avg.rows"][0].copy_(NAN),
    "infinity in a step": lambda t: t["state.step.rows"].copy_(INF),
}


@pytest.mark.parametrize("change", TENSORS.values(), ids=TENSORS.keys())
def test_invalid_or_missing_tensors_make_a_checkpoint_damaged(tmp_path, change):
    run = Run(tmp_path)
    run.change_tensors(change)
    run.assert_damaged()


@pytest.mark.parametrize("name", ["d", "numerator"])
def test_invalid_prodigy_state_makes_a_checkpoint_damaged(tmp_path, name):
    run = Run(tmp_path, "prodigy")
    assert run.load()[0] == 40
    run.change_tensors(lambda tensors: tensors.update({f"group.0.{name}": torch.zeros(2)}))
    run.assert_damaged()
    run = Run(tmp_path, "prodigy")
    run.change_tensors(lambda tensors: tensors[f"group.0.{name}"].copy_(NAN))
    run.assert_damaged()


def test_a_refused_checkpoint_changes_no_parameter_or_optimizer_state(tmp_path):
    run = Run(tmp_path)
    storage.remove(tmp_path / "step-000020")
    run.change_tensors(lambda tensors: tensors["state.exp_avg.lora"].copy_(NAN))
    state = run.state(1)
    before = {name: parameter.detach().clone() for name, parameter in state.trainable_parameters.items()}
    moments = state.optimizer.state[state.trainable_parameters["rows"]]["exp_avg"].clone()
    with pytest.raises(UserError, match="no checkpoint"):
        load_checkpoint(tmp_path, state, {"token": "<me/a>", "steps": None})
    assert all(torch.equal(before[name], parameter) for name, parameter in state.trainable_parameters.items())
    assert torch.equal(state.optimizer.state[state.trainable_parameters["rows"]]["exp_avg"], moments)


@pytest.mark.parametrize(
    "data", [b"", b"\xff" * 8, b"\x02\0\0\0\0\0\0\0{}", b"\x08\0\0\0\0\0\0\0" + b"[" * 8, b"\0" * 4000]
)
def test_an_invalid_safetensors_file_makes_a_checkpoint_damaged(tmp_path, data):
    run = Run(tmp_path)
    (run.newest / "state.safetensors").write_bytes(data)
    run.change_manifest(lambda m: m["sha256"].update({"state.safetensors": storage.sha256(data)}), whole=True)
    run.assert_damaged()


@pytest.mark.parametrize(
    "identity", [DEEP, {"token": DEEP}, {"token": "\ud800"}, {"prior": HUGE}, {"token": "x" * 9999}]
)
def test_invalid_stored_settings_give_a_short_error_message(tmp_path, identity):
    run = Run(tmp_path)
    run.change_manifest(lambda manifest: manifest.update(run=identity), whole=True)
    try:
        assert run.load()[0] == 20
    except UserError as error:
        assert "other settings" in str(error) and len(str(error).encode()) < 500
    settings = TextualInversionSettings(photos="x", token="<me/a>")
    with pytest.raises(UserError, match="unfinished run of other settings"):
        check_no_earlier_run(settings, tmp_path, {"token": "<me/b>"}, 100)


def test_a_misspelled_checkpoint_folder_is_ignored(tmp_path):
    Run(tmp_path)
    os.rename(tmp_path / "step-000040", tmp_path / "step-0000020")
    assert run_dir.checkpoint_steps(tmp_path) == [20]


# --- logs -------------------------------------------------------------------------------------------------------------

GOOD = [{"step": step, "steps": 9, "loss": 0.5, "seconds": 1.0, "left": 2.0, "fixed": 0.25} for step in (1, 2, 3)]
BAD_LINES = [
    {"step": "2", "loss": 0.5},
    {"step": True, "loss": 0.5},
    {"step": -1, "loss": 0.5},
    {"step": 2.5, "loss": 0.5},
    {"step": HUGE, "loss": 0.5},
    {"step": 2, "loss": HUGE},
    {"step": 2, "loss": float("nan")},
    {"step": 2, "loss": float("inf")},
    {"step": 2, "loss": -1},
    {"step": 2, "loss": 1e300},
    {"step": 2, "loss": "0.5"},
    {"step": 2, "loss": None},
    {"step": 2},
    {"step": 2, "loss": DEEP},
    [],
    None,
    "\ud800",
]


def test_invalid_lines_of_the_progress_log_are_ignored(tmp_path):
    path = tmp_path / "progress.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in [*BAD_LINES, *GOOD, *BAD_LINES]) + '{"st')
    result = TrainResult(Token.parse("<me/a-v1>"), tmp_path, None, 1.0, tmp_path)
    assert result.losses == [0.5, 0.5, 0.5]
    log = ProgressLog(tmp_path, 2, 9, on_progress=lambda progress: None)
    assert log.losses == [0.5, 0.5] and log.fixed_batch_losses == [(1, 0.25), (2, 0.25)]
    assert len(path.read_text().splitlines()) == 2
    log.step(3, 0.1)
    for fixed in (HUGE, "x", float("nan"), True, -1):
        assert "fixed" not in run_dir.parse_progress(json.dumps({"step": 1, "loss": 0.5, "fixed": fixed}).encode())


def test_a_progress_log_that_is_no_file_or_too_large_counts_as_empty(tmp_path):
    os.mkfifo(tmp_path / "progress.jsonl")
    log = ProgressLog(tmp_path, 5, 9, on_progress=lambda progress: None)
    log.step(6, 0.5)
    assert log.losses == [0.5] and len((tmp_path / "progress.jsonl").read_text().splitlines()) == 1
    with (tmp_path / "progress.jsonl").open("r+b") as file:
        file.truncate(1 << 33)  # takes no room on the disk
    assert run_dir.read_progress(tmp_path / "progress.jsonl") == []


SCORES = {"likeness": 0.5, "fidelity": 1.0, "copying": 0.0, "diversity": 0.5, "cosine": 0.5}


def test_invalid_validations_are_ignored(tmp_path):
    good = {"step": 10, "score": 0.7} | SCORES
    bad = [good | {"step": step} for step in (HUGE, -1, True, "10", None, 1.5)]
    bad += [good | {"likeness": value} for value in (HUGE, 1e300, float("nan"), float("-inf"), True, "1", None, DEEP)]
    bad += [{"step": 10}, [], {"step": 10, "score": 0.7, "likeness": 1}]
    (tmp_path / "trials.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*bad, good, *bad]))
    validations = read_validations(tmp_path)
    assert [validation.step for validation in validations] == [10]
    assert best_validation(validations).scores.likeness == 0.5


@pytest.mark.parametrize("value", [HUGE, -1, True, None, "5", [5], {}, 1e300, float("nan"), float("-inf"), DEEP])
def test_invalid_numbers_are_read_as_zero_and_invalid_text_as_empty(value):
    record = run_dir.parse_object(json.dumps({"a": value, "b": 5}))
    if value is not DEEP:  # nothing of ours is nested so deeply
        assert run_dir.to_number(record["a"]) == 0 == run_dir.to_step(record["a"]) and record["b"] == 5
        assert run_dir.to_text(record["a"]) == ("5" if value == "5" else "")
    assert run_dir.to_text("\ud800\x1b[31m<b>" + "x" * 999).encode() and record != {}


# --- links ------------------------------------------------------------------------------------------------------------


def test_appending_never_changes_a_linked_file(tmp_path):
    """As a log of a run that came from somebody else might be: what is appended there could be a program's text."""
    secret = tmp_path / "secret"
    for make in (os.symlink, os.link):
        secret.write_bytes(b"mine\n")
        log = tmp_path / f"log-{make.__name__}"
        make(secret, log)
        for append in (lambda log=log: storage.append_line(log, "x"), lambda log=log: write_log(log, b"x\n")):
            try:
                append()
                assert make is os.link and log.read_bytes().startswith(b"mine\nx\n")
            except UserError as error:
                assert make is os.symlink and "is a link to another file" in str(error)
        assert secret.read_bytes() == b"mine\n"
    os.mkfifo(tmp_path / "pipe")
    for append in (lambda: storage.append_line(tmp_path / "pipe", "x"), lambda: write_log(tmp_path / "pipe", b"x")):
        with pytest.raises(UserError):
            append()


def write_log(path, data):
    with storage.open_log(path) as file:
        file.write(data)


@pytest.mark.parametrize("content", [b"mine", b"m" * 100, b"12 12:30 and more"])
def test_locking_preserves_the_content_of_an_existing_file(tmp_path, content):
    (tmp_path / "mine").write_bytes(content)
    os.link(tmp_path / "mine", tmp_path / storage.LOCK_NAME)
    with storage.lock(tmp_path), pytest.raises(UserError, match="in use"), storage.lock(tmp_path):
        pass
    assert (tmp_path / "mine").read_bytes() == content
    os.replace(tmp_path / "mine", tmp_path / storage.LOCK_NAME)  # renamed: one name only
    with storage.lock(tmp_path):
        assert (tmp_path / storage.LOCK_NAME).read_bytes() == content
