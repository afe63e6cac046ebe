"""Workers are shared as max-min fairness says, and equals take turns."""

import heapq
import random
from collections import Counter

import pytest

from sdpersonal.fleet.fair_share import FairShare


def water_filling(workers, demands):
    """Return the max-min fair number of workers for each user (Bertsekas and Gallager, Data Networks, 6.5.2)."""
    shares, left = {}, float(workers)
    for position, (user, demand) in enumerate(sorted(demands.items(), key=lambda item: item[1])):
        shares[user] = min(demand, left / (len(demands) - position))
        left -= shares[user]
    return shares


def simulate(workers, demands, seconds, end=2000.0):
    """Return the mean number of workers of each user: demands: tasks at once; seconds: mean time of a task."""
    rng, fair_share = random.Random(1), FairShare()
    running, worker_seconds = Counter(), Counter()
    ends: list[tuple[float, str]] = []
    now = 0.0
    while now < end:
        while len(ends) < workers and (users := [user for user in demands if running[user] < demands[user]]):
            user = fair_share.choose(users, running)
            duration = seconds[user] * rng.uniform(0.5, 1.5)
            worker_seconds[user] += duration
            heapq.heappush(ends, (now + duration, user))
        now, user = heapq.heappop(ends)
        running[user] -= 1
    return {user: worker_seconds[user] / end for user in demands}


@pytest.mark.parametrize(
    ("workers", "demands", "seconds"),
    [
        (12, {"anna": 100, "ben": 100, "cleo": 100}, {"anna": 1, "ben": 10, "cleo": 3}),
        (12, {"anna": 100, "ben": 1, "cleo": 3, "dan": 50}, {"anna": 5, "ben": 1, "cleo": 2, "dan": 1}),
        (2, {"anna": 9, "ben": 9, "cleo": 9, "dan": 1}, {"anna": 1, "ben": 1, "cleo": 1, "dan": 1}),
    ],
)
def test_users_hold_the_workers_that_water_filling_gives_them(workers, demands, seconds):
    shares = simulate(workers, demands, seconds)
    assert shares == pytest.approx(water_filling(workers, demands), abs=0.3)


def test_users_with_equally_many_running_tasks_take_turns():
    fair_share = FairShare()
    turns = [fair_share.choose(["anna", "ben", "cleo"], Counter()) for _ in range(5)]
    assert turns == ["anna", "ben", "cleo", "anna", "ben"]
    assert fair_share.choose(["anna", "ben", "dan"], Counter()) == "dan"  # had no turn yet
    assert fair_share.choose(["anna", "ben"], Counter()) == "anna"
    assert fair_share.choose(["dan", "ben"], Counter()) == "ben"  # leaving does not make a user new


def test_the_user_with_the_fewest_running_tasks_comes_before_the_longest_wait():
    fair_share, running = FairShare(), Counter(ben=1)
    assert [fair_share.choose(["anna", "ben"], running) for _ in range(4)] == ["anna", "ben", "anna", "ben"]
    assert running == Counter(anna=2, ben=3)
