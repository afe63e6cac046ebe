"""Several concepts in one go: read and checked before the first, one that fails does not lose the others."""

import json
import shlex
from dataclasses import replace
from functools import partial

import pytest
import tyro

from sdpersonal.cli import batch_training
from sdpersonal.cli.diffusers_compat import Environment, translate
from sdpersonal.cli.main import main
from sdpersonal.concepts.library import Library
from sdpersonal.config import DreamboothSettings
from sdpersonal.errors import DiskFull, Diverged, Interrupted, UserError

MACHINE = Environment(processes=1, count_photos=lambda folder: 5, has_checkpoint=lambda run: False)
TWO = [
    {"instance_prompt": "a photo of sks dog", "class_prompt": "a photo of dog", "instance_data_dir": "dog"},
    {"token": "<me/duck>", "class": "toy duck", "photos": "duck", "steps": 7},
]


def listed(tmp_path, content, name="concepts_list.json"):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def _settings(argv):
    return tyro.cli(DreamboothSettings, args=translate(DreamboothSettings, argv, MACHINE).argv)


def several(path, command=""):
    return batch_training.read_batch(path, shlex.split(command), _settings)


def test_a_concepts_list_accepts_diffusers_keys_and_native_keys(tmp_path):
    dog, duck = several(listed(tmp_path, TWO), "--base tiny --seed 3").concepts
    assert (dog.token, dog.class_noun, str(dog.photos), dog.method) == ("<me/sks-dog>", "dog", "dog", "full")
    assert (duck.token, duck.class_noun, str(duck.photos), duck.steps) == ("<me/duck>", "toy duck", "duck", 7)
    assert dog.base == duck.base == "tiny" and dog.seed == duck.seed == 3
    assert [str(job.run) for job in (dog, duck)] == ["runs/concepts_list/me-sks-dog", "runs/concepts_list/me-duck"]
    assert [job.run.parent.name for job in several(listed(tmp_path, TWO), "--output_dir out").concepts] == ["out"] * 2


def test_a_list_entry_overrides_the_command_line(tmp_path):
    assert several(listed(tmp_path, TWO[1:]), "--steps 3").concepts[0].steps == 7


def test_list_flags_are_removed_from_the_command_line():
    for flag in (["--concepts_list", "a.json"], ["--concepts-list=a.json"]):
        flags, rest = batch_training.take_list_flags(["--base", "tiny", *flag, "--flip"])
        assert (str(flags.path), flags.together, rest) == ("a.json", 1, ["--base", "tiny", "--flip"])
    assert batch_training.take_list_flags(["--flip"]) == (batch_training.ListFlags(), ["--flip"])
    for bad in (["--concepts_list"], ["--concepts_list", "a", "b"], ["--concepts_list="]):
        with pytest.raises(UserError, match="takes one file"):
            batch_training.take_list_flags(bad)


def test_together_accepts_numbers_from_1_to_64():
    flags, rest = batch_training.take_list_flags(["--together", "4", "--flip", "--concepts-list", "a.json"])
    assert (flags.together, rest) == (4, ["--flip"])
    for bad in ("0", "65", "-1", "2.5", "many", "", "\u0664", "9" * 5000):
        with pytest.raises(UserError, match="takes a number from 1 to 64"):
            batch_training.take_list_flags([f"--together={bad}", "--concepts-list", "a.json"])
    with pytest.raises(UserError, match="needs several concepts"):
        batch_training.take_list_flags(["--together", "4"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('[{"a": 1},\n  nonsense]', "is not JSON: Expecting value at line 2, column 3"),
        ("", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "is not a list of concepts"),
        ("{}", "is not a list of concepts"),
        ("[1]", "is not a list of concepts"),
        ([{"output_dir": "/etc", **TWO[1]}], "entry 1 of .*Unknown key 'output_dir'"),
        ([TWO[1], {"library": "x"}], "entry 2 of .*Unknown key 'library'"),
        ([{"token": ["<me/x>"]}], "entry 1 of .*'token' must be text"),
        ([{**TWO[1], "token": "../../x"}], r"entry 1 of .*is not a concept's token"),
        ([{**TWO[1], "token": "<me/x>\x1b"}], r"entry 1 of .*token holds the control character U\+001B"),
        ([{"instance_data_dir": "dog"}], "entry 1 of .*--instance_prompt is missing"),
        ([TWO[0], TWO[1], TWO[0]], "Entries 1 and 3 of .* are both <me/sks-dog>"),
        ([TWO[1], {**TWO[1], "steps": "many"}], "entry 2 of"),
        ([TWO[1]] * 101, "lists 101 concepts"),
    ],
)
def test_an_invalid_list_is_refused_before_training(tmp_path, content, said):
    with pytest.raises(UserError, match=said) as caught:
        several(listed(tmp_path, content))
    assert "\x1b" not in str(caught.value)


def test_a_missing_list_is_refused_with_its_file_name(tmp_path):
    with pytest.raises(UserError, match=r"none\.json"):
        several(tmp_path / "none.json")


class Teacher:
    """Stands for a training: what happens to which concept is said beforehand."""

    def __init__(self, **troubles):
        self.troubles, self.asked = troubles, []

    def __call__(self, settings, say):
        self.asked.append((settings.token, settings.resume))
        if trouble := self.troubles.get(settings.token.strip("<>").partition("/")[2]):
            raise trouble


def four(tmp_path, command=""):
    entries = [{"token": f"<me/{name}>", "class": "dog", "photos": "dog"} for name in "abcd"]
    return several(listed(tmp_path, entries), command)


def test_a_failed_training_does_not_stop_the_others(tmp_path, capsys):
    messages = []
    teacher = Teacher(b=Diverged("The loss became NaN.", "Try --lr 1e-5."), c=RuntimeError("no memory"))
    assert batch_training.train_all(four(tmp_path), teacher, messages.append) == Diverged.exit_code
    assert [token for token, _ in teacher.asked] == ["<me/a>", "<me/b>", "<me/c>", "<me/d>"]
    lines = messages[-1].strip().splitlines()
    assert [line.split()[0] for line in lines] == ["<me/a>", "<me/b>", "<me/c>", "<me/d>"]
    assert "done in" in lines[0] and "failed: The loss became NaN." in lines[1]
    assert "failed: RuntimeError: no memory" in lines[2] and "done in" in lines[3]
    assert "Try --lr 1e-5." in capsys.readouterr().err


@pytest.mark.parametrize("trouble", [Interrupted("Stopped."), DiskFull("no room")])
def test_a_full_disk_or_interrupt_stops_the_list_with_a_summary(tmp_path, trouble):
    messages, teacher = [], Teacher(b=trouble)
    with pytest.raises(type(trouble)):
        batch_training.train_all(four(tmp_path), teacher, messages.append)
    assert len(teacher.asked) == 2 and messages[-1].count("not started or not finished") == 3


def test_resume_skips_finished_concepts_and_trains_the_rest(tmp_path):
    plan = four(tmp_path, "--resume --output_dir out --steps 10")
    done, longer, begun, new = (job.run for job in plan.concepts)
    for run, steps in ((done, 10), (longer, 5)):
        run.mkdir(parents=True)
        (run / "result.json").write_text(json.dumps({"token": f"<me/{run.name[-1]}-v1>", "steps": steps}))
    for run in (longer, begun):
        (run / "step-000005").mkdir(parents=True)
        (run / "step-000005" / "manifest.json").write_text("{}")
    messages, teacher = [], Teacher()
    assert batch_training.train_all(plan, teacher, messages.append) == 0
    assert teacher.asked == [("<me/b>", True), ("<me/c>", True), ("<me/d>", False)]
    assert "<me/a-v1>  done before" in messages[-1] and not new.exists()


def test_concepts_are_trained_together_in_batches(tmp_path):
    """Each batch has its concepts, one that fails loses no other, a full disk ends all after its batch."""
    plan = replace(four(tmp_path, "--method lora"), together=3)
    asked, messages = [], []

    def train_together(trouble, settings, say):
        asked.append([run.token for run in settings])
        return [trouble if run.token == "<me/b>" else run for run in settings]

    diverging = partial(train_together, Diverged("The loss became NaN."))
    assert batch_training.train_all_together(plan, diverging, messages.append) == Diverged.exit_code
    assert asked == [["<me/a>", "<me/b>", "<me/c>"], ["<me/d>"]]
    lines = messages[-1].strip().splitlines()
    assert ["done in" in line for line in lines] == [True, False, True, True] and "became NaN" in lines[1]
    with pytest.raises(DiskFull):
        batch_training.train_all_together(plan, partial(train_together, DiskFull("no room")), messages.append)
    assert "<me/d>  not started" in messages[-1] and "<me/c>  done in" in messages[-1]


def test_joint_training_refuses_the_full_method_before_the_first_batch(tmp_path):
    plan = four(tmp_path, "--method lora")
    last = plan.concepts[3].model_copy(update={"method": "full"})
    plan = replace(plan, concepts=(*plan.concepts[:3], last), together=2)
    with pytest.raises(UserError, match="<me/d> cannot be trained together with others: it has --method full"):
        batch_training.train_all_together(plan, lambda *_: pytest.fail("a training began"), lambda line: None)


def test_resume_from_checkpoint_latest_resumes_a_list(tmp_path):
    assert four(tmp_path, "--output_dir out --resume_from_checkpoint latest").resume
    assert not four(tmp_path, "--output_dir out").resume


@pytest.mark.slow
def test_the_train_command_continues_after_a_failed_list_entry(root, tmp_path, capsys):
    photos = str(root / "examples/photos/teddy-bear")
    entries = [{"photos": "nowhere", "token": "<me/none>"}, {"photos": photos, "token": "<me/bear>"}]
    argv = ["train", "textual-inversion", "--concepts_list", str(listed(tmp_path, entries)), "--base", "tiny"]
    argv += ["--steps", "1", "--batch", "1", "--no-samples"]
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert [str(entry.token) for entry in Library("concepts").entries()] == ["<me/bear-v1>"]
    assert "<me/none>  failed: There is no folder nowhere." in out and "<me/bear-v1>  done in" in out
    assert "There is no folder nowhere" in err
    assert main([*argv, "--resume", "--together", "2"]) == 2
    assert "<me/bear-v1>  done before" in capsys.readouterr().out
    assert len(Library("concepts").entries()) == 1
