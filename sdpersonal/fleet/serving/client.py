"""Ask a fleet's server for images, from another program: HTTP with the standard library."""

from __future__ import annotations

import base64
import binascii
import json
import os
import ssl
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ... import storage
from ...errors import UserError, printable
from ...models.model_info import ModelInfo
from ..image_task import ImageTask
from .forms import form_body

KEY_VARIABLE = "SDPERSONAL_FLEET_KEY"
_CONNECT_SECONDS, _SILENCE_SECONDS = 10.0, 60.0  # the server says something every second
_MAX_ANSWER = 1 << 20  # bytes of JSON
_MAX_EVENT = 64 << 20  # bytes of an event: an image of 2048 x 2048 pixels, four times as large, takes less
_MAX_UPLOADS = 3  # rounds, in which the fleet may miss other concepts


def read_key(file: Path | None) -> str:
    """Return the key for a fleet: the file's only line, else that of the environment; "" for none. Raises UserError."""
    if file is None:
        return os.environ.get(KEY_VARIABLE, "").strip()
    try:
        key = storage.read_bytes(file, 1000).decode("ascii").strip()
    except UnicodeDecodeError:
        key = ""
    if not key or not key.isprintable() or " " in key:
        raise UserError(f"{printable(str(file))} has no key.", "It needs one line, the key alone.")
    return key


class FleetClient:
    """One fleet, for all threads of a program. url: http://HOST:PORT; key: of the user. Raises UserError."""

    def __init__(self, url: str, key: str = ""):
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1 or parts.path not in ("", "/"):
            raise UserError(
                f"--fleet {printable(url, 100)} is no address of a fleet.", "For example http://127.0.0.1:8765."
            )
        self.url, self._key = url.rstrip("/"), key
        self._host, self._port, self._is_tls = parts.hostname, port, parts.scheme == "https"
        self._upload_lock = threading.Lock()  # the fleet takes one upload of a user at a time

    def model(self) -> ModelInfo:
        """Return facts of the model that the fleet generates with. Raises UserError."""
        with self._ask("GET", "/health") as response:
            content = self._json(response)
        if "version" not in content:  # which only users are told
            raise UserError(
                f"The fleet at {self.url} does not know your key, or wants one.",
                f"Give --fleet-key FILE, or set {KEY_VARIABLE}.",
            )
        facts = content.get("model")
        if not facts or not isinstance(facts, dict):
            raise UserError(f"The fleet at {self.url} has not loaded its model yet.", "Try again in a minute.")
        return ModelInfo.from_facts(facts)

    def upload(self, name: str, data: bytes) -> None:
        """Upload a concept's file."""
        with self._upload_lock, self._ask("PUT", f"/concepts/{name}", data) as response:
            self._json(response)

    def generate(
        self,
        tasks: Sequence[ImageTask],
        files: Mapping[str, bytes],
        concept_file: Callable[[str], bytes],
        cancelled: Callable[[], bool],
    ) -> Generator[dict[str, Any], None, None]:
        """Yield the events of tasks as the server has them, images as bytes; closing the iterator ends the work.

        files: initial images by sha256; concept_file: returns the file of a concept that the fleet does not have yet.
        """
        body = form_body(tasks, files)
        for _ in range(_MAX_UPLOADS):
            with self._ask("POST", "/generate", body) as response:
                if response.status != 409:
                    yield from self._events(response, cancelled)
                    return
                missing = self._content(response).get("missing")
            for name in missing if isinstance(missing, list) else []:
                self.upload(str(name), concept_file(str(name)))
        raise UserError(f"The fleet at {self.url} loses concepts that it was sent.", "Look at its storage.")

    # --- internals ----------------------------------------------------------------------------------------------------

    @contextmanager
    def _ask(self, method: str, path: str, body: bytes | None = None) -> Iterator[HTTPResponse]:
        if self._is_tls:
            context = ssl.create_default_context()
            connection: HTTPConnection = HTTPSConnection(
                self._host, self._port, timeout=_CONNECT_SECONDS, context=context
            )
        else:
            connection = HTTPConnection(self._host, self._port, timeout=_CONNECT_SECONDS)
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        try:
            with self._in_words():
                connection.connect()
                connection.sock.settimeout(_SILENCE_SECONDS)
                connection.request(method, path, body, headers)
                response = connection.getresponse()
            yield response
        finally:
            connection.close()

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        try:
            yield
        except (OSError, HTTPException, ValueError) as error:
            reason = printable(getattr(error, "strerror", None) or str(error) or type(error).__name__, 200)
            raise UserError(f"The fleet at {self.url} does not answer: {reason}.", "Try again when it does.") from error

    def _content(self, response: HTTPResponse) -> dict[str, Any]:
        with self._in_words():
            content = json.loads(response.read(_MAX_ANSWER))
        return content if isinstance(content, dict) else {}

    def _json(self, response: HTTPResponse) -> dict[str, Any]:
        """Return the answer. Raises UserError if it is a refusal."""
        content = self._content(response)
        if response.status != 200:
            message, hint = content.get("message"), content.get("hint")
            raise UserError(
                f"The fleet refused: {printable(str(message or response.status), 500)}", printable(str(hint or ""), 300)
            )
        return content

    def _events(self, response: HTTPResponse, cancelled: Callable[[], bool]) -> Iterator[dict[str, Any]]:
        if response.status != 200:
            self._json(response)
        while not cancelled():
            with self._in_words():
                line = response.readline(_MAX_EVENT)
                if not line.endswith(b"\n"):
                    raise ValueError("the answer ends in the middle")
                event = json.loads(line)
                if not isinstance(event, dict):
                    raise ValueError("an event is no object")
                _decode(event)
            yield event
            if event.get("event") in ("done", "error"):
                return


def _decode(event: dict[str, Any]) -> None:
    """Replace base64 by bytes. Raises ValueError."""
    for name in ("png", "jpeg"):
        if name in event:
            try:
                event[name] = base64.b64decode(event[name], validate=True)
            except (TypeError, binascii.Error):
                raise ValueError("an image is no base64") from None
