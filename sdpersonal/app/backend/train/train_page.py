"""Handle the events of the Train tab. Methods return error texts and never raise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ....config import ConceptKind, CropMode
from ....errors import UserError
from ..error_text import describe_error, value_or_error
from ..generation_service import GenerationService
from ..workspace import Workspace
from .photo_files import sample_sets
from .photo_review import PhotoReview, apply_advice, review_photos
from .run_view import RunView, run_view
from .train_form import name_note, parse_kind, parse_settings, plan_text
from .training_service import TrainingService
from .uploads import PhotoUploads, UploadsByPage

FormValues = Mapping[str, Any]


class TrainPage:
    """Photo uploads for each page, trainings for each user."""

    def __init__(self, workspace: Workspace, service: GenerationService):
        self.workspace, self.generation = workspace, service
        self.uploads_by_page = UploadsByPage()
        self.training_service = TrainingService(workspace, self._free_gpu_memory)

    def _free_gpu_memory(self) -> None:
        if self.generation.base.device == "cuda":  # generation and training share the GPU
            self.generation.release()

    def close_session(self, page: str) -> None:
        """Delete the photos of a closed page. A training goes on."""
        self.uploads_by_page.close_session(page)

    def close(self) -> None:
        """Stop a running training, with a checkpoint to resume from, and delete all uploads."""
        self.training_service.close()
        self.uploads_by_page.close()

    # --- photos -------------------------------------------------------------------------------------------------------

    def add_photos(self, page: str, paths: Sequence[str] | str | None) -> str:
        """Add uploaded photos and delete the uploaded files; return the problems as text."""
        uploaded = [paths] if isinstance(paths, str) else list(paths or ())
        try:
            files = [self.workspace.uploaded_file(path) for path in uploaded]
        except UserError as error:
            return str(error)
        try:
            return "\n".join(self._page_uploads(page).add(files)) if files else ""
        except Exception as error:
            return describe_error(error)
        finally:
            for file in files:
                self.workspace.discard_upload(file)

    def use_sample_photos(self, page: str, title: str) -> str:
        """Replace the page's photos by a sample set; return the problems as text."""
        try:
            folder = sample_sets().get(title)
            if folder is None:
                raise UserError("There is no such sample set.")
            self._page_uploads(page).clear()
            return "\n".join(self._page_uploads(page).add(sorted(folder.iterdir())))
        except Exception as error:
            return describe_error(error)

    def review_photos(self, page: str, form: FormValues, message: str = "") -> PhotoReview:
        """Review the page's photos; `message` is put before the review's text."""
        try:
            base_kind = self.generation.base.kind
            review = review_photos(self._page_uploads(page), self.workspace, page, *_check_options(form), base_kind)
        except Exception as error:
            review = PhotoReview([], describe_error(error), 0, False)
        return replace(review, summary="\n".join(filter(None, [message, review.summary])))

    def toggle_photo(self, page: str, number: int) -> str:
        """Leave a photo out, or put it back if it is left out."""
        uploads = self._page_uploads(page)
        return _error_or_nothing(lambda: uploads.use(number, not uploads.is_used(number)))

    def rotate_photo(self, page: str, number: int, quarters: int) -> str:
        """Rotate a photo to the left by quarters."""
        return _error_or_nothing(lambda: self._page_uploads(page).rotate(number, quarters))

    def apply_advice(self, page: str, form: FormValues) -> str:
        """Apply the advice of the photo checks as far as rotating and leaving out can."""
        return _error_or_nothing(lambda: apply_advice(self._page_uploads(page), *_check_options(form)))

    def clear(self, page: str) -> str:
        """Remove all photos."""
        return _error_or_nothing(lambda: self._page_uploads(page).clear())

    def set_caption(self, page: str, number: int, text: str) -> str:
        """Set a photo's caption."""
        return _error_or_nothing(lambda: self._page_uploads(page).set_caption(number, text))

    def select_photo(self, page: str, number: int) -> SelectedPhoto:
        """Return the photo that was clicked, for the panel with its actions."""
        uploads = self._page_uploads(page)
        try:
            name, used, caption = uploads.uploads[number].name, uploads.is_used(number), uploads.captions(number)
        except (UserError, IndexError, TypeError):
            return SelectedPhoto("", True, "")
        return SelectedPhoto(name, used, caption)

    def _page_uploads(self, page: str) -> PhotoUploads:
        return self.uploads_by_page.get(page, self.generation.base.resolution)

    # --- name and summary ---------------------------------------------------------------------------------------------

    def name_note(self, form: FormValues) -> str:
        """Return the note on the name while it is typed."""
        return name_note(form, self.workspace.library)

    def plan_text(self, page: str, user: str | None, form: FormValues) -> str:
        """Summarize what Start would do."""
        try:
            if busy := self.training_service.running_training(user):
                return busy.message()
            count = sum(upload.used for upload in self._page_uploads(page).uploads)
            return plan_text(
                form, count, self.generation.base, self.workspace.library, self.training_service.measured_costs.read()
            )
        except Exception as error:
            return describe_error(error)

    # --- the training -------------------------------------------------------------------------------------------------

    def start(self, page: str, user: str | None, form: FormValues) -> str:
        """Start a training; return "", or why it did not start."""

        def begin() -> None:
            self.training_service.start(parse_settings(form, self.generation.base), self._page_uploads(page), user)

        return _error_or_nothing(begin)

    def run_view(self, page: str, user: str | None, seen: str = "") -> tuple[RunView, Any] | None:
        """Return the view and status of the user's training; None if there is none to show."""
        try:
            status = self.training_service.shown_run(user)
            return (run_view(status, self.workspace, page, seen), status) if status else None
        except Exception as error:
            return RunView("The status of the training is unknown", describe_error(error)), None

    def send_command(self, user: str | None, command: str) -> str:
        """Send the command "sample" or "keep" to the user's training."""
        return _error_or_nothing(lambda: self.training_service.send_command(user, command))

    def cancel(self, user: str | None) -> str:
        """Stop the user's training and discard its work; return the outcome as text."""
        try:
            return self.training_service.cancel(user)
        except Exception as error:
            return describe_error(error)

    def resume(self, user: str | None) -> tuple[str, str]:
        """Resume an unfinished training; return (note for the page, error), each "" if there is none."""
        note, error = value_or_error(self.training_service.resume, user, self.generation.base.name)
        return note or "", error

    def dismiss(self, user: str | None) -> str:
        """Hide the finished training, so that another can be set up."""
        return _error_or_nothing(lambda: self.training_service.dismiss(user))


@dataclass(frozen=True)
class SelectedPhoto:
    """A photo that was clicked; name: "" if there is no such photo."""

    name: str
    used: bool
    caption: str


def _error_or_nothing(work) -> str:
    """Run `work`; return "", or the error's text."""
    try:
        work()
        return ""
    except Exception as error:
        return describe_error(error)


def _check_options(form: FormValues) -> tuple[ConceptKind, str, CropMode]:
    """Return (kind, class noun, crop) as the photo checks take them."""
    noun = form["noun"] if isinstance(form["noun"], str) else ""
    return parse_kind(form["kind"]), noun.strip()[:100], "subject" if form["crop"] else "center"
