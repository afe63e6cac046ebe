"""What generation.py is made of. `side` runs in a process of its own."""
