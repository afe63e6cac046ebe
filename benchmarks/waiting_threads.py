"""What OpenMP's waiting threads cost: python benchmarks/waiting_threads.py

Draws with the built-in base in child processes, with GNU OpenMP's own waiting, with short spinning
(GOMP_SPINCOUNT=1000, what the command line sets) and with none (OMP_WAIT_POLICY=PASSIVE) in turn, on an idle machine
and beside one and two busy processes. Prints the least seconds of each.
"""

import os
import subprocess
import sys

ROUNDS = 2
ENVIRONMENTS = {"unset": {}, "short spin": {"GOMP_SPINCOUNT": "1000"}, "passive": {"OMP_WAIT_POLICY": "PASSIVE"}}
GENERATE_CODE = """
import time
from sdpersonal import Generator, Request, load_base
generator = Generator(load_base("tiny", device="cpu"))
list(generator.draw(Request(prompt="a duck", n=1, steps=2)))
start = time.perf_counter()
list(generator.draw(Request(prompt="a duck on the beach", n=4, steps=10)))
print(time.perf_counter() - start)
"""
BUSY_CODE = "while True: pass"


def seconds(way: dict[str, str]) -> float:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", GENERATE_CODE], env=kept | way, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def compare(name: str) -> None:
    times = {way: [] for way in ENVIRONMENTS}
    for _ in range(ROUNDS):
        for way, environment in ENVIRONMENTS.items():
            times[way].append(seconds(environment))
    print(f"{name}:", ", ".join(f"{way} {min(own):.2f} s" for way, own in times.items()), flush=True)


if __name__ == "__main__":
    print(f"{os.cpu_count()} cores")
    busy = []
    try:
        for name in ("idle", "beside one busy process", "beside two"):
            compare(name)
            busy.append(subprocess.Popen([sys.executable, "-c", BUSY_CODE]))
    finally:
        for process in busy:
            process.kill()
