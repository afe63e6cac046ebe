"""Jobs are folders: the same training is the same job, its files say its state, nothing private stays in it."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from sdpersonal.concepts.concept_file import concept_to_chunks
from sdpersonal.concepts.library import Library
from sdpersonal.config import DreamboothSettings, TextualInversionSettings
from sdpersonal.errors import DiskFull, UserError
from sdpersonal.fleet.jobs import Failure, Job, JobState, Outcome, Result, all_jobs, submit
from sdpersonal.fleet.library_writer import LibraryWriter, add_to_library
from sdpersonal.fleet.store import LocalStore
from support import samples

NAMES = ["01.jpg", "01.txt", "ä %2F.png"]


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "secret place" / "photos"
    folder.mkdir(parents=True)
    for name in NAMES:
        (folder / name).write_bytes(name.encode())
    return folder


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path / "fleet")


def inversion(photos, **fields):
    return TextualInversionSettings(**({"photos": photos, "token": "<me/duck>", "steps": 20} | fields))


def trained(job, seed=0):
    """Put a concept there as a worker does."""
    concept = samples.embedding(str(job.token), seed)
    job.write_trained(Result("", concept.identity, 20, 5.0), b"".join(concept_to_chunks(concept)))
    return concept


def test_only_identical_trainings_share_a_job_id(store, photos):
    first = submit(store, inversion(photos))
    assert submit(store, inversion(photos, library="elsewhere", run="there")).id == first.id
    others = [
        inversion(photos, steps=21),
        inversion(photos, token="<you/duck>"),
        DreamboothSettings(photos=photos, token="<me/duck>", steps=20, class_noun="duck"),
    ]
    ids = {submit(store, other).id for other in others}
    (photos / "01.txt").write_text("{} in the snow")
    ids |= {submit(store, inversion(photos)).id}
    assert len(ids) == 4 and first.id not in ids
    assert sorted(job.id for job in all_jobs(store)) == sorted([first.id, *ids])


def test_a_job_contains_photos_and_settings_without_user_paths(store, photos, tmp_path):
    settings = DreamboothSettings(photos=photos, token="<me/duck>", class_noun="duck", method="pivotal")
    job = submit(store, settings)
    job.download_inputs(tmp_path / "there", tmp_path / "library")
    assert sorted(os.listdir(tmp_path / "there")) == sorted(NAMES)
    assert all((tmp_path / "there" / name).read_bytes() == name.encode() for name in NAMES)
    got = job.settings()
    assert (type(got), got.method, got.class_noun) == (DreamboothSettings, "pivotal", "duck")
    assert b"secret place" not in b"".join(store.read(key) for key in store.files("jobs"))


def test_photo_names_with_a_path_are_refused_at_download(store, photos, tmp_path):
    job = submit(store, inversion(photos))
    content = store.read_json(f"{job.key}/job.json")
    for name in ("../evil", "/tmp/evil", "..", "a/b", "", 7):
        store.write_json(f"{job.key}/job.json", content | {"photos": [name]})
        with pytest.raises(UserError, match="names a photo"):
            job.download_inputs(tmp_path / "there", tmp_path / "library")
    assert os.listdir(tmp_path / "there") == []


@pytest.mark.parametrize("job_id", ["../x", "a", "", "me-duck-0123456789ab/..", "ME-duck-0123456789ab"])
def test_invalid_job_ids_are_refused(store, job_id):
    with pytest.raises(UserError, match="is not a job"):
        Job(store, job_id)


def test_the_concept_to_continue_from_is_stored_with_the_job(store, photos, tmp_path):
    library = Library(tmp_path / "library")
    library.add(samples.embedding("<me/duck>", 3))
    job = submit(store, inversion(photos, continue_from="<me/duck>", library=tmp_path / "library"))
    job.download_inputs(tmp_path / "there", tmp_path / "copied")
    assert Library(tmp_path / "copied").get("<me/duck>").identity == samples.embedding(seed=3).identity
    with pytest.raises(UserError):
        submit(store, inversion(photos, continue_from="<me/goose>", library=tmp_path / "library"))


def test_the_job_state_is_derived_from_its_files(store, photos, tmp_path):
    job = submit(store, inversion(photos))
    assert job.view().state is JobState.WAITING
    attempt = job.claim("session")
    assert job.view().state is JobState.RUNNING and attempt.number == 1
    job.update(replace(attempt, outcome=Outcome.DIED))
    assert job.view().state is JobState.WAITING and job.view().attempts == 1
    job.write_failure(Failure(4, "It diverged."))
    view = job.view()
    assert view.state is JobState.FAILED and view.failure == Failure(4, "It diverged.")
    job.retry()
    assert job.view().state is JobState.WAITING and job.view().attempts == 0
    job.cancel()
    assert job.view().state is JobState.CANCELLED
    trained(job)
    assert job.view().state is JobState.TRAINED
    add_to_library(job, Library(tmp_path / "library"))
    assert job.view().state is JobState.DONE and job.view().result.token == "<me/duck-v1>"


def test_only_a_single_driver_can_claim_an_attempt(store, photos, monkeypatch):
    job = submit(store, inversion(photos))
    monkeypatch.setattr(job, "attempt_numbers", lambda: [])
    assert job.claim("one") and job.claim("another") is None


def test_a_later_attempt_replaces_an_earlier_attempt(store, photos):
    job = submit(store, inversion(photos))
    first = job.claim("one")
    assert not job.is_replaced(first)
    job.claim("one")
    assert job.is_replaced(first)


D, S, L = Outcome.DIED, Outcome.STOPPED, Outcome.LOST


@pytest.mark.parametrize(
    "attempts, too_often",
    [
        ([(D, 0, 0)] * 2, False),
        ([(D, 0, 0)] * 3, True),
        ([(D, 0, 0), (S, 0, 0), (D, 0, 0), (D, 0, 0)], True),  # a driver that was stopped says nothing of the job
        ([(D, 0, 0), (D, 0, 10), (D, 10, 10), (D, 10, 10)], False),  # it got on
        ([(D, 0, 10), (D, 10, 10), (D, 10, 10), (D, 10, 10)], True),
        ([(S, 0, 0)] * 9, False),
        ([(L, 0, 0)] * 5 + [(D, 0, 0)] * 2, False),  # machines die, too
        ([(L, 0, 0)] * 8 + [(D, 0, 0)] * 2, True),
    ],
)
def test_a_job_dies_too_often_after_repeated_deaths_without_progress(store, photos, attempts, too_often):
    job = submit(store, inversion(photos))
    for outcome, first, saved in attempts:
        job.update(replace(job.claim("s"), outcome=outcome, first=first, saved=saved))
    assert job.died_too_often() is too_often


def test_the_first_finished_attempt_is_added_to_the_library(store, photos, tmp_path):
    job = submit(store, inversion(photos))
    first = trained(job, seed=0)
    trained(job, seed=1)
    add_to_library(job, Library(tmp_path / "library"))
    assert Library(tmp_path / "library").get("<me/duck>").identity == first.identity


def test_a_driver_killed_before_writing_the_result_adds_the_concept_once(store, photos, tmp_path, monkeypatch):
    job, library = submit(store, inversion(photos)), Library(tmp_path / "library")
    trained(job)
    with monkeypatch.context() as patch:
        patch.setattr(Job, "write_result", lambda self, result: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            add_to_library(job, library)
    assert len(library) == 1 and job.view().state is JobState.TRAINED
    assert add_to_library(job, library).token == "<me/duck-v1>" and len(library) == 1


def test_photos_and_checkpoints_are_deleted_after_the_library_addition(store, photos, tmp_path):
    job = submit(store, inversion(photos))
    trained(job)
    store.write(f"{job.key}/run/2/step-000020/state.safetensors", b"x")
    store.write(f"{job.key}/run/2/trials/step-000020/concept.safetensors", b"x")
    add_to_library(job, Library(tmp_path / "library"))
    kept = [key.removeprefix(f"{job.key}/") for key in store.files(job.key)]
    assert not [key for key in kept if key.startswith(("photos", "run/2/step-"))]
    assert "run/2/trials/step-000020/concept.safetensors" in kept


def test_a_concept_damaged_in_the_storage_is_not_added(store, photos, tmp_path):
    job = submit(store, inversion(photos))
    concept, other = trained(job), samples.embedding("<me/duck>", 9)
    path = store.folder / job.key / f"concept-{concept.identity[:16]}.safetensors"
    for content in (b"".join(concept_to_chunks(other)), path.read_bytes()[:-1], b""):
        path.write_bytes(content)
        with pytest.raises(UserError):
            add_to_library(job, Library(tmp_path / "library"))
    assert len(Library(tmp_path / "library")) == 0


def test_a_full_library_is_retried_without_delaying_other_jobs(store, photos, tmp_path, monkeypatch):
    one, two = (submit(store, inversion(photos, token=token)) for token in ("<me/duck>", "<me/goose>"))
    trained(one), trained(two, seed=1)
    clock, add, full = [100.0], Library.add, ["<me/duck>"]
    monkeypatch.setattr("sdpersonal.fleet.adder.time.monotonic", lambda: clock[0])

    def sometimes(self, concept):
        if str(concept.token) in full:
            raise DiskFull("not enough space in library.")
        return add(self, concept)

    monkeypatch.setattr(Library, "add", sometimes)
    writer, threads = LibraryWriter(tmp_path / "library"), ThreadPoolExecutor(4)
    writer.add_later(one), writer.add_later(two), writer.add_later(one)
    assert [result.token for _, result in writer.add_due(threads)] == ["<me/goose-v1>"] and len(writer) == 1
    full.clear()
    assert writer.add_due(threads) == []  # not yet
    clock[0] += 1.5
    assert [result.token for _, result in writer.add_due(threads)] == ["<me/duck-v1>"] and len(writer) == 0


def test_invalid_attempt_fields_are_replaced_by_defaults(store, photos):
    job = submit(store, inversion(photos))
    store.write(
        f"{job.key}/attempts/1.json", json.dumps({"beat": "x", "step": -3, "outcome": "?", "left": 1e99}).encode()
    )
    store.write(f"{job.key}/attempts/x.json", b"{}")
    attempt = job.attempt(1)
    assert (attempt.beat, attempt.step, attempt.outcome, attempt.left) == (0, 0, "", 0.0)
    assert job.attempt_numbers() == [1] and Path(photos).exists()
