"""Several concepts in one go: read and checked before the first, one that fails does not lose the others."""

import json
import shlex

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


def test_a_list_of_concepts_in_their_words_and_ours(tmp_path):
    dog, duck = several(listed(tmp_path, TWO), "--base tiny --seed 3").concepts
    assert (dog.token, dog.class_noun, str(dog.photos), dog.method) == ("<me/sks-dog>", "dog", "dog", "full")
    assert (duck.token, duck.class_noun, str(duck.photos), duck.steps) == ("<me/duck>", "toy duck", "duck", 7)
    assert dog.base == duck.base == "tiny" and dog.seed == duck.seed == 3
    assert [str(job.run) for job in (dog, duck)] == ["runs/concepts_list/me-sks-dog", "runs/concepts_list/me-duck"]
    assert [job.run.parent.name for job in several(listed(tmp_path, TWO), "--output_dir out").concepts] == ["out"] * 2


def test_an_entry_outdoes_the_command_line(tmp_path):
    assert several(listed(tmp_path, TWO[1:]), "--steps 3").concepts[0].steps == 7


def test_the_list_is_taken_out_of_the_command_line():
    for flag in (["--concepts_list", "a.json"], ["--concepts-list=a.json"]):
        path, rest = batch_training.take_list_flag(["--base", "tiny", *flag, "--flip"])
        assert (str(path), rest) == ("a.json", ["--base", "tiny", "--flip"])
    assert batch_training.take_list_flag(["--flip"]) == (None, ["--flip"])
    for bad in (["--concepts_list"], ["--concepts_list", "a", "b"], ["--concepts_list="]):
        with pytest.raises(UserError, match="takes one file"):
            batch_training.take_list_flag(bad)


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
def test_a_bad_list_is_told_before_anything_is_trained(tmp_path, content, said):
    with pytest.raises(UserError, match=said) as caught:
        several(listed(tmp_path, content))
    assert "\x1b" not in str(caught.value)


def test_a_list_that_is_not_there(tmp_path):
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


def test_one_that_fails_does_not_lose_the_others(tmp_path, capsys):
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
def test_a_full_disk_and_ctrl_c_stop_all_with_a_summary(tmp_path, trouble):
    messages, teacher = [], Teacher(b=trouble)
    with pytest.raises(type(trouble)):
        batch_training.train_all(four(tmp_path), teacher, messages.append)
    assert len(teacher.asked) == 2 and messages[-1].count("not started or not finished") == 3


def test_resuming_goes_on_where_the_list_was(tmp_path):
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


def test_their_latest_is_our_resume_for_a_list(tmp_path):
    assert four(tmp_path, "--output_dir out --resume_from_checkpoint latest").resume
    assert not four(tmp_path, "--output_dir out").resume


@pytest.mark.slow
def test_a_list_for_real_with_one_that_fails(root, tmp_path, capsys):
    photos = str(root / "examples/photos/teddy-bear")
    entries = [{"photos": "nowhere", "token": "<me/none>"}, {"photos": photos, "token": "<me/bear>"}]
    argv = ["train", "textual-inversion", "--concepts_list", str(listed(tmp_path, entries)), "--base", "tiny"]
    argv += ["--steps", "1", "--batch", "1", "--no-samples"]
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert [str(entry.token) for entry in Library("concepts").entries()] == ["<me/bear-v1>"]
    assert "<me/none>  failed: There is no folder nowhere." in out and "<me/bear-v1>  done in" in out
    assert "There is no folder nowhere" in err
    assert main([*argv, "--resume"]) == 2
    assert "<me/bear-v1>  done before" in capsys.readouterr().out
    assert len(Library("concepts").entries()) == 1
