"""Drawing for pages, without a page: progress, stop, whose turn it is, and words for what went wrong."""

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
from PIL import Image

from sdpersonal.app.backend import GenerationService, Workspace
from sdpersonal.app.backend.error_text import LABELS, describe_error
from sdpersonal.app.backend.generate.jobs import endless_job, generate_job
from sdpersonal.app.backend.generate.prompt import append_token
from sdpersonal.app.backend.generation_service import MAX_JOBS, MAX_USER_JOBS
from sdpersonal.app.backend.job_queue import JobQueue
from sdpersonal.concepts.library import Library
from sdpersonal.config import GenerateRequest
from sdpersonal.errors import Interrupted, UserError
from sdpersonal.generation import Generator
from sdpersonal.image_metadata import read_recipe
from sdpersonal.models import load_base

FORM = {"prompt": "a cat on grass", "num_images": 1, "steps": 2, "seed": 7}


@pytest.mark.parametrize(
    "prompt, whole",
    [("", "<me/duck>"), ("a photo of", "a photo of <me/duck>"), ("a photo of \n", "a photo of <me/duck>")],
)
def test_a_word_is_put_in_with_one_space(prompt, whole):
    assert append_token(prompt, "<me/duck>") == whole


@pytest.fixture
def service(tiny, tmp_path):
    library = Library(tmp_path / "concepts")
    workspace = Workspace(library, tmp_path / "keep", tmp_path / "runs", tmp_path / "show")
    return GenerationService(lambda name: Generator(tiny, library), workspace)


def drawn(service, page="page", work=generate_job, **form):
    return list(service.submit(lambda: work(FORM | form), page))


def test_a_drawing_tells_how_far_it_is_and_keeps_its_pictures(service):
    views = drawn(service, num_images=2)
    shares = [view.progress for view in views]
    assert shares == sorted(shares) and shares[-1] == 1
    assert views[-1].message.startswith("2 images in ")
    assert [result.caption for result in views[-1].results] == ["seed 7", "seed 8"]
    assert [read_recipe(result.served.read_bytes()).seed for result in views[-1].results] == [7, 8]
    contents = {path.read_bytes() for path in service.workspace.outputs.rglob("*.png")}
    assert contents == {result.served.read_bytes() for result in views[-1].results} and len(contents) == 2


def test_a_drawing_is_the_one_that_the_command_line_makes(service, tiny):
    (result,) = drawn(service)[-1].results
    (alone,) = Generator(tiny).generate(GenerateRequest(**FORM))
    assert result.saved.read_bytes() == alone.to_png()


def test_how_it_looks_so_far_is_shown_and_changes_nothing(service):
    quick, slow = drawn(service, steps=12), drawn(service, steps=40)
    seen = [view.preview for view in slow if view.preview]
    assert seen and all(isinstance(preview, Image.Image) for preview in seen[0])
    assert not slow[-1].preview and not quick[-1].preview


@pytest.mark.parametrize("field", ["seed", "steps", "guidance", "num_images"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -1, 1e308, "7", True, [1], {}])
def test_bad_numbers_become_words(service, field, value):
    (view,) = drawn(service, **{field: value})
    assert re.fullmatch(rf"{LABELS[field]} must be a .* got .*\n?.*", view.message)


@pytest.mark.parametrize("form", [{"prompt": None}, {"negative": 3}, {"size": "7x7"}, {"prompt": "<<a>"}, {"evil": 1}])
def test_other_bad_values_become_words(service, form):
    assert re.search("must be|No concept|not a setting", drawn(service, **form)[-1].message)


def test_another_scheduler_than_asked_for_is_said(service):
    view = drawn(service, scheduler="Euler a Karras", steps=3)[-1]
    assert len(view.results) == 1
    assert view.message.endswith(" Euler a Karras: diffusers has no schedule Karras for Euler a; Uniform is used.")
    assert "Euler a" not in drawn(service, scheduler="Euler a", steps=3)[-1].message


def test_a_limit_of_the_base_has_the_pages_label(service):
    assert drawn(service, clip_skip=9)[-1].message.startswith("Clip skip must be at most 4 for this base, got 9.")


def test_an_unknown_concept_becomes_words(service):
    assert drawn(service, prompt="a <me/cta>")[-1].message.startswith("No concept <me/cta>")


def test_a_page_that_stops_does_not_stop_another(service):
    for page, ending in [("one", "Stopped."), ("two", "1 image in ")]:
        views = service.submit(lambda: generate_job(FORM | {"steps": 150}), page)
        next(views), next(views)  # it is under way
        service.stop("one")
        assert list(views)[-1].message.startswith(ending)


def test_a_page_that_goes_away_frees_the_device(service):
    views = service.submit(lambda: generate_job(FORM | {"steps": 150, "num_images": 16}), "page")
    next(views), next(views)
    views.close()
    assert drawn(service, "other")[-1].message.startswith("1 image")


def test_a_page_has_one_drawing_at_a_time(service):
    first = service.submit(lambda: generate_job(FORM | {"steps": 150}), "page")
    next(first), next(first)
    assert drawn(service)[-1].message.startswith("1 image")
    assert list(first)[-1].message == "Stopped."


def test_a_long_drawing_gives_way_to_a_short_one(service):
    endings = []
    begun = threading.Event()

    def long():
        for view in service.submit(lambda: generate_job(FORM | {"num_images": 16, "steps": 8}), "long"):
            if view.progress:
                begun.set()
        endings.append("long")

    thread = threading.Thread(target=long)
    thread.start()
    begun.wait()
    assert drawn(service, "short")[-1].message.startswith("1 image")
    endings.append("short")
    thread.join()
    assert endings == ["short", "long"]


def test_endless_drawing_stops_and_goes_on_where_it_was(service):
    form = {"prompt": "a {cat|dog|fox} on grass"}
    views = service.submit(lambda: endless_job(FORM | form), "page")
    last = next(view for view in views if len(view.results) >= 3)
    service.stop("page")
    assert list(views)[-1].message.startswith("Stopped. ")
    again = service.submit(lambda: endless_job(FORM | form), "page")
    fourth = next(view for view in again if view.results).results[0]
    again.close()
    recipes = [read_recipe(result.saved.read_bytes()) for result in (*last.results, fourth)]
    assert {recipe.prompt for recipe in recipes[:3]} == {"a cat on grass", "a dog on grass", "a fox on grass"}
    assert len({recipe.seed for recipe in recipes}) == len(recipes)


def test_the_line_is_first_come_first_served_and_never_two():
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


def test_one_who_must_be_alone_waits_for_what_is_half_done():
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


def test_one_who_gives_up_leaves_the_line():
    line, positions = JobQueue(10), []
    with line.job() as first, first.turn(), line.job() as second, pytest.raises(Interrupted):
        second.queue.acquire(second, lambda: bool(positions), positions.append)
    assert line.jobs == [] and positions == [1]


def test_a_full_line_is_said_kindly(service):
    jobs = [service._queue.job() for _ in range(MAX_JOBS)]
    for job in jobs:
        job.__enter__()
    assert drawn(service)[-1].message.startswith(f"The queue is full: {MAX_JOBS} jobs are waiting.")
    for job in jobs:
        job.__exit__(None, None, None)
    assert drawn(service)[-1].message.startswith("1 image")


def test_one_user_leaves_room_for_the_others():
    line, ended = JobQueue(5, 3), [False]
    with contextlib.ExitStack() as jobs:
        for _ in range(2):
            jobs.enter_context(line.job(user="bob"))
        jobs.enter_context(line.job(user="bob", is_stopped=lambda: ended[0]))
        with pytest.raises(UserError, match="You have 3 jobs in the queue already"), line.job(user="bob"):
            pass
        jobs.enter_context(line.job(user="ann"))
        ended[0] = True  # a job that was stopped only has to end
        jobs.enter_context(line.job(user="bob"))
        with pytest.raises(UserError, match="The queue is full: 5"), line.job(user="eve"):
            pass
    with contextlib.ExitStack() as jobs:
        for _ in range(5):  # where nobody logs in there is only one
            jobs.enter_context(line.job())
    assert line.jobs == []


def test_the_share_is_a_users_and_not_a_pages(service):
    with contextlib.ExitStack() as jobs:
        for _ in range(MAX_USER_JOBS):
            jobs.enter_context(service._queue.job(user="bob"))
        view = list(service.submit(lambda: lambda job: None, "a page of bob's", "bob"))[-1]
        assert view.message.startswith(f"You have {MAX_USER_JOBS} jobs")


def test_another_base_is_loaded_and_a_bad_one_leaves_the_old(tiny, tmp_path):
    def load(name):
        if name == "bad":
            raise UserError("No base called bad.")
        loaded.append(name)
        return Generator(tiny)

    loaded = []
    service = GenerationService(load, Workspace(Library(tmp_path), tmp_path / "a", tmp_path, tmp_path / "b"))
    assert service.switch_base("tiny").startswith("Model: tiny")
    with pytest.raises(UserError, match="No base called bad"):
        service.switch_base("bad")
    assert service.base.name == "tiny"
    assert drawn(service)[-1].message.startswith("1 image") and loaded == [None, "tiny", "tiny"]
    service.release()
    assert drawn(service)[-1].message.startswith("1 image") and len(loaded) == 4


def test_a_base_has_gone_before_the_next_one_comes(tmp_path):
    """Memory may not hold both."""

    def load(name):
        there.append(bases[-1]() if bases else None)
        generator = Generator(load_base("tiny"))
        bases.append(weakref.ref(generator.base))
        return generator

    there, bases = [], []
    service = GenerationService(load, Workspace(Library(tmp_path), tmp_path / "a", tmp_path, tmp_path / "b"))
    assert drawn(service)[-1].message.startswith("1 image")
    service.switch_base("tiny")
    service.release()
    assert drawn(service)[-1].message.startswith("1 image") and there == [None, None, None]


def test_a_failure_inside_is_a_number_outside(service, caplog):
    def broken():
        raise RuntimeError("/home/me/secret")

    message = list(service.submit(broken, "page"))[-1].message
    number = re.search(r"error (\w{8})", message)[1]
    assert "secret" not in message and number in caplog.text and "secret" in caplog.text
    assert describe_error(UserError("No.", "Try.")) == "No.\nTry."


def test_a_room_is_known_to_its_page_alone_and_goes_with_it(service):
    (result,) = drawn(service, "mine")[-1].results
    assert result.served.parent == service.workspace.session_dir("mine") != service.workspace.session_dir("other")
    assert len(result.served.parent.name) > 20
    service.close_session("mine")
    assert not result.served.exists() and result.saved.exists()


def test_ctrl_c_waits_for_nothing():
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


def test_jobs_end_with_the_app_and_later_ones_do_not_begin(service):
    jobs = {"endless": lambda: endless_job(FORM), "long": lambda: generate_job(FORM | {"steps": 150})}
    views = [service.submit(job, page) for page, job in jobs.items()]
    for running in views:
        next(running)
    service.close()
    assert not service._queue.jobs  # nobody is asking for their views
    assert all(list(running)[-1].message.startswith("Stopped.") for running in views)
    assert drawn(service, "late")[-1].message == "Stopped."
