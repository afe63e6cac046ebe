"""The simulation of a growing fleet runs over the driver as it is, and sees that it waits for many files at once."""

from benchmarks.fleet_growth import Options, simulate


def test_a_slow_storage_holds_up_one_thread_and_not_many():
    use = {threads: simulate(Options(threads=threads, jobs_per_worker=2), 24, 100.0)["use"] for threads in (1, 32)}
    assert use[1] + 0.1 < use[32] <= 1
