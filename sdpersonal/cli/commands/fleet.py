"""Run the commands `fleet ...`: many trainings, and many requests for images, on many cores, cards or machines."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from pydantic import Field

from ...config import (
    DreamboothSettings,
    GenerateRequest,
    Number,
    PromptText,
    SettingsBase,
    TextualInversionSettings,
    TrainingSettings,
    WholeNumber,
)
from ...display.progress import Progress, ProgressBar
from ...display.units import format_duration
from ...errors import Interrupted, UserError, printable
from .. import fleet_list, fleet_requests
from ..parsing import parse_settings
from ..terminal import print_json, say
from .generate import GenerationArgs, request_of
from .train import settings_parser

if TYPE_CHECKING:
    from ...fleet.driver_loop import Summary
    from ...fleet.generation_driver import GenerationDriver, TrackedRequest
    from ...fleet.jobs import Job, JobState, JobView
    from ...fleet.run import FleetOptions
    from ...fleet.training_driver import Tracked

_PIPED_WIDTH = 160  # columns
_MAX_TABLE = 50  # requests in the table; of a longer list the failed ones
_MAX_FILES = 4  # of a request, in the table
_JOB_COLUMNS = ("concept", "state", "time", "attempts", "", "job")
_REQUEST_COLUMNS = ("line", "state", "user", "images", "")
_PerWorker = Annotated[float, Number, Field(ge=0, le=1000)]
_EPILOG = "All flags of `sdpersonal train` are taken too, and hold for every concept, for example --class and --steps."


class ClusterArgs(SettingsBase):
    """Where a fleet works."""

    storage: str = "runs/fleet"
    """Folder or URI, such as s3://bucket/fleet, for what its machines exchange, and for the page; every machine must
    reach it."""
    address: str | None = None
    """Address of a Ray cluster, HOST:6379 or auto. Default: RAY_ADDRESS, else this machine alone."""
    workers: Annotated[int, WholeNumber, Field(ge=1, le=10_000)] | None = None
    """How many workers run at once, at most. Default: as many as there is room for."""
    cpus_per_worker: _PerWorker | None = None
    """Cores of a worker. Default: 1; with a card up to 4."""
    gpus_per_worker: _PerWorker | None = None
    """Cards of a worker; 0.5 lets two share a card. Default: 1 where there are cards."""
    memory_per_worker: _PerWorker = 1.5
    """GB of main memory to reckon with for a worker."""


class FleetTrainArgs(ClusterArgs):
    """Train many concepts at once, on this machine's cores or cards or on a cluster of Ray."""

    list_: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(name="list", metavar="LIST")]
    """Folder with a folder of photos for each concept, or a JSON list as for --concepts-list."""
    method: Literal["lora", "pivotal", "full", "textual-inversion"] | None = None
    """Method of all trainings. Default: lora."""
    owner: str = "me"
    """Owner of the concepts of a folder of photo folders; folders in folders name their own."""
    library: Annotated[Path, tyro.conf.arg(aliases=("--out",))] = Path("concepts")
    """Folder of your concepts."""


class FleetGenerateArgs(ClusterArgs, GenerationArgs, GenerateRequest):
    """Generate the images of many requests at once, on this machine's cores or cards or on a cluster of Ray."""

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """File with a request a line, - for standard input: a prompt, or a JSON object with settings of its own and, if
    you like, "user" and "library"."""
    out: Annotated[Path, tyro.conf.arg(aliases=("--to",))] = Path("outputs")
    """Folder for the images, with a subfolder for each day."""
    prompt: PromptText = ""
    """Prompt of lines that have none."""


class FleetStatusArgs(SettingsBase):
    """Show the trainings of a fleet."""

    storage: str = "runs/fleet"
    """Storage of the fleet."""
    json_: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print JSON."""


class FleetJobsArgs(SettingsBase):
    """Choose trainings of a fleet."""

    jobs: Annotated[tuple[str, ...], Field(min_length=1), tyro.conf.Positional, tyro.conf.arg(metavar="JOBS")]
    """Tokens or job IDs, as `fleet status` shows them; `all` for all that are not over."""
    storage: str = "runs/fleet"
    """Storage of the fleet."""


class FleetCancelArgs(FleetJobsArgs):
    """Cancel trainings of a fleet; a running one ends after its step."""


class FleetRetryArgs(FleetJobsArgs):
    """Let failed or cancelled trainings be tried again by the next `fleet train`; `all` for all of them."""


@dataclass(frozen=True)
class FleetTraining:
    """The command line of `fleet train`, read."""

    args: FleetTrainArgs
    concepts: tuple[TrainingSettings, ...]


def parse_fleet_training(argv: Sequence[str], prog: str) -> FleetTraining:
    """Parse the fleet's flags and, for each concept of the list, the trainer's. Raises UserError."""
    if any(word in ("-h", "--help") for word in argv):
        parse_settings(FleetTrainArgs, ["--help"], prog, f"{FleetTrainArgs.__doc__}\n\n{_EPILOG}")
    fleet, training = fleet_list.split_flags(argv)
    args = parse_settings(FleetTrainArgs, fleet, prog)
    settings = TextualInversionSettings if args.method == "textual-inversion" else DreamboothSettings
    return FleetTraining(args, fleet_list.read_list(args.list_, args.owner, training, settings_parser(settings, prog)))


def train(training: FleetTraining) -> int:
    from ...fleet.run import page_of, train_fleet

    args = training.args
    options = _fleet_options(args)
    say(f"{len(training.concepts)} concepts. Page: {printable(page_of(args.storage), 300)}")
    try:
        with ProgressBar("concepts", transient=True) as bar:
            jobs, code = train_fleet(training.concepts, args.library, options, say, lambda summary: _show(bar, summary))
    except KeyboardInterrupt:
        raise Interrupted("Stopped. The same command again goes on from the newest checkpoints.") from None
    _print_table([_tracked_row(job) for job in jobs])
    return code


def _fleet_options(args: ClusterArgs) -> FleetOptions:
    from ...fleet.cluster import Needs
    from ...fleet.run import FleetOptions

    needs = Needs(args.cpus_per_worker, args.gpus_per_worker, args.memory_per_worker)
    return FleetOptions(args.storage, args.address, args.workers, needs)


def generate(args: FleetGenerateArgs) -> int:
    from ...fleet.generation_run import ImageOptions, generate_fleet
    from ...fleet.run import page_of

    listed = fleet_requests.read_requests(args.file, request_of(args), args.library)
    options = ImageOptions(args.out, args.base, args.safety_checker, args.private, args.wildcards)
    say(f"Page: {printable(page_of(args.storage), 300)}")
    try:
        with ProgressBar("images", transient=True) as bar:
            driver, code = generate_fleet(
                listed, options, _fleet_options(args), say, lambda summary: _show(bar, summary)
            )
    except KeyboardInterrupt:
        raise Interrupted("Stopped. The same command again makes what is missing.") from None
    rows = [(driver.state_of(request) == "failed", _request_row(driver, request)) for request in driver.requests]
    shown = rows if len(rows) <= _MAX_TABLE else [row for row in rows if row[0]][:_MAX_TABLE]
    _print_table([row for _, row in shown], _REQUEST_COLUMNS)
    summary = driver.summary()
    say(f"{summary.done} of {summary.total} images are in {printable(str(args.out), 300)}.")
    return code


def _show(bar: ProgressBar, summary: Summary) -> None:
    left = math.inf if summary.seconds_left is None else summary.seconds_left
    bar.show(Progress(summary.over, summary.total, left))


def show_status(settings: FleetStatusArgs) -> int:
    from ...fleet.run import status

    jobs = status(settings.storage)
    if settings.json_:
        print_json([{"token": token} | asdict(view) for token, view in jobs])
    else:
        _print_table([_view_row(token, view) for token, view in jobs])
    return 0


def cancel(settings: FleetCancelArgs) -> int:
    from ...fleet.jobs import JobState

    over = (JobState.DONE, JobState.TRAINED, JobState.FAILED, JobState.CANCELLED)
    for job in _selected(settings, lambda state: state not in over):
        if job.view().state in (JobState.DONE, JobState.TRAINED):
            raise UserError(f"{job.token} is trained already.", f"sdpersonal concepts remove '{job.token}'")
        job.cancel()
        say(f"cancelled: {job.token}")
    return 0


def retry(settings: FleetRetryArgs) -> int:
    from ...fleet.jobs import JobState

    again = (JobState.FAILED, JobState.CANCELLED)
    for job in _selected(settings, lambda state: state in again):
        if job.view().state not in again:
            raise UserError(f"{job.token} has neither failed nor been cancelled.")
        job.retry()
        say(f"waiting again: {job.token}")
    return 0


def _selected(settings: FleetJobsArgs, is_meant: Callable[[JobState], bool]) -> list[Job]:
    """Return the jobs that are named; for `all` those in a state that is meant."""
    from ...fleet.run import all_in, select

    if settings.jobs == ("all",):
        return [job for job in all_in(settings.storage) if is_meant(job.view().state)]
    return select(settings.storage, settings.jobs)


# --- tables -----------------------------------------------------------------------------------------------------------


def _tracked_row(job: Tracked) -> list[str]:
    note = job.failure.message if job.failure else ""
    seconds = format_duration(job.result.seconds) if job.result else ""
    token = job.result.token if job.result and job.result.token else job.token
    return [token, str(job.state), seconds, str(job.attempts or ""), note]


def _view_row(token: str, view: JobView) -> list[str]:
    note = view.failure.message if view.failure else ""
    seconds = format_duration(view.result.seconds) if view.result else ""
    if view.state == "running" and view.last:
        note = f"step {view.last.step} of {view.last.steps or '?'} on {view.last.node or '?'}, {view.last.time}"
    shown = view.result.token if view.result and view.result.token else token
    return [shown, str(view.state), seconds, str(view.attempts or ""), note, view.id]


def _request_row(driver: GenerationDriver, request: TrackedRequest) -> list[str]:
    paths = [image.path for image_id in request.images if (image := driver.images[image_id]).path]
    files = ", ".join(f"{path.parent.name}/{path.name}" for path in paths[:_MAX_FILES])
    files += f" and {len(paths) - _MAX_FILES} more" if len(paths) > _MAX_FILES else ""
    state = driver.state_of(request)
    done = f"{driver.num_done(request)} of {len(request.images)}"
    return [str(request.line), state, request.user, done, request.failure.message if request.failure else files]


def _print_table(rows: Sequence[Sequence[str]], columns: Sequence[str] = _JOB_COLUMNS) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    names = columns[: len(rows[0]) if rows else 0]
    table = Table(*names, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        style = {"failed": "red", "done": "green"}.get(row[1], "")
        # Text, not str: in a string rich would read [brackets] as markup.
        cells = [Text(printable(cell, 500), style if number == 1 else "") for number, cell in enumerate(row)]
        table.add_row(*cells)
    Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH).print(table)


COMMANDS = {
    "fleet train": (train, FleetTrainArgs),
    "fleet generate": (generate, FleetGenerateArgs),
    "fleet status": (show_status, FleetStatusArgs),
    "fleet cancel": (cancel, FleetCancelArgs),
    "fleet retry": (retry, FleetRetryArgs),
}
