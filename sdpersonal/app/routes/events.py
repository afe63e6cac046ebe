"""Send the stream of events to an open page."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from ..backend import App
from ..backend.events import CLOSING
from .requests import User

_KEEP_ALIVE_SECONDS = 20.0  # between comments that show that the connection is alive


def router(app: App) -> APIRouter:
    routes = APIRouter()

    @routes.get("/app/events")
    async def events(user: User) -> StreamingResponse:
        """Send server-sent events until the page closes."""
        return StreamingResponse(
            _stream(app, user), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
        )

    return routes


async def _stream(app: App, user: str | None) -> AsyncIterator[str]:
    with app.events.subscribe(user) as subscription:
        yield "event: hello\ndata: {}\n\n"
        while True:
            for kind, data in await subscription.next(_KEEP_ALIVE_SECONDS) or [("", None)]:
                yield f"event: {kind}\ndata: {json.dumps(data)}\n\n" if kind else ": alive\n\n"
                if kind == CLOSING:
                    return  # the server would wait for the stream otherwise
