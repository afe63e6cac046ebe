"""Generate images for many people on many machines: a server that checks who asks, and replicas that have a model.

It is an HTTP server of its own in front of Ray (`http_server.py`). The dispatcher (`dispatcher.py`) gives the images
that wait to replicas, the users in turn. Only `ray_serve.py` imports ray.serve.
"""
