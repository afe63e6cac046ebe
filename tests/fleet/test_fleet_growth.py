"""The simulation of a growing fleet runs over the driver as it is, and sees that it waits for many files at once."""

from benchmarks.fleet_growth import Options, simulate


def test_more_threads_raise_worker_utilization_with_slow_storage():
    use = {threads: simulate(Options(threads=threads, jobs_per_worker=2), 24, 100.0)["use"] for threads in (1, 32)}
    assert use[1] + 0.1 < use[32] <= 1
