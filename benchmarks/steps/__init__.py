"""What training_step.py is made of. A module with a `main` runs in a process of its own."""
