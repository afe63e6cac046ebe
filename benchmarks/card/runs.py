"""The tests that need a card, and whole trainings as a user starts them."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

from sdpersonal.config import DreamboothSettings
from sdpersonal.training.run_dir import SAMPLES_FILE

from .clocks import HERE, wait
from .session import Session, free_memory

_TEST_SECONDS = 120
_TEST_PROCESSES = 4
_PHOTOS = HERE / "examples" / "photos" / "teddy-bear"


def run_tests(session: Session) -> None:
    """Run the tests that are marked `gpu`, which are in few files: other files need packages that a card lacks."""
    files = [str(path) for path in sorted((HERE / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text("utf-8")]
    line = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "--durations=8", *files]
    line += ["-n", str(_TEST_PROCESSES)] if importlib.util.find_spec("xdist") else []
    if session.dry:
        line = [sys.executable, "-m", "pytest", "--version"]
    code, output = _run(session, "tests", line, HERE, _TEST_SECONDS)
    tail = output.strip().splitlines()
    session.check("tests", code == 0, tail[-1] if tail else "no output")
    session.say("\n".join(tail[-60:]))


def _run(session: Session, name: str, line: list[str], folder: Path, seconds: float) -> tuple[int | None, str]:
    """Run a program with its output in a file; return its exit code, None if the time was up, and the output."""
    log = session.out / "running.txt"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
    environment |= {"PYTHONUNBUFFERED": "1"} | ({"CUDA_VISIBLE_DEVICES": ""} if session.dry else {})
    limit = max(10.0, min(seconds, session.left))
    with log.open("w", encoding="utf-8") as file:
        try:
            done = subprocess.run(
                line, cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT, timeout=limit
            )
            code: int | None = done.returncode
        except subprocess.TimeoutExpired:
            code = None
    output = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n")
    output += "" if code is not None else f"\nThe time was up after {limit:.0f} s."
    log.unlink()
    session.append("programs.txt", name, output)
    return code, output


def train_as_a_user(session: Session) -> None:
    """Train with both scripts on the built-in base, and a LoRA on the geometry of SD 1.5, where its seconds go."""
    if session.dry:
        session.guarded("sd15 lora run", 0, _train_in_process)
        return
    session.guarded("sd15 lora run", 30, _train_in_process)
    session.guarded("train_dreambooth.py", 25, lambda _: _script(session, "train_dreambooth.py", ["--class", "bear"]))
    inversion = ["--init", "bear"]
    session.guarded(
        "train_textual_inversion.py", 25, lambda _: _script(session, "train_textual_inversion.py", inversion)
    )


def _script(session: Session, script: str, flags: list[str]) -> None:
    name, folder = script.removesuffix(".py"), session.out / "work"
    folder.mkdir(exist_ok=True)
    line = [sys.executable, str(HERE / script), "--photos", str(_PHOTOS), "--token", f"<me/{name.replace('_', '-')}>"]
    line += ["--base", "tiny", "--run", str(folder / name), "--library", str(folder / "concepts"), *flags]
    started_at = time.perf_counter()
    code, output = _run(session, name, line, folder, 80)
    seconds = time.perf_counter() - started_at
    lines = [text for text in output.splitlines() if text.strip()]
    session.say("\n".join(lines[-12:]))
    session.check(script, code == 0, f"{seconds:.1f} s with imports; {lines[-1] if lines else 'no output'}"[:200])
    session.store(f"{script} seconds", seconds)
    _keep_sheet(session, folder / name, name)
    shutil.rmtree(folder, ignore_errors=True)


def _keep_sheet(session: Session, run: Path, name: str) -> None:
    if (run / SAMPLES_FILE).exists():
        shutil.copy(run / SAMPLES_FILE, session.out / f"samples-{name}.png")


class _Phases:
    """Seconds of functions of a run, by name; what one does within another is in both."""

    def __init__(self, session: Session):
        self._session, self.seconds = session, dict[str, float]()

    @contextmanager
    def timed(self, targets: dict[str, str]) -> Iterator[None]:
        """targets: phase -> "module:name" or "module:Class.name"; one that does not exist is left out."""
        with ExitStack() as stack:
            for phase, target in targets.items():
                if (place := _find(target)) is not None:
                    holder, name = place
                    stack.enter_context(mock.patch.object(holder, name, self._wrapped(phase, getattr(holder, name))))
            yield

    def _wrapped(self, phase: str, function: Callable):
        def call(*args, **kwargs):
            wait(self._session)
            started_at = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                wait(self._session)
                self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - started_at

        return call


def _find(target: str) -> tuple[object, str] | None:
    import importlib

    module, path = target.split(":")
    *holders, name = path.split(".")
    holder: object = importlib.import_module(module)
    for part in holders:
        holder = getattr(holder, part, None)
    return (holder, name) if hasattr(holder, name) else None


_PHASES = {
    "load": "sdpersonal.training.run:_load",
    "photos, method and dry run": "sdpersonal.training.run:_setup",
    "latents": "sdpersonal.training.run:PhotoDataset",
    "dry run": "sdpersonal.training.run:perform_dry_run",
    "loop": "sdpersonal.training.run:_fit",
    "steps": "sdpersonal.training.milestones:fit",
    "checkpoints": "sdpersonal.training.loop:save_checkpoint",
    "validations": "sdpersonal.training.validation:Validator.run",
    "best checkpoint": "sdpersonal.training.run_ending:restore_best",
    "concept and sheet": "sdpersonal.training.run_ending:save_concept",
    "sheet": "sdpersonal.training.run_ending:add_sample_sheet",
}


def _train_in_process(session: Session) -> None:
    """Train on a base that is on the device already: what is measured is the run, not reading 4 GB."""
    from sdpersonal.training import train

    base, folder = session.base("sd15"), session.out / "work-sd15"
    settings = DreamboothSettings(
        photos=_PHOTOS,
        token="<me/teddy>",
        class_noun="bear",
        base=str(folder),
        steps=session.steps(150),
        batch=1 if session.dry else None,
        resolution=session.side("sd15"),
        run=folder / "run",
        library=folder / "concepts",
        samples=not session.dry,
    )
    phases = _Phases(session)
    with mock.patch("sdpersonal.training.run.load_base", lambda *_, **__: base), phases.timed(_PHASES):
        started_at = time.perf_counter()
        train(settings, log=lambda line: session.say(f"  {line}"), on_progress=lambda *_: None)
        seconds = time.perf_counter() - started_at
    parts = ", ".join(f"{name} {taken:.1f}" for name, taken in phases.seconds.items())
    session.row("run", f"sd15 lora, {settings.steps} steps", f"{seconds:.1f} s: {parts}")
    session.store("sd15 run", phases.seconds | {"all": seconds})
    _keep_sheet(session, folder / "run", "sd15")
    shutil.rmtree(folder, ignore_errors=True)
    free_memory(session)
