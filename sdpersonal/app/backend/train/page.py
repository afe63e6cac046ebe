"""All that the page for making concepts can ask for. What goes wrong comes back in words, never as an exception."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from .... import storage
from ....errors import UserError
from ..error_text import describe_error
from ..generation_service import GenerationService
from ..workspace import Workspace
from .form import name_note, parse_kind, parse_settings, plan_text
from .photo_review import PhotoReview, apply_advice, review_photos
from .run_view import RunView, run_view
from .training_service import TrainingService
from .uploads import PhotoUploads, UploadsByPage, sample_sets

FormValues = Mapping[str, Any]


class TrainPage:
    """Trays of photos for pages, trainings for users."""

    def __init__(self, house: Workspace, studio: GenerationService):
        self.workspace, self.generation = house, studio
        self.uploads_by_page = UploadsByPage()
        self.trainings = TrainingService(house, self._make_room)

    def _make_room(self) -> None:
        if self.generation.base.device == "cuda":  # drawing and training share the card
            self.generation.release()

    def leave(self, page: str) -> None:
        """The page is closed: its photos go. A training goes on."""
        self.uploads_by_page.leave(page)

    def close(self) -> None:
        """The app ends: so does a training, with a checkpoint to go on from."""
        self.trainings.close()
        self.uploads_by_page.close()

    # --- photos -------------------------------------------------------------------------------------------------------

    def drop(self, page: str, paths: Sequence[str] | str | None) -> str:
        """Take what was uploaded; the uploads themselves go at once. What could not be used, in words."""
        given = [paths] if isinstance(paths, str) else list(paths or ())
        try:
            places = [storage.resolve_inside(self.workspace.shown, path) for path in given]
        except UserError as error:
            return str(error)
        try:
            return "\n".join(self._page_uploads(page).add(places)) if places else ""
        except Exception as error:
            return describe_error(error)
        finally:
            for place in places:
                with suppress(UserError):
                    storage.remove(place)

    def use_sample_photos(self, page: str, title: str) -> str:
        """Put a set of sample photos in the place of what is on the tray."""
        try:
            folder = sample_sets().get(title)
            if folder is None:
                raise UserError("These sample photos are not here.")
            self._page_uploads(page).clear()
            return "\n".join(self._page_uploads(page).add(sorted(folder.iterdir())))
        except Exception as error:
            return describe_error(error)

    def look(self, page: str, form: FormValues, said: str = "") -> PhotoReview:
        """What is on the tray, examined; `said` is told first."""
        try:
            found = review_photos(self._page_uploads(page), self.workspace, page, *_check_options(form))
        except Exception as error:
            found = PhotoReview([], describe_error(error), 0, False)
        return replace(found, words="\n".join(filter(None, [said, found.words])))

    def toggle_photo(self, page: str, number: int) -> str:
        """Leave a photo out; or put it back, where it is out."""
        tray = self._page_uploads(page)
        return _error_or_nothing(lambda: tray.use(number, not tray.is_used(number)))

    def turn(self, page: str, number: int, quarters: int) -> str:
        """Turn a photo to the left."""
        return _error_or_nothing(lambda: self._page_uploads(page).turn(number, quarters))

    def apply_advice(self, page: str, form: FormValues) -> str:
        """Do what the doctor proposes, as far as a click can."""
        return _error_or_nothing(lambda: apply_advice(self._page_uploads(page), *_check_options(form)))

    def clear(self, page: str) -> str:
        """Begin anew."""
        return _error_or_nothing(lambda: self._page_uploads(page).clear())

    def set_caption(self, page: str, number: int, text: str) -> str:
        """Write a photo's caption."""
        return _error_or_nothing(lambda: self._page_uploads(page).caption(number, text))

    def photo(self, page: str, number: int) -> SelectedPhoto:
        """What there is to do with a photo."""
        tray = self._page_uploads(page)
        try:
            name, used, caption = tray.uploads[number].name, tray.is_used(number), tray.captions(number)
        except (UserError, IndexError, TypeError):
            return SelectedPhoto("", True, "")
        return SelectedPhoto(name, used, caption)

    def _page_uploads(self, page: str) -> PhotoUploads:
        return self.uploads_by_page.of(page, self.generation.base.resolution)

    # --- name and plan ------------------------------------------------------------------------------------------------

    def naming(self, form: FormValues) -> str:
        """What there is to say of a name while it is typed."""
        return name_note(form, self.workspace.library)

    def plan(self, page: str, user: str | None, form: FormValues) -> str:
        """What Start would do."""
        try:
            if busy := self.trainings.running_training(user):
                return busy.words()
            count = sum(snap.used for snap in self._page_uploads(page).uploads)
            return plan_text(form, count, self.generation.base, self.workspace.library, self.trainings.pace())
        except Exception as error:
            return describe_error(error)

    # --- the training -------------------------------------------------------------------------------------------------

    def start(self, page: str, user: str | None, form: FormValues) -> str:
        """Begin; "" where it began, else why not."""

        def begin() -> None:
            self.trainings.start(parse_settings(form, self.generation.base), self._page_uploads(page), user)

        return _error_or_nothing(begin)

    def run_view(self, page: str, user: str | None, seen: str = "") -> tuple[RunView, Any] | None:
        """How the user's training stands; None where there is none to show."""
        try:
            standing = self.trainings.shown(user)
            return (run_view(standing, self.workspace, page, seen), standing) if standing else None
        except Exception as error:
            return RunView("I cannot say how the training stands", describe_error(error)), None

    def ask(self, user: str | None, wish: str) -> str:
        """Ask "sample" or "keep" of the user's training."""
        return _error_or_nothing(lambda: self.trainings.ask(user, wish))

    def cancel(self, user: str | None) -> str:
        """End the user's training and throw away what it has done; what came of it, in words."""
        try:
            return self.trainings.cancel(user)
        except Exception as error:
            return describe_error(error)

    def resume(self, user: str | None) -> str:
        """Take an unfinished training up again."""
        return _error_or_nothing(lambda: self.trainings.resume(user))

    def dismiss(self, user: str | None) -> str:
        """Make room for another."""
        return _error_or_nothing(lambda: self.trainings.dismiss(user))


@dataclass(frozen=True)
class SelectedPhoto:
    """A photo that was clicked; name "" where it is none."""

    name: str
    used: bool
    caption: str


def _error_or_nothing(work) -> str:
    """Nothing where it went well, else why not."""
    try:
        work()
        return ""
    except Exception as error:
        return describe_error(error)


def _check_options(form: FormValues) -> tuple[str, str, str]:
    """(kind, class noun, crop), as the doctor wants them."""
    noun = form["noun"] if isinstance(form["noun"], str) else ""
    return parse_kind(form["kind"]), noun.strip()[:100], "subject" if form["crop"] else "center"
