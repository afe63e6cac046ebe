"""What the page needs when it opens."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from ..backend import App
from ..backend.generate.gallery import MAX_IDS
from ..backend.generate.generate_form import aspect_presets, form_defaults, form_limits
from ..backend.generate.jobs import AXES
from ..backend.generate.prompt import REGION_CHOICES, prompt_presets
from ..backend.user_jobs import MAX_WAITING
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
            "fixed_model": app.fixed_base,
            "start": "generate" if app.workspace.is_used(user) else "train",
            "model": base.to_json(),
            "form": form_defaults(base),
            "aspects": aspect_presets(base.resolution),
            "axes": [{"label": label, "example": example} for label, (_, example) in AXES.items()],
            "regions": list(REGION_CHOICES),
            "prompt_presets": prompt_presets(),
            "limits": form_limits() | {"waiting_jobs": MAX_WAITING, "gallery_ids": MAX_IDS},
        }

    return routes
