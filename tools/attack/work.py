"""Work of the package that can be interrupted at any moment, and what must hold afterwards.

Each kind of work runs in a child process, which writes a line before each operation and after it; so the parent knows
what was finished when the child died.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from sdpersonal import storage
from sdpersonal.concepts.concept_file import concept_to_bytes
from sdpersonal.concepts.library import Library
from sdpersonal.concepts.trash import Trash
from sdpersonal.errors import UserError
from sdpersonal.outputs import Outputs
from support.foreign import a1111, rows, torch_saved
from support.samples import concept, embedding

Log = Callable[[dict], None]
_NAMES = ("<me/duck>", "<me/cat>", "<you/ink>", "<you/bear>")
_FEW, _MANY = 6, 14  # concepts: with fewer none is deleted for good, with more none is added


class Work(Protocol):
    """A kind of work. steps: does one operation for each item of its iteration, logging before and after it;
    problems: returns what is wrong with the folder after a death, given the child's log."""

    name: str

    def prepare(self) -> None: ...

    def steps(self, rng: random.Random, log: Log) -> Iterator[None]: ...

    def problems(self, lines: list[dict]) -> list[str]: ...


def leftovers(folder: Path) -> list[str]:
    """List temporary files and folders anywhere under a folder."""
    return [
        str(path.relative_to(folder))
        for path in folder.rglob(".*")
        if path.name.endswith(storage.atomic.TEMPORARY_SUFFIX)
    ]


# --- the library ------------------------------------------------------------------------------------------------------


class LibraryWork:
    """Add, import, replace, edit, rename, delete and restore concepts at random."""

    name = "library and import"

    def __init__(self, place: Path):
        self.place, self.folder = place, place / "concepts"
        self.library = Library(self.folder)
        self.trash = Trash(self.library)
        self.known: set[str] = set()

    def prepare(self) -> None:
        """Make a library of four concepts, and files to import."""
        for number, name in enumerate(_NAMES):
            self.library.add(embedding(name, seed=number))
        self.known = self.identities()

    def identities(self) -> set[str]:
        """Return the identities of all concepts, with those in the trash."""
        deleted = (entry for deletion in self.trash.deletions() for entry in deletion.entries)
        return {str(entry.identity) for entry in (*self.library.entries(), *deleted)}

    def steps(self, rng: random.Random, log: Log) -> Iterator[None]:
        while True:
            adds, loses, do = self._operation(rng)
            log({"began": True, "adds": adds, "loses": loses})
            done = False
            with suppress(UserError):
                do()
                done = True
            log({"done": done, "adds": adds, "loses": loses})
            yield

    def _operation(self, rng: random.Random) -> tuple[list[str], list[str], Callable[[], object]]:
        """Return the identities that an operation adds, those that it may remove for good, and the operation."""
        entries = self.library.entries()
        if len(entries) < _FEW or (len(entries) < _MANY and rng.random() < 0.35):
            return self._addition(rng)
        entry = rng.choice(entries)
        token = str(entry.token)
        match rng.randrange(7):
            case 0:
                return [], [], lambda: self.library.edit(token, {"title": f"Title {rng.randrange(1000)}"})
            case 1:
                new = f"<{rng.choice(('me', 'you', 'them'))}/n{rng.randrange(50)}>"
                return [], [], lambda: self.library.rename(entry.token.unversioned(), new)
            case 2 | 3:
                return [], [], lambda: self.trash.delete(token)
            case 4:
                deletions = self.trash.deletions()
                name = deletions[0].name if deletions else "none"
                return [], [], lambda: self.trash.restore(name)
            case 5:
                deleted = [str(e.identity) for deletion in self.trash.deletions() for e in deletion.entries]
                return [], deleted, self.trash.empty
            case _:
                made = concept(token, seed=rng.randrange(2**31))
                return [made.identity], [str(entry.identity)], lambda: self.library.add(made, replace=True)

    def _addition(self, rng: random.Random) -> tuple[list[str], list[str], Callable[[], object]]:
        seed = rng.randrange(2**31)
        if rng.random() < 0.5:
            made = (concept if rng.random() < 0.3 else embedding)(rng.choice(_NAMES), seed=seed)
            return [made.identity], [], lambda: self.library.add(made)
        path = self.place / f"import-{os.getpid()}.pt"
        if rng.random() < 0.5:
            made = concept(rng.choice(_NAMES), seed=seed)
            path.write_bytes(concept_to_bytes(made))
        else:
            path.write_bytes(torch_saved(a1111(rows(1, seed=seed), name=f"i{seed}")))
            from sdpersonal.concepts.importers.read_folders import read_path

            made = read_path(path)
        return [made.identity], [], lambda: self.library.import_(path, as_=f"<them/i{seed}>")

    def problems(self, lines: list[dict]) -> list[str]:
        """Return what a death broke: concepts lost or half-written, damage, leftovers, a lock that is still held."""
        must, may = set(self.known), set(self.known)
        for line in lines:
            loses, adds = set(line["loses"]), set(line["adds"])
            if line.get("done"):
                must, may = (must | adds) - loses, (may | adds) - (loses - adds)
            elif line.get("began"):
                must, may = must - loses, may | adds
            else:  # refused: as it was before
                must = must | (loses & may)
                may = may - (adds - must)
        now = self.identities()
        problems = [f"lost {len(must - now)} concepts"] if must - now else []
        problems += [f"{len(now - may)} concepts that nobody added"] if now - may else []
        problems += self.state_problems()
        self.known = now
        return problems

    def state_problems(self) -> list[str]:
        """Return what is wrong with the library as it is, after its next change has swept it."""
        damaged = [f"damaged: {entry.token} {why}" for entry, why in self.library.verify()]
        misplaced = [f"misplaced: {path.name}" for path in self.library.misplaced_files()]
        token = self.library.add(embedding("<next/start>", seed=7))
        deletion = self.trash.delete(token)
        left = [f"left over: {path}" for path in leftovers(self.folder)]
        self.trash.restore(deletion.name)
        self.library.remove(token)
        return damaged + misplaced + left


# --- the app's files --------------------------------------------------------------------------------------------------


class AppWork:
    """What pages make: photos and their captions, saved images, favourites, copies that are served, runs."""

    name = "the app's own files"

    def __init__(self, place: Path):
        self.place = place
        self.temporary, self.outputs = place / "tmp", Outputs(place / "outputs")
        self.runs = place / "runs"
        self.photo = place / "photo.png"
        self.before: set[str] = set()

    def prepare(self) -> None:
        self.temporary.mkdir(parents=True)
        pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).resize((300, 260)).save(self.photo)

    def steps(self, rng: random.Random, log: Log) -> Iterator[None]:
        from sdpersonal.app.backend.train.draft_folders import DraftFolders
        from sdpersonal.app.backend.train.train_form import TrainForm
        from sdpersonal.app.backend.workspace import Workspace
        from sdpersonal.app.server.auth import isolate_gradio
        from sdpersonal.outputs.trash import OutputsTrash

        tempfile.tempdir = str(self.temporary)
        served = isolate_gradio()
        space = Workspace(Library(self.place / "concepts"), self.outputs.folder, self.runs, served)
        folders, trash, service = DraftFolders(space), OutputsTrash(self.outputs), _training_service(space)
        saved: list[Path] = []
        while True:
            drafts = folders.all(None, 64) or [folders.create(None, TrainForm(), 64)]
            draft = rng.choice(drafts)
            photos = draft.photos
            match rng.randrange(9):
                case 0 | 1:
                    data = _png(rng)
                    log({"saves": storage.sha256(data)})
                    saved.append(self.outputs.save(data))
                    log({"saved": storage.sha256(data)})
                case 2 if saved:
                    with suppress(UserError):
                        self.outputs.add_favourite(rng.choice(saved))
                case 3 if saved:
                    path = rng.choice(saved)
                    with suppress(UserError):
                        trash.restore(trash.delete([(path.parent.name, path.name)]))
                case 4 | 5:
                    _other_photo(rng, self.photo)
                    with suppress(UserError):
                        photos.add([self.photo])
                case 6 if photos.uploads:
                    name = photos.photos()[0].name
                    with suppress(UserError):
                        photos.rotate(name, 1)
                        photos.set_captions(name, "{} on grass")
                        photos.use(name, bool(rng.randrange(2)))
                case 7 if photos.uploads:
                    with suppress(UserError):
                        run = service.start(_settings(), photos, None)
                        service.cancel(None, run.name)
                case 8:
                    folders.remove(draft) if len(drafts) > 2 else folders.create(None, TrainForm(), 64)
            yield

    def problems(self, lines: list[dict]) -> list[str]:
        """Return what is wrong after the next start: images lost or half-written, photos and folders left over."""
        must = {line["saved"] for line in lines if "saved" in line}
        may = must | {line["saves"] for line in lines if "saves" in line}
        problems, now = [], set()
        for path in self.outputs.folder.rglob("*.png"):
            data = path.read_bytes()
            now.add(storage.sha256(data))
            if storage.sha256(data)[:8] not in path.name:
                problems.append(f"half-written: {path.name}")
        problems += ["lost images"] if must - now else []
        problems += ["images that nobody saved"] if now - may - self.before else []
        with tempfile.TemporaryFile("w+") as answer:
            if not (child := os.fork()):
                with suppress(BaseException):
                    answer.write(json.dumps(self._next_start()))
                    answer.flush()
                os._exit(0)
            os.waitpid(child, 0)
            answer.seek(0)
            text = answer.read()
        self.before = {storage.sha256(path.read_bytes()) for path in self.outputs.folder.rglob("*.png")}
        return problems + (json.loads(text) if text else ["the next start failed"])

    def _next_start(self) -> list[str]:
        """Start as the app does, make one more image, and return what an earlier process left over."""
        from sdpersonal.app.backend.train.draft_folders import DRAFTS_FOLDER, DraftFolders
        from sdpersonal.app.backend.workspace import Workspace
        from sdpersonal.app.server.auth import isolate_gradio
        from sdpersonal.outputs import write_page

        tempfile.tempdir = str(self.temporary)
        served = isolate_gradio()
        space = Workspace(Library(self.place / "concepts"), self.outputs.folder, self.runs, served)
        _training_service(space)
        for draft in DraftFolders(space).all(None, 64):
            for photo in draft.photos.photos():
                draft.photos.jpeg(photo.name, thumb=True)
        self.outputs.save(_png(random.Random(0)))
        write_page(self.outputs)
        old = [path for path in self.temporary.iterdir() if not served.is_relative_to(path)]
        left = [f"left over: tmp/{path.name.rpartition('-')[0]}-*" for path in old]
        if self.runs.exists():
            runs = [path for path in self.runs.iterdir() if path.is_dir() and path.name != DRAFTS_FOLDER]
            half = [path for path in runs if not (path / "process.json").exists()]
            left += [
                f"left over: a run that never began, with {sorted(p.name for p in path.iterdir())}" for path in half
            ]
            old += half
        left += [f"left over: {path}" for path in leftovers(self.place)]
        for path in [*self.temporary.iterdir(), *old]:  # so that the next kill is looked at alone
            shutil.rmtree(path, ignore_errors=True)
        return sorted(set(left))


def _training_service(space):
    """Return the app's trainings with a trainer that ends at once: what is tested are its folders."""
    from sdpersonal.app.backend.train import training_service
    from sdpersonal.app.backend.train.trainer_process import Process

    class Ended:
        def wait(self) -> int:
            return 0

    training_service.start_process = lambda argv, folder: (Process(2**22, 1.0), Ended())
    return training_service.TrainingService(space)


def _settings():
    from sdpersonal.config import TextualInversionSettings

    return TextualInversionSettings(photos="x", token="<me/bear>", base="tiny", init="bear", steps=5)


def _other_photo(rng: random.Random, path: Path) -> None:
    pixels = np.random.default_rng(rng.randrange(2**31)).integers(0, 255, (4, 4, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((300, 260)).save(buffer, "PNG", compress_level=1)
    path.write_bytes(buffer.getvalue())


def _png(rng: random.Random) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (rng.randrange(256), rng.randrange(256), rng.randrange(256))).save(buffer, "PNG")
    return buffer.getvalue() + rng.randbytes(rng.choice((0, 100, 50_000)))


# --- a training -------------------------------------------------------------------------------------------------------


class TrainingWork:
    """Short trainings on a narrow model, a checkpoint after every step, each gone on from until it is done."""

    name = "a training with checkpoints"

    def __init__(self, place: Path):
        self.place, self.number, self.reached, self.finished = place, 0, 0, 0
        self.library = Library(place / "concepts")

    def prepare(self) -> None:
        import matplotlib.backends.backend_agg  # noqa: F401, imported once here, not in each child

        from sdpersonal.training import curves, run  # noqa: F401, likewise
        from support.narrow import save_narrow, save_photos

        self.place.mkdir(exist_ok=True)
        self.base, self.photos = save_narrow("sd1", self.place / "sd1"), save_photos(self.place / "photos", 2)

    @property
    def run(self) -> Path:
        return self.place / f"run-{self.number}"

    def steps(self, rng: random.Random, log: Log) -> Iterator[None]:
        from sdpersonal.config import TextualInversionSettings
        from sdpersonal.training import train
        from sdpersonal.training.run_dir import has_checkpoint

        settings = TextualInversionSettings(
            photos=self.photos, token=f"<me/t{self.number}>", base=str(self.base), steps=8, batch=1, save_every=1,
            library=self.library.folder, run=self.run, samples=False, vectors=1, resolution=64,
            resume=has_checkpoint(self.run),
        )  # fmt: skip
        train(settings, lambda line: None, lambda progress: log({"step": progress.step}))
        log({"finished": True})
        yield

    def problems(self, lines: list[dict]) -> list[str]:
        """Return what is wrong: a checkpoint half-written or gone, a finished run without its concept, leftovers."""
        from sdpersonal.training.checkpoint import read_manifest, read_tensors
        from sdpersonal.training.run_dir import RESULT_FILE, checkpoint_folders

        problems = [line["error"] for line in lines if "error" in line]
        steps = checkpoint_folders(self.run)
        for step, folder in steps.items():
            try:
                manifest = read_manifest(folder)
                assert manifest["step"] == step and dict(read_tensors(folder, manifest))
            except Exception as error:
                problems.append(f"{folder.name}: {type(error).__name__} {error}")
        trained = max([line["step"] for line in lines if "step" in line], default=0)
        newest = max(steps, default=0)
        if newest < max(self.reached, trained - 2):
            problems.append(f"after step {trained} the newest checkpoint is {newest}, it was {self.reached}")
        self.reached = newest
        if any("finished" in line for line in lines) or (self.run / RESULT_FILE).exists():
            if f"<me/t{self.number}>" not in self.library:
                problems.append("a finished run whose concept is not in the library")
            problems += [f"left over: {path}" for path in leftovers(self.run)]
            self.number, self.reached, self.finished = self.number + 1, 0, self.finished + 1
        problems += [f"damaged: {entry.token} {why}" for entry, why in self.library.verify()]
        return problems + [f"misplaced: {path}" for path in self.library.misplaced_files()]
