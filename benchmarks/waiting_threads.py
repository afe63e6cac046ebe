"""What OpenMP's waiting threads cost: python benchmarks/waiting_threads.py

Draws with the built-in base in child processes, with OMP_WAIT_POLICY unset and PASSIVE in turn, on an idle machine and
beside one busy process, and prints the seconds of each and their ratio.
"""

import os
import statistics
import subprocess
import sys

ROUNDS = 3
WORK = """
import time
from sdpersonal import Generator, Request, load_base
generator = Generator(load_base("tiny", device="cpu"))
list(generator.draw(Request(prompt="a duck", n=1, steps=2)))
start = time.perf_counter()
list(generator.draw(Request(prompt="a duck on the beach", n=4, steps=10)))
print(time.perf_counter() - start)
"""
BUSY = "while True: pass"


def seconds(policy: str | None) -> float:
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    environment |= {"OMP_WAIT_POLICY": policy} if policy else {}
    done = subprocess.run([sys.executable, "-c", WORK], env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout)


def compare(name: str) -> None:
    times = {policy: [] for policy in (None, "PASSIVE")}
    for _ in range(ROUNDS):
        for policy, own in times.items():
            own.append(seconds(policy))
    unset, passive = (statistics.median(own) for own in times.values())
    print(f"{name}: unset {unset:.2f} s, PASSIVE {passive:.2f} s, ratio {unset / passive:.2f}", flush=True)


if __name__ == "__main__":
    print(f"{os.cpu_count()} cores")
    compare("idle")
    busy = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        compare("beside one busy process")
    finally:
        busy.kill()
