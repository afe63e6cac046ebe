"""Run replicas with Ray Serve. With `cluster.py` the only module that imports ray.

Serve starts the replicas, replaces those that die, and scales their number. `fleet serve` does not use its HTTP server,
which asks nobody for a key, and receives bodies without a limit before a program sees them.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import UserError, printable
from ..cluster import Needs
from ..generation_worker import GenerationOptions
from ..image_task import ImageTask
from ..run import mark
from ..store import open_store
from .http_server import build_server
from .messages import Event, PoolHealth, ReplicaLost
from .replica import Replica

DEPLOYMENT = "generate"
_ONGOING = 2  # batches of a replica: one that is generated, and one that waits for it
_UPSCALE_SECONDS, _DOWNSCALE_SECONDS = 10.0, 300.0  # that the need for more, or for fewer, has to last
_POLL_SECONDS = 1.0
_STOP_SECONDS = 5.0
_FACTS_SECONDS = 30.0
_SERVER_ONGOING = 2500  # requests: more than the dispatcher lets wait
_QUIET = {"log_level": "ERROR", "enable_access_log": False}


@dataclass(frozen=True)
class Scale:
    """How many replicas there are, and what each needs."""

    min_replicas: int
    max_replicas: int
    needs: Needs


class ServedReplica:
    """What Ray Serve runs in a process of its own."""

    def __init__(self, options: GenerationOptions):
        self._replica = Replica(options)
        info = self._replica.prepare()
        if info.problem:
            raise RuntimeError(f"{info.problem} {info.hint}")

    async def facts(self) -> dict[str, Any]:
        return self._replica.facts()

    async def generate(self, tasks: Sequence[ImageTask]) -> AsyncGenerator[Event, None]:
        events = self._replica.generate(tasks)
        try:
            async for event in events:
                yield event
        finally:
            await events.aclose()


def deployment(options: GenerationOptions, scale: Scale) -> Any:
    """Return the application of Ray Serve that runs the replicas."""
    from ray import serve

    number: dict[str, Any] = {"num_replicas": scale.min_replicas}
    if scale.max_replicas > scale.min_replicas:
        number = {
            "autoscaling_config": {
                "min_replicas": scale.min_replicas,
                "max_replicas": scale.max_replicas,
                "target_ongoing_requests": 1,
                "upscale_delay_s": _UPSCALE_SECONDS,
                "downscale_delay_s": _DOWNSCALE_SECONDS,
            }
        }
    needs = scale.needs
    resources = {"num_cpus": needs.cpus, "num_gpus": needs.gpus, "memory": int(needs.memory * 1e9)}
    decorate = serve.deployment(
        name=DEPLOYMENT,
        max_ongoing_requests=_ONGOING,
        ray_actor_options=resources,
        graceful_shutdown_timeout_s=_STOP_SECONDS,
        logging_config=_QUIET,
        **number,
    )
    return decorate(ServedReplica).bind(options)


class HandlePool:
    """The replicas of one application of Serve. `watch` must run meanwhile."""

    def __init__(self, handle: Any, application: str):
        self._handle, self._application = handle, application
        self._health = PoolHealth()
        self._closing = threading.Event()
        self.problem = ""  # why no replica starts

    def watch(self) -> None:
        """Look at the replicas now and, in a thread of its own, until `close`."""
        threading.Thread(target=self._watch, name="replicas", daemon=True).start()

    def close(self) -> None:
        self._closing.set()

    def health(self) -> PoolHealth:
        return self._health

    def slots(self) -> int:
        return _ONGOING * self._health.running

    async def generate(self, tasks: Sequence[ImageTask]) -> AsyncGenerator[Event, None]:
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        answers = self._handle.options(stream=True).generate.remote(list(tasks))
        has_ended = False
        try:
            async for event in answers:
                yield event
            has_ended = True
        except (RayError, RayServeException) as error:
            has_ended = True
            raise ReplicaLost(_short(error)) from error
        finally:
            if not has_ended:
                answers.cancel()

    def look(self) -> None:
        """Ask Serve how many replicas there are, and the first of them for facts of its model."""
        from ray import serve

        application = serve.status().applications.get(self._application)
        if application and str(application.status.value) == "DEPLOY_FAILED":
            details = [application.message, *(entry.message for entry in application.deployments.values())]
            self.problem = _cause("\n".join(details))
        deployed = application.deployments.get(DEPLOYMENT) if application else None
        states = deployed.replica_states if deployed else {}
        counts = {str(getattr(state, "value", state)): number for state, number in states.items()}
        running, model = counts.get("RUNNING", 0), self._health.model
        if running and not model:
            model = self._handle.facts.remote().result(timeout_s=_FACTS_SECONDS)
        self._health = PoolHealth(running, sum(counts.values()) - running, model)

    def _watch(self) -> None:
        while not self._closing.wait(_POLL_SECONDS):
            with suppress(Exception):  # the cluster's head may be away for a while
                self.look()


@contextmanager
def run_replicas(options: GenerationOptions, scale: Scale, is_own: bool) -> Iterator[HandlePool]:
    """Start replicas, wait for the first, and end them afterwards. is_own: the cluster ends then too.

    Raises: UserError if none can start.
    """
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.CRITICAL)  # what concerns the user is said here
    name = f"sdpersonal-{secrets.token_hex(4)}"  # several servers may share a cluster
    serve.start(proxy_location="Disabled", logging_config=_QUIET)
    target = serve.RunTarget(target=deployment(options, scale), name=name, route_prefix=None)
    pool = None
    try:
        [handle] = serve.run_many([target], wait_for_applications_running=False)
        pool = HandlePool(handle, name)
        while not pool.health().running:
            pool.look()
            if pool.problem:
                raise UserError(f"The replicas do not start: {pool.problem}", "Every machine needs the same versions.")
            time.sleep(_POLL_SECONDS / 4)
        pool.watch()
        yield pool
    finally:
        if pool is not None:
            pool.close()
        if not is_own:  # else it ends with its cluster, which does not take Serve's half minute
            _end_application(name)


def _end_application(name: str) -> None:
    """End an application of Serve, and Serve too unless others use it."""
    from ray import serve

    with suppress(Exception):  # the cluster may be gone already
        if set(serve.status().applications) <= {name}:
            serve.shutdown()
        else:
            serve.delete(name)


def application(args: Mapping[str, Any]) -> Any:
    """Build the server and its replicas as one application, for a configuration file of Serve and for KubeRay.

    args: storage, base, keys (a file, which is needed), min_replicas, max_replicas, cpus, gpus, memory (GB). The server
    is behind Serve's HTTP server then, which does not limit bodies: what stands before it must.
    """
    from ray import serve

    from .run import PATIENCE, read_keys

    store = open_store(str(args["storage"]))
    keys = read_keys(Path(args["keys"]))
    needs = Needs(float(args.get("cpus", 1)), float(args.get("gpus", 0)), float(args.get("memory", 1.5)))
    smallest = int(args.get("min_replicas", 1))
    scale = Scale(smallest, int(args.get("max_replicas", smallest)), needs)
    worker = GenerationOptions(store.uri, mark(store), patience=PATIENCE, base=args.get("base"))
    replicas = deployment(needs.worker_options(worker), scale)

    def build() -> Any:
        name = serve.get_replica_context().app_name
        pool = HandlePool(serve.get_deployment_handle(DEPLOYMENT, name), name)
        pool.watch()
        return build_server(pool, store, keys)

    resources = {"num_cpus": 0}
    decorate = serve.deployment(
        name="server", max_ongoing_requests=_SERVER_ONGOING, ray_actor_options=resources, logging_config=_QUIET
    )
    return decorate(serve.ingress(build)()).bind(replicas)


def _short(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return printable(lines[-1] if lines else type(error).__name__, 200)


def _cause(text: str) -> str:
    """Return the line with the error of a replica's constructor, of Serve's message with its traceback."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line.partition(": ")[2] for line in lines if line.startswith(("RuntimeError: ", "ray.exceptions."))]
    return printable((errors or lines or ["unknown"])[-1], 400)
