"""`--concepts-list FILE`: train several concepts, one after the other or `--together N` of them in one batch, each with
its own run folder.

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
from ..config.training import MAX_TOGETHER
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
TrainTogether = Callable[[Sequence[TrainingSettings], Callable[[str], None]], Sequence[object]]


@dataclass(frozen=True)
class BatchSettings:
    """The settings of several trainings, each with its own run folder and token. resume: continue started runs;
    together: how many are trained in one batch."""

    concepts: tuple[TrainingSettings, ...]
    resume: bool
    together: int = 1


@dataclass(frozen=True)
class ListFlags:
    """The flags that only a list has. path: of the list, if there is one; together: how many in one batch."""

    path: Path | None = None
    together: int = 1


def take_list_flags(argv: Sequence[str]) -> tuple[ListFlags, list[str]]:
    """Split off `--concepts-list` and `--together`; return them and the other arguments. Raises UserError for a value
    that they cannot have."""
    items = split_argv(argv)
    rest = join_argv([item for item in items if item.name not in ("concepts_list", "together")])
    path = _only_value(items, "concepts_list", "one file", "concepts_list.json")
    together = _only_value(items, "together", f"a number from 1 to {MAX_TOGETHER}", "4")
    if path is None:
        if together is not None:
            raise UserError("--together needs several concepts.", "Give them with --concepts-list FILE.")
        return ListFlags(), rest
    check_path(path, "--concepts-list")
    return ListFlags(Path(path), _check_together(together)), rest


def _only_value(items: Sequence[ArgvItem], name: str, takes: str, example: str) -> str | None:
    """Return the value of a flag with one value, None without the flag."""
    values = [value for item in items if item.name == name for value in item.values or ("",)]
    flag = f"--{name.replace('_', '-')}"
    if values and (len(values) > 1 or not values[0]):
        raise UserError(f"{flag} takes {takes}.", f"For example {flag} {example}.")
    return values[0] if values else None


def _check_together(text: str | None) -> int:
    number = 1 if text is None else int(text) if re.fullmatch(r"[0-9]{1,3}", text) else 0
    if not 1 <= number <= MAX_TOGETHER:
        shown = printable(text or "", 40)
        raise UserError(
            f"--together takes a number from 1 to {MAX_TOGETHER}, got {shown}.", "For example --together 4."
        )
    return number


def read_batch(
    path: Path,
    argv: Sequence[str],
    parse: Callable[[list[str]], TrainingSettings],
    entries: Sequence[dict[str, object]] | None = None,
    together: int = 1,
) -> BatchSettings:
    """Read every training of the list, all validated before the first begins. parse: argv of one to its settings.

    entries: the list's, if it is no file; together: how many are trained in one batch. Raises UserError, naming the
    entry, if the file or an entry cannot be used.
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
    return BatchSettings(tuple(_with_run_folder(concept, path) for concept in concepts), resume, together)


def train_all(batch: BatchSettings, train: Train, say: Callable[[str], None]) -> int:
    """Train every concept and print a summary. A failure does not stop the others; a full disk and Ctrl-C do.

    Returns 0, or the exit code of the first failure. Raises Interrupted, DiskFull.
    """
    summary = _Summary(batch, say)
    with summary:
        for number, settings in enumerate(batch.concepts, 1):
            say(f"\n{number} of {len(batch.concepts)}: {settings.token}")
            if summary.skip_finished(settings):
                say("It is trained already.")
                continue
            began = time.monotonic()
            try:
                result = train(_resumable(settings, batch.resume), say)
            except (Interrupted, DiskFull):
                raise
            except UserError as error:
                summary.add_error(settings, error)
            except Exception as error:
                if int(os.environ.get("WORLD_SIZE", "1")) > 1:
                    raise  # the other processes are still training this concept, not the next
                traceback.print_exc()
                summary.add_crash(settings, error)
            else:
                summary.add_result(settings, result, time.monotonic() - began)
    return summary.code


def train_all_together(batch: BatchSettings, train_together: TrainTogether, say: Callable[[str], None]) -> int:
    """Train the concepts in batches of `batch.together`, as `train_all` does one after the other."""
    from ..training.joint import check_together  # torch takes seconds to load

    summary = _Summary(batch, say)
    with summary:
        waiting = [settings for settings in batch.concepts if not summary.skip_finished(settings)]
        groups = [waiting[first : first + batch.together] for first in range(0, len(waiting), batch.together)]
        for group in groups:
            check_together(group)
        for number, group in enumerate(groups, 1):
            say(f"\nBatch {number} of {len(groups)}: {', '.join(settings.token for settings in group)}")
            began = time.monotonic()
            results = train_together([_resumable(settings, batch.resume) for settings in group], say)
            for settings, result in zip(group, results, strict=True):
                if isinstance(result, UserError):
                    summary.add_error(settings, result)
                else:
                    summary.add_result(settings, result, time.monotonic() - began)
            if full := next((result for result in results if isinstance(result, DiskFull)), None):
                raise full
    return summary.code


class _Summary:
    """What came of each concept of a list; printed at the end, however that comes. code: of the first failure."""

    def __init__(self, batch: BatchSettings, say: Callable[[str], None]):
        self._batch, self._say = batch, say
        self._lines: dict[str, str] = {}
        self.code = 0

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        tokens = [settings.token for settings in self._batch.concepts]
        self._say("\n" + "\n".join(self._lines.get(t, f"{t}  not started or not finished") for t in tokens))

    def skip_finished(self, settings: TrainingSettings) -> bool:
        """Return whether a concept need not be trained, since a former command did."""
        run = settings.run or Path()  # _with_run_folder has set it
        token = _finished_token(run, settings) if self._batch.resume else None
        if token:
            self._lines[settings.token] = f"{token}  done before, {printable(str(run))}"
        return token is not None

    def add_result(self, settings: TrainingSettings, result: object, seconds: float) -> None:
        token = getattr(result, "token", settings.token)
        self._lines[settings.token] = f"{token}  done in {seconds:.0f} s, {printable(str(settings.run))}"

    def add_error(self, settings: TrainingSettings, error: UserError) -> None:
        print(f"error: {error}", file=sys.stderr)
        self._add_failure(settings, error.message, error.exit_code)

    def add_crash(self, settings: TrainingSettings, error: Exception) -> None:
        self._add_failure(settings, f"{type(error).__name__}: {printable(str(error))}", 1)

    def _add_failure(self, settings: TrainingSettings, reason: str, code: int) -> None:
        self._lines[settings.token] = f"{settings.token}  failed: {reason}"
        self.code = self.code or code


def _resumable(settings: TrainingSettings, resume: bool) -> TrainingSettings:
    """Return the settings that continue the run if it has a checkpoint, and start it if it has none."""
    return settings.model_copy(update={"resume": resume and has_checkpoint(settings.run or Path())})


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
