"""What the Train tab does."""
