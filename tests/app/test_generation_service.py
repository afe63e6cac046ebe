"""Generating for users, without a page: progress, whose turn it is, the model, and words for what went wrong."""

import contextlib
import math
import re
import signal
import subprocess
import sys
import threading
import time
import weakref

import pytest

from sdpersonal.app.backend import Workspace
from sdpersonal.app.backend.error_text import LABELS, describe_error
from sdpersonal.app.backend.generate.jobs import endless_job, generate_job
from sdpersonal.app.backend.job_queue import JobQueue
from sdpersonal.concepts.library import Library
from sdpersonal.config import GenerateRequest
from sdpersonal.errors import Interrupted, UserError
from sdpersonal.generation import Generator
from sdpersonal.image_metadata import read_recipe
from sdpersonal.models import load_base
from support.user_jobs import Jobs

FORM = {"prompt": "a cat on grass", "num_images": 1, "steps": 2, "seed": 7}


@pytest.fixture
def app(tiny, tmp_path):
    library = Library(tmp_path / "concepts")
    workspace = Workspace(library, tmp_path / "keep", tmp_path / "runs", tmp_path / "show")
    return Jobs(lambda name: Generator(tiny, library), workspace)


def generated(app, user=None, **form):
    return app.run(lambda: generate_job(FORM | form), user)


def test_a_job_reports_progress_and_saves_its_images(app):
    views = app.views(generate_job(FORM | {"num_images": 2, "steps": 20}))
    shares = [view["done"] for view in views]
    assert shares == sorted(shares) and views[-1]["done"] == views[-1]["total"] == 20
    assert views[-1]["message"].startswith("2 images in ") and views[-1]["title"] == "2 images of “a cat on grass”"
    paths = [app.gallery.find(None, image["id"]).path for image in views[-1]["images"]]
    assert [read_recipe(path.read_bytes()).seed for path in paths] == [7, 8]
    assert set(paths) == set(app.workspace.outputs.rglob("*.png")) and len(paths) == 2


def test_the_app_generates_the_same_image_as_the_generator(app, tiny):
    (path,) = app.images(generate_job(FORM))
    (alone,) = Generator(tiny).generate(GenerateRequest(**FORM))
    assert path.read_bytes() == alone.to_png()


def test_all_combinations_are_counted(app):
    plan = generate_job(FORM | {"prompt": "a {cat|dog|fox}", "num_images": 2, "all_combinations": True})
    assert plan.expected == 6 and plan.title == "6 images of “a {cat|dog|fox}”"


@pytest.mark.parametrize("field", ["seed", "steps", "guidance", "num_images"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -1, 1e308, "7", True, [1], {}])
def test_invalid_numbers_fail_with_a_message(app, field, value):
    view = generated(app, **{field: value})
    assert re.fullmatch(rf"{LABELS[field]} must be a .* got .*\n?.*", view["message"]) and view["state"] == "failed"


@pytest.mark.parametrize("form", [{"prompt": None}, {"negative": 3}, {"size": "7x7"}, {"prompt": "<<a>"}, {"evil": 1}])
def test_other_invalid_values_fail_with_a_message(app, form):
    assert re.search("must be|No concept|not a setting", generated(app, **form)["message"])


def test_a_replaced_schedule_is_reported_in_the_message(app):
    view = generated(app, scheduler="Euler a Karras", steps=3)
    assert len(view["images"]) == 1
    assert view["message"].endswith(" Euler a Karras: diffusers has no schedule Karras for Euler a; Uniform is used.")
    assert "Euler a" not in generated(app, scheduler="Euler a", steps=3)["message"]


def test_a_limit_of_the_base_is_reported_with_the_label_of_the_page(app):
    assert generated(app, clip_skip=9)["message"].startswith("Clip skip must be at most 4 for this base, got 9.")


def test_an_unknown_concept_fails_with_a_message(app):
    assert generated(app, prompt="a <me/cta>")["message"].startswith("No concept <me/cta>")


def test_stopping_a_users_job_does_not_stop_another_users_job(app):
    jobs = {user: app.jobs.submit(user, generate_job(FORM | {"steps": 150})) for user in ("one", "two")}
    next(app.jobs.follow(jobs["one"]))
    app.jobs.stop("one")
    endings = {user: list(app.jobs.follow(job))[-1]["message"] for user, job in jobs.items()}
    assert endings["one"] == "Stopped." and endings["two"].startswith("1 image in ")


def test_a_short_job_runs_before_a_long_job_ends(app):
    long = app.jobs.submit("long", generate_job(FORM | {"num_images": 16, "steps": 8}))
    next(view for view in app.jobs.follow(long, 0.01) if view["done"])
    assert generated(app, "short")["message"].startswith("1 image")
    assert not long.has_ended
    assert list(app.jobs.follow(long))[-1]["message"].startswith("16 images")


def test_endless_generation_resumes_where_it_stopped(app):
    form = FORM | {"prompt": "a {cat|dog|fox} on grass"}
    first = app.jobs.submit(None, endless_job(form))
    next(view for view in app.jobs.follow(first, 0.01) if view["count"] >= 3)
    app.jobs.stop(None)
    assert list(app.jobs.follow(first))[-1]["message"].startswith("Stopped. ")
    again = app.jobs.submit(None, endless_job(form))
    next(view for view in app.jobs.follow(again, 0.01) if view["count"])
    app.jobs.stop(None)
    assert list(app.jobs.follow(again))[-1]["left"] is None
    ids = [*first.image_ids, *again.image_ids]
    recipes = [read_recipe(app.gallery.find(None, image).path.read_bytes()) for image in ids]
    assert {recipe.prompt for recipe in recipes[:3]} == {"a cat on grass", "a dog on grass", "a fox on grass"}
    assert [recipe.seed for recipe in recipes] == list(range(7, 7 + len(recipes)))


def test_the_queue_runs_jobs_in_order_and_never_two_at_once():
    line, order, most = JobQueue(10), [], [0, 0]

    def work(name):
        with line.job() as job, job.turn():
            most[0] += 1
            most[1] = max(most)
            time.sleep(0.02)
            order.append(name)
            most[0] -= 1

    with line.job() as first, first.turn():
        threads = []
        for name in range(5):
            threads.append(threading.Thread(target=work, args=(name,)))
            threads[-1].start()
            while len(line.jobs) < name + 2:
                time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3, 4] and most == [0, 1] and line.jobs == []


def test_an_exclusive_job_waits_for_started_jobs_and_precedes_later_jobs():
    line, order = JobQueue(10), []
    with line.job() as half:
        with half.turn():
            pass

        def change():
            with line.job(alone=True) as job, job.turn():
                order.append("change")

        def late():
            with line.job() as job, job.turn():
                order.append("late")

        threads = [threading.Thread(target=work) for work in (change, late)]
        for count, thread in enumerate(threads):
            thread.start()
            while len(line.jobs) < count + 2:
                time.sleep(0.001)
        with half.turn():
            order.append("half")
    for thread in threads:
        thread.join()
    assert order == ["half", "change", "late"]


def test_a_cancelled_job_leaves_the_queue():
    line, positions = JobQueue(10), []
    with line.job() as first, first.turn(), line.job() as second, pytest.raises(Interrupted):
        second.queue.acquire(second, lambda: bool(positions), positions.append)
    assert line.jobs == [] and positions == [1]


def test_a_full_queue_refuses_jobs_with_a_message():
    line = JobQueue(5)
    with contextlib.ExitStack() as jobs:
        for _ in range(5):
            jobs.enter_context(line.job())
        with pytest.raises(UserError, match="The queue is full: 5"), line.job():
            pass
    assert line.jobs == []


def test_a_failed_switch_keeps_the_loaded_base(tiny, tmp_path):
    def load(name):
        if name == "bad":
            raise UserError("No base called bad.")
        loaded.append(name)
        return Generator(tiny)

    loaded = []
    app = Jobs(load, Workspace(Library(tmp_path), tmp_path / "a", tmp_path, tmp_path / "b"))
    assert app.generation.switch_base("tiny").startswith("Model: tiny")
    with pytest.raises(UserError, match="No base called bad"):
        app.generation.switch_base("bad")
    assert app.generation.base.name == "tiny"
    assert generated(app)["message"].startswith("1 image") and loaded == [None, "tiny", "tiny"]
    app.generation.release()
    assert generated(app)["message"].startswith("1 image") and len(loaded) == 4


def test_a_base_is_unloaded_before_the_next_is_loaded(tmp_path):
    """Memory may not hold both."""

    def load(name):
        there.append(bases[-1]() if bases else None)
        generator = Generator(load_base("tiny"))
        bases.append(weakref.ref(generator.base))
        return generator

    there, bases = [], []
    app = Jobs(load, Workspace(Library(tmp_path), tmp_path / "a", tmp_path, tmp_path / "b"))
    assert generated(app)["message"].startswith("1 image")
    app.generation.switch_base("tiny")
    app.generation.release()
    assert generated(app)["message"].startswith("1 image") and there == [None, None, None]


def test_an_internal_error_shows_only_an_error_number(app, caplog):
    def broken():
        raise RuntimeError("/home/me/secret")

    message = app.run(broken)["message"]
    number = re.search(r"error (\w{8})", message)[1]
    assert "secret" not in message and number in caplog.text and "secret" in caplog.text
    assert describe_error(UserError("No.", "Try.")) == "No.\nTry."


def test_ctrl_c_interrupts_work_on_the_device():
    """A base may be gigabytes on their way here."""
    script = (
        "import sys, time\nfrom sdpersonal.app.backend.device_worker import DeviceWorker\n"
        "def work():\n    time.sleep(1)  # until the main thread waits\n    print('under way', flush=True)\n"
        "    time.sleep(600)\nDeviceWorker().run(work)"
    )
    running = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert running.stdout.readline() == b"under way\n"
    running.send_signal(signal.SIGINT)
    assert running.wait(60) != 0
