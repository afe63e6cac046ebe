"""Serve a fleet, from settings to a server that listens."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn

from ...errors import UserError, printable
from ...storage.user_file import read_user_file
from ..cluster import Needs, check_installed, check_room, connect, fill_in, local_cpus, nodes_of
from ..generation_worker import GenerationOptions
from ..run import mark, sigterm_as_ctrl_c
from ..store import open_store
from .http_server import build_server
from .ray_serve import Scale, run_replicas

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_BACKLOG = 128
_END_SECONDS = 3  # that the last answers have when the server closes
_MIN_KEY = 24  # characters: there is no delay after a wrong one, so it must not be guessed
PATIENCE = 30.0  # seconds for which a storage that fails is tried again; then another replica tries


@dataclass(frozen=True)
class ServeOptions:
    """uri: of the storage for concepts; base: name of the model, None for each machine's default; safety: whether its
    safety checker runs; host, port: where the server listens; keys: by user's name, {} for this machine only; address:
    of a cluster, None for this machine; min_replicas, max_replicas: how many; needs: of each."""

    uri: str
    base: str | None = None
    safety: bool = True
    host: str = "127.0.0.1"
    port: int = 8765
    keys: Mapping[str, str] = field(default_factory=dict, repr=False)
    address: str | None = None
    min_replicas: int = 1
    max_replicas: int = 1
    needs: Needs = field(default_factory=Needs)


def serve_fleet(options: ServeOptions, protocol: type[Any], say: Callable[[str], None] = print) -> None:
    """Serve until interrupted. protocol: uvicorn's class for connections. Raises UserError."""
    check_options(options)
    check_installed(serve=True)
    store = open_store(options.uri)
    marker = mark(store)
    with closing(_listen(options.host, options.port)) as listener:
        cpus = local_cpus(options.max_replicas, options.needs.cpus)
        is_own = not (options.address or os.environ.get("RAY_ADDRESS"))
        with sigterm_as_ctrl_c(), connect(options.address, cpus) as ray:
            needs = fill_in(options.needs, nodes_of(ray))
            if is_own:
                check_room(needs, nodes_of(ray), "--...-per-replica")
            worker = GenerationOptions(store.uri, marker, patience=PATIENCE, base=options.base, safety=options.safety)
            scale = Scale(options.min_replicas, options.max_replicas, needs)
            say("Loading the model …")
            with suppress(KeyboardInterrupt), run_replicas(needs.worker_options(worker), scale, is_own) as pool:
                say(f"http://{options.host}:{options.port} takes requests; Ctrl-C ends it.")
                config = uvicorn.Config(
                    build_server(pool, store, options.keys),
                    http=protocol,
                    log_config=None,
                    access_log=False,
                    server_header=False,
                    proxy_headers=False,
                    timeout_graceful_shutdown=_END_SECONDS,
                )
                logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # it reports each stream that it ends
                uvicorn.Server(config).run(sockets=[listener])


def read_keys(path: Path) -> dict[str, str]:
    """Return the users' keys by name. Raises UserError, also if two users have the same key."""
    hint = f"A key has at least {_MIN_KEY} characters: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
    keys = {name: key.strip() for name, key in read_user_file(path, "key", _MIN_KEY, hint).items()}
    if len(set(keys.values())) < len(keys):
        raise UserError(f"Two users of {printable(str(path))} have the same key.", "Give each a key of their own.")
    return keys


def check_options(options: ServeOptions) -> None:
    """Raise UserError for options that do not fit together."""
    if not options.keys and options.host not in LOOPBACK:
        raise UserError(
            f"--host {printable(options.host)} lets whoever reaches this machine use the fleet.",
            "Give --keys FILE too, with lines NAME:KEY.",
        )
    if options.max_replicas < options.min_replicas:
        raise UserError(
            f"--max-replicas is {options.max_replicas}, fewer than --min-replicas, {options.min_replicas}.",
            "Raise --max-replicas.",
        )


def _listen(host: str, port: int) -> socket.socket:
    """Take the port before anything is loaded. Raises UserError if it is taken, or the host is not this machine's."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError:
        raise UserError(f"--host {printable(host)} is no address of this machine.", "Use 0.0.0.0 for all.") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        problem = printable((error.strerror or str(error)).lower(), 100)
        raise UserError(f"{printable(host)}:{port} cannot be used: {problem}.", "Choose another --port.") from None
    return listener
