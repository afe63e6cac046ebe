"""Do the work of the Train tab."""
