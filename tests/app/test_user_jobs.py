"""The jobs of users: their order, whose turn it is, what is told of them, and how they end."""

import contextlib
import threading
import time
from itertools import pairwise
from types import SimpleNamespace

import pytest
from PIL import Image

from sdpersonal.app.backend import Workspace, live_job, user_jobs
from sdpersonal.app.backend.generate.jobs import endless_job
from sdpersonal.app.backend.render_job import JobPlan, StepAside
from sdpersonal.app.backend.user_jobs import MAX_ENDED, MAX_USERS, MAX_WAITING
from sdpersonal.concepts.library import Library
from sdpersonal.display.image_grid import encode_png
from sdpersonal.errors import Interrupted, UserError
from support.user_jobs import Jobs


class StubGenerator:
    """Generates plain images, each of as many steps as the request says, and notes whose they were. go: cleared, all
    wait before the next step."""

    def __init__(self, base):
        self.base, self.made, self.go = base, [], threading.Event()
        self.go.set()
        self.begun = threading.Event()

    def generate(self, request, progress, cancelled, preview):
        total = request.num_images * request.steps
        for i in range(request.num_images):
            for step in range(request.steps):
                self.begun.set()
                while not self.go.wait(0.01) and not cancelled():
                    pass
                if cancelled():
                    raise Interrupted("Stopped.")
                preview([Image.new("RGB", (8, 8))])
                progress(i * request.steps + step + 1, total)
                time.sleep(0.001)
            self.made.append(request.prompt)
            yield SimpleNamespace(hidden=False, to_png=lambda: encode_png(Image.new("RGB", (8, 8))))


@pytest.fixture
def stub(tiny):
    return StubGenerator(tiny)


@pytest.fixture
def app(stub, tmp_path):
    workspace = Workspace(Library(tmp_path / "concepts"), tmp_path / "outputs", tmp_path / "runs", tmp_path / "served")
    return Jobs(lambda name: stub, workspace)


def plan(name, images=1, steps=2, endless=False):
    request = SimpleNamespace(prompt=name, num_images=1 if endless else images, steps=steps)

    def work(job):
        while True:
            for image in job.generator.generate(request, job.progress):
                job.save_image(image)
            if not endless:
                return
            if job.listener.must_step_aside():
                raise StepAside

    return JobPlan("endless" if endless else "generate", name, None if endless else images, work)


def until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


def titles(app, user=None, state=None):
    return [job["title"] for job in app.jobs.views(user) if state in (None, job["state"])]


@pytest.fixture
def held(app, stub):
    """A user whose first job is under way and waits for `stub.go`; then come b, c and d."""
    stub.go.clear()
    jobs = [app.jobs.submit("ann", plan(name)) for name in "abcd"]
    assert stub.begun.wait(10)
    until(lambda: jobs[0].state == "running")
    return jobs


def wait_for(jobs):
    until(lambda: all(job.has_ended for job in jobs))


# --- order ------------------------------------------------------------------------------------------------------------


def test_jobs_run_in_order_and_report_progress(app, stub, held):
    assert [(job["title"], job["state"]) for job in app.jobs.views("ann")] == [
        ("a", "running"),
        *((name, "waiting") for name in "bcd"),
    ]
    stub.go.set()
    wait_for(held)
    assert stub.made == ["a", "b", "c", "d"]
    assert titles(app, "ann") == ["d", "c", "b", "a"]  # ended, the newest first
    last = app.jobs.views("ann")[0]
    assert last["message"].startswith("1 image in ") and (last["done"], last["total"], last["left"]) == (2, 2, None)
    assert last["images"] == [app.gallery.entry("ann", last["images"][0]["id"])] and last["count"] == 1


def test_a_waiting_job_can_be_moved(app, stub, held):
    a, b, c, d = (job.id for job in held)
    app.jobs.move("ann", d, before=b)
    assert titles(app, "ann") == ["a", "d", "b", "c"]
    app.jobs.move("ann", d, before=None)
    app.jobs.move("ann", c, before=a)  # before the running one: first of those that wait
    app.jobs.move("ann", c, before=c)
    assert titles(app, "ann") == ["a", "c", "b", "d"]
    for job, before in ((a, b), ("nothing", None), (b, "nothing")):
        with pytest.raises(UserError):
            app.jobs.move("ann", job, before)
    stub.go.set()
    wait_for(held)
    assert stub.made == ["a", "c", "b", "d"]


def test_waiting_jobs_are_cancelled_at_once_and_running_jobs_at_the_next_step(app, stub, held):
    app.jobs.cancel("ann", held[1].id)
    assert held[1].state == "stopped" and titles(app, "ann", "waiting") == ["c", "d"]
    app.jobs.cancel("ann", held[0].id)
    until(lambda: held[0].state == "stopped")
    stub.go.set()
    wait_for(held)
    assert stub.made == ["c", "d"]
    assert [held[0].message, held[1].message] == ["Stopped.", "Stopped."]
    with pytest.raises(UserError, match="ended already"):
        app.jobs.cancel("ann", held[0].id)


def test_finished_images_of_a_stopped_job_stay_saved(app, stub):
    job = app.jobs.submit(None, plan("long", images=50, steps=3))
    until(lambda: job.image_count >= 2)
    app.jobs.cancel(None, job.id)
    wait_for([job])
    assert job.message == f"Stopped. {job.image_count} images finished and saved."
    assert all(app.gallery.find(None, image).path.exists() for image in job.image_ids)


def test_all_jobs_of_a_user_can_be_stopped_together(app, stub, held):
    app.jobs.stop("ann")
    wait_for(held)
    assert [job.state for job in held] == ["stopped"] * 4 and stub.made == []
    stub.go.set()
    assert app.run(plan("later"), "ann")["state"] == "done"


def test_an_endless_job_lets_other_jobs_run_first_and_then_resumes(app, stub):
    stub.go.clear()
    endless = app.jobs.submit(None, plan("endless", endless=True))
    assert stub.begun.wait(10)
    others = [app.jobs.submit(None, plan(name)) for name in ("b", "c")]
    stub.go.set()
    wait_for(others)
    until(lambda: endless.image_count >= 3)
    assert endless.state == "running" and stub.made[:4] == ["endless", "b", "c", "endless"]
    app.jobs.cancel(None, endless.id)
    wait_for([endless])


def test_two_endless_jobs_alternate_and_do_not_return_when_stopped(app, stub):
    jobs = [app.jobs.submit(None, plan(name, endless=True)) for name in "ab"]
    until(lambda: all(job.image_count >= 2 for job in jobs))
    app.jobs.stop(None)
    wait_for(jobs)
    begin = stub.made.index("b")
    assert stub.made[begin : begin + 3] == ["b", "a", "b"] and titles(app, state="waiting") == []


def test_an_endless_job_resumes_after_the_model_is_released(app, stub):
    endless = app.jobs.submit(None, plan("endless", endless=True))
    until(lambda: endless.image_count >= 1)
    app.generation.release()
    count = endless.image_count
    until(lambda: endless.image_count > count)
    app.jobs.stop(None)
    wait_for([endless])


def test_an_endless_job_resumes_with_the_next_prompt_and_seed(tiny, tmp_path):
    from sdpersonal.generation import Generator
    from sdpersonal.image_metadata import read_recipe

    library = Library(tmp_path / "concepts")
    app = Jobs(
        lambda name: Generator(tiny, library), Workspace(library, tmp_path / "o", tmp_path / "r", tmp_path / "s")
    )
    form = {"prompt": "a {cat|dog|fox}", "steps": 1, "seed": 7}
    endless = app.jobs.submit(None, endless_job(form))
    until(lambda: endless.image_count >= 1)
    assert app.run(plan_of_tiny())["state"] == "done"
    until(lambda: endless.image_count >= 3)
    app.jobs.stop(None)
    wait_for([endless])
    recipes = [read_recipe(app.gallery.find(None, image).path.read_bytes()) for image in endless.image_ids[:3]]
    assert {recipe.prompt for recipe in recipes} == {"a cat", "a dog", "a fox"}
    assert [recipe.seed for recipe in recipes] == [7, 8, 9]


def plan_of_tiny():
    from sdpersonal.app.backend.generate.jobs import generate_job

    return generate_job({"prompt": "a house", "steps": 1, "num_images": 1})


# --- several users ----------------------------------------------------------------------------------------------------


def test_many_jobs_of_a_user_delay_other_users_by_at_most_a_batch(app, stub):
    ann = [app.jobs.submit("ann", plan("ann", images=4)) for _ in range(5)]
    assert stub.begun.wait(10)
    bob = app.jobs.submit("bob", plan("bob", images=2))
    wait_for([bob])
    assert stub.made.count("ann") <= 4
    wait_for(ann)
    assert stub.made.count("ann") == 20


def test_waiting_jobs_show_how_many_jobs_of_others_are_ahead(app, stub, held):
    waiting = app.jobs.submit("bob", plan("bob"))
    later = app.jobs.submit("bob", plan("later"))
    until(lambda: waiting.ahead == 1)
    assert [job["ahead"] for job in app.jobs.views("bob")] == [1, 1]
    assert waiting.message == "In the queue: 1 ahead of you."
    stub.go.set()
    wait_for([waiting, later, *held])


def test_users_cannot_see_or_stop_the_jobs_of_others(app, stub, held):
    assert app.jobs.views("bob") == app.jobs.views(None) == []
    with pytest.raises(UserError):
        app.jobs.cancel("bob", held[0].id)
    app.jobs.stop("bob")
    assert titles(app, "ann") == ["a", "b", "c", "d"]
    stub.go.set()
    wait_for(held)
    assert app.gallery.page("bob").total == 0 and app.gallery.page("ann").total == 4


def test_the_queue_limits_jobs_per_user_and_the_number_of_users(app, stub, held):
    for number in range(MAX_WAITING - 3):
        app.jobs.submit("ann", plan(f"{number}"))
    with pytest.raises(UserError, match=f"{MAX_WAITING} jobs waiting already"):
        app.jobs.submit("ann", plan("one more"))
    for number in range(MAX_USERS - 1):
        app.jobs.submit(f"user{number}", plan("x"))
    with pytest.raises(UserError, match="The queue is full"):
        app.jobs.submit("one-more", plan("x"))
    app.jobs.submit("user0", plan("y"))  # who is in the queue already
    stub.go.set()
    until(lambda: not any(job["state"] in ("waiting", "running") for job in app.jobs.views("ann")), 30)
    assert len(app.jobs.views("ann")) == MAX_ENDED
    until(lambda: app.run(plan("x"), "one-more")["state"] == "done")


# --- what is told -----------------------------------------------------------------------------------------------------


def test_a_failed_job_shows_an_error_message_and_the_next_job_runs(app, caplog):
    def broken(job):
        raise RuntimeError("/home/me/secret")

    def refused(job):
        raise UserError("No concept <me/cta>.", "Did you mean <me/cat>?")

    views = [app.run(JobPlan("generate", "x", 1, work)) for work in (broken, refused)]
    assert [view["state"] for view in views] == ["failed", "failed"]
    assert "Internal error" in views[0]["message"] and "secret" not in views[0]["message"] and "secret" in caplog.text
    assert views[1]["message"] == "No concept <me/cta>.\nDid you mean <me/cat>?"
    assert app.run(plan("next"))["state"] == "done"


class Page:
    """An open page of a user: what it was told, (seconds, kind, data)."""

    def __init__(self, hub, user=None):
        self.told, self._hub, self._user = [], hub, user
        hub.add(user, self)

    def put(self, kind, key, data):
        self.told.append((time.monotonic(), kind, data))

    def of(self, kind):
        return [data for _, told, data in self.told if told == kind]

    def close(self):
        self._hub.remove(self._user, self)


def test_open_pages_receive_events_of_jobs_at_a_limited_rate(app, stub, monkeypatch):
    monkeypatch.setattr(user_jobs, "_EVENT_SECONDS", 0.1)
    page = Page(app.events)
    view = app.run(plan("x", images=3, steps=60))
    until(lambda: page.of("jobs") and page.of("jobs")[-1]["jobs"][0]["state"] == "done")
    times = [at for at, kind, _ in page.told if kind == "jobs"]
    assert len(times) > 2 and min(b - a for a, b in pairwise(times)) > 0.08
    shares = [job["jobs"][0]["done"] for job in page.of("jobs")]
    assert shares == sorted(shares) and shares[-1] == 180
    assert [event["image"] for event in page.of("image")] == view["images"]
    assert {event["job"] for event in (*page.of("image"), *page.of("preview"))} == {view["id"]}
    assert all(url.startswith("data:image/jpeg;base64,") for event in page.of("preview") for url in event["images"])


def test_a_running_job_reports_the_remaining_time(app, stub):
    views = app.views(plan("x", images=2, steps=100))
    left = [view["left"] for view in views if view["left"] is not None]
    assert left and left[0] > left[-1] >= 0 and views[-1]["left"] is None
    assert {view["state"] for view in views} >= {"running", "done"}


def test_previews_are_not_encoded_while_no_page_is_open(app, monkeypatch):
    encoded = []
    monkeypatch.setattr(live_job, "encode_jpeg", lambda image: encoded.append(1) or b"")
    other, closed = Page(app.events, "bob"), Page(app.events, "ann")
    closed.close()
    app.run(plan("x", steps=300), "ann")
    assert not encoded and not other.told and not closed.told
    page = Page(app.events, "ann")
    app.run(plan("x", steps=300), "ann")
    until(lambda: page.of("preview"))
    assert encoded and not other.told


def test_a_throttle_limits_calls_but_delivers_the_last():
    calls, state = [], [0]
    throttle = live_job.Throttle(0.05, lambda: calls.append((time.monotonic(), state[0])))
    for number in range(1, 200):
        state[0] = number
        throttle()
        time.sleep(0.001)
    until(lambda: calls[-1][1] == 199)
    assert len(calls) < 12 and all(b[0] - a[0] > 0.045 for a, b in pairwise(calls))


def test_jobs_show_deletions_and_favourites_of_their_images(app):
    view = app.run(plan("x", images=3))
    first, second, third = (image["id"] for image in view["images"])
    app.jobs.update_images(None, [first, second], True)
    app.jobs.update_images(None, [second])
    (job,) = app.jobs.views(None)
    assert [(image["id"], image["favourite"]) for image in job["images"]] == [(first, True), (third, False)]


def test_a_job_of_many_images_shows_only_the_newest(app, monkeypatch):
    monkeypatch.setattr(live_job, "MAX_SHOWN_IMAGES", 5)
    job = app.jobs.submit(None, plan("x", images=9, steps=1))
    wait_for([job])
    assert job.view()["count"] == 9
    assert job.image_ids == [entry["id"] for entry in app.gallery.page(None).images[:5]][::-1]


# --- the end ----------------------------------------------------------------------------------------------------------


def test_closing_the_app_ends_all_jobs_and_refuses_new_jobs(app, stub, held):
    others = [app.jobs.submit("bob", plan("bob", endless=True)), app.jobs.submit(None, plan("x"))]
    started = time.monotonic()
    app.jobs.close()
    assert time.monotonic() - started < 2.9
    until(lambda: all(job.state == "stopped" for job in (*held, *others)), 1)
    with pytest.raises(UserError, match="closing"):
        app.jobs.submit("ann", plan("late"))


def test_a_user_without_jobs_has_no_thread(app):
    app.run(plan("x"))
    until(lambda: not any(thread.name == "user's jobs" for thread in threading.enumerate()))


def test_following_a_job_can_be_ended_and_started_again(app, stub, held):
    views = app.jobs.follow(held[0], 0.01)
    assert next(views)["state"] == "running"
    views.close()
    stub.go.set()
    wait_for(held)
    with contextlib.closing(app.jobs.follow(held[0])) as again:
        assert [view["state"] for view in again] == ["done"]
