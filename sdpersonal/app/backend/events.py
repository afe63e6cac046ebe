"""Tell the open pages of each user what has changed."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from typing import Any

CLOSING = "closing"  # the kind of the last event: the app ends


class Subscription:
    """What one open page has yet to be told: of each event only the newest version, so that a slow page falls no
    further behind. Used as a context manager in the event loop."""

    def __init__(self, hub: EventHub, user: str | None):
        self._hub, self._user = hub, user
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._pending: dict[tuple[str, str], Any] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Subscription:
        self._hub.add(self._user, self)
        return self

    def __exit__(self, *error: object) -> None:
        self._hub.remove(self._user, self)

    def put(self, kind: str, key: str, data: Any) -> None:
        """Add an event, from any thread."""
        with self._lock:
            self._pending.pop((kind, key), None)  # the newest goes last
            self._pending[kind, key] = data
        self._loop.call_soon_threadsafe(self._changed.set)

    async def next(self, timeout: float) -> list[tuple[str, Any]]:
        """Wait for events; return them as (kind, data), oldest first, [] after `timeout` seconds without any."""
        try:
            await asyncio.wait_for(self._changed.wait(), timeout)
        except TimeoutError:
            return []
        self._changed.clear()
        with self._lock:
            pending, self._pending = self._pending, {}
        return [(kind, data) for (kind, _), data in pending.items()]


class EventHub:
    """The open pages of all users."""

    def __init__(self) -> None:
        self._subscriptions: defaultdict[str | None, list[Subscription]] = defaultdict(list)
        self._lock = threading.Lock()

    def subscribe(self, user: str | None) -> Subscription:
        """Return a subscription for a page of the user, to be entered in the event loop."""
        return Subscription(self, user)

    def add(self, user: str | None, subscription: Subscription) -> None:
        with self._lock:
            self._subscriptions[user].append(subscription)

    def remove(self, user: str | None, subscription: Subscription) -> None:
        with self._lock:
            self._subscriptions[user].remove(subscription)

    def is_watched(self, user: str | None) -> bool:
        """Return whether a page of the user is open."""
        return bool(self._subscriptions.get(user))

    def watching_users(self) -> list[str | None]:
        """Return the users who have a page open."""
        with self._lock:
            return [user for user, subscriptions in self._subscriptions.items() if subscriptions]

    def publish(self, user: str | None, kind: str, data: Any, key: str = "") -> None:
        """Send an event to the user's pages. data: for JSON; key: of the thing that it is about, if there are many."""
        with self._lock:
            subscriptions = list(self._subscriptions.get(user, ()))
        for subscription in subscriptions:
            subscription.put(kind, key, data)

    def publish_to_all(self, kind: str, data: Any, key: str = "") -> None:
        """Send an event to every open page."""
        with self._lock:
            users = list(self._subscriptions)
        for user in users:
            self.publish(user, kind, data, key)
