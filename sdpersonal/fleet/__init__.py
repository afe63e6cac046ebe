"""Train many concepts, and generate many images, on many cores, cards or machines, with Ray as the engine.

All that must survive lies in a folder or an object store (`store.py`). A worker (`worker.py`) is an actor of Ray that
does one task after the other; the driver (`driver_loop.py`) hands them out. `serving/` answers requests over HTTP. Only
`cluster.py` and `serving/ray_serve.py` import ray, which is optional.

Training: a folder of the store for each job (`jobs.py`). A worker (`training_worker.py`) keeps Python's modules loaded
and trains each job in a process of its own (`training_process.py`), from its newest checkpoint. The driver
(`training_driver.py`) adds the finished concepts to the library (`library_writer.py`).

Generation: a request becomes tasks of one image each (`image_task.py`), whose concepts are pinned by identity. A worker
(`generation_worker.py`) keeps a base loaded, and the concepts that it used last (`concept_cache.py`), and generates
chunks of several tasks. The driver (`generation_driver.py`) adds the images to a folder.
"""
