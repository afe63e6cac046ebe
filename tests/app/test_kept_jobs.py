"""Jobs outlive the app: what waits, and the rest of what runs, is taken up again, each image once."""

import json
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from PIL import Image
from test_user_jobs import until

from sdpersonal.app.backend import Workspace, kept_jobs
from sdpersonal.app.backend.generate.submission import JobRequest, plan_job
from sdpersonal.errors import Interrupted, UserError
from sdpersonal.generation import Generator
from sdpersonal.image_metadata import read_recipe
from support.stock import small_library
from support.user_jobs import Jobs

FORM = {"prompt": "a house", "num_images": 3, "steps": 2, "seed": "5", "width": 64, "height": 64}
SEEDS = [5, 6, 7]


class Stopping:
    """The built-in model, one image at a time; generates no more than `limit` images, then waits to be stopped."""

    def __init__(self, base, library):
        self.generator, self.base, self.limit = Generator(base, library), base, 1000

    def with_concepts(self, concepts):
        other = Stopping(self.base, concepts)
        other.limit = self.limit
        return other

    def generate(self, request, progress, cancelled, preview):
        for image in self.generator.generate(request, progress, cancelled):
            while self.limit <= 0 and not cancelled():
                time.sleep(0.002)
            if cancelled():
                raise Interrupted("Stopped.")
            self.limit -= 1
            yield image


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return small_library(tmp_path_factory.mktemp("library") / "concepts")


class Place:
    """Folders, and the apps that have them one after the other."""

    def __init__(self, base, library, folder):
        self.base, self.library, self.folder, self.apps = base, library, folder, []
        self.outputs = folder / "outputs"

    def start(self, *users, limit=1000, restores=True):
        workspace = Workspace(self.library, self.outputs, self.folder / "runs", self.folder / "served")
        stopping = Stopping(self.base, self.library)
        stopping.limit = limit
        app = Jobs(lambda name: stopping, workspace)
        self.apps.append(app)
        if restores:
            app.jobs.restore(users or [None])
        return app

    def file(self, user=""):
        return self.outputs / user / ".jobs" / "jobs.json"

    def kept(self, user=""):
        return json.loads(self.file(user).read_text())["jobs"]

    def images(self):
        return sorted(path for path in self.outputs.glob("20*/*.png") if "sheet" not in path.name)

    def seeds(self):
        return [read_recipe(path.read_bytes()).seed for path in self.images()]


@pytest.fixture
def place(tiny, library, tmp_path):
    place = Place(tiny, library, tmp_path)
    yield place
    for app in place.apps:
        app.jobs.close()


def submit(app, kind="generate", user=None, image=None, form=FORM, **options):
    request = JobRequest(kind=kind, image=image, form=form if image is None else {}, **options)
    return app.jobs.submit(user, plan_job(request, app.gallery, user))


def end_all(app, user=None):
    """Wait until all jobs of the user have ended, and their file says so."""
    until(lambda: not any(job["state"] in ("waiting", "running") for job in app.jobs.views(user)), 60)
    until(lambda: not any(thread.name == "user's jobs" for thread in threading.enumerate()))
    return app.jobs.views(user)


def test_unfinished_jobs_are_resumed_in_their_order_after_a_restart(place):
    app = place.start(limit=2)
    running = submit(app)
    waiting = [submit(app, form=FORM | {"seed": None, "num_images": 1}), submit(app, form=FORM | {"seed": "90"})]
    app.jobs.move(None, waiting[1].id, before=waiting[0].id)
    until(lambda: running.image_count == 2)
    app.jobs.close()
    assert [job["id"] for job in place.kept()] == [running.id, waiting[1].id, waiting[0].id]
    app = place.start(limit=0)
    views = app.jobs.views(None)
    assert [(view["id"], view["expected"], view["restored"]) for view in views] == [
        (running.id, 1, True),
        (waiting[1].id, 3, True),
        (waiting[0].id, 1, True),
    ]
    assert views[0]["title"] == "1 image of “a house”" and views[0]["created"] == running.created
    app.jobs.close()
    views = end_all(place.start())
    assert {view["state"] for view in views} == {"done"}
    seeds = place.seeds()
    assert seeds[:6] == [*SEEDS, 90, 91, 92] and len(seeds) == 7 and place.kept() == []


def test_a_random_seed_stays_the_same_after_a_restart(place):
    app = place.start(limit=1)
    job = submit(app, form=FORM | {"seed": None})
    until(lambda: job.image_count == 1)
    app.jobs.close()
    end_all(place.start())
    first, *rest = place.seeds()
    assert rest == [first + 1, first + 2]


@pytest.mark.parametrize("kind", ["all combinations", "grid", "variations", "change", "redo", "hires"])
def test_resumed_jobs_of_every_kind_generate_every_image_once(place, kind):
    def start(app):
        if kind == "all combinations":
            return submit(
                app, form=FORM | {"prompt": "a {red|blue} {cat|dog}", "num_images": 1, "all_combinations": True}
            )
        if kind == "grid":
            return submit(app, "grid", x="Seed", x_values="1..4")
        options = {"variations": {"count": 4}, "change": {"change": "house=cat|dog|fox|hat"}, "redo": {"count": 4}}
        return submit(app, kind, image=image, **options.get(kind, {}))

    app = place.start()
    job = submit(app, form=FORM | {"num_images": 1})
    end_all(app)
    (image,) = job.image_ids
    app.jobs.close()
    app = place.start(limit=2)
    job = start(app)
    until(lambda: job.image_count == 2 or job.has_ended, 60)
    app.jobs.close()
    app = place.start()
    (view,) = end_all(app) or [{"state": "done"}]
    assert view["state"] == "done", view
    recipes = [read_recipe(path.read_bytes()) for path in place.images()]
    count = 2 if kind == "hires" else 5
    assert len(recipes) == count and len({path.name.split("-")[1] for path in place.images()}) == count
    if kind == "change":
        assert [recipe.prompt for recipe in recipes[1:]] == ["a cat", "a dog", "a fox", "a hat"]
    if kind == "grid":
        assert len(list(place.outputs.glob("20*/*-sheet.png"))) == 1 and view["count"] == 5
    assert place.kept() == []


def test_uploaded_init_images_and_masks_survive_a_restart(place):
    app = place.start(limit=0)
    served = app.workspace.served_dir
    served.mkdir(exist_ok=True)
    for name, colour in (("init.png", (200, 40, 40)), ("mask.png", (255, 255, 255))):
        Image.new("RGB", (64, 64), colour).save(served / name)
    uploads = {name: {"upload": str(served / f"{name}.png")} for name in ("init", "mask")}
    job = submit(app, form=FORM | uploads | {"num_images": 1})
    app.jobs.close()
    (kept,) = place.kept()
    assert set(kept["request"]["form"]["init"]) == set(kept["request"]["form"]["mask"]) == {"saved"}
    assert not list(served.glob("*.png")) and str(served) not in place.file().read_text()
    (view,) = end_all(place.start())
    assert view["state"] == "done" and view["id"] == job.id
    assert read_recipe(place.images()[0].read_bytes()).init_image


def test_a_started_endless_job_is_not_saved_for_a_restart(place):
    app = place.start(limit=1)
    begun = submit(app, "endless")
    until(lambda: begun.image_count == 1)
    waiting = submit(app, "endless", form=FORM | {"prompt": "a cat"})
    app.jobs.close()
    assert [job["id"] for job in place.kept()] in ([waiting.id], [])  # it may have begun when the other made way


def test_ended_jobs_are_not_resumed_after_a_restart(place):
    app = place.start(limit=1)
    done = submit(app, form=FORM | {"num_images": 1})
    until(lambda: done.has_ended)
    running, waiting = submit(app), submit(app)
    until(lambda: running.state == "running")
    app.jobs.cancel(None, waiting.id)
    assert [job["id"] for job in place.kept()] == [running.id]
    app.jobs.stop(None)
    until(lambda: running.has_ended)
    until(lambda: place.kept() == [])
    app.jobs.close()
    assert place.start().jobs.views(None) == []


def test_restored_jobs_belong_only_to_their_users(place):
    app = place.start("ann", "bob", limit=0)
    jobs = {user: submit(app, user=user) for user in ("ann", "bob")}
    app.jobs.close()
    assert [job["id"] for job in place.kept("ann")] == [jobs["ann"].id]
    app = place.start("ann")  # bob is no user any more, and nobody who is not logged in is either
    assert app.jobs.views("bob") == app.jobs.views(None) == []
    assert [view["id"] for view in end_all(app, "ann")] == [jobs["ann"].id]
    assert len(place.kept("bob")) == 1 and not list((place.outputs / "bob").glob("20*"))


def test_a_second_app_on_the_same_folders_resumes_no_jobs(place, monkeypatch):
    app = place.start(limit=0)
    job = submit(app)
    until(lambda: job.state == "running")
    monkeypatch.setattr(kept_jobs, "_LOCK_SECONDS", 0.05)
    second = place.start()
    assert second.jobs.views(None) == []
    other = submit(second, form=FORM | {"seed": "70"})
    until(lambda: other.state == "done")
    assert [kept["id"] for kept in place.kept()] == [job.id]
    second.jobs.close()
    assert [kept["id"] for kept in place.kept()] == [job.id]


ANY = {"created": 1, "request": {"kind": "generate"}}
DAMAGED = [
    b"",
    b"{",
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"jobs": 1}',
    b'{"jobs": [], "more": 1}',
    b'{"jobs": [{"id": "../../../../x", "created": 1, "request": {"kind": "generate"}}]}',
    b'{"jobs": [{"id": "0123456789ab", "created": NaN, "request": {"kind": "generate"}}]}',
    b'{"jobs": [{"id": "0123456789ab", "created": 1, "request": {"kind": "shell"}}]}',
    b'{"jobs": [{"id": "0123456789ab", "created": 1, "marks": ["../../.."], "request": {"kind": "generate"}}]}',
    json.dumps({"jobs": [ANY | {"id": f"{number:012x}"} for number in range(61)]}).encode(),
    json.dumps({"jobs": 2 * [ANY | {"id": f"{1:012x}"}]}).encode(),
]


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_jobs_file_is_set_aside_with_a_warning(place, content, caplog):
    place.file().parent.mkdir(parents=True)
    place.file().write_bytes(content)
    app = place.start()
    assert app.jobs.views(None) == [] and "set aside" in caplog.text
    (aside,) = place.file().parent.glob("damaged-*.json")
    assert aside.read_bytes() == content and not place.file().exists()
    assert end_all(app) == [] and submit(app).state == "waiting"
    end_all(app)


NO_FILES = {"folder": Path.mkdir, "pipe": os.mkfifo, "link": lambda path: path.symlink_to("/dev/zero")}


@pytest.mark.parametrize("make", NO_FILES.values(), ids=NO_FILES)
def test_a_folder_pipe_or_link_as_jobs_file_does_not_block_the_start(place, make):
    place.file().parent.mkdir(parents=True)
    make(place.file())
    app = place.start()
    submit(app, form=FORM | {"num_images": 1})
    assert [view["state"] for view in end_all(app)] == ["done"] and place.kept() == []


HOSTILE = [
    {"kind": "generate", "form": FORM | {"init_image": "/etc/passwd"}},
    {"kind": "generate", "form": FORM | {"mask": "/etc/passwd", "init": {"saved": "0" * 16}}},
    {"kind": "generate", "form": FORM | {"init": {"upload": "/etc/passwd"}}},
    {"kind": "generate", "form": FORM | {"init": {"saved": "../../x"}}},
    {"kind": "generate", "form": FORM | {"num_images": 10**9}},
    {"kind": "generate", "form": FORM | {"prompt": "<me/nobody>"}},
    {"kind": "grid", "form": FORM, "x": "checkpoint", "x_values": "/etc"},
    {"kind": "redo", "image": "../../etc/passwd"},
    {"kind": "hires", "image": "2026-01-01/00001-abcdef12"},
]


def test_restored_invalid_jobs_fail_with_a_message_and_valid_jobs_run(place):
    jobs = [{"id": f"{n:012x}", "created": 1.0, "request": request} for n, request in enumerate(HOSTILE)]
    jobs.append({"id": f"{99:012x}", "created": 1.0, "request": {"kind": "generate", "form": FORM | {"num_images": 1}}})
    place.file().parent.mkdir(parents=True)
    place.file().write_text(json.dumps({"jobs": jobs}))
    views = end_all(place.start())[::-1]
    assert [view["state"] for view in views] == ["failed"] * len(HOSTILE) + ["done"]
    assert all(view["message"] and "Internal" not in view["message"] for view in views), views
    assert place.seeds() == [5] and place.kept() == []


def test_a_job_that_ended_the_app_twice_is_not_resumed(place):
    request = {"kind": "generate", "form": FORM}
    place.file().parent.mkdir(parents=True)
    place.file().write_text(json.dumps({"jobs": [{"id": "0" * 12, "created": 1, "request": request, "starts": 2}]}))
    (view,) = end_all(place.start())
    assert view["state"] == "failed" and "ended 2 times" in view["message"] and not place.images()


def test_a_job_runs_even_if_it_cannot_be_saved(place, monkeypatch, caplog):
    app = place.start()

    def full(path, content):
        raise UserError("The disk is full.")

    monkeypatch.setattr(kept_jobs.storage, "write_json", full)
    submit(app, form=FORM | {"num_images": 1})
    assert [view["state"] for view in end_all(app)] == ["done"] and "The disk is full" in caplog.text


def _work_until_killed(base, library, folder):
    place = Place(base, library, folder)
    end_all(place.start())
    os._exit(0)


def test_jobs_killed_at_any_moment_generate_every_image_once(place, tiny, library, monkeypatch):
    """Children are killed just after an image is saved, before or after the note of the next one."""
    app = place.start(limit=0)
    submit(app, form=FORM | {"num_images": 5, "steps": 1})
    submit(app, "grid", form=FORM | {"steps": 1}, x="Seed", x_values="50..52")
    app.jobs.close()
    monkeypatch.setattr(kept_jobs, "MAX_STARTS", 100)
    context, kills = multiprocessing.get_context("fork"), 0
    for attempt in range(60):
        before = len(place.images())
        child = context.Process(target=_work_until_killed, args=(tiny, library, place.folder))
        child.start()
        until(lambda before=before, child=child: len(place.images()) > before or not child.is_alive(), 60)
        time.sleep(0.004 * (attempt % 5))
        if child.is_alive():
            os.kill(child.pid, signal.SIGKILL)
        child.join()
        kills += child.exitcode == -signal.SIGKILL
        if child.exitcode == 0:
            break
    assert child.exitcode == 0 and kills >= 3
    assert place.seeds() == [*range(5, 10), *range(50, 53)] and place.kept() == []
    assert not list(place.file().parent.glob(".*-tmp"))
