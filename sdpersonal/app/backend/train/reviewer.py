"""Review the photos of drafts in one background thread, which runs only while there is something to review."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path

from ....errors import UserError
from ....photos.decode import UnusablePhoto
from .photo_review import PhotoReview, ReviewOptions, SeenPhotos, review_photos
from .uploads import PhotoUploads, StoredPhoto

Key = tuple[tuple[tuple[Hashable, ...], ...], ReviewOptions]  # states of the photos, each with its name first
log = logging.getLogger(__name__)
_MAX_REVIEWS = 200  # remembered ones


class Reviewer:
    """Remembers the newest review of each draft's photos, and what it is of."""

    def __init__(self) -> None:
        self._reviews: OrderedDict[Path, tuple[Key | None, PhotoReview]] = OrderedDict()
        self._pending: OrderedDict[Path, tuple[PhotoUploads, ReviewOptions, Callable[[], None]]] = OrderedDict()
        self._seen = SeenPhotos()
        self._mutex, self._reviewing = threading.Lock(), threading.Lock()
        self._thread: threading.Thread | None = None

    def latest(
        self, uploads: PhotoUploads, photos: list[StoredPhoto], options: ReviewOptions, done: Callable[[], None]
    ) -> tuple[PhotoReview, bool]:
        """Return the newest review, and whether it is outdated: then another one begins. done: called after it, in the
        background thread."""
        key = _key(photos, options)
        with self._mutex:
            old_key, review = self._reviews.get(uploads.folder, (None, PhotoReview()))
            if old_key == key:
                return review, False
            if not photos:
                return PhotoReview(), False
            self._pending[uploads.folder] = uploads, options, done
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="photo-review", daemon=True)
                self._thread.start()
        unchanged = {state[0] for state in set(key[0]) & set(old_key[0] if old_key else ())}
        return review.without({*review.marks, *review.crops} - unchanged), True

    def now(self, uploads: PhotoUploads, options: ReviewOptions) -> PhotoReview:
        """Return the review of the photos as they are, and wait for it."""
        with self._reviewing:
            photos = uploads.photos()
            key = _key(photos, options)
            with self._mutex:
                old_key, review = self._reviews.get(uploads.folder, (None, PhotoReview()))
            if old_key == key:
                return review
            review = review_photos(photos, options, self._seen)
            with self._mutex:
                self._reviews[uploads.folder] = key, review
                self._reviews.move_to_end(uploads.folder)
                while len(self._reviews) > _MAX_REVIEWS:
                    self._reviews.popitem(last=False)
            return review

    def forget(self, folder: Path) -> None:
        """Forget a draft that is gone."""
        with self._mutex:
            self._reviews.pop(folder, None)
            self._pending.pop(folder, None)

    def wait(self, timeout: float = 60.0) -> None:
        """Wait until nothing is left to review."""
        thread = self._thread
        if thread is not None:
            thread.join(timeout)

    def _work(self) -> None:
        while True:
            with self._mutex:
                if not self._pending:
                    self._thread = None
                    return
                _, (uploads, options, done) = self._pending.popitem(last=False)
            try:
                self.now(uploads, options)
                done()
            except (OSError, UserError, UnusablePhoto):  # photos have changed meanwhile: they are pending again
                continue
            except Exception:  # an error to be mended: the page can go on
                log.warning("the photos of %s were not reviewed", uploads.folder.name, exc_info=True)


def _key(photos: list[StoredPhoto], options: ReviewOptions) -> Key:
    """Return what a review depends on."""
    captions = options.kind == "style"  # nothing else looks at them
    return tuple((p.name, p.version, p.used, p.crop, captions and bool(p.captions)) for p in photos), options
