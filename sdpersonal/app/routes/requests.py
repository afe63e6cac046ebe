"""Read requests of the page and word its errors: each is {"error": text, "hint": text, "field": name or null}."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

from ...errors import FieldError, UserError
from ..backend.error_text import describe_error, labelled

USER_KEY = "sdpersonal.user"  # the user's name in the ASGI scope, "" if nobody logs in
# The Content-Security-Policy of an answer that is an HTML document of its own, such as a training's report: its styles,
# scripts and images are inside it, and it runs as a stranger to the app. A route sets it as a header; all other answers
# get the page's policy.
DOCUMENT_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; sandbox allow-scripts allow-popups allow-downloads"
)


class Body(BaseModel):
    """A JSON body that the page sends: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _user(request: Request) -> str | None:
    return request.scope.get(USER_KEY) or None


User = Annotated[str | None, Depends(_user)]
"""Parameter of a route: the logged-in user's name; None if nobody logs in."""


def error_content(error: Exception) -> dict[str, Any]:
    """Return an error as the page reads it; internals are only logged."""
    if isinstance(error, UserError):
        worded = labelled(error)
        field = error.field if isinstance(error, FieldError) else None
        return {"error": worded.message, "hint": worded.hint, "field": field}
    return {"error": describe_error(error), "hint": "", "field": None}


def add_error_handlers(app: FastAPI) -> None:
    """Answer errors of the page's routes in words."""

    async def on_user_error(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse(error_content(error), 400)

    async def on_invalid_body(request: Request, error: Exception) -> JSONResponse:
        problems = error.errors() if isinstance(error, RequestValidationError) else []
        place = ".".join(str(part) for part in problems[0]["loc"][1:]) if problems else ""
        text = f"The page sent {place or 'something'} that is not allowed: {problems[0]['msg']}." if problems else ""
        return JSONResponse({"error": text or "That is not allowed.", "hint": "", "field": place or None}, 422)

    async def on_failure(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse(error_content(error), 500)

    app.add_exception_handler(UserError, on_user_error)
    app.add_exception_handler(RequestValidationError, on_invalid_body)
    app.add_exception_handler(Exception, on_failure)
