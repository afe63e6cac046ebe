"""Measure the cost of OpenMP's waiting threads: python benchmarks/waiting_threads.py

Generates with the built-in model in child processes, with GNU OpenMP's own waiting, with short spinning
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
from sdpersonal import GenerateRequest, Generator, load_base
generator = Generator(load_base("tiny", device="cpu"))
list(generator.generate(GenerateRequest(prompt="a duck", num_images=1, steps=2)))
start = time.perf_counter()
list(generator.generate(GenerateRequest(prompt="a duck on the beach", num_images=4, steps=10)))
print(time.perf_counter() - start)
"""
BUSY_CODE = "while True: pass"


def seconds(environment: dict[str, str]) -> float:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", GENERATE_CODE],
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def compare(name: str) -> None:
    times: dict[str, list[float]] = {environment_name: [] for environment_name in ENVIRONMENTS}
    for _ in range(ROUNDS):
        for environment_name, environment in ENVIRONMENTS.items():
            times[environment_name].append(seconds(environment))
    print(
        f"{name}:",
        ", ".join(f"{environment_name} {min(measured):.2f} s" for environment_name, measured in times.items()),
        flush=True,
    )


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
