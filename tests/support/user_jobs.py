"""Run jobs of the app without its page."""

from __future__ import annotations

from sdpersonal.app.backend import EventHub, GenerationService
from sdpersonal.app.backend.error_text import describe_error
from sdpersonal.app.backend.generate.gallery import Gallery
from sdpersonal.app.backend.user_jobs import UserJobs


class Jobs:
    """The jobs of one service, and the gallery that their images are in. events: the hub that pages would listen to."""

    def __init__(self, load, workspace, on_fleet=False):
        self.workspace = workspace
        self.generation = GenerationService(load, workspace, on_fleet=on_fleet)
        self.gallery, self.events = Gallery(workspace), EventHub()
        self.jobs = UserJobs(self.generation, self.gallery, self.events)

    def views(self, plan, user=None):
        """Run a job to its end; return its views. plan: a `JobPlan`, or a function that returns one."""
        try:
            job = self.jobs.submit(user, plan() if callable(plan) else plan)
        except Exception as error:
            return [{"state": "failed", "message": describe_error(error), "images": [], "done": 0, "total": 0}]
        return list(self.jobs.follow(job, 0.02))

    def run(self, plan, user=None):
        """Run a job to its end; return its last view."""
        return self.views(plan, user)[-1]

    def images(self, plan, user=None):
        """Run a job to its end; return the paths of its images. Fails if it did not end well."""
        view = self.run(plan, user)
        assert view["state"] == "done", view["message"]
        return [self.gallery.find(user, image["id"]).path for image in view["images"]]
