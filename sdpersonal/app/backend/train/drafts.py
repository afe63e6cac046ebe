"""Keep drafts of trainings: a form and photos in a folder of the user's runs, which survive the end of the app."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from ....config import TrainingSettings, settings_from_json
from ....errors import UserError
from ....photos.captions import Refused
from ....photos.crops import OwnCrop, to_crop
from ....training.own_prompts import read_own_prompts
from ....training.run_dir import read_json
from ..events import EventHub
from ..generation_service import GenerationService
from ..workspace import Workspace
from .concept_name import DEFAULT_OWNER, make_token
from .draft_folders import Draft, DraftFolders, no_draft_error
from .draft_view import draft_view
from .photo_files import find_samples
from .photo_review import ReviewOptions
from .reviewer import Reviewer
from .run_folders import PHOTOS_FOLDER, SETTINGS_FILE, is_app_run
from .train_form import TrainForm, form_of_settings, parse_settings
from .training_cost import MeasuredCosts
from .uploads import PhotoUploads

MAX_DRAFTS = 20  # of a user
_RUN_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,199}")


class Trainings(Protocol):
    """The part of `TrainingService` that starts trainings."""

    measured_costs: MeasuredCosts

    def start(self, settings: TrainingSettings, uploads: PhotoUploads, user: str | None) -> Path: ...


class Drafts:
    """The drafts of all users. Methods that change a draft return it as the page reads it, and tell other pages."""

    def __init__(self, workspace: Workspace, generation: GenerationService, events: EventHub, trainings: Trainings):
        self.workspace, self.generation = workspace, generation
        self.reviewer = Reviewer()
        self._events, self._trainings = events, trainings
        self._folders = DraftFolders(workspace)

    def all(self, user: str | None) -> list[dict[str, Any]]:
        """Return the user's drafts, oldest first: at least one."""
        side = self.generation.base.resolution
        with self._folders.lock:
            drafts = self._folders.remove_empty(self._folders.all(user, side))
            drafts = drafts or [self._folders.create(user, TrainForm(), side)]
        return [self.view(user, draft) for draft in drafts]

    def create(self, user: str | None, from_run: str | None = None) -> dict[str, Any]:
        """Create a draft. from_run: of a run's settings, and of its photos if they are there yet."""
        run = self._run(user, from_run) if from_run is not None else None
        form = _form_of_run(run) if run else TrainForm()
        side = self.generation.base.resolution
        with self._folders.lock:
            if len(self._folders.all(user, side)) >= MAX_DRAFTS:
                raise UserError(f"There are {MAX_DRAFTS} drafts already.", "Delete one that you do not need.")
            draft = self._folders.create(user, form, side)
        if run and (run / PHOTOS_FOLDER).is_dir() and not (run / PHOTOS_FOLDER).is_symlink():
            files = [
                path for path in sorted((run / PHOTOS_FOLDER).iterdir()) if path.is_file() and not path.is_symlink()
            ]
            if files:
                draft.photos.add(files)
        self._events.publish(user, "drafts", {})
        return self.view(user, draft)

    def delete(self, user: str | None, draft_id: str) -> None:
        """Delete a draft with its photos."""
        self._remove(self._get(user, draft_id))
        self._events.publish(user, "drafts", {})

    def set_form(self, user: str | None, draft_id: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Set fields of the form. Raises FieldError for a value that the page cannot have."""
        return self._change(user, draft_id, lambda draft: draft.set_form(draft.form.with_values(values)))

    def add_photos(self, user: str | None, draft_id: str, uploads: Sequence[str]) -> dict[str, Any]:
        """Add uploaded photos and delete the uploaded files; the result has the "problems" too."""
        draft = self._get(user, draft_id)
        files = [self.workspace.uploaded_file(path) for path in uploads]
        try:
            problems = draft.photos.add(files) if files else []
        finally:
            for file in files:
                self.workspace.discard_upload(file)
        return self._announce(user, draft) | {"problems": problems}

    def change_photo(
        self,
        user: str | None,
        draft_id: str,
        photo: str,
        used: bool | None = None,
        quarters: int = 0,
        caption: str | None = None,
        remove: bool = False,
        **crop: object,
    ) -> dict[str, Any]:
        """Change or remove one photo. crop: [left, top, side], or None for automatic, if it is to change."""

        def change(draft: Draft) -> None:
            if remove:
                draft.photos.remove(photo)
                return
            if used is not None:
                draft.photos.use(photo, used)
            if caption is not None:
                draft.photos.set_captions(photo, caption)
            if quarters:
                draft.photos.rotate(photo, quarters)
            if "crop" in crop:
                draft.photos.set_crop(photo, _parse_crop(crop["crop"]))

        return self._change(user, draft_id, change)

    def set_captions(self, user: str | None, draft_id: str, captions: Mapping[str, str]) -> dict[str, Any]:
        """Set the captions of photos, by their names."""

        def change(draft: Draft) -> None:
            for name, text in captions.items():
                draft.photos.set_captions(name, text)

        return self._change(user, draft_id, change)

    def apply_advice(self, user: str | None, draft_id: str) -> dict[str, Any]:
        """Rotate photos that lie on their side; leave out those that are blurred, badly lit or near-duplicates."""

        def change(draft: Draft) -> None:
            for name, quarters in self.reviewer.now(draft.photos, self._review_options(draft)).advice.items():
                draft.photos.rotate(name, quarters) if quarters else draft.photos.use(name, False)

        return self._change(user, draft_id, change, hold=False)

    def clear(self, user: str | None, draft_id: str) -> dict[str, Any]:
        """Remove all photos."""
        return self._change(user, draft_id, lambda draft: draft.photos.clear())

    def use_samples(self, user: str | None, draft_id: str, set_id: str) -> dict[str, Any]:
        """Replace the photos by a sample set, and fill in what it shows."""
        samples = find_samples(set_id)

        def change(draft: Draft) -> None:
            draft.photos.clear()
            draft.photos.add(samples.files())
            name = self._free_name(user, samples.name, draft.form.owner)
            draft.set_form(draft.form.with_values({"kind": samples.kind, "noun": samples.noun, "name": name}))

        return self._change(user, draft_id, change)

    def start(self, user: str | None, draft_id: str) -> str:
        """Start the training, or let it wait for its turn; return the run's id. The draft is gone then.

        Raises FieldError, DiskFull.
        """
        draft = self._get(user, draft_id)
        with draft.lock:
            settings = parse_settings(draft.form, self.generation.base, user or DEFAULT_OWNER)
            run = self._trainings.start(settings, draft.photos, user)
        with suppress(UserError):  # it has started: a draft that stays is no reason to say that it failed
            self._remove(draft)
        self._events.publish(user, "drafts", {})
        return run.name

    def photo_jpeg(self, user: str | None, draft_id: str, photo: str, thumb: bool) -> bytes:
        """Return a photo, or its thumbnail, as JPEG."""
        return self._get(user, draft_id).photos.jpeg(photo, thumb)

    def view(self, user: str | None, draft: Draft) -> dict[str, Any]:
        """Return the draft as the page reads it."""
        options = self._review_options(draft)
        with draft.lock:
            try:
                photos = draft.photos.photos()
            except FileNotFoundError:
                raise no_draft_error() from None
            review, checking = self.reviewer.latest(draft.photos, photos, options, lambda: self._publish(user, draft))
            return draft_view(
                draft.id,
                draft.created,
                draft.form,
                photos,
                (review, checking),
                self.generation.base,
                self.workspace.library,
                self._trainings.measured_costs.read(),
                user or DEFAULT_OWNER,
            )

    # --- inside -------------------------------------------------------------------------------------------------------

    def _change(
        self, user: str | None, draft_id: str, change: Callable[[Draft], None], hold: bool = True
    ) -> dict[str, Any]:
        draft = self._get(user, draft_id)
        if hold:
            with draft.lock:
                change(draft)
        else:
            change(draft)
        return self._announce(user, draft)

    def _announce(self, user: str | None, draft: Draft) -> dict[str, Any]:
        """Tell other pages about a change; return the draft as the page reads it."""
        view = self.view(user, draft)
        self._events.publish(user, "draft", {"draft": view}, draft.id)
        return view

    def _publish(self, user: str | None, draft: Draft) -> None:
        if self._events.is_watched(user) and self._folders.is_there(draft):
            self._announce(user, draft)

    def _review_options(self, draft: Draft) -> ReviewOptions:
        base, form = self.generation.base, draft.form
        return ReviewOptions(form.kind, form.noun.strip()[:100], form.crop, base.resolution, base.kind)

    def _free_name(self, user: str | None, name: str, owner: str) -> str:
        """Return the name, with a number if the user's library has it."""
        names = (name, *(f"{name} {number}" for number in range(2, 1000)))
        return next(
            n for n in names if not self.workspace.library.versions(make_token(owner, n, user or DEFAULT_OWNER))
        )

    def _get(self, user: str | None, draft_id: str) -> Draft:
        return self._folders.get(user, draft_id, self.generation.base.resolution)

    def _remove(self, draft: Draft) -> None:
        self._folders.remove(draft)
        self.reviewer.forget(draft.folder)

    def _run(self, user: str | None, run_id: str) -> Path:
        folder = self.workspace.user_runs(user) / run_id
        if not _RUN_ID.fullmatch(run_id) or folder.is_symlink() or not is_app_run(folder):
            raise UserError("That training does not exist any more.", "Choose another.")
        return folder


def _form_of_run(run: Path) -> TrainForm:
    """Return the form that means a run's settings, with its present sample prompts."""
    settings = settings_from_json(read_json(run / SETTINGS_FILE))
    prompts = read_own_prompts(run, (), settings.token, settings.kind)
    return form_of_settings(settings).with_values({"sample_prompts": prompts})


def _parse_crop(values: object) -> OwnCrop | None:
    try:
        return to_crop(values) if values is not None else None
    except Refused as reason:
        raise UserError(f"The crop {reason}.") from None
