"""Train many concepts on many cores, cards or machines, with Ray as the engine.

All that must survive lies in a folder or an object store (`store.py`), a folder for each training (`jobs.py`). A worker
(`worker.py`) is an actor of Ray that keeps Python's modules loaded and trains one job after the other, each in a
process of its own (`training_process.py`), from its newest checkpoint. The driver (`driver.py`) hands out the jobs and
adds the finished concepts to the library (`librarian.py`). Only `cluster.py` imports ray, which is optional.
"""
