"""Generate images for many people on many machines: a door that checks who asks, and replicas that have a model loaded.

The door (`door.py`) is an HTTP server of its own in front of Ray. The dispatcher (`dispatcher.py`) gives the images
that wait to replicas, the users in turn. Only `ray_serve.py` imports ray.serve.
"""
