"""Backend of the Train tab."""
