"""`sdpersonal fleet`: what it takes, and every mistake in two lines that name it."""

import io
import json
import sys

import pytest

from sdpersonal.cli import fleet_list, fleet_requests
from sdpersonal.cli.commands.fleet import parse_fleet_training
from sdpersonal.cli.main import main
from sdpersonal.config import DreamboothSettings, GenerateRequest, TextualInversionSettings
from sdpersonal.errors import UserError
from sdpersonal.fleet import cluster
from sdpersonal.fleet.jobs import Failure, all_jobs, submit
from sdpersonal.fleet.store import LocalStore
from support import fleet
from support.ranks import start


@pytest.fixture
def people(tmp_path):
    """A folder of photo folders: <me/anna>, <ben/duck>, <ben/goose>."""
    for name in ("Anna Müller", "ben/duck", "ben/goose 2", ".hidden", "empty"):
        (tmp_path / "people" / name).mkdir(parents=True)
        if name != "empty":
            (tmp_path / "people" / name / "1.jpg").write_bytes(b"x")
    return tmp_path / "people"


def parsed(*argv):
    return parse_fleet_training([str(word) for word in argv], "sdpersonal fleet train")


def test_a_folder_of_photo_folders_names_concepts_and_owners(people):
    training = parsed(people, "--class", "person", "--steps", "30", "--workers=2")
    assert [concept.token for concept in training.concepts] == ["<me/anna-muller>", "<ben/duck>", "<ben/goose-2>"]
    assert {(type(c), c.class_noun, c.steps) for c in training.concepts} == {(DreamboothSettings, "person", 30)}
    assert training.args.workers == 2 and training.args.storage == "runs/fleet"
    [anna, *_] = parsed(people, "--class=person", "--owner", "studio").concepts
    assert anna.token == "<studio/anna-muller>"


def test_list_entries_override_the_flags(tmp_path):
    entries = [{"token": "<me/a>", "photos": "a", "class": "cat"}, {"token": "<me/b>", "photos": "b", "steps": 9}]
    (tmp_path / "list.json").write_text(json.dumps(entries))
    command = ["--method", "pivotal", "--class", "dog", "--out", "lib", "--cpus-per-worker", "0.5"]
    training = parsed(tmp_path / "list.json", *command)
    assert [(c.class_noun, c.steps, c.method) for c in training.concepts] == [
        ("cat", None, "pivotal"),
        ("dog", 9, "pivotal"),
    ]
    assert str(training.args.library) == "lib" == str(training.concepts[0].library)
    (tmp_path / "two.json").write_text(json.dumps([{"token": f"<me/{n}>", "photos": n} for n in "ab"]))
    [first, _] = parsed(tmp_path / "two.json", "--method=textual-inversion", "--vectors", "2").concepts
    assert isinstance(first, TextualInversionSettings) and first.vectors == 2


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "LIST is missing"),
        (["--steps", "9"], "LIST is missing"),
        (["nowhere"], "nowhere"),
        (["PEOPLE"], "--class is missing"),
        (["PEOPLE", "--class", "x", "--run", "there"], "--run is not for a fleet"),
        (["PEOPLE", "--class", "x", "--stepps", "3"], "no flag --stepps"),
        (["PEOPLE", "--class", "x", "--steps", "-3"], "--steps must be"),
        (["PEOPLE", "--class", "x", "--workers", "0"], "--workers must be"),
        (["PEOPLE", "--class", "x", "--gpus-per-worker", "nan"], "--gpus-per-worker must be"),
        (["PEOPLE", "--method", "magic"], "--method must be one of"),
        (["EMPTY", "--class", "x"], "holds no folder of photos"),
        (["ODD", "--class", "x"], "cannot name a concept"),
        (["TWICE", "--class", "x"], "are both <me/a-b>"),
    ],
)
def test_invalid_train_arguments_are_refused_in_two_lines(people, tmp_path, capsys, words, message):
    for name in ("odd/☃", "twice/a b", "twice/a-b", "nothing"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("odd/☃", "twice/a b", "twice/a-b"):
        (tmp_path / name / "1.jpg").write_bytes(b"x")
    places = {"PEOPLE": people, "EMPTY": tmp_path / "nothing", "ODD": tmp_path / "odd", "TWICE": tmp_path / "twice"}
    assert main(["fleet", "train", *(str(places.get(word, word)) for word in words)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and len(error.splitlines()) <= 2


def test_a_missing_ray_installation_is_reported_with_the_install_command(people, capsys, monkeypatch):
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    assert main(["fleet", "train", str(people), "--class", "person"]) == 2
    assert capsys.readouterr().err == (
        "error: The fleet needs ray, which is not installed.\nInstall it: pip install 'sdpersonal[fleet]'\n"
    )


def import_what_the_commands_import():
    import sdpersonal.fleet.run

    print("ray" in sys.modules, sdpersonal.fleet.run.__name__)


def test_the_fleet_commands_do_not_import_ray(tmp_path):
    child = start(["--version"], tmp_path, fault=import_what_the_commands_import)
    assert child.wait() == 0 and child.stdout.splitlines()[0] == "False sdpersonal.fleet.run"


def test_a_missing_cluster_is_reported_without_a_traceback(people, tmp_path):
    """In a process of its own: ray keeps what it read at its first connection."""
    fleet.require_ray()
    child = start(["fleet", "train", people, "--class", "person", "--address", "127.0.0.1:9"], tmp_path)
    assert child.wait() == 2 and "There is no Ray cluster at 127.0.0.1:9" in child.errors
    assert "Traceback" not in child.errors


# --- looking after jobs -----------------------------------------------------------------------------------------------


@pytest.fixture
def jobs(tmp_path):
    """Two waiting jobs and a failed one in runs/fleet of the working folder."""
    store = LocalStore(fleet.Path("runs/fleet"))
    store.write_json("fleet.json", {"id": "x"})
    made = [submit(store, fleet.settings(number)) for number in range(3)]
    made[2].write_failure(Failure(4, "It diverged.", "Use a smaller --lr."))
    return made


def test_the_status_command_lists_every_job(jobs, capsys):
    assert main(["fleet", "status"]) == 0
    shown = capsys.readouterr().out
    assert all(job.id in shown and str(job.token) in shown for job in jobs) and "It diverged." in shown
    assert main(["fleet", "status", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert {(e["id"], e["token"], e["state"]) for e in entries} == {
        (jobs[0].id, "<anna/c0>", "waiting"),
        (jobs[1].id, "<ben/c1>", "waiting"),
        (jobs[2].id, "<anna/c2>", "failed"),
    }


def test_jobs_are_cancelled_and_retried_by_token_id_or_all(jobs, capsys):
    def states():
        return [str(job.view().state) for job in jobs]

    assert main(["fleet", "cancel", "<anna/c0>"]) == 0 and states() == ["cancelled", "waiting", "failed"]
    assert main(["fleet", "cancel", "all"]) == 0 and states() == ["cancelled", "cancelled", "failed"]
    assert main(["fleet", "retry", jobs[1].id, "anna/c2"]) == 0 and states() == ["cancelled", "waiting", "waiting"]
    assert main(["fleet", "retry", "all"]) == 0 and states() == ["waiting"] * 3
    capsys.readouterr()
    assert main(["fleet", "retry", "<anna/c0>"]) == 2 and "neither failed nor been cancelled" in capsys.readouterr().err
    assert main(["fleet", "cancel", "<me/nobody>"]) == 2 and "is no job of" in capsys.readouterr().err


def test_a_folder_without_a_fleet_is_refused_with_a_message(capsys):
    for words in (["status"], ["cancel", "all"], ["retry", "all"]):
        assert main(["fleet", *words, "--storage", "nowhere"]) == 2
        assert "There is no fleet in" in capsys.readouterr().err
    assert all_jobs(LocalStore(fleet.Path("nowhere"))) == []


def test_folder_names_are_converted_to_concept_names():
    for name, expected in {"Anna Müller": "anna-muller", "x_y.z": "x-y-z", "--A--": "a"}.items():
        assert fleet_list._to_name(fleet.Path(name)) == expected
    with pytest.raises(UserError):
        fleet_list._to_name(fleet.Path("con"))


# --- requests ---------------------------------------------------------------------------------------------------------


def requests_of(text, tmp_path, **defaults):
    (tmp_path / "list.txt").write_text(text)
    values = GenerateRequest(**({"prompt": "", "num_images": 2} | defaults))
    return fleet_requests.read_requests(tmp_path / "list.txt", values, fleet.Path("concepts"))


def test_a_request_line_is_a_prompt_or_json_that_overrides_the_flags(tmp_path):
    text = """\ufeffa {red|blue} ball\r

  {"prompt": "a cat", "n": 1, "seed": 18446744073709551615, "user": "anna", "library": "anna"}
"""
    first, second = requests_of(text, tmp_path, steps=9, seed=4)
    assert first.request == GenerateRequest(prompt="a {red|blue} ball", num_images=2, steps=9, seed=4)
    assert (first.user, first.library, first.line) == ("", fleet.Path("concepts"), 1)
    [third] = requests_of('{"seed": 3}', tmp_path, prompt="a dog")
    assert (third.request.prompt, third.request.seed) == ("a dog", 3)
    assert second.request == GenerateRequest(prompt="a cat", num_images=1, steps=9, seed=2**64 - 1)
    assert (second.user, second.library, second.place) == ("anna", fleet.Path("anna"), f"{tmp_path}/list.txt, line 3")


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "holds no request"),
        ("a cat\n{red|blue} ball", "line 2: it begins with { but is no JSON object"),
        ('{"prompt": "a", "prompt": "b"}', "line 1: it begins with {"),
        ('{"prompt": "a", "steps": NaN}', "line 1: it begins with {"),
        ('{"prompt": "a", "stepps": 3}', "line 1: stepps is not a setting"),
        ('{"prompt": "a", "steps": 0}', "line 1: steps must be a whole number from 1 to 150, got 0"),
        ('{"steps": 3}', "line 1: prompt is missing"),
        ('{"prompt": "a", "user": 3}', "line 1: user must be text"),
        ("a <b>", "line 1:"),
        ("<me/goose>", "line 1: No concept <me/goose>"),
        ("a __place__", "line 1:"),
        ('{"prompt": "a", "init_image": "nowhere.png"}', "line 1: nowhere.png"),
        ('{"prompt": "a", "mask": "nowhere.png"}', "line 1: --mask needs an initial image"),
    ],
)
def test_invalid_requests_are_refused_with_the_file_and_line(tmp_path, capsys, text, message):
    path = tmp_path / "list.txt"
    path.write_text(text)
    assert main(["fleet", "generate", str(path), "--base", "tiny"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}") and message in error and len(error.splitlines()) <= 2
    assert not fleet.Path("outputs").exists()


def test_requests_are_read_from_standard_input(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a cat\n")))
    [listed] = fleet_requests.read_requests(fleet.Path("-"), GenerateRequest(prompt=""), tmp_path)
    assert listed.request.prompt == "a cat" and listed.place == "standard input, line 1"


@pytest.mark.parametrize("words", [["nowhere.txt"], ["."], ["--steps", "3"]])
def test_unreadable_request_lists_are_refused_with_a_message(words, capsys):
    fleet.Path("list.txt").write_text("a cat")
    assert main(["fleet", "generate", *words, "--base", "tiny"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and len(error.splitlines()) <= 2
