"""Return what the page needs when it opens."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from ..backend import App
from ..backend.generate.generate_form import aspect_presets, form_defaults
from ..backend.generate.jobs import AXES
from ..backend.generate.prompt import prompt_presets
from .requests import User


def router(app: App) -> APIRouter:
    routes = APIRouter()

    @routes.get("/app/state")
    def state(user: User) -> dict[str, Any]:
        """Return the user, the loaded model, and what the form of the Generate tab offers."""
        base = app.generation.base
        return {
            "user": user,
            "owner": user or "me",
            "start": "generate" if app.workspace.is_used(user) else "train",
            "model": base.to_json(),
            "form": form_defaults(base),
            "aspects": aspect_presets(base.resolution),
            "axes": [{"label": label, "example": example} for label, (_, example) in AXES.items()],
            "prompt_presets": prompt_presets(),
        }

    return routes
