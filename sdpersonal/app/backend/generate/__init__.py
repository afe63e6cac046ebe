"""What the Generate tab does."""
