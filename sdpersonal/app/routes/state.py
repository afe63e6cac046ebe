"""What the page needs when it opens."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from ..backend import App
from .requests import User


def router(app: App) -> APIRouter:
    routes = APIRouter()

    @routes.get("/app/state")
    def state(user: User) -> dict[str, Any]:
        """Return the user, the loaded model and the defaults of the form."""
        model = app.generation.base.to_json()
        return {"user": user, "owner": user or "me", "fixed_model": app.fixed_base, "model": model}

    return routes
