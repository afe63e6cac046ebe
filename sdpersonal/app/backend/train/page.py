"""All that the page for making concepts can ask for. What goes wrong comes back in words, never as an exception."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from .... import storage
from ....errors import PersonalError
from ..error_text import in_words
from ..generation_service import Studio
from ..workspace import House
from .form import kind_of, naming, plan, settings_of
from .photo_review import Look, follow_advice, look
from .run_view import Scene, scene
from .training_service import Trainings
from .uploads import Tray, Trays, samples

Form = Mapping[str, Any]


class Workshop:
    """Trays of photos for pages, trainings for users."""

    def __init__(self, house: House, studio: Studio):
        self.house, self.studio = house, studio
        self.trays = Trays()
        self.trainings = Trainings(house, self._make_room)

    def _make_room(self) -> None:
        if self.studio.base.device == "cuda":  # drawing and training share the card
            self.studio.release()

    def leave(self, page: str) -> None:
        """The page is closed: its photos go. A training goes on."""
        self.trays.leave(page)

    def close(self) -> None:
        """The app ends: so does a training, with a checkpoint to go on from."""
        self.trainings.close()
        self.trays.close()

    # --- photos -------------------------------------------------------------------------------------------------------

    def drop(self, page: str, paths: Sequence[str] | str | None) -> str:
        """Take what was uploaded; the uploads themselves go at once. What could not be used, in words."""
        given = [paths] if isinstance(paths, str) else list(paths or ())
        try:
            places = [storage.inside(self.house.shown, path) for path in given]
        except PersonalError as error:
            return str(error)
        try:
            return "\n".join(self._tray(page).add(places)) if places else ""
        except Exception as error:
            return in_words(error)
        finally:
            for place in places:
                with suppress(PersonalError):
                    storage.remove(place)

    def take_samples(self, page: str, title: str) -> str:
        """Put a set of sample photos in the place of what is on the tray."""
        try:
            folder = samples().get(title)
            if folder is None:
                raise PersonalError("These sample photos are not here.")
            self._tray(page).clear()
            return "\n".join(self._tray(page).add(sorted(folder.iterdir())))
        except Exception as error:
            return in_words(error)

    def look(self, page: str, form: Form, said: str = "") -> Look:
        """What is on the tray, examined; `said` is told first."""
        try:
            found = look(self._tray(page), self.house, page, *_asked(form))
        except Exception as error:
            found = Look([], in_words(error), 0, False)
        return replace(found, words="\n".join(filter(None, [said, found.words])))

    def leave_out(self, page: str, number: int) -> str:
        """Leave a photo out; or put it back, where it is out."""
        tray = self._tray(page)
        return _words(lambda: tray.use(number, not tray.is_used(number)))

    def turn(self, page: str, number: int, quarters: int) -> str:
        """Turn a photo to the left."""
        return _words(lambda: self._tray(page).turn(number, quarters))

    def follow_advice(self, page: str, form: Form) -> str:
        """Do what the doctor proposes, as far as a click can."""
        return _words(lambda: follow_advice(self._tray(page), *_asked(form)))

    def clear(self, page: str) -> str:
        """Begin anew."""
        return _words(lambda: self._tray(page).clear())

    def say_of(self, page: str, number: int, text: str) -> str:
        """Write a photo's caption."""
        return _words(lambda: self._tray(page).caption(number, text))

    def photo(self, page: str, number: int) -> Chosen:
        """What there is to do with a photo."""
        tray = self._tray(page)
        try:
            name, used, caption = tray.snaps[number].name, tray.is_used(number), tray.captions(number)
        except (PersonalError, IndexError, TypeError):
            return Chosen("", True, "")
        return Chosen(name, used, caption)

    def _tray(self, page: str) -> Tray:
        return self.trays.of(page, self.studio.base.resolution)

    # --- name and plan ------------------------------------------------------------------------------------------------

    def naming(self, form: Form) -> str:
        """What there is to say of a name while it is typed."""
        return naming(form, self.house.library)

    def plan(self, page: str, user: str | None, form: Form) -> str:
        """What Start would do."""
        try:
            if busy := self.trainings.busy(user):
                return busy.words()
            count = sum(snap.used for snap in self._tray(page).snaps)
            return plan(form, count, self.studio.base, self.house.library, self.trainings.pace())
        except Exception as error:
            return in_words(error)

    # --- the training -------------------------------------------------------------------------------------------------

    def start(self, page: str, user: str | None, form: Form) -> str:
        """Begin; "" where it began, else why not."""

        def begin() -> None:
            self.trainings.start(settings_of(form, self.studio.base), self._tray(page), user)

        return _words(begin)

    def scene(self, page: str, user: str | None, seen: str = "") -> tuple[Scene, Any] | None:
        """How the user's training stands; None where there is none to show."""
        try:
            standing = self.trainings.shown(user)
            return (scene(standing, self.house, page, seen), standing) if standing else None
        except Exception as error:
            return Scene("I cannot say how the training stands", in_words(error)), None

    def ask(self, user: str | None, wish: str) -> str:
        """Ask "sample" or "keep" of the user's training."""
        return _words(lambda: self.trainings.ask(user, wish))

    def cancel(self, user: str | None) -> str:
        """End the user's training and throw away what it has done; what came of it, in words."""
        try:
            return self.trainings.cancel(user)
        except Exception as error:
            return in_words(error)

    def go_on(self, user: str | None) -> str:
        """Take an unfinished training up again."""
        return _words(lambda: self.trainings.go_on(user))

    def put_away(self, user: str | None) -> str:
        """Make room for another."""
        return _words(lambda: self.trainings.put_away(user))


@dataclass(frozen=True)
class Chosen:
    """A photo that was clicked; name "" where it is none."""

    name: str
    used: bool
    caption: str


def _words(work) -> str:
    """Nothing where it went well, else why not."""
    try:
        work()
        return ""
    except Exception as error:
        return in_words(error)


def _asked(form: Form) -> tuple[str, str, str]:
    """(kind, class noun, crop), as the doctor wants them."""
    noun = form["noun"] if isinstance(form["noun"], str) else ""
    return kind_of(form["kind"]), noun.strip()[:100], "subject" if form["crop"] else "center"
