"""Answer requests of the Models tab: what is loaded, what can be chosen, and switching."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field

from ..backend import App
from ..backend.models.picker import models_page
from ..backend.models.switching import ModelSwitcher
from .requests import Body, User


class SwitchBody(Body):
    """agreed: to the download that the question of a first answer was about."""

    name: Annotated[str, Field(max_length=200)]
    agreed: bool = False


def router(app: App) -> APIRouter:
    routes = APIRouter()
    switcher = ModelSwitcher(app)

    @routes.get("/app/models")
    def models(user: User) -> dict[str, Any]:
        """Return the loaded model, those on offer, and the machine."""
        return models_page(app) | switcher.status.as_json()

    @routes.post("/app/models/switch")
    def switch(user: User, body: SwitchBody) -> dict[str, Any]:
        """Begin to load another model, or ask before gigabytes are downloaded; events tell how it goes on."""
        return switcher.start(body.name, body.agreed)

    return routes
