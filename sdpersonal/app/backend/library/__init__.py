"""What the Library tab does."""
