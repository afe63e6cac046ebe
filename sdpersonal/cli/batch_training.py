"""`--concepts-list FILE`: train several concepts, one after the other, each with its own run folder.

The file has the format of DreamBooth scripts for several subjects, a JSON list of objects:

    [{"instance_prompt": "a photo of sks dog", "class_prompt": "a photo of dog", "instance_data_dir": "dog"},
     {"token": "<me/duck>", "class": "toy duck", "photos": "duck"}]

An entry overrides the rest of the command line. It cannot name a path to write to.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import storage
from ..config import TrainingSettings
from ..config.text_checks import check_path, is_blank
from ..errors import DiskFull, Interrupted, UserError, printable
from ..prompts import Token
from ..training.run_dir import RESULT_FILE, RUNS_FOLDER, has_checkpoint, read_json, to_number, to_text
from .diffusers_compat.argv import ArgvItem, join_argv, split_argv

MAX_BYTES = 1 << 20
MAX_CONCEPTS = 100
KEYS = frozenset(
    (
        *("instance_prompt", "class_prompt", "instance_data_dir", "class_data_dir"),
        *("train_data_dir", "placeholder_token", "initializer_token", "learnable_property"),
        *("photos", "token", "class", "init", "kind", "prior", "steps", "max_train_steps", "num_class_images"),
    )
)
Train = Callable[[TrainingSettings, Callable[[str], None]], object]


@dataclass(frozen=True)
class BatchSettings:
    """The settings of several trainings, each with its own run folder and token; resume: continue started runs."""

    concepts: tuple[TrainingSettings, ...]
    resume: bool


def take_list_flag(argv: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Split off `--concepts-list`: its file, if given, and the other arguments. Raises UserError without a name."""
    items = split_argv(argv)
    chosen = [item for item in items if item.name == "concepts_list"]
    rest = join_argv([item for item in items if item.name != "concepts_list"])
    if not chosen:
        return None, rest
    if len(chosen) > 1 or len(chosen[0].values) != 1 or not chosen[0].values[0]:
        raise UserError("--concepts-list takes one file.", "For example --concepts-list concepts_list.json.")
    check_path(chosen[0].values[0], "--concepts-list")
    return Path(chosen[0].values[0]), rest


def read_batch(
    path: Path,
    argv: Sequence[str],
    parse: Callable[[list[str]], TrainingSettings],
    entries: Sequence[dict[str, object]] | None = None,
) -> BatchSettings:
    """Read every training of the list, all validated before the first begins. parse: argv of one to its settings.

    entries: the list's, if it is no file. Raises UserError, naming the entry, if the file or an entry cannot be used.
    """
    common = split_argv(argv)
    # diffusers' value for it; each concept, not all together, decides whether it has a checkpoint to resume from.
    resume = any(item.name == "resume" or _is_resume_latest(item) for item in common)
    common = [item for item in common if item.name != "resume" and not _is_resume_latest(item)]
    concepts = []
    for number, entry in enumerate(read_entries(path) if entries is None else entries, 1):
        with _name_entry_in_errors(number, path):
            concepts.append(parse(join_argv(_merge_items(common, _to_argv_items(entry)))))
    seen: dict[str, int] = {}
    for second, concept in enumerate(concepts):
        if (first := seen.setdefault(Token.parse(concept.token).slug, second)) != second:
            raise UserError(
                f"Entries {first + 1} and {second + 1} of {printable(str(path))} are both {concepts[first].token}.",
                'Give them a "token" each.',
            )
    return BatchSettings(tuple(_with_run_folder(concept, path) for concept in concepts), resume)


def train_all(batch: BatchSettings, train: Train, say: Callable[[str], None]) -> int:
    """Train every concept and print a summary. A failure does not stop the others; a full disk and Ctrl-C do.

    Returns 0, or the exit code of the first failure. Raises Interrupted, DiskFull.
    """
    outcomes: list[str] = []
    code = 0
    try:
        for number, settings in enumerate(batch.concepts, 1):
            say(f"\n{number} of {len(batch.concepts)}: {settings.token}")
            failed, outcome = _train_one(settings, batch.resume, train, say)
            outcomes.append(outcome)
            code = code or failed
    finally:
        waiting = [f"{concept.token}  not started or not finished" for concept in batch.concepts[len(outcomes) :]]
        say("\n" + "\n".join(outcomes + waiting))
    return code


def _train_one(settings: TrainingSettings, resume: bool, train: Train, say: Callable[[str], None]) -> tuple[int, str]:
    """Train one concept. Returns (exit code, a line of the summary)."""
    run = settings.run or Path()  # _with_run_folder has set it
    if resume and (done := _finished_token(run, settings)):
        say("It is trained already.")
        return 0, f"{done}  done before, {printable(str(run))}"
    began = time.monotonic()
    try:
        result = train(settings.model_copy(update={"resume": resume and has_checkpoint(run)}), say)
    except (Interrupted, DiskFull):
        raise
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code, f"{settings.token}  failed: {error.message}"
    except Exception as error:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise  # the other processes are still training this concept, not the next
        traceback.print_exc()
        return 1, f"{settings.token}  failed: {type(error).__name__}: {printable(str(error))}"
    token = getattr(result, "token", settings.token)
    return 0, f"{token}  done in {time.monotonic() - began:.0f} s, {printable(str(run))}"


def read_entries(path: Path, max_bytes: int = MAX_BYTES, max_concepts: int = MAX_CONCEPTS) -> list[dict[str, object]]:
    """Read the entries of a list. Raises UserError if the file is none, or larger than allowed."""
    shown_path = printable(str(path))
    try:
        content = json.loads(storage.read_bytes(path, max_bytes))  # UTF-8, or UTF-16 as PowerShell writes it
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise UserError(f"{shown_path} is not JSON: {error.msg} at {where}.", _example_json()) from None
    except UnicodeDecodeError:
        raise UserError(f"{shown_path} is not UTF-8 text.", "Save it as UTF-8.") from None
    except (ValueError, RecursionError):
        raise UserError(f"{shown_path} is not JSON.", _example_json()) from None
    if not isinstance(content, list) or not content or not all(isinstance(entry, dict) for entry in content):
        raise UserError(f"{shown_path} is not a list of concepts.", _example_json())
    if len(content) > max_concepts:
        raise UserError(f"{shown_path} lists {len(content):,} concepts; {max_concepts:,} are the most at once.")
    return content


def _example_json() -> str:
    return 'For example: [{"instance_prompt": "a photo of sks dog", "instance_data_dir": "dog"}, ...].'


def _to_argv_items(entry: dict[str, object]) -> list[ArgvItem]:
    items = []
    for key, value in entry.items():
        name = key.replace("-", "_")
        if name not in KEYS:
            raise UserError(f"Unknown key {printable(key, 40)!r}.", f"Known keys: {', '.join(sorted(KEYS))}.")
        if isinstance(value, bool) or not isinstance(value, str | int | float | None):
            raise UserError(f"{name!r} must be text or a number.")
        if isinstance(value, str) and is_blank(value):
            raise UserError(f"{name!r} is empty.", "Leave it out, or use null.")
        if value is not None:
            items.append(ArgvItem(name, (f"--{name}={value}",)))
    return items


def _merge_items(common: list[ArgvItem], items: list[ArgvItem]) -> list[ArgvItem]:
    names = {item.name for item in items}
    return [item for item in common if item.name not in names] + items


def _is_resume_latest(item: ArgvItem) -> bool:
    return item.name == "resume_from_checkpoint" and item.values == ("latest",)


def _with_run_folder(settings: TrainingSettings, path: Path) -> TrainingSettings:
    """Give the settings their own run folder: inside the requested one, else in runs/ under the list's name."""
    listed = re.sub(r"[^\w-]+", "-", path.stem, flags=re.ASCII).strip("-") or "concepts"
    place = settings.run or RUNS_FOLDER / listed
    return settings.model_copy(update={"run": place / Token.parse(settings.token).slug})


def _finished_token(run: Path, settings: TrainingSettings) -> str | None:
    """Return the token of a finished run, if it had at least the steps requested now."""
    result = read_json(run / RESULT_FILE)
    finished = to_number(result.get("steps")) >= (settings.steps or 0)
    return (to_text(result.get("token")) or None) if finished else None


class _name_entry_in_errors:
    """Name the entry that an error is in, also where tyro has printed the error and exits."""

    def __init__(self, number: int, path: Path):
        self._place = f"entry {number} of {printable(str(path))}"

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if isinstance(error, SystemExit) and error.code:
            raise UserError(f"That is in {self._place}.") from None
        if isinstance(error, UserError):
            raise UserError(f"In {self._place}: {error.message}", error.hint) from None
