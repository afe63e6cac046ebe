"""Run the command `fleet serve`: generate images for many people, on many cores, cards or machines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from ...config import Number, SettingsBase, WholeNumber
from ..terminal import say

_PerReplica = Annotated[float, Number, Field(ge=0, le=1000)]
_Count = Annotated[int, WholeNumber, Field(ge=1, le=10_000)]


class FleetServeArgs(SettingsBase):
    """Generate images for programs and for the app, over HTTP, on this machine or on a cluster of Ray."""

    base: str | None = None
    """Model: tiny, sd15, sd21, sdxl, a Hub id, folder or file, the same on every machine. Default: sd15 on CUDA, else
    tiny."""
    safety_checker: bool = True
    """Hide images that the model's safety checker flags, if it has one."""
    host: Annotated[str, Field(pattern=r"^[A-Za-z0-9.:-]{1,253}$")] = "127.0.0.1"
    """Address to listen on; any other than this machine's own needs --keys."""
    port: Annotated[int, WholeNumber, Field(ge=1024, le=65535)] = 8765
    """Port to listen on."""
    keys: Path | None = None
    """File with a line NAME:KEY for each user, who sends `Authorization: Bearer KEY`."""
    storage: str = "runs/fleet"
    """Folder or URI, such as s3://bucket/fleet, for the concepts that users upload; every machine must reach it."""
    address: str | None = None
    """Address of a Ray cluster, HOST:6379 or auto. Default: RAY_ADDRESS, else this machine alone."""
    min_replicas: _Count = 1
    """How many copies of the model are always loaded."""
    max_replicas: _Count | None = None
    """How many copies are loaded when many images wait. Default: --min-replicas."""
    cpus_per_replica: _PerReplica | None = None
    """Cores of a replica. Default: 1; with a card up to 4."""
    gpus_per_replica: _PerReplica | None = None
    """Cards of a replica; 0.5 lets two share a card. Default: 1 where there are cards."""
    memory_per_replica: _PerReplica = 1.5
    """GB of main memory to reckon with for a replica."""


def serve(settings: FleetServeArgs) -> int:
    from ...fleet.cluster import Needs, check_installed

    check_installed(serve=True)
    from ...app.server.connections import BoundedProtocol
    from ...fleet.serving.run import ServeOptions, read_keys, serve_fleet

    options = ServeOptions(
        settings.storage,
        settings.base,
        settings.safety_checker,
        settings.host,
        settings.port,
        read_keys(settings.keys) if settings.keys else {},
        settings.address,
        settings.min_replicas,
        settings.max_replicas or settings.min_replicas,
        Needs(settings.cpus_per_replica, settings.gpus_per_replica, settings.memory_per_replica),
    )
    serve_fleet(options, BoundedProtocol, say)
    return 0


COMMANDS = {"fleet serve": (serve, FleetServeArgs)}
